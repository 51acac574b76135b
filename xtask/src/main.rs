//! The project's commands: everything that is more than one `cargo` invocation.
//!
//! `build` makes the freestanding image, `driver` the module for a root kernel, `run` boots the image
//! with a stock Linux as VM 0, `test` runs every check and test.

mod archive;
mod bench;
mod demo;
mod driver;
mod files;
mod freestanding;
mod image;
mod initramfs;
mod iso;
mod kernel;
mod machine;
mod modules;
mod packages;
mod parts;
mod run;
mod run_folder;
mod size;
mod startup;
mod supervise;
mod test_kernel;
mod tests;
#[cfg(test)]
mod tidy;

use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use clap::Parser;

/// What a step answers: an error is one line for the user.
type Result<T> = std::result::Result<T, String>;

#[derive(clap::Parser)]
#[command(
    bin_name = "cargo xtask",
    about = "Builds, boots and tests the microvisor"
)]
enum Cli {
    /// Measure what operations cost on a bare machine, in a guest of KVM and in a guest of the microvisor
    Bench(bench::Options),
    /// Build the microvisor; print the image's path
    Build,
    /// Build the driver for a kernel of Debian's; print the module's path
    Driver {
        /// The kernel's release, as `uname -r` prints it there
        kernel: String,
    },
    /// Create the disk image of a system for guests
    Image(image::Options),
    /// Write a GRUB ISO that boots it on BIOS and UEFI; print the ISO's path
    Iso,
    /// Boot it in QEMU with a stock Linux as VM 0: to a shell, or to run a script
    Run(run::Options),
    /// Print the size of the microvisor: lines of code by part, unsafe blocks, bytes of the image
    Size,
    /// Run every check and test
    Test(tests::Options),
    /// Run the test kernel's cases alone
    TestKernel {
        /// Those of the long run, instead of the others
        #[arg(long)]
        long: bool,
        /// Print instead how many instructions a guest's exits take
        #[arg(long, conflicts_with = "long")]
        costs: bool,
    },
}

fn main() -> ExitCode {
    let result = match Cli::parse() {
        Cli::Bench(options) => bench::run(&options),
        Cli::Build => freestanding::build().map(|image| println!("{}", image.display())),
        Cli::Driver { kernel } => {
            driver::build(&kernel).map(|module| println!("{}", module.display()))
        }
        Cli::Image(options) => image::run(&options),
        Cli::Iso => iso::build().map(|iso| println!("{}", iso.display())),
        Cli::Run(options) => return run::run(&options),
        Cli::Test(options) => tests::run(&options),
        Cli::Size => size::print(),
        Cli::TestKernel { costs: true, .. } => test_kernel::print_costs(),
        Cli::TestKernel { long, .. } => tests::run_test_kernel(long),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("xtask: {message}");
            ExitCode::FAILURE
        }
    }
}

/// The workspace's folder.
fn root() -> PathBuf {
    let manifest = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    manifest
        .parent()
        .map_or_else(|| manifest.clone(), PathBuf::from)
}

/// Runs a command; a failure names it and its status. What it prints goes to standard error: standard
/// output is for what was asked for.
fn checked(command: &mut Command) -> Result<()> {
    match std::io::stderr().as_fd().try_clone_to_owned() {
        Ok(stderr) => command.stdout(stderr),
        Err(error) => return Err(format!("standard error: {error}")),
    };
    match command.status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("{command:?}: {status}")),
        Err(error) => Err(format!("{command:?}: {error}")),
    }
}
