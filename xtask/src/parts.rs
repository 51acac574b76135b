//! What every machine needs, built once per command.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::files::{context, folder};
use crate::kernel::Kernel;
use crate::machine::TCG_OPTIONS;
use crate::{Result, checked, freestanding, initramfs, packages, root};

const HOST: &str = "x86_64-unknown-linux-gnu";

/// Everything that is booted.
pub(crate) struct Parts {
    /// The microvisor, or another hypervisor that boots in the same way.
    pub(crate) image: PathBuf,
    /// Its options for QEMU's TCG.
    pub(crate) options: &'static str,
    /// VM 0's kernel.
    pub(crate) kernel: Kernel,
    /// VM 0's initramfs, without what a run adds.
    pub(crate) initramfs: PathBuf,
}

impl Parts {
    /// Builds what is not there or not current.
    pub(crate) fn prepare(kernel: Option<&Path>) -> Result<Self> {
        packages::install_qemu()?;
        let lock = folder()?.join("lock");
        // Two commands at once take turns here, and share what the first one builds.
        let file = File::create(&lock).map_err(context(&lock))?;
        file.lock().map_err(context(&lock))?;
        let image = freestanding::build()?;
        let vmctl = vmctl()?;
        let stock = Kernel::stock()?;
        let kernel = match kernel {
            Some(file) => Kernel::named(file)?,
            None => stock.clone(),
        };
        let initramfs = initramfs::build(&kernel, &stock, &vmctl)?;
        Ok(Self {
            image,
            options: TCG_OPTIONS,
            kernel,
            initramfs,
        })
    }
}

/// A static `vmctl`, which VM 0 runs without shared libraries. It is built in a folder of its own, because its flags
/// are not those of other builds, and for a named target, so that the flags do not apply to build scripts and
/// procedural macros.
pub(crate) fn vmctl() -> Result<PathBuf> {
    let target = root().join("target/static");
    checked(
        Command::new("cargo")
            .current_dir(root())
            .args(["build", "--quiet", "--release", "--package", "vmctl"])
            .args(["--target", HOST, "--target-dir"])
            .arg(&target)
            .env_remove("RUSTFLAGS")
            .env(
                "CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUSTFLAGS",
                "-Ctarget-feature=+crt-static -Cstrip=debuginfo",
            ),
    )?;
    Ok(target.join(HOST).join("release/vmctl"))
}
