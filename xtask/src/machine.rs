//! The emulated machine: its kernel and initramfs, and QEMU itself.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::packages::{self, Need};
use crate::{Result, checked, freestanding, root};

const TOOLS: &[Need] = &[
    Need {
        file: "/bin/busybox",
        packages: &["busybox-static"],
        why: "the programs of VM 0's initramfs",
    },
    Need {
        file: "/bin/cpio",
        packages: &["cpio"],
        why: "packs the initramfs",
    },
];

/// The stock kernel: a metapackage of Debian 12, whose dependency is the kernel itself.
const KERNEL: &str = "linux-image-6.12-cloud-amd64";
/// How long a script may take, its boot included.
const SCRIPT_TIMEOUT: Duration = Duration::from_secs(300);

/// What to boot and on what.
pub(crate) struct Machine {
    /// CPUs.
    pub(crate) cpus: String,
    /// Memory, as QEMU spells it.
    pub(crate) memory: String,
    /// CPU model.
    pub(crate) cpu: &'static str,
    /// VM 0's kernel and initramfs are given.
    pub(crate) modules: bool,
}

impl Default for Machine {
    fn default() -> Self {
        Self {
            cpus: "2".into(),
            memory: "4G".into(),
            cpu: "EPYC-Milan",
            modules: true,
        }
    }
}

impl Machine {
    fn qemu(&self, image: &Path, initramfs: &Path) -> Result<Command> {
        let program = std::env::var("MICROVISOR_QEMU");
        let mut qemu = Command::new(program.as_deref().unwrap_or("qemu-system-x86_64"));
        qemu.args(["-machine", "q35", "-accel", "tcg,thread=multi"])
            .args(["-cpu", self.cpu, "-smp", &self.cpus, "-m", &self.memory])
            .args(["-display", "none", "-no-reboot", "-nic", "none"])
            .arg("-kernel")
            .arg(image);
        // It warns of every feature of the CPU model that TCG lacks.
        let errors = folder()?.join("qemu.log");
        let file =
            fs::File::create(&errors).map_err(|error| format!("{}: {error}", errors.display()))?;
        qemu.stderr(file);
        if self.modules {
            let kernel = kernel()?;
            qemu.arg("-initrd").arg(format!(
                "{} console=ttyS0 panic=-1 quiet,{}",
                kernel.display(),
                initramfs.display()
            ));
        }
        Ok(qemu)
    }

    /// Boots to VM 0's shell on this terminal.
    pub(crate) fn interactive(&self) -> Result<()> {
        prepare()?;
        let image = freestanding::build()?;
        println!("starting QEMU; leave with `poweroff`, or ctrl-a x");
        checked(
            self.qemu(&image, &initramfs(None)?)?
                .args(["-serial", "mon:stdio"]),
        )
    }

    /// Runs a script in VM 0, its output streamed to `output`; its exit status.
    pub(crate) fn script(&self, script: &Path, output: Stdio) -> Result<i32> {
        prepare()?;
        let image = freestanding::build()?;
        let folder = folder()?;
        let (log, status) = (folder.join("console.log"), folder.join("status"));
        let _ = fs::remove_file(&status);
        let mut qemu = self.qemu(&image, &initramfs(Some(script))?)?;
        qemu.arg("-serial")
            .arg(format!("file:{}", log.display()))
            .args(["-serial", "stdio", "-serial"])
            .arg(format!("file:{}", status.display()))
            .args(["-monitor", "none"])
            .stdin(Stdio::null())
            .stdout(output);
        let ended = wait(&mut qemu, SCRIPT_TIMEOUT)?;
        let answer = fs::read_to_string(&status).unwrap_or_default();
        match answer.trim().parse() {
            Ok(status) => Ok(status),
            Err(_) if ended => Err(failure(
                "the machine stopped before the script ended (QEMU's own words: qemu.log beside it)",
                &log,
            )),
            Err(_) => Err(failure("the machine hangs", &log)),
        }
    }

    /// What the machine prints on its console in `seconds`: for machines that must not boot.
    pub(crate) fn console(&self, seconds: u64) -> Result<String> {
        prepare()?;
        let image = freestanding::build()?;
        let log = folder()?.join("refused.log");
        let mut qemu = self.qemu(&image, &initramfs(None)?)?;
        qemu.arg("-serial")
            .arg(format!("file:{}", log.display()))
            .stdin(Stdio::null());
        wait(&mut qemu, Duration::from_secs(seconds))?;
        fs::read_to_string(&log).map_err(|error| format!("{}: {error}", log.display()))
    }
}

/// Waits for QEMU, and ends it after `limit`; whether it ended by itself.
fn wait(qemu: &mut Command, limit: Duration) -> Result<bool> {
    let mut child = qemu.spawn().map_err(|error| format!("{qemu:?}: {error}"))?;
    let end = Instant::now() + limit;
    loop {
        if child
            .try_wait()
            .map_err(|error| error.to_string())?
            .is_some()
        {
            return Ok(true);
        }
        if Instant::now() >= end {
            // Already gone is as good as killed.
            let _ = child.kill();
            let _ = child.wait();
            return Ok(false);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn failure(what: &str, log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    let last = &lines[lines.len().saturating_sub(20)..];
    format!("{what}; {} ends:\n{}", log.display(), last.join("\n"))
}

fn folder() -> Result<PathBuf> {
    let folder = root().join("target/machine");
    fs::create_dir_all(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    Ok(folder)
}

fn prepare() -> Result<()> {
    packages::install(TOOLS)?;
    if std::env::var_os("MICROVISOR_QEMU").is_none() {
        packages::install_qemu()?;
    }
    Ok(())
}

/// The stock kernel, downloaded once and unpacked, not installed.
fn kernel() -> Result<PathBuf> {
    let boot = folder()?.join("kernel/boot");
    if let Some(kernel) = find(&boot, "vmlinuz-") {
        return Ok(kernel);
    }
    println!("downloading {KERNEL}: the stock kernel of VM 0");
    let package = packages::dependency(KERNEL)?;
    let folder = folder()?;
    checked(
        Command::new("apt-get")
            .current_dir(&folder)
            .args(["download", "-qq", &package]),
    )?;
    let deb = find(&folder, &package).ok_or_else(|| format!("{package} was not downloaded"))?;
    checked(
        Command::new("dpkg-deb")
            .arg("-x")
            .arg(&deb)
            .arg(folder.join("kernel")),
    )?;
    find(&boot, "vmlinuz-").ok_or_else(|| format!("{package} holds no kernel"))
}

fn find(folder: &Path, prefix: &str) -> Option<PathBuf> {
    fs::read_dir(folder)
        .ok()?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| {
            path.file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with(prefix))
        })
}

/// VM 0's initramfs, with a script to run or without.
fn initramfs(script: Option<&Path>) -> Result<PathBuf> {
    let folder = folder()?;
    let tree = folder.join("initramfs");
    let failed = |error: std::io::Error| format!("{}: {error}", tree.display());
    if tree.exists() {
        fs::remove_dir_all(&tree).map_err(failed)?;
    }
    fs::create_dir_all(tree.join("bin")).map_err(failed)?;
    fs::copy("/bin/busybox", tree.join("bin/busybox")).map_err(failed)?;
    fs::copy(
        root().join("root-partition/initramfs/init"),
        tree.join("init"),
    )
    .map_err(failed)?;
    let mut names = String::from("init\nbin\nbin/busybox\n");
    if let Some(script) = script {
        fs::copy(script, tree.join("script"))
            .map_err(|error| format!("{}: {error}", script.display()))?;
        names.push_str("script\n");
    }
    let archive = folder.join("initramfs.cpio");
    let output = fs::File::create(&archive).map_err(failed)?;
    let mut cpio = Command::new("cpio")
        .current_dir(&tree)
        .args(["--quiet", "--reproducible", "-o", "-H", "newc"])
        .stdin(Stdio::piped())
        .stdout(output)
        .spawn()
        .map_err(|error| format!("cpio: {error}"))?;
    if let Some(mut input) = cpio.stdin.take() {
        input.write_all(names.as_bytes()).map_err(failed)?;
    }
    let status = cpio.wait().map_err(failed)?;
    if !status.success() {
        return Err(format!("cpio: {status}"));
    }
    Ok(archive)
}
