//! Guests' instructions as bytes.

/// The bytes of instructions, which do not depend on where they stand. After `;` come operands,
/// as `asm!` has them.
macro_rules! code {
    ($($line:literal),+ $(,)? $(; $($operands:tt)+)?) => {{
        #[allow(unsafe_code, reason = "the bytes between two labels of the program itself")]
        fn bytes() -> &'static [u8] {
            let (start, end): (*const u8, *const u8);
            // SAFETY: the instructions are jumped over, and what stands between the labels is
            // never written.
            unsafe {
                core::arch::asm!(
                    "lea {code_start}, [rip + 77f]",
                    "lea {code_end}, [rip + 78f]",
                    "jmp 78f",
                    "77:",
                    $($line,)+
                    ".code64",
                    "78:",
                    code_start = out(reg) start,
                    code_end = out(reg) end,
                    $($($operands)+)?
                );
                core::slice::from_raw_parts(start, end.offset_from_unsigned(start))
            }
        }
        bytes()
    }};
}
pub(crate) use code;
