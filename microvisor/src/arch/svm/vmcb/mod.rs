//! The virtual machine control block (APM vol. 2 appendix B).

use guest_proto::vcpu_page::Segment;

use crate::arch::hw::RawExit;

mod events;
mod exit_code;
mod intercepts;
mod start;

pub(super) use exit_code::ExitCode;
pub use start::Start;

/// A field: offset in the block. 64 bits wide unless the name says otherwise.
#[derive(Clone, Copy)]
struct At(usize);

const INTERCEPTS_DR: At = At(0x004);
const INTERCEPTS_EXCEPTION: At = At(0x008);
const INTERCEPTS_3: At = At(0x00c);
const INTERCEPTS_4: At = At(0x010);
const PORT_PERMISSIONS: At = At(0x040);
const MSR_PERMISSIONS: At = At(0x048);
const TSC_OFFSET: At = At(0x050);
const ASID: At = At(0x058);
const TLB_CONTROL: usize = 0x05c;
/// V_TPR, V_IRQ, V_INTR_PRIO, V_IGN_TPR, V_INTR_MASKING, V_INTR_VECTOR.
const VIRTUAL_INTERRUPT: At = At(0x060);
const INTERRUPT_SHADOW: At = At(0x068);
const EXIT_CODE: At = At(0x070);
const EXIT_INFO_1: At = At(0x078);
const EXIT_INFO_2: At = At(0x080);
const INTERRUPTED_EVENT: At = At(0x088);
const NESTED_ENABLE: At = At(0x090);
const EVENT_INJECTION: At = At(0x0a8);
const NESTED_CR3: At = At(0x0b0);
const NEXT_RIP: At = At(0x0c8);
const INSTRUCTION_LEN: usize = 0x0d0;
const INSTRUCTION: usize = 0x0d1;
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
const RSP: At = At(0x5d8);
const RAX: At = At(0x5f8);
/// STAR, LSTAR, CSTAR, SFMASK, kernel GS base, SYSENTER_CS, ESP, EIP, one after the other.
const SYSCALL: usize = 0x600;
const CR2: At = At(0x640);
const PAT: At = At(0x668);
/// Where the CPU has virtual SPEC_CTRL.
const SPEC_CTRL: At = At(0x6e0);

const EFER_SVME: u64 = 1 << 12;
/// PAT after reset (APM vol. 2 §7.8.2).
const PAT_RESET: u64 = 0x0007_0406_0007_0406;

/// The control block, one page.
#[repr(C, align(4096))]
#[derive(Debug)]
pub struct Vmcb([u8; 4096]);

impl Vmcb {
    /// All zeros.
    pub const fn zeroed() -> Self {
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

    fn get_u32(&self, At(offset): At) -> u32 {
        let mut bytes = [0; 4];
        bytes.copy_from_slice(&self.0[offset..offset + 4]);
        u32::from_le_bytes(bytes)
    }

    /// Index of CS and of SS among the segments; 0 to 5 are in the order of their encoding.
    const CS: usize = 1;
    pub(super) const SS: usize = 2;
    /// Index of the global descriptor table.
    pub(super) const GDTR: usize = 6;
    /// Index of the local descriptor table.
    pub(super) const LDTR: usize = 7;
    /// Index of the interrupt descriptor table.
    pub(super) const IDTR: usize = 8;
    /// Index of the task register.
    pub(super) const TR: usize = 9;

    pub(super) fn segment(&self, index: usize) -> Segment {
        let at = SEGMENTS + 16 * index;
        let low = self.get(At(at));
        Segment {
            selector: low as u16,
            attributes: (low >> 16) as u16,
            limit: (low >> 32) as u32,
            base: self.get(At(at + 8)),
        }
    }

    pub(super) fn set_segment(&mut self, index: usize, segment: &Segment) {
        let at = SEGMENTS + 16 * index;
        let low = u64::from(segment.selector)
            | u64::from(segment.attributes) << 16
            | u64::from(segment.limit) << 32;
        self.set(At(at), low);
        self.set(At(at + 8), segment.base);
    }

    /// The top table of the nested map.
    pub(super) fn set_nested_map(&mut self, top: u64) {
        self.set(NESTED_CR3, top);
    }

    /// Flushes the TLB at the next entry. All of it: CPUs without flush by ASID know only this.
    pub(super) fn flush_next(&mut self) {
        const FLUSH_ALL: u8 = 1;
        self.0[TLB_CONTROL] = FLUSH_ALL;
    }

    /// What holds for one entry only has been done, unless the CPU refused the entry.
    pub(super) fn entered(&mut self) {
        if !self.exit_code().is_refusal() {
            self.0[TLB_CONTROL] = 0;
        }
    }

    /// Why the guest stopped.
    pub(super) fn exit_code(&self) -> ExitCode {
        ExitCode(self.get(EXIT_CODE) as u32)
    }

    /// EXITINFO1 and EXITINFO2.
    pub(super) fn exit_info(&self) -> (u64, u64) {
        (self.get(EXIT_INFO_1), self.get(EXIT_INFO_2))
    }

    /// The exit as it is.
    pub fn raw_exit(&self) -> RawExit {
        RawExit {
            code: self.exit_code().0,
            info: self.exit_info(),
            rip: self.rip(),
        }
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

    /// Of an instruction that exits, where the CPU has next-RIP save; else 0.
    pub(super) fn next_rip(&self) -> u64 {
        self.get(NEXT_RIP)
    }

    /// Bytes of the instruction of a nested fault, where the CPU has decode assists.
    pub(super) fn instruction(&self) -> ([u8; 15], u8) {
        let mut bytes = [0; 15];
        bytes.copy_from_slice(&self.0[INSTRUCTION..INSTRUCTION + 15]);
        (bytes, self.0[INSTRUCTION_LEN].min(15))
    }

    pub(super) fn set_asid(&mut self, asid: u32) {
        self.set_u32(ASID, asid);
    }

    pub(crate) fn set_tsc_offset(&mut self, offset: u64) {
        self.set(TSC_OFFSET, offset);
    }

    pub(super) fn set_rip(&mut self, value: u64) {
        self.set(RIP, value);
    }

    pub(super) fn rsp(&self) -> u64 {
        self.get(RSP)
    }

    pub(super) fn set_rsp(&mut self, value: u64) {
        self.set(RSP, value);
    }

    pub(super) fn rflags(&self) -> u64 {
        self.get(RFLAGS)
    }

    pub(super) fn set_rflags(&mut self, value: u64) {
        self.set(RFLAGS, value);
    }

    pub(crate) fn cr0(&self) -> u64 {
        self.get(CR0)
    }

    pub(super) fn cr2(&self) -> u64 {
        self.get(CR2)
    }

    pub(crate) fn set_cr2(&mut self, value: u64) {
        self.set(CR2, value);
    }

    pub(super) fn cr3(&self) -> u64 {
        self.get(CR3)
    }

    /// CR0, CR3, CR4.
    pub(super) fn set_control(&mut self, [cr0, cr3, cr4]: [u64; 3]) {
        self.set(CR0, cr0);
        self.set(CR3, cr3);
        self.set(CR4, cr4);
    }

    pub(super) fn dr6(&self) -> u64 {
        self.get(DR6)
    }

    pub(super) fn dr7(&self) -> u64 {
        self.get(DR7)
    }

    pub(super) fn set_debug(&mut self, dr6: u64, dr7: u64) {
        self.set(DR6, dr6);
        self.set(DR7, dr7);
    }

    pub(crate) fn pat(&self) -> u64 {
        self.get(PAT)
    }

    pub(crate) fn set_pat(&mut self, value: u64) {
        self.set(PAT, value);
    }

    pub(super) fn set_spec_ctrl(&mut self, value: u64) {
        self.set(SPEC_CTRL, value);
    }

    /// The privilege level is the stack segment's (APM vol. 2 §15.5.1).
    pub(super) fn set_cpl_from(&mut self, stack: &Segment) {
        self.0[CPL] = (stack.attributes >> 5 & 3) as u8;
    }

    pub(super) fn syscall_registers(&self) -> [u64; 8] {
        core::array::from_fn(|n| self.get(At(SYSCALL + 8 * n)))
    }

    pub(super) fn set_syscall_registers(&mut self, values: [u64; 8]) {
        for (n, value) in values.into_iter().enumerate() {
            self.set(At(SYSCALL + 8 * n), value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn svme_is_hidden_and_cannot_be_cleared() {
        let mut vmcb = Vmcb::zeroed();
        vmcb.set_efer(1 << 8);
        assert_eq!(vmcb.efer(), 1 << 8);
        assert_eq!(vmcb.get(EFER), 1 << 8 | EFER_SVME);
    }

    #[test]
    fn a_flush_waits_for_an_entry_that_the_cpu_does_not_refuse() {
        let mut vmcb = Vmcb::zeroed();
        vmcb.flush_next();
        for refusal in [u64::MAX, 0xffff_ffff] {
            vmcb.set(EXIT_CODE, refusal);
            vmcb.entered();
            assert_ne!(vmcb.0[TLB_CONTROL], 0);
        }
        vmcb.set(EXIT_CODE, 0x72);
        vmcb.entered();
        assert_eq!(vmcb.0[TLB_CONTROL], 0);
    }

    #[test]
    fn invalid_is_read_as_32_bits() {
        let mut vmcb = Vmcb::zeroed();
        for raw in [u64::MAX, 0xffff_ffff] {
            vmcb.set(EXIT_CODE, raw);
            assert_eq!(vmcb.exit_code(), ExitCode(u32::MAX));
        }
    }
}
