//! Safe binding of `/dev/microvisor`.
//!
//! [`Device`] is the device, [`Partition`] a partition's descriptor, [`Vcpu`] a virtual CPU's. A virtual
//! CPU's shared page ([`page`]) is split by who may touch it: [`Vcpu`] has what is exchanged while
//! the virtual CPU is stopped, [`page::Ring`] the posted writes, which arrive at any time. This module and
//! its child hold all of `vmctl`'s unsafe code; nothing here knows what a device or a guest is.

#![allow(unsafe_code, reason = "ioctls, and the page shared with the driver")]

pub mod page;
mod vcpu;

use std::ffi::c_void;
use std::fmt;
use std::fs::OpenOptions;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::sync::Arc;

use guest_proto::driver::{
    AttachPartition, CreatePartition, DeviceInfo, Doorbell, IrqFd, MemorySlot, Msi, PartitionInfo,
    PartitionList, ReadCounters, ReadLog, SetProperty, Verify, ioctl as number,
};
use guest_proto::hypercall::{Counters, DoorbellFlags, MachineInfo, Property, VerifyReport};
use rustix::io::Errno;
use rustix::ioctl::{Ioctl, IoctlOutput, NoArg, Opcode, Updater, ioctl};
use zerocopy::{FromBytes, IntoBytes};

use self::page::{Mapping, Ring};
pub use self::vcpu::{Kicker, Vcpu};

/// An error of the driver: the ioctl and its errno.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DriverError {
    /// The request, in words.
    pub what: &'static str,
    /// The driver's answer.
    pub errno: Errno,
}

impl fmt::Display for DriverError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let errno = std::io::Error::from(self.errno);
        write!(f, "{}: {errno}", self.what)
    }
}

impl std::error::Error for DriverError {}

fn failed(what: &'static str) -> impl Fn(Errno) -> DriverError {
    move |errno| DriverError { what, errno }
}

/// `number` as rustix wants it; every ioctl number fits 32 bits.
const fn opcode(number: u64) -> Opcode {
    number as Opcode
}

/// An ioctl whose argument is a plain number and whose result is one too.
struct ByValue<const OPCODE: Opcode>(usize);

// SAFETY: the argument is passed as a number that the driver does not dereference, and the output
// is the returned integer alone.
unsafe impl<const OPCODE: Opcode> Ioctl for ByValue<OPCODE> {
    type Output = RawFd;
    const IS_MUTATING: bool = false;

    fn opcode(&self) -> Opcode {
        OPCODE
    }

    fn as_ptr(&mut self) -> *mut c_void {
        std::ptr::without_provenance_mut(self.0)
    }

    unsafe fn output_from_ptr(
        out: IoctlOutput,
        _: *mut c_void,
    ) -> rustix::io::Result<Self::Output> {
        Ok(out)
    }
}

fn by_value<const OPCODE: Opcode>(fd: impl AsFd, value: u64) -> rustix::io::Result<RawFd> {
    let value = usize::try_from(value).map_err(|_| Errno::INVAL)?;
    // SAFETY: the numbers given here take an integer argument.
    unsafe { ioctl(fd, ByValue::<OPCODE>(value)) }
}

/// Calls as [`by_value`] does an ioctl that answers with a new descriptor.
fn new_fd<const OPCODE: Opcode>(fd: impl AsFd, value: u64) -> rustix::io::Result<OwnedFd> {
    let raw = by_value::<OPCODE>(fd, value)?;
    // SAFETY: the driver made this descriptor for us, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

fn plain<const OPCODE: Opcode>(fd: impl AsFd) -> rustix::io::Result<()> {
    // SAFETY: the numbers given here take no argument.
    unsafe { ioctl(fd, NoArg::<OPCODE>::new()) }
}

fn update<const OPCODE: Opcode, T: FromBytes + IntoBytes>(
    fd: impl AsFd,
    value: &mut T,
) -> rustix::io::Result<()> {
    const {
        assert!(
            (OPCODE as usize >> 16) & 0x3fff == size_of::<T>(),
            "the ioctl number carries the size of its argument"
        );
    }
    // SAFETY: the driver reads and writes exactly `size_of::<T>()` bytes at the pointer, and any
    // bytes are a `T`.
    unsafe { ioctl(fd, Updater::<OPCODE, T>::new(value)) }
}

/// `/dev/microvisor`.
#[derive(Debug)]
pub struct Device(OwnedFd);

impl AsFd for Device {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Device {
    /// Opens it.
    ///
    /// # Errors
    ///
    /// The errors of `open(2)`: `NotFound` if the driver is not loaded.
    pub fn open(path: &Path) -> std::io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        Ok(Self(file.into()))
    }

    /// Returns the facts of the driver, and those of the microvisor.
    ///
    /// # Errors
    ///
    /// The driver's errno.
    pub fn info(&self) -> Result<(DeviceInfo, MachineInfo), DriverError> {
        let mut info = DeviceInfo::default();
        update::<{ opcode(number::DEV_INFO) }, _>(&self.0, &mut info)
            .map_err(failed("machine information"))?;
        let machine = zerocopy::transmute!(info.machine);
        Ok((info, machine))
    }

    /// Makes a partition. `name` is cut to what fits.
    ///
    /// # Errors
    ///
    /// The driver's errno: ENOSPC when all ids are taken.
    pub fn create_partition(&self, name: &str, flags: u64) -> Result<Partition, DriverError> {
        let mut arg = CreatePartition {
            flags,
            ..CreatePartition::default()
        };
        let room = arg.name.len() - 1;
        for (to, from) in arg.name[..room].iter_mut().zip(name.bytes()) {
            *to = from;
        }
        // SAFETY: DEV_CREATE_PARTITION reads and writes a `CreatePartition` and returns a new descriptor.
        let fd = unsafe { ioctl(&self.0, NewFd::<CREATE_PARTITION, _>(&mut arg)) }
            .map_err(failed("create partition"))?;
        let (id, token) = (arg.id, arg.token);
        Ok(Partition { fd, id, token })
    }

    /// Attaches to a partition that exists, by the token that [`Partition::token`] had when it was made.
    ///
    /// # Errors
    ///
    /// ENOENT: no such partition; EPERM: another token; EBUSY: another process is attached.
    pub fn attach_partition(&self, id: u64, token: u64) -> Result<Partition, DriverError> {
        let mut arg = AttachPartition { id, token };
        // SAFETY: DEV_ATTACH_PARTITION reads an `AttachPartition` and returns a new descriptor.
        let fd = unsafe { ioctl(&self.0, NewFd::<ATTACH_PARTITION, _>(&mut arg)) }
            .map_err(failed("attach to partition"))?;
        Ok(Partition { fd, id, token })
    }

    /// Ends a partition and gives everything back.
    ///
    /// # Errors
    ///
    /// ENOENT: no such partition; EBUSY: another living process is attached.
    pub fn destroy_partition(&self, id: u64) -> Result<(), DriverError> {
        by_value::<{ opcode(number::DEV_DESTROY_PARTITION) }>(&self.0, id)
            .map(drop)
            .map_err(failed("destroy partition"))
    }

    /// Ids of all partitions but root.
    ///
    /// # Errors
    ///
    /// The driver's errno.
    pub fn list_partitions(&self) -> Result<Vec<u64>, DriverError> {
        let mut list = Box::<PartitionList>::default();
        update::<{ opcode(number::DEV_LIST_PARTITIONS) }, _>(&self.0, &mut *list)
            .map_err(failed("list partitions"))?;
        let count = list.ids.len().min(list.count as usize);
        Ok(list.ids[..count].to_vec())
    }

    /// One partition.
    ///
    /// # Errors
    ///
    /// ENOENT: no such partition.
    pub fn partition_info(&self, id: u64) -> Result<PartitionInfo, DriverError> {
        let mut info = PartitionInfo {
            id,
            ..PartitionInfo::default()
        };
        update::<{ opcode(number::DEV_PARTITION_INFO) }, _>(&self.0, &mut info)
            .map_err(failed("partition information"))?;
        Ok(info)
    }

    /// Copies from the microvisor's log into `buffer`, from `position` (bytes since boot). Answers
    /// the bytes copied (0 at the end) and the position after them.
    ///
    /// # Errors
    ///
    /// The driver's errno.
    pub fn read_log(&self, position: u64, buffer: &mut [u8]) -> Result<(usize, u64), DriverError> {
        let mut arg = ReadLog {
            position,
            buffer: buffer.as_mut_ptr().expose_provenance() as u64,
            size: buffer.len() as u64,
            copied: 0,
        };
        update::<{ opcode(number::DEV_READ_LOG) }, _>(&self.0, &mut arg)
            .map_err(failed("read the microvisor's log"))?;
        Ok((buffer.len().min(arg.copied as usize), arg.position))
    }

    /// One step of the check of all nested maps, from `position`: 0, or what the step before answered. Answers
    /// what the step has found and the next position, 0 after the last.
    ///
    /// # Errors
    ///
    /// The driver's errno.
    pub fn verify(&self, position: u64) -> Result<(VerifyReport, u64), DriverError> {
        let mut arg = Verify {
            position,
            ..Verify::default()
        };
        update::<{ opcode(number::DEV_VERIFY) }, _>(&self.0, &mut arg)
            .map_err(failed("verify the nested maps"))?;
        Ok((zerocopy::transmute!(arg.report), arg.position))
    }

    /// Exit counters of a virtual CPU, or of a physical one (partition 0).
    ///
    /// # Errors
    ///
    /// ENOENT: no such partition; ENXIO: no such CPU.
    pub fn counters(&self, id: u64, vcpu: u64) -> Result<Counters, DriverError> {
        let mut counters = Box::<Counters>::default();
        let mut arg = ReadCounters {
            id,
            vcpu,
            buffer: (&raw mut *counters).expose_provenance() as u64,
        };
        update::<{ opcode(number::DEV_READ_COUNTERS) }, _>(&self.0, &mut arg)
            .map_err(failed("read exit counters"))?;
        Ok(*counters)
    }
}

const CREATE_PARTITION: Opcode = opcode(number::DEV_CREATE_PARTITION);
const ATTACH_PARTITION: Opcode = opcode(number::DEV_ATTACH_PARTITION);

/// An ioctl with a structure, and a descriptor as the result.
struct NewFd<'a, const OPCODE: Opcode, T>(&'a mut T);

// SAFETY: with the numbers above the driver reads and writes one `T` and returns a new descriptor that is
// ours.
unsafe impl<const OPCODE: Opcode, T> Ioctl for NewFd<'_, OPCODE, T> {
    type Output = OwnedFd;
    const IS_MUTATING: bool = true;

    fn opcode(&self) -> Opcode {
        OPCODE
    }

    fn as_ptr(&mut self) -> *mut c_void {
        (&raw mut *self.0).cast()
    }

    unsafe fn output_from_ptr(
        out: IoctlOutput,
        _: *mut c_void,
    ) -> rustix::io::Result<Self::Output> {
        // SAFETY: see the impl.
        Ok(unsafe { OwnedFd::from_raw_fd(out) })
    }
}

/// A partition's descriptor. The partition outlives it.
#[derive(Debug)]
pub struct Partition {
    fd: OwnedFd,
    id: u64,
    token: u64,
}

impl AsFd for Partition {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Partition {
    /// The partition's id.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// A descriptor without a driver behind it: every call fails.
    #[cfg(test)]
    pub(crate) fn without_driver(fd: OwnedFd) -> Self {
        Self {
            fd,
            id: 0,
            token: 0,
        }
    }

    /// By which a later process may attach to the partition.
    pub fn token(&self) -> u64 {
        self.token
    }

    /// Ends the partition and gives everything back.
    ///
    /// # Errors
    ///
    /// ENODEV: it has ended already.
    pub fn destroy(&self) -> Result<(), DriverError> {
        plain::<{ opcode(number::PARTITION_DESTROY) }>(&self.fd)
            .map_err(failed("destroy partition"))
    }

    /// Sets a property.
    ///
    /// # Errors
    ///
    /// The driver's errno.
    pub fn set_property(&self, property: Property, value: u64) -> Result<(), DriverError> {
        let mut arg = SetProperty {
            property: property.raw(),
            value,
        };
        update::<{ opcode(number::PARTITION_SET_PROPERTY) }, _>(&self.fd, &mut arg)
            .map_err(failed("set a property of the partition"))
    }

    /// Makes `size` bytes of `memfd` at `offset` the guest's RAM at `gpa`.
    ///
    /// # Errors
    ///
    /// The driver's errno.
    pub fn set_memory(
        &self,
        slot: u32,
        memfd: BorrowedFd<'_>,
        gpa: u64,
        size: u64,
        offset: u64,
        flags: u64,
    ) -> Result<(), DriverError> {
        let mut arg = MemorySlot {
            slot,
            fd: memfd.as_raw_fd().cast_unsigned(),
            gpa,
            size,
            offset,
            flags,
            reserved: 0,
        };
        update::<{ opcode(number::PARTITION_SET_MEMORY) }, _>(&self.fd, &mut arg)
            .map_err(failed("give memory to the partition"))
    }

    /// A slot of RAM and its memfd, as a former worker set it; `None` where there is none.
    ///
    /// # Errors
    ///
    /// The driver's errno.
    pub fn memory(&self, slot: u32) -> Result<Option<(MemorySlot, OwnedFd)>, DriverError> {
        let mut arg = MemorySlot {
            slot,
            ..MemorySlot::default()
        };
        match update::<{ opcode(number::PARTITION_GET_MEMORY) }, _>(&self.fd, &mut arg) {
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(failed("find the partition's memory")(errno)),
            Ok(()) => {
                // SAFETY: the driver made this descriptor for us, and nobody else has it.
                let memfd = unsafe { OwnedFd::from_raw_fd(arg.fd.cast_signed()) };
                Ok(Some((arg, memfd)))
            }
        }
    }

    /// Opens a virtual CPU, and makes it if it is new.
    ///
    /// # Errors
    ///
    /// The driver's errno.
    pub fn vcpu(&self, index: u32) -> Result<(Vcpu, Ring), DriverError> {
        let fd = new_fd::<{ opcode(number::PARTITION_VCPU) }>(&self.fd, u64::from(index))
            .map_err(failed("make a virtual CPU"))?;
        let page = Mapping::new(&fd).map_err(failed("map a virtual CPU's page"))?;
        let page = Arc::new(page);
        let ring = Ring::new(Arc::clone(&page));
        Ok((Vcpu::new(fd, page), ring))
    }

    /// Has guest writes to `length` ports from `port` on posted with `tag`, and `eventfd`
    /// signalled when one finds its consumer asleep.
    ///
    /// # Errors
    ///
    /// Fails with the driver's errno.
    pub fn doorbell(
        &self,
        port: u16,
        length: u16,
        tag: u16,
        eventfd: BorrowedFd<'_>,
    ) -> Result<(), DriverError> {
        self.add_doorbell(port, length, tag, DoorbellFlags::empty(), eventfd)
    }

    /// Has each write of the guest to one of `length` ports from `port` on signal `eventfd`. The
    /// value that it writes is lost.
    ///
    /// # Errors
    ///
    /// Fails with the driver's errno.
    pub fn signal_doorbell(
        &self,
        port: u16,
        length: u16,
        tag: u16,
        eventfd: BorrowedFd<'_>,
    ) -> Result<(), DriverError> {
        self.add_doorbell(port, length, tag, DoorbellFlags::SIGNAL_ONLY, eventfd)
    }

    fn add_doorbell(
        &self,
        port: u16,
        length: u16,
        tag: u16,
        flags: DoorbellFlags,
        eventfd: BorrowedFd<'_>,
    ) -> Result<(), DriverError> {
        let mut arg = Doorbell {
            port: port.into(),
            length: length.into(),
            flags: flags.bits(),
            tag: tag.into(),
            eventfd: eventfd.as_raw_fd(),
        };
        update::<{ opcode(number::PARTITION_DOORBELL) }, _>(&self.fd, &mut arg)
            .map_err(failed("register a doorbell"))
    }

    /// Has `eventfd` signalled when the end of a level-triggered interrupt finds its consumer asleep.
    ///
    /// # Errors
    ///
    /// Fails with EADDRINUSE if an eventfd is bound.
    pub fn eoi_eventfd(&self, eventfd: BorrowedFd<'_>) -> Result<(), DriverError> {
        self.bind_eoi(eventfd.as_raw_fd())
    }

    /// Unbinds the eventfd of [`Partition::eoi_eventfd`].
    ///
    /// # Errors
    ///
    /// Fails with ENOENT if no eventfd is bound.
    pub fn remove_eoi_eventfd(&self) -> Result<(), DriverError> {
        self.bind_eoi(-1)
    }

    fn bind_eoi(&self, eventfd: i32) -> Result<(), DriverError> {
        by_value::<{ opcode(number::PARTITION_EOI_EVENTFD) }>(&self.fd, i64::from(eventfd) as u64)
            .map(|_| ())
            .map_err(failed("bind the eventfd for ends of interrupts"))
    }

    /// Removes the doorbell of a tag.
    ///
    /// # Errors
    ///
    /// ENOENT: there is none.
    pub fn remove_doorbell(&self, tag: u16) -> Result<(), DriverError> {
        let mut arg = Doorbell {
            tag: tag.into(),
            eventfd: -1,
            ..Doorbell::default()
        };
        update::<{ opcode(number::PARTITION_DOORBELL) }, _>(&self.fd, &mut arg)
            .map_err(failed("remove a doorbell"))
    }

    /// Has `eventfd` deliver this message-signalled interrupt, instead of another one if it did.
    ///
    /// # Errors
    ///
    /// The driver's errno.
    pub fn irqfd(&self, eventfd: BorrowedFd<'_>, msi: Msi) -> Result<(), DriverError> {
        let mut arg = IrqFd {
            eventfd: eventfd.as_raw_fd(),
            address: msi.address,
            data: msi.data,
            ..IrqFd::default()
        };
        update::<{ opcode(number::PARTITION_IRQFD) }, _>(&self.fd, &mut arg)
            .map_err(failed("bind an interrupt"))
    }

    /// Has `eventfd` deliver nothing any more.
    ///
    /// # Errors
    ///
    /// ENOENT: it did not.
    pub fn remove_irqfd(&self, eventfd: BorrowedFd<'_>) -> Result<(), DriverError> {
        let mut arg = IrqFd {
            eventfd: eventfd.as_raw_fd(),
            remove: 1,
            ..IrqFd::default()
        };
        update::<{ opcode(number::PARTITION_IRQFD) }, _>(&self.fd, &mut arg)
            .map_err(failed("unbind an interrupt"))
    }

    /// Delivers a message-signalled interrupt now.
    ///
    /// # Errors
    ///
    /// The driver's errno.
    pub fn send_msi(&self, mut msi: Msi) -> Result<(), DriverError> {
        update::<{ opcode(number::PARTITION_MSI) }, _>(&self.fd, &mut msi)
            .map_err(failed("deliver an interrupt"))
    }

    /// Makes every [`Vcpu::run`] return [`Errno::INTR`] once.
    ///
    /// # Errors
    ///
    /// The driver's errno.
    pub fn kick_all(&self) -> Result<(), DriverError> {
        plain::<{ opcode(number::PARTITION_KICK_ALL) }>(&self.fd)
            .map_err(failed("kick virtual CPUs"))
    }
}
