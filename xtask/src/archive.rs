//! Initramfs archives: the same inputs make the same bytes.
//!
//! Everything belongs to root and is as old as the epoch, and the order is that of the names. The
//! format is the kernel's `Documentation/driver-api/early-userspace/buffer-format.rst`.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use cpio::newc::{Builder, ModeFileType, trailer};

use crate::Result;
use crate::files::context;

/// What goes into an archive, by name, without a slash in front.
#[derive(Default)]
pub(crate) struct Archive {
    nodes: BTreeMap<String, Node>,
}

enum Node {
    Folder,
    File { from: PathBuf, permissions: u32 },
    Text(String),
    Link(PathBuf),
}

impl Archive {
    /// Adds a file or a folder with all that is in it, at `name`; permissions stay.
    pub(crate) fn add(&mut self, from: &Path, name: &str) -> Result<()> {
        let failed = context(from);
        let metadata = fs::symlink_metadata(from).map_err(&failed)?;
        let kind = metadata.file_type();
        if kind.is_symlink() {
            let target = fs::read_link(from).map_err(failed)?;
            self.insert(name, Node::Link(target));
        } else if kind.is_dir() {
            self.insert(name, Node::Folder);
            for entry in fs::read_dir(from).map_err(&failed)? {
                let entry = entry.map_err(&failed)?;
                let inner = entry.file_name();
                let inner = inner
                    .to_str()
                    .ok_or_else(|| format!("{}: not UTF-8", entry.path().display()))?;
                self.add(&entry.path(), &format!("{name}/{inner}"))?;
            }
        } else if kind.is_file() {
            self.file(from, name, metadata.permissions().mode() & 0o7777);
        } else {
            return Err(format!("{}: neither a file nor a folder", from.display()));
        }
        Ok(())
    }

    /// Adds a file.
    pub(crate) fn file(&mut self, from: &Path, name: &str, permissions: u32) {
        let from = from.to_path_buf();
        self.insert(name, Node::File { from, permissions });
    }

    /// Adds a file with that text.
    pub(crate) fn text(&mut self, text: impl Into<String>, name: &str) {
        self.insert(name, Node::Text(text.into()));
    }

    fn insert(&mut self, name: &str, node: Node) {
        let name = name.trim_matches('/');
        for (at, _) in name.match_indices('/') {
            let parent = &name[..at];
            self.nodes.entry(parent.into()).or_insert(Node::Folder);
        }
        self.nodes.insert(name.into(), node);
    }

    /// Writes it to `to`, unless what is there came from the same inputs.
    pub(crate) fn write_cached(&self, to: &Path) -> Result<()> {
        let manifest = to.with_extension("manifest");
        let current = self.manifest()?;
        if to.exists() && fs::read_to_string(&manifest).is_ok_and(|last| last == current) {
            return Ok(());
        }
        // The manifest goes first: whatever interrupts this, an old one never describes a new archive.
        let _ = fs::remove_file(&manifest);
        let partial = to.with_extension("partial");
        let file = fs::File::create(&partial).map_err(context(&partial))?;
        self.write(io::BufWriter::new(file))?;
        fs::rename(&partial, to).map_err(context(to))?;
        fs::write(&manifest, current).map_err(context(&manifest))
    }

    /// The inputs' names, sizes and times: when it is the same, so is the archive.
    fn manifest(&self) -> Result<String> {
        let mut text = String::new();
        for (name, node) in &self.nodes {
            let line = match node {
                Node::Folder => format!("{name} folder"),
                Node::Text(text) => format!("{name} text {text:?}"),
                Node::Link(target) => format!("{name} link {}", target.display()),
                Node::File { from, permissions } => {
                    let metadata = fs::metadata(from).map_err(context(from))?;
                    format!(
                        "{name} {permissions:o} {} {} {}.{:09}",
                        from.display(),
                        metadata.len(),
                        metadata.mtime(),
                        metadata.mtime_nsec()
                    )
                }
            };
            text.push_str(&line);
            text.push('\n');
        }
        Ok(text)
    }

    /// Writes it.
    pub(crate) fn write(&self, mut to: impl Write) -> Result<()> {
        for (number, (name, node)) in (1..).zip(&self.nodes) {
            let builder = Builder::new(name).ino(number);
            let written = match node {
                Node::Folder => {
                    let builder = builder.mode(0o755).nlink(2);
                    let builder = builder.set_mode_file_type(ModeFileType::Directory);
                    entry(builder, &[], &mut to)
                }
                Node::Link(target) => {
                    let builder = builder.mode(0o777);
                    let builder = builder.set_mode_file_type(ModeFileType::Symlink);
                    entry(builder, target.as_os_str().as_bytes(), &mut to)
                }
                Node::Text(text) => {
                    let builder = builder.mode(0o644);
                    let builder = builder.set_mode_file_type(ModeFileType::Regular);
                    entry(builder, text.as_bytes(), &mut to)
                }
                Node::File { from, permissions } => {
                    let bytes = fs::read(from).map_err(context(from))?;
                    let builder = builder.mode(*permissions);
                    let builder = builder.set_mode_file_type(ModeFileType::Regular);
                    entry(builder, &bytes, &mut to)
                }
            };
            written.map_err(|error| format!("{name}: {error}"))?;
        }
        trailer(&mut to)
            .and_then(|to| to.flush())
            .map_err(|error| format!("the archive's end: {error}"))
    }
}

fn entry(builder: Builder, bytes: &[u8], to: &mut impl Write) -> io::Result<()> {
    let size = u32::try_from(bytes.len())
        .map_err(|_| io::Error::other("larger than the format's 4 GiB"))?;
    let mut writer = builder.write(to, size);
    writer.write_all(bytes)?;
    writer.finish()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(archive: &Archive) -> Vec<u8> {
        let mut bytes = Vec::new();
        archive.write(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn order_and_time_leave_no_trace() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        let mut first = Archive::default();
        fs::write(&file, "contents").unwrap();
        first.file(&file, "etc/b", 0o644);
        first.text("text", "etc/a");
        let first = bytes(&first);
        fs::write(&file, "contents").unwrap();
        let mut second = Archive::default();
        second.text("text", "/etc/a");
        second.file(&file, "etc/b", 0o644);
        assert_eq!(first, bytes(&second));
        assert_eq!(first.len() % 4, 0);
    }

    #[test]
    fn folders_come_with_their_parents_and_contents() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("inner")).unwrap();
        fs::write(folder.path().join("inner/file"), "12345").unwrap();
        std::os::unix::fs::symlink("file", folder.path().join("inner/link")).unwrap();
        let mut archive = Archive::default();
        archive.add(folder.path(), "root/added").unwrap();
        let bytes = bytes(&archive);
        let mut names = Vec::new();
        let mut rest = bytes.as_slice();
        loop {
            let reader = cpio::NewcReader::new(rest).unwrap();
            if reader.entry().is_trailer() {
                break;
            }
            let entry = reader.entry();
            names.push((entry.name().to_owned(), entry.mode() & 0o170000));
            rest = reader.to_writer(io::sink()).unwrap();
        }
        let expected = [
            ("root", 0o40000),
            ("root/added", 0o40000),
            ("root/added/inner", 0o40000),
            ("root/added/inner/file", 0o100000),
            ("root/added/inner/link", 0o120000),
        ];
        assert_eq!(names, expected.map(|(name, mode)| (name.to_owned(), mode)));
        assert!(archive.add(Path::new("/dev/null"), "null").is_err());
    }

    #[test]
    fn an_archive_is_written_again_only_when_an_input_changed() {
        let folder = tempfile::tempdir().unwrap();
        let (input, output) = (folder.path().join("in"), folder.path().join("out.cpio"));
        fs::write(&input, "one").unwrap();
        let mut archive = Archive::default();
        archive.file(&input, "in", 0o644);
        archive.write_cached(&output).unwrap();
        let first = fs::metadata(&output).unwrap().ino();
        archive.write_cached(&output).unwrap();
        assert_eq!(fs::metadata(&output).unwrap().ino(), first);
        fs::write(&input, "three").unwrap();
        archive.write_cached(&output).unwrap();
        assert!(fs::read(&output).unwrap().windows(5).any(|w| w == b"three"));
    }
}
