//! The bootable image: the PVH entry point, and what must stand in the binary.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
mod entry;

#[cfg(target_os = "none")]
#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    bench_kernel::stop(format_args!("panic: {info}"))
}

#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!("bench-kernel: boots by PVH; `cargo xtask bench` builds and runs it");
}
