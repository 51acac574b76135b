//! What every machine needs, built once per command.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::files::{context, folder};
use crate::kernel::Kernel;
use crate::{Result, checked, freestanding, initramfs, packages, root};

const HOST: &str = "x86_64-unknown-linux-gnu";

/// Everything that is booted.
pub(crate) struct Parts {
    /// The microvisor.
    pub(crate) image: PathBuf,
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
            kernel,
            initramfs,
        })
    }
}

/// A `vmctl` that needs no library.
pub(crate) fn vmctl() -> Result<PathBuf> {
    checked(&mut without_libraries("build"))?;
    Ok(static_folder().join(HOST).join("release/vmctl"))
}

/// The driver's tests, which need no library either.
pub(crate) fn driver_tests() -> Result<PathBuf> {
    let output = without_libraries("test")
        .args(["--test", "driver", "--no-run", "--message-format=json"])
        .stderr(Stdio::inherit())
        .output()
        .map_err(|error| format!("cargo test: {error}"))?;
    // One object a line; the test's has the path that it was built at. `vmctl` itself has one too, in
    // any order.
    let text = String::from_utf8_lossy(&output.stdout);
    let mut paths = text
        .lines()
        .filter(|line| line.contains("\"kind\":[\"test\"]"))
        .filter_map(|line| line.split_once("\"executable\":\"")?.1.split('"').next());
    match paths.next_back() {
        Some(path) if output.status.success() => Ok(path.into()),
        _ => Err(format!("building the driver's tests: {}", output.status)),
    }
}

/// Cargo, for static programs of `vmctl`'s: in a folder of their own, because their flags are not
/// those of other builds, and with a target named, so that the flags are not those of build scripts
/// and procedural macros.
fn without_libraries(command: &str) -> Command {
    let mut cargo = Command::new("cargo");
    cargo
        .current_dir(root())
        .args([command, "--quiet", "--release", "--package", "vmctl"])
        .args(["--target", HOST, "--target-dir"])
        .arg(static_folder())
        .env_remove("RUSTFLAGS")
        .env(
            "CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUSTFLAGS",
            "-Ctarget-feature=+crt-static -Cstrip=debuginfo",
        );
    cargo
}

fn static_folder() -> PathBuf {
    root().join("target/static")
}
