//! Builds crates for `x86_64-unknown-none` by whichever way the machine has.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::packages::{self, Need};
use crate::{Result, checked, root, startup};

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

const DEBIAN_CLIPPY: &[Need] = &[Need {
    file: "/usr/bin/cargo-clippy",
    packages: &["rust-web-clippy"],
    why: "checks the microvisor with the compiler that builds it",
}];

/// What is built for the target.
const PACKAGES: &[&str] = &["microvisor", "test-kernel", "bench-kernel"];
/// Where, in the workspace.
const FOLDER: &str = "target/freestanding";

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

    fn name(&self) -> &'static str {
        match self {
            Self::Target => "the active toolchain's target",
            Self::Sources => "the active toolchain's sources",
            Self::Debian => "Debian's rustc-web and its sources",
        }
    }

    /// A cargo subcommand that compiles packages for the target.
    fn cargo(&self, subcommand: &str, folder: &str, packages: &[&str]) -> Command {
        let mut cargo = match (self, subcommand) {
            // Not through cargo, which would find rustup's before Debian's.
            (Self::Debian, "clippy") => Command::new("/usr/bin/cargo-clippy"),
            (Self::Debian, _) => Command::new("/usr/bin/cargo"),
            _ => Command::new("cargo"),
        };
        if matches!(self, Self::Debian) {
            // Set by rustup's own cargo, which runs this; they would lead back to it.
            for name in ["RUSTUP_TOOLCHAIN", "RUSTC_WRAPPER"] {
                cargo.env_remove(name);
            }
            cargo
                .env("CARGO", "/usr/bin/cargo")
                .env("RUSTC", "/usr/bin/rustc")
                .env("RUSTDOC", "/usr/bin/rustdoc");
        }
        eprintln!("freestanding {subcommand} by {}", self.name());
        cargo.current_dir(root()).arg(subcommand);
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
            )
            // An exit of a guest passes through most modules: optimised as one, it takes a sixth fewer instructions.
            .env("CARGO_PROFILE_RELEASE_LTO", "fat")
            .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "1")
            .args(["--quiet", "--release", "--target", TARGET])
            // A target folder of its own: the two compilers do not share artefacts.
            .args(["--target-dir", folder]);
        for package in packages {
            cargo.args(["--package", package]);
        }
        cargo
    }
}

/// Builds the microvisor; its Multiboot image.
pub(crate) fn build() -> Result<PathBuf> {
    let image = build_package("microvisor")?;
    startup::check(&image)?;
    Ok(image)
}

/// Builds a microvisor that makes faults on purpose.
pub(crate) fn build_faulty() -> Result<PathBuf> {
    /// Beside the other folder, so that nobody takes this image for the other.
    const FAULTY: &str = "target/freestanding-faulty";
    let mut cargo = Way::find()?.cargo("build", FAULTY, &["microvisor"]);
    checked(cargo.args(["--features", "fault-injection"]))?;
    let image = root().join(FAULTY).join(TARGET).join("release/microvisor");
    startup::check(&image)?;
    Ok(image)
}

/// Builds a package of the workspace; its binary of the same name.
pub(crate) fn build_package(name: &str) -> Result<PathBuf> {
    checked(&mut Way::find()?.cargo("build", FOLDER, &[name]))?;
    Ok(root().join(FOLDER).join(TARGET).join("release").join(name))
}

/// Checks the freestanding packages, warnings denied.
pub(crate) fn clippy() -> Result<()> {
    let way = Way::find()?;
    if matches!(way, Way::Debian) {
        packages::install(DEBIAN_CLIPPY)?;
    }
    checked(
        way.cargo("clippy", FOLDER, PACKAGES)
            .args(["--", "-Dwarnings"]),
    )
}
