//! A guest of a few pages for a case: made, run turn by turn, looked at, and ended.
//!
//! `start` are the states that it begins in, `layout` is what stands in its memory, `code` turns
//! instructions into bytes.

use core::sync::atomic::{AtomicU64, Ordering};

use guest_proto::Status;
use guest_proto::cpuid::CpuidEntry;
use guest_proto::hypercall::{Hypercall, MapRange, Property};
use guest_proto::shared::SharedPage;
use guest_proto::vcpu_page::{RunState, VcpuState};

use crate::hv;
use crate::memory::Pages;
use crate::report::{Outcome, fail};

pub(crate) mod code;
pub mod cpuid;
pub mod layout;
pub mod msr;
mod run;
pub mod start;

pub use run::{Exit, Halt};
pub use start::Mode;

const MAX_VCPUS: usize = guest_proto::limits::MAX_VCPUS as usize;
/// Frequency of the TSC that guests are told, in kHz.
pub const TSC_KHZ: u64 = 1_000_000;

/// What a guest is made of.
#[derive(Clone, Copy, Debug)]
pub struct Plan<'a> {
    /// How virtual CPU 0 begins.
    pub mode: Mode,
    /// What it executes, at [`layout::CODE`].
    pub code: &'a [u8],
    /// Virtual CPUs.
    pub vcpus: usize,
    /// The vLAPICs start in x2APIC mode.
    pub x2apic: bool,
}

impl<'a> Plan<'a> {
    /// One virtual CPU in 64-bit mode.
    pub fn new(code: &'a [u8]) -> Self {
        Self {
            mode: Mode::Long,
            code,
            vcpus: 1,
            x2apic: true,
        }
    }
}

/// A guest.
#[derive(Debug)]
pub struct Guest {
    /// Its partition.
    pub id: u64,
    /// Its RAM, from guest physical address 0 on.
    pub ram: Pages,
    pages: [Option<Pages>; MAX_VCPUS],
}

impl Guest {
    /// A guest that executes `code` in 64-bit mode on one virtual CPU.
    #[track_caller]
    pub fn new(code: &[u8]) -> Outcome<Self> {
        Self::build(&Plan::new(code))
    }

    /// Makes a guest; virtual CPU 0 has its state, the others wait for a SIPI.
    #[track_caller]
    pub fn build(plan: &Plan<'_>) -> Outcome<Self> {
        let id = hv::create()?;
        for (property, value) in [
            (Property::TscKhz, TSC_KHZ),
            (Property::X2Apic, plan.x2apic.into()),
        ] {
            hv::call(Hypercall::PartitionSet, [id, property.raw(), value]).ok()?;
        }
        let ram = Pages::take(layout::PAGES);
        ram.fill(0);
        layout::fill(ram, plan.code);
        map(id, 0, ram)?;
        let mut guest = Self {
            id,
            ram,
            pages: [None; MAX_VCPUS],
        };
        for vcpu in 0..plan.vcpus {
            guest.create(vcpu)?;
            guest.set_cpuid(vcpu, &cpuid::table(vcpu)).ok()?;
        }
        let mut state = start::state(plan.mode);
        state.apic_base = start::apic_base(plan.x2apic);
        guest.set_state(0, &state)?;
        Ok(guest)
    }

    /// Makes virtual CPU `vcpu`.
    #[track_caller]
    pub fn create(&mut self, vcpu: usize) -> Outcome {
        let page = Pages::take(1);
        page.fill(0);
        supply(self.id, || {
            hv::call(Hypercall::VcpuCreate, [self.id, vcpu as u64, page.pfn()])
        })?;
        self.pages[vcpu] = Some(page);
        Ok(())
    }

    /// Ends it, and with it everything that it was made of.
    #[track_caller]
    pub fn end(self) -> Outcome {
        hv::destroy(self.id).map(|_| ())
    }

    /// The page that virtual CPU `vcpu` shares with root, and which page that is.
    pub fn page_of(&self, vcpu: usize) -> Pages {
        self.pages[vcpu].unwrap_or_else(Pages::scratch)
    }

    /// The shared page of virtual CPU `vcpu`.
    pub fn shared(&self, vcpu: usize) -> &'static SharedPage {
        self.page_of(vcpu).shared()
    }

    /// The word at a guest physical address.
    pub fn word(&self, gpa: u64) -> &'static AtomicU64 {
        self.ram.word(gpa / 8)
    }

    /// What stands at a guest physical address.
    pub fn read(&self, gpa: u64) -> u64 {
        self.word(gpa).load(Ordering::Acquire)
    }

    /// State of virtual CPU `vcpu`.
    #[track_caller]
    pub fn state(&self, vcpu: usize) -> Outcome<VcpuState> {
        hv::call(Hypercall::VcpuGetState, [self.id, vcpu as u64]).ok()?;
        Ok(self.shared(vcpu).state.load())
    }

    /// Sets the state of virtual CPU `vcpu`.
    #[track_caller]
    pub fn set_state(&self, vcpu: usize, state: &VcpuState) -> Outcome {
        self.try_state(vcpu, state).ok().map(|_| ())
    }

    /// As [`Guest::set_state`], whatever it answers.
    pub fn try_state(&self, vcpu: usize, state: &VcpuState) -> hv::Answer {
        self.shared(vcpu).state.store(state);
        hv::call(Hypercall::VcpuSetState, [self.id, vcpu as u64])
    }

    /// Sets the answers of CPUID of virtual CPU `vcpu`, whatever the call answers.
    pub fn set_cpuid(&self, vcpu: usize, entries: &[CpuidEntry]) -> hv::Answer {
        let page = Pages::scratch();
        page.store(0, entries);
        let count = entries.len() as u64;
        hv::call(
            Hypercall::VcpuSetCpuid,
            [self.id, vcpu as u64, page.pfn(), count],
        )
    }

    /// Makes virtual CPU 0 begin [`layout::CODE`] again, with `change` made to its registers.
    #[track_caller]
    pub fn restart(&self, change: impl FnOnce(&mut VcpuState)) -> Outcome {
        let mut state = self.state(0)?;
        state.rip = layout::CODE;
        state.run_state = RunState::Runnable.raw();
        change(&mut state);
        self.set_state(0, &state)
    }
}

/// Maps pages at a guest page.
#[track_caller]
pub fn map(id: u64, gpa_pfn: u64, pages: Pages) -> Outcome {
    let list = Pages::scratch();
    list.store(
        0,
        &MapRange {
            gpa_pfn,
            pfn: pages.pfn(),
            pages: pages.count() as u32,
            flags: 0,
        },
    );
    let map = || hv::call(Hypercall::MemoryMap, [id, list.pfn(), 0, 1]);
    supply(id, map).map(|_| ())
}

/// Makes a call, and again after depositing what it says it needs.
#[track_caller]
fn supply(id: u64, call: impl Fn() -> hv::Answer) -> Outcome<u64> {
    for _ in 0..4 {
        let answer = call();
        match answer.status() {
            Some(Status::NeedPages) => {
                hv::deposit(id, answer.value)?;
            }
            _ => return answer.ok(),
        }
    }
    fail(format_args!("however much is deposited, more is needed"))
}
