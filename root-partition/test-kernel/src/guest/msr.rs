//! A guest that reads and writes model-specific registers as it is told.

use super::code::code;
use guest_proto::vcpu_page::{InterceptKind, Reply, ReplyFlags};

use super::{Exit, Guest, layout};
use crate::probe::GENERAL_PROTECTION;
use crate::report::Outcome;

/// Vector and error code of an exception, if there was one.
pub type Fault = Option<[u64; 2]>;

impl Guest {
    /// Reads the register in ECX, or with RSI other than 0 writes RDI to it, and halts.
    #[track_caller]
    pub fn for_msrs() -> Outcome<Self> {
        Self::new(code![
            "lea rax, [rip + 3f]",
            "mov [{notes} + 24], rax",
            "test rsi, rsi",
            "jnz 2f",
            "rdmsr",
            "shl rdx, 32",
            "or rax, rdx",
            "hlt",
            "2: mov rax, rdi",
            "mov rdx, rdi",
            "shr rdx, 32",
            "wrmsr",
            "3: hlt",
            ; notes = const layout::NOTES,
        ])
    }

    /// Makes it read a register; the value is in its RAX. A register that the worker keeps faults.
    #[track_caller]
    pub fn rdmsr(&self, msr: u32) -> Outcome<Fault> {
        self.access(msr, None)
    }

    /// Makes it write a register. A register that the worker keeps faults.
    #[track_caller]
    pub fn wrmsr(&self, msr: u32, value: u64) -> Outcome<Fault> {
        self.access(msr, Some(value))
    }

    #[track_caller]
    fn access(&self, msr: u32, write: Option<u64>) -> Outcome<Fault> {
        let before = self.exceptions().count();
        self.restart(|state| {
            state.gpr[1] = msr.into();
            state.gpr[6] = write.is_some().into();
            state.gpr[7] = write.unwrap_or_default();
        })?;
        let gp = Reply {
            flags: ReplyFlags::EXCEPTION.bits(),
            exception: GENERAL_PROTECTION as u32,
            ..Reply::default()
        };
        loop {
            match self.run(0)? {
                Exit::Halted(0) => break,
                // A worker that keeps no registers.
                Exit::Intercept(InterceptKind::Msr, _) => self.shared(0).reply.store(&gp),
                other => return self.not(other, "a halt"),
            }
        }
        if self.exceptions().count() == before {
            return Ok(None);
        }
        let [vector, code, _] = self.exceptions().last();
        Ok(Some([vector, code]))
    }
}
