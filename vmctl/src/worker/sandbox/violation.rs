//! Says which system call the sandbox stopped, in the worker's log, before the process ends.

#![allow(
    unsafe_code,
    reason = "a signal handler, which reads what the kernel gives it"
)]

use std::ffi::{c_int, c_void};
use std::io;

use super::SandboxError;
use crate::worker::end::EXIT_SANDBOX;

/// `siginfo_t` of a SIGSYS, as Linux's `asm-generic/siginfo.h` has it on 64-bit machines.
#[repr(C)]
struct SigSys {
    signal: c_int,
    errno: c_int,
    code: c_int,
    padding: c_int,
    call_address: *const c_void,
    syscall: c_int,
    arch: u32,
}

/// Installs the handler.
///
/// # Errors
///
/// Fails with `SignalHandler`.
pub(super) fn report_violations() -> Result<(), SandboxError> {
    // SAFETY: all zeros are a `sigaction` without a mask and flags.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    let handler: extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) = report;
    action.sa_sigaction = handler as usize;
    action.sa_flags = libc::SA_SIGINFO;
    // SAFETY: `action` is whole, and its handler calls only what is safe in a signal handler.
    let result = unsafe { libc::sigaction(libc::SIGSYS, &raw const action, std::ptr::null_mut()) };
    if result == 0 {
        Ok(())
    } else {
        Err(SandboxError::SignalHandler(io::Error::last_os_error()))
    }
}

extern "C" fn report(_: c_int, info: *mut libc::siginfo_t, _: *mut c_void) {
    // SAFETY: with SA_SIGINFO the kernel passes a `siginfo_t`, of a SIGSYS here.
    let call = unsafe { (*info.cast::<SigSys>()).syscall };
    let mut buffer = [0; 80];
    let line = line(call, &mut buffer);
    // SAFETY: both may be called in a signal handler, and are allowed by the filter; `line` is
    // readable memory.
    unsafe {
        libc::write(libc::STDERR_FILENO, line.as_ptr().cast(), line.len());
        libc::_exit(c_int::from(EXIT_SANDBOX));
    }
}

/// The line, without allocating.
fn line(call: c_int, buffer: &mut [u8; 80]) -> &[u8] {
    use io::Write;
    let size = buffer.len();
    let mut rest = &mut buffer[..];
    // The line would be cut if it did not fit. It fits.
    let _ = writeln!(
        rest,
        "sandbox: system call {call} is not allowed; the worker ends"
    );
    let used = size - rest.len();
    &buffer[..used]
}

/// Sends the process `pid` a signal that does nothing.
#[cfg(test)]
pub(super) fn signal(pid: c_int) {
    // SAFETY: no memory is involved.
    unsafe { libc::syscall(libc::SYS_tgkill, pid, pid, 0) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_line_fits() {
        let mut buffer = [0; 80];
        let text = std::str::from_utf8(line(c_int::MIN, &mut buffer)).unwrap();
        assert!(text.contains("-2147483648") && text.ends_with("ends\n"));
    }
}
