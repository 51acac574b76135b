//! Queues that root's kernel serves by itself: vhost-net and vhost-vsock (Linux's `drivers/vhost/net.c` and
//! `vsock.c`). A notification of the guest wakes the kernel's thread, and that thread's interrupt reaches the guest,
//! by eventfds: this process takes no part.

#![allow(
    unsafe_code,
    reason = "ioctls, and descriptors for the type that the vhost crate takes"
)]

use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, RawFd};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use vhost::vhost_kern::VhostKernBackend;
use vhost::vhost_kern::vhost_binding::{
    VHOST_NET_SET_BACKEND, VHOST_VSOCK_SET_GUEST_CID, VHOST_VSOCK_SET_RUNNING, vhost_vring_file,
};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use vm_memory::GuestMemoryBackend;
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::ioctl::ioctl_with_ref;

use crate::worker::event::{Event, wait_any};
use crate::worker::memory::Memory;
use crate::worker::virtio::{Interrupt, Malformed, Serve, Vring};

/// Error: root's kernel can't serve a driver.
#[derive(Debug, thiserror::Error)]
pub(super) enum VhostError {
    /// The kernel lacks a feature that the driver has accepted.
    #[error("this kernel is too old for it")]
    TooOld,
    /// The kernel's thread has not started. The first attempt has told why.
    #[error("{0}")]
    NotStarted(String),
    /// The kernel does not take the features.
    #[error("{0}")]
    Features(vhost::Error),
}

/// The kernel's part of one pair of queues.
pub struct Vhost {
    fd: File,
    memory: Arc<Memory>,
    /// Whether the kernel's thread has started.
    started: OnceLock<Result<u64, String>>,
    /// The queues of a socket device that are set up, as bits. Its kernel serves both or none.
    ready: Mutex<u8>,
}

impl fmt::Debug for Vhost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.fd.fmt(f)
    }
}

impl AsRawFd for Vhost {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

impl VhostKernBackend for Vhost {
    type AS = Arc<Memory>;

    fn mem(&self) -> &Self::AS {
        &self.memory
    }

    /// The transport has checked the queue. The trait's own check refuses a ring at the end of memory.
    fn is_valid(&self, _config: &VringConfigData) -> bool {
        true
    }
}

impl Vhost {
    /// Takes a descriptor of `/dev/vhost-net` or `/dev/vhost-vsock`.
    pub fn new(fd: File, memory: Arc<Memory>) -> Self {
        Self {
            fd,
            memory,
            started: OnceLock::new(),
            ready: Mutex::default(),
        }
    }

    /// Prepares for a driver that accepted `features`, of which the kernel has to know those in `needed`. No queue
    /// is served.
    ///
    /// # Errors
    ///
    /// Fails with [`VhostError`].
    pub(super) fn prepare(&self, features: u64, needed: u64) -> Result<(), VhostError> {
        let started = self.started.get_or_init(|| self.start()).clone();
        let known = started.map_err(VhostError::NotStarted)?;
        let needed = 1 << VIRTIO_F_VERSION_1 | features & needed;
        if known & needed != needed {
            return Err(VhostError::TooOld);
        }
        self.set_features(features & known)
            .map_err(VhostError::Features)
    }

    /// Has the kernel start its thread, which shares the memory of this process. Returns the features that
    /// it knows.
    fn start(&self) -> Result<u64, String> {
        let start = || {
            self.set_owner()?;
            let regions = self.memory.iter();
            let regions = regions.map(VhostUserMemoryRegionInfo::from_guest_region);
            let regions = regions.collect::<Result<Vec<_>, _>>()?;
            self.set_mem_table(&regions)?;
            self.get_features()
        };
        start().map_err(|e: vhost::Error| e.to_string())
    }

    /// Gives the guest its address among those of `vsock(7)`.
    ///
    /// # Errors
    ///
    /// `AddrInUse` if another guest has the address.
    pub fn set_guest_cid(&self, cid: u64) -> io::Result<()> {
        // SAFETY: the kernel reads one number of this type.
        outcome(unsafe { ioctl_with_ref(self, VHOST_VSOCK_SET_GUEST_CID(), &cid) })
    }

    /// Notes that a queue of a socket device is set up, or will no longer be served. The kernel serves both
    /// queues, or none.
    fn set_running(&self, index: usize, runs: bool) -> io::Result<()> {
        let mut ready = self.ready.lock().unwrap_or_else(PoisonError::into_inner);
        match runs {
            true => *ready |= 1 << index,
            false => *ready &= !(1 << index),
        }
        if runs && *ready != 0b11 {
            return Ok(());
        }
        let runs = libc::c_int::from(runs);
        // SAFETY: the kernel reads one number of this type.
        outcome(unsafe { ioctl_with_ref(self, VHOST_VSOCK_SET_RUNNING(), &runs) })
    }

    /// Has the kernel serve a queue of the pair, 0 or 1, between guest memory and `tap`; or serve it no
    /// longer.
    fn set_tap(&self, index: usize, tap: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let backend = vhost_vring_file {
            index: index as u32,
            fd: tap.map_or(-1, |tap| tap.as_raw_fd()),
        };
        // SAFETY: the kernel reads one structure of this type.
        outcome(unsafe { ioctl_with_ref(self, VHOST_NET_SET_BACKEND(), &backend) })
    }
}

fn outcome(result: i32) -> io::Result<()> {
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The objects with which the kernel serves a queue.
#[derive(Debug)]
enum Backend {
    /// A queue of a tap.
    Tap(File),
    /// Sockets of `vsock(7)`.
    Sockets,
}

/// Has the kernel serve one queue.
pub(super) struct Relay {
    vhost: Arc<Vhost>,
    /// Number of the queue in its pair.
    index: usize,
    backend: Backend,
}

impl Relay {
    /// `tap` is the pair's queue of the tap.
    ///
    /// # Errors
    ///
    /// The process has no file descriptors left.
    pub(super) fn to_tap(vhost: Arc<Vhost>, index: usize, tap: BorrowedFd<'_>) -> io::Result<Self> {
        let backend = Backend::Tap(tap.try_clone_to_owned()?.into());
        Ok(Self {
            vhost,
            index,
            backend,
        })
    }

    /// A queue of a socket device, 0 or 1.
    pub(super) fn to_sockets(vhost: Arc<Vhost>, index: usize) -> Self {
        Self {
            vhost,
            index,
            backend: Backend::Sockets,
        }
    }

    /// Has the kernel serve the queue, or serve it no longer.
    fn set_running(&self, runs: bool) -> io::Result<()> {
        match &self.backend {
            Backend::Tap(tap) => self.vhost.set_tap(self.index, runs.then_some(tap.as_fd())),
            Backend::Sockets => self.vhost.set_running(self.index, runs),
        }
    }

    /// Tells the kernel where the queue is, and how it notifies.
    fn set_up(&self, vring: &Vring, call: &Event, broken: &Event) -> Result<(), vhost::Error> {
        let (vhost, index) = (&self.vhost, self.index);
        let layout = vring.layout();
        vhost.set_vring_num(index, layout.size)?;
        vhost.set_vring_base(index, 0)?;
        vhost.set_vring_addr(
            index,
            &VringConfigData {
                queue_max_size: layout.size,
                queue_size: layout.size,
                flags: 0,
                desc_table_addr: layout.descriptors,
                used_ring_addr: layout.used,
                avail_ring_addr: layout.available,
                log_addr: None,
            },
        )?;
        vhost.set_vring_kick(index, &eventfd(&vring.kick)?)?;
        vhost.set_vring_call(index, &eventfd(call)?)?;
        vhost.set_vring_err(index, &eventfd(broken)?)?;
        self.set_running(true).map_err(vhost::Error::IoctlError)
    }
}

/// Returns an event as the crate takes it.
fn eventfd(event: &Event) -> Result<EventFd, vhost::Error> {
    let fd = event.as_fd().try_clone_to_owned();
    let fd = fd.map_err(vhost::Error::IOError)?.into_raw_fd();
    // SAFETY: the descriptor is an eventfd, and nobody else has it.
    Ok(unsafe { EventFd::from_raw_fd(fd) })
}

impl Serve for Relay {
    /// Waits while the kernel serves the queue.
    fn run(&mut self, _memory: &Memory, vring: &Vring, stop: &Event) -> Result<(), Malformed> {
        const FAILED: Malformed = Malformed("root's kernel does not serve it");
        let own = Event::new().map_err(|_| FAILED)?;
        let broken = Event::new().map_err(|_| FAILED)?;
        let call = match &vring.call {
            Interrupt::Vector(event) => event,
            // The pin's interrupt goes through this process.
            Interrupt::None | Interrupt::Pin(_) => &own,
        };
        let outcome = match self.set_up(vring, call, &broken) {
            Ok(()) => {
                // The kernel looks once more for what came before.
                vring.kick.signal();
                wait(vring, stop, &own, &broken)
            }
            Err(_) => Err(FAILED),
        };
        // This call fails only if the queue was not served. When it returns, the kernel does not use the queue any more.
        let _ = self.set_running(false);
        outcome
    }
}

fn wait(vring: &Vring, stop: &Event, own: &Event, broken: &Event) -> Result<(), Malformed> {
    loop {
        let waited = wait_any(&[stop.as_fd(), own.as_fd(), broken.as_fd()], None);
        if !waited || stop.is_signalled() {
            return Ok(());
        }
        if broken.is_signalled() {
            return Err(Malformed("root's kernel finds it malformed"));
        }
        own.clear();
        vring.call.send();
    }
}
