//! Ioctls of `/dev/microvisor`: worker → driver.
//!
//! `/dev/microvisor` gives partition fds, a partition fd gives virtual CPU fds; a virtual CPU fd
//! maps its [`VcpuPage`](crate::vcpu_page::VcpuPage) at offset 0. A partition lives by its id until
//! `DESTROY`, whoever holds fds; after that they answer ENODEV. Errors are Linux errnos; a
//! hypercall's status is handed on as the errno of its number.
//!
//! `read(2)` of a virtual CPU fd runs the virtual CPU until the guest needs the worker, and reads no bytes. It returns 0: see
//! `intercept`; or EINTR: a signal, a kick, or the kernel wants the thread to pass through user space; or ENODEV: the
//! partition is gone. It is no ioctl, because the kernel runs a process's seccomp filter at each ioctl whose
//! number the filter looks at, and only once for a system call that is allowed with any arguments.
//!
//! At most one process at a time is attached to a partition, from CREATE or ATTACH until it has
//! closed its fds of the partition and its virtual CPUs, or is dead. Its doorbells and irqfds end
//! with that; memory and virtual CPUs stay. In any other process that has come by its fds (by
//! fork, or sent) they answer EPERM, and keep no successor out.

use crate::layout::{abi_consts, abi_enum, abi_flags, abi_struct};

/// Ioctl type byte.
pub const IOCTL_TYPE: u8 = b'V';

/// Direction bits of an ioctl number, as Linux's `include/uapi/asm-generic/ioctl.h` has them.
const NONE: u32 = 0;
const WRITE: u32 = 1;
const BOTH: u32 = 3;

const fn ioc(direction: u32, number: u32, size: usize) -> u64 {
    ((direction << 30) | ((size as u32) << 16) | ((IOCTL_TYPE as u32) << 8) | number) as u64
}

abi_consts! {
    /// Ioctl numbers, whole. The name's first word says on which fd: DEV, PARTITION or VCPU.
    pub mod ioctl: u64 {
        /// DEV, `DeviceInfo`.
        DEV_INFO = super::ioc(super::BOTH, 0x00, size_of::<super::DeviceInfo>()),
        /// DEV, `CreatePartition` → partition fd.
        DEV_CREATE_PARTITION = super::ioc(super::BOTH, 0x01, size_of::<super::CreatePartition>()),
        /// DEV, `AttachPartition` → partition fd. EPERM where the token is not the partition's, EBUSY while another
        /// process is attached.
        DEV_ATTACH_PARTITION = super::ioc(super::WRITE, 0x02, size_of::<super::AttachPartition>()),
        /// DEV, argument is a partition id. Stops its virtual CPUs, gives everything back.
        /// EBUSY while a process other than the caller is attached and alive.
        DEV_DESTROY_PARTITION = super::ioc(super::NONE, 0x03, 0),
        /// DEV, `PartitionList`.
        DEV_LIST_PARTITIONS = super::ioc(super::BOTH, 0x04, size_of::<super::PartitionList>()),
        /// DEV, `ReadLog`.
        DEV_READ_LOG = super::ioc(super::BOTH, 0x05, size_of::<super::ReadLog>()),
        /// DEV, `ReadCounters`.
        DEV_READ_COUNTERS = super::ioc(super::BOTH, 0x06, size_of::<super::ReadCounters>()),
        /// DEV, `PartitionInfo` with `id` set: fills in the rest.
        DEV_PARTITION_INFO = super::ioc(super::BOTH, 0x07, size_of::<super::PartitionInfo>()),
        /// DEV, `Verify`: one step of the check of all nested maps; go on until the position is 0.
        DEV_VERIFY = super::ioc(super::BOTH, 0x08, size_of::<super::Verify>()),
        /// PARTITION, `MemorySlot`: guest RAM from a memfd (sealed against shrinking).
        PARTITION_SET_MEMORY = super::ioc(super::WRITE, 0x10, size_of::<super::MemorySlot>()),
        /// PARTITION, `MemorySlot` with `slot` set: fills in the rest and a new fd of the memfd; ENOENT
        /// where there is none. For a successor worker.
        PARTITION_GET_MEMORY = super::ioc(super::BOTH, 0x11, size_of::<super::MemorySlot>()),
        /// PARTITION, argument is the index → virtual CPU fd; makes the virtual CPU if it is new.
        PARTITION_VCPU = super::ioc(super::NONE, 0x12, 0),
        /// PARTITION, `Doorbell`.
        PARTITION_DOORBELL = super::ioc(super::WRITE, 0x13, size_of::<super::Doorbell>()),
        /// PARTITION, `IrqFd`.
        PARTITION_IRQFD = super::ioc(super::WRITE, 0x14, size_of::<super::IrqFd>()),
        /// PARTITION, `Msi`: deliver one now.
        PARTITION_MSI = super::ioc(super::WRITE, 0x15, size_of::<super::Msi>()),
        /// PARTITION, `SetProperty`.
        PARTITION_SET_PROPERTY = super::ioc(super::WRITE, 0x16, size_of::<super::SetProperty>()),
        /// PARTITION, no argument: makes each run of a virtual CPU return EINTR once, or at its next call.
        PARTITION_KICK_ALL = super::ioc(super::NONE, 0x17, 0),
        /// PARTITION, no argument: as DEV_DESTROY_PARTITION. The fds answer ENODEV afterwards.
        PARTITION_DESTROY = super::ioc(super::NONE, 0x18, 0),
        /// PARTITION, argument is an eventfd: signals it when the end of a level-triggered interrupt finds its consumer
        /// asleep. -1 unbinds the eventfd. EADDRINUSE where one is bound, ENOENT where none is.
        PARTITION_EOI_EVENTFD = super::ioc(super::NONE, 0x19, 0),
        /// VCPU, no argument: state → page. EBUSY, as from `read` and from each of those that follow but KICK: a thread is in
        /// one of them.
        VCPU_GET_STATE = super::ioc(super::NONE, 0x21, 0),
        /// VCPU, no argument: page → state.
        VCPU_SET_STATE = super::ioc(super::NONE, 0x22, 0),
        /// VCPU, `ApicAccess`.
        VCPU_APIC = super::ioc(super::BOTH, 0x23, size_of::<super::ApicAccess>()),
        /// VCPU, no argument: makes a run of the virtual CPU return EINTR once, or at its next call.
        VCPU_KICK = super::ioc(super::NONE, 0x24, 0),
        /// VCPU, `SetCpuid`.
        VCPU_SET_CPUID = super::ioc(super::WRITE, 0x25, size_of::<super::SetCpuid>()),
    }
}

abi_struct! {
    /// Facts of the driver and of the microvisor below it.
    pub struct DeviceInfo: 192 {
        /// ABI version that the driver was built with.
        pub driver_abi: u32,
        /// Reserved.
        pub reserved: u32,
        /// Root's TSC frequency in kHz.
        pub tsc_khz: u64,
        /// Partitions alive, root not counted.
        pub partitions: u64,
        /// Pages the driver holds for partitions: RAM.
        pub ram_pages: u64,
        /// Pages the driver holds for partitions: deposits and shared pages.
        pub metadata_pages: u64,
        /// Reserved.
        pub reserved2: [u64; 3],
        /// The microvisor's own answer.
        pub machine: [u64; 16],
    }
}

abi_struct! {
    /// Makes a partition.
    pub struct CreatePartition: 72 {
        /// `PartitionFlags`.
        pub flags: u64,
        /// Out: partition id.
        pub id: u64,
        /// Out: who knows it may attach to the partition later.
        pub token: u64,
        /// Name for listings, NUL-padded.
        pub name: [u8; 48],
    }
}

abi_struct! {
    /// Attaches to a partition.
    pub struct AttachPartition: 16 {
        /// Partition id.
        pub id: u64,
        /// The token that `CreatePartition` gave out.
        pub token: u64,
    }
}

abi_struct! {
    /// One partition.
    pub struct PartitionInfo: 128 {
        /// In: partition id.
        pub id: u64,
        /// Name, NUL-padded.
        pub name: [u8; 48],
        /// Virtual CPUs made.
        pub vcpus: u32,
        /// Process id of the attached worker, 0 if none.
        pub worker: u32,
        /// Bytes of RAM in its slots.
        pub memory: u64,
        /// RAM pages populated so far.
        pub ram_pages: u64,
        /// Deposited and shared pages.
        pub metadata_pages: u64,
        /// Reserved.
        pub reserved: [u64; 5],
    }
}

abi_struct! {
    /// Ids of all partitions.
    pub struct PartitionList: 2056 {
        /// Out: entries filled.
        pub count: u64,
        /// Out: partition ids.
        pub ids: [u64; 256],
    }
}

abi_struct! {
    /// Reads the microvisor's log.
    pub struct ReadLog: 32 {
        /// Position in bytes since boot; out: position after the last byte copied.
        pub position: u64,
        /// Address of the buffer.
        pub buffer: u64,
        /// Its size.
        pub size: u64,
        /// Out: bytes copied, 0 at the end.
        pub copied: u64,
    }
}

abi_struct! {
    /// Reads exit counters.
    pub struct ReadCounters: 24 {
        /// Partition, 0 for root.
        pub id: u64,
        /// Virtual CPU, for root the physical one.
        pub vcpu: u64,
        /// Address of a `Counters`.
        pub buffer: u64,
    }
}

abi_struct! {
    /// One step of the hypercall `verify`.
    pub struct Verify: 72 {
        /// 0, or what the step before left here; out: position of the next step; 0 after the last, and after a difference.
        pub position: u64,
        /// Out: the `VerifyReport`.
        pub report: [u64; 8],
    }
}

abi_struct! {
    /// Guest RAM. Populated as the guest touches it, in chunks, or at once with POPULATE.
    pub struct MemorySlot: 48 {
        /// Slot number, 0 to 15.
        pub slot: u32,
        /// The memfd.
        pub fd: u32,
        /// Guest physical address, page aligned.
        pub gpa: u64,
        /// Bytes, page aligned.
        pub size: u64,
        /// Offset in the memfd, page aligned.
        pub offset: u64,
        /// `MemoryFlags`.
        pub flags: u64,
        /// Reserved, 0.
        pub reserved: u64,
    }
}

abi_flags! {
    /// Flags of `MemorySlot`.
    pub struct MemoryFlags: u64 {
        /// Populate all of it now.
        POPULATE = 1 << 0,
        /// The guest may not write.
        READ_ONLY = 1 << 1,
    }
}

abi_struct! {
    /// Binds a range of guest ports to an eventfd.
    pub struct Doorbell: 32 {
        /// First port.
        pub port: u64,
        /// Ports, 1 to 4096.
        pub length: u64,
        /// `DoorbellFlags`.
        pub flags: u64,
        /// Tag, chosen by the worker: not `doorbell_tags::EOI`.
        pub tag: u32,
        /// Eventfd signalled on Notify; -1 removes the doorbell of this tag.
        pub eventfd: i32,
    }
}

abi_struct! {
    /// Binds an eventfd to an MSI: signalling it delivers the interrupt. One that is bound is bound
    /// to the new MSI from then on.
    pub struct IrqFd: 32 {
        /// The eventfd.
        pub eventfd: i32,
        /// 1 unbinds.
        pub remove: u32,
        /// MSI address.
        pub address: u64,
        /// MSI data.
        pub data: u64,
        /// Reserved, 0.
        pub reserved: u64,
    }
}

abi_struct! {
    /// A message-signalled interrupt.
    pub struct Msi: 16 {
        /// MSI address.
        pub address: u64,
        /// MSI data; bit 15: level-triggered.
        pub data: u64,
    }
}

abi_struct! {
    /// Sets a `Property`.
    pub struct SetProperty: 16 {
        /// `Property`.
        pub property: u64,
        /// Its value.
        pub value: u64,
    }
}

abi_struct! {
    /// An access to a virtual CPU's vLAPIC.
    pub struct ApicAccess: 16 {
        /// Offset in the APIC page; bit 31: write.
        pub register: u32,
        /// Reserved, 0.
        pub reserved: u32,
        /// Value to write, or out: value read.
        pub value: u64,
    }
}

abi_struct! {
    /// Sets the answers of a virtual CPU's CPUID.
    pub struct SetCpuid: 16 {
        /// Address of `CpuidEntry` entries, in ascending order of leaf and subleaf.
        pub entries: u64,
        /// Count of entries, 0 to 127.
        pub count: u32,
        /// Reserved, 0.
        pub reserved: u32,
    }
}

abi_enum! {
    /// Reserved for state that a successor worker reads; kept in `VcpuPage::driver`.
    pub enum DriverWord: u32 {
        /// Index in `VcpuPage::driver` of the count of runs of the virtual CPU.
        Runs = 0,
    }
}
