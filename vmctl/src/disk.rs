//! Disk images: raw and qcow2, with backing files.
//!
//! [`Chain`] opens and locks an image and all its backing files; [`Image`] is the disk that they
//! make. All paths are looked up by [`Chain::open`]: an [`Image`] does I/O on open files alone, so
//! that a worker may lose the file system in between. An open image is locked with the same byte-range locks that
//! QEMU uses (`lock`). A qcow2 header is checked here (`header`) before `imago` reads the tables that it points
//! to, and `imago` never opens a file by itself.

use std::ffi::OsStr;
use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

mod chain;
mod create;
mod header;
mod image;
mod info;
mod lock;
mod rounds;
mod storage;
#[cfg(test)]
mod tests;

pub use chain::Chain;
pub(crate) use chain::folder;
pub use create::{Backing, clone_full, create, resize, snapshot};
pub use image::{CachedRead, Image, IoError};
pub use info::{Layer, info};
pub use lock::Usage;

/// Unit of a disk's size, in bytes: virtio 1.2 §5.2.4.
pub const SECTOR: u64 = 512;

/// The format of a file that holds a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// Byte for byte
    Raw,
    /// QEMU's format: grows as it is written, and may have a backing file
    Qcow2,
}

impl Format {
    /// Returns the name of the format, as in a qcow2 header.
    pub fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
        }
    }

    /// The format of a new image.
    pub fn of_name(path: &Path) -> Self {
        match path.extension().and_then(OsStr::to_str) {
            Some("qcow2") => Self::Qcow2,
            _ => Self::Raw,
        }
    }

    /// That of an image that exists, to be opened as such. A guest can write a qcow2 header, which
    /// names any file, to its raw disk: contents count only where the name says the same.
    ///
    /// # Errors
    ///
    /// The file can't be read, or name and contents differ.
    pub fn detect(path: &Path) -> Result<Self, DiskError> {
        match (Self::of_name(path), Self::of_contents(path)?) {
            (Self::Qcow2, Self::Raw) => Err(DiskError::wrong(path, "not a qcow2 image")),
            (Self::Raw, Self::Qcow2) => {
                let what = "begins like a qcow2 image, but a guest may have written that into a raw image: give --format raw or --format qcow2";
                Err(DiskError::wrong(path, what))
            }
            (format, _) => Ok(format),
        }
    }

    /// Returns the format that the user says, or the one that [`Self::detect`] finds if the user says
    /// none.
    ///
    /// # Errors
    ///
    /// The errors of [`Self::detect`].
    pub fn said_or_detected(said: Option<Self>, path: &Path) -> Result<Self, DiskError> {
        said.map_or_else(|| Self::detect(path), Ok)
    }

    /// Returns the format in which an image is shown: what the user says, or what its name says where the contents are not of another
    /// format, or raw.
    ///
    /// # Errors
    ///
    /// The file can't be read, or is called *.qcow2 and is none.
    pub fn said_or_named(said: Option<Self>, path: &Path) -> Result<Named, DiskError> {
        let is_doubtful = said.is_none()
            && Self::of_name(path) == Self::Raw
            && Self::of_contents(path)? == Self::Qcow2;
        let format = match is_doubtful {
            true => Self::Raw,
            false => Self::said_or_detected(said, path)?,
        };
        Ok(Named {
            format,
            is_doubtful,
        })
    }

    /// Returns the format by the first bytes of an image: see [`Self::detect`].
    ///
    /// # Errors
    ///
    /// The file can't be read.
    fn of_contents(path: &Path) -> Result<Self, DiskError> {
        let file = chain::open_file(path, false)?;
        let mut magic = [0; header::MAGIC.len()];
        let read = file.read_at(&mut magic, 0);
        let read = read.map_err(|e| DiskError::io(path, &e))?;
        Ok(match magic[..read] == header::MAGIC {
            true => Self::Qcow2,
            false => Self::Raw,
        })
    }
}

/// A format in which an image is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Named {
    /// The format.
    pub format: Format,
    /// The contents look like another one, which is not believed.
    pub is_doubtful: bool,
}

/// The use of root's page cache for a disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Cache {
    /// Not at all: `O_DIRECT`.
    None,
    /// Writes end in the page cache. A flush makes them durable.
    #[default]
    Writeback,
    /// Writes go through the page cache and are durable when they end.
    Writethrough,
}

/// The use of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Read it, as others may.
    Read,
    /// Write it, as nobody else may; its backing files are read.
    Write,
}

/// The directories in which the backing files of an image may lie.
#[derive(Clone, Copy, Debug)]
pub enum BackingDirs<'a> {
    /// Any directory: for commands that show none of the backing files' data.
    Any,
    /// The directory of the image and these directories, each with all that is below it. An image
    /// on a block device has no directory of its own.
    Only(&'a [PathBuf]),
}

/// Error: an image can't be opened or made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Problem {
    /// The image, or the request, is wrong.
    Wrong,
    /// Another VM uses it.
    InUse,
    /// There is such a file already.
    Exists,
    /// The operating system refused; the file system may be full.
    Io,
}

/// One line that names the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskError {
    /// The kind of the error.
    pub problem: Problem,
    message: String,
}

impl DiskError {
    fn new(problem: Problem, path: &Path, what: impl fmt::Display) -> Self {
        Self {
            problem,
            message: format!("{}: {what}", path.display()),
        }
    }

    fn wrong(path: &Path, what: impl fmt::Display) -> Self {
        Self::new(Problem::Wrong, path, what)
    }

    fn io(path: &Path, error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::NotFound => Self::wrong(path, "no such file"),
            io::ErrorKind::PermissionDenied => Self::wrong(path, "permission denied"),
            io::ErrorKind::AlreadyExists => Self::new(Problem::Exists, path, "exists already"),
            io::ErrorKind::StorageFull => Self::new(Problem::Io, path, "no space left"),
            io::ErrorKind::InvalidData => Self::wrong(path, error),
            _ => Self::new(Problem::Io, path, error),
        }
    }

    /// The failed I/O of an image.
    fn of(path: &Path, error: IoError) -> Self {
        match error {
            IoError::NoSpace => Self::new(Problem::Io, path, error),
            IoError::Other(e) => Self::io(path, &e),
            e => Self::wrong(path, e),
        }
    }

    /// The same of the backing file of `overlay`.
    fn behind(self, overlay: &Path) -> Self {
        let what = format_args!("backing file {}", self.message);
        Self::new(self.problem, overlay, what)
    }
}

impl fmt::Display for DiskError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for DiskError {}

/// Length of a file or block device, in bytes.
fn length(file: &File) -> io::Result<u64> {
    use std::io::{Seek, SeekFrom};
    // Metadata says 0 of a block device.
    let mut file = file;
    file.seek(SeekFrom::End(0))
}
