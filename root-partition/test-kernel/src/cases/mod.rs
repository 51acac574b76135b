//! The cases, in groups: each group's module lists its own.

use guest_proto::Status;

use crate::report::Case;

mod a20;
pub mod costs;
mod deposit;
mod doorbell;
mod guest_apic;
mod guest_cpu;
mod guest_errors;
mod guest_exits;
mod guest_hostile;
mod guest_interrupt;
mod guest_memory;
mod guest_nmi;
mod guest_port;
mod guest_posted;
mod guest_smp;
mod guest_state;
mod guest_timer;
mod log;
mod machine;
mod map;
mod partition;
mod protection;
pub mod random;
mod root_registers;
mod two_cpus;
mod two_cpus_guests;
mod waiting_cpu;

/// Groups in the order in which they run.
pub const GROUPS: &[(&str, &[Case])] = &[
    ("machine", machine::CASES),
    ("log", log::CASES),
    ("protection", protection::CASES),
    ("a20", a20::CASES),
    ("root_registers", root_registers::CASES),
    ("partition", partition::CASES),
    ("deposit", deposit::CASES),
    ("map", map::CASES),
    ("doorbell", doorbell::CASES),
    ("guest_exits", guest_exits::CASES),
    ("guest_port", guest_port::CASES),
    ("guest_memory", guest_memory::CASES),
    ("guest_cpu", guest_cpu::CASES),
    ("guest_posted", guest_posted::CASES),
    ("guest_interrupt", guest_interrupt::CASES),
    ("guest_nmi", guest_nmi::CASES),
    ("guest_timer", guest_timer::CASES),
    ("guest_apic", guest_apic::CASES),
    ("guest_smp", guest_smp::CASES),
    ("guest_state", guest_state::CASES),
    ("guest_errors", guest_errors::CASES),
    ("guest_hostile", guest_hostile::CASES),
    ("random", random::CASES),
];

/// The group that runs while the second CPU waits in the mailbox.
pub const WAITING: (&str, &[Case]) = ("waiting_cpu", waiting_cpu::CASES);

/// Groups that need a second CPU.
pub const TWO_CPUS: &[(&str, &[Case])] = &[
    ("two_cpus", two_cpus::CASES),
    ("two_cpus_guests", two_cpus_guests::CASES),
    ("random", random::TWO_CPUS),
];

/// Physical address of the image that the loader put into memory. It begins with the start-up code, which is root's.
const IMAGE: u64 = 0x20_0000;
/// A physical address in the part of the image that stays the microvisor's.
const MICROVISOR: u64 = 0x40_0000;

/// Pages that are not root's to give or to have filled: beyond all RAM, no number, the local APIC,
/// firmware's, and the microvisor's own.
const FOREIGN_PAGES: [(u64, Status); 5] = [
    (1 << 40, Status::BadAddress),
    (u64::MAX, Status::BadAddress),
    (0xfee00, Status::BadAddress),
    (0xf0, Status::BadAddress),
    (MICROVISOR >> 12, Status::NotOwner),
];

/// Numbers that no partition has while a case has made none. Root is not one that calls change.
const NO_PARTITIONS: [u64; 6] = [0, 1, 255, 256, 1 << 32 | 1, u64::MAX];
