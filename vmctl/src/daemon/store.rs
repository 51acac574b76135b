//! What survives the daemon: each VM's definition and last state, in a directory of its own.
//!
//! `STATE_DIR/NAME/config.toml` makes a VM exist; it appears and goes atomically. `state.toml` is
//! replaced at each change of state.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use guest_proto::control::VmState;
use serde::{Deserialize, Serialize};

use super::process::{Identity, make_log_dir};
use crate::config::{VmConfig, check_name};

const CONFIG: &str = "config.toml";
const STATE: &str = "state.toml";
/// Prefix of directories that are being removed; no VM's name begins with a dot.
const DELETED: &str = ".deleted-";

/// The state directory.
#[derive(Debug)]
pub(super) struct Store {
    root: PathBuf,
}

/// `state.toml`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Saved {
    /// State.
    pub(super) state: VmState,
    /// Why.
    pub(super) reason: String,
    /// Boot of the root partition in which this was written; a partition, a worker and a time
    /// mean nothing in another.
    pub(super) boot_id: String,
    /// See `Record`.
    pub(super) partition: Option<u64>,
    /// See `Record`.
    pub(super) started_ms: Option<u64>,
    /// See `Record`.
    pub(super) reboots: u32,
    /// Its worker process.
    pub(super) worker: Option<Identity>,
}

impl Store {
    /// Opens the directory and clears away what a crash left half removed.
    ///
    /// # Errors
    ///
    /// It can't be read.
    pub(super) fn open(root: &Path) -> io::Result<Self> {
        for entry in fs::read_dir(root)? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with(DELETED) {
                fs::remove_dir_all(entry.path())?;
            }
        }
        Ok(Self {
            root: root.to_owned(),
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

    /// Every definition, or why it can't be used.
    ///
    /// # Errors
    ///
    /// The directory can't be read.
    pub(super) fn definitions(&self) -> io::Result<Vec<(String, Result<VmConfig, String>)>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.root)? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            let path = self.dir(&name).join(CONFIG);
            if check_name(&name).is_err() || !path.exists() {
                continue;
            }
            let config = fs::read_to_string(&path)
                .map_err(|e| format!("{}: {e}", path.display()))
                .and_then(|text| {
                    VmConfig::parse(&path.display().to_string(), &text).map_err(|e| e.to_string())
                })
                .and_then(|config| {
                    if config.name == name {
                        Ok(config)
                    } else {
                        Err(format!("{}: the name is not {name}", path.display()))
                    }
                });
            found.push((name, config));
        }
        Ok(found)
    }

    /// Makes a VM exist, for good once this returns.
    ///
    /// # Errors
    ///
    /// The file system refuses; the VM then doesn't exist.
    pub(super) fn define(&self, name: &str, toml: &str) -> io::Result<()> {
        let dir = self.dir(name);
        // What is there without a definition is the rest of an interrupted `define`.
        if dir.exists() {
            self.remove(name)?;
        }
        fs::DirBuilder::new().mode(0o700).create(&dir)?;
        let result = make_log_dir(&dir)
            .and_then(|()| replace(&dir, CONFIG, toml, true))
            .and_then(|()| sync(&self.root));
        if result.is_err() {
            let _ = self.remove(name);
        }
        result
    }

    /// Replaces a VM's definition, for good once this returns.
    ///
    /// # Errors
    ///
    /// The file system refuses; the former definition stands.
    pub(super) fn redefine(&self, name: &str, toml: &str) -> io::Result<()> {
        replace(&self.dir(name), CONFIG, toml, true)
    }

    /// A VM's last state, if it can be read.
    pub(super) fn load(&self, name: &str) -> Option<Saved> {
        let text = fs::read_to_string(self.dir(name).join(STATE)).ok()?;
        toml::from_str(&text).ok()
    }

    /// Replaces a VM's last state.
    ///
    /// # Errors
    ///
    /// The file system refuses; the former state stands.
    pub(super) fn save(&self, name: &str, saved: &Saved) -> io::Result<()> {
        let text = toml::to_string(saved).map_err(io::Error::other)?;
        // Not synced: it tells what runs now, and after a power failure nothing does.
        replace(&self.dir(name), STATE, &text, false)
    }

    /// Ends a VM's existence.
    ///
    /// # Errors
    ///
    /// The file system refuses.
    pub(super) fn remove(&self, name: &str) -> io::Result<()> {
        let doomed = self.root.join(format!("{DELETED}{name}"));
        fs::rename(self.dir(name), &doomed)?;
        fs::remove_dir_all(doomed)
    }
}

fn replace(dir: &Path, name: &str, text: &str, durable: bool) -> io::Result<()> {
    let temporary = dir.join(format!("{name}.new"));
    let mut file = File::create(&temporary)?;
    file.write_all(text.as_bytes())?;
    if durable {
        file.sync_all()?;
    }
    fs::rename(&temporary, dir.join(name))?;
    if durable {
        sync(dir)?;
    }
    Ok(())
}

fn sync(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOML: &str = "name='a'\nmemory='64M'\nkernel='/k'";

    #[test]
    fn definitions_and_states_survive_and_go() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        store.define("a", TOML).unwrap();
        let saved = Saved {
            state: VmState::IoStalled,
            reason: "disk \"full\"".to_owned(),
            boot_id: "b".to_owned(),
            partition: Some(3),
            started_ms: None,
            reboots: 2,
            worker: Some(Identity {
                pid: 7,
                start_time: 8,
            }),
        };
        store.save("a", &saved).unwrap();
        let store = Store::open(dir.path()).unwrap();
        assert_eq!(store.load("a"), Some(saved));
        let found = store.definitions().unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].1.as_ref().unwrap().memory, 64 << 20);
        store.remove("a").unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn leftovers_are_no_vms() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join(".deleted-b/x")).unwrap();
        fs::create_dir(dir.path().join("half")).unwrap();
        fs::create_dir(dir.path().join("wrong")).unwrap();
        fs::write(dir.path().join("wrong/config.toml"), TOML).unwrap();
        let store = Store::open(dir.path()).unwrap();
        assert!(!dir.path().join(".deleted-b").exists());
        let found = store.definitions().unwrap();
        assert_eq!(found.len(), 1);
        assert!(
            found[0]
                .1
                .as_ref()
                .unwrap_err()
                .contains("name is not wrong")
        );
        store.define("half", TOML).unwrap();
    }
}
