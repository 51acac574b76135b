//! Opens the disk images of a configuration, before the worker loses the file system.

use guest_proto::limits::MAX_DOORBELLS;

use super::end::End;
use super::virtio::block::Options;
use crate::config::{DiskConfig, VmConfig};
use crate::disk::{Access, BackingDirs, Cache, Chain, Format, Image};

/// Largest default number of queues.
const DEFAULT_QUEUES: u32 = 4;
/// Doorbells that the disks of a VM share by default, one for each queue. The other devices have the rest.
const DOORBELLS: u32 = MAX_DOORBELLS as u32 - 4;

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

/// Returns how many queues a disk has unless its configuration says.
fn default_queues(config: &VmConfig) -> u16 {
    let share = DOORBELLS / config.disks.len().max(1) as u32;
    config.vcpus.min(DEFAULT_QUEUES).min(share) as u16
}

/// Returns the options of disk `index`.
pub(super) fn options(config: &VmConfig, index: usize) -> Options {
    let disk = &config.disks[index];
    Options {
        name: format!("disk{index}"),
        writethrough: disk.cache == Cache::Writethrough,
        serial: disk.serial.clone().unwrap_or_default(),
        queues: disk.queues.unwrap_or_else(|| default_queues(config)),
        on_enospc: disk.on_enospc,
        on_error: disk.on_error,
        io_timeout: disk.io_timeout,
        on_timeout: disk.on_timeout,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_queue_has_a_doorbell() {
        for (vcpus, disks, queues) in [(1, 1, 1), (2, 15, 2), (64, 15, 4), (4, 16, 3), (4, 30, 2)] {
            let mut text = format!("name = 'a'\nkernel = '/k'\nmemory = '64M'\nvcpus = {vcpus}\n");
            for disk in 0..disks {
                text.push_str(&format!("[[disk]]\npath = '/{disk}'\n"));
            }
            let config = VmConfig::parse("a.toml", &text).unwrap();
            assert_eq!(
                default_queues(&config),
                queues,
                "{vcpus} CPUs, {disks} disks"
            );
            assert!(u32::from(queues) * disks <= DOORBELLS);
        }
    }
}
