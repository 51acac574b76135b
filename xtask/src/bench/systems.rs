//! The systems that the bench kernel runs on.

use std::fmt;
use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::results::{Measured, parse};
use crate::files::context;
use crate::machine::{ACCELERATOR, ICOUNT, Machine};
use crate::packages::QEMU;
use crate::parts::Parts;
use crate::run_folder::RunFolder;
use crate::{Result, freestanding, initramfs, modules, root, supervise};

/// Where the bench kernel runs.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, clap::ValueEnum,
)]
#[serde(rename_all = "lowercase")]
pub(super) enum System {
    /// On the machine itself.
    Bare,
    /// In a guest of QEMU and KVM, on a stock Linux.
    Kvm,
    /// In a guest of the microvisor.
    Microvisor,
}

impl fmt::Display for System {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str(match self {
            Self::Bare => "a bare machine",
            Self::Kvm => "a guest of KVM",
            Self::Microvisor => "a guest of the microvisor",
        })
    }
}

/// The CPU of every system.
const CPU: &str = "EPYC-Milan,+x2apic";
const TIMEOUT: Duration = Duration::from_secs(600);
const KERNEL: &str = "bench-kernel";
/// Debian's QEMU, which runs in the emulated machine.
const NESTED_QEMU: &str = "/usr/bin/qemu-system-x86_64";
/// Firmware of QEMU's `microvm`.
const FIRMWARE: [&str; 2] = [
    "/usr/share/seabios/bios-microvm.bin",
    "/usr/share/qemu/pvh.bin",
];
/// The module of KVM for AMD's CPUs.
const KVM: &str = "arch/x86/kvm/kvm-amd";

impl System {
    /// Runs the bench kernel, and returns what it prints.
    pub(super) fn measure(self, parts: &Parts) -> Result<Measured> {
        let kernel = freestanding::build_package(KERNEL)?;
        let console = match self {
            Self::Bare => bare(&kernel)?,
            Self::Kvm => kvm(parts, &kernel)?,
            Self::Microvisor => in_vm_0(&machine(&kernel)?, parts, "microvisor.sh")?,
        };
        parse(&console)
    }
}

fn bare(kernel: &Path) -> Result<String> {
    let folder = RunFolder::new()?;
    let (log, errors) = (folder.join("console.log"), folder.join("qemu.log"));
    let program = std::env::var(QEMU);
    let mut qemu = Command::new("setpriv");
    qemu.args(["--pdeathsig", "KILL"])
        .arg(program.as_deref().unwrap_or("qemu-system-x86_64"))
        .args(["-machine", "q35", "-accel", ACCELERATOR, "-cpu", CPU])
        .args(["-m", "1G", "-display", "none", "-no-reboot", "-nic", "none"])
        .args(ICOUNT)
        .args(["-monitor", "none", "-serial"])
        .arg(format!("file:{}", log.display()))
        .arg("-kernel")
        .arg(kernel)
        .stdin(Stdio::null())
        .stderr(File::create(&errors).map_err(context(&errors))?);
    supervise::exit_code(&mut qemu, TIMEOUT)?;
    let console = fs::read(&log).map_err(context(&log))?;
    Ok(String::from_utf8_lossy(&console).into_owned())
}

fn kvm(parts: &Parts, kernel: &Path) -> Result<String> {
    let mut machine = machine(kernel)?;
    machine.bare = true;
    let qemu = Path::new(NESTED_QEMU);
    let libraries = initramfs::libraries(qemu)?;
    let libraries = libraries.iter().map(String::as_str);
    for file in libraries.chain(FIRMWARE).chain([NESTED_QEMU]) {
        machine.add_file(Path::new(file), file)?;
    }
    for (number, module) in (10..).zip(modules::in_order(&parts.kernel, KVM)?) {
        machine.add_file(&module, &format!("/lib/kvm/{number}.ko"))?;
    }
    in_vm_0(&machine, parts, "kvm.sh")
}

/// A machine for Linux, with the bench kernel beside its script.
fn machine(kernel: &Path) -> Result<Machine> {
    let mut machine = Machine {
        cpus: 1,
        cpu: CPU.into(),
        icount: true,
        timeout: TIMEOUT,
        ..Machine::default()
    };
    machine.add_file(kernel, KERNEL)?;
    Ok(machine)
}

/// Runs a script in VM 0, and returns what it prints.
fn in_vm_0(machine: &Machine, parts: &Parts, script: &str) -> Result<String> {
    let script = root().join("root-partition/bench").join(script);
    let mut output = Vec::new();
    let ended = machine.script(parts, &script, &mut output)?;
    let output = String::from_utf8_lossy(&output).into_owned();
    match ended.status {
        0 => Ok(output),
        status => Err(format!(
            "{}: status {status}; it printed:\n{output}",
            script.display()
        )),
    }
}
