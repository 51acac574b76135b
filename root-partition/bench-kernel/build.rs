//! Hands the linker script to the freestanding binary.

fn main() {
    println!("cargo:rerun-if-changed=bench-kernel.ld");
    if std::env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("none") {
        let folder = std::env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
        for arg in [&format!("-T{folder}/bench-kernel.ld"), "--no-pie"] {
            println!("cargo:rustc-link-arg-bins={arg}");
        }
    }
}
