//! Debian packages: installs what is missing, and says what for.

use std::path::Path;
use std::process::Command;

use crate::{Result, checked};

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
        println!("installing {}: {}", need.packages.join(" "), need.why);
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
    // `id -u` rather than a crate: this is the only place that asks.
    let root = Command::new("id")
        .arg("-u")
        .output()
        .is_ok_and(|output| output.stdout.trim_ascii() == b"0");
    let mut command = if root {
        Command::new("apt-get")
    } else {
        let mut sudo = Command::new("sudo");
        sudo.arg("apt-get");
        sudo
    };
    command.env("DEBIAN_FRONTEND", "noninteractive");
    command
}
