//! A GRUB ISO: the image, VM 0's kernel and its initramfs by Multiboot 2, for BIOS and UEFI.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::files::{context, folder};
use crate::machine::TCG_OPTIONS;
use crate::packages::{self, Need};
use crate::parts::Parts;
use crate::{Result, checked};

/// UEFI for QEMU.
pub(crate) const UEFI: &str = "/usr/share/OVMF/OVMF_CODE_4M.fd";

const TOOLS: &[Need] = &[
    Need {
        file: "/usr/bin/grub-mkrescue",
        packages: &["grub-common"],
        why: "makes a bootable ISO",
    },
    Need {
        file: "/usr/lib/grub/i386-pc/multiboot2.mod",
        packages: &["grub-pc-bin"],
        why: "the boot loader for BIOS",
    },
    Need {
        file: "/usr/lib/grub/x86_64-efi/multiboot2.mod",
        packages: &["grub-efi-amd64-bin"],
        why: "the boot loader for UEFI",
    },
    Need {
        file: "/usr/bin/xorriso",
        packages: &["xorriso"],
        why: "writes the ISO",
    },
    Need {
        file: "/usr/bin/mformat",
        packages: &["mtools"],
        why: "makes the ISO's part for UEFI",
    },
    Need {
        file: UEFI,
        packages: &["ovmf"],
        why: "the emulated machine's UEFI",
    },
];

/// What boots.
pub(crate) struct Contents<'a> {
    /// The microvisor.
    pub(crate) image: &'a Path,
    /// VM 0's kernel.
    pub(crate) kernel: &'a Path,
    /// VM 0's initramfs.
    pub(crate) initramfs: &'a Path,
    /// VM 0's command line.
    pub(crate) options: &'a str,
}

/// `cargo xtask iso`: VM 0 with a shell, for QEMU. Returns where the ISO is.
pub(crate) fn build() -> Result<PathBuf> {
    let parts = Parts::prepare(None)?;
    let iso = folder()?.join("microvisor.iso");
    let contents = Contents {
        image: &parts.image,
        kernel: &parts.kernel.image,
        initramfs: &parts.initramfs,
        options: "console=tty0 console=ttyS0",
    };
    write(&contents, &folder()?.join("iso"), &iso)?;
    Ok(iso)
}

/// Writes an ISO; `tree` is a folder that becomes its contents.
pub(crate) fn write(contents: &Contents<'_>, tree: &Path, iso: &Path) -> Result<()> {
    packages::install(TOOLS)?;
    let boot = tree.join("boot");
    let grub = boot.join("grub");
    fs::create_dir_all(&grub).map_err(context(&grub))?;
    for (from, name) in [
        (contents.image, "microvisor"),
        (contents.kernel, "vmlinuz"),
        (contents.initramfs, "initrd"),
    ] {
        fs::copy(from, boot.join(name)).map_err(context(from))?;
    }
    let menu = grub.join("grub.cfg");
    fs::write(&menu, entry(contents.options)).map_err(context(&menu))?;
    checked(
        Command::new("grub-mkrescue")
            .arg("-quiet")
            .arg("-o")
            .arg(iso)
            .arg(tree),
    )
}

/// GRUB passes a module's words without its file's name, so the first is there to be skipped.
fn entry(options: &str) -> String {
    format!(
        "set timeout=0
menuentry Microvisor {{
    multiboot2 /boot/microvisor {TCG_OPTIONS}
    module2 /boot/vmlinuz placeholder {options}
    module2 /boot/initrd
}}
"
    )
}
