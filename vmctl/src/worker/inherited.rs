//! The descriptors that the daemon gives a worker.

#![allow(
    unsafe_code,
    reason = "takes over and closes descriptors that are known by number only"
)]

use std::io;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;
use std::sync::atomic::{AtomicBool, Ordering};

use guest_proto::control::{
    WORKER_CONSOLE_FD, WORKER_CONTROL_FD, WORKER_LOG_DIR_FD, WORKER_VSOCK_FD,
};
use rustix::io::{FdFlags, fcntl_getfd, fcntl_setfd};

/// The descriptors that a worker starts with besides standard error.
#[derive(Debug)]
pub(super) struct Inherited {
    /// The socket that the daemon connects to.
    pub(super) control: UnixListener,
    /// The socket that consoles connect to.
    pub(super) console: UnixListener,
    /// The directory of the console's log.
    pub(super) log_dir: OwnedFd,
    /// The socket by which programs of VM 0 connect to the guest, if the VM has a socket device.
    pub(super) vsock: Option<UnixListener>,
}

/// Error: this process was not started as a worker.
#[derive(Debug, thiserror::Error)]
pub(super) enum InheritedError {
    /// The descriptors were taken before.
    #[error("the worker's descriptors were taken already")]
    Taken,
    /// One is not open.
    #[error("descriptor {0} is not open: a worker is started by the daemon, not by hand")]
    Missing(RawFd),
    /// Others stay open.
    #[error("close inherited descriptors: {0}")]
    Others(io::Error),
}

/// Takes them, and closes whatever else this process inherited. Works once, and must come before
/// the process opens anything of its own.
///
/// # Errors
///
/// Fails with [`InheritedError`].
pub(super) fn take() -> Result<Inherited, InheritedError> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    if TAKEN.swap(true, Ordering::Relaxed) {
        return Err(InheritedError::Taken);
    }
    let control = take_one(WORKER_CONTROL_FD)?;
    let console = take_one(WORKER_CONSOLE_FD)?;
    let log_dir = take_one(WORKER_LOG_DIR_FD)?;
    // Without a socket device, a descriptor of this number is none of the daemon's, and is closed unused.
    let vsock = take_one(WORKER_VSOCK_FD).ok();
    let first = WORKER_VSOCK_FD.cast_unsigned() + 1;
    // SAFETY: no descriptor beyond these is owned by anything in this process yet.
    if unsafe { libc::close_range(first, u32::MAX, 0) } != 0 {
        return Err(InheritedError::Others(io::Error::last_os_error()));
    }
    Ok(Inherited {
        control: control.into(),
        console: console.into(),
        log_dir,
        vsock: vsock.map(UnixListener::from),
    })
}

fn take_one(number: RawFd) -> Result<OwnedFd, InheritedError> {
    let missing = |_| InheritedError::Missing(number);
    // SAFETY: borrowed for two calls that answer EBADF where the descriptor is not open.
    let fd = unsafe { BorrowedFd::borrow_raw(number) };
    fcntl_getfd(fd).map_err(missing)?;
    fcntl_setfd(fd, FdFlags::CLOEXEC).map_err(missing)?;
    // SAFETY: it is open, the daemon opened it for us, and `take` runs once.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}
