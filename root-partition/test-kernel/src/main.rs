//! The bootable image: its bzImage header and entry points, and what must stand in the binary.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
mod entry;

#[cfg(target_os = "none")]
#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    test_kernel::stop(format_args!("panic: {info}"))
}

#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!("test-kernel: boots in VM 0's place; `cargo xtask test` builds and runs it");
}
