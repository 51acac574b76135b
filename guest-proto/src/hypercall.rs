//! Hypercalls: root kernel → microvisor.
//!
//! `vmmcall` (AMD) or `vmcall` (Intel) with RAX = number and RDI, RSI, RDX, R10, R8 = arguments.
//! RAX returns a [`Status`](crate::Status), RDX a value. All other general registers keep their
//! values; vector registers are clobbered by `vcpu_run`. Only ring 0 of the root partition may
//! call; from root's ring 3 the status is `NotPermitted`. (A guest's own calls are KVM's, and their answer is
//! `-ENOSYS`.) Arguments that a call does not name must be 0.

use crate::layout::{abi_consts, abi_enum, abi_flags, abi_struct};

/// One argument in the generated documentation.
#[derive(Clone, Copy, Debug)]
pub struct Arg {
    /// Name.
    pub name: &'static str,
    /// Shape and unit.
    pub doc: &'static str,
}

/// A hypercall in the generated documentation.
#[derive(Clone, Copy, Debug)]
pub struct CallDoc {
    /// Which one.
    pub call: Hypercall,
    /// Name in lower case, as the driver and the documentation spell it.
    pub name: &'static str,
    /// Arguments in register order.
    pub args: &'static [Arg],
    /// The contents of RDX on success, and the other statuses with which it has them.
    pub value: &'static str,
    /// Errors beyond `NotPermitted`, `UnknownCall` and `InvalidArgument` (reserved bits), and when.
    pub errors: &'static [(crate::Status, &'static str)],
    /// The purpose of the call.
    pub doc: &'static str,
}

/// Defines the numbers and their documentation together.
macro_rules! hypercalls {
    ($(
        $(#[doc = $doc:literal])*
        $variant:ident = $number:literal, $name:literal
        ( $( $arg:literal : $adoc:literal ),* )
        -> $value:literal
        errors [ $( $err:ident : $when:literal ),* $(,)? ];
    )*) => {
        abi_enum! {
            /// Hypercall numbers. The high byte of the low word groups them: 0 the machine,
            /// 1 partitions, 2 memory, 3 virtual CPUs.
            pub enum Hypercall: u64 {
                $( $(#[doc = $doc])* $variant = $number, )*
            }
        }

        /// Every hypercall, in order of number.
        pub const CALLS: &[CallDoc] = &[ $( CallDoc {
            call: Hypercall::$variant,
            name: $name,
            args: &[ $( Arg { name: $arg, doc: $adoc } ),* ],
            value: $value,
            errors: &[ $( (crate::Status::$err, $when) ),* ],
            doc: concat!($($doc, "\n"),*),
        } ),* ];
    };
}

hypercalls! {
    /// Returns the ABI version. The driver refuses to load if its major number differs.
    AbiVersion = 0x0001, "abi_version"() -> "ABI version" errors [];

    /// Passes a TLB epoch on the calling CPU. A frame that left a nested map becomes usable for
    /// its new purpose once every CPU has passed the epoch. The microvisor sends no interrupts, so the
    /// driver makes each CPU call this after `deposit` or `memory_unmap`.
    EpochPass = 0x0002, "epoch_pass"() -> "epoch that every CPU has passed by now" errors [];

    /// Copies from the microvisor's in-memory log (a ring; positions count bytes since boot) into
    /// one page of root's. If the ring no longer has the position, the copy begins at the oldest byte: the value
    /// minus the count of bytes tells where. The first 8 bytes of the page hold that count. Each line of the text begins
    /// with its severity: `<3>` an error, `<4>` a warning, `<6>` information, `<7>` for debugging, `<8>` a trace.
    LogRead = 0x0003, "log_read"(
        "pfn": "page of root's to fill: `u64` count, then at most 4088 bytes of text",
        "position": "bytes since boot, where to start"
    ) -> "position after the last byte copied" errors [
        BadAddress: "`pfn` is not RAM",
        NotOwner: "`pfn` is not root's alone"
    ];

    /// Fills a page of root's with a `Counters`: exits by kind of one virtual CPU, or for partition
    /// 0, of one physical CPU.
    CountersRead = 0x0004, "counters_read"(
        "partition": "id, 0 for root",
        "vcpu": "index of the virtual (root: physical) CPU",
        "pfn": "page of root's to fill"
    ) -> "0" errors [
        NoSuchPartition: "no partition has this id",
        NoSuchVcpu: "the partition (root: the machine) has no CPU of this index",
        BadAddress: "`pfn` is not RAM",
        NotOwner: "`pfn` is not root's alone"
    ];

    /// Fills a page of root's with a `MachineInfo`.
    MachineInfo = 0x0005, "machine_info"(
        "pfn": "page of root's to fill"
    ) -> "0" errors [
        BadAddress: "`pfn` is not RAM",
        NotOwner: "`pfn` is not root's alone"
    ];

    /// Checks the nested maps and the frame table against each other, some thousand pages a call: start at
    /// position 0 and call again with each value until it is 0. Fills a page of root's with a
    /// `VerifyReport`, which describes the first difference of this call, if there is one. A change that another CPU
    /// makes meanwhile is no difference.
    Verify = 0x0006, "verify"(
        "pfn": "page of root's to fill",
        "position": "0, or the value of the call before"
    ) -> "position of the next call; 0 after the last, and after a difference" errors [
        BadAddress: "`pfn` is not RAM",
        NotOwner: "`pfn` is not root's alone",
        OutOfRange: "no call returns this position"
    ];

    /// Makes an empty partition, which has no memory, no virtual CPU and an empty pool.
    PartitionCreate = 0x0101, "partition_create"(
        "flags": "`PartitionFlags`"
    ) -> "partition id, 1 to 255" errors [
        Full: "255 partitions exist",
        NotSupported: "PRIVATE: this build has no private memory"
    ];

    /// Ends a partition and gives every frame of it back to root, scrubbed, some thousand frames
    /// a call: `TryAgain` until it is done. The id is free afterwards.
    PartitionDestroy = 0x0102, "partition_destroy"(
        "partition": "id"
    ) -> "frames given back by this call (also with TryAgain)" errors [
        NoSuchPartition: "no partition has this id",
        Busy: "a virtual CPU is running, or another call is reading its state",
        TryAgain: "frames are left: call again"
    ];

    /// Sets a `Property` of a partition.
    PartitionSet = 0x0103, "partition_set"(
        "partition": "id",
        "property": "`Property`",
        "value": "as the property says"
    ) -> "0" errors [
        NoSuchPartition: "no partition has this id",
        OutOfRange: "the value is outside the property's range",
        InvalidState: "a virtual CPU has run, or the partition ends"
    ];

    /// Registers a doorbell: guest writes to these ports are posted to the writing virtual CPU's
    /// ring instead of ending the turn.
    DoorbellAdd = 0x0104, "doorbell_add"(
        "partition": "id",
        "port": "first port",
        "length": "ports, 1 to 4096",
        "tag": "0 to 65534; identifies the range in ring entries and Notify",
        "flags": "`DoorbellFlags`"
    ) -> "0" errors [
        NoSuchPartition: "no partition has this id",
        Overlap: "a doorbell has one of the ports, or this tag",
        Full: "64 doorbells exist",
        OutOfRange: "the range is empty, longer than 4096 ports or has a port above 65535, or the tag is above 65534"
    ];

    /// Removes a doorbell. Its entries that are in rings stay there.
    DoorbellRemove = 0x0105, "doorbell_remove"(
        "partition": "id",
        "tag": "as registered"
    ) -> "0" errors [
        NoSuchPartition: "no partition has this id",
        OutOfRange: "no doorbell has this tag"
    ];

    /// Delivers a message-signalled interrupt (MSI), or a line of a virtual IOAPIC, to the virtual
    /// CPUs that it addresses, by the rules of the vLAPIC (physical, logical, lowest priority).
    /// Fixed interrupts with a physical destination need no hypercall: see `PostedInterrupts`.
    InterruptSend = 0x0106, "interrupt_send"(
        "partition": "id",
        "address": "MSI address, 0xFEExxxxx",
        "data": "MSI data; bit 15 set: level-triggered, its EOI is posted to the ring"
    ) -> "set of virtual CPUs to wake or kick" errors [
        NoSuchPartition: "no partition has this id"
    ];

    /// Moves frames from root into a partition's pool, the microvisor's metadata memory for it
    /// (nested tables, virtual CPU state). They leave root's nested map at once and become usable
    /// when every CPU has passed the epoch.
    Deposit = 0x0201, "deposit"(
        "partition": "id",
        "pfn": "first frame",
        "count": "frames, 1 to 512"
    ) -> "epoch after which they are usable" errors [
        NoSuchPartition: "no partition has this id",
        NotOwner: "a frame is not root's; none was taken",
        BadAddress: "a frame is not RAM",
        OutOfRange: "the count is 0 or above 512",
        InvalidState: "the partition ends"
    ];

    /// Donates root's frames as a partition's RAM and maps them. Ordinary guests share the frames with
    /// root, which keeps them mapped. The call goes through the entries in order, and stops at the first error, or
    /// after some thousand frames with `TryAgain`. The entries before stay mapped.
    MemoryMap = 0x0202, "memory_map"(
        "partition": "id",
        "pfn": "page of root's that holds `MapRange` entries; copied once",
        "start": "pages of the list to skip, counted over all entries (0, or a former value)",
        "count": "entries, 1 to 170"
    ) -> "pages of the list done, counted over all entries (also with TryAgain, and the errors but NeedPages); with NeedPages: pages to deposit, then call again with the same start" errors [
        NoSuchPartition: "no partition has this id",
        NeedPages: "the pool lacks nested tables",
        NotOwner: "the list, or a frame of it, is not root's alone",
        BadAddress: "the list, or a frame of it, is not RAM",
        Overlap: "a guest page is mapped already",
        TryAgain: "a batch is full, or the pool lacks tables for the next entry, or waits for an epoch (if the value has not grown, pass one on every CPU)",
        OutOfRange: "`count` or `start` is out of range, or a guest page does not exist",
        InvalidState: "the partition ends"
    ];

    /// Takes RAM back from a partition. Frames of private memory return to root scrubbed. Root may
    /// use the frames again when every CPU has passed the epoch.
    MemoryUnmap = 0x0203, "memory_unmap"(
        "partition": "id",
        "gpa_pfn": "first guest page",
        "count": "pages"
    ) -> "pages done (also with TryAgain)" errors [
        NoSuchPartition: "no partition has this id",
        BadAddress: "a page is not mapped, or does not exist",
        TryAgain: "a batch is full, or a large page cannot be split yet: call again for the rest of the range",
        NeedPages: "the pool lacks the table that splits a large page",
        InvalidState: "the partition ends"
    ];

    /// Makes a virtual CPU in the state after INIT. It waits for a SIPI, except for index 0, which is
    /// the boot CPU. The page stays root's, which shares it with the microvisor until the partition ends.
    VcpuCreate = 0x0301, "vcpu_create"(
        "partition": "id",
        "vcpu": "index, 0 to 63; also its APIC id",
        "pfn": "page of root's that becomes the `VcpuPage`"
    ) -> "0; with NeedPages: pages to deposit" errors [
        NoSuchPartition: "no partition has this id",
        NeedPages: "the pool lacks frames for the virtual CPU",
        TryAgain: "the pool waits for an epoch",
        Exists: "the partition has a virtual CPU of this index",
        OutOfRange: "the index is above 63",
        NotOwner: "`pfn` is not root's alone",
        BadAddress: "`pfn` is not RAM",
        InvalidState: "the partition ends"
    ];

    /// Runs a virtual CPU on the calling CPU until an event needs root. Call it with interrupts
    /// disabled and the task's vector state saved.
    VcpuRun = 0x0302, "vcpu_run"(
        "partition": "id",
        "vcpu": "index"
    ) -> "`RunExit` in bits 7:0; with Notify in bits 31:16 the doorbell's tag, or `doorbell_tags::EOI`" errors [
        NoSuchPartition: "no partition has this id",
        NoSuchVcpu: "it has no virtual CPU of this index",
        Busy: "the virtual CPU is running on another CPU, or another call is reading its state",
        InvalidState: "the partition has no memory"
    ];

    /// Copies a stopped virtual CPU's state into its page's `state`, and its XMM registers into `vectors`.
    VcpuGetState = 0x0303, "vcpu_get_state"(
        "partition": "id",
        "vcpu": "index"
    ) -> "0" errors [
        NoSuchPartition: "no partition has this id",
        NoSuchVcpu: "it has no virtual CPU of this index",
        Busy: "the virtual CPU is running"
    ];

    /// Sets a stopped virtual CPU's state from its page's `state`, copied once and checked.
    VcpuSetState = 0x0304, "vcpu_set_state"(
        "partition": "id",
        "vcpu": "index"
    ) -> "0" errors [
        NoSuchPartition: "no partition has this id",
        NoSuchVcpu: "it has no virtual CPU of this index",
        Busy: "the virtual CPU is running"
    ];

    /// Reads or writes a register of a stopped virtual CPU's vLAPIC: the worker's half of an
    /// emulated xAPIC access. Side effects (ICR, EOI, timer) are those of the guest's own access.
    VcpuApic = 0x0305, "vcpu_apic"(
        "partition": "id",
        "vcpu": "index",
        "register": "offset in the APIC page (0 to 0xFF0, a multiple of 16); bit 31 set: write",
        "value": "value to write, 32 bits"
    ) -> "value read; for a write, the set of virtual CPUs to wake or kick" errors [
        NoSuchPartition: "no partition has this id",
        NoSuchVcpu: "it has no virtual CPU of this index",
        Busy: "the virtual CPU is running",
        OutOfRange: "the register does not exist, or the value has more than 32 bits",
        InvalidState: "the vLAPIC is not in xAPIC mode"
    ];

    /// Sets the answers of a stopped virtual CPU's CPUID, in place of all former ones. CPUID of a leaf that no entry has
    /// is 0. The microvisor clears each bit that this CPU or the microvisor does not support, and answers by itself:
    /// leaf 0xD; OSXSAVE and OSPKE, which follow CR4; and the APIC bits, which are 0 while the vLAPIC is disabled.
    VcpuSetCpuid = 0x0306, "vcpu_set_cpuid"(
        "partition": "id",
        "vcpu": "index",
        "pfn": "page of root's that holds `CpuidEntry` entries, in ascending order of leaf and subleaf; copied once",
        "count": "entries, 0 to 127"
    ) -> "0" errors [
        NoSuchPartition: "no partition has this id",
        NoSuchVcpu: "it has no virtual CPU of this index",
        Busy: "the virtual CPU is running",
        OutOfRange: "the count is above 127",
        NotOwner: "`pfn` is not root's alone",
        BadAddress: "`pfn` is not RAM"
    ];
}

abi_flags! {
    /// Flags of `partition_create`.
    pub struct PartitionFlags: u64 {
        /// Memory that is mapped leaves root's nested map.
        PRIVATE = 1 << 0,
    }
}

abi_enum! {
    /// Properties of `partition_set`. Each must be set before the first virtual CPU runs.
    pub enum Property: u64 {
        /// Frequency of the TSC in kHz, 100_000 to 100_000_000; the vLAPIC's timer needs it.
        TscKhz = 1,
        /// 1: the vLAPICs start in x2APIC mode, as firmware leaves them on large machines.
        X2Apic = 4,
    }
}

abi_flags! {
    /// Flags of `doorbell_add`.
    pub struct DoorbellFlags: u64 {
        /// Never put into the ring: each write returns Notify (for consumers that only have an
        /// eventfd, such as vhost).
        SIGNAL_ONLY = 1 << 0,
    }
}

abi_consts! {
    /// Tags that no doorbell has.
    pub mod doorbell_tags: u16 {
        /// With Notify: the end of a level-triggered interrupt was posted.
        EOI = 0xffff,
    }
}

abi_struct! {
    /// A run of pages in a `memory_map` list.
    pub struct MapRange: 24 {
        /// First guest page.
        pub gpa_pfn: u64,
        /// First frame of root's.
        pub pfn: u64,
        /// Pages, 1 or more.
        pub pages: u32,
        /// `MapFlags`.
        pub flags: u32,
    }
}

abi_flags! {
    /// Flags of `MapRange`.
    pub struct MapFlags: u32 {
        /// The guest may not write.
        READ_ONLY = 1 << 0,
    }
}

abi_enum! {
    /// Kinds of exits that are counted.
    pub enum ExitKind: u32 {
        /// A hypercall.
        Hypercall = 0,
        /// CPUID.
        Cpuid = 1,
        /// A model-specific register was read.
        MsrRead = 2,
        /// A model-specific register was written.
        MsrWrite = 3,
        /// A write that was posted to the ring.
        Posted = 4,
        /// Port access that the worker answers.
        Port = 5,
        /// Memory access that the worker answers.
        Memory = 6,
        /// Nested page fault on RAM that was not mapped yet, or on protected memory (root).
        NestedFault = 7,
        /// A physical interrupt ended the turn.
        Interrupt = 8,
        /// A non-maskable interrupt ended the turn.
        Nmi = 9,
        /// The window for a pending interrupt opened.
        InterruptWindow = 10,
        /// HLT.
        Halt = 11,
        /// An interprocessor interrupt that woke another virtual CPU.
        Ipi = 12,
        /// An intercepted exception.
        Exception = 13,
        /// First use of debug registers in a turn.
        DebugRegister = 14,
        /// XSETBV.
        Xsetbv = 15,
        /// An instruction that is not available here.
        Forbidden = 16,
        /// Triple fault.
        Shutdown = 17,
        /// INIT signal (root).
        Init = 18,
        /// Any other.
        Other = 19,
    }
}

/// Slots in [`Counters::exits`], more than there are kinds.
pub const EXIT_KINDS: usize = 32;

abi_struct! {
    /// Counters, which `counters_read` writes.
    pub struct Counters: 320 {
        /// Exits since creation, indexed by `ExitKind`.
        pub exits: [u64; 32],
        /// TSC ticks spent inside the guest.
        pub guest_tsc: u64,
        /// `vcpu_run` calls (root: hypercalls).
        pub runs: u64,
        /// TSC at this reading.
        pub now_tsc: u64,
        /// Reserved, 0.
        pub reserved: [u64; 5],
    }
}

abi_struct! {
    /// Facts about the machine, which `machine_info` writes.
    pub struct MachineInfo: 128 {
        /// ABI version.
        pub abi_version: u32,
        /// `cpuid::Features`.
        pub features: u32,
        /// Physical CPUs that run the microvisor.
        pub cpus: u32,
        /// Partitions, root included.
        pub partitions: u32,
        /// Frames of RAM in the machine.
        pub frames: u64,
        /// Frames that the microvisor took at boot.
        pub reserved_frames: u64,
        /// Frames deposited now.
        pub deposited_frames: u64,
        /// Frames donated as guest RAM now.
        pub guest_frames: u64,
        /// Bytes of text ever written to the log.
        pub log_position: u64,
        /// Epoch that every CPU has passed.
        pub epoch: u64,
        /// Reserved, 0.
        pub reserved: [u64; 8],
    }
}

abi_enum! {
    /// The kind of a frame's owner by the frame table: bits 7:0 of `VerifyReport::owner`. Bits 15:8 are the partition
    /// that it names, bits 63:16 the guest page of `Guest` and `Shared`.
    pub enum FrameOwner: u8 {
        /// Not RAM that can be given away: a hole, a device, firmware's.
        Absent = 0,
        /// The microvisor's since boot.
        Reserved = 1,
        /// Root's alone.
        Root = 2,
        /// The microvisor's, for a partition: deposited and not in use.
        Pool = 3,
        /// The microvisor's, for a partition: a nested table, or the state of a virtual CPU.
        Metadata = 4,
        /// A partition's RAM that root cannot reach.
        Guest = 5,
        /// A partition's RAM that root can reach.
        Shared = 6,
        /// A `VcpuPage`: root and the microvisor share it.
        SharedPage = 7,
    }
}

abi_enum! {
    /// Kinds of differences that `verify` finds.
    pub enum VerifyDifference: u32 {
        /// A nested map has a table in a frame that is not the microvisor's for this map.
        Table = 1,
        /// A nested map maps a frame that the frame table does not give to it at this page.
        Page = 2,
        /// The frame table says that a nested map maps a frame at this page, or, of root's map, that it does
        /// not. The map says otherwise.
        Frame = 3,
        /// The frame table names a partition that does not exist.
        Owner = 4,
    }
}

abi_consts! {
    /// Nested maps that are no partition's.
    pub mod verify_maps: u64 {
        /// The map of CPUs that root has not started.
        WAITING = 256,
    }
}

abi_struct! {
    /// The report, which `verify` writes. After a call without a difference only the two counts are not 0.
    pub struct VerifyReport: 64 {
        /// `VerifyDifference`, 0 for none.
        pub difference: u32,
        /// Level of `entry`: 0 in a page table, 3 in the top table; 4 where `entry` stands for the pointer
        /// to the top table.
        pub level: u32,
        /// Whose nested map: a partition id, 0 for root, or a number of `verify_maps`.
        pub map: u64,
        /// The page of that map, as the number of a guest page.
        pub page: u64,
        /// The entry for this page, as the CPU reads it.
        pub entry: u64,
        /// The frame.
        pub frame: u64,
        /// The frame's word of the frame table: see `FrameOwner`.
        pub owner: u64,
        /// Frames that this call looked up in nested maps.
        pub frames: u64,
        /// Mapped pages that this call looked up in the frame table; root's are all counted as frames.
        pub pages: u64,
    }
}
