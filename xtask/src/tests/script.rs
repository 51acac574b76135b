//! A test script of `root-partition/tests`: what it wants of the machine stands in the comments at its
//! top, a key and a value each, behind the comments that say what it shows.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::host;
use crate::files::context;
use crate::kernel::Kernel;
use crate::machine::{Boot, Machine};
use crate::parts::Parts;
use crate::{Result, initramfs, root};

/// One script.
pub(super) struct Script {
    pub(super) path: PathBuf,
    pub(super) name: String,
    pub(super) wants: Wants,
}

/// Its keys.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Wants {
    /// `cpus: N`; otherwise 2.
    cpus: Option<u32>,
    /// `mem: SIZE`; otherwise 4G.
    mem: Option<String>,
    /// `timeout: SECONDS`; otherwise 300.
    timeout: Option<u64>,
    /// `reboots: yes`: VM 0 reboots, and the script runs again.
    reboots: bool,
    /// `long: yes`: runs only with `--long`.
    pub(super) long: bool,
    /// `cpu: MODEL`; otherwise one with SVM.
    cpu: Option<String>,
    /// `options: TEXT`: more of VM 0's command line.
    options: Option<String>,
    /// `bare: yes`: Linux runs without the microvisor below it.
    bare: bool,
    /// `boot: iso` or `boot: uefi`: GRUB loads the microvisor, on BIOS or UEFI; otherwise QEMU does.
    boot: Boot,
    /// `debian: yes`: the disks `/dev/vdb` and `/dev/vdc` hold a Debian image and its root file system.
    pub(super) debian: bool,
    /// `machines: 2`: the script runs on two machines with a cable between them (`eth1`), and `$machine` says which one
    /// it is on.
    pub(super) two_machines: bool,
    /// Files in the script's folder, for guests.
    pub(super) files: Vec<(GuestFile, String)>,
}

/// Something that only some tests want in VM 0.
#[derive(Debug, PartialEq)]
pub(super) enum GuestFile {
    /// `kernel: METAPACKAGE NAME`: the kernel that a Debian metapackage depends on.
    Kernel(String),
    /// `vmlinux: NAME`: the ELF file inside of the stock kernel.
    Elf,
    /// `microvisor: NAME`: the microvisor, which is a Multiboot kernel too.
    Microvisor,
    /// `tests: NAME`: the driver's tests.
    DriverTests,
    /// `source: PATH NAME`: a file of this repository.
    Source(String),
}

impl GuestFile {
    /// Adds the file to VM 0's files, with the shared libraries that it needs.
    pub(super) fn add(&self, machine: &mut Machine, name: &str, parts: &Parts) -> Result<()> {
        let path = match self {
            Self::Kernel(metapackage) => Kernel::of(metapackage)?.image,
            Self::Elf => Kernel::stock()?.elf()?,
            Self::Microvisor => parts.image.clone(),
            Self::DriverTests => {
                let tests = host::driver_tests()?;
                for library in initramfs::libraries(&tests, None)? {
                    machine.add_file(Path::new(&library), &library)?;
                }
                tests
            }
            Self::Source(path) => root().join(path),
        };
        machine.add_file(&path, name)
    }
}

impl Script {
    /// All scripts in a folder, by name.
    pub(super) fn all(folder: &Path) -> Result<Vec<Self>> {
        let failed = context(folder);
        let mut paths = Vec::new();
        for entry in fs::read_dir(folder).map_err(&failed)? {
            let path = entry.map_err(&failed)?.path();
            if path.extension().is_some_and(|extension| extension == "sh") {
                paths.push(path);
            }
        }
        paths.sort();
        paths.into_iter().map(Self::read).collect()
    }

    fn read(path: PathBuf) -> Result<Self> {
        let text = fs::read_to_string(&path).map_err(context(&path))?;
        let wants = Wants::parse(&text).map_err(|why| format!("{}: {why}", path.display()))?;
        let name = path.file_stem().unwrap_or_default().to_string_lossy();
        let name = format!("VM 0: {name}");
        Ok(Self { path, name, wants })
    }

    /// What it runs on.
    pub(super) fn machine(&self) -> Machine {
        let default = Machine::default();
        let wants = &self.wants;
        Machine {
            cpus: wants.cpus.unwrap_or(default.cpus),
            memory: wants.mem.clone().unwrap_or(default.memory),
            timeout: wants.timeout.map_or(default.timeout, Duration::from_secs),
            reboots: wants.reboots,
            cpu: wants.cpu.clone().unwrap_or(default.cpu),
            options: wants.options.clone().unwrap_or_default(),
            bare: wants.bare,
            boot: wants.boot,
            ..Machine::default()
        }
    }
}

impl Wants {
    fn parse(text: &str) -> Result<Self> {
        let mut wants = Self::default();
        let comments = text.lines().map_while(|line| line.strip_prefix("# "));
        for (key, value) in comments.filter_map(|line| line.split_once(": ")) {
            let wrong = || format!("{key}: {value} is no value for it");
            match key {
                "cpus" => wants.cpus = Some(value.parse().map_err(|_| wrong())?),
                "mem" => wants.mem = Some(value.to_owned()),
                "timeout" => wants.timeout = Some(value.parse().map_err(|_| wrong())?),
                "cpu" => wants.cpu = Some(value.to_owned()),
                "options" => wants.options = Some(value.to_owned()),
                "boot" if value == "iso" => wants.boot = Boot::Iso,
                "boot" if value == "uefi" => wants.boot = Boot::Uefi,
                "boot" => return Err(wrong()),
                "machines" if value == "2" => wants.two_machines = true,
                "machines" => return Err(wrong()),
                "reboots" | "long" | "bare" | "debian" if value != "yes" => return Err(wrong()),
                "reboots" => wants.reboots = true,
                "long" => wants.long = true,
                "bare" => wants.bare = true,
                "debian" => wants.debian = true,
                "kernel" | "source" => {
                    let (from, name) = value.split_once(' ').ok_or_else(wrong)?;
                    let file = match key {
                        "kernel" => GuestFile::Kernel(from.to_owned()),
                        _ => GuestFile::Source(from.to_owned()),
                    };
                    wants.files.push((file, name.to_owned()));
                }
                "vmlinux" => wants.files.push((GuestFile::Elf, value.to_owned())),
                "microvisor" => wants.files.push((GuestFile::Microvisor, value.to_owned())),
                "tests" => wants.files.push((GuestFile::DriverTests, value.to_owned())),
                _ if key.chars().all(|letter| letter.is_ascii_lowercase()) => {
                    return Err(format!("{key} is no key of a test script"));
                }
                // A sentence with a colon.
                _ => {}
            }
        }
        Ok(wants)
    }
}

#[cfg(test)]
mod tests {
    use super::Wants;

    #[test]
    fn wishes_are_read_from_the_top_only() {
        let text = "# What this shows: nothing.\n# cpus: 4\n# long: yes\n\n# mem: 1G\nexit 0\n";
        let expected = Wants {
            cpus: Some(4),
            long: true,
            ..Wants::default()
        };
        assert_eq!(Wants::parse(text), Ok(expected));
    }

    #[test]
    fn a_wrong_wish_is_an_error() {
        assert!(Wants::parse("# processors: 4\n").is_err());
        assert!(Wants::parse("# cpus: four\n").is_err());
        assert!(Wants::parse("# reboots: no\n").is_err());
    }
}
