//! The registers as the guest sees them: by number of an MSR in x2APIC mode, by offset in xAPIC mode.
//!
//! Both share one numbering: offset / 16 = MSR - 0x800. In x2APIC mode, reserved bits and absent
//! registers raise #GP (SDM vol. 3 §11.12.1.2); in xAPIC mode, the former are dropped and the
//! latter recorded in ESR.

use super::message::{Delivery, Destination, Message};
use super::timer::TimerMode;
use super::{
    ESR_ILLEGAL_REGISTER, ESR_SEND_ILLEGAL_VECTOR, Effect, GeneralProtection, Mode, SVR_ENABLE,
    VLapic,
};

/// First x2APIC MSR.
pub const MSR_X2APIC_FIRST: u32 = 0x800;
/// Last MSR of the x2APIC range.
pub const MSR_X2APIC_LAST: u32 = 0x8ff;
/// MSR TSC_DEADLINE.
pub const MSR_TSC_DEADLINE: u32 = 0x6e0;

/// Version 0x14, six LVT entries.
const VERSION: u32 = 0x0005_0014;
/// ICR: reserved bits of the low half. Delivery status (12) is read-only in xAPIC mode, and
/// ignored here in both.
const ICR_RESERVED: u32 = 0xfff3_2000;
const ICR_STATUS: u32 = 1 << 12;

/// Register numbers.
mod number {
    pub(super) const ID: u32 = 0x02;
    pub(super) const VERSION: u32 = 0x03;
    pub(super) const TPR: u32 = 0x08;
    pub(super) const APR: u32 = 0x09;
    pub(super) const PPR: u32 = 0x0a;
    pub(super) const EOI: u32 = 0x0b;
    pub(super) const RRD: u32 = 0x0c;
    pub(super) const LDR: u32 = 0x0d;
    pub(super) const DFR: u32 = 0x0e;
    pub(super) const SVR: u32 = 0x0f;
    pub(super) const ISR: u32 = 0x10;
    pub(super) const ISR_LAST: u32 = 0x17;
    pub(super) const TMR: u32 = 0x18;
    pub(super) const TMR_LAST: u32 = 0x1f;
    pub(super) const IRR: u32 = 0x20;
    pub(super) const IRR_LAST: u32 = 0x27;
    pub(super) const ESR: u32 = 0x28;
    pub(super) const ICR: u32 = 0x30;
    pub(super) const ICR_HIGH: u32 = 0x31;
    pub(super) const LVT_TIMER: u32 = 0x32;
    pub(super) const LVT_ERROR: u32 = 0x37;
    pub(super) const TIMER_INITIAL: u32 = 0x38;
    pub(super) const TIMER_CURRENT: u32 = 0x39;
    pub(super) const TIMER_DIVIDE: u32 = 0x3e;
    pub(super) const SELF_IPI: u32 = 0x3f;
}

/// The local vector table, in the order of its registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub(super) enum Lvt {
    Timer,
    Thermal,
    Performance,
    Lint0,
    Lint1,
    Error,
}

impl Lvt {
    pub(super) const COUNT: usize = 6;
    /// The mask bit, and an entry's value after reset.
    pub(super) const MASKED: u32 = 1 << 16;

    const ALL: [Self; Self::COUNT] = [
        Self::Timer,
        Self::Thermal,
        Self::Performance,
        Self::Lint0,
        Self::Lint1,
        Self::Error,
    ];

    fn from_number(register: u32) -> Option<Self> {
        Self::ALL
            .get(register.checked_sub(number::LVT_TIMER)? as usize)
            .copied()
    }

    /// Bits that the guest can write.
    fn writable(self) -> u32 {
        match self {
            Self::Timer => 0x0007_00ff,
            Self::Thermal | Self::Performance => 0x0001_07ff,
            Self::Lint0 | Self::Lint1 => 0x0001_a7ff,
            Self::Error => 0x0001_00ff,
        }
    }

    /// Read-only bits, whose written value is ignored: delivery status, remote IRR.
    fn ignored(self) -> u32 {
        match self {
            Self::Lint0 | Self::Lint1 => 0x5000,
            _ => 0x1000,
        }
    }

    /// Returns the effect of the entry when its source fires. Encodings without a meaning raise no interrupt.
    pub(super) fn delivery(self, entry: u32) -> Delivery {
        match self {
            Self::Timer | Self::Error => Delivery::Fixed,
            _ => Delivery::from_bits(entry >> 8).unwrap_or(Delivery::Init),
        }
    }
}

impl VLapic {
    /// Answers RDMSR of the x2APIC range or of TSC_DEADLINE, at guest TSC `now`.
    ///
    /// # Errors
    ///
    /// Fails outside of x2APIC mode, and for a register that does not exist or can only be written.
    pub fn read_msr(&mut self, msr: u32, now: u64) -> Result<u64, GeneralProtection> {
        if msr == MSR_TSC_DEADLINE {
            self.expire(now);
            return Ok(self.timer.tsc_deadline());
        }
        let register = self.x2apic_register(msr)?;
        match register {
            number::ICR => Ok(self.icr),
            number::ID => Ok(self.id.into()),
            number::LDR => Ok(u64::from(self.id >> 4) << 16 | 1 << (self.id & 15)),
            number::APR | number::RRD | number::DFR | number::EOI | number::ICR_HIGH => {
                Err(GeneralProtection)
            }
            _ => self
                .read(register, now)
                .map(u64::from)
                .ok_or(GeneralProtection),
        }
    }

    /// Answers WRMSR of the x2APIC range or of TSC_DEADLINE, at guest TSC `now`.
    ///
    /// # Errors
    ///
    /// Fails outside of x2APIC mode, for a register that does not exist or can only be read, and for reserved bits.
    pub fn write_msr(
        &mut self,
        msr: u32,
        value: u64,
        now: u64,
    ) -> Result<Effect, GeneralProtection> {
        if msr == MSR_TSC_DEADLINE {
            return Ok(self.set_timer(now, |timer| timer.set_tsc_deadline(value)));
        }
        let register = self.x2apic_register(msr)?;
        if register == number::ICR {
            if value as u32 & ICR_RESERVED != 0 {
                return Err(GeneralProtection);
            }
            self.icr = value & !u64::from(ICR_STATUS);
            return Ok(self.send(value as u32, (value >> 32) as u32, true));
        }
        let low = u32::try_from(value).map_err(|_| GeneralProtection)?;
        let reserved = match register {
            number::TPR | number::SELF_IPI => !0xff,
            number::EOI | number::ESR => !0,
            number::SVR => !0x3ff,
            number::TIMER_INITIAL => 0,
            number::TIMER_DIVIDE => !0b1011,
            number::LDR | number::DFR | number::ICR_HIGH => return Err(GeneralProtection),
            _ => match Lvt::from_number(register) {
                Some(Lvt::Timer) if TimerMode::from_lvt(low).is_none() => !0,
                Some(entry) => !(entry.writable() | entry.ignored()),
                None => return Err(GeneralProtection),
            },
        };
        if low & reserved != 0 {
            return Err(GeneralProtection);
        }
        if register == number::SELF_IPI {
            return Ok(self.send(1 << 18 | low, 0, true));
        }
        self.write(register, low, now).ok_or(GeneralProtection)
    }

    /// Reads the register at `offset` of the APIC page (bits 11:4 count) in xAPIC mode.
    pub fn read_register(&mut self, offset: u32, now: u64) -> u32 {
        match offset >> 4 & 0xff {
            number::ID => u32::from(self.id) << 24,
            number::LDR => u32::from(self.ldr) << 24,
            number::DFR if self.flat => u32::MAX,
            number::DFR => 0x0fff_ffff,
            number::ICR_HIGH => (self.icr >> 32) as u32,
            // Arbitration priority and remote read are gone since the Pentium 4; EOI reads as 0.
            number::APR | number::RRD | number::EOI => 0,
            register => self.read(register, now).unwrap_or_else(|| {
                self.error(ESR_ILLEGAL_REGISTER);
                0
            }),
        }
    }

    /// Writes the register at `offset` of the APIC page (bits 11:4 count) in xAPIC mode.
    pub fn write_register(&mut self, offset: u32, value: u32, now: u64) -> Effect {
        match offset >> 4 & 0xff {
            number::LDR => {
                self.ldr = (value >> 24) as u8;
                return Effect::Address;
            }
            number::DFR => {
                self.flat = value >> 28 == 15;
                return Effect::Address;
            }
            number::ICR_HIGH => {
                self.icr = self.icr & 0xffff_ffff | u64::from(value & 0xff00_0000) << 32;
            }
            number::ICR => {
                let low = value & !(ICR_RESERVED | ICR_STATUS);
                self.icr = self.icr & !0xffff_ffff | u64::from(low);
                return self.send(low, (self.icr >> 56) as u32, false);
            }
            // Read-only: writes are dropped. The id is the virtual CPU's index for good.
            number::ID
            | number::VERSION
            | number::APR..=number::PPR
            | number::RRD
            | number::ISR..=number::IRR_LAST
            | number::TIMER_CURRENT => {}
            register => {
                return self.write(register, value, now).unwrap_or_else(|| {
                    self.error(ESR_ILLEGAL_REGISTER);
                    Effect::None
                });
            }
        }
        Effect::None
    }

    fn x2apic_register(&self, msr: u32) -> Result<u32, GeneralProtection> {
        match self.mode {
            Mode::X2Apic if (MSR_X2APIC_FIRST..=MSR_X2APIC_LAST).contains(&msr) => {
                Ok(msr - MSR_X2APIC_FIRST)
            }
            _ => Err(GeneralProtection),
        }
    }

    /// Reads a register that reads the same in both modes.
    fn read(&mut self, register: u32, now: u64) -> Option<u32> {
        Some(match register {
            number::VERSION => VERSION,
            number::TPR => self.tpr.into(),
            number::PPR => self.processor_priority().into(),
            number::SVR => self.svr,
            number::ISR..=number::ISR_LAST => self.isr.register((register - number::ISR) as usize),
            number::TMR..=number::TMR_LAST => self.tmr.register((register - number::TMR) as usize),
            number::IRR..=number::IRR_LAST => self.irr.register((register - number::IRR) as usize),
            number::ESR => self.esr,
            number::ICR => self.icr as u32,
            number::LVT_TIMER..=number::LVT_ERROR => {
                self.lvt[(register - number::LVT_TIMER) as usize]
            }
            number::TIMER_INITIAL => self.timer.initial(),
            number::TIMER_CURRENT => {
                self.expire(now);
                self.timer.current(now)
            }
            number::TIMER_DIVIDE => self.timer.divide().into(),
            _ => return None,
        })
    }

    /// Writes a register that is written the same way in both modes. Reserved bits are dropped.
    fn write(&mut self, register: u32, value: u32, now: u64) -> Option<Effect> {
        match register {
            number::TPR => self.tpr = value as u8,
            number::EOI => return Some(self.eoi()),
            number::SVR => {
                self.svr = value & 0x3ff;
                if value & SVR_ENABLE == 0 {
                    // SDM vol. 3 §11.4.7.2: software can't clear the mask bits while disabled.
                    self.expire(now);
                    self.lvt.iter_mut().for_each(|entry| *entry |= Lvt::MASKED);
                }
                return Some(Effect::Address);
            }
            number::ESR => {
                self.esr = self.esr_new;
                self.esr_new = 0;
            }
            number::TIMER_INITIAL => {
                return Some(self.set_timer(now, |timer| timer.set_initial(value, now)));
            }
            number::TIMER_DIVIDE => {
                return Some(self.set_timer(now, |timer| timer.set_divide(value as u8, now)));
            }
            _ => self.write_lvt(Lvt::from_number(register)?, value, now),
        }
        Some(Effect::None)
    }

    fn write_lvt(&mut self, entry: Lvt, value: u32, now: u64) {
        let mut value = value & entry.writable();
        if self.svr & SVR_ENABLE == 0 {
            value |= Lvt::MASKED;
        }
        if entry == Lvt::Timer {
            // What expired under the old entry is raised, or not, by the old entry.
            self.expire(now);
            match TimerMode::from_lvt(value) {
                Some(mode) => self.timer.set_mode(mode),
                None => return,
            }
        }
        self.lvt[entry as usize] = value;
    }

    /// Returns the effect of a write to ICR.
    fn send(&mut self, low: u32, destination: u32, wide: bool) -> Effect {
        let Some(message) = Message::from_icr(low, destination, wide) else {
            return Effect::None;
        };
        if message.delivery.is_vector() && message.vector < 16 {
            self.error(ESR_SEND_ILLEGAL_VECTOR);
            return Effect::None;
        }
        let own = match message.destination {
            Destination::Own => true,
            Destination::Physical(id) => id == u32::from(self.id),
            _ => false,
        };
        match message.delivery {
            Delivery::Fixed | Delivery::LowestPriority if own => self.post(message.vector, false),
            Delivery::Nmi if own => self.post_nmi(),
            _ => return Effect::Send(message),
        }
        Effect::None
    }
}
