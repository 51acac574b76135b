//! The emulated machine: QEMU and its devices.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::Result;
use crate::files::context;
use crate::image;
use crate::initramfs::{self, Addition};
use crate::iso;
use crate::packages::QEMU;
use crate::parts::Parts;
use crate::run_folder::RunFolder;
use crate::supervise::{self, Files};

/// One thread for all CPUs. With a thread each, QEMU 10.0 corrupts a hypervisor on its first CPU: any
/// other CPU that restores x87 state writes that CPU's `hflags2` (`cpu_clear_ignne`), unlocked, and
/// brings back what GIF and nested paging were.
const ACCELERATOR: &str = "tcg,thread=single";
/// Options of the microvisor's for QEMU's TCG.
pub(crate) const TCG_OPTIONS: &str = "tpr-window=off";
/// Arguments with which the time-stamp counter counts instructions.
pub(crate) const ICOUNT: [&str; 4] = ["-seed", "1", "-icount", "shift=0,sleep=off"];

/// How the microvisor is loaded.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) enum Boot {
    /// By QEMU, by Multiboot 1.
    #[default]
    Direct,
    /// By GRUB from an ISO, by Multiboot 2.
    Iso,
    /// The same on UEFI.
    Uefi,
}

/// One end of a cable between two machines: a socket of this path.
#[derive(Clone, Debug)]
pub(crate) enum CableEnd {
    /// The machine that is started first.
    First(PathBuf),
    /// The other one, which waits for the first.
    Second(PathBuf),
}

impl CableEnd {
    /// Returns QEMU's options for a network card with the cable.
    fn options(&self) -> Result<[String; 4]> {
        let (path, is_first) = match self {
            Self::First(path) => (path, true),
            Self::Second(path) => (path, false),
        };
        let deadline = Instant::now() + CABLE_TIMEOUT;
        while !is_first && !path.exists() {
            if Instant::now() >= deadline {
                return Err("the other machine was not started".into());
            }
            thread::sleep(Duration::from_millis(10));
        }
        let (server, number) = if is_first { ("on", 1) } else { ("off", 2) };
        let path = path.display();
        Ok([
            "-netdev".into(),
            format!("stream,id=cable,server={server},addr.type=unix,addr.path={path}"),
            "-device".into(),
            format!("virtio-net-pci,netdev=cable,mac=52:54:00:00:02:0{number},romfile="),
        ])
    }
}

/// What to boot on.
#[derive(Clone)]
pub(crate) struct Machine {
    /// CPUs.
    pub(crate) cpus: u32,
    /// Memory, as QEMU spells it.
    pub(crate) memory: String,
    /// CPU model.
    pub(crate) cpu: String,
    /// VM 0's kernel and initramfs are given.
    pub(crate) modules: bool,
    /// More of VM 0's command line.
    pub(crate) options: String,
    /// The microvisor's own command line.
    pub(crate) own_options: String,
    /// Linux without the microvisor below it.
    pub(crate) bare: bool,
    /// How the microvisor is loaded.
    pub(crate) boot: Boot,
    /// Time is instructions.
    pub(crate) icount: bool,
    /// VM 0 may reboot; otherwise its reboot ends the machine.
    pub(crate) reboots: bool,
    /// What the run puts into VM 0.
    pub(crate) add: Vec<Addition>,
    /// More disks of VM 0: raw images, or folders whose files are put into a file system. What VM 0
    /// writes to them is gone when the machine ends.
    pub(crate) disks: Vec<PathBuf>,
    /// Its cable to another machine.
    pub(crate) cable: Option<CableEnd>,
    /// More arguments of QEMU's.
    pub(crate) qemu: Vec<String>,
    /// How long it may run when nobody sits in front of it.
    pub(crate) timeout: Duration,
}

impl Default for Machine {
    fn default() -> Self {
        Self {
            cpus: 2,
            memory: "4G".into(),
            cpu: "EPYC-Milan".into(),
            modules: true,
            options: String::new(),
            own_options: String::new(),
            bare: false,
            boot: Boot::Direct,
            icount: false,
            reboots: false,
            add: Vec::new(),
            disks: Vec::new(),
            cable: None,
            qemu: Vec::new(),
            timeout: Duration::from_secs(300),
        }
    }
}

/// A script that ended.
pub(crate) struct Ended {
    /// Its exit status.
    pub(crate) status: u8,
    name: String,
    folder: RunFolder,
}

impl Ended {
    /// Returns the image of the scratch disk, which the script may have written to.
    pub(crate) fn disk(&self) -> PathBuf {
        self.folder.join(DISK)
    }

    /// Keeps the console's log; where.
    pub(crate) fn keep_log(&self) -> Result<PathBuf> {
        self.folder.keep(&self.folder.join(CONSOLE), &self.name)
    }
}

/// How long a machine waits for the one at the other end of its cable.
const CABLE_TIMEOUT: Duration = Duration::from_secs(60);
const CONSOLE: &str = "console.log";
/// What QEMU's monitor answers.
const MONITOR: &str = "monitor";
/// What QEMU complains of.
const ERRORS: &str = "qemu.log";
/// The scratch disk.
const DISK: &str = "disk";
/// Its size in bytes.
const DISK_SIZE: u64 = 64 << 20;

impl Machine {
    /// Puts a file into the scripts' folder.
    pub(crate) fn add_file(&mut self, from: &Path, name: &str) -> Result<()> {
        self.add.push(format!("{}:{name}", from.display()).parse()?);
        Ok(())
    }

    /// Boots to VM 0's shell on this terminal.
    pub(crate) fn interactive(&self, parts: &Parts) -> Result<()> {
        let folder = RunFolder::new()?;
        let mut qemu = self.qemu(parts, &folder, None)?;
        qemu.args(["-serial", "mon:stdio"]);
        eprintln!("starting QEMU; leave with `poweroff`, or ctrl-a x");
        match qemu.status() {
            Ok(status) if status.success() => Ok(()),
            Ok(status) => Err(format!("QEMU: {status}")),
            Err(error) => Err(format!("{qemu:?}: {error}")),
        }
    }

    /// Runs a script in VM 0, its output streamed to `output`.
    pub(crate) fn script(
        &self,
        parts: &Parts,
        script: &Path,
        output: &mut dyn Write,
    ) -> Result<Ended> {
        let folder = RunFolder::new()?;
        let files = Files {
            console: folder.join(CONSOLE),
            output: folder.join("output"),
            status: folder.join("status"),
        };
        let mut qemu = self.qemu(parts, &folder, Some(script))?;
        for file in [&files.console, &files.output, &files.status] {
            // Through files, which unlike pipes and terminals are never full.
            File::create(file).map_err(context(file))?;
            qemu.arg("-serial").arg(format!("file:{}", file.display()));
        }
        let monitor = folder.join(MONITOR);
        let answers = File::create(&monitor).map_err(context(&monitor))?;
        qemu.args(["-monitor", "stdio"])
            .stdin(Stdio::piped())
            .stdout(answers);
        let name = script.file_stem().unwrap_or_default().to_string_lossy();
        let name = name.into_owned();
        match supervise::script(&mut qemu, &files, self.timeout, output) {
            Ok(status) => Ok(Ended {
                status,
                name,
                folder,
            }),
            Err(what) => Err(failure(&what, &folder, &name)),
        }
    }

    /// What the microvisor says on its console when it refuses to start.
    pub(crate) fn refusal(&self, parts: &Parts) -> Result<String> {
        let folder = RunFolder::new()?;
        let log = folder.join(CONSOLE);
        File::create(&log).map_err(context(&log))?;
        let mut qemu = self.qemu(parts, &folder, None)?;
        qemu.arg("-serial")
            .arg(format!("file:{}", log.display()))
            .args(["-monitor", "none"])
            .stdin(Stdio::null());
        supervise::refusal(&mut qemu, &log, self.timeout)
            .map_err(|what| failure(&what, &folder, "refusal"))
    }

    fn qemu(&self, parts: &Parts, folder: &RunFolder, script: Option<&Path>) -> Result<Command> {
        let mut qemu = emulator();
        qemu.args(["-cpu", &self.cpu, "-m", &self.memory])
            .args(["-smp", &self.cpus.to_string()])
            .args(["-display", "none", "-device", "virtio-blk-pci,drive=disk"])
            // A network of QEMU's own; the card's boot program is for machines that boot from it.
            .args(["-netdev", "user,id=network"])
            .args(["-device", "virtio-net-pci,netdev=network,romfile="]);
        qemu.args(&self.qemu);
        if let Some(cable) = &self.cable {
            qemu.args(cable.options()?);
        }
        if !self.reboots {
            qemu.arg("-no-reboot");
        }
        // It keeps what is written to it over a reboot, and goes with the run.
        let disk = folder.join(DISK);
        let file = File::create(&disk).map_err(context(&disk))?;
        file.set_len(DISK_SIZE).map_err(context(&disk))?;
        qemu.arg("-drive").arg(format!(
            "if=none,id=disk,format=raw,cache=unsafe,file={}",
            disk.display()
        ));
        for (index, disk) in self.disks.iter().enumerate() {
            let made = folder.join(&format!("disk{index}"));
            let disk = if disk.is_dir() {
                image::file_system(disk, &made)?;
                &made
            } else {
                disk
            };
            qemu.args(["-device", &format!("virtio-blk-pci,drive=disk{index}")])
                .arg("-drive")
                .arg(format!(
                    "if=none,id=disk{index},format=raw,cache=unsafe,snapshot=on,file={}",
                    disk.display()
                ));
        }
        // On a busy host the emulated timer is late, and Linux takes that for a broken IO-APIC and panics;
        // no_timer_check is what Linux sets by itself on the hypervisors that it knows. Self-tests of the kernel's
        // cryptography keep an emulated CPU busy for seconds.
        let mut options =
            "console=ttyS0 panic=-1 quiet no_timer_check cryptomgr.notests".to_owned();
        if !self.options.is_empty() {
            options.push_str(&format!(" {}", self.options));
        }
        if self.icount {
            qemu.args(ICOUNT).args(["-rtc", "base=2026-01-01,clock=vm"]);
            options.push_str(" nokaslr norandmaps");
        } else if script.is_some() {
            options.push_str(&format!(" script_timeout={}", self.timeout.as_secs()));
        }
        let errors = folder.join(ERRORS);
        qemu.stderr(File::create(&errors).map_err(context(&errors))?);
        if !self.bare && self.boot == Boot::Direct {
            qemu.arg("-kernel").arg(&parts.image);
            qemu.args([
                "-append",
                &format!("{} {}", parts.options, self.own_options),
            ]);
        }
        if self.modules {
            let initramfs = folder.join("initramfs.cpio");
            fs::copy(&parts.initramfs, &initramfs).map_err(context(&parts.initramfs))?;
            let file = File::options().append(true).open(&initramfs);
            let file = file.map_err(context(&initramfs))?;
            initramfs::additions(script, &self.add)?.write(io::BufWriter::new(file))?;
            if self.bare {
                options.push_str(" novmctl");
                qemu.arg("-kernel").arg(&parts.kernel.image);
                qemu.arg("-initrd").arg(&initramfs);
                qemu.args(["-append", &options]);
            } else if self.boot != Boot::Direct {
                let contents = iso::Contents {
                    image: &parts.image,
                    kernel: &parts.kernel.image,
                    initramfs: &initramfs,
                    options: &options,
                };
                let iso = folder.join("boot.iso");
                iso::write(&contents, &folder.join("iso"), &iso)?;
                qemu.args(["-device", "ide-cd,drive=cd,bootindex=0", "-drive"])
                    .arg(format!(
                        "if=none,id=cd,media=cdrom,readonly=on,file={}",
                        iso.display()
                    ));
                if self.boot == Boot::Uefi {
                    qemu.arg("-drive").arg(format!(
                        "if=pflash,format=raw,readonly=on,file={}",
                        iso::UEFI
                    ));
                }
            } else {
                qemu.arg("-initrd").arg(format!(
                    "{} {options},{}",
                    parts.kernel.image.display(),
                    initramfs.display()
                ));
            }
        }
        Ok(qemu)
    }
}

/// Returns QEMU with the machine and the accelerator of all machines. It goes when this process does, however it goes.
pub(crate) fn emulator() -> Command {
    let program = std::env::var(QEMU);
    let mut qemu = Command::new("setpriv");
    qemu.args(["--pdeathsig", "KILL"])
        .arg(program.as_deref().unwrap_or("qemu-system-x86_64"))
        .args(["-machine", "q35", "-accel", ACCELERATOR]);
    qemu
}

/// What went wrong, with the end of the console's log and where the whole of it is.
fn failure(what: &str, folder: &RunFolder, name: &str) -> String {
    let log = folder.join(CONSOLE);
    let text = fs::read(&log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    let last = lines[lines.len().saturating_sub(20)..].join("\n");
    let kept = match folder.keep(&log, name) {
        Ok(kept) => kept.display().to_string(),
        Err(error) => error,
    };
    let mut message = format!("{what}; the console ({kept}) ends:\n{last}");
    message += &section("The CPUs are at", &folder.join(MONITOR), |line| {
        line.starts_with("CPU#") || line.starts_with("RIP=")
    });
    // QEMU warns of every feature of the CPU model that TCG lacks.
    message += &section("QEMU says", &folder.join(ERRORS), |line| {
        !line.contains("TCG doesn't support requested feature")
    });
    message
}

/// The lines of a file that are wanted, below a title; nothing if there are none.
fn section(title: &str, file: &Path, wanted: impl Fn(&str) -> bool) -> String {
    let text = fs::read_to_string(file).unwrap_or_default();
    let lines: Vec<&str> = text.lines().filter(|line| wanted(line)).collect();
    if lines.is_empty() {
        return String::new();
    }
    format!("\n{title}:\n{}", lines.join("\n"))
}
