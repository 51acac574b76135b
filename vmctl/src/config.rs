//! A VM's configuration: a TOML file, `--set` overrides, and errors that name the key and the line.
//!
//! [`Loaded`] is a [`VmConfig`] with the places its keys came from. The CLI loads a file and sends
//! the configuration on as TOML text with absolute paths ([`VmConfig::to_toml`]); the daemon and
//! the worker parse that again with [`VmConfig::parse`]. Nobody trusts another's check.

use std::fs::File;
use std::io;
use std::iter;
use std::path::{Path, PathBuf};

use guest_proto::control::MAX_NAME;
use guest_proto::limits;
use serde::{Deserialize, Serialize};

use crate::file::{self, describe};

mod count;
mod device;
mod disk;
mod duration;
mod names;
mod nic;
mod size;
mod source;
#[cfg(test)]
mod tests;
mod vsock;

pub use device::DeviceConfig;
pub use disk::{DiskConfig, OnError, OnTimeout};
pub use duration::{BadDuration, parse_duration};
pub use nic::{DOORBELLS, LinkState, NicConfig};
pub use size::{BadSize, format_size, parse_size};
use source::Source;
pub use vsock::VsockConfig;

/// A VM, as its user describes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmConfig {
    /// Name: lower-case letters, digits and inner hyphens.
    #[serde(deserialize_with = "name")]
    pub name: String,
    /// Virtual CPUs, 1 to 64.
    #[serde(default = "one", deserialize_with = "vcpus")]
    pub vcpus: u32,
    /// RAM in bytes, whole pages. In TOML `"256M"`.
    #[serde(with = "size::memory")]
    pub memory: u64,
    /// Kernel: a bzImage, a PVH ELF or a Multiboot ELF.
    #[serde(deserialize_with = "path")]
    pub kernel: PathBuf,
    /// Initial RAM disk.
    #[serde(
        default,
        deserialize_with = "optional_path",
        skip_serializing_if = "Option::is_none"
    )]
    pub initrd: Option<PathBuf>,
    /// Kernel command line; by default the one that puts the kernel's console onto the VM's.
    #[serde(
        default,
        deserialize_with = "cmdline",
        skip_serializing_if = "Option::is_none"
    )]
    pub cmdline: Option<String>,
    /// The policy for a reboot of the guest.
    #[serde(default)]
    pub on_reboot: OnReboot,
    /// The console.
    #[serde(default)]
    pub console: ConsoleConfig,
    /// The disks, in the order in which the guest finds them.
    #[serde(
        default,
        rename = "disk",
        deserialize_with = "disk::list",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub disks: Vec<DiskConfig>,
    /// The network cards, in the order in which the guest finds them.
    #[serde(
        default,
        rename = "nic",
        deserialize_with = "nic::list",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub nics: Vec<NicConfig>,
    /// The socket device.
    #[serde(
        default,
        deserialize_with = "vsock::table",
        skip_serializing_if = "Option::is_none"
    )]
    pub vsock: Option<VsockConfig>,
}

/// The policy for a reboot of a guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnReboot {
    /// The VM boots again.
    #[default]
    Restart,
    /// The VM stops.
    Stop,
}

/// The table `[console]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ConsoleConfig {
    /// The device that users type at.
    pub device: ConsoleDevice,
    /// Bytes of output that are kept for `vmctl logs`; twice that can lie on disk for a moment.
    #[serde(serialize_with = "size::serialize", deserialize_with = "log_limit")]
    pub log_limit: u64,
}

impl Default for ConsoleConfig {
    fn default() -> Self {
        Self {
            device: ConsoleDevice::default(),
            log_limit: 1 << 20,
        }
    }
}

/// A device that users type at. The output of the serial port is shown in any case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ConsoleDevice {
    /// The serial port COM1: `ttyS0`.
    #[default]
    Serial,
    /// A virtio console, which has the size of the user's terminal: `hvc0`.
    Virtio,
}

/// RAM that a partition needs at least, in bytes: a bzImage loads at 1 MiB.
const MIN_MEMORY: u64 = 2 << 20;
/// RAM that a partition can have, in bytes: what 40 bits of guest physical address leave.
const MAX_MEMORY: u64 = 512 << 30;
/// Disks and NICs of a VM at most: each takes a slot of the bus, where the host bridge and the source of
/// random numbers have one as well, and a virtio console and a socket device.
const MAX_DEVICES: usize = 30;
/// Bytes of a console's log at least.
const MIN_LOG: u64 = 4 << 10;
/// Command lines longer than this overrun what Linux keeps of them.
const MAX_CMDLINE: usize = 2047;

/// One line that says where and what.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(String);

/// A configuration and where it came from.
#[derive(Debug)]
pub struct Loaded {
    /// The configuration.
    pub config: VmConfig,
    source: Source,
}

impl Loaded {
    /// Reads a file, applies `overrides` (`key=value`, dotted keys) and makes its paths absolute,
    /// taking them relative to the file.
    ///
    /// # Errors
    ///
    /// The file can't be read, or what it says makes no VM.
    pub fn read(path: &Path, overrides: &[String]) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|e| ConfigError(format!("{}: {}", path.display(), describe(&e))))?;
        let mut loaded = Self::parse(&path.display().to_string(), text, overrides)?;
        let base = path.parent().unwrap_or(Path::new(""));
        let config = &mut loaded.config;
        let disks = config.disks.iter_mut();
        let disks = disks.flat_map(|disk| iter::once(&mut disk.path).chain(&mut disk.backing_dirs));
        let boot = iter::once(&mut config.kernel).chain(&mut config.initrd);
        for file in boot.chain(disks) {
            *file = std::path::absolute(base.join(&*file))
                .map_err(|e| ConfigError(format!("{}: {}", file.display(), describe(&e))))?;
        }
        Ok(loaded)
    }

    /// Parses `text`; `origin` names it in errors.
    ///
    /// # Errors
    ///
    /// The configuration in `text` with `overrides` makes no VM.
    pub fn parse(origin: &str, text: String, overrides: &[String]) -> Result<Self, ConfigError> {
        let mut source = Source::new(origin, text, overrides)?;
        let mut config: VmConfig = source.deserialize()?;
        let is_virtio = config.console.device == ConsoleDevice::Virtio;
        let (disks, nics) = (config.disks.len(), config.nics.len());
        let others = [
            is_virtio.then_some("a virtio console"),
            config.vsock.is_some().then_some("vsock"),
        ];
        let others: Vec<_> = others.into_iter().flatten().collect();
        let limit = MAX_DEVICES - others.len();
        if disks + nics > limit {
            let with = match others.is_empty() {
                true => String::new(),
                false => format!(" with {}", others.join(" and ")),
            };
            return Err(ConfigError(format!(
                "{}: {disks} disks and {nics} NICs: a VM{with} has at most {limit} of both",
                source.locate(if disks > 0 { "disk" } else { "nic" }),
            )));
        }
        let names: Vec<_> = config.disks.iter().map(|disk| &*disk.name).collect();
        nic::complete(&config.name, &mut config.nics, &names)
            .map_err(|e| ConfigError(format!("{}: nic: {e}", source.locate("nic"))))?;
        Ok(Self { config, source })
    }

    /// Returns the place at which a top-level key was written: `file:line`, or the override.
    pub fn locate(&self, key: &str) -> String {
        self.source.locate(key)
    }

    /// Checks that the files it names are there and can be read. What is in them the worker's
    /// loader checks.
    ///
    /// # Errors
    ///
    /// Names the key, its line and the file.
    pub fn check_files(&self) -> Result<(), ConfigError> {
        self.config
            .check_files(|_, _| {})
            .map_err(|(key, what)| ConfigError(format!("{}: {what}", self.source.locate(key))))
    }
}

impl VmConfig {
    /// Parses text that [`Self::to_toml`] made.
    ///
    /// # Errors
    ///
    /// The errors of [`Loaded::parse`].
    pub fn parse(origin: &str, text: &str) -> Result<Self, ConfigError> {
        let config = Loaded::parse(origin, text.to_owned(), &[])?.config;
        let dirs = config.disks.iter().flat_map(|disk| &disk.backing_dirs);
        let dirs = dirs.map(|dir| ("backing_dirs", dir.as_path()));
        for (key, path) in config.files().chain(dirs) {
            if !path.is_absolute() {
                return Err(ConfigError(format!(
                    "{origin}: {key}: {} is not an absolute path",
                    path.display()
                )));
            }
        }
        Ok(config)
    }

    /// Returns its kernel command line.
    pub fn cmdline(&self) -> &str {
        match (&self.cmdline, self.console.device) {
            (Some(cmdline), _) => cmdline,
            (None, ConsoleDevice::Serial) => "console=ttyS0",
            (None, ConsoleDevice::Virtio) => "console=hvc0",
        }
    }

    /// Returns how many pairs of queues a NIC has unless its configuration says.
    pub fn default_pairs(&self) -> u16 {
        nic::default_pairs(self.vcpus, self.nics.len())
    }

    /// Returns the configuration as TOML text.
    ///
    /// # Errors
    ///
    /// A path is not UTF-8.
    pub fn to_toml(&self) -> Result<String, ConfigError> {
        toml::to_string(self).map_err(|e| ConfigError(format!("{}: {e}", self.name)))
    }

    /// Checks that the files it names are there; on failure the key, and one line. `looking` hears of each file
    /// before it is looked at: a file system that does not answer ends there.
    ///
    /// # Errors
    ///
    /// The key and what is wrong with its file.
    pub fn check_files(
        &self,
        mut looking: impl FnMut(&'static str, &Path),
    ) -> Result<(), (&'static str, String)> {
        for (key, path) in self.files() {
            looking(key, path);
            let found = match key {
                "disk" => file::check(path, true),
                _ => file::open_regular(path).and_then(not_empty),
            };
            found.map_err(|e| {
                let problem = describe(&e);
                (key, format!("{key}: {}: {problem}", path.display()))
            })?;
        }
        Ok(())
    }

    /// Returns whether programs of VM 0 reach the guest by a Unix socket.
    pub fn has_unix_socket(&self) -> bool {
        self.vsock
            .as_ref()
            .is_some_and(VsockConfig::has_unix_socket)
    }

    fn files(&self) -> impl Iterator<Item = (&'static str, &Path)> {
        iter::once(("kernel", self.kernel.as_path()))
            .chain(self.initrd.iter().map(|p| ("initrd", p.as_path())))
            .chain(self.disks.iter().map(|d| ("disk", d.path.as_path())))
    }
}

/// Error: no VM can have the name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadName {
    /// The name has another form.
    #[error(
        "\"{0}\" is not a VM name: 1 to {MAX_NAME} lower-case letters, digits and inner hyphens"
    )]
    Form(String),
    /// The name is that of VM 0.
    #[error("\"root\" is VM 0's own name")]
    Root,
}

/// Checks a VM's name.
///
/// # Errors
///
/// Fails with [`BadName`], which says what a name is.
pub fn check_name(name: &str) -> Result<(), BadName> {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = name.as_bytes();
    let ok = bytes.len() <= MAX_NAME
        && bytes.first().is_some_and(|&b| plain(b))
        && bytes.last().is_some_and(|&b| plain(b))
        && bytes.iter().all(|&b| plain(b) || b == b'-');
    if !ok {
        return Err(BadName::Form(name.escape_default().to_string()));
    }
    if name == "root" {
        return Err(BadName::Root);
    }
    Ok(())
}

fn not_empty(file: File) -> io::Result<()> {
    match file.metadata()?.len() {
        0 => Err(io::Error::other("the file is empty")),
        _ => Ok(()),
    }
}

fn one() -> u32 {
    1
}

fn name<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let name = String::deserialize(deserializer)?;
    check_name(&name).map_err(serde::de::Error::custom)?;
    Ok(name)
}

/// Reads a path, which is not empty: relative to the configuration, that would be its directory.
fn path<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<PathBuf, D::Error> {
    let text = String::deserialize(deserializer)?;
    match text.is_empty() {
        true => Err(serde::de::Error::custom("expected the path of a file")),
        false => Ok(text.into()),
    }
}

fn optional_path<'de, D: serde::Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<PathBuf>, D::Error> {
    path(deserializer).map(Some)
}

fn vcpus<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    count::between(deserializer, 1, limits::MAX_VCPUS as u32)
}

fn log_limit<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    match size::deserialize(deserializer)? {
        bytes @ MIN_LOG.. => Ok(bytes),
        _ => Err(serde::de::Error::custom(format!(
            "expected a size of at least {}",
            format_size(MIN_LOG)
        ))),
    }
}

fn cmdline<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    let line = String::deserialize(deserializer)?;
    if line.len() > MAX_CMDLINE || line.contains('\0') {
        return Err(serde::de::Error::custom(format!(
            "expected a kernel command line of at most {MAX_CMDLINE} bytes without NUL"
        )));
    }
    Ok(Some(line))
}
