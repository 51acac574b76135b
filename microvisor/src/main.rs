//! The bootable image: the library, whose `boot::entry` has the entry points, and a panic handler.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    microvisor::panic::stop(info)
}

#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!("microvisor: boots by Multiboot; build it with `cargo xtask build`");
}
