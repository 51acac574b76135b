//! An image and its backing files, opened and locked.

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use super::header::{self, Header};
use super::{Access, BackingDirs, DiskError, Format, Problem, SECTOR, length, lock};
use crate::config::DiskConfig;
use crate::file::open_at_once;

/// Files that an image consists of at most.
const MAX_DEPTH: usize = 16;

/// Attempts to take a lock, in about a tenth of a second.
const LOCK_TRIES: u32 = 10;
const LOCK_PAUSE: Duration = Duration::from_millis(10);

/// One file of a chain.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) path: PathBuf,
    pub(super) file: File,
    /// None if it is raw.
    pub(super) header: Option<Header>,
    /// Of the disk, in bytes.
    pub(super) size: u64,
}

impl Link {
    pub(super) fn format(&self) -> Format {
        match self.header {
            None => Format::Raw,
            Some(_) => Format::Qcow2,
        }
    }

    /// Opens a file and reads its header, and locks nothing.
    pub(super) fn open(path: &Path, format: Format, access: Access) -> Result<Self, DiskError> {
        let file = open_file(path, access == Access::Write)?;
        let (header, size) = contents(path, &file, format)?;
        Ok(Self {
            path: path.to_owned(),
            file,
            header,
            size,
        })
    }

    /// Returns the directory of the file.
    fn folder(&self) -> &Path {
        folder(&self.path)
    }

    /// Returns the path and the format of the backing file.
    pub(super) fn backing(&self) -> Result<Option<(PathBuf, Format)>, DiskError> {
        let Some(backing) = self
            .header
            .as_ref()
            .and_then(|header| header.backing.as_ref())
        else {
            return Ok(None);
        };
        let path = self.folder().join(&backing.name);
        let wrong = |what: String| {
            let backing = format_args!("backing file {}: {what}", path.display());
            DiskError::wrong(&self.path, backing)
        };
        let format = match backing.format.as_deref() {
            Some("raw") => Format::Raw,
            Some("qcow2") => Format::Qcow2,
            Some(other) => return Err(wrong(format!("format \"{}\"", other.escape_default()))),
            // To look would be to trust what a guest may have written.
            None => return Err(wrong("the image does not say its format".to_owned())),
        };
        Ok(Some((path, format)))
    }

    fn lock(&self, access: Access) -> Result<(), DiskError> {
        let failed = |problem, what: &str| Err(DiskError::new(problem, &self.path, what));
        match self.try_lock(access) {
            Ok(true) => {}
            Ok(false) => return failed(Problem::InUse, "in use by another VM"),
            Err(e) => return failed(Problem::Io, &format!("can't be locked: {e}")),
        }
        // Whoever had it until now may have changed it since it was read.
        let (header, size) = contents(&self.path, &self.file, self.format())?;
        if header != self.header || size != self.size {
            return failed(Problem::InUse, "changed while it was opened");
        }
        Ok(())
    }

    /// Asks a few times: a process that is just being started has all of its parent's files until
    /// its exec, also those that the parent closes in between.
    fn try_lock(&self, access: Access) -> io::Result<bool> {
        for _ in 1..LOCK_TRIES {
            if lock::lock(&self.file, access)? {
                return Ok(true);
            }
            thread::sleep(LOCK_PAUSE);
        }
        lock::lock(&self.file, access)
    }

    /// Returns the identity of the file.
    fn identity(&self) -> Result<(u64, u64), DiskError> {
        let meta = self.file.metadata();
        let meta = meta.map_err(|e| DiskError::io(&self.path, &e))?;
        Ok((meta.dev(), meta.ino()))
    }
}

/// An image and its backing files, open and locked until it is dropped.
#[derive(Debug)]
pub struct Chain {
    pub(super) image: Link,
    /// Each file behind the one before it.
    pub(super) backing: Vec<Link>,
    pub(super) access: Access,
}

impl Chain {
    /// Opens and locks the image `path` and all its backing files.
    ///
    /// # Errors
    ///
    /// Fails if a file is missing, is no image or is used by another VM, if a backing file lies
    /// outside of `dirs`, and if the backing files form a loop or are too many.
    pub fn open(
        path: &Path,
        format: Format,
        access: Access,
        dirs: BackingDirs<'_>,
    ) -> Result<Self, DiskError> {
        let (image, backing) = walk(path, format, access, dirs)?;
        image.lock(access)?;
        for link in &backing {
            link.lock(Access::Read).map_err(|e| e.behind(path))?;
        }
        check_access(&image, access)?;
        Ok(Self {
            image,
            backing,
            access,
        })
    }

    /// Opens and locks the files of a disk as its configuration says.
    ///
    /// # Errors
    ///
    /// The errors of [`Self::open`].
    pub fn of_disk(disk: &DiskConfig) -> Result<Self, DiskError> {
        let dirs = BackingDirs::Only(&disk.backing_dirs);
        let format = Format::said_or_detected(disk.format, &disk.path)?;
        Self::open(&disk.path, format, disk.access(), dirs)
    }

    /// Checks the files of a disk as [`Self::of_disk`] does, without locks: another VM may be using
    /// the image now.
    ///
    /// # Errors
    ///
    /// The errors of [`Self::open`], but for the locks.
    pub fn check_disk(disk: &DiskConfig) -> Result<(), DiskError> {
        let dirs = BackingDirs::Only(&disk.backing_dirs);
        let format = Format::said_or_detected(disk.format, &disk.path)?;
        let (image, _) = walk(&disk.path, format, disk.access(), dirs)?;
        check_access(&image, disk.access())
    }

    /// Makes a chain of the files of [`Self::into_files`]. They are locked, so that nobody has changed
    /// them since.
    ///
    /// # Errors
    ///
    /// Fails if a file can't be read, or if there are more or fewer files than the image has.
    pub fn of_files(
        path: &Path,
        format: Format,
        access: Access,
        files: Vec<OwnedFd>,
    ) -> Result<Self, DiskError> {
        let wrong = || DiskError::wrong(path, "not as many files as the image has");
        let mut links: Vec<Link> = Vec::new();
        for file in files {
            let next = match links.last() {
                None => Some((path.to_owned(), format)),
                Some(link) => link.backing()?,
            };
            let (path, format) = next.ok_or_else(wrong)?;
            let file = File::from(file);
            let (header, size) = contents(&path, &file, format)?;
            links.push(Link {
                path,
                file,
                header,
                size,
            });
        }
        match links.last().map(Link::backing).transpose()? {
            Some(None) => {}
            _ => return Err(wrong()),
        }
        let backing = links.split_off(1);
        let image = links.pop().ok_or_else(wrong)?;
        Ok(Self {
            image,
            backing,
            access,
        })
    }

    /// Returns the open files, for another process: the image, and its backing files in order. They
    /// stay locked until both processes have closed them.
    pub fn into_files(self) -> Vec<OwnedFd> {
        let links = std::iter::once(self.image).chain(self.backing);
        links.map(|link| link.file.into()).collect()
    }

    /// Returns the format of the image.
    pub fn format(&self) -> Format {
        self.image.format()
    }

    /// Size of the disk, in bytes.
    pub fn capacity(&self) -> u64 {
        self.image.size
    }

    /// Returns the number of files.
    pub(super) fn depth(&self) -> usize {
        1 + self.backing.len()
    }
}

/// Refuses an image that `imago` can't write, if it is to be written. If the header's own cluster
/// counts as free, `imago` overwrites the header, and its search for free clusters has no end.
fn check_access(image: &Link, access: Access) -> Result<(), DiskError> {
    let (Access::Write, Some(header)) = (access, &image.header) else {
        return Ok(());
    };
    let wrong = |what: &str| Err(DiskError::wrong(&image.path, what));
    if header.snapshots != 0 {
        return wrong("has internal snapshots; it can only be read");
    }
    let io = |e| DiskError::io(&image.path, &e);
    let mut bytes = [0; 8];
    let mut read = |at| image.file.read_exact_at(&mut bytes, at).map(|()| bytes);
    let block = u64::from_be_bytes(read(header.refcount_table).map_err(io)?);
    if block != 0 && block.is_multiple_of(header.cluster) {
        match read(block) {
            Ok(counts) if header.counts_itself(counts) => return Ok(()),
            Err(e) if e.kind() != io::ErrorKind::UnexpectedEof => return Err(io(e)),
            _ => {}
        }
    }
    wrong("its reference counts are corrupt: mend them with `qemu-img check -r all`")
}

/// Opens an image and its backing files, without locks.
pub(super) fn walk(
    path: &Path,
    format: Format,
    access: Access,
    dirs: BackingDirs<'_>,
) -> Result<(Link, Vec<Link>), DiskError> {
    let image = Link::open(path, format, access)?;
    let mut seen = vec![image.identity()?];
    let mut backing: Vec<Link> = Vec::new();
    while let Some((file, format)) = backing.last().unwrap_or(&image).backing()? {
        check_depth(path, backing.len() + 2)?;
        let behind = |e: DiskError| e.behind(path);
        check_place(&image, &file, dirs).map_err(behind)?;
        let link = Link::open(&file, format, Access::Read).map_err(behind)?;
        let identity = link.identity().map_err(behind)?;
        if seen.contains(&identity) {
            let what = "its backing files form a loop";
            return Err(behind(DiskError::wrong(&file, what)));
        }
        seen.push(identity);
        backing.push(link);
    }
    Ok((image, backing))
}

/// Refuses the backing file `file` of `image` if it lies outside of `dirs`. The file is not opened
/// before: to open a device can have effects.
fn check_place(image: &Link, file: &Path, dirs: BackingDirs<'_>) -> Result<(), DiskError> {
    let BackingDirs::Only(listed) = dirs else {
        return Ok(());
    };
    let canonical = |path: &Path| fs::canonicalize(path).map_err(|e| DiskError::io(path, &e));
    let place = canonical(file)?;
    // The directory of a block device holds all disks of the machine.
    let is_device = image.file.metadata();
    let is_device = is_device.map_err(|e| DiskError::io(&image.path, &e))?;
    if !is_device.file_type().is_block_device() && place.starts_with(canonical(image.folder())?) {
        return Ok(());
    }
    for dir in listed {
        if place.starts_with(canonical(dir)?) {
            return Ok(());
        }
    }
    let what = "lies neither below the image's directory nor in one of backing_dirs";
    Err(DiskError::wrong(file, what))
}

/// Returns the directory of a file.
pub(crate) fn folder(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    }
}

/// Refuses a chain that would be too long.
pub(super) fn check_depth(path: &Path, files: usize) -> Result<(), DiskError> {
    if files > MAX_DEPTH {
        let what = format_args!("more than {} backing files", MAX_DEPTH - 1);
        return Err(DiskError::wrong(path, what));
    }
    Ok(())
}

/// Refuses what is no size of a disk.
pub(super) fn check_size(path: &Path, size: u64) -> Result<(), DiskError> {
    if size == 0 {
        return Err(DiskError::wrong(path, "the disk has size 0"));
    }
    // Offsets into a file have a sign.
    if i64::try_from(size).is_err() {
        return Err(DiskError::wrong(path, "larger than a file can be"));
    }
    if !size.is_multiple_of(SECTOR) {
        let what = format_args!("{size} bytes are no whole number of {SECTOR}-byte sectors");
        return Err(DiskError::wrong(path, what));
    }
    Ok(())
}

/// Opens a regular file or block device.
pub(super) fn open_file(path: &Path, write: bool) -> Result<File, DiskError> {
    let io = |e| DiskError::io(path, &e);
    let file = open_at_once(path, write).map_err(io)?;
    let kind = file.metadata().map_err(io)?.file_type();
    if !kind.is_file() && !kind.is_block_device() {
        let what = "not a regular file or block device";
        return Err(DiskError::wrong(path, what));
    }
    Ok(file)
}

/// The facts of a file: its header, and the size of its disk.
fn contents(path: &Path, file: &File, format: Format) -> Result<(Option<Header>, u64), DiskError> {
    let io = |e| DiskError::io(path, &e);
    let length = length(file).map_err(io)?;
    let header = match format {
        Format::Raw => None,
        Format::Qcow2 => {
            let first = length.min(header::MAX_CLUSTER);
            let mut first = vec![0; usize::try_from(first).unwrap_or_default()];
            file.read_exact_at(&mut first, 0).map_err(io)?;
            let header = header::parse(&first, length);
            Some(header.map_err(|error| DiskError::wrong(path, error))?)
        }
    };
    let size = header.as_ref().map_or(length, |header| header.size);
    check_size(path, size)?;
    Ok((header, size))
}
