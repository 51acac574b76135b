//! Builds the driver of the root partition, outside its source tree, against the headers of one
//! of Debian's kernels.
//!
//! The headers are unpacked under `target/`, not installed: their packages depend on the kernel's
//! own, which this machine has no use for.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::files::context;
use crate::packages::{self, Need};
use crate::{Result, checked, root};

const TOOLS: &[Need] = &[
    Need {
        file: "/usr/bin/gcc-12",
        packages: &["gcc-12"],
        why: "the compiler that Debian's kernels and their modules are built with",
    },
    Need {
        file: "/usr/bin/make",
        packages: &["make"],
        why: "builds the driver",
    },
    Need {
        file: "/usr/lib/x86_64-linux-gnu/libelf.so.1",
        packages: &["libelf1"],
        why: "the kernel's object checker, which its headers bring, needs it",
    },
];

const MODULE: &str = "microvisor.ko";
const ABI_HEADER: &str = "microvisor_abi.h";

/// Builds the driver for a kernel, `6.12.117+deb12-cloud-amd64` for example; the module. Does
/// nothing when no source has changed.
pub(crate) fn build(kernel: &str) -> Result<PathBuf> {
    let folder = root().join("target/driver").join(kernel);
    fs::create_dir_all(&folder).map_err(context(&folder))?;
    let module = folder.join(MODULE);
    let sources = sources()?;
    let outdated = outdated(&folder, &sources)?;
    if module.exists() && outdated.is_empty() {
        return Ok(module);
    }
    // First of all: a build that fails must not leave the former module for the next one to find.
    if module.exists() {
        fs::remove_file(&module).map_err(context(&module))?;
    }
    for path in outdated {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        match sources.get(&*name) {
            Some(content) => fs::write(&path, content),
            None => fs::remove_file(&path),
        }
        .map_err(context(&path))?;
    }
    packages::install(TOOLS)?;
    let headers = headers(kernel)?;
    eprintln!("building the driver for {kernel}");
    checked(
        Command::new("make")
            .arg("--silent")
            .arg("-C")
            .arg(&headers)
            .arg(format!("M={}", folder.display()))
            .arg("KCFLAGS=-Werror")
            // Debug information would only make the initramfs larger.
            .args(["CONFIG_DEBUG_INFO=", "CONFIG_DEBUG_INFO_BTF_MODULES="])
            .arg("modules"),
    )?;
    Ok(module)
}

/// Builds it for the oldest kernel that it is for: Debian 12's own, 6.1.
pub(crate) fn build_for_oldest() -> Result<()> {
    let package = packages::dependency("linux-headers-cloud-amd64")?;
    let release = package.strip_prefix("linux-headers-");
    let release = release.ok_or_else(|| format!("{package} is not a kernel's headers"))?;
    build(release).map(drop)
}

/// What the build consists of, by name.
fn sources() -> Result<BTreeMap<String, Vec<u8>>> {
    let folder = root().join("root-partition/driver");
    let failed = context(&folder);
    let mut files = BTreeMap::from([(ABI_HEADER.to_string(), abi_header()?)]);
    for entry in fs::read_dir(&folder).map_err(&failed)? {
        let entry = entry.map_err(&failed)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name == "Kbuild" || is_source(&name) {
            files.insert(name, fs::read(entry.path()).map_err(&failed)?);
        }
    }
    Ok(files)
}

/// The files of `folder` that differ from the sources, are missing, or should not be there.
fn outdated(folder: &Path, sources: &BTreeMap<String, Vec<u8>>) -> Result<Vec<PathBuf>> {
    let failed = context(folder);
    let mut files: Vec<PathBuf> = sources
        .iter()
        .map(|(name, content)| (folder.join(name), content))
        .filter(|(path, content)| !fs::read(path).is_ok_and(|there| there == **content))
        .map(|(path, _)| path)
        .collect();
    for entry in fs::read_dir(folder).map_err(&failed)? {
        let entry = entry.map_err(&failed)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        // `*.mod.c` is the build's own.
        if is_source(&name) && !name.ends_with(".mod.c") && !sources.contains_key(&name) {
            files.push(entry.path());
        }
    }
    Ok(files)
}

fn is_source(name: &str) -> bool {
    name.ends_with(".c") || name.ends_with(".h")
}

/// The ABI as C, printed from its definitions.
fn abi_header() -> Result<Vec<u8>> {
    let output = Command::new("cargo")
        .current_dir(root())
        .args(["run", "--quiet", "--package", "guest-proto"])
        .args(["--features", "codegen", "--bin", "abi", "--", "c-header"])
        .stderr(std::process::Stdio::inherit())
        .output()
        .map_err(|error| format!("cargo: {error}"))?;
    if output.status.success() {
        Ok(output.stdout)
    } else {
        Err(format!("printing the ABI's C header: {}", output.status))
    }
}

/// The kernel's headers, downloaded once.
fn headers(kernel: &str) -> Result<PathBuf> {
    let folder = root().join("target/headers").join(kernel);
    let tree = format!("usr/src/linux-headers-{kernel}");
    if folder.exists() {
        return Ok(folder.join(tree));
    }
    eprintln!("downloading the headers of kernel {kernel}");
    let package = format!("linux-headers-{kernel}");
    let mut wanted = packages::dependencies(&package)?;
    wanted.retain(|name| name.starts_with("linux-headers-") || name.starts_with("linux-kbuild-"));
    wanted.push(package);
    // Renamed at the end, so that what is there is whole.
    let part = root().join(format!("target/headers/{kernel}.part"));
    if part.exists() {
        fs::remove_dir_all(&part).map_err(context(&part))?;
    }
    packages::unpack(&wanted, &part)?;
    // It names the common headers by the place where they would be installed.
    let makefile = part.join(&tree).join("Makefile");
    let failed = context(&makefile);
    let text = fs::read_to_string(&makefile).map_err(&failed)?;
    let here = format!("include {}/usr/src/", folder.display());
    fs::write(&makefile, text.replace("include /usr/src/", &here)).map_err(&failed)?;
    fs::rename(&part, &folder).map_err(context(&folder))?;
    Ok(folder.join(tree))
}
