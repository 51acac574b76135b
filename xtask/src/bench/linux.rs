//! The rows of whole guests, and of Linux on a bare machine and as VM 0: `root-partition/bench/linux`.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::profile::{self, segments};
use super::results::{Measured, Samples, parse};
use super::systems::{self, Run, SCRIPTS, System};
use crate::archive::Archive;
use crate::files::{context, folder};
use crate::machine::Machine;
use crate::packages::{self, Need};
use crate::run_folder::RunFolder;
use crate::{Result, checked, initramfs, root};

const TCC: &str = "/usr/bin/tcc";
const COMPILER: &[Need] = &[Need {
    file: TCC,
    packages: &["tcc"],
    why: "the compiler whose work the benchmarks measure",
}];

/// The folder of its scripts.
const FOLDER: &str = "linux";
/// Options of the Linux that is measured, everywhere.
const OPTIONS: &str = "panic=-1 no_timer_check cryptomgr.notests nokaslr norandmaps";
/// Memory of the machines that boot Linux, bare and as VM 0: GiB and the name of the row.
const BOOTS: [(u32, &str); 3] = [
    (1, "root-boot-1g"),
    (4, "root-boot-4g"),
    (16, "root-boot-16g"),
];
/// How long an idle guest is looked at.
const IDLE_SECONDS: u64 = 20;
/// The machine that also carries out jobs.
const JOBS_GIB: u32 = 4;
/// What the names of its jobs begin with.
const JOBS: &str = "root-";

/// The files that the measured Linux needs.
pub(super) struct Linux {
    initramfs: PathBuf,
    /// The program that prints the time-stamp counter.
    ticks: PathBuf,
}

impl Linux {
    /// Builds the files.
    pub(super) fn new() -> Result<Self> {
        packages::install(COMPILER)?;
        let ticks = folder()?.join("ticks");
        checked(
            Command::new("cc")
                .args(["-O2", "-static", "-o"])
                .arg(&ticks)
                .arg(root().join(SCRIPTS).join("ticks.c")),
        )?;
        let mut archive = Archive::default();
        archive.file(
            &root().join(SCRIPTS).join(FOLDER).join("init"),
            "init",
            0o755,
        );
        archive.file(&ticks, "bin/ticks", 0o755);
        archive.file(Path::new(initramfs::BUSYBOX), "bin/busybox", 0o755);
        initramfs::add_program(&mut archive, Path::new(TCC), "bin/tcc")?;
        let (text, source) = jobs();
        archive.text(text, "text");
        archive.text(source, "text.c");
        // Where the first process mounts.
        archive.text("", "dev/none");
        let initramfs = folder()?.join("bench.cpio");
        archive.write_cached(&initramfs)?;
        Ok(Self { initramfs, ticks })
    }

    /// Measures Linux on the machine itself, or as VM 0.
    pub(super) fn measure_root(&self, run: &Run<'_>, system: System) -> Result<Measured> {
        let mut measured = Measured::new();
        if matches!(system, System::Bare | System::Microvisor) {
            for (gib, row) in BOOTS {
                measured.extend(self.boot(run, system, gib, row)?);
            }
        }
        Ok(measured)
    }

    /// Measures whole guests, which a bare machine does not have.
    pub(super) fn measure_guests(&self, run: &Run<'_>, system: System) -> Result<Measured> {
        if system == System::Bare {
            return Ok(Measured::new());
        }
        let machine = self.machine(run, system)?;
        parse(&run.script(system, &machine, FOLDER)?.0)
    }

    /// Measures what only QEMU's plugin can count, because it happens while nobody reads the time-stamp counter.
    pub(super) fn measure_counted(&self, run: &Run<'_>, system: System) -> Result<Measured> {
        if system == System::Bare {
            return Ok(Measured::new());
        }
        let folder = RunFolder::new()?;
        let counted = folder.join("counted");
        let mut machine = self.machine(run, system)?;
        machine.options += " bench_counted=1";
        machine.qemu = profile::options(&counted)?;
        run.script(system, &machine, FOLDER)?;
        let counted = fs::read_to_string(&counted).map_err(context(&counted))?;
        let segments = segments(&counted);
        // With Xen, Linux guests cannot be measured.
        let count = if system == System::Xen { 1 } else { 2 };
        if segments.len() != count {
            return Err(format!(
                "{} segments were counted, not {count}",
                segments.len()
            ));
        }
        let rows = [("first-instruction", 1), ("idle", IDLE_SECONDS)];
        let rows = rows.into_iter().zip(segments);
        Ok(rows
            .map(|((row, operations), segment)| (row.to_owned(), Samples::new(operations, segment)))
            .collect())
    }

    /// Boots Linux on the machine itself, or as VM 0.
    fn boot(&self, run: &Run<'_>, system: System, gib: u32, row: &str) -> Result<Measured> {
        let mut options = format!("console=ttyS0 quiet {OPTIONS} boot={row}");
        if gib == JOBS_GIB {
            options += &format!(" jobs={JOBS}");
        }
        let kernel = &run.parts.kernel.image;
        let console = systems::boot(&format!("{gib}G"), |qemu| {
            if system == System::Bare {
                qemu.arg("-kernel").arg(kernel).args(["-append", &options]);
                qemu.arg("-initrd").arg(&self.initramfs);
            } else {
                qemu.arg("-kernel").arg(&run.parts.image);
                qemu.args(["-append", run.parts.options, "-initrd"]);
                let (kernel, initramfs) = (kernel.display(), self.initramfs.display());
                qemu.arg(format!("{kernel} {options},{initramfs}"));
            }
        })?;
        parse(&console)
    }

    /// A machine for guests of Linux.
    fn machine(&self, run: &Run<'_>, system: System) -> Result<Machine> {
        let mut machine = run.machine(system)?;
        // Linux makes a variable of an option that it does not know.
        machine.options = format!("\"linux_options={OPTIONS}\"");
        // Of Xen's guests all memory is there from the start.
        let memory = if system == System::Xen { "12G" } else { "8G" };
        machine.memory = memory.into();
        machine.add_file(&run.parts.kernel.image, "vmlinuz")?;
        machine.add_file(&self.initramfs, "bench-initrd")?;
        machine.add_file(&self.ticks, "/bin/ticks")?;
        let common = root().join(SCRIPTS).join(FOLDER).join("common.sh");
        machine.add_file(&common, "common.sh")?;
        Ok(machine)
    }
}

/// Returns what the jobs work on: a text to compress, and a program in C to compile.
fn jobs() -> (String, String) {
    let (mut text, mut source) = (String::new(), String::new());
    let mut random: u32 = 1;
    for line in 0..12_000 {
        for _ in 0..8 {
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let _ = write!(text, "{} ", random >> 18);
        }
        text += "of the numbers that a generator gives\n";
        if line < 4000 {
            let factor = random >> 16;
            let _ = writeln!(
                source,
                "int f{line}(int a, int b) {{ for (int i = a; i < b; i++) a = a * {factor} + (i ^ b); return a; }}"
            );
        }
    }
    (text, source)
}
