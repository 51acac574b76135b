//! Disks of a configuration: their images, which are opened before the worker loses the file system, and
//! their options.

use super::end::End;
use super::virtio::block::Options;
use crate::config::{DOORBELLS, DiskConfig, VmConfig};
use crate::disk::{Cache, Chain, Image};

/// Largest default number of queues.
const DEFAULT_QUEUES: u32 = 4;

/// Opens and locks all images.
///
/// # Errors
///
/// One line that names the file.
pub(super) fn open(config: &VmConfig) -> Result<Vec<Image>, End> {
    let open = |disk: &DiskConfig| Image::new(Chain::of_disk(disk)?, disk.cache);
    let images: Result<_, _> = config.disks.iter().map(open).collect();
    images.map_err(End::start_failed)
}

/// Returns how many queues each of `disks` disks has unless its configuration says. If there are network
/// cards, these have half of the doorbells.
fn default_queues(vcpus: u32, disks: usize, has_nics: bool) -> u16 {
    let doorbells = match has_nics {
        true => DOORBELLS / 2,
        false => DOORBELLS,
    };
    let share = doorbells / disks.max(1) as u32;
    vcpus.min(DEFAULT_QUEUES).min(share) as u16
}

/// Returns the options of one of `disks` disks of a VM with `vcpus` virtual CPUs.
pub(super) fn options(disk: &DiskConfig, vcpus: u32, disks: usize, has_nics: bool) -> Options {
    let default = || default_queues(vcpus, disks, has_nics);
    Options {
        name: disk.name.clone(),
        writethrough: disk.cache == Cache::Writethrough,
        serial: disk.serial.clone().unwrap_or_default(),
        queues: disk.queues.unwrap_or_else(default),
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
            let count = default_queues(vcpus, disks, false);
            assert_eq!(count, queues, "{vcpus} CPUs, {disks} disks");
            assert!(u32::from(queues) * disks as u32 <= DOORBELLS);
            let count = default_queues(vcpus, disks, true);
            assert!(u32::from(count) * disks as u32 <= DOORBELLS / 2 && count > 0);
        }
    }
}
