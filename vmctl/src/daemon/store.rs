//! The data that survive the daemon: each VM's definition and last state, in a directory of its own.
//!
//! `STATE_DIR/NAME/config.toml` is a VM's definition, and `state.toml` its last state. Both are replaced by renaming a file that is
//! on the disk for good. A directory appears and goes as a whole. A copy of the last state is in memory, in `RUNTIME_DIR/states`: it is
//! written at once, also while the disk is slow or full, and ends with the boot of the root partition. A file that can't be read is never taken for one that is
//! not there: its VM is still shown, and nothing of it is removed but by `delete`.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use guest_proto::control::{EndCause, VmState};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize};

use super::definition_of;
use super::process::make_log_dir;
use super::record::asked::Asked;
use super::record::brake::Brake;
use crate::config::{ConfigError, VmConfig, check_name};
use crate::file::{describe, make_private_dir};

/// Name of the file that holds a VM's definition.
pub(super) const CONFIG: &str = "config.toml";
const STATE: &str = "state.toml";
/// Prefixes of directories that are being made and removed; no VM's name begins with a dot.
const NEW: &str = ".new-";
const DELETED: &str = ".deleted-";
/// Version of `state.toml`. A newer one is read for what this program knows.
pub(super) const VERSION: u32 = 1;

/// The state directory.
#[derive(Clone, Debug)]
pub(super) struct Store {
    root: PathBuf,
    /// Directory of the copies in memory.
    copies: PathBuf,
}

/// `state.toml`. A value that is missing or unknown, because another version of this program wrote it, leaves the others.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Saved {
    /// Version of the file.
    #[serde(deserialize_with = "if_known")]
    pub(super) version: u32,
    /// State.
    #[serde(deserialize_with = "if_known")]
    pub(super) state: Option<VmState>,
    /// The reason for the state.
    #[serde(deserialize_with = "if_known")]
    pub(super) reason: String,
    /// Boot of the root partition in which this was written; a partition and a time mean nothing in another.
    #[serde(deserialize_with = "if_known")]
    pub(super) boot_id: String,
    /// See `Record`.
    #[serde(deserialize_with = "if_known")]
    pub(super) partition: Option<u64>,
    /// See `Record`.
    #[serde(deserialize_with = "if_known")]
    pub(super) started_ms: Option<u64>,
    /// See `Record`.
    #[serde(deserialize_with = "if_known")]
    pub(super) reboots: u32,
    /// See `Record`.
    #[serde(deserialize_with = "if_known")]
    pub(super) boots_at_ms: Option<u64>,
    /// See `Record`.
    #[serde(deserialize_with = "if_known")]
    pub(super) brake: Brake,
    /// See `Record`.
    #[serde(deserialize_with = "if_known")]
    pub(super) asked: Asked,
    /// The end of the VM, if its worker has told it.
    #[serde(deserialize_with = "if_known")]
    pub(super) end: Option<(EndCause, String)>,
}

fn if_known<'de, T: DeserializeOwned + Default, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<T, D::Error> {
    let value = toml::Value::deserialize(deserializer)?;
    Ok(T::deserialize(value).unwrap_or_default())
}

/// Error: a file of a VM's can't be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum StoreError {
    /// The file can't be read, or has another form.
    #[error("{}: {why}", path.display())]
    Unread {
        /// The file.
        path: PathBuf,
        /// The reason.
        why: String,
    },
    /// The definition makes no VM.
    #[error(transparent)]
    Definition(#[from] ConfigError),
}

impl Store {
    /// Opens the directory, and removes files that a crash left half made or half removed.
    ///
    /// # Errors
    ///
    /// The directory can't be read.
    pub(super) fn open(root: &Path, runtime_dir: &Path) -> io::Result<Self> {
        for entry in fs::read_dir(root)? {
            let entry = entry?;
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if name.starts_with(DELETED) || name.starts_with(NEW) {
                fs::remove_dir_all(entry.path())?;
            }
        }
        let copies = runtime_dir.join("states");
        make_private_dir(&copies)?;
        Ok(Self {
            root: root.to_owned(),
            copies,
        })
    }

    /// The directory.
    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// A VM's directory.
    pub(super) fn dir(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// Names of the VMs that have a directory.
    ///
    /// # Errors
    ///
    /// The directory can't be read.
    pub(super) fn names(&self) -> io::Result<Vec<String>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.root)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if check_name(&name).is_ok() && entry.file_type()?.is_dir() {
                found.push(name);
            }
        }
        Ok(found)
    }

    /// A VM's definition.
    ///
    /// # Errors
    ///
    /// Fails with [`StoreError`] if it can't be used.
    pub(super) fn definition(&self, name: &str) -> Result<VmConfig, StoreError> {
        let path = definition_of(&self.root, name);
        let text = fs::read_to_string(&path).map_err(|e| unread(&path, describe(&e)))?;
        let config = VmConfig::parse(&path.display().to_string(), &text)?;
        match config.name == name {
            true => Ok(config),
            false => Err(unread(&path, format_args!("the name is not {name}"))),
        }
    }

    /// Makes a VM exist, for good once this returns.
    ///
    /// # Errors
    ///
    /// There is a directory of that name, or the file system refuses; the VM then doesn't exist.
    pub(super) fn define(&self, name: &str, toml: &str) -> io::Result<()> {
        let made = self.root.join(format!("{NEW}{name}"));
        fs::DirBuilder::new().mode(0o700).create(&made)?;
        let result = make_log_dir(&made)
            .and_then(|()| replace(&made, CONFIG, toml))
            .and_then(|()| {
                // Whoever made a directory of that name may need what is in it.
                let renamed =
                    renameat_with(CWD, &made, CWD, self.dir(name), RenameFlags::NOREPLACE);
                Ok(renamed?)
            });
        match result {
            Ok(()) => sync(&self.root),
            Err(e) => {
                let _ = fs::remove_dir_all(&made);
                Err(e)
            }
        }
    }

    /// Replaces a VM's definition, for good once this returns.
    ///
    /// # Errors
    ///
    /// The file system refuses; the former definition stands.
    pub(super) fn redefine(&self, name: &str, toml: &str) -> io::Result<()> {
        replace(&self.dir(name), CONFIG, toml)
    }

    /// A VM's last state; `None` if it was never started. `boot_id` is this boot of the root partition.
    ///
    /// # Errors
    ///
    /// Fails with [`StoreError`] if it can't be read.
    pub(super) fn load(&self, name: &str, boot_id: &str) -> Result<Option<Saved>, StoreError> {
        let copy = read_state(&self.copy(name)).ok().flatten();
        match copy.filter(|copy| copy.boot_id == boot_id) {
            Some(copy) => Ok(Some(copy)),
            None => read_state(&self.dir(name).join(STATE)),
        }
    }

    fn copy(&self, name: &str) -> PathBuf {
        self.copies.join(format!("{name}.toml"))
    }

    /// Notes a VM's last state in memory.
    ///
    /// # Errors
    ///
    /// The file system refuses; the former note stands.
    pub(super) fn note(&self, name: &str, saved: &Saved) -> io::Result<()> {
        let text = toml::to_string(saved).map_err(io::Error::other)?;
        let temporary = self.copies.join(format!(".{name}.new"));
        fs::write(&temporary, text)?;
        fs::rename(&temporary, self.copy(name))
    }

    /// Forgets the note.
    pub(super) fn forget(&self, name: &str) {
        // There may be none.
        let _ = fs::remove_file(self.copy(name));
    }

    /// Replaces a VM's last state.
    ///
    /// # Errors
    ///
    /// The file system refuses; the former state stands.
    pub(super) fn save(&self, name: &str, saved: &Saved) -> io::Result<()> {
        let text = toml::to_string(saved).map_err(io::Error::other)?;
        replace(&self.dir(name), STATE, &text)
    }

    /// Gives a VM another name, for good once this returns; `toml` is its definition with that name.
    ///
    /// # Errors
    ///
    /// There is a directory of that name, or the file system refuses; the VM then keeps its name.
    pub(super) fn rename(&self, name: &str, to: &str, toml: &str) -> io::Result<()> {
        let (old, new) = (self.dir(name), self.dir(to));
        renameat_with(CWD, &old, CWD, &new, RenameFlags::NOREPLACE)?;
        if let Err(e) = replace(&new, CONFIG, toml) {
            fs::rename(&new, &old)?;
            return Err(e);
        }
        sync(&self.root)
    }

    /// Ends a VM's existence. It need not have a directory.
    ///
    /// # Errors
    ///
    /// The file system refuses.
    pub(super) fn remove(&self, name: &str) -> io::Result<()> {
        let deleted = self.root.join(format!("{DELETED}{name}"));
        match fs::rename(self.dir(name), &deleted) {
            Ok(()) => fs::remove_dir_all(deleted),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(e) => Err(e),
        }
    }
}

fn unread(path: &Path, why: impl fmt::Display) -> StoreError {
    StoreError::Unread {
        path: path.to_owned(),
        why: why.to_string(),
    }
}

fn read_state(path: &Path) -> Result<Option<Saved>, StoreError> {
    let wrong = |e: &dyn fmt::Display| unread(path, e);
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(wrong(&describe(&e))),
    };
    let table: toml::Table = toml::from_str(&text).map_err(|e| wrong(&e.message()))?;
    if !table.contains_key("state") {
        return Err(wrong(&"the key \"state\" is missing"));
    }
    let saved = table.try_into().map_err(|e| wrong(&e))?;
    Ok(Some(saved))
}

fn replace(dir: &Path, name: &str, text: &str) -> io::Result<()> {
    let temporary = dir.join(format!("{name}.new"));
    let mut file = File::create(&temporary)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&temporary, dir.join(name))?;
    sync(dir)
}

fn sync(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOML: &str = "name='a'\nmemory='64M'\nkernel='/k'";

    /// Opens a state directory whose copies are in a directory that is no VM's.
    fn open(root: &Path) -> io::Result<Store> {
        Store::open(root, &root.join(".run"))
    }

    #[test]
    fn definitions_and_states_survive_and_go() {
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path()).unwrap();
        store.define("a", TOML).unwrap();
        assert_eq!(store.load("a", "b"), Ok(None));
        let saved = Saved {
            state: Some(VmState::IoStalled),
            reason: "disk \"full\"".to_owned(),
            boot_id: "b".to_owned(),
            partition: Some(3),
            started_ms: None,
            reboots: 2,
            end: Some((EndCause::Rebooted, "guest rebooted".to_owned())),
            version: VERSION,
            boots_at_ms: Some(5),
            brake: Brake::default(),
            asked: Asked {
                end: None,
                pause: true,
            },
        };
        store.save("a", &saved).unwrap();
        let store = open(dir.path()).unwrap();
        assert_eq!(store.load("a", "b"), Ok(Some(saved)));
        assert_eq!(store.names().unwrap(), ["a"]);
        assert_eq!(store.definition("a").unwrap().memory, 64 << 20);
        store.remove("a").unwrap();
        assert!(!dir.path().join("a").exists());
        store.remove("a").unwrap();
    }

    #[test]
    fn the_copy_in_memory_counts_in_its_own_boot() {
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path()).unwrap();
        store.define("a", TOML).unwrap();
        let saved = |reason: &str, boot_id: &str| Saved {
            state: Some(VmState::Stopped),
            reason: reason.to_owned(),
            boot_id: boot_id.to_owned(),
            version: VERSION,
            ..Saved::default()
        };
        let reason = |store: &Store| store.load("a", "now").unwrap().unwrap().reason;
        store.save("a", &saved("on disk", "now")).unwrap();
        assert_eq!(reason(&store), "on disk");
        store.note("a", &saved("in memory", "now")).unwrap();
        assert_eq!(reason(&store), "in memory");
        store.note("a", &saved("in memory", "before")).unwrap();
        assert_eq!(reason(&store), "on disk");
        store.note("a", &saved("in memory", "now")).unwrap();
        store.forget("a");
        store.forget("a");
        assert_eq!(reason(&store), "on disk");
    }

    #[test]
    fn what_another_version_wrote_is_read_as_far_as_it_is_known() {
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path()).unwrap();
        store.define("a", TOML).unwrap();
        let state = dir.path().join("a/state.toml");
        let text = "version = 2\nstate = 'migrating'\nreason = 'r'\nreboots = 'many'\nnew = 1\nboot_id = 'b'";
        fs::write(&state, text).unwrap();
        let saved = store.load("a", "b").unwrap().unwrap();
        assert_eq!((saved.state, saved.reboots), (None, 0));
        assert_eq!((&*saved.reason, &*saved.boot_id), ("r", "b"));
        for text in ["", "nonsense", "version = 1"] {
            fs::write(&state, text).unwrap();
            let error = store.load("a", "b").unwrap_err();
            assert!(error.to_string().contains("a/state.toml: "), "{error}");
        }
    }

    #[test]
    fn leftovers_are_no_vms_and_what_is_a_users_stays() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join(".deleted-b/x")).unwrap();
        fs::create_dir_all(dir.path().join(".new-c/log")).unwrap();
        fs::create_dir(dir.path().join("bare")).unwrap();
        fs::create_dir(dir.path().join("wrong")).unwrap();
        fs::write(dir.path().join("file"), TOML).unwrap();
        fs::write(dir.path().join("wrong/config.toml"), TOML).unwrap();
        let store = open(dir.path()).unwrap();
        assert!(!dir.path().join(".deleted-b").exists());
        assert!(!dir.path().join(".new-c").exists());
        let mut names = store.names().unwrap();
        names.sort();
        assert_eq!(names, ["bare", "wrong"]);
        let wrong = |name: &str| store.definition(name).unwrap_err().to_string();
        assert!(wrong("wrong").contains("name is not wrong"));
        assert!(wrong("bare").contains("bare/config.toml: no such file"));
        let refused = store.define("bare", TOML).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::AlreadyExists);
        assert!(!dir.path().join("bare/config.toml").exists());
        assert!(!dir.path().join(".new-bare").exists());
    }
}
