//! The page that the microvisor, the driver and the worker share per virtual CPU.
//!
//! Root's memory: whatever stands in it is an allegation to the microvisor, which copies a field
//! once and checks the copy. Each group of fields has one writer and stands in cache lines of its
//! own. Offsets are part of the ABI.

use crate::layout::{abi_enum, abi_flags, abi_struct};

abi_enum! {
    /// Why `vcpu_run` returned: bits 7:0 of its value.
    pub enum RunExit: u8 {
        /// A physical interrupt is pending for root. Take it, then run again.
        Interrupt = 0,
        /// The guest needs an answer: see `intercept`.
        Intercept = 1,
        /// A posted write found its consumer asleep: signal the eventfd of the tag, run again.
        Notify = 2,
        /// The guest halted: run again when an interrupt is posted or `deadline` has passed.
        Halted = 3,
        /// The guest set a timer earlier than the last `deadline`: arm it, run again.
        Timer = 4,
        /// An interrupt was posted to the virtual CPUs in `kick_set`: wake or kick them, run again.
        Kick = 5,
        /// The virtual CPU waits for INIT or SIPI from another: run again after a kick.
        WaitForSipi = 6,
    }
}

abi_enum! {
    /// The request of the guest to root.
    pub enum InterceptKind: u32 {
        /// Nothing is outstanding.
        None = 0,
        /// Port access: `address`, `size`, `is_write`, `data`. A read is answered in `reply`.
        /// String instructions have `InterceptFlags::STRING` and are emulated whole from `state`.
        Port = 1,
        /// Access to guest physical memory that is not mapped: `address`, `error_code`,
        /// `instruction` where the CPU gives it, and `state`. The worker emulates the instruction
        /// and sets the new state, or the driver maps RAM there and just runs again.
        Memory = 2,
        /// Triple fault, or an event that could not be delivered; `state` says where.
        Shutdown = 3,
        /// The CPU refused the virtual CPU's state.
        EntryFailed = 4,
        /// RDMSR or WRMSR of a register that the microvisor does not keep: `address` is its number, `is_write`,
        /// `data`. A reply with DATA completes the instruction, one with EXCEPTION makes it fault.
        Msr = 5,
        /// The guest asked for a reset or power state through the CPU itself (INIT of the boot CPU).
        Reset = 6,
    }
}

abi_flags! {
    /// Flags of `Intercept`.
    pub struct InterceptFlags: u16 {
        /// INS or OUTS; address and count are in `state`.
        STRING = 1 << 0,
        /// With a REP prefix.
        REP = 1 << 1,
        /// `state` begins with an `ExecutionState` (always with Memory, Shutdown, STRING); the rest of it is old.
        STATE = 1 << 2,
        /// With Memory: the access is to a register of the vLAPIC in xAPIC mode. If it is a read, `data` is the register's value.
        APIC = 1 << 3,
    }
}

abi_struct! {
    /// Filled by the microvisor before `vcpu_run` returns.
    pub struct Intercept: 128 {
        /// `InterceptKind`.
        pub kind: u32,
        /// `InterceptFlags`.
        pub flags: u16,
        /// Access size in bytes: 1, 2, 4 or 8.
        pub size: u8,
        /// 1 for a write.
        pub is_write: u8,
        /// Port, guest physical address, or number of a model-specific register.
        pub address: u64,
        /// Value written; with APIC, the value read.
        pub data: u64,
        /// Nested page fault error code (APM vol. 2 §15.25.6), or the exit code with EntryFailed.
        pub error_code: u64,
        /// Guest's instruction pointer.
        pub rip: u64,
        /// Bytes in `instruction`; 0 where the CPU gives none.
        pub instruction_len: u8,
        /// Instruction bytes.
        pub instruction: [u8; 15],
        /// TSC (root's) of the next timer interrupt, 0 for none. Valid after every `vcpu_run`.
        pub deadline: u64,
        /// Virtual CPUs to wake or kick. Valid with Kick; cleared by the next `vcpu_run`.
        pub kick_set: u64,
        /// Reserved.
        pub reserved: [u64; 7],
    }
}

abi_flags! {
    /// Flags of `Reply`.
    pub struct ReplyFlags: u32 {
        /// `data` answers the read; with Msr, the write is done.
        DATA = 1 << 0,
        /// Registers are to be taken from `state` (general registers, RIP and RFLAGS only). Another RIP ends an interrupt shadow.
        REGISTERS = 1 << 1,
        /// Inject the exception `exception` with `error_code` instead of completing; with
        /// REGISTERS after those: a string instruction that faults has made its progress.
        EXCEPTION = 1 << 2,
        /// XMM0 to XMM15 are to be taken from `vectors`.
        VECTORS = 1 << 3,
        /// `data`, of 32 bits, is written to the register of the vLAPIC that an intercept with APIC was about, after the
        /// registers are taken.
        APIC = 1 << 4,
    }
}

abi_struct! {
    /// Filled by the worker before it runs the virtual CPU again; consumed by `vcpu_run`.
    pub struct Reply: 64 {
        /// `ReplyFlags`; the microvisor clears it.
        pub flags: u32,
        /// Exception vector, 0 to 31.
        pub exception: u32,
        /// Answer to a read, or value for the vLAPIC's register.
        pub data: u64,
        /// Error code of the exception.
        pub error_code: u64,
        /// CR2 for a page fault.
        pub fault_address: u64,
        /// Reserved.
        pub reserved: [u64; 4],
    }
}

abi_struct! {
    /// Interrupts for this virtual CPU, posted by the driver, merged into the vLAPIC at entry:
    /// the software twin of the VMX posted-interrupt descriptor. For a level-triggered one set
    /// the bit in `level`; then the bit in `pending`; then `outstanding` = 1; each atomically and
    /// in this order. The microvisor takes them in the opposite order.
    pub struct PostedInterrupts: 128 {
        /// One bit per vector.
        pub pending: [u64; 4],
        /// Of those, the level-triggered ones; their EOI is posted to the ring.
        pub level: [u64; 4],
        /// 1: look at the rest.
        pub outstanding: u32,
        /// NMIs to inject. Two wait at most: one if another is in service.
        pub nmi: u32,
        /// Reserved.
        pub reserved: [u64; 7],
    }
}

abi_struct! {
    /// The producer's (microvisor's) line of the posted-write ring.
    pub struct RingProducer: 64 {
        /// Entries ever written, modulo 2^32.
        pub head: u32,
        /// Reserved.
        pub reserved: [u32; 15],
    }
}

abi_struct! {
    /// The consumer's (worker's) line of the posted-write ring.
    pub struct RingConsumer: 64 {
        /// Entries ever read, modulo 2^32.
        pub tail: u32,
        /// 1: the consumer sleeps, and wants a Notify for the next entry. The consumer sets it,
        /// then looks at `head` once more before it sleeps. The microvisor exchanges it with 0.
        pub need_wakeup: u32,
        /// Reserved.
        pub reserved: [u32; 14],
    }
}

abi_enum! {
    /// Kind of a ring entry.
    pub enum PostedKind: u8 {
        /// Write to a port doorbell.
        Port = 1,
        /// End of interrupt of a level-triggered vector (`data`).
        Eoi = 3,
    }
}

abi_struct! {
    /// One entry of the posted-write ring. A full ring turns the write into an intercept.
    pub struct PostedWrite: 16 {
        /// `PostedKind`.
        pub kind: u8,
        /// Access size in bytes.
        pub size: u8,
        /// Tag of the doorbell.
        pub tag: u16,
        /// Ports from the start of the doorbell's range.
        pub offset: u32,
        /// Value written.
        pub data: u64,
    }
}

abi_struct! {
    /// A segment register with its descriptor cache.
    pub struct Segment: 16 {
        /// Selector.
        pub selector: u16,
        /// Attributes as the VMCB packs them: descriptor bits 55:52 and 47:40 (APM vol. 2 §15.5.1).
        pub attributes: u16,
        /// Limit in bytes.
        pub limit: u32,
        /// Base.
        pub base: u64,
    }
}

abi_struct! {
    /// State of a virtual CPU. Registers that the guest does not have read as 0.
    pub struct VcpuState: 640 {
        /// RAX RCX RDX RBX RSP RBP RSI RDI R8 to R15, in the order of their encoding.
        pub gpr: [u64; 16],
        /// Instruction pointer.
        pub rip: u64,
        /// Flags.
        pub rflags: u64,
        /// ES CS SS DS FS GS, in the order of their encoding.
        pub segment: [Segment; 6],
        /// Local descriptor table.
        pub ldtr: Segment,
        /// Task register.
        pub tr: Segment,
        /// Global descriptor table: base and limit.
        pub gdtr: Segment,
        /// Interrupt descriptor table: base and limit.
        pub idtr: Segment,
        /// Control register 0.
        pub cr0: u64,
        /// Control register 2.
        pub cr2: u64,
        /// Control register 3.
        pub cr3: u64,
        /// Control register 4.
        pub cr4: u64,
        /// Extended feature enables, without SVME.
        pub efer: u64,
        /// PKRU where CR4.PKE is set, else 0; ignored by `vcpu_set_state`.
        pub pkru: u64,
        /// Extended control register 0.
        pub xcr0: u64,
        /// DR0 to DR3.
        pub dr: [u64; 4],
        /// Debug status.
        pub dr6: u64,
        /// Debug control.
        pub dr7: u64,
        /// MSR STAR.
        pub star: u64,
        /// MSR LSTAR.
        pub lstar: u64,
        /// MSR CSTAR.
        pub cstar: u64,
        /// MSR SF_MASK.
        pub sfmask: u64,
        /// MSR KERNEL_GS_BASE.
        pub kernel_gs_base: u64,
        /// MSRs SYSENTER_CS, SYSENTER_ESP, SYSENTER_EIP.
        pub sysenter: [u64; 3],
        /// MSR PAT.
        pub pat: u64,
        /// MSR TSC_AUX.
        pub tsc_aux: u64,
        /// Guest TSC at the time of reading; ignored by `vcpu_set_state`.
        pub tsc: u64,
        /// MSR APIC_BASE.
        pub apic_base: u64,
        /// `RunState`.
        pub run_state: u32,
        /// 1: interrupts are blocked for one instruction (MOV SS, STI).
        pub interrupt_shadow: u32,
        /// MSR SPEC_CTRL; 0 where the CPU has none.
        pub spec_ctrl: u64,
        /// Reserved, 0.
        pub reserved: [u64; 15],
    }
}

abi_struct! {
    /// The first fields of `VcpuState`: the registers by which one instruction executes.
    pub struct ExecutionState: 352 {
        /// General registers, as in `VcpuState`.
        pub gpr: [u64; 16],
        /// Instruction pointer.
        pub rip: u64,
        /// Flags.
        pub rflags: u64,
        /// ES CS SS DS FS GS.
        pub segment: [Segment; 6],
        /// Local descriptor table.
        pub ldtr: Segment,
        /// Task register.
        pub tr: Segment,
        /// Global descriptor table.
        pub gdtr: Segment,
        /// Interrupt descriptor table.
        pub idtr: Segment,
        /// Control register 0.
        pub cr0: u64,
        /// Control register 2.
        pub cr2: u64,
        /// Control register 3.
        pub cr3: u64,
        /// Control register 4.
        pub cr4: u64,
        /// Extended feature enables, without SVME.
        pub efer: u64,
        /// PKRU where CR4.PKE is set, else 0.
        pub pkru: u64,
    }
}

abi_struct! {
    /// The first fields of both: the registers that an instruction changes.
    pub struct GeneralRegisters: 144 {
        /// General registers, as in `VcpuState`.
        pub gpr: [u64; 16],
        /// Instruction pointer.
        pub rip: u64,
        /// Flags.
        pub rflags: u64,
    }
}

abi_struct! {
    /// Vector registers.
    pub struct Vectors: 256 {
        /// XMM0 to XMM15, the low half of each first.
        pub xmm: [u64; 32],
    }
}

abi_enum! {
    /// The activity of a virtual CPU: what it would do if it ran.
    pub enum RunState: u32 {
        /// Execute instructions.
        Runnable = 0,
        /// Wait for an interrupt.
        Halted = 1,
        /// Wait for a SIPI.
        WaitForSipi = 2,
    }
}

abi_struct! {
    /// The whole page.
    pub struct VcpuPage: 4096 {
        /// Microvisor → root.
        pub intercept: Intercept,
        /// Worker → microvisor.
        pub reply: Reply,
        /// Reserved for the driver; the microvisor never touches it.
        pub driver: [u64; 8],
        /// Driver → microvisor.
        pub posted: PostedInterrupts,
        /// Microvisor → worker.
        pub producer: RingProducer,
        /// Worker → microvisor.
        pub consumer: RingConsumer,
        /// Both ways, while the virtual CPU is stopped.
        pub state: VcpuState,
        /// Both ways, as `state`, but only `vcpu_get_state` fills it.
        pub vectors: Vectors,
        /// Reserved.
        pub reserved: [u64; 80],
        /// Ring entries; entry `n` stands at `n % RING_ENTRIES`.
        pub ring: [PostedWrite; 128],
    }
}

const _: () = assert!(core::mem::offset_of!(VcpuPage, posted) == 0x100);
const _: () = assert!(core::mem::offset_of!(VcpuPage, producer) == 0x180);
const _: () = assert!(core::mem::offset_of!(VcpuPage, consumer) == 0x1c0);
const _: () = assert!(core::mem::offset_of!(VcpuPage, state) == 0x200);
const _: () = assert!(core::mem::offset_of!(VcpuPage, ring) == 0x800);
