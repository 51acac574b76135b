//! A file of a chain, as `imago` reads and writes it.
//!
//! It differs from [`imago::file::File`] in two ways. No call holds a lock for as long as another one
//! takes: a flush does not hold up reads. And a thread can ask to read only what root's page cache
//! has ([`cached_only`]).

#![allow(unsafe_code, reason = "the trait's unsafe methods")]

use std::cell::Cell;
use std::fmt;
use std::fs;
use std::io::{self, IoSliceMut};
use std::path::{Path, PathBuf};

use imago::file::File;
use imago::io_buffers::{IoVector, IoVectorMut};
use imago::storage::drivers::CommonStorageHelper;
use imago::storage::{PreallocateMode, Storage};
use rustix::io::{Errno, ReadWriteFlags, preadv2};

thread_local! {
    static CACHED_ONLY: Cell<bool> = const { Cell::new(false) };
}

/// Calls `act`, whose reads fail with [`io::ErrorKind::WouldBlock`] where they had to wait for a
/// device, and with [`io::ErrorKind::Unsupported`] if the file system can't tell.
pub(super) fn cached_only<T>(act: impl FnOnce() -> T) -> T {
    CACHED_ONLY.set(true);
    let result = act();
    CACHED_ONLY.set(false);
    result
}

/// A file.
#[derive(Debug)]
pub(super) struct ImageFile {
    file: fs::File,
    /// The same file. It knows the length and what has to be aligned, and writes.
    writer: File,
    /// Length in bytes of the part of the file that must be there.
    present: u64,
}

impl ImageFile {
    /// Reads of the first `present` bytes fail if the file has become shorter. What lies behind them
    /// and behind the end of the file reads as zeroes.
    pub(super) fn new(file: fs::File, present: u64) -> io::Result<Self> {
        Ok(Self {
            writer: File::try_from(file.try_clone()?)?,
            file,
            present,
        })
    }

    fn read(
        &self,
        mut slices: &mut [IoSliceMut<'_>],
        mut offset: u64,
        flags: ReadWriteFlags,
    ) -> io::Result<()> {
        while !slices.is_empty() {
            match preadv2(&self.file, slices, offset, flags) {
                Ok(0) if offset < self.present => {
                    let what = "the file has become shorter";
                    return Err(io::Error::new(io::ErrorKind::UnexpectedEof, what));
                }
                Ok(0) => {
                    slices.iter_mut().for_each(|slice| slice.fill(0));
                    return Ok(());
                }
                Ok(len) => {
                    IoSliceMut::advance_slices(&mut slices, len);
                    offset += len as u64;
                }
                Err(Errno::INTR) => {}
                // The standard library has no name for it.
                Err(Errno::OPNOTSUPP) => return Err(io::ErrorKind::Unsupported.into()),
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }
}

impl Storage for ImageFile {
    fn mem_align(&self) -> usize {
        self.writer.mem_align()
    }

    fn req_align(&self) -> usize {
        self.writer.req_align()
    }

    fn zero_align(&self) -> usize {
        self.writer.zero_align()
    }

    fn discard_align(&self) -> usize {
        self.writer.discard_align()
    }

    fn size(&self) -> io::Result<u64> {
        self.writer.size()
    }

    fn resolve_relative_path<P: AsRef<Path>>(&self, _relative: P) -> io::Result<PathBuf> {
        // `imago` opens no file by itself.
        Err(io::ErrorKind::Unsupported.into())
    }

    unsafe fn pure_readv(&self, buffers: IoVectorMut<'_>, offset: u64) -> io::Result<()> {
        let flags = match CACHED_ONLY.get() {
            true => ReadWriteFlags::NOWAIT,
            false => ReadWriteFlags::empty(),
        };
        self.read(&mut buffers.into_inner(), offset, flags)
    }

    unsafe fn pure_writev(&self, buffers: IoVector<'_>, offset: u64) -> io::Result<()> {
        // SAFETY: the caller promises what the callee asks for.
        unsafe { self.writer.pure_writev(buffers, offset) }
    }

    unsafe fn pure_write_zeroes(&self, offset: u64, length: u64) -> io::Result<()> {
        // SAFETY: the caller promises what the callee asks for.
        unsafe { self.writer.pure_write_zeroes(offset, length) }
    }

    unsafe fn pure_write_allocated_zeroes(&self, offset: u64, length: u64) -> io::Result<()> {
        // SAFETY: the caller promises what the callee asks for.
        unsafe { self.writer.pure_write_allocated_zeroes(offset, length) }
    }

    unsafe fn pure_discard(&self, offset: u64, length: u64) -> io::Result<()> {
        // SAFETY: the caller promises what the callee asks for.
        unsafe { self.writer.pure_discard(offset, length) }
    }

    fn flush(&self) -> io::Result<()> {
        // This process keeps no data of the image.
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    unsafe fn invalidate_cache(&self) -> io::Result<()> {
        Ok(())
    }

    fn get_storage_helper(&self) -> &CommonStorageHelper {
        self.writer.get_storage_helper()
    }

    fn resize(&self, new_size: u64, mode: PreallocateMode) -> io::Result<()> {
        self.writer.resize(new_size, mode)
    }
}

impl fmt::Display for ImageFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.writer.fmt(f)
    }
}
