//! This CPU's local APIC, first by memory (xAPIC), then by model-specific registers (x2APIC).

use crate::cpu;

/// Vector of the interrupts whose handler ends them by memory.
pub const XAPIC_VECTOR: u8 = 0x40;
/// Vector of the interrupts whose handler ends them by model-specific register.
pub const X2APIC_VECTOR: u8 = 0x41;

/// Registers, by their offset in the page.
pub mod register {
    /// ID.
    pub const ID: u32 = 0x20;
    /// Spurious-interrupt vector, and the bit that enables the APIC.
    pub const SPURIOUS: u32 = 0xf0;
    /// Interrupt command, lower half.
    pub const COMMAND: u32 = 0x300;
    /// Timer's entry in the local vector table.
    pub const TIMER: u32 = 0x320;
    /// Timer's initial count.
    pub const TIMER_INITIAL: u32 = 0x380;
    /// Timer's divider.
    pub const TIMER_DIVIDE: u32 = 0x3e0;
}

const PAGE: u64 = 0xfee0_0000;
const BASE: u32 = 0x1b;
const X2APIC_ENABLED: u64 = 1 << 10;
const APIC_ENABLED: u64 = 1 << 11;
/// What a command needs to send a vector to the CPU itself.
const TO_SELF: u32 = 0b01 << 18;
/// The self-IPI register of the x2APIC.
const SELF_IPI: u32 = 0x83f;
/// In an entry of the local vector table: no interrupt.
pub const MASKED: u32 = 1 << 16;
const DIVIDE_BY_1: u32 = 0b1011;
const ENABLED: u32 = 0x1ff;

/// Masks the legacy interrupt controllers.
pub fn disable_legacy() {
    for port in [0x21, 0xa1] {
        cpu::write_port(port, 0xff);
    }
}

/// Has an input of the I/O APIC, which the first CPU takes as edges, come as a vector; or masks it (IOAPIC 82093AA, 3.2).
pub fn route(input: u32, vector: Option<u8>) {
    const INDEX: u64 = 0xfec0_0000;
    const DATA: u64 = 0xfec0_0010;
    const TABLE: u32 = 0x10;
    // The mask is in the first half, which comes last.
    for (half, value) in [(1, 0), (0, vector.map_or(MASKED, u32::from))] {
        cpu::write(INDEX, TABLE + 2 * input + half);
        cpu::write(DATA, value);
    }
}

/// The way to the registers.
#[derive(Clone, Copy)]
pub enum Apic {
    /// By memory.
    Xapic,
    /// By model-specific registers.
    X2apic,
}

impl Apic {
    /// Returns the APIC in xAPIC mode. Firmware, or a hypervisor in its place, may have left it in x2APIC mode, from
    /// which only a disabled APIC leads back.
    pub fn xapic() -> Self {
        let base = cpu::read_msr(BASE);
        if base & X2APIC_ENABLED != 0 {
            let disabled = base & !(X2APIC_ENABLED | APIC_ENABLED);
            cpu::write_msr(BASE, disabled);
            cpu::write_msr(BASE, disabled | APIC_ENABLED);
        }
        Self::Xapic
    }

    /// Returns the APIC in x2APIC mode, if the CPU has that.
    pub fn x2apic() -> Option<Self> {
        const X2APIC: u32 = 1 << 21;
        if cpu::cpuid(1, 0).ecx & X2APIC == 0 {
            return None;
        }
        cpu::write_msr(BASE, cpu::read_msr(BASE) | X2APIC_ENABLED);
        Some(Self::X2apic)
    }

    /// Enables the APIC, with a timer that counts at the full rate and does not interrupt.
    pub fn enable(self) {
        self.write(register::SPURIOUS, ENABLED);
        self.write(register::TIMER, MASKED);
        self.write(register::TIMER_DIVIDE, DIVIDE_BY_1);
    }

    /// Reads a register.
    pub fn read(self, register: u32) -> u32 {
        match self {
            Self::Xapic => cpu::read(PAGE + u64::from(register)),
            Self::X2apic => cpu::read_msr(0x800 + register / 16) as u32,
        }
    }

    /// Writes a register.
    pub fn write(self, register: u32, value: u32) {
        match self {
            Self::Xapic => cpu::write(PAGE + u64::from(register), value),
            Self::X2apic => cpu::write_msr(0x800 + register / 16, value.into()),
        }
    }

    /// Sends this CPU an interrupt.
    pub fn interrupt_self(self) {
        let vector = u32::from(self.vector());
        match self {
            Self::Xapic => self.write(register::COMMAND, TO_SELF | vector),
            Self::X2apic => cpu::write_msr(SELF_IPI, vector.into()),
        }
    }

    /// Sends another CPU an interrupt, in x2APIC mode.
    pub fn interrupt(self, id: u32) {
        self.command(id, X2APIC_VECTOR.into());
    }

    /// Starts another CPU at an address below 1 MiB, in x2APIC mode (Intel SDM volume 3, "MP initialization").
    pub fn start(self, id: u32, address: u64) {
        const INIT: u32 = 0b101 << 8;
        const STARTUP: u32 = 0b110 << 8;
        const ASSERT: u32 = 1 << 14;
        self.command(id, ASSERT | INIT);
        self.command(id, ASSERT | STARTUP | (address >> 12) as u32);
    }

    fn command(self, id: u32, command: u32) {
        const X2APIC_COMMAND: u32 = 0x830;
        cpu::write_msr(X2APIC_COMMAND, u64::from(id) << 32 | u64::from(command));
    }

    /// Has the timer interrupt once after so many ticks of the APIC's clock.
    pub fn arm_timer(self, ticks: u32) {
        self.write(register::TIMER, self.vector().into());
        self.write(register::TIMER_INITIAL, ticks);
    }

    /// Returns the vector whose handler ends its interrupts in this way.
    fn vector(self) -> u8 {
        match self {
            Self::Xapic => XAPIC_VECTOR,
            Self::X2apic => X2APIC_VECTOR,
        }
    }
}
