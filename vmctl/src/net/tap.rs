//! Tap devices: how they are made, and what their descriptors can do (Linux's
//! `Documentation/networking/tuntap.rst` and `include/uapi/linux/if_tun.h`).

#![allow(unsafe_code, reason = "ioctls, and reads and writes of guest memory")]

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags, open};
use rustix::ioctl::{IntegerSetter, Opcode, Setter, Updater, ioctl};
use vm_memory::VolatileSlice;

const DEVICE: &str = "/dev/net/tun";
/// Bytes of `virtio_net_hdr_v1`, which is before each frame.
pub const HEADER: usize = 12;

/// The ioctls of a tap's descriptor.
pub mod request {
    /// TUNSETIFF: takes `struct ifreq` and attaches the descriptor to the device.
    pub(super) const SET_INTERFACE: u32 = 0x4004_54ca;
    /// TUNGETIFF: fills `struct ifreq`.
    pub const GET_INTERFACE: u32 = 0x8004_54d2;
    /// TUNSETOFFLOAD: takes `TUN_F_*`.
    pub const SET_OFFLOAD: u32 = 0x4004_54d0;
    /// TUNSETVNETHDRSZ: takes a pointer to the bytes of the header.
    pub(super) const SET_HEADER_SIZE: u32 = 0x4004_54d8;
    /// TUNSETQUEUE: takes `struct ifreq` whose flags say what becomes of the queue.
    pub const SET_QUEUE: u32 = 0x4004_54d9;
    /// TUNSETTXFILTER: takes `struct tun_filter`.
    pub const SET_ADDRESSES: u32 = 0x4004_54d1;
    /// TUNATTACHFILTER: takes `struct sock_fprog`.
    pub const ATTACH_FILTER: u32 = 0x4010_54d5;
    /// TUNDETACHFILTER: takes nothing.
    pub const DETACH_FILTER: u32 = 0x4010_54d6;
    /// TUNSETCARRIER: takes a pointer to a truth value.
    pub const SET_CARRIER: u32 = 0x4004_54e2;
}

/// Offloads that the guest's driver takes: TUN_F_*.
pub mod offload {
    /// A checksum that has yet to be computed.
    pub const CHECKSUM: usize = 0x01;
    /// TCP over IPv4 in segments.
    pub const TSO4: usize = 0x02;
    /// TCP over IPv6 in segments.
    pub const TSO6: usize = 0x04;
    /// Either of them with explicit congestion notification.
    pub const TSO_ECN: usize = 0x08;
}

/// `struct ifreq`, as these ioctls use it.
#[repr(C)]
#[derive(Clone, Copy)]
struct InterfaceRequest {
    name: [u8; libc::IFNAMSIZ],
    flags: u16,
    rest: [u8; 22],
}

const _: () = assert!(size_of::<InterfaceRequest>() == size_of::<libc::ifreq>());

impl InterfaceRequest {
    fn new(name: &str, flags: i32) -> io::Result<Self> {
        let mut request = Self {
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
        Ok(request)
    }

    fn name(&self) -> String {
        let end = self.name.iter().position(|&b| b == 0);
        let name = &self.name[..end.unwrap_or(self.name.len())];
        String::from_utf8_lossy(name).into_owned()
    }
}

/// The use of a tap device.
#[derive(Clone, Copy, Debug)]
pub(super) struct Flags {
    /// The tap has several queues.
    pub(super) is_multi_queue: bool,
}

/// Returns the flags of a tap device, or `None` if the interface is none.
pub(super) fn flags(name: &str) -> io::Result<Option<Flags>> {
    let text = match fs::read_to_string(format!("/sys/class/net/{name}/tun_flags")) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    let digits = text.trim().trim_start_matches("0x");
    let flags = i32::from_str_radix(digits, 16).map_err(io::Error::other)?;
    let is_tap = flags & libc::IFF_TAP != 0;
    Ok(is_tap.then_some(Flags {
        is_multi_queue: flags & libc::IFF_MULTI_QUEUE != 0,
    }))
}

/// A tap device: a descriptor for each pair of queues. Frames carry a header of [`HEADER`] bytes; reads and
/// writes do not block. Only the first pair is attached, until [`Tap::set_pairs`].
#[derive(Debug)]
pub struct Tap {
    name: String,
    mtu: u16,
    queues: Vec<OwnedFd>,
}

impl Tap {
    /// Makes a device with a name of a pattern, which ends with its descriptors.
    ///
    /// # Errors
    ///
    /// The kernel has no tap devices.
    pub(super) fn new(pattern: &str, pairs: u16, mtu: u16) -> io::Result<Self> {
        let flags = Flags {
            is_multi_queue: pairs > 1,
        };
        let (first, name) = attach(pattern, flags, libc::IFF_TUN_EXCL)?;
        Self::of_queue(first, name, flags, pairs, mtu)
    }

    /// Opens a device that was there.
    ///
    /// # Errors
    ///
    /// The tap is in use.
    pub(super) fn existing(name: &str, flags: Flags, pairs: u16, mtu: u16) -> io::Result<Self> {
        let (first, name) = attach(name, flags, 0)?;
        Self::of_queue(first, name, flags, pairs, mtu)
    }

    /// Sockets that keep frames apart, in the place of a device's queues. They have no settings.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn of_sockets(queues: Vec<OwnedFd>) -> Self {
        let name = "sockets".to_owned();
        Self {
            name,
            mtu: 1500,
            queues,
        }
    }

    fn of_queue(
        first: OwnedFd,
        name: String,
        flags: Flags,
        pairs: u16,
        mtu: u16,
    ) -> io::Result<Self> {
        let mut queues = vec![first];
        for _ in 1..pairs {
            queues.push(attach(&name, flags, 0)?.0);
        }
        let tap = Self { name, mtu, queues };
        tap.set_pairs(1)?;
        Ok(tap)
    }

    /// Takes what [`Self::into_queues`] returned.
    ///
    /// # Errors
    ///
    /// A descriptor is not that of a tap.
    pub fn of_queues(queues: Vec<OwnedFd>, mtu: u16) -> io::Result<Self> {
        let first = queues.first().ok_or(io::ErrorKind::InvalidInput)?;
        let mut request = InterfaceRequest::new("", 0)?;
        // SAFETY: the kernel writes one `ifreq` there, which the request is by its size.
        unsafe {
            let get = Updater::<{ request::GET_INTERFACE as Opcode }, _>::new(&mut request);
            ioctl(first, get)
        }?;
        Ok(Self {
            name: request.name(),
            mtu,
            queues,
        })
    }

    /// Returns the descriptors of the pairs of queues.
    pub fn into_queues(self) -> Vec<OwnedFd> {
        self.queues
    }

    /// Returns the name of the interface.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the bytes of the largest packet.
    pub fn mtu(&self) -> u16 {
        self.mtu
    }

    /// Returns the number of pairs of queues.
    pub fn pairs(&self) -> u16 {
        self.queues.len() as u16
    }

    /// Has frames come to the first `count` pairs of queues only.
    ///
    /// # Errors
    ///
    /// The device is gone.
    pub fn set_pairs(&self, count: u16) -> io::Result<()> {
        for (index, queue) in self.queues.iter().enumerate().skip(1) {
            let flags = match index < usize::from(count) {
                true => libc::IFF_ATTACH_QUEUE,
                false => libc::IFF_DETACH_QUEUE,
            };
            let mut request = InterfaceRequest::new("", flags)?;
            // SAFETY: the kernel reads one `ifreq` there, which the request is by its size.
            let set = unsafe {
                let set = Updater::<{ request::SET_QUEUE as Opcode }, _>::new(&mut request);
                ioctl(queue, set)
            };
            match set {
                // The tap has this setting already.
                Err(rustix::io::Errno::INVAL) | Ok(()) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }

    /// Has frames come as they are, but for the offloads.
    ///
    /// # Errors
    ///
    /// The device is gone.
    pub fn set_offload(&self, offload: usize) -> io::Result<()> {
        // SAFETY: the kernel takes the number, not a pointer.
        let set =
            unsafe { IntegerSetter::<{ request::SET_OFFLOAD as Opcode }>::new_usize(offload) };
        // SAFETY: as above.
        Ok(unsafe { ioctl(&self.queues[0], set) }?)
    }

    /// Plugs the cable in or out.
    ///
    /// # Errors
    ///
    /// The device is gone.
    pub fn set_carrier(&self, is_up: bool) -> io::Result<()> {
        // SAFETY: the kernel reads one number there.
        let set = unsafe { Setter::<{ request::SET_CARRIER as Opcode }, _>::new(i32::from(is_up)) };
        // SAFETY: as above.
        Ok(unsafe { ioctl(&self.queues[0], set) }?)
    }

    /// Has only frames come that are for one of some addresses; all frames if there is none. The kernel
    /// may let others through.
    ///
    /// # Errors
    ///
    /// The device is gone.
    pub fn set_addresses(&self, all_multicast: bool, addresses: &[[u8; 6]]) -> io::Result<()> {
        // TUN_FLT_ALLMULTI.
        let flags = u16::from(all_multicast).to_ne_bytes();
        let addresses = &addresses[..addresses.len().min(usize::from(u16::MAX))];
        let mut filter = flags.to_vec();
        filter.extend((addresses.len() as u16).to_ne_bytes());
        filter.extend(addresses.as_flattened());
        // SAFETY: the kernel reads the header and as many addresses as it says there, at any alignment.
        unsafe { self.control(request::SET_ADDRESSES, filter.as_ptr().cast()) }
    }

    /// Has only frames come that have no tag or the tag of one of some VLANs; all frames for `None`.
    ///
    /// # Errors
    ///
    /// The device is gone.
    pub fn set_vlans(&self, vlans: Option<&[u16]>) -> io::Result<()> {
        let Some(vlans) = vlans else {
            // SAFETY: the kernel reads nothing.
            return unsafe { self.control(request::DETACH_FILTER, std::ptr::null()) };
        };
        let program = vlan_filter(vlans);
        let program = libc::sock_fprog {
            len: program.len() as u16,
            filter: program.as_ptr().cast_mut(),
        };
        // SAFETY: the kernel reads the program, and as many instructions as it says.
        unsafe { self.control(request::ATTACH_FILTER, (&raw const program).cast()) }
    }

    /// # Safety
    ///
    /// `argument` must be what the request takes.
    unsafe fn control(&self, request: u32, argument: *const libc::c_void) -> io::Result<()> {
        let queue = self.queues[0].as_raw_fd();
        // SAFETY: the caller promises it.
        match unsafe { libc::ioctl(queue, libc::c_ulong::from(request), argument) } {
            0.. => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Returns the descriptor of a pair of queues.
    pub fn queue(&self, pair: usize) -> Option<BorrowedFd<'_>> {
        self.queues.get(pair).map(AsFd::as_fd)
    }
}

/// Returns a program of the classic packet filter (Linux's `Documentation/networking/filter.rst`) that lets
/// frames through that have no tag, or the tag of one of at most 250 VLANs.
fn vlan_filter(vlans: &[u16]) -> Vec<libc::sock_filter> {
    let instruction = |code: u32, jump: usize, value: u32| libc::sock_filter {
        code: code as u16,
        jt: jump as u8,
        jf: 0,
        k: value,
    };
    let field = |field: i32| (libc::SKF_AD_OFF + field).cast_unsigned();
    let load = |at: i32| instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, field(at));
    let equal = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    let mask = libc::BPF_ALU | libc::BPF_AND | libc::BPF_K;
    let end = |bytes| instruction(libc::BPF_RET | libc::BPF_K, 0, bytes);
    // Behind them come the end that drops, and the one that does not.
    let (tag, present) = (libc::SKF_AD_VLAN_TAG, libc::SKF_AD_VLAN_TAG_PRESENT);
    let mut program = vec![
        load(present),
        instruction(equal, vlans.len() + 3, 0),
        load(tag),
        instruction(mask, 0, 0xfff),
    ];
    for (index, &vlan) in vlans.iter().enumerate() {
        program.push(instruction(equal, vlans.len() - index, vlan.into()));
    }
    program.extend([end(0), end(u32::MAX)]);
    program
}

/// Opens a queue of a device, and attaches it. Returns it with the device's name.
fn attach(name: &str, flags: Flags, more: i32) -> io::Result<(OwnedFd, String)> {
    let open_flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let fd = open(DEVICE, open_flags, Mode::empty()).map_err(|e| {
        let hint = match e {
            rustix::io::Errno::NOENT | rustix::io::Errno::NODEV => ": load the kernel module tun",
            _ => "",
        };
        io::Error::other(format!("{DEVICE}: {}{hint}", io::Error::from(e)))
    })?;
    let queues = match flags.is_multi_queue {
        true => libc::IFF_MULTI_QUEUE,
        false => 0,
    };
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | queues | more;
    let mut request = InterfaceRequest::new(name, flags)?;
    // SAFETY: the kernel reads and writes one `ifreq` there, which the request is by its size.
    unsafe {
        let set = Updater::<{ request::SET_INTERFACE as Opcode }, _>::new(&mut request);
        ioctl(&fd, set)
    }?;
    // SAFETY: the kernel reads one number there.
    unsafe {
        let set = Setter::<{ request::SET_HEADER_SIZE as Opcode }, _>::new(HEADER as i32);
        ioctl(&fd, set)
    }?;
    Ok((fd, request.name()))
}

/// Reads a frame and its header into guest memory. Returns its length, which is that of the slices and one
/// more if the frame was longer.
///
/// # Errors
///
/// `WouldBlock` if there is no frame, and the device's.
pub fn read_frame(queue: BorrowedFd<'_>, slices: &[VolatileSlice<'_>]) -> io::Result<usize> {
    let mut spare = 0u8;
    let mut vectors = vectors(slices);
    vectors.push(libc::iovec {
        iov_base: (&raw mut spare).cast(),
        iov_len: 1,
    });
    // SAFETY: each vector is mapped for as long as its slice, or is the spare byte. Guest memory has no
    // references of Rust's.
    let len = unsafe { libc::readv(queue.as_raw_fd(), vectors.as_ptr(), vectors.len() as i32) };
    usize::try_from(len).map_err(|_| io::Error::last_os_error())
}

/// Writes a frame and its header, which lie in guest memory.
///
/// # Errors
///
/// The kernel finds the frame malformed, and the device's.
pub fn write_frame(queue: BorrowedFd<'_>, slices: &[VolatileSlice<'_>]) -> io::Result<()> {
    let vectors = vectors(slices);
    // SAFETY: each vector is mapped for as long as its slice. Guest memory has no references of Rust's.
    let len = unsafe { libc::writev(queue.as_raw_fd(), vectors.as_ptr(), vectors.len() as i32) };
    usize::try_from(len)
        .map(drop)
        .map_err(|_| io::Error::last_os_error())
}

fn vectors(slices: &[VolatileSlice<'_>]) -> Vec<libc::iovec> {
    let vector = |slice: &VolatileSlice<'_>| libc::iovec {
        iov_base: slice.ptr_guard_mut().as_ptr().cast(),
        iov_len: slice.len(),
    };
    // One more is the spare byte's.
    let mut vectors = Vec::with_capacity(slices.len() + 1);
    vectors.extend(slices.iter().map(vector));
    vectors
}
