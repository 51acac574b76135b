//! VM 0's initramfs: what is in it always, and what one run adds.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::archive::Archive;
use crate::files::{context, folder};
use crate::kernel::Kernel;
use crate::packages::{self, Need};
use crate::{Result, demo, driver, modules, root};

pub(crate) const BUSYBOX: &str = "/bin/busybox";
const BASH: &str = "/bin/bash-static";
const NFT: &str = "/usr/sbin/nft";
const DNSMASQ: &str = "/usr/sbin/dnsmasq";
const WG: &str = "/usr/bin/wg";

const TOOLS: &[Need] = &[
    Need {
        file: BUSYBOX,
        packages: &["busybox-static"],
        why: "the programs of VM 0's initramfs",
    },
    Need {
        file: BASH,
        packages: &["bash-static"],
        why: "the shell of VM 0, which completes what is typed",
    },
    Need {
        file: NFT,
        packages: &["nftables"],
        why: "the packet filter of VM 0's networks",
    },
    Need {
        file: DNSMASQ,
        packages: &["dnsmasq-base"],
        why: "addresses and names of the guests in VM 0's networks",
    },
    Need {
        file: WG,
        packages: &["wireguard-tools"],
        why: "encrypted networks of several machines",
    },
];

/// Where scripts start and the user's shell.
const HOME: &str = "root";

/// The drivers of the machine's disk and network.
const MODULES: &[&str] = &[
    "drivers/virtio/virtio_ring",
    "drivers/virtio/virtio",
    "drivers/virtio/virtio_pci_modern_dev",
    "drivers/virtio/virtio_pci_legacy_dev",
    "drivers/virtio/virtio_pci",
    "drivers/block/virtio_blk",
    "net/core/failover",
    "drivers/net/net_failover",
    "drivers/net/virtio_net",
];

/// Modules that VM 0 loads when it first needs them: those of the ext4 file system, which some kernels
/// have built in, of a file system that a test does not answer for, of host networks, and of sockets.
const ON_DEMAND: &[&str] = &[
    "fs/ext4/ext4",
    "fs/autofs/autofs4",
    "crypto/crc32c_generic",
    "net/bridge/bridge",
    "drivers/net/tun",
    "drivers/net/vxlan/vxlan",
    "drivers/net/wireguard/wireguard",
    "drivers/vhost/vhost_net",
    "drivers/vhost/vhost_vsock",
    "net/netfilter/nf_tables",
    "net/netfilter/nft_ct",
    "net/netfilter/nft_limit",
    "net/netfilter/nft_chain_nat",
    "net/netfilter/nft_masq",
];

/// Builds what is in it always: VM 0's programs and modules, and the demo guest.
pub(crate) fn build(kernel: &Kernel, guest: &Kernel, vmctl: &Path) -> Result<PathBuf> {
    packages::install(TOOLS)?;
    let busybox = Path::new(BUSYBOX);
    let mut archive = base(kernel)?;
    archive.file(vmctl, "bin/vmctl", 0o755);
    archive.file(Path::new(BASH), "bin/bash", 0o755);
    add_program(&mut archive, Path::new(NFT), "sbin/nft")?;
    add_program(&mut archive, Path::new(DNSMASQ), "sbin/dnsmasq")?;
    add_program(&mut archive, Path::new(WG), "bin/wg")?;
    modules::add_on_demand(&mut archive, kernel, ON_DEMAND)?;
    // A bare kernel image tells no release to build the driver for.
    if let Some(release) = kernel.release() {
        let driver = driver::build(release)?;
        archive.file(&driver, "lib/modules/microvisor.ko", 0o644);
    }
    demo::add(&mut archive, HOME, guest, busybox)?;
    let path = folder()?.join("initramfs.cpio");
    archive.write_cached(&path)?;
    Ok(path)
}

/// Builds one for another hypervisor: Linux runs scripts there as in VM 0, and has nothing of the microvisor's.
pub(crate) fn build_foreign(kernel: &Kernel, name: &str) -> Result<PathBuf> {
    packages::install(TOOLS)?;
    let path = folder()?.join(name);
    base(kernel)?.write_cached(&path)?;
    Ok(path)
}

/// Returns the programs and modules of any Linux that runs scripts.
fn base(kernel: &Kernel) -> Result<Archive> {
    let mut archive = Archive::default();
    archive.file(Path::new(BUSYBOX), "bin/busybox", 0o755);
    let sources = root().join("root-partition/initramfs");
    archive.file(&sources.join("init"), "init", 0o755);
    archive.file(&sources.join("console"), "lib/console", 0o755);
    for library in ["testing.sh", "debian.sh", "bashrc"] {
        archive.file(&sources.join(library), &format!("lib/{library}"), 0o644);
    }
    modules::add(&mut archive, kernel, MODULES)?;
    Ok(archive)
}

/// Puts a program and the libraries that it is linked with into an initramfs.
pub(crate) fn add_program(archive: &mut Archive, program: &Path, name: &str) -> Result<()> {
    archive.file(program, name, 0o755);
    for library in libraries(program, None)? {
        archive.file(Path::new(&library), library.trim_start_matches('/'), 0o755);
    }
    Ok(())
}

/// Returns the paths of the shared libraries that a program is linked with, and of its loader. Libraries in the folder
/// `first`, if there is one, come before those of the system.
pub(crate) fn libraries(program: &Path, first: Option<&Path>) -> Result<Vec<String>> {
    let mut ldd = Command::new("ldd");
    ldd.envs(first.map(|folder| ("LD_LIBRARY_PATH", folder)));
    let output = ldd.arg(program).output().map_err(context(program))?;
    // "libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f...)", or the loader's path alone.
    let text = String::from_utf8_lossy(&output.stdout);
    let paths = text.split_whitespace().filter(|word| word.starts_with('/'));
    Ok(paths.map(str::to_owned).collect())
}

/// Something that the user wants in VM 0.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Addition {
    /// A file or a folder here.
    from: PathBuf,
    /// Its name in VM 0.
    to: String,
}

impl std::str::FromStr for Addition {
    type Err = String;

    /// `HOSTPATH:ROOTPATH`; a relative ROOTPATH is relative to the scripts' folder, and one that ends
    /// in a slash keeps the file's name.
    fn from_str(text: &str) -> Result<Self> {
        let (from, to) = text
            .rsplit_once(':')
            .filter(|(from, to)| !from.is_empty() && !to.is_empty())
            .ok_or("write HOSTPATH:ROOTPATH")?;
        let from = PathBuf::from(from);
        let mut to = match to.strip_prefix('/') {
            Some(to) => to.to_owned(),
            None => format!("{HOME}/{to}"),
        };
        if to.is_empty() || to.ends_with('/') {
            let name = from.file_name().and_then(|name| name.to_str());
            to.push_str(name.ok_or("HOSTPATH has no name to keep")?);
        }
        if to.split('/').any(|part| matches!(part, "" | "." | "..")) {
            return Err("ROOTPATH has no empty part, . or ..".into());
        }
        Ok(Self { from, to })
    }
}

/// What one run adds, as an archive behind the other: the kernel unpacks one after the other.
pub(crate) fn additions(script: Option<&Path>, additions: &[Addition]) -> Result<Archive> {
    let mut archive = Archive::default();
    for addition in additions {
        // A link that the user names stands for its target.
        let from = addition.from.canonicalize();
        let from = from.map_err(|error| format!("{}: {error}", addition.from.display()))?;
        archive.add(&from, &addition.to)?;
    }
    if let Some(script) = script {
        archive.file(script, "script", 0o644);
    }
    Ok(archive)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn additions_are_parsed() {
        let parse = |text: &str| text.parse::<Addition>().map(|it| it.to);
        assert_eq!(parse("a/file:/etc/name").unwrap(), "etc/name");
        assert_eq!(parse("a/file:name").unwrap(), "root/name");
        assert_eq!(parse("a/file:/etc/").unwrap(), "etc/file");
        assert_eq!(parse("a:b:/c").unwrap(), "c");
        for wrong in [
            "file",
            "file:",
            ":/name",
            "file:/a/../b",
            "file:/a//b",
            "..:/a/",
        ] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
