//! Exit codes (APM vol. 2 appendix C).

/// An exit code of the control block, narrowed to 32 bits: QEMU 10.0 writes VMEXIT_INVALID as
/// 0x00000000ffffffff.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::arch::svm) struct ExitCode(pub(in crate::arch::svm) u32);

impl ExitCode {
    /// VMEXIT_INVALID: the CPU did not enter.
    pub(in crate::arch::svm) const fn is_refusal(self) -> bool {
        self.0 == u32::MAX
    }

    /// One of SVM's own instructions, INVLPGA or SKINIT.
    pub(in crate::arch::svm) const fn is_svm_instruction(self) -> bool {
        matches!(self.0, 0x7a | 0x80 | 0x82..=0x86)
    }
}
