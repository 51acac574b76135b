//! The Microvisor ABI, written once.
//!
//! Four borders, each a module: [`hypercall`] (root kernel → microvisor), [`vcpu_page`] (the page
//! that the microvisor, the driver and a worker share per virtual CPU), [`driver`] (worker →
//! driver, ioctls) and [`cpuid`] (discovery). Everything is a number or a `repr(C)` structure
//! without padding. What executes here is both ends of the protocols in the shared page: [`shared`],
//! [`ring`], [`posted`]. The feature `control` adds the messages between the CLI,
//! the daemon and the workers (serde and postcard). `layout` describes the definitions to the C
//! header and the documentation.

#![cfg_attr(not(any(test, feature = "codegen")), no_std)]
#![forbid(unsafe_code)]

#[cfg(feature = "control")]
extern crate alloc;

#[cfg(feature = "codegen")]
pub mod codegen;
#[cfg(feature = "control")]
pub mod control;
pub mod cpuid;
pub mod driver;
pub mod hypercall;
pub mod layout;
pub mod posted;
pub mod ring;
pub mod shared;
pub mod status;
pub mod vcpu_page;

pub use status::Status;

/// Version of everything in this crate. Major in the high 16 bits: a different major is refused;
/// a larger minor only adds.
pub const ABI_VERSION: u32 = 0x0003_0000;

layout::abi_consts! {
    /// Limits that every side compiles in.
    pub mod limits: u64 {
        /// Bytes in a frame; every page frame number (PFN) counts these.
        PAGE_SIZE = 4096,
        /// Partitions that can exist at once, root included.
        MAX_PARTITIONS = 256,
        /// Virtual CPUs of one partition: a `u64` holds a set of them.
        MAX_VCPUS = 64,
        /// Doorbell ranges of one partition.
        MAX_DOORBELLS = 64,
        /// Physical CPUs that the microvisor starts.
        MAX_CPUS = 64,
        /// Entries of the posted-write ring; a power of two.
        RING_ENTRIES = 128,
        /// `MapRange` entries in one `memory_map` list page.
        MAX_MAP_RANGES = 170,
        /// `CpuidEntry` entries of one virtual CPU.
        MAX_CPUID_ENTRIES = 127,
        /// Frequency of the vLAPIC's timer in kHz.
        VLAPIC_KHZ = 1_000_000,
        /// Partition id of the root partition.
        ROOT_PARTITION = 0,
    }
}
