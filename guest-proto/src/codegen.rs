//! Output that is printed from the definitions: the C header, and the tables of the documentation.
//!
//! [`CATALOG`] lists every definition once, in the order in which C needs them; a test holds it
//! against the sources, so that a definition that is missing here is found. [`c_header`] and
//! [`hypercall_reference`] print them, [`layout`] prints what of them is frozen.

mod c_header;
mod reference;
#[cfg(test)]
mod tests;

pub use c_header::c_header;
pub use reference::{hypercall_reference, layout};

use crate::layout::{Enum, Struct};
use crate::{cpuid, driver, hypercall, limits, status, vcpu_page};

/// A definition.
#[derive(Clone, Copy, Debug)]
pub enum Item {
    /// A structure.
    Struct(&'static Struct),
    /// An enumeration, or a set of constants, and the prefix of its names in C, after `MV_`.
    Constants(&'static str, &'static Enum),
}

/// The definitions of one border.
#[derive(Clone, Copy, Debug)]
pub struct Section {
    /// Module of this crate.
    pub module: &'static str,
    /// Title in the header.
    pub title: &'static str,
    /// Its definitions; a structure comes after those that it holds.
    pub items: &'static [Item],
}

use Item::Constants as C;
use Item::Struct as S;

/// Every definition of the ABI.
pub const CATALOG: &[Section] = &[
    Section {
        module: "lib",
        title: "Limits",
        items: &[C("", &limits::LAYOUT)],
    },
    Section {
        module: "cpuid",
        title: "Discovery by CPUID",
        items: &[
            C("CPUID_", &cpuid::leaf::LAYOUT),
            C("FEATURE_", &cpuid::Features::LAYOUT),
            C("CPUID_FLAG_", &cpuid::CpuidFlags::LAYOUT),
            S(&cpuid::CpuidEntry::LAYOUT),
        ],
    },
    Section {
        module: "status",
        title: "What a hypercall answers in RAX",
        items: &[C("STATUS_", &status::Status::LAYOUT)],
    },
    Section {
        module: "hypercall",
        title: "Hypercalls: root kernel to microvisor",
        items: &[
            C("CALL_", &hypercall::Hypercall::LAYOUT),
            C("PARTITION_", &hypercall::PartitionFlags::LAYOUT),
            C("PROPERTY_", &hypercall::Property::LAYOUT),
            C("DOORBELL_", &hypercall::DoorbellFlags::LAYOUT),
            C("DOORBELL_TAG_", &hypercall::doorbell_tags::LAYOUT),
            C("MAP_", &hypercall::MapFlags::LAYOUT),
            S(&hypercall::MapRange::LAYOUT),
            C("EXIT_", &hypercall::ExitKind::LAYOUT),
            S(&hypercall::Counters::LAYOUT),
            S(&hypercall::MachineInfo::LAYOUT),
            C("FRAME_", &hypercall::FrameOwner::LAYOUT),
            C("VERIFY_", &hypercall::VerifyDifference::LAYOUT),
            C("VERIFY_MAP_", &hypercall::verify_maps::LAYOUT),
            S(&hypercall::VerifyReport::LAYOUT),
        ],
    },
    Section {
        module: "vcpu_page",
        title: "The page shared per virtual CPU",
        items: &[
            C("RUN_", &vcpu_page::RunExit::LAYOUT),
            C("INTERCEPT_", &vcpu_page::InterceptKind::LAYOUT),
            C("INTERCEPT_FLAG_", &vcpu_page::InterceptFlags::LAYOUT),
            S(&vcpu_page::Intercept::LAYOUT),
            C("REPLY_", &vcpu_page::ReplyFlags::LAYOUT),
            S(&vcpu_page::Reply::LAYOUT),
            S(&vcpu_page::PostedInterrupts::LAYOUT),
            S(&vcpu_page::RingProducer::LAYOUT),
            S(&vcpu_page::RingConsumer::LAYOUT),
            C("POSTED_", &vcpu_page::PostedKind::LAYOUT),
            S(&vcpu_page::PostedWrite::LAYOUT),
            S(&vcpu_page::Segment::LAYOUT),
            C("RUN_STATE_", &vcpu_page::RunState::LAYOUT),
            S(&vcpu_page::VcpuState::LAYOUT),
            S(&vcpu_page::ExecutionState::LAYOUT),
            S(&vcpu_page::GeneralRegisters::LAYOUT),
            S(&vcpu_page::Vectors::LAYOUT),
            S(&vcpu_page::VcpuPage::LAYOUT),
        ],
    },
    Section {
        module: "driver",
        title: "Ioctls of /dev/microvisor: worker to driver",
        items: &[
            S(&driver::DeviceInfo::LAYOUT),
            S(&driver::CreatePartition::LAYOUT),
            S(&driver::AttachPartition::LAYOUT),
            S(&driver::PartitionInfo::LAYOUT),
            S(&driver::PartitionList::LAYOUT),
            S(&driver::ReadLog::LAYOUT),
            S(&driver::ReadCounters::LAYOUT),
            S(&driver::Verify::LAYOUT),
            C("MEMORY_", &driver::MemoryFlags::LAYOUT),
            S(&driver::MemorySlot::LAYOUT),
            S(&driver::Doorbell::LAYOUT),
            S(&driver::IrqFd::LAYOUT),
            S(&driver::Msi::LAYOUT),
            S(&driver::SetProperty::LAYOUT),
            S(&driver::ApicAccess::LAYOUT),
            S(&driver::SetCpuid::LAYOUT),
            C("DRIVER_WORD_", &driver::DriverWord::LAYOUT),
            C("IOCTL_", &driver::ioctl::LAYOUT),
        ],
    },
];
