//! Debian's Xen: its hypervisor, a kernel that can be its dom0, and its programs. Packages are unpacked and not installed,
//! because their installation would change this machine's boot menu.

use std::fs;
use std::path::{Path, PathBuf};

use super::systems::{SCRIPTS, add_modules};
use crate::files::{context, decompress, folder, unpacked};
use crate::kernel::Kernel;
use crate::machine::Machine;
use crate::parts::Parts;
use crate::{Result, initramfs, packages, root};

const PACKAGES: [&str; 4] = [
    "xen-hypervisor-4.17-amd64",
    "xen-utils-4.17",
    "xen-utils-common",
    "qemu-system-xen",
];
/// The kernel of dom0: the same version as VM 0's, which is built without what a dom0 needs.
const KERNEL: &str = "linux-image-6.12-amd64";
/// Options of Xen's. QEMU's x2APIC cannot be read with `-icount`; dom0 gets the serial ports.
const OPTIONS: &str = "x2apic=off console=none dom0_mem=2G,max:2G";
const IMAGE: &str = "boot/xen-4.17-amd64.gz";
const PROGRAMS: [&str; 7] = [
    "usr/lib/xen-4.17/bin/xl",
    "usr/lib/xen-4.17/bin/xenstored",
    "usr/lib/xen-4.17/bin/xenconsoled",
    "usr/lib/xen-4.17/bin/xen-init-dom0",
    "usr/lib/xen-4.17/bin/libxl-save-helper",
    "usr/libexec/xen-qemu-system-i386",
    "usr/lib/xen-4.17/boot/hvmloader",
];
const LIBRARIES: &str = "usr/lib/x86_64-linux-gnu";
/// What its QEMU reads: it wants a keyboard's layout even if there is no keyboard.
const QEMU_FILES: [&str; 2] = [
    "/usr/share/qemu/keymaps/en-us",
    "/usr/share/qemu/kvmvapic.bin",
];
/// The modules of dom0's kernel for Xen's programs. The last one brings the module of hypercalls.
const MODULES: [&str; 3] = [
    "drivers/xen/xen-evtchn",
    "drivers/xen/xen-gntdev",
    "drivers/xen/xenfs/xenfs",
];
/// The bench kernel in the place of an HVM guest's firmware, which gets no command line.
const HVM_KERNEL: &str = "hvm-kernel";
/// What stands in its image before the place of its own command line.
const MARK: &[u8; 16] = b"command line is:";
/// Bytes of that place.
const COMMAND_LINE: usize = 496;
/// What both scripts for Xen begin with.
const TOOLSTACK: &str = "toolstack.sh";

/// Xen and its dom0.
pub(super) struct Xen {
    /// What boots.
    pub(super) parts: Parts,
    /// Where the packages are unpacked.
    folder: PathBuf,
}

impl Xen {
    /// Downloads the packages, once.
    pub(super) fn new() -> Result<Self> {
        let folder = unpacked(PACKAGES[0])?;
        let image = folder.join("xen");
        if !image.exists() {
            eprintln!("downloading {}: a hypervisor to compare with", PACKAGES[0]);
            let _ = fs::remove_dir_all(&folder);
            packages::unpack(&packages::with_missing(&PACKAGES)?, &folder)?;
            // The last file, which tells that the others are there.
            decompress("gzip", &folder.join(IMAGE), &image)?;
        }
        let kernel = Kernel::of(KERNEL)?;
        let initramfs = initramfs::build_foreign(&kernel, "dom0.cpio")?;
        Ok(Self {
            parts: Parts {
                image,
                options: OPTIONS,
                kernel,
                initramfs,
            },
            folder,
        })
    }

    /// Adds Xen's programs to a machine whose kernel is [`Self::parts`]', and the bench kernel with its options as an HVM guest.
    pub(super) fn add(&self, machine: &mut Machine, kernel: &Path, options: &str) -> Result<()> {
        let with_options = folder()?.join(HVM_KERNEL);
        let image = fs::read(kernel).map_err(context(kernel))?;
        let image = set_command_line(image, options)?;
        fs::write(&with_options, image).map_err(context(&with_options))?;
        machine.add_file(&with_options, HVM_KERNEL)?;
        let libraries = self.folder.join(LIBRARIES);
        for name in PROGRAMS {
            let program = self.folder.join(name);
            machine.add_file(&program, &format!("/{name}"))?;
            for library in initramfs::libraries(&program, Some(&libraries))? {
                let library = Path::new(&library);
                let to = match library.strip_prefix(&self.folder) {
                    Ok(unpacked) => Path::new("/").join(unpacked),
                    Err(_) => library.to_owned(),
                };
                machine.add_file(library, &to.to_string_lossy())?;
            }
        }
        for file in QEMU_FILES {
            machine.add_file(Path::new(file), file)?;
        }
        let toolstack = root().join(SCRIPTS).join(TOOLSTACK);
        machine.add_file(&toolstack, TOOLSTACK)?;
        MODULES
            .iter()
            .try_for_each(|module| add_modules(machine, &self.parts.kernel, module))
    }
}

/// Writes a command line into the image of the bench kernel.
fn set_command_line(mut image: Vec<u8>, options: &str) -> Result<Vec<u8>> {
    let mut windows = image.windows(MARK.len());
    let mark = windows.position(|window| window == MARK);
    let start = mark.ok_or("the bench kernel has no place for a command line")? + MARK.len();
    match image.get_mut(start..start + options.len()) {
        Some(place) if options.len() <= COMMAND_LINE => place.copy_from_slice(options.as_bytes()),
        _ => return Err(format!("{options}: longer than {COMMAND_LINE} bytes")),
    }
    Ok(image)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_line_stands_behind_its_mark() {
        let place = [&b"code"[..], MARK, &[b' '; COMMAND_LINE], b"code"].concat();
        let image = set_command_line(place.clone(), "rows=cpuid").unwrap();
        assert_eq!(image.len(), place.len());
        assert!(image.starts_with(b"codecommand line is:rows=cpuid  "));
        assert!(set_command_line(place, &"x".repeat(COMMAND_LINE + 1)).is_err());
        assert!(set_command_line(b"code".to_vec(), "").is_err());
    }
}
