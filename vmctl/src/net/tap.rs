//! Makes a tap device: the one ioctl that netlink has no message for (`Documentation/networking/tuntap`).

#![allow(unsafe_code, reason = "an ioctl")]

use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{Mode, OFlags, open};
use rustix::ioctl::{Opcode, Updater, ioctl};

const DEVICE: &str = "/dev/net/tun";
/// TUNSETIFF.
const SET_INTERFACE: Opcode = 0x4004_54ca;

/// `struct ifreq`, as this ioctl uses it.
#[repr(C)]
struct InterfaceRequest {
    name: [u8; libc::IFNAMSIZ],
    flags: u16,
    rest: [u8; 22],
}

const _: () = assert!(size_of::<InterfaceRequest>() == size_of::<libc::ifreq>());

/// A new tap device that ends with its descriptor. Frames carry a `virtio_net_hdr`; reads and writes
/// do not block.
///
/// # Errors
///
/// The kernel has no tap devices, or the name is taken.
pub(super) fn create(name: &str) -> io::Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let fd = open(DEVICE, flags, Mode::empty())
        .map_err(|e| io::Error::other(format!("{DEVICE}: {}", io::Error::from(e))))?;
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_TUN_EXCL;
    let mut request = InterfaceRequest {
        name: [0; libc::IFNAMSIZ],
        flags: flags as u16,
        rest: [0; 22],
    };
    // One byte is the NUL's.
    let room = &mut request.name[..libc::IFNAMSIZ - 1];
    let name = name.as_bytes();
    room.get_mut(..name.len())
        .ok_or(io::ErrorKind::InvalidInput)?
        .copy_from_slice(name);
    // SAFETY: the kernel reads and writes one `ifreq` there, which the request is by its size.
    unsafe { ioctl(&fd, Updater::<SET_INTERFACE, _>::new(&mut request)) }?;
    Ok(fd)
}
