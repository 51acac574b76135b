//! The virtual local APIC: a state machine without I/O, locks or a clock of its own.
//!
//! Sources: Intel SDM vol. 3 ch. 11 (APIC), APM vol. 2 ch. 16. The caller gives the guest's TSC
//! where time matters, and carries out the [`Effect`] of a write. [`registers`] is the
//! guest's view, [`timer`] the timer, [`message`] how interrupts address virtual CPUs.
//!
//! The id is the virtual CPU's index, and the base is [`DEFAULT_BASE`]; neither changes. There is no
//! CMCI, no SMI, no ExtINT and no suppression of EOI broadcasts.

pub mod message;
pub mod registers;
pub mod timer;
mod vectors;

use guest_proto::posted::Posted;

use super::msr::GeneralProtection;

pub use message::{Address, Delivery, Destination, Message};
pub use timer::TscRate;

use registers::Lvt;
use timer::Timer;
use vectors::VectorSet;

/// Address of the registers of an APIC in xAPIC mode.
pub const DEFAULT_BASE: u64 = 0xfee0_0000;

/// MSR APIC_BASE: this is the boot CPU.
const BASE_BOOT_CPU: u64 = 1 << 8;
/// MSR APIC_BASE: x2APIC mode.
const BASE_X2APIC: u64 = 1 << 10;
/// MSR APIC_BASE: enabled.
const BASE_ENABLE: u64 = 1 << 11;

/// SVR: the APIC is enabled by software.
const SVR_ENABLE: u32 = 1 << 8;

/// NMIs that wait while none is in service: the CPU is about to take one and holds another.
const MAX_NMIS: u8 = 2;

/// ESR: tried to send a vector below 16.
const ESR_SEND_ILLEGAL_VECTOR: u32 = 1 << 5;
/// ESR: received a vector below 16.
const ESR_RECEIVE_ILLEGAL_VECTOR: u32 = 1 << 6;
/// ESR: access to a register that does not exist (xAPIC mode only).
const ESR_ILLEGAL_REGISTER: u32 = 1 << 7;

/// The way in which the guest reaches its APIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// The guest does not reach it, and it delivers no interrupt.
    Disabled,
    /// The guest accesses memory at [`DEFAULT_BASE`].
    XApic,
    /// The guest accesses MSRs.
    X2Apic,
}

/// The work that a write leaves to the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Effect {
    /// Only [`VLapic::next_interrupt`] and [`VLapic::deadline`] may have changed.
    None,
    /// Only [`VLapic::deadline`] may have changed.
    Timer,
    /// [`VLapic::address`] may have changed.
    Address,
    /// The service of this level-triggered vector ended: tell its source.
    LevelEoi(u8),
    /// Deliver this message to other virtual CPUs, and to this one if it is a target.
    Send(Message),
}

/// A virtual local APIC.
#[derive(Debug)]
pub struct VLapic {
    /// Vectors that are requested, and not yet in service.
    irr: VectorSet,
    /// Vectors in service.
    isr: VectorSet,
    /// Those of the vectors requested or in service that are level-triggered.
    tmr: VectorSet,
    timer: Timer,
    icr: u64,
    lvt: [u32; Lvt::COUNT],
    svr: u32,
    /// Logical destination, xAPIC mode only.
    ldr: u8,
    /// xAPIC mode only: logical destinations are flat bit sets, not clusters.
    flat: bool,
    tpr: u8,
    id: u8,
    boot_cpu: bool,
    /// NMIs that wait for their injection, up to [`MAX_NMIS`].
    nmis: u8,
    mode: Mode,
    /// Errors as the guest reads them.
    esr: u32,
    /// Errors since the guest last wrote ESR.
    esr_new: u32,
}

impl VLapic {
    /// Makes an APIC after power-up. `id` is the virtual CPU's index. With `x2apic` the APIC starts in x2APIC mode,
    /// as firmware leaves it.
    pub fn new(id: u8, boot_cpu: bool, x2apic: bool, rate: TscRate) -> Self {
        Self {
            irr: VectorSet::EMPTY,
            isr: VectorSet::EMPTY,
            tmr: VectorSet::EMPTY,
            timer: Timer::new(rate),
            icr: 0,
            lvt: [Lvt::MASKED; Lvt::COUNT],
            svr: 0xff,
            ldr: 0,
            flat: true,
            tpr: 0,
            id,
            boot_cpu,
            nmis: 0,
            mode: if x2apic { Mode::X2Apic } else { Mode::XApic },
            esr: 0,
            esr_new: 0,
        }
    }

    /// Takes an INIT signal: sets everything but the id, the mode and the base to its reset value.
    pub fn init(&mut self) {
        let mode = self.mode;
        *self = Self::new(self.id, self.boot_cpu, false, self.timer.rate());
        self.mode = mode;
    }

    /// Returns the way in which the guest reaches the APIC now.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// Returns the offset of the register that a guest physical address leads to, in xAPIC mode.
    pub fn register_at(&self, address: u64) -> Option<u32> {
        const OFFSET: u64 = 0xfff;
        const REGISTER: u64 = 0xff0;
        let is_here = self.mode == Mode::XApic && address & !OFFSET == DEFAULT_BASE;
        is_here.then_some((address & REGISTER) as u32)
    }

    /// Returns MSR APIC_BASE.
    pub fn apic_base(&self) -> u64 {
        let mode = match self.mode {
            Mode::Disabled => 0,
            Mode::XApic => BASE_ENABLE,
            Mode::X2Apic => BASE_ENABLE | BASE_X2APIC,
        };
        DEFAULT_BASE | mode | if self.boot_cpu { BASE_BOOT_CPU } else { 0 }
    }

    /// Writes MSR APIC_BASE. The base can't be moved, the boot CPU bit can't be changed.
    ///
    /// # Errors
    ///
    /// Fails for reserved bits, another base, and the transitions that SDM vol. 3 §11.12.5 forbids.
    pub fn set_apic_base(&mut self, value: u64) -> Result<(), GeneralProtection> {
        let mode = Self::base_mode(value)?;
        match (self.mode, mode) {
            (Mode::X2Apic, Mode::XApic) | (Mode::Disabled, Mode::X2Apic) => {
                return Err(GeneralProtection);
            }
            (Mode::XApic | Mode::X2Apic, Mode::Disabled) => self.init(),
            // The destination's place in ICR changes, its value does not count (§11.12.5.1).
            (Mode::XApic, Mode::X2Apic) => self.icr &= 0xffff_ffff,
            _ => {}
        }
        self.mode = mode;
        Ok(())
    }

    /// Returns the mode that a value of MSR APIC_BASE means.
    ///
    /// # Errors
    ///
    /// Fails for reserved bits and for another base.
    pub fn base_mode(value: u64) -> Result<Mode, GeneralProtection> {
        if value & !(BASE_BOOT_CPU | BASE_X2APIC | BASE_ENABLE) != DEFAULT_BASE {
            return Err(GeneralProtection);
        }
        match (value & BASE_ENABLE != 0, value & BASE_X2APIC != 0) {
            (false, false) => Ok(Mode::Disabled),
            (true, false) => Ok(Mode::XApic),
            (true, true) => Ok(Mode::X2Apic),
            (false, true) => Err(GeneralProtection),
        }
    }

    /// Sets the mode of a saved state, without the checks of a guest's write.
    pub fn restore_mode(&mut self, mode: Mode) {
        self.mode = mode;
    }

    /// Returns the registers by which messages address the APIC. Publish them after [`VLapic::set_apic_base`],
    /// [`VLapic::init`] and every write.
    pub fn address(&self) -> Address {
        Address::new(self.mode, self.is_enabled(), self.ldr, self.flat)
    }

    /// Returns whether the APIC accepts fixed interrupts: hardware and software have enabled it.
    fn is_enabled(&self) -> bool {
        self.mode != Mode::Disabled && self.svr & SVR_ENABLE != 0
    }

    /// Returns CR8, the task priority's class.
    #[inline]
    pub fn cr8(&self) -> u8 {
        self.tpr >> 4
    }

    /// Writes CR8, by the guest or from the CPU. The caller refuses bits above 3:0.
    #[inline]
    pub fn set_cr8(&mut self, value: u8) {
        // V_TPR can't hold the sub-class: keep it where the class is what it was.
        if self.tpr >> 4 != value & 0xf {
            self.tpr = value << 4;
        }
    }

    /// Returns the processor priority: that of the task, or the class in service where that is higher.
    #[inline]
    pub fn processor_priority(&self) -> u8 {
        let in_service = self.isr.highest().unwrap_or(0) & 0xf0;
        if self.tpr & 0xf0 >= in_service {
            self.tpr
        } else {
            in_service
        }
    }

    /// Requests an interrupt.
    pub fn post(&mut self, vector: u8, level: bool) {
        if !self.is_enabled() {
            return;
        }
        if vector < 16 {
            self.error(ESR_RECEIVE_ILLEGAL_VECTOR);
            return;
        }
        self.irr.insert(vector);
        if level {
            self.tmr.insert(vector);
        } else {
            self.tmr.remove(vector);
        }
    }

    /// Takes over the interrupts and NMIs that others posted.
    pub fn merge(&mut self, posted: &Posted) {
        self.add_nmis(posted.nmis);
        let mut pending = VectorSet::from(posted.pending);
        let illegal = pending.take_illegal();
        if !self.is_enabled() {
            return;
        }
        if illegal {
            self.error(ESR_RECEIVE_ILLEGAL_VECTOR);
        }
        self.irr.union(&pending);
        self.tmr.replace(&pending, &VectorSet::from(posted.level));
    }

    /// Takes NMIs that arrive.
    pub fn post_nmi(&mut self) {
        self.add_nmis(1);
    }

    fn add_nmis(&mut self, count: u32) {
        if self.mode != Mode::Disabled {
            let all = count.saturating_add(self.nmis.into());
            self.nmis = all.min(MAX_NMIS.into()) as u8;
        }
    }

    /// Returns whether an NMI waits for its injection.
    #[inline]
    pub fn has_nmi(&self) -> bool {
        self.nmis != 0
    }

    /// Notes that an NMI that waited is injected now.
    pub fn accept_nmi(&mut self) {
        self.nmis = self.nmis.saturating_sub(1);
    }

    /// Lets one NMI wait at most, because one is in service.
    pub fn nmi_is_in_service(&mut self) {
        self.nmis = self.nmis.min(1);
    }

    /// Returns the interrupt to inject next, if one outranks the processor priority.
    #[inline]
    pub fn next_interrupt(&self) -> Option<u8> {
        self.irr
            .highest()
            .filter(|vector| vector & 0xf0 > self.processor_priority() & 0xf0)
    }

    /// Returns the highest request, whether or not the processor priority lets it through. If
    /// [`VLapic::next_interrupt`] returns `None` at the same time, a lower CR8 or an EOI lets the request in.
    #[inline]
    pub fn highest_request(&self) -> Option<u8> {
        self.irr.highest()
    }

    /// Notes that the processor takes the interrupt, which is in service from now on.
    #[inline]
    pub fn accept(&mut self, vector: u8) {
        self.irr.remove(vector);
        self.isr.insert(vector);
    }

    /// Makes an accepted interrupt, which could not be delivered after all, a request again.
    pub fn unaccept(&mut self, vector: u8) {
        self.isr.remove(vector);
        self.irr.insert(vector);
    }

    /// Ends the service of the highest vector in service.
    #[inline]
    fn eoi(&mut self) -> Effect {
        let Some(vector) = self.isr.highest() else {
            return Effect::None;
        };
        self.isr.remove(vector);
        if self.tmr.contains(vector) {
            Effect::LevelEoi(vector)
        } else {
            Effect::None
        }
    }

    /// Returns the guest TSC at which the timer next raises an interrupt.
    #[inline]
    pub fn deadline(&self) -> Option<u64> {
        let unmasked = self.lvt[Lvt::Timer as usize] & Lvt::MASKED == 0;
        self.timer.deadline().filter(|_| unmasked)
    }

    /// Raises the timer's interrupt if its deadline has passed. Periods that were missed
    /// altogether raise one interrupt. Returns whether the deadline had passed.
    #[inline]
    pub fn expire(&mut self, now: u64) -> bool {
        let is_over = self.timer.expire(now);
        if is_over {
            self.trigger(Lvt::Timer);
        }
        is_over
    }

    /// Changes the timer by `change`, at guest TSC `now`. What has expired before is raised before.
    fn set_timer(&mut self, now: u64, change: impl FnOnce(&mut Timer)) -> Effect {
        let was_over = self.expire(now);
        change(&mut self.timer);
        if self.expire(now) || was_over {
            Effect::None
        } else {
            Effect::Timer
        }
    }

    /// Notes that the guest's TSC jumped by `delta`. Deadlines that are not in terms of the TSC do not change in time.
    pub fn adjust_tsc(&mut self, delta: i64) {
        self.timer.adjust_tsc(delta);
    }

    /// Raises the interrupt of a local source.
    fn trigger(&mut self, source: Lvt) {
        let entry = self.lvt[source as usize];
        if entry & Lvt::MASKED == 0 {
            match source.delivery(entry) {
                Delivery::Fixed => self.post(entry as u8, false),
                Delivery::Nmi => self.post_nmi(),
                _ => {}
            }
        }
    }

    /// Records an error; the guest sees it after its next write to ESR.
    fn error(&mut self, bit: u32) {
        if self.esr_new & bit != 0 {
            return;
        }
        self.esr_new |= bit;
        let entry = self.lvt[Lvt::Error as usize];
        // Not through `post`: an illegal vector in this very entry would come back here.
        if entry & Lvt::MASKED == 0 && entry as u8 >= 16 && self.is_enabled() {
            self.irr.insert(entry as u8);
            self.tmr.remove(entry as u8);
        }
    }
}

#[cfg(test)]
mod tests;
