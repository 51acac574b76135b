//! The tables `[[disk]]`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize};

use super::{ConfigError, MAX_DEVICES, Source, count, names};
use crate::disk::{Access, Cache, Format};

/// Bytes of a serial number (virtio 1.2 §5.2.6).
const MAX_SERIAL: usize = 20;
/// Queues that a disk can have.
const MAX_QUEUES: u16 = 16;

/// Times that root may be given for a request.
const SHORTEST_TIMEOUT: Duration = Duration::from_millis(100);
const LONGEST_TIMEOUT: Duration = Duration::from_secs(24 * 60 * 60);

/// A disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskConfig {
    /// Path of the image or block device.
    #[serde(deserialize_with = "super::path")]
    pub path: PathBuf,
    /// Name in messages, and for `vmctl detach`: by default the name of the file without its
    /// extension. Empty only in a table that is not yet part of a VM's configuration.
    #[serde(
        default,
        deserialize_with = "names::deserialize",
        skip_serializing_if = "String::is_empty"
    )]
    pub name: String,
    /// Format of the image; by default the one that its name and its contents agree on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<Format>,
    /// Directories in which backing files may lie, besides the directory of the image.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub backing_dirs: Vec<PathBuf>,
    /// The guest can't write the disk.
    #[serde(default)]
    pub readonly: bool,
    /// Serial number that the guest sees, of at most 20 bytes.
    #[serde(
        default,
        deserialize_with = "serial",
        skip_serializing_if = "Option::is_none"
    )]
    pub serial: Option<String>,
    /// The use of root's page cache.
    #[serde(default)]
    pub cache: Cache,
    /// Number of queues, 1 to 16; by default one for each virtual CPU, but at most 4, and fewer
    /// if there are many devices.
    #[serde(
        default,
        deserialize_with = "queues",
        skip_serializing_if = "Option::is_none"
    )]
    pub queues: Option<u16>,
    /// The policy for a write for which root has no space.
    #[serde(default = "pause")]
    pub on_enospc: OnError,
    /// The policy for any other error of the image.
    #[serde(default = "report")]
    pub on_error: OnError,
    /// The time that root has for a request.
    #[serde(
        default = "io_timeout",
        serialize_with = "super::duration::serialize",
        deserialize_with = "timeout"
    )]
    pub io_timeout: Duration,
    /// The policy for a request that takes root longer.
    #[serde(default)]
    pub on_timeout: OnTimeout,
}

/// The policy for a request that root can't carry out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnError {
    /// The guest gets an I/O error and goes on.
    Report,
    /// The VM stops (`io-stalled`) until the user resumes it. Then the request is tried again.
    Pause,
}

/// The policy for a request that takes root too long.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnTimeout {
    /// The VM shows it (`io-stalled`) and runs on.
    #[default]
    Wait,
    /// The VM stops (`io-stalled`) until the user resumes it.
    Pause,
    /// The guest gets an I/O error and goes on.
    Report,
    /// The VM ends as crashed.
    Kill,
}

impl DiskConfig {
    /// Makes the configuration of the disk `path`, with more settings (`key=value`).
    ///
    /// # Errors
    ///
    /// A setting is wrong.
    pub fn new(path: &Path, settings: &[String]) -> Result<Self, ConfigError> {
        let absolute = std::path::absolute(path)
            .ok()
            .and_then(|path| path.into_os_string().into_string().ok())
            .ok_or_else(|| ConfigError(format!("{}: not a path in UTF-8", path.display())))?;
        let text = format!("path = {}", toml::Value::String(absolute));
        Source::new("disk", text, settings)?.deserialize()
    }

    /// Returns what the guest does with the image.
    pub fn access(&self) -> Access {
        match self.readonly {
            true => Access::Read,
            false => Access::Write,
        }
    }
}

/// Gives each disk a name that has none.
fn give_names(disks: &mut [DiskConfig]) {
    for index in 0..disks.len() {
        if disks[index].name.is_empty() {
            let stem = disks[index].path.file_stem().unwrap_or_default();
            let wanted = names::name_of(&stem.to_string_lossy(), "disk");
            let is_free = |name: &str| disks.iter().all(|disk| disk.name != name);
            disks[index].name = names::free_name(wanted, is_free);
        }
    }
}

/// Reads the list of disks. Two disks can't share a name, a serial number, by which a guest tells
/// them apart, or an image that one of them writes.
pub(super) fn list<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Vec<DiskConfig>, D::Error> {
    let mut disks = Vec::<DiskConfig>::deserialize(deserializer)?;
    if disks.len() > MAX_DEVICES {
        return Err(serde::de::Error::custom(format!(
            "{}: a VM has at most {MAX_DEVICES} disks",
            disks.len()
        )));
    }
    for (index, disk) in disks.iter().enumerate() {
        for other in &disks[..index] {
            if !disk.name.is_empty() && disk.name == other.name {
                let what = format!("two disks have the name \"{}\"", disk.name);
                return Err(serde::de::Error::custom(what));
            }
            if disk.serial.is_some() && disk.serial == other.serial {
                let serial = disk.serial.as_deref().unwrap_or_default();
                let what = format!("two disks have the serial number \"{serial}\"");
                return Err(serde::de::Error::custom(what));
            }
            if disk.path == other.path && !(disk.readonly && other.readonly) {
                let path = disk.path.display();
                return Err(serde::de::Error::custom(format!(
                    "two disks use {path}, and not both of them are read-only"
                )));
            }
        }
    }
    give_names(&mut disks);
    Ok(disks)
}

fn io_timeout() -> Duration {
    Duration::from_secs(30)
}

fn pause() -> OnError {
    OnError::Pause
}

fn report() -> OnError {
    OnError::Report
}

fn serial<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    let serial = String::deserialize(deserializer)?;
    if serial.len() > MAX_SERIAL || !serial.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(serde::de::Error::custom(format!(
            "\"{serial}\": expected at most {MAX_SERIAL} ASCII characters without spaces"
        )));
    }
    Ok(Some(serial))
}

fn timeout<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let timeout = super::duration::deserialize(deserializer)?;
    match SHORTEST_TIMEOUT <= timeout && timeout <= LONGEST_TIMEOUT {
        true => Ok(timeout),
        false => Err(serde::de::Error::custom(
            "expected a time from 100ms to 24h",
        )),
    }
}

fn queues<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u16>, D::Error> {
    count::deserialize(deserializer, MAX_QUEUES)
}
