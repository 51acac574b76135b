//! The virtual machine control block (APM vol. 2 appendix B).

/// An exit code of the control block, narrowed to 32 bits: QEMU 10.0 writes VMEXIT_INVALID as
/// 0x00000000ffffffff.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExitCode(pub u32);

impl ExitCode {
    /// INIT signal.
    pub const INIT: Self = Self(0x63);
    /// CPUID.
    pub const CPUID: Self = Self(0x72);
    /// Protected model-specific register.
    pub const MSR: Self = Self(0x7c);
    /// Triple fault.
    pub const SHUTDOWN: Self = Self(0x7f);
    /// VMMCALL.
    pub const VMMCALL: Self = Self(0x81);
    /// Nested page fault.
    pub const NESTED_FAULT: Self = Self(0x400);

    /// One of SVM's own instructions, INVLPGA or SKINIT.
    pub const fn is_svm_instruction(self) -> bool {
        matches!(self.0, 0x7a | 0x80 | 0x82..=0x86)
    }
}

/// An exception to inject.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// #UD.
    InvalidOpcode,
    /// #GP(0).
    GeneralProtection,
}

/// A field: offset in the block. 64 bits wide unless the name says otherwise.
#[derive(Clone, Copy)]
struct At(usize);

const INTERCEPTS_3: At = At(0x00c);
const INTERCEPTS_4: At = At(0x010);
const MSR_PERMISSIONS: At = At(0x048);
const ASID: At = At(0x058);
const EXIT_CODE: At = At(0x070);
const EXIT_INFO_1: At = At(0x078);
const EXIT_INFO_2: At = At(0x080);
const NESTED_ENABLE: At = At(0x090);
const EVENT_INJECTION: At = At(0x0a8);
const NESTED_CR3: At = At(0x0b0);
const SEGMENTS: usize = 0x400;
const EFER: At = At(0x4d0);
const CPL: usize = 0x4cb;
const CR4: At = At(0x548);
const CR3: At = At(0x550);
const CR0: At = At(0x558);
const DR7: At = At(0x560);
const DR6: At = At(0x568);
const RFLAGS: At = At(0x570);
const RIP: At = At(0x578);
const RAX: At = At(0x5f8);
const PAT: At = At(0x668);

const EFER_SVME: u64 = 1 << 12;
/// PAT after reset (APM vol. 2 §7.8.2).
const PAT_RESET: u64 = 0x0007_0406_0007_0406;

/// Intercepts of root, vector 3: INIT, CPUID, INVLPGA, MSRs, shutdown.
const ROOT_INTERCEPTS_3: u32 = 1 << 3 | 1 << 18 | 1 << 26 | 1 << 28 | 1 << 31;
/// Intercepts of root, vector 4: VMRUN (which must be), VMMCALL, VMLOAD, VMSAVE, STGI, CLGI, SKINIT.
const ROOT_INTERCEPTS_4: u32 = 0x7f;

/// Where and how a CPU of VM 0 begins: in 64-bit mode.
#[derive(Clone, Copy, Debug)]
pub struct Start {
    /// First instruction.
    pub rip: u64,
    /// Its page tables.
    pub cr3: u64,
    /// Its descriptor table: code at 0x10, data at 0x18, as the Linux boot protocol asks.
    pub gdt: u64,
}

/// The control block, one page.
#[repr(C, align(4096))]
#[derive(Debug)]
pub struct Vmcb([u8; 4096]);

impl Vmcb {
    /// All zeros.
    pub(super) const fn new() -> Self {
        Self([0; 4096])
    }

    fn get(&self, At(offset): At) -> u64 {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&self.0[offset..offset + 8]);
        u64::from_le_bytes(bytes)
    }

    fn set(&mut self, At(offset): At, value: u64) {
        self.0[offset..offset + 8].copy_from_slice(&value.to_le_bytes());
    }

    fn set_u32(&mut self, At(offset): At, value: u32) {
        self.0[offset..offset + 4].copy_from_slice(&value.to_le_bytes());
    }

    fn set_segment(&mut self, index: usize, selector: u16, attributes: u16, limit: u32, base: u64) {
        let at = SEGMENTS + 16 * index;
        self.0[at..at + 2].copy_from_slice(&selector.to_le_bytes());
        self.0[at + 2..at + 4].copy_from_slice(&attributes.to_le_bytes());
        self.set_u32(At(at + 4), limit);
        self.set(At(at + 8), base);
    }

    /// Intercepts and maps of the root partition.
    pub(super) fn init_root(&mut self, msr_permissions: u64, nested_root: u64) {
        self.set_u32(INTERCEPTS_3, ROOT_INTERCEPTS_3);
        self.set_u32(INTERCEPTS_4, ROOT_INTERCEPTS_4);
        self.set(MSR_PERMISSIONS, msr_permissions);
        self.set_u32(ASID, 1);
        self.set(NESTED_ENABLE, 1);
        self.set(NESTED_CR3, nested_root);
        self.set(PAT, PAT_RESET);
    }

    /// A CPU in 64-bit mode on identity page tables, interrupts off. NXE is set: Linux's wakeup
    /// trampoline meets no-execute pages before it sets it by itself.
    pub fn start(&mut self, start: &Start) {
        const CODE: u16 = 0xa9b;
        const DATA: u16 = 0xc93;
        const ES: usize = 0;
        const CS: usize = 1;
        for index in ES..=5 {
            self.set_segment(index, 0x18, DATA, u32::MAX, 0);
        }
        self.set_segment(CS, 0x10, CODE, u32::MAX, 0);
        self.set_segment(6, 0, 0, 31, start.gdt);
        self.set_segment(7, 0, 0x82, 0xffff, 0);
        self.set_segment(8, 0, 0, 0, 0);
        self.set_segment(9, 0, 0x8b, 0xffff, 0);
        self.set(EFER, EFER_SVME | 1 << 11 | 1 << 10 | 1 << 8);
        self.set(CR0, 0x8001_0033);
        self.set(CR3, start.cr3);
        self.set(CR4, 0x20);
        self.set(DR6, 0xffff_0ff0);
        self.set(DR7, 0x400);
        self.set(RFLAGS, 2);
        self.set(RIP, start.rip);
    }

    /// Why the guest stopped.
    pub fn exit_code(&self) -> ExitCode {
        ExitCode(self.get(EXIT_CODE) as u32)
    }

    /// EXITINFO1 and EXITINFO2.
    pub fn exit_info(&self) -> (u64, u64) {
        (self.get(EXIT_INFO_1), self.get(EXIT_INFO_2))
    }

    /// RAX.
    pub fn rax(&self) -> u64 {
        self.get(RAX)
    }

    /// Sets RAX.
    pub fn set_rax(&mut self, value: u64) {
        self.set(RAX, value);
    }

    /// Instruction pointer.
    pub fn rip(&self) -> u64 {
        self.get(RIP)
    }

    /// Skips an instruction of `length` bytes.
    pub fn advance(&mut self, length: u64) {
        let rip = self.get(RIP).wrapping_add(length);
        self.set(RIP, rip);
    }

    /// Current privilege level.
    pub fn cpl(&self) -> u8 {
        self.0[CPL]
    }

    /// Control register 4.
    pub fn cr4(&self) -> u64 {
        self.get(CR4)
    }

    /// EFER as the guest sees it: without SVME.
    pub fn efer(&self) -> u64 {
        self.get(EFER) & !EFER_SVME
    }

    /// Sets EFER; SVME stays.
    pub fn set_efer(&mut self, value: u64) {
        self.set(EFER, value | EFER_SVME);
    }

    /// Injects an exception at the next entry.
    pub fn inject(&mut self, event: Event) {
        const VALID: u64 = 1 << 31;
        const EXCEPTION: u64 = 3 << 8;
        const ERROR_CODE: u64 = 1 << 11;
        let event = match event {
            Event::InvalidOpcode => 6,
            Event::GeneralProtection => 13 | ERROR_CODE,
        };
        self.set(EVENT_INJECTION, VALID | EXCEPTION | event);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn svme_is_hidden_and_cannot_be_cleared() {
        let mut vmcb = Vmcb::new();
        vmcb.set_efer(1 << 8);
        assert_eq!(vmcb.efer(), 1 << 8);
        assert_eq!(vmcb.get(EFER), 1 << 8 | EFER_SVME);
    }

    #[test]
    fn invalid_is_read_as_32_bits() {
        let mut vmcb = Vmcb::new();
        for raw in [u64::MAX, 0xffff_ffff] {
            vmcb.set(EXIT_CODE, raw);
            assert_eq!(vmcb.exit_code(), ExitCode(u32::MAX));
        }
    }
}
