//! Hands the linker script to the freestanding binary.

fn main() {
    println!("cargo:rerun-if-changed=microvisor.ld");
    if std::env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("none") {
        let folder = std::env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
        for arg in [
            &format!("-T{folder}/microvisor.ld"),
            "-zmax-page-size=4096",
            "--no-pie",
            // `cargo xtask` checks by them that no resident code refers to start-up code.
            "--emit-relocs",
        ] {
            println!("cargo:rustc-link-arg-bins={arg}");
        }
    }
}
