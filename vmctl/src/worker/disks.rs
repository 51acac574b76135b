//! Opens the disk images of a configuration, before the worker loses the file system.

use super::end::End;
use super::virtio::block::Options;
use crate::config::{DiskConfig, VmConfig};
use crate::disk::{Access, BackingDirs, Cache, Chain, Format, Image};

/// Largest default number of queues.
const DEFAULT_QUEUES: u32 = 4;

/// Opens and locks all images.
///
/// # Errors
///
/// One line that names the file.
pub(super) fn open(config: &VmConfig) -> Result<Vec<Image>, End> {
    config.disks.iter().map(open_one).collect()
}

fn open_one(disk: &DiskConfig) -> Result<Image, End> {
    let format = match disk.format {
        Some(format) => format,
        None => Format::detect(&disk.path).map_err(End::start_failed)?,
    };
    let access = match disk.readonly {
        true => Access::Read,
        false => Access::Write,
    };
    let dirs = BackingDirs::Only(&disk.backing_dirs);
    let chain = Chain::open(&disk.path, format, access, dirs).map_err(End::start_failed)?;
    Image::new(chain, disk.cache).map_err(End::start_failed)
}

/// Returns the options of disk `index`.
pub(super) fn options(config: &VmConfig, index: usize) -> Options {
    let disk = &config.disks[index];
    let queues = config.vcpus.min(DEFAULT_QUEUES) as u16;
    Options {
        name: format!("disk{index}"),
        writethrough: disk.cache == Cache::Writethrough,
        serial: disk.serial.clone().unwrap_or_default(),
        queues: disk.queues.unwrap_or(queues),
        on_enospc: disk.on_enospc,
        on_error: disk.on_error,
        io_timeout: disk.io_timeout,
        on_timeout: disk.on_timeout,
    }
}
