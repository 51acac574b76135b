//! Files that users name: opened without waiting for anything, and with plain words for errors.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

/// Error: a file or a directory can't be used.
#[derive(Debug, thiserror::Error)]
#[error("{}: {error}", path.display())]
pub struct FileError {
    path: PathBuf,
    error: io::Error,
}

/// Returns a function that names the file of an error.
pub(crate) fn at(path: &Path) -> impl Fn(io::Error) -> FileError {
    move |error| FileError {
        path: path.to_owned(),
        error,
    }
}

/// Checks that there is a regular file, or a block device where `allows_device` says so. Opens nothing.
///
/// # Errors
///
/// There is no file, or it is of another type.
pub(crate) fn check(path: &Path, allows_device: bool) -> io::Result<()> {
    let kind = fs::metadata(path)?.file_type();
    if kind.is_file() || allows_device && kind.is_block_device() {
        return Ok(());
    }
    Err(io::Error::other("not a regular file"))
}

/// Opens a regular file to read it. Of another type nothing is opened: a FIFO would wait for its other end, and
/// a device can act on being opened.
///
/// # Errors
///
/// There is no file, it is of another type, or it can't be opened.
pub(crate) fn open_regular(path: &Path) -> io::Result<File> {
    check(path, false)?;
    let file = open_at_once(path, false)?;
    // Another file may have the name by now.
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::other("not a regular file")),
    }
}

/// Opens a file to read it, and perhaps to write it. A FIFO does not wait for its other end.
///
/// # Errors
///
/// The file can't be opened.
pub(crate) fn open_at_once(path: &Path, write: bool) -> io::Result<File> {
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    let mut options = File::options();
    options
        .read(true)
        .write(write)
        .custom_flags(flags)
        .open(path)
}

/// Makes a directory, and those above it, that only root can enter. One that is there stays as it is.
///
/// # Errors
///
/// The file system's.
pub(crate) fn make_private_dir(path: &Path) -> io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true).mode(0o700).create(path)
}

/// Says in plain words what is wrong with a file.
pub(crate) fn describe(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "no such file".to_owned(),
        io::ErrorKind::PermissionDenied => "permission denied".to_owned(),
        io::ErrorKind::InvalidData => "not UTF-8 text".to_owned(),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{CWD, FileType, Mode, mknodat};

    #[test]
    fn what_is_no_regular_file_is_refused_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("fifo");
        mknodat(CWD, &fifo, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        for path in [&fifo, dir.path(), Path::new("/dev/null")] {
            for allows_device in [false, true] {
                let error = check(path, allows_device).unwrap_err();
                assert_eq!(error.to_string(), "not a regular file", "{path:?}");
            }
            let error = open_regular(path).unwrap_err();
            assert_eq!(error.to_string(), "not a regular file", "{path:?}");
        }
        let file = dir.path().join("file");
        assert_eq!(describe(&open_regular(&file).unwrap_err()), "no such file");
        fs::write(&file, "text").unwrap();
        assert_eq!(open_regular(&file).unwrap().metadata().unwrap().len(), 4);
    }
}
