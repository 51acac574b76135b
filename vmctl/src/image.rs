//! Images of whole systems, made by Debian's own tools.
//!
//! `mmdebstrap` installs packages into a tar archive, `mke2fs` makes a file system of the archive's
//! files, and the blocks of that file system which are not zero go into the image. The image has no
//! partitions and no boot loader: the kernel and the initial RAM disk, copied from `/boot` of the
//! system, lie beside the image with a configuration that names all three.

use std::ffi::OsStr;
use std::fmt;
use std::fs::{self, File};
use std::io;
use std::iter;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

use nix::sys::signal::{SigSet, Signal};

use crate::config::check_name;
use crate::disk::{self, BackingDirs, DiskError, Format, SECTOR};

/// The packages of an image besides those of Debian's priority "important".
const PACKAGES: &str =
    "linux-image-cloud-amd64,initramfs-tools,systemd-sysv,libpam-systemd,dbus,systemd-resolved";
/// The package of the server of `vmctl ssh`.
const SSH_SERVER: &str = "openssh-server";
/// The variable by which [`customize`] has the keys of users.
const KEYS: &str = "VMCTL_SSH_KEYS";
/// A file system for Debian's packages does not fit into less.
const MIN_SIZE: u64 = 1 << 30;

/// The programs that do the work, and the Debian package of each.
const PROGRAMS: [(&str, &str); 3] = [
    ("mmdebstrap", "mmdebstrap"),
    ("mke2fs", "e2fsprogs"),
    ("tar", "tar"),
];
/// Lets users other than root keep the owners of the files.
const FAKEROOT: (&str, &str) = ("fakeroot", "fakeroot");

/// Unpacks archive `$1` into folder `$2`, with the options `$4` and so on, and makes image `$3` of it.
const MAKE_FILE_SYSTEM: &str = r#"
    archive=$1 tree=$2 image=$3 && shift 3 &&
    tar --numeric-owner --exclude='./dev/*' "$@" -C "$tree" -xpf "$archive" &&
    rm "$archive" &&
    mke2fs -q -F -t ext4 -L root -d "$tree" "$image"
"#;

/// A Debian system to make an image of.
#[derive(Clone, Copy, Debug)]
pub struct Debian<'a> {
    /// The image to make.
    pub image: &'a Path,
    /// Size of the disk in bytes.
    pub size: u64,
    /// Name of the release: `bookworm`.
    pub release: &'a str,
    /// Mirror of the packages. `None` is Debian's own servers.
    pub mirror: Option<&'a str>,
    /// More packages.
    pub include: &'a [String],
    /// A file with public keys (`sshd(8)`, AUTHORIZED_KEYS FILE FORMAT) whose owners may log in as root by ssh.
    pub ssh_key: Option<&'a Path>,
}

/// The files that exist afterwards.
#[derive(Debug)]
pub struct Files {
    /// The disk image.
    pub image: PathBuf,
    /// The kernel: a bzImage.
    pub kernel: PathBuf,
    /// The initial RAM disk.
    pub initrd: PathBuf,
    /// The configuration of a VM with all of them.
    pub config: PathBuf,
}

/// Error: there is no image.
#[derive(Debug)]
pub enum ImageError {
    /// The user asks for something that can't be.
    Wrong(String),
    /// The file exists already.
    Exists(PathBuf),
    /// Programs are not installed: the names of their Debian packages.
    Missing(Vec<&'static str>),
    /// A program failed, after it has written to standard error why.
    Program(&'static str, ExitStatus),
    /// A file can't be read or written.
    Io(PathBuf, io::Error),
    /// The image itself.
    Disk(DiskError),
}

impl fmt::Display for ImageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Wrong(why) => f.write_str(why),
            Self::Exists(path) => write!(f, "{}: exists already", path.display()),
            Self::Missing(packages) => {
                let packages = packages.join(" ");
                write!(
                    f,
                    "missing programs: install them by apt install {packages}"
                )
            }
            Self::Program(name, status) => {
                write!(f, "{name} failed ({status}); its messages are above")
            }
            Self::Io(path, error) => write!(f, "{}: {error}", path.display()),
            Self::Disk(error) => error.fmt(f),
        }
    }
}

impl From<DiskError> for ImageError {
    fn from(error: DiskError) -> Self {
        Self::Disk(error)
    }
}

impl Files {
    /// The files beside an image: each has the image's name with another extension.
    fn beside(image: &Path) -> Self {
        Self {
            image: image.to_owned(),
            kernel: image.with_extension("vmlinuz"),
            initrd: image.with_extension("initrd"),
            config: image.with_extension("toml"),
        }
    }

    fn all(&self) -> [&Path; 4] {
        [&self.image, &self.kernel, &self.initrd, &self.config]
    }
}

/// Makes an image of a Debian system, and the files beside the image. None of the files is there
/// unless all are. `progress` gets a line as each step begins; the programs write to standard error.
///
/// # Errors
///
/// One of the files exists already; the name of the image makes no name of a VM; a program is not
/// installed or fails; a file can't be written.
pub fn build_debian(
    debian: &Debian<'_>,
    progress: &mut dyn FnMut(&str),
) -> Result<Files, ImageError> {
    let files = Files::beside(debian.image);
    let name = name_of(&files)?;
    check_size(debian.size)?;
    let keys = debian.ssh_key.map(read_keys).transpose()?;
    for path in files.all() {
        if path.symlink_metadata().is_ok() {
            return Err(ImageError::Exists(path.to_owned()));
        }
    }
    let root = rustix::process::geteuid().is_root();
    let needed = PROGRAMS.into_iter().chain((!root).then_some(FAKEROOT));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let missing: Vec<&str> = needed
        .filter(|(program, _)| !installed(program, &path))
        .map(|(_, package)| package)
        .collect();
    if !missing.is_empty() {
        return Err(ImageError::Missing(missing));
    }
    let place = disk::folder(debian.image);
    // Beside the image, for the same file system: it has the space, and files move within it.
    let work = tempfile::Builder::new()
        .prefix(".image-")
        .tempdir_in(place)
        .map_err(|error| ImageError::Io(place.to_owned(), error))?;
    // A key that interrupts the programs must not end this process, which removes their files.
    let interrupts = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP]);
    let _ = interrupts.thread_block();
    let made = make(debian, name, keys.as_deref(), root, work.path(), progress)?;
    publish(&made, &files)?;
    Ok(files)
}

/// Makes all files in the folder `work`.
fn make(
    debian: &Debian<'_>,
    name: &str,
    keys: Option<&str>,
    root: bool,
    work: &Path,
    progress: &mut dyn FnMut(&str),
) -> Result<Files, ImageError> {
    let io = |path: &Path| {
        let path = path.to_owned();
        move |error| ImageError::Io(path, error)
    };
    let [archive, tree, raw] = ["root.tar", "root", "root.raw"].map(|name| work.join(name));

    progress(&format!("installing Debian {}", debian.release));
    let more = debian.include.iter().map(String::as_str);
    let more = more.chain(keys.map(|_| SSH_SERVER));
    let packages: Vec<_> = iter::once(PACKAGES).chain(more).collect();
    let packages = packages.join(",");
    let mut install = Command::new("mmdebstrap");
    install
        .env(KEYS, keys.unwrap_or_default())
        .arg("--variant=important")
        .arg(format!("--include={packages}"))
        .arg(format!("--customize-hook={}", customize(name)))
        .arg(debian.release)
        .arg(&archive)
        .args(debian.mirror);
    run("mmdebstrap", &mut install)?;

    progress("making the file system");
    fs::create_dir(&tree).map_err(io(&tree))?;
    let file = File::create_new(&raw).map_err(io(&raw))?;
    file.set_len(debian.size).map_err(io(&raw))?;
    let mut shell = Command::new(if root { "sh" } else { "fakeroot" });
    if !root {
        shell.arg("sh");
    }
    shell
        .args(["-c", MAKE_FILE_SYSTEM, "sh"])
        .args([&archive, &tree, &raw]);
    if root {
        // With them, fakeroot 1.31 answers wrong modes of files.
        shell.args(["--xattrs", "--xattrs-include=*"]);
    }
    run("mke2fs", &mut shell)?;

    progress("writing the image");
    let file_name = debian.image.file_name().unwrap_or_default();
    let made = Files::beside(&work.join(file_name));
    let format = Format::of_name(&made.image);
    let dirs = BackingDirs::Only(&[]);
    disk::clone_full(&raw, Format::Raw, &made.image, format, dirs)?;
    let boot = tree.join("boot");
    for (prefix, to) in [("vmlinuz-", &made.kernel), ("initrd.img-", &made.initrd)] {
        let from = the_file(&boot, prefix)?;
        fs::copy(&from, to).map_err(io(&from))?;
    }
    let config = config(name, debian, &made);
    fs::write(&made.config, config).map_err(io(&made.config))?;
    Ok(made)
}

/// Gives files their names, and removes those names again unless all files get theirs.
fn publish(made: &Files, files: &Files) -> Result<(), ImageError> {
    for (done, (from, to)) in made.all().into_iter().zip(files.all()).enumerate() {
        let linked = File::open(from).and_then(|file| {
            file.sync_all()?;
            fs::hard_link(from, to)
        });
        if let Err(error) = linked {
            for path in &files.all()[..done] {
                // The error that is reported is the first one.
                let _ = fs::remove_file(path);
            }
            return Err(match error.kind() {
                io::ErrorKind::AlreadyExists => ImageError::Exists(to.to_owned()),
                _ => ImageError::Io(to.to_owned(), error),
            });
        }
    }
    let place = disk::folder(&files.image);
    let synced = File::open(place).and_then(|folder| folder.sync_all());
    synced.map_err(|error| ImageError::Io(place.to_owned(), error))
}

/// The name of the VM: the image's, without its extension.
fn name_of(files: &Files) -> Result<&str, ImageError> {
    let [image, beside @ ..] = files.all();
    let wrong = |why: &str| {
        let image = image.display();
        ImageError::Wrong(format!(
            "{image}: the name without its extension becomes the name of a VM: {why}"
        ))
    };
    if beside.contains(&image) {
        return Err(wrong("the files beside the image have this extension"));
    }
    let stem = image.file_stem().and_then(OsStr::to_str);
    let name = stem.ok_or_else(|| wrong("it is not UTF-8 text"))?;
    check_name(name).map_err(|error| wrong(&error.to_string()))?;
    Ok(name)
}

/// Reads a file of public keys.
fn read_keys(path: &Path) -> Result<String, ImageError> {
    let text = fs::read_to_string(path).map_err(|error| ImageError::Io(path.to_owned(), error))?;
    let wrong = |why: &str| {
        let path = path.display();
        Err(ImageError::Wrong(format!("{path}: {why}")))
    };
    if text.contains("PRIVATE KEY") {
        return wrong("that is a private key; the public one has a name that ends in .pub");
    }
    // "ssh-ed25519 AAAA... user@host", with options in front.
    let is_key = |line: &str| {
        let mut words = line.split_whitespace();
        let kinds = ["ssh-", "ecdsa-", "sk-"];
        words.any(|word| kinds.iter().any(|kind| word.starts_with(kind))) && words.next().is_some()
    };
    let mut lines = text.lines().map(str::trim);
    let is_ignored = |line: &str| line.is_empty() || line.starts_with('#');
    if !lines.clone().any(is_key) {
        return wrong("it holds no public key of ssh");
    }
    match lines.find(|line| !is_ignored(line) && !is_key(line)) {
        Some(line) => wrong(&format!("\"{}\" is no public key", line.escape_default())),
        None => Ok(text),
    }
}

fn check_size(size: u64) -> Result<(), ImageError> {
    let wrong = |why: &str| Err(ImageError::Wrong(format!("size: {why}")));
    match size {
        ..MIN_SIZE => wrong("at least 1G"),
        _ if !size.is_multiple_of(SECTOR) => wrong("a multiple of 512 bytes"),
        _ => Ok(()),
    }
}

/// Shell commands that configure the new system, whose root directory is `$1`.
///
/// The user `root` has no password. Debian's PAM configuration lets such a user log in on a console
/// and nowhere else, but for the owner of a key. Each network card asks for addresses. Each guest of the
/// image makes host keys of its own.
fn customize(name: &str) -> String {
    format!(
        r#"set -e
        echo {name} >"$1/etc/hostname"
        printf '127.0.0.1 localhost\n127.0.1.1 {name}\n::1 localhost ip6-localhost\n' >"$1/etc/hosts"
        echo '/dev/vda / ext4 errors=remount-ro 0 1' >"$1/etc/fstab"
        ln -sf ../run/systemd/resolve/stub-resolv.conf "$1/etc/resolv.conf"
        printf '[Match]\nType=ether\nKind=!*\n[Network]\nDHCP=yes\n[DHCPv4]\nUseDomains=yes\n' >"$1/etc/systemd/network/80-dhcp.network"
        chroot "$1" systemctl enable systemd-networkd
        chroot "$1" systemctl disable systemd-networkd-wait-online
        if [ -d "$1/etc/ssh" ]; then
            rm -f "$1"/etc/ssh/ssh_host_*
            mkdir -p "$1/etc/systemd/system/ssh.service.d"
            printf '[Service]\nExecStartPre=\nExecStartPre=/usr/bin/ssh-keygen -A\nExecStartPre=/usr/sbin/sshd -t\n' \
                >"$1/etc/systemd/system/ssh.service.d/host-keys.conf"
        fi
        if [ -n "${KEYS}" ]; then
            mkdir -p -m 700 "$1/root/.ssh"
            (umask 077 && printf '%s\n' "${KEYS}" >"$1/root/.ssh/authorized_keys")
        fi
        chroot "$1" passwd -d root"#
    )
}

/// The configuration of a VM.
fn config(name: &str, debian: &Debian<'_>, made: &Files) -> String {
    let file = |path: &Path| path.file_name().unwrap_or_default().display().to_string();
    let release = debian.release;
    let [image, kernel, initrd, _] = made.all().map(file);
    format!(
        r#"# Debian {release}. The user "root" has no password.
#
# After the guest has installed another kernel, replace {kernel} and {initrd}
# by the new files of the guest's directory /boot.
name = "{name}"
kernel = "{kernel}"
initrd = "{initrd}"
cmdline = "console=ttyS0 root=/dev/vda"
memory = "1G"
vcpus = 1

[[disk]]
path = "{image}"
serial = "root"
"#
    )
}

/// The only file of a folder whose name begins with `prefix`.
fn the_file(folder: &Path, prefix: &str) -> Result<PathBuf, ImageError> {
    let io = |error| ImageError::Io(folder.to_owned(), error);
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).map_err(io)? {
        let entry = entry.map_err(io)?;
        if entry
            .file_name()
            .as_encoded_bytes()
            .starts_with(prefix.as_bytes())
        {
            found.push(entry.path());
        }
    }
    match (found.pop(), found.pop()) {
        (Some(file), None) => Ok(file),
        _ => Err(ImageError::Wrong(format!(
            "the system has no single /boot/{prefix}*: it needs one kernel"
        ))),
    }
}

/// Whether a folder of `path`, a list as in `$PATH`, has a program.
fn installed(program: &str, path: &OsStr) -> bool {
    std::env::split_paths(path).any(|folder| folder.join(program).is_file())
}

/// Runs a program, whose messages go to standard error.
fn run(name: &'static str, command: &mut Command) -> Result<(), ImageError> {
    let io = |error| ImageError::Io(name.into(), error);
    let stderr = rustix::io::dup(rustix::stdio::stderr()).map_err(|error| io(error.into()))?;
    command.stdin(Stdio::null()).stdout(stderr);
    let status = command.status().map_err(io)?;
    if status.success() {
        Ok(())
    } else {
        Err(ImageError::Program(name, status))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Loaded;

    fn debian(image: &Path) -> Debian<'_> {
        Debian {
            image,
            size: 4 << 30,
            release: "bookworm",
            mirror: None,
            include: &[],
            ssh_key: None,
        }
    }

    #[test]
    fn the_name_and_the_size_are_checked_first() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let build = |debian: &Debian<'_>| {
            let built = build_debian(debian, &mut |step| panic!("{step}"));
            built.unwrap_err().to_string()
        };
        for (name, why) in [
            ("My Image.qcow2", "name of a VM"),
            ("web.toml", "this extension"),
        ] {
            let said = build(&debian(&at(name)));
            assert!(said.contains(name) && said.contains(why), "{said}");
        }
        let image = at("web.qcow2");
        let small = Debian {
            size: 1 << 20,
            ..debian(&image)
        };
        assert_eq!(build(&small), "size: at least 1G");
        let odd = Debian {
            size: (4 << 30) + 1,
            ..debian(&image)
        };
        assert_eq!(build(&odd), "size: a multiple of 512 bytes");
        fs::write(at("web.initrd"), "mine").unwrap();
        let said = build(&debian(&image));
        assert!(said.ends_with("web.initrd: exists already"), "{said}");
        assert_eq!(fs::read(at("web.initrd")).unwrap(), b"mine");
    }

    #[test]
    fn keys_are_public() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("id.pub");
        let read = |text: &str| {
            fs::write(&path, text).unwrap();
            read_keys(&path).map_err(|error| error.to_string())
        };
        let good =
            "# mine\n\nssh-ed25519 AAAA me@here\nfrom=\"10.0.0.1\" ecdsa-sha2-nistp256 BBBB\n";
        assert_eq!(read(good).as_deref(), Ok(good));
        for (text, why) in [
            (
                "-----BEGIN OPENSSH PRIVATE KEY-----\n",
                "that is a private key",
            ),
            ("", "no public key of ssh"),
            ("ssh-rsa\n", "no public key of ssh"),
            ("ssh-rsa AAAA\nrm -rf\n", "\"rm -rf\" is no public key"),
        ] {
            let said = read(text).unwrap_err();
            assert!(said.contains("id.pub: ") && said.contains(why), "{said}");
        }
        assert!(matches!(
            read_keys(&folder.path().join("no")),
            Err(ImageError::Io(..))
        ));
    }

    #[test]
    fn a_missing_program_is_known_by_its_package() {
        assert!(installed("sh", OsStr::new("/nowhere:/bin")));
        assert!(!installed("sh", OsStr::new("/nowhere")));
        let error = ImageError::Missing(vec!["mmdebstrap", "e2fsprogs"]);
        assert!(
            error
                .to_string()
                .ends_with("apt install mmdebstrap e2fsprogs")
        );
    }

    #[test]
    fn all_files_get_their_names_or_none() {
        let folder = tempfile::tempdir().unwrap();
        let made = Files::beside(&folder.path().join("made.raw"));
        let files = Files::beside(&folder.path().join("web.raw"));
        for path in made.all() {
            fs::write(path, "new").unwrap();
        }
        fs::write(&files.config, "old").unwrap();
        let error = publish(&made, &files).unwrap_err();
        assert!(matches!(error, ImageError::Exists(path) if path == files.config));
        assert!(!files.image.exists() && !files.kernel.exists());
        assert_eq!(fs::read(&files.config).unwrap(), b"old");
        fs::remove_file(&files.config).unwrap();
        publish(&made, &files).unwrap();
        for path in files.all() {
            assert_eq!(fs::read(path).unwrap(), b"new");
        }
    }

    #[test]
    fn the_configuration_is_one() {
        let files = Files::beside(Path::new("/srv/web.qcow2"));
        let text = config("web", &debian(&files.image), &files);
        let config = Loaded::parse("web.toml", text, &[]).unwrap().config;
        assert_eq!(config.name, "web");
        assert_eq!(config.disks[0].path, Path::new("web.qcow2"));
    }

    #[test]
    fn a_system_has_one_kernel() {
        let folder = tempfile::tempdir().unwrap();
        let find = || the_file(folder.path(), "vmlinuz-");
        assert!(find().is_err());
        let kernel = folder.path().join("vmlinuz-6.1");
        fs::write(&kernel, "").unwrap();
        fs::write(folder.path().join("config-6.1"), "").unwrap();
        assert_eq!(find().unwrap(), kernel);
        fs::write(folder.path().join("vmlinuz-6.12"), "").unwrap();
        assert!(find().is_err());
    }
}
