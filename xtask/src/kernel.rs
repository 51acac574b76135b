//! Stock kernels: Debian's packages, downloaded and unpacked, never installed; or a file of the user's.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::files::{context, newest, unpacked};
use crate::packages::{self, Need};
use crate::{Result, checked};

/// The kernel of VM 0 and of the demo guest: a metapackage of Debian 12, whose dependency is the kernel.
const STOCK: &str = "linux-image-6.12-cloud-amd64";

/// What of a bzImage's header is needed here: where it is.
const SETUP_SECTORS: usize = 0x1f1;
const PAYLOAD_OFFSET: usize = 0x248;
const PAYLOAD_LENGTH: usize = 0x24c;

const ZSTD: &[Need] = &[Need {
    file: "/usr/bin/zstd",
    packages: &["zstd"],
    why: "unpacks the ELF file inside of a kernel's image",
}];

/// A kernel, and its modules if it came with any.
#[derive(Clone)]
pub(crate) struct Kernel {
    /// The bzImage.
    pub(crate) image: PathBuf,
    /// `lib/modules/RELEASE`, where the kernel came from a package.
    pub(crate) modules: Option<PathBuf>,
}

impl Kernel {
    /// The stock kernel.
    pub(crate) fn stock() -> Result<Self> {
        Self::of(STOCK)
    }

    /// The kernel that a metapackage of Debian's depends on, downloaded once.
    pub(crate) fn of(metapackage: &str) -> Result<Self> {
        let folder = unpacked(metapackage)?;
        if !folder.exists() {
            eprintln!("downloading {metapackage}: an unmodified kernel");
            let package = packages::download(metapackage)?;
            unpack(&package, &folder)?;
        }
        Self::in_folder(&folder)
    }

    /// What the user names: a Debian package or a bzImage.
    pub(crate) fn named(file: &Path) -> Result<Self> {
        let failed = context(file);
        let metadata = fs::metadata(file).map_err(&failed)?;
        if file.extension().is_none_or(|extension| extension != "deb") {
            return Ok(Self {
                image: file.canonicalize().map_err(failed)?,
                modules: None,
            });
        }
        let stem = file.file_stem().unwrap_or_default().to_string_lossy();
        let folder = unpacked(&format!("{stem}-{}", metadata.len()))?;
        if !folder.exists() {
            unpack(file, &folder)?;
        }
        Self::in_folder(&folder)
    }

    /// Its release, as `uname -r` prints it; known where it came from a package.
    pub(crate) fn release(&self) -> Option<&str> {
        self.modules.as_deref()?.file_name()?.to_str()
    }

    /// The ELF file inside of the image, which boots by PVH. The payload's place is in the header
    /// (Linux's `Documentation/arch/x86/boot.rst`).
    pub(crate) fn elf(&self) -> Result<PathBuf> {
        // Not a name that `in_folder` takes for an image.
        let elf = self.image.with_file_name("vmlinux");
        if elf.exists() {
            return Ok(elf);
        }
        packages::install(ZSTD)?;
        let image = fs::read(&self.image).map_err(context(&self.image))?;
        let payload =
            payload(&image).ok_or_else(|| format!("{}: no bzImage", self.image.display()))?;
        let packed = elf.with_extension("zst");
        let partial = elf.with_extension("partial");
        fs::write(&packed, payload).map_err(context(&packed))?;
        checked(
            Command::new("zstd")
                .args(["--decompress", "--quiet", "--force", "-o"])
                .args([&partial, &packed]),
        )?;
        fs::rename(&partial, &elf).map_err(context(&elf))?;
        Ok(elf)
    }

    fn in_folder(folder: &Path) -> Result<Self> {
        let image = newest(&folder.join("boot"), "vmlinuz-")
            .ok_or_else(|| format!("{}: holds no kernel", folder.display()))?;
        Ok(Self {
            image,
            modules: newest(&folder.join("lib/modules"), ""),
        })
    }
}

/// The compressed kernel in a bzImage, without the size that follows it.
fn payload(image: &[u8]) -> Option<&[u8]> {
    let word = |at: usize| {
        let bytes = image.get(at..at + 4)?.try_into().ok()?;
        usize::try_from(u32::from_le_bytes(bytes)).ok()
    };
    let setup = (usize::from(*image.get(SETUP_SECTORS)?) + 1) * 512;
    let start = setup + word(PAYLOAD_OFFSET)?;
    image.get(start..start + word(PAYLOAD_LENGTH)?.checked_sub(4)?)
}

/// Unpacks a package; the folder appears when it is complete.
fn unpack(package: &Path, folder: &Path) -> Result<()> {
    let partial = folder.with_extension("partial");
    let _ = fs::remove_dir_all(&partial);
    checked(
        Command::new("dpkg-deb")
            .arg("-x")
            .arg(package)
            .arg(&partial),
    )?;
    fs::rename(&partial, folder).map_err(context(folder))
}
