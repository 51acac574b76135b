//! The disk that a chain of files makes: what a device reads and writes.

use std::fmt;
use std::io::{self, IoSlice, IoSliceMut};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use imago::format::PreallocateMode;
use imago::io_buffers::{IoVector, IoVectorMut};
use imago::qcow2::Qcow2;
use imago::raw::Raw;
use imago::{DenyImplicitOpenGate, FormatAccess, FormatDriverBuilder};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use vm_memory::VolatileSlice;
use vm_memory::bitmap::BitmapSlice;

use super::chain::Link;
use super::header::MAX_CLUSTER;
use super::rounds::Rounds;
use super::storage::{ImageFile, cached_only};
use super::{Access, Cache, Chain, DiskError, Format};

/// Buffers of one system call: Linux' `UIO_MAXIOV`.
const MAX_BUFFERS: usize = 1024;
/// Blocks that files are read and written by without a cache, in bytes.
const DIRECT_BLOCK: u64 = 4096;
/// Bytes of zeroes that are written at once where a file can't be told to have some.
static ZEROES: [u8; 64 << 10] = [0; 64 << 10];

/// Error: a request failed.
#[derive(Debug)]
pub enum IoError {
    /// The image was opened to be read.
    ReadOnly,
    /// The range is not within the disk.
    OutOfRange,
    /// The image's file system is full, or its owner's share of it.
    NoSpace,
    /// The file's device did not take what was written before, and the kernel has forgotten which
    /// data that was: another flush may succeed without it.
    Lost(io::Error),
    /// Anything else.
    Other(io::Error),
}

impl fmt::Display for IoError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ReadOnly => f.write_str("the image is read-only"),
            Self::OutOfRange => f.write_str("behind the end of the disk"),
            Self::NoSpace => f.write_str("no space left"),
            Self::Lost(e) => write!(f, "flush: {e}"),
            Self::Other(e) => e.fmt(f),
        }
    }
}

impl Clone for IoError {
    fn clone(&self) -> Self {
        let copy = |e: &io::Error| match e.raw_os_error() {
            Some(code) => io::Error::from_raw_os_error(code),
            None => io::Error::new(e.kind(), e.to_string()),
        };
        match self {
            Self::ReadOnly => Self::ReadOnly,
            Self::OutOfRange => Self::OutOfRange,
            Self::NoSpace => Self::NoSpace,
            Self::Lost(e) => Self::Lost(copy(e)),
            Self::Other(e) => Self::Other(copy(e)),
        }
    }
}

impl std::error::Error for IoError {}

impl From<io::Error> for IoError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::NoSpace,
            _ => Self::Other(error),
        }
    }
}

/// The result of a read that may not wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CachedRead {
    /// The buffers are full.
    Done,
    /// The thread had to wait; the buffers hold anything.
    Waits,
    /// The file system can't tell.
    Unknown,
}

/// A disk. Threads may share it.
#[derive(Debug)]
pub struct Image {
    /// Discarding takes clusters away from below whoever writes: it locks out all others.
    format: RwLock<FormatAccess<ImageFile>>,
    capacity: u64,
    access: Access,
    files: Vec<(PathBuf, Format)>,
    /// The image has tables, which are cached in this process.
    has_tables: bool,
    /// Root's page cache is used.
    is_cached: bool,
    /// All file systems of the chain tell what the page cache has.
    tells_cached: AtomicBool,
    flushes: Rounds,
    write_backs: Rounds,
    /// Start of the last block of a raw file that is written without a cache.
    last_block: Option<u64>,
}

impl Image {
    /// The disk of a chain.
    ///
    /// # Errors
    ///
    /// A table is corrupt; the file system can't do without a cache.
    pub fn new(chain: Chain, cache: Cache) -> Result<Self, DiskError> {
        let (capacity, access) = (chain.capacity(), chain.access);
        let links = std::iter::once(&chain.image).chain(&chain.backing);
        let files = links.map(|link| (link.path.clone(), link.format()));
        let files = files.collect();
        let mut behind = None;
        for link in chain.backing.into_iter().rev() {
            behind = Some(layer(link, behind, Access::Read, cache)?);
        }
        let has_tables = chain.image.format() == Format::Qcow2;
        let direct = cache == Cache::None && !has_tables;
        let format = layer(chain.image, behind, access, cache)?;
        Ok(Self {
            format: RwLock::new(format),
            capacity,
            access,
            files,
            has_tables,
            is_cached: cache != Cache::None,
            tells_cached: AtomicBool::new(true),
            flushes: Rounds::default(),
            write_backs: Rounds::default(),
            last_block: direct.then(|| capacity.saturating_sub(DIRECT_BLOCK)),
        })
    }

    /// Size of the disk, in bytes.
    pub fn capacity(&self) -> u64 {
        self.capacity
    }

    /// Returns the paths and formats of the image and of all that is behind it.
    pub fn files(&self) -> &[(PathBuf, Format)] {
        &self.files
    }

    /// Whether it can only be read.
    pub fn is_read_only(&self) -> bool {
        self.access == Access::Read
    }

    /// Fills the buffers from `offset` on.
    ///
    /// # Errors
    ///
    /// [`IoError`].
    pub fn read(&self, mut offset: u64, buffers: &mut [IoSliceMut<'_>]) -> Result<(), IoError> {
        self.check(offset, buffers.iter().map(|buffer| buffer.len()))?;
        for buffers in buffers.chunks_mut(MAX_BUFFERS) {
            let slices = buffers.iter_mut().map(|buffer| IoSliceMut::new(buffer));
            let vector = IoVectorMut::from(slices.collect::<Vec<_>>());
            let len = vector.len();
            self.shared().readv(vector, offset)?;
            offset += len;
        }
        Ok(())
    }

    /// Writes the buffers from `offset` on. Only a flush makes it durable.
    ///
    /// # Errors
    ///
    /// [`IoError`].
    pub fn write(&self, mut offset: u64, buffers: &[IoSlice<'_>]) -> Result<(), IoError> {
        self.check_writable()?;
        self.check(offset, buffers.iter().map(|buffer| buffer.len()))?;
        for buffers in buffers.chunks(MAX_BUFFERS) {
            let vector = IoVector::from(buffers.to_vec());
            let len = vector.len();
            self.put(vector, offset)?;
            offset += len;
        }
        Ok(())
    }

    /// Reads as [`Self::read`] does, into a guest's memory.
    ///
    /// # Errors
    ///
    /// [`IoError`].
    pub fn read_guest<B: BitmapSlice>(
        &self,
        offset: u64,
        buffers: &[VolatileSlice<'_, B>],
    ) -> Result<(), IoError> {
        self.check(offset, buffers.iter().map(VolatileSlice::len))?;
        read_slices(&self.shared(), offset, buffers)
    }

    /// Reads as [`Self::read_guest`] does, unless the thread had to wait for root's devices.
    ///
    /// # Errors
    ///
    /// [`IoError`].
    pub fn read_guest_cached<B: BitmapSlice>(
        &self,
        offset: u64,
        buffers: &[VolatileSlice<'_, B>],
    ) -> Result<CachedRead, IoError> {
        if !self.is_cached {
            return Ok(CachedRead::Waits);
        }
        if !self.tells_cached.load(Ordering::Relaxed) {
            return Ok(CachedRead::Unknown);
        }
        // A discard can take long.
        let Ok(format) = self.format.try_read() else {
            return Ok(CachedRead::Waits);
        };
        self.check(offset, buffers.iter().map(VolatileSlice::len))?;
        let kind = match cached_only(|| read_slices(&format, offset, buffers)) {
            Ok(()) => return Ok(CachedRead::Done),
            Err(IoError::Other(e)) => e.kind(),
            Err(e) => return Err(e),
        };
        if kind == io::ErrorKind::Unsupported {
            self.tells_cached.store(false, Ordering::Relaxed);
            return Ok(CachedRead::Unknown);
        }
        // If it was not that, a read that waits says so.
        Ok(CachedRead::Waits)
    }

    /// Returns whether a write, as opposed to a flush, ends in root's page cache.
    pub fn is_cached(&self) -> bool {
        self.is_cached
    }

    /// Returns whether [`Self::write_back`] has something to do after a write.
    pub fn has_tables(&self) -> bool {
        self.has_tables
    }

    /// Writes as [`Self::write`] does, from a guest's memory.
    ///
    /// # Errors
    ///
    /// [`IoError`].
    pub fn write_guest<B: BitmapSlice>(
        &self,
        mut offset: u64,
        buffers: &[VolatileSlice<'_, B>],
    ) -> Result<(), IoError> {
        self.check_writable()?;
        self.check(offset, buffers.iter().map(VolatileSlice::len))?;
        for buffers in buffers.chunks(MAX_BUFFERS) {
            let (vector, mapped) = IoVector::from_volatile_slice(buffers);
            let len = vector.len();
            self.put(vector, offset)?;
            drop(mapped);
            offset += len;
        }
        Ok(())
    }

    /// Makes all that was written durable: metadata first into the file, then the file onto its
    /// device. Threads that flush at once share a flush.
    ///
    /// # Errors
    ///
    /// [`IoError`]. What was written since the last flush may be lost.
    pub fn flush(&self) -> Result<(), IoError> {
        if self.is_read_only() {
            return Ok(());
        }
        self.flushes.join(|| {
            self.write_back()?;
            self.shared().sync().map_err(IoError::Lost)
        })
    }

    /// Writes the image's cached metadata to its file, so that all data that was written survives the
    /// end of this process.
    ///
    /// # Errors
    ///
    /// [`IoError`].
    pub fn write_back(&self) -> Result<(), IoError> {
        if !self.has_tables {
            return Ok(());
        }
        let write_back = || Ok(self.shared().flush()?);
        self.write_backs.join(write_back)
    }

    /// Gives back what the range occupies, as far as whole blocks of the image lie in it and its
    /// file system can. These read as zeroes; the rest stays as it is.
    ///
    /// # Errors
    ///
    /// [`IoError`].
    pub fn discard(&self, offset: u64, len: u64) -> Result<(), IoError> {
        self.check_writable()?;
        self.check_range(offset, len)?;
        match self.alone().discard_to_any(offset, len) {
            Err(e) if e.kind() == io::ErrorKind::Unsupported => Ok(()),
            done => Ok(done?),
        }
    }

    /// Makes the range read as zeroes.
    ///
    /// # Errors
    ///
    /// [`IoError`].
    pub fn write_zeroes(&self, offset: u64, len: u64) -> Result<(), IoError> {
        self.check_writable()?;
        self.check_range(offset, len)?;
        let end = offset + len;
        if let Some(last) = self.split_by(offset, end) {
            let last = last.max(offset);
            self.shared().write_zeroes(offset, last - offset)?;
            return self.put_zeroes(last, end);
        }
        // Of a disk that is smaller than a cluster `imago` 0.2.6 subtracts a whole one.
        if self.capacity < MAX_CLUSTER {
            return self.put_zeroes(offset, end);
        }
        match self.shared().write_zeroes(offset, len) {
            // Version 2 of qcow2 has no clusters of zeroes.
            Err(e) if e.kind() == io::ErrorKind::Unsupported => self.put_zeroes(offset, end),
            done => Ok(done?),
        }
    }

    /// Changes the size. A disk that grows does so with zeroes: not with what a larger backing
    /// file (of `backing` bytes), or the last cluster, has there.
    pub(super) fn resize(&mut self, size: u64, backing: u64, cluster: u64) -> Result<(), IoError> {
        let old = self.capacity;
        if size < old {
            let end = size.next_multiple_of(cluster).min(old);
            self.write_zeroes(size, end - size)?;
        }
        let fill = match backing > old {
            true => PreallocateMode::Zero,
            false => PreallocateMode::None,
        };
        self.alone().resize(size, fill)?;
        self.capacity = size;
        self.flush()
    }

    fn put(&self, vector: IoVector<'_>, offset: u64) -> Result<(), IoError> {
        let Some(last) = self.split_by(offset, offset + vector.len()) else {
            return Ok(self.shared().writev(vector, offset)?);
        };
        let mut bytes = vec![0; usize::try_from(vector.len()).unwrap_or_default()];
        vector.copy_into_slice(&mut bytes);
        let before = usize::try_from(last.saturating_sub(offset)).unwrap_or_default();
        let (before, within) = bytes.split_at(before);
        let at = usize::try_from(offset.saturating_sub(last)).unwrap_or_default();
        let mut block = [0; DIRECT_BLOCK as usize];
        let format = self.alone();
        format.write(before, offset)?;
        format.read(&mut block[..], last)?;
        block[at..at + within.len()].copy_from_slice(within);
        Ok(format.write(&block[..], last)?)
    }

    fn put_zeroes(&self, offset: u64, end: u64) -> Result<(), IoError> {
        for at in (offset..end).step_by(ZEROES.len()) {
            let len = usize::try_from(end - at).unwrap_or(ZEROES.len());
            let zeroes = &ZEROES[..len.min(ZEROES.len())];
            self.put(IoVector::from(zeroes), at)?;
        }
        Ok(())
    }

    /// The last block, if the range has a part of it: without a cache `imago` writes whole pages
    /// then, from where the range begins, and so makes a raw file grow.
    fn split_by(&self, offset: u64, end: u64) -> Option<u64> {
        let whole = offset.is_multiple_of(DIRECT_BLOCK) && end.is_multiple_of(DIRECT_BLOCK);
        self.last_block.filter(|&last| end > last && !whole)
    }

    fn shared(&self) -> RwLockReadGuard<'_, FormatAccess<ImageFile>> {
        self.format.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn alone(&self) -> RwLockWriteGuard<'_, FormatAccess<ImageFile>> {
        self.format.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Holds up all requests, as root does that never carries them out.
    #[cfg(test)]
    pub(crate) fn hold_up(&self) -> impl Drop {
        self.alone()
    }

    fn check_writable(&self) -> Result<(), IoError> {
        match self.access {
            Access::Read => Err(IoError::ReadOnly),
            Access::Write => Ok(()),
        }
    }

    fn check(&self, offset: u64, lengths: impl Iterator<Item = usize>) -> Result<(), IoError> {
        let len = lengths.fold(0_u64, |sum, len| sum.saturating_add(len as u64));
        self.check_range(offset, len)
    }

    fn check_range(&self, offset: u64, len: u64) -> Result<(), IoError> {
        match offset.checked_add(len) {
            Some(end) if end <= self.capacity => Ok(()),
            _ => Err(IoError::OutOfRange),
        }
    }
}

fn read_slices<B: BitmapSlice>(
    format: &FormatAccess<ImageFile>,
    mut offset: u64,
    buffers: &[VolatileSlice<'_, B>],
) -> Result<(), IoError> {
    for buffers in buffers.chunks(MAX_BUFFERS) {
        let (vector, mapped) = IoVectorMut::from_volatile_slice(buffers);
        let len = vector.len();
        format.readv(vector, offset)?;
        drop(mapped);
        offset += len;
    }
    Ok(())
}

/// One file over the ones behind it.
fn layer(
    link: Link,
    behind: Option<FormatAccess<ImageFile>>,
    access: Access,
    cache: Cache,
) -> Result<FormatAccess<ImageFile>, DiskError> {
    let io = |e| DiskError::io(&link.path, &e);
    if cache == Cache::None {
        // Bytes behind the last block would be written as zeroes, and become part of the disk.
        if link.format() == Format::Raw && !link.size.is_multiple_of(DIRECT_BLOCK) {
            let what = format_args!("without a cache, its size must be whole {DIRECT_BLOCK} bytes");
            return Err(DiskError::wrong(&link.path, what));
        }
        let flags = fcntl_getfl(&link.file).map_err(|e| io(e.into()))?;
        if fcntl_setfl(&link.file, flags | OFlags::DIRECT).is_err() {
            let what = "its file system can't do without a cache";
            return Err(DiskError::wrong(&link.path, what));
        }
    }
    let (format, write) = (link.format(), access == Access::Write);
    // A qcow2 file may end before its last cluster does.
    let present = match format {
        Format::Raw => link.size,
        Format::Qcow2 => 0,
    };
    let storage = ImageFile::new(link.file, present).map_err(io)?;
    let opened = match format {
        Format::Raw => Raw::open_image(storage, write).map(FormatAccess::new),
        Format::Qcow2 => Qcow2::<ImageFile>::builder(storage)
            .write(write)
            .backing(behind)
            .data_file(None)
            .open(DenyImplicitOpenGate::default())
            .map(FormatAccess::new),
    };
    opened.map_err(io)
}
