//! Discovery by CPUID.
//!
//! Root finds [`SIGNATURE`] at leaf [`leaf::ROOT_BASE`]. A guest finds what root sets in the table of its virtual CPU:
//! KVM's signature there (the documented subset of `Documentation/virt/kvm/x86/cpuid.rst`) and ours at
//! [`leaf::GUEST_BASE`].

use crate::layout::{abi_consts, abi_flags, abi_struct};

/// EBX, ECX, EDX of the base leaf, in this order.
pub const SIGNATURE: [u8; 12] = *b"MicrovisorHV";

/// A signature as EBX, ECX and EDX of its leaf.
pub const fn signature_words(signature: [u8; 12]) -> [u32; 3] {
    let [a, b, c, d, e, f, g, h, i, j, k, l] = signature;
    [
        u32::from_le_bytes([a, b, c, d]),
        u32::from_le_bytes([e, f, g, h]),
        u32::from_le_bytes([i, j, k, l]),
    ]
}

abi_consts! {
    /// CPUID leaves. `base + 0`: EAX = highest leaf, EBX/ECX/EDX = signature. `base + 1`: EAX = ABI
    /// version, EBX = feature bits (`Features`), ECX = partition id (root: 0), EDX = 0.
    pub mod leaf: u32 {
        /// First leaf in the root partition.
        ROOT_BASE = 0x4000_0000,
        /// First leaf in a guest.
        GUEST_BASE = 0x4000_0100,
    }
}

abi_flags! {
    /// Feature bits of `base + 1` EBX: what the CPU offers and this microvisor uses.
    pub struct Features: u32 {
        /// Nested paging (always set where the microvisor runs).
        NESTED_PAGING = 1 << 0,
        /// The CPU gives the address of the next instruction on every exit.
        NEXT_RIP = 1 << 1,
        /// The CPU gives instruction bytes on nested faults.
        DECODE_ASSISTS = 1 << 2,
        /// The CPU flushes by address space identifier.
        FLUSH_BY_ASID = 1 << 3,
        /// The CPU honours VMCB clean bits.
        CLEAN_BITS = 1 << 4,
        /// The CPU scales the TSC.
        TSC_SCALING = 1 << 5,
        /// Guests can have memory that root cannot read.
        PRIVATE_MEMORY = 1 << 6,
    }
}

/// Bits of features that the microvisor or its root gives a guest on any CPU. Root may set them in a virtual CPU's table
/// even if the CPU does not have them (Intel SDM vol. 2 CPUID; APM vol. 3 appendix E).
pub mod bit {
    /// Leaf 1, ECX: x2APIC mode.
    pub const X2APIC: u32 = 1 << 21;
    /// Leaf 1, ECX: the APIC timer has a TSC-deadline mode.
    pub const TSC_DEADLINE: u32 = 1 << 24;
    /// Leaf 1, ECX: a hypervisor is present.
    pub const HYPERVISOR: u32 = 1 << 31;
    /// Leaf 1 and leaf 0x8000_0001, EDX: an APIC is there, and enabled.
    pub const APIC: u32 = 1 << 9;
    /// Leaf 1, EDX: the package has several logical processors.
    pub const HTT: u32 = 1 << 28;
    /// Leaf 6, EAX: the APIC timer runs in every C state.
    pub const ARAT: u32 = 1 << 2;
    /// Leaf 7, EBX: MSR TSC_ADJUST.
    pub const TSC_ADJUST: u32 = 1 << 1;
    /// Leaf 0x8000_0001, ECX: the logical processors of the package are cores.
    pub const CMP_LEGACY: u32 = 1 << 1;
    /// Leaf 0x8000_0007, EDX: the TSC has one frequency in every state.
    pub const INVARIANT_TSC: u32 = 1 << 8;
}

abi_flags! {
    /// Flags of `CpuidEntry`.
    pub struct CpuidFlags: u32 {
        /// The entry answers its subleaf only. Without it the entry answers every subleaf, and `subleaf` is 0.
        SUBLEAF = 1 << 0,
    }
}

abi_struct! {
    /// One answer of a virtual CPU's CPUID: an entry of the list of `vcpu_set_cpuid`.
    pub struct CpuidEntry: 32 {
        /// EAX of the question.
        pub leaf: u32,
        /// ECX of the question.
        pub subleaf: u32,
        /// `CpuidFlags`.
        pub flags: u32,
        /// Reserved, 0.
        pub reserved: u32,
        /// EAX of the answer.
        pub eax: u32,
        /// EBX of the answer.
        pub ebx: u32,
        /// ECX of the answer.
        pub ecx: u32,
        /// EDX of the answer.
        pub edx: u32,
    }
}
