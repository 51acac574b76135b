//! The systems that the bench kernel runs on.

use std::fmt;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::profile::{self, Symbols};
use super::results::{Measured, marked, parse};
use super::xen::Xen;
use crate::files::context;
use crate::kernel::Kernel;
use crate::machine::{Ended, ICOUNT, Machine, emulator};
use crate::parts::Parts;
use crate::run_folder::RunFolder;
use crate::{Result, freestanding, initramfs, modules, parts, root, supervise};

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
    /// In a guest of Debian's Xen, with dom0 as a PV guest.
    Xen,
}

impl System {
    /// The name of its script.
    fn name(self) -> &'static str {
        match self {
            Self::Bare => "bare",
            Self::Kvm => "kvm",
            Self::Microvisor => "microvisor",
            Self::Xen => "xen",
        }
    }
}

impl fmt::Display for System {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str(match self {
            Self::Bare => "a bare machine",
            Self::Kvm => "a guest of KVM",
            Self::Microvisor => "a guest of the microvisor",
            Self::Xen => "a guest of Xen",
        })
    }
}

/// The CPU of every system.
const CPU: &str = "EPYC-Milan,+x2apic";
const TIMEOUT: Duration = Duration::from_secs(1200);
pub(super) const SCRIPTS: &str = "root-partition/bench";
const SYMBOLS: &str = "symbols.sh";
const KERNEL: &str = "bench-kernel";
/// Debian's QEMU, which runs in the emulated machine.
const NESTED_QEMU: &str = "/usr/bin/qemu-system-x86_64";
/// Firmware of QEMU's `microvm` and `q35`, and what loads a kernel with both: a PVH image, and Linux.
const FIRMWARE: [&str; 5] = [
    "/usr/share/seabios/bios-microvm.bin",
    "/usr/share/seabios/bios-256k.bin",
    "/usr/share/qemu/kvmvapic.bin",
    "/usr/share/qemu/pvh.bin",
    "/usr/share/qemu/linuxboot_dma.bin",
];
/// The module of KVM for AMD's CPUs.
const KVM: &str = "arch/x86/kvm/kvm-amd";
/// The module of disks in memory.
const BRD: &str = "drivers/block/brd";

/// A run of the bench kernel.
pub(super) struct Run<'a> {
    pub(super) parts: &'a Parts,
    /// Xen, if it is measured.
    xen: Option<Xen>,
    /// The bench kernel.
    kernel: PathBuf,
    rows: &'a [String],
    /// Loops are short: only that they run is of interest.
    is_smoke: bool,
    /// More arguments of QEMU's: a plugin.
    qemu: Vec<String>,
}

impl<'a> Run<'a> {
    /// Builds what these systems need, to measure these rows, or all if there are none.
    pub(super) fn new(
        parts: &'a Parts,
        systems: &[System],
        rows: &'a [String],
        is_smoke: bool,
    ) -> Result<Self> {
        let has_xen = systems.contains(&System::Xen);
        Ok(Self {
            parts,
            xen: has_xen.then(Xen::new).transpose()?,
            kernel: freestanding::build_package(KERNEL)?,
            rows,
            is_smoke,
            qemu: Vec::new(),
        })
    }

    /// Runs the bench kernel on a system, and returns its samples.
    pub(super) fn measure(&self, system: System) -> Result<Measured> {
        let console = match system {
            System::Bare => self.bare()?,
            _ => self.script(system, &self.machine(system)?, "")?.0,
        };
        parse(&console)
    }

    /// Runs the bench kernel on a system, and returns a table of the functions that the row's instructions are in.
    pub(super) fn profile(&mut self, system: System) -> Result<String> {
        let folder = RunFolder::new()?;
        let counted = folder.join("counted");
        self.qemu = profile::options(&counted)?;
        let mut symbols = Symbols::default();
        symbols.add_elf("bench kernel", &self.kernel, 0)?;
        if system == System::Microvisor {
            symbols.add_elf("microvisor", &self.parts.image, 0)?;
        }
        let console = match system {
            System::Bare => self.bare()?,
            _ => self.profile_script(system, &mut symbols)?,
        };
        parse(&console)?;
        let counted = fs::read_to_string(&counted).map_err(context(&counted))?;
        Ok(profile::text(&counted, &symbols, marked(&console)))
    }

    fn profile_script(&self, system: System, symbols: &mut Symbols) -> Result<String> {
        let mut machine = self.machine(system)?;
        machine.options += " bench_profile=1";
        let (console, ended) = self.script(system, &machine, "")?;
        let disk = ended.disk();
        let proc = fs::read(&disk).map_err(context(&disk))?;
        symbols.add_linux(&String::from_utf8_lossy(&proc), &parts::vmctl()?)?;
        Ok(console)
    }

    /// The kernel's options.
    fn options(&self) -> String {
        let mut options = String::new();
        if !self.rows.is_empty() {
            // A comma would end the text in QEMU's list of boot modules.
            options += &format!("rows={} ", self.rows.join("+"));
        }
        if self.is_smoke {
            options += "smoke";
        }
        options
    }

    fn bare(&self) -> Result<String> {
        boot("1G", |qemu| {
            qemu.arg("-kernel").arg(&self.kernel);
            qemu.args(["-append", &self.options()]).args(&self.qemu);
        })
    }

    /// A machine for Linux and what a system has, with the bench kernel beside its script.
    pub(super) fn machine(&self, system: System) -> Result<Machine> {
        let mut machine = self.linux()?;
        if system == System::Xen {
            let xen = self.xen()?;
            xen.add(&mut machine, &self.kernel, &self.options())?;
            return Ok(machine);
        }
        if system == System::Kvm {
            self.add_kvm(&mut machine)?;
        }
        add_modules(&mut machine, &self.parts.kernel, BRD)?;
        Ok(machine)
    }

    fn xen(&self) -> Result<&Xen> {
        self.xen.as_ref().ok_or_else(|| "there is no Xen".into())
    }

    /// Adds KVM and QEMU to a machine without the microvisor.
    fn add_kvm(&self, machine: &mut Machine) -> Result<()> {
        machine.bare = true;
        let libraries = initramfs::libraries(Path::new(NESTED_QEMU), None)?;
        let libraries = libraries.iter().map(String::as_str);
        for file in libraries.chain(FIRMWARE).chain([NESTED_QEMU]) {
            machine.add_file(Path::new(file), file)?;
        }
        add_modules(machine, &self.parts.kernel, KVM)
    }

    fn linux(&self) -> Result<Machine> {
        let mut machine = Machine {
            cpus: 1,
            cpu: CPU.into(),
            icount: true,
            // Linux makes a variable of an option that it does not know.
            options: format!("\"bench_options={}\"", self.options()),
            qemu: self.qemu.clone(),
            timeout: TIMEOUT,
            ..Machine::default()
        };
        machine.add_file(&self.kernel, KERNEL)?;
        machine.add_file(&root().join(SCRIPTS).join(SYMBOLS), SYMBOLS)?;
        Ok(machine)
    }

    /// Runs a system's script in a folder of the scripts', and returns what it prints.
    pub(super) fn script(
        &self,
        system: System,
        machine: &Machine,
        folder: &str,
    ) -> Result<(String, Ended)> {
        let parts = match system {
            System::Xen => &self.xen()?.parts,
            _ => self.parts,
        };
        let script = format!("{}.sh", system.name());
        let script = root().join(SCRIPTS).join(folder).join(script);
        let mut output = Vec::new();
        let ended = machine.script(parts, &script, &mut output)?;
        let output = String::from_utf8_lossy(&output).into_owned();
        match ended.status {
            0 => Ok((output, ended)),
            status => Err(format!(
                "{}: status {status}; it printed:\n{output}",
                script.display()
            )),
        }
    }
}

/// Adds a module and what it depends on, with names that tell the order in which they load.
pub(super) fn add_modules(machine: &mut Machine, kernel: &Kernel, path: &str) -> Result<()> {
    let name = Path::new(path).file_name().unwrap_or_default();
    let folder = Path::new("/lib").join(name);
    for (number, module) in (10..).zip(modules::in_order(kernel, path)?) {
        machine.add_file(&module, &format!("{}/{number}.ko", folder.display()))?;
    }
    Ok(())
}

/// Boots what `add` gives QEMU on the emulated machine, with so much memory, until the machine's end. Returns the console's output.
pub(super) fn boot(memory: &str, add: impl FnOnce(&mut Command)) -> Result<String> {
    let folder = RunFolder::new()?;
    let (log, errors) = (folder.join("console.log"), folder.join("qemu.log"));
    let mut qemu = emulator();
    qemu.args(["-cpu", CPU, "-m", memory])
        .args(["-display", "none", "-no-reboot", "-nic", "none"])
        .args(ICOUNT)
        .args(["-rtc", "base=2026-01-01,clock=vm"])
        .args(["-monitor", "none", "-serial"])
        .arg(format!("file:{}", log.display()))
        .stdin(Stdio::null())
        .stderr(File::create(&errors).map_err(context(&errors))?);
    add(&mut qemu);
    supervise::exit_code(&mut qemu, TIMEOUT)?;
    let console = fs::read(&log).map_err(context(&log))?;
    Ok(String::from_utf8_lossy(&console).into_owned())
}
