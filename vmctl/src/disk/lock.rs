//! Locks that say who uses an image.
//!
//! They are QEMU's (`block/file-posix.c`), so that `qemu-img` and Microvisor keep off each other's
//! images. Nobody locks the data: a byte at 100 stands for each thing that the owner does, one at
//! 200 for each that nobody else may do, and all of them are shared. Whoever comes locks its own
//! bytes first and looks for others' then, so that of two at least one sees the other. The locks
//! belong to the open file: they go where its descriptor goes, and end with the last.

use std::fs::File;
use std::io;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use serde::Serialize;

use super::Access;

/// Bytes of what is done, and of what others may not do.
const DONE: i64 = 100;
const DENIED: i64 = 200;
/// The kinds of use: QEMU's `BLK_PERM_*`.
const READ: i64 = 0;
const WRITE: i64 = 1;
const RESIZE: i64 = 3;

/// The use of an image by other programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Usage {
    /// No use.
    No,
    /// Other programs read the image.
    Read,
    /// One writes it.
    Write,
}

/// Locks a file for as long as it is open; `false`, and no lock, if another has it.
pub(super) fn lock(file: &File, access: Access) -> io::Result<bool> {
    let locked = try_lock(file, access);
    if !matches!(locked, Ok(true)) {
        // Or two who try at once might see each other for ever.
        fcntl(file, FcntlArg::F_OFD_SETLK(&all(libc::F_UNLCK)))?;
    }
    locked
}

fn try_lock(file: &File, access: Access) -> io::Result<bool> {
    let done: &[i64] = match access {
        Access::Read => &[READ],
        Access::Write => &[READ, WRITE, RESIZE],
    };
    let denied = [WRITE, RESIZE];
    let own = done.iter().map(|what| DONE + what);
    for byte in own.chain(denied.map(|what| DENIED + what)) {
        match fcntl(file, FcntlArg::F_OFD_SETLK(&range(libc::F_RDLCK, byte))) {
            Ok(_) => {}
            Err(Errno::EAGAIN | Errno::EACCES) => return Ok(false),
            Err(e) => return Err(e.into()),
        }
    }
    let others = done.iter().map(|what| DENIED + what);
    for byte in others.chain(denied.map(|what| DONE + what)) {
        if is_locked(file, byte)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Returns the use of a file by other programs.
pub(super) fn usage(file: &File) -> io::Result<Usage> {
    Ok(if is_locked(file, DONE + WRITE)? {
        Usage::Write
    } else if is_locked(file, DENIED + WRITE)? || is_locked(file, DONE + READ)? {
        Usage::Read
    } else {
        Usage::No
    })
}

/// Whether another open file has a byte locked.
fn is_locked(file: &File, byte: i64) -> io::Result<bool> {
    let mut found = range(libc::F_WRLCK, byte);
    fcntl(file, FcntlArg::F_OFD_GETLK(&mut found))?;
    Ok(i32::from(found.l_type) != libc::F_UNLCK)
}

/// Every byte that any lock is on.
fn all(kind: i32) -> libc::flock {
    libc::flock {
        l_len: 2 * (DENIED - DONE),
        ..range(kind, DONE)
    }
}

fn range(kind: i32, byte: i64) -> libc::flock {
    libc::flock {
        l_type: i16::try_from(kind).unwrap_or_default(),
        l_whence: 0,
        l_start: byte,
        l_len: 1,
        l_pid: 0,
    }
}
