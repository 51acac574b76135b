//! Hands the linker script to the freestanding binary.

fn main() {
    println!("cargo:rerun-if-changed=test-kernel.ld");
    if std::env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("none") {
        let folder = std::env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
        for arg in [
            &format!("-T{folder}/test-kernel.ld"),
            // A bzImage is no ELF: its header comes first, then the code as it lies in memory.
            "--oformat=binary",
            "--no-pie",
        ] {
            println!("cargo:rustc-link-arg-bins={arg}");
        }
    }
}
