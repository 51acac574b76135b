//! Debian packages: installs what is missing, and says what for.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{Result, checked, files};

/// Something a step needs: a file that shows that it is there, and where it comes from.
pub(crate) struct Need {
    /// Present if and only if the packages are installed.
    pub(crate) file: &'static str,
    /// Debian packages that bring it.
    pub(crate) packages: &'static [&'static str],
    /// What for, to tell the user.
    pub(crate) why: &'static str,
}

/// Installs the packages of every need whose file is missing.
pub(crate) fn install(needs: &[Need]) -> Result<()> {
    let missing: Vec<&Need> = needs
        .iter()
        .filter(|need| !Path::new(need.file).exists())
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    for need in &missing {
        eprintln!("installing {}: {}", need.packages.join(" "), need.why);
    }
    checked(apt_get().arg("update").arg("-qq"))?;
    let packages = missing.iter().flat_map(|need| need.packages);
    checked(
        apt_get()
            .args(["install", "-y", "-qq", "--no-install-recommends"])
            .args(packages),
    )
}

fn apt_get() -> Command {
    let mut command = as_root("apt-get");
    command.env("DEBIAN_FRONTEND", "noninteractive");
    // A fresh machine's own upgrades may be under way.
    command.args(["-o", "DPkg::Lock::Timeout=600"]);
    command
}

fn as_root(program: &str) -> Command {
    // `id -u` rather than a crate: this is the only place that asks.
    let root = Command::new("id")
        .arg("-u")
        .output()
        .is_ok_and(|output| output.stdout.trim_ascii() == b"0");
    if root {
        return Command::new(program);
    }
    let mut sudo = Command::new("sudo");
    sudo.arg(program);
    sudo
}

const BACKPORTS: &str = "deb http://deb.debian.org/debian bookworm-backports main";
const BACKPORTS_FILE: &str = "/etc/apt/sources.list.d/microvisor-backports.list";

/// Names another QEMU.
pub(crate) const QEMU: &str = "MICROVISOR_QEMU";

/// Installs QEMU 9 or later: the first with x2APIC in TCG. Debian 12's own is 7.2.
pub(crate) fn install_qemu() -> Result<()> {
    if std::env::var_os(QEMU).is_some() || qemu_major().is_some_and(|major| major >= 9) {
        return Ok(());
    }
    eprintln!("installing qemu-system-x86 from bookworm-backports: the emulated machine");
    // Through a shell: the file needs root, which `apt_get` may get by sudo.
    let mut write = as_root("sh");
    write.args(["-c", &format!("echo '{BACKPORTS}' > {BACKPORTS_FILE}")]);
    checked(&mut write)?;
    checked(apt_get().arg("update").arg("-qq"))?;
    checked(apt_get().args([
        "install",
        "-y",
        "-qq",
        "--no-install-recommends",
        "-t",
        "bookworm-backports",
        "qemu-system-x86",
    ]))
}

/// `QEMU emulator version 10.0.2 (Debian ...)` → 10.
fn qemu_major() -> Option<u32> {
    let output = Command::new("qemu-system-x86_64")
        .arg("--version")
        .output()
        .ok()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let version = text.split_once("version ")?.1;
    version.split('.').next()?.parse().ok()
}

/// Downloads the package that a metapackage depends on; the file.
pub(crate) fn download(metapackage: &str) -> Result<PathBuf> {
    let package = dependency(metapackage)?;
    let folder = files::folder()?;
    fetch(&[&package], &folder)?;
    files::newest(&folder, &format!("{package}_"))
        .ok_or_else(|| format!("{package} was not downloaded"))
}

/// Downloads packages into a folder.
fn fetch(packages: &[impl AsRef<OsStr>], folder: &Path) -> Result<()> {
    checked(
        Command::new("apt-get")
            .current_dir(folder)
            // Else root's apt warns that its own user may not write here.
            .args(["-o", "APT::Sandbox::User=root"])
            .args(["download", "-qq"])
            .args(packages),
    )
}

/// The package that a metapackage depends on.
pub(crate) fn dependency(package: &str) -> Result<String> {
    let found = dependencies(package)?.into_iter().next();
    found.ok_or_else(|| format!("{package}: depends on nothing"))
}

/// What a package depends on, first choices and alternatives alike.
pub(crate) fn dependencies(package: &str) -> Result<Vec<String>> {
    let ask = || {
        let output = Command::new("apt-cache")
            .args(["depends", package])
            .output()
            .ok()?;
        let text = String::from_utf8_lossy(&output.stdout);
        let names = text
            .lines()
            .filter_map(|line| Some(line.split_once("Depends: ")?.1.trim().to_string()));
        Some(names.collect::<Vec<_>>()).filter(|names| !names.is_empty())
    };
    answer(ask)?.ok_or_else(|| format!("{package}: no such Debian package"))
}

/// Asks something of the package lists, and once more with new ones if there is no answer: a fresh machine has none.
fn answer<T>(ask: impl Fn() -> Option<T>) -> Result<Option<T>> {
    if let Some(answer) = ask() {
        return Ok(Some(answer));
    }
    checked(apt_get().arg("update").arg("-qq"))?;
    Ok(ask())
}

/// Returns these packages and, of what they depend on, those that are not installed.
pub(crate) fn with_missing(packages: &[&str]) -> Result<Vec<String>> {
    let ask = || {
        let output = Command::new("apt-get")
            .args(["install", "--simulate", "-qq", "--no-install-recommends"])
            .args(packages)
            .output()
            .ok()
            .filter(|output| output.status.success())?;
        // "Inst NAME (1.2 Debian...)"; an upgrade has the old version before the new one: "Inst NAME [1.1] (1.2 ...)".
        let text = String::from_utf8_lossy(&output.stdout);
        let new = text.lines().filter_map(|line| {
            let (name, rest) = line.strip_prefix("Inst ")?.split_once(' ')?;
            rest.starts_with('(').then(|| name.to_owned())
        });
        Some(new.collect::<Vec<_>>())
    };
    let no_such = || format!("{}: no such packages", packages.join(", "));
    let mut found = answer(ask)?.ok_or_else(no_such)?;
    found.extend(packages.iter().map(|name| (*name).to_owned()));
    found.sort_unstable();
    found.dedup();
    Ok(found)
}

/// Downloads packages and unpacks them into a new folder, without installing them.
pub(crate) fn unpack(packages: &[String], folder: &Path) -> Result<()> {
    let archives = folder.join("archives");
    let failed = files::context(&archives);
    fs::create_dir_all(&archives).map_err(&failed)?;
    fetch(packages, &archives)?;
    for archive in fs::read_dir(&archives).map_err(&failed)? {
        let archive = archive.map_err(&failed)?.path();
        checked(Command::new("dpkg-deb").arg("-x").arg(&archive).arg(folder))?;
    }
    fs::remove_dir_all(&archives).map_err(failed)
}
