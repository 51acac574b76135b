//! What VMs take of the machine: their partitions in the driver, and root's memory.

use std::path::{Path, PathBuf};

use guest_proto::limits::PAGE_SIZE;

use crate::config::format_size;
use crate::driver::Device;
use crate::{platform, proc};

/// What a VM takes of root's memory beside the guest's RAM: the worker, and a 256th of the RAM
/// for nested tables and page pins.
const OVERHEAD: u64 = 8 << 20;

/// The driver's partitions, by the VM's name. Each call opens the device anew: the daemon starts
/// before the driver is loaded, and holds no reference that would keep it from being unloaded.
#[derive(Clone, Debug)]
pub(super) struct Partitions {
    /// `None`: workers that need no driver.
    device: Option<PathBuf>,
}

impl Partitions {
    pub(super) fn new(device: Option<&Path>) -> Self {
        Self {
            device: device.map(Path::to_owned),
        }
    }

    /// Whether partitions can be made.
    ///
    /// # Errors
    ///
    /// One line that says why not.
    pub(super) fn check(&self) -> Result<(), String> {
        match &self.device {
            Some(path) => platform::open_driver(path).map(drop),
            None => Ok(()),
        }
    }

    /// Bytes of RAM that a partition has been given so far.
    pub(super) fn populated(&self, id: u64) -> Option<u64> {
        let info = self.open()?.vm_info(id).ok()?;
        Some(info.ram_pages * PAGE_SIZE)
    }

    /// Destroys what a worker of the VM `name` has left. It goes by name because a worker can die
    /// before it has told its partition's id.
    ///
    /// # Errors
    ///
    /// One line with the driver's errno.
    pub(super) fn destroy_named(&self, name: &str) -> Result<(), String> {
        let Some(device) = self.open() else {
            return Ok(());
        };
        let mut result = Ok(());
        for id in device.list_vms().map_err(|e| e.to_string())? {
            // One that went between the two calls is not an error.
            let Ok(info) = device.vm_info(id) else {
                continue;
            };
            // A worker can give its partition another VM's name: that one is in use, and must not
            // keep this VM's own from going.
            if named(&info.name, name)
                && let Err(e) = device.destroy_vm(id)
            {
                result = Err(format!("partition {id}: {e}"));
            }
        }
        result
    }

    /// Without the driver there are no partitions.
    fn open(&self) -> Option<Device> {
        Device::open(self.device.as_deref()?).ok()
    }
}

/// Whether a NUL-padded field holds `name`.
fn named(field: &[u8], name: &str) -> bool {
    field
        .strip_prefix(name.as_bytes())
        .is_some_and(|rest| rest.iter().all(|&b| b == 0))
}

/// Refuses what root's memory can't hold. RAM is given as guests touch it, so what was `promised`
/// to others and not yet given is not free.
///
/// # Errors
///
/// One line that says how much there is.
pub(super) fn check_memory(wanted: u64, promised: u64) -> Result<(), String> {
    let memory = proc::memory().map_err(|e| format!("/proc/meminfo: {e}"))?;
    fits(wanted, memory.available.saturating_sub(promised))
}

fn fits(wanted: u64, available: u64) -> Result<(), String> {
    let needed = wanted.saturating_add(wanted / 256 + OVERHEAD);
    if needed <= available {
        return Ok(());
    }
    Err(format!(
        "memory: {} is more than root has: {} are available; set a smaller memory or stop a VM",
        format_size(wanted),
        format_size(available >> 20 << 20),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_compared_whole() {
        let mut field = [0; 48];
        field[..4].copy_from_slice(b"demo");
        assert!(named(&field, "demo"));
        assert!(!named(&field, "dem") && !named(&field, "demo1"));
    }

    #[test]
    fn memory_is_refused_with_what_there_is() {
        assert_eq!(fits(256 << 20, 300 << 20), Ok(()));
        let error = fits(512 << 20, 300 << 20).unwrap_err();
        assert!(error.contains("512M") && error.contains("300M"), "{error}");
        assert!(fits(u64::MAX, 300 << 20).is_err());
        assert!(check_memory(1 << 50, 0).is_err());
        assert!(check_memory(1 << 20, u64::MAX).is_err());
    }

    #[test]
    fn without_a_driver_there_is_nothing_to_destroy() {
        for device in [None, Some(Path::new("/dev/no-such-device"))] {
            let partitions = Partitions::new(device);
            assert_eq!(partitions.destroy_named("a"), Ok(()));
            assert_eq!(partitions.populated(1), None);
        }
    }
}
