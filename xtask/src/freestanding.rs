//! Builds crates for `x86_64-unknown-none` by whichever way the machine has.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::packages::{self, Need};
use crate::{Result, checked, root};

const TARGET: &str = "x86_64-unknown-none";

/// Debian's toolchain with the sources of `core`, for where rustup's has neither them nor the
/// target (and cannot fetch them).
const DEBIAN: &[Need] = &[
    Need {
        file: "/usr/bin/rustc",
        packages: &["rustc-web", "cargo-web"],
        why: "a compiler whose standard library sources are packaged",
    },
    Need {
        file: "/usr/share/doc/rust-web-src",
        packages: &["rust-web-src"],
        why: "the sources of core, which the microvisor is built with",
    },
    Need {
        file: "/usr/bin/ld.lld",
        packages: &["lld"],
        why: "the linker of the freestanding target",
    },
];

/// A way to compile for the freestanding target.
enum Way {
    /// The active toolchain has the target.
    Target,
    /// The active toolchain has core's sources.
    Sources,
    /// Debian's packages.
    Debian,
}

impl Way {
    fn find() -> Result<Self> {
        let output = Command::new("rustc")
            .args(["--print", "sysroot"])
            .output()
            .map_err(|error| format!("rustc: {error}"))?;
        let sysroot = String::from_utf8_lossy(&output.stdout);
        let lib = Path::new(sysroot.trim()).join("lib/rustlib");
        if lib.join(TARGET).exists() {
            Ok(Self::Target)
        } else if lib.join("src/rust/library/core").exists() {
            Ok(Self::Sources)
        } else {
            packages::install(DEBIAN)?;
            Ok(Self::Debian)
        }
    }

    fn cargo(&self) -> Command {
        let (way, mut cargo) = match self {
            Self::Target => ("the active toolchain's target", Command::new("cargo")),
            Self::Sources => ("the active toolchain's sources", Command::new("cargo")),
            Self::Debian => {
                let mut cargo = Command::new("/usr/bin/cargo");
                // Set by rustup's own cargo, which runs this; they would lead back to it.
                for name in ["CARGO", "RUSTUP_TOOLCHAIN", "RUSTC_WRAPPER"] {
                    cargo.env_remove(name);
                }
                cargo.env("RUSTC", "/usr/bin/rustc");
                cargo.env("RUSTDOC", "/usr/bin/rustdoc");
                ("Debian's rustc-web and its sources", cargo)
            }
        };
        eprintln!("freestanding build by {way}");
        cargo.arg("build");
        if !matches!(self, Self::Target) {
            cargo.env("RUSTC_BOOTSTRAP", "1").args([
                "-Zbuild-std=core,compiler_builtins",
                "-Zbuild-std-features=compiler-builtins-mem",
            ]);
        }
        cargo
            .env_remove("RUSTFLAGS")
            .env("CARGO_TARGET_X86_64_UNKNOWN_NONE_LINKER", "ld.lld")
            // The linker script places every section; position independence would only cost.
            .env(
                "CARGO_TARGET_X86_64_UNKNOWN_NONE_RUSTFLAGS",
                "-Crelocation-model=static -Ccode-model=kernel -Cforce-frame-pointers=yes",
            );
        cargo
    }
}

/// Builds the microvisor; its Multiboot image.
pub(crate) fn build() -> Result<PathBuf> {
    // A target folder of its own: the two compilers do not share artefacts.
    let folder = root().join("target/freestanding");
    checked(
        Way::find()?
            .cargo()
            .current_dir(root())
            .args(["--release", "--package", "microvisor", "--target", TARGET])
            .arg("--target-dir")
            .arg(&folder),
    )?;
    Ok(folder.join(TARGET).join("release/microvisor"))
}
