//! `cargo xtask image`, and the disks that VM 0 gets: images of systems, and file systems.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::files::{context, folder};
use crate::packages::{self, Need};
use crate::{Result, checked, parts, root};

/// `vmctl image build` uses them.
const TOOLS: &[Need] = &[
    Need {
        file: "/usr/bin/mmdebstrap",
        packages: &["mmdebstrap"],
        why: "installs Debian into an image",
    },
    MKE2FS,
    Need {
        file: "/usr/bin/fakeroot",
        packages: &["fakeroot"],
        why: "keeps the owners of an image's files",
    },
];

const MKE2FS: Need = Need {
    file: "/sbin/mke2fs",
    packages: &["e2fsprogs"],
    why: "makes the file systems of disks",
};

const SSH_KEYGEN: Need = Need {
    file: "/usr/bin/ssh-keygen",
    packages: &["openssh-client"],
    why: "makes the key of the tests' Debian guests",
};

/// What the Debian image of the tests is made with.
const DEBIAN_OPTIONS: [&str; 2] = ["--size=4G", "--include=fio,qemu-utils,iperf3,ethtool"];

/// Bytes that a disk made of a folder has left.
const SPARE: u64 = 16 << 30;

/// Options of `cargo xtask image`.
#[derive(clap::Args)]
pub(crate) struct Options {
    #[command(subcommand)]
    system: System,
}

#[derive(clap::Subcommand)]
enum System {
    /// Debian 12, as `vmctl image build debian` makes it
    Debian {
        /// The image to create
        #[arg(default_value = "debian.qcow2")]
        image: PathBuf,
        /// Options of `vmctl image build debian`
        #[arg(last = true)]
        options: Vec<String>,
    },
}

/// Makes an image by `vmctl`.
pub(crate) fn run(options: &Options) -> Result<()> {
    let System::Debian { image, options } = &options.system;
    build(&parts::vmctl()?, image, options)
}

fn build(vmctl: &Path, image: &Path, options: &[String]) -> Result<()> {
    packages::install(TOOLS)?;
    let mut vmctl = Command::new(vmctl);
    vmctl.args(["image", "build", "debian"]).arg(image);
    checked(vmctl.args(options))
}

/// The disks of tests with a Debian guest, made once: a file system with `debian.qcow2` and the files
/// beside it, and the root file system of the same Debian, for its programs.
pub(crate) fn debian_disks() -> Result<[PathBuf; 2]> {
    let place = folder()?.join("debian");
    let disks = ["images.raw", "root.raw"].map(|name| place.join(name));
    // They are made anew when they would be others.
    let source = root().join("vmctl/src/image.rs");
    let source = fs::read_to_string(&source).map_err(context(&source))?;
    let wanted = DEBIAN_OPTIONS.join("\n") + &source;
    let is_made = fs::read_to_string(place.join("recipe")).is_ok_and(|text| text == wanted);
    if is_made && disks.iter().all(|disk| disk.exists()) {
        return Ok(disks);
    }
    let _ = fs::remove_dir_all(&place);
    packages::install(&[SSH_KEYGEN])?;
    let vmctl = parts::vmctl()?;
    let partial = place.with_extension("partial");
    let _ = fs::remove_dir_all(&partial);
    let images = partial.join("images");
    fs::create_dir_all(&images).map_err(context(&images))?;
    let image = images.join("debian.qcow2");
    let key = images.join("id");
    checked(
        Command::new(SSH_KEYGEN.file)
            .args(["-q", "-t", "ed25519", "-N", "", "-C", "root@vm0", "-f"])
            .arg(&key),
    )?;
    let mut options = DEBIAN_OPTIONS.map(str::to_owned).to_vec();
    options.push(format!("--ssh-key={}", key.with_extension("pub").display()));
    build(&vmctl, &image, &options)?;
    checked(
        Command::new(&vmctl)
            .args(["disk", "clone", "--full"])
            .args([&image, &partial.join("root.raw")]),
    )?;
    file_system(&images, &partial.join("images.raw"))?;
    fs::remove_dir_all(&images).map_err(context(&images))?;
    let recipe = partial.join("recipe");
    fs::write(&recipe, wanted).map_err(context(&recipe))?;
    fs::rename(&partial, &place).map_err(context(&place))?;
    Ok(disks)
}

/// Makes a disk with an ext4 file system that holds the files of a folder.
pub(crate) fn file_system(from: &Path, disk: &Path) -> Result<()> {
    packages::install(&[MKE2FS])?;
    let size = size(from)? + SPARE;
    let file = File::create(disk).map_err(context(disk))?;
    file.set_len(size).map_err(context(disk))?;
    checked(
        Command::new(MKE2FS.file)
            .args(["-q", "-F", "-t", "ext4", "-d"])
            .args([from, disk]),
    )
}

/// Bytes of the files in a folder.
fn size(folder: &Path) -> Result<u64> {
    let failed = context(folder);
    let mut bytes = 0;
    for entry in fs::read_dir(folder).map_err(&failed)? {
        let entry = entry.map_err(&failed)?;
        let metadata = entry.metadata().map_err(&failed)?;
        bytes += match metadata.is_dir() {
            true => size(&entry.path())?,
            false => metadata.len(),
        };
    }
    Ok(bytes)
}
