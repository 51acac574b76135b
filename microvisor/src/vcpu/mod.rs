//! Virtual CPUs: their state, and the CPU that a guest sees. Their turns are in `partition::run`.

pub mod cpuid;
pub mod msr;
pub mod ring;
pub mod vlapic;

use core::sync::atomic::{AtomicU32, Ordering};

use guest_proto::shared::SharedPage;
use guest_proto::vcpu_page::{RunState, VcpuState};
use spin::{Mutex, MutexGuard};

use crate::arch::exit::BadState;
use crate::arch::hw::{Guest, Register, Window};
use crate::counters::ExitCounters;
use crate::memory::frame_table::PartitionId;
use crate::memory::physmap::Placed;
use crate::memory::pool::Pool;
use crate::memory::{Frame, Memory};
use cpuid::Leaf;
use ring::PostedRing;
use vlapic::{Address, Delivery, Message, TscRate, VLapic};

/// A virtual CPU, which lives in a frame of its partition's pool.
#[derive(Debug)]
pub struct Vcpu {
    partition: PartitionId,
    index: u8,
    /// The frame of root's that is its `VcpuPage`.
    page: Frame,
    /// Counts of its exits.
    pub counters: ExitCounters,
    /// The registers by which messages address it.
    address: AtomicU32,
    /// INIT and SIPI that have arrived since its last entry.
    signals: AtomicU32,
    local: Mutex<Local>,
}

/// INIT and SIPI that have arrived since they were last taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Signals {
    /// An INIT has arrived.
    pub init: bool,
    /// Vector of a SIPI that has arrived, after the INIT if there was one.
    pub startup: Option<u8>,
}

const SIGNAL_INIT: u32 = 1 << 8;
const SIGNAL_STARTUP: u32 = 1 << 9;

/// The work that the end of the last turn left to the beginning of the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pending {
    /// No work.
    None,
    /// The answer to a port read of this many bytes.
    PortRead(u8),
    /// The value of a RDMSR.
    MsrRead,
    /// The end of a WRMSR.
    MsrWrite,
    /// The emulation of a string instruction.
    String,
    /// The emulation of a memory access, or RAM where there was none.
    Memory,
    /// The emulation of an access to the vLAPIC's register at this offset.
    Apic(u32),
}

/// The parts of a virtual CPU that only the holder of the claim works on.
#[derive(Debug)]
pub struct Local {
    /// The hardware's part.
    pub hw: Guest,
    /// Answers of CPUID.
    pub cpuid: Placed<cpuid::Table>,
    /// Local APIC.
    pub lapic: VLapic,
    /// Posted writes.
    pub ring: PostedRing,
    /// Its state as root sees it: runnable, halted, or waiting for a SIPI.
    pub run_state: RunState,
    /// The work that the last turn left.
    pub pending: Pending,
    /// An NMI is in service.
    pub nmi_masked: bool,
    /// Address of the IRET that ends the service of an NMI, until it has been executed.
    pub nmi_return: Option<u64>,
    /// MSR TSC_ADJUST.
    pub tsc_adjust: u64,
    /// Root's TSC at the deadline that root knows of, or 0 for none.
    pub deadline: u64,
    /// The partition's properties have been taken over.
    prepared: bool,
}

impl Vcpu {
    /// Makes a virtual CPU in the state after INIT, whose CPUID answers from the table `cpuid`. Its `VcpuPage` is
    /// `page`, which is shared with `partition`.
    pub fn new(
        partition: PartitionId,
        index: u8,
        page: Frame,
        hw: Guest,
        cpuid: Placed<cpuid::Table>,
    ) -> Self {
        let boot = index == 0;
        let lapic = VLapic::new(index, boot, false, TscRate::from_khz(0));
        Self {
            partition,
            index,
            page,
            counters: ExitCounters::new(),
            address: AtomicU32::new(lapic.address().raw()),
            signals: AtomicU32::new(0),
            local: Mutex::new(Local {
                hw,
                cpuid,
                lapic,
                ring: PostedRing::new(),
                run_state: if boot {
                    RunState::Runnable
                } else {
                    RunState::WaitForSipi
                },
                pending: Pending::None,
                nmi_masked: false,
                nmi_return: None,
                tsc_adjust: 0,
                deadline: 0,
                prepared: false,
            }),
        }
    }

    /// Returns its index, which is its APIC id.
    pub fn index(&self) -> u8 {
        self.index
    }

    /// Claims it for this CPU alone, if no other CPU has claimed it.
    pub fn claim(&self) -> Option<MutexGuard<'_, Local>> {
        self.local.try_lock()
    }

    /// Returns the page that it shares with root.
    pub fn page<'a>(&self, memory: &'a Memory) -> Option<&'a SharedPage> {
        memory.map.shared_page(self.page)
    }

    /// Returns the registers by which messages address it.
    pub fn address(&self) -> Address {
        Address::from_raw(self.address.load(Ordering::Acquire))
    }

    /// Publishes the registers by which messages address it, after its APIC changed.
    pub fn publish(&self, lapic: &VLapic) {
        self.address.store(lapic.address().raw(), Ordering::Release);
    }

    /// Posts a message. Returns true if root must wake or kick the virtual CPU, so that it sees the message.
    pub fn post(&self, memory: &Memory, message: &Message) -> bool {
        let Some(page) = self.page(memory) else {
            return false;
        };
        match message.delivery {
            Delivery::Fixed | Delivery::LowestPriority => {
                page.posted.post(message.vector, message.level)
            }
            Delivery::Nmi => page.posted.post_nmi(),
            Delivery::Init => {
                self.signals.store(SIGNAL_INIT, Ordering::Release);
                true
            }
            Delivery::Startup => {
                let startup = SIGNAL_STARTUP | u32::from(message.vector);
                let add = |old| Some(old & SIGNAL_INIT | startup);
                // The closure always answers, so this always succeeds.
                let _ = self
                    .signals
                    .fetch_update(Ordering::AcqRel, Ordering::Acquire, add);
                true
            }
        }
    }

    /// Returns whether an INIT or SIPI has arrived.
    pub fn has_signals(&self) -> bool {
        self.signals.load(Ordering::Relaxed) != 0
    }

    /// Takes the INIT and SIPI that have arrived.
    pub fn take_signals(&self) -> Option<Signals> {
        if !self.has_signals() {
            return None;
        }
        let signals = self.signals.swap(0, Ordering::AcqRel);
        Some(Signals {
            init: signals & SIGNAL_INIT != 0,
            startup: (signals & SIGNAL_STARTUP != 0).then_some(signals as u8),
        })
    }

    /// Ends it: its page goes back to root, its frames to the pool. Returns whether the page went back.
    pub fn end(self, memory: &Memory, pool: &mut Pool) -> bool {
        let local = self.local.into_inner();
        for frame in local.hw.into_frames() {
            pool.put(memory, frame);
        }
        let (_, frame) = local.cpuid.into_parts();
        pool.put(memory, frame);
        memory
            .frames
            .page_unshare(self.page, self.partition)
            .is_ok()
    }
}

/// Bits of a virtual CPU's registers that depend on the host.
#[derive(Clone, Copy, Debug)]
pub struct Allowed {
    xcr0: u64,
    spec_ctrl: u64,
}

impl Allowed {
    /// Returns the bits that this host allows.
    pub fn on(host: impl Fn(u32, u32) -> Leaf) -> Self {
        Self {
            xcr0: cpuid::xcr0_allowed(&host),
            spec_ctrl: cpuid::spec_ctrl_allowed(&host),
        }
    }
}

impl Local {
    /// Takes the partition's properties over at the first call. It comes before any other use.
    pub fn prepare(&mut self, vcpu: &Vcpu, tsc_khz: u64, x2apic: bool) {
        if self.prepared {
            return;
        }
        self.prepared = true;
        let rate = TscRate::from_khz(tsc_khz);
        self.lapic = VLapic::new(vcpu.index, vcpu.index == 0, x2apic, rate);
        vcpu.publish(&self.lapic);
    }

    /// Returns EDX:EAX, the operand of WRMSR and XSETBV.
    pub fn edx_eax(&self) -> u64 {
        self.hw.read(Register::Rdx) << 32 | self.hw.read(Register::Rax) & 0xffff_ffff
    }

    /// Sets EDX:EAX, the result of RDMSR.
    pub fn set_edx_eax(&mut self, value: u64) {
        self.hw.write(Register::Rax, value & 0xffff_ffff);
        self.hw.write(Register::Rdx, value >> 32);
    }

    /// Takes an INIT signal.
    pub fn init(&mut self, vcpu: &Vcpu) {
        self.hw.init();
        self.lapic.init();
        vcpu.publish(&self.lapic);
        self.run_state = RunState::WaitForSipi;
        self.pending = Pending::None;
        self.nmi_masked = false;
        self.nmi_return = None;
        self.hw.watch_return(false);
        self.hw.set_window(Window::Closed);
    }

    /// Returns the whole state at guest TSC `now`.
    pub fn state(&self, now: u64) -> VcpuState {
        VcpuState {
            tsc: now,
            apic_base: self.lapic.apic_base(),
            run_state: self.run_state.raw(),
            ..self.hw.state()
        }
    }

    /// Sets the state. A reply to the last intercept is not waited for any more.
    ///
    /// # Errors
    ///
    /// Fails with [`BadState`], and changes nothing.
    pub fn set_state(
        &mut self,
        vcpu: &Vcpu,
        state: &VcpuState,
        allowed: &Allowed,
    ) -> Result<(), BadState> {
        let run_state = RunState::from_raw(state.run_state).ok_or(BadState)?;
        msr::write_pat(state.pat).map_err(|_| BadState)?;
        let xcr0 = cpuid::xcr0_is_valid(state.xcr0, allowed.xcr0 | 1);
        if state.spec_ctrl & !allowed.spec_ctrl != 0 {
            return Err(BadState);
        }
        let mode = VLapic::base_mode(state.apic_base).map_err(|_| BadState)?;
        self.hw.set_state(state, xcr0)?;
        if mode != self.lapic.mode() {
            self.lapic.restore_mode(mode);
            vcpu.publish(&self.lapic);
        }
        self.run_state = run_state;
        self.pending = Pending::None;
        Ok(())
    }
}
