//! The resources that VMs take: their partitions in the driver, and root's memory.

use std::path::{Path, PathBuf};

use guest_proto::limits::PAGE_SIZE;
use log::error;

use crate::config::{check_name, format_size};
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

    /// Returns the partitions that there are.
    pub(super) fn all(&self) -> Vec<Found> {
        let Some(device) = self.open() else {
            return Vec::new();
        };
        let ids = device.list_vms().unwrap_or_default();
        let info = |id| Some((id, device.vm_info(id).ok()?));
        ids.into_iter()
            .filter_map(info)
            .map(|(id, info)| Found {
                id,
                name: name_of(id, &info.name),
                worker: Some(info.worker).filter(|&pid| pid != 0),
            })
            .collect()
    }

    /// Makes room for a partition of the VM `name`: destroys what earlier workers have left. Processes `known` are the
    /// workers of other VMs, which can give their partitions any name.
    ///
    /// # Errors
    ///
    /// Another process has a partition of that name now.
    pub(super) fn make_room(&self, name: &str, known: &[u32]) -> Result<(), String> {
        for found in self.all().iter().filter(|found| found.name == name) {
            if let Some(pid) = found.worker.filter(|pid| !known.contains(pid)) {
                return Err(format!(
                    "process {pid}, which this daemon did not start, runs partition {} of this name",
                    found.id
                ));
            }
        }
        if let Err(e) = self.destroy_named(name) {
            error!("{name}: an old partition was not destroyed: {e}");
        }
        Ok(())
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
            if name_of(id, &info.name) == name
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

/// A partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Found {
    /// Its id.
    pub(super) id: u64,
    /// Its name: that of its VM, unless its worker lies.
    pub(super) name: String,
    /// The process that runs it.
    pub(super) worker: Option<u32>,
}

/// The name in a NUL-padded field, or one that is made of the partition's id if no VM can have that name.
fn name_of(id: u64, field: &[u8]) -> String {
    let end = field.iter().position(|&byte| byte == 0);
    let name = String::from_utf8_lossy(&field[..end.unwrap_or(field.len())]);
    match check_name(&name) {
        Ok(()) => name.into_owned(),
        Err(_) => format!("partition-{id}"),
    }
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
    fn names_are_those_of_vms() {
        let mut field = [0; 48];
        field[..4].copy_from_slice(b"demo");
        assert_eq!(name_of(1, &field), "demo");
        assert_eq!(name_of(7, b"../demo\0"), "partition-7");
        assert_eq!(name_of(8, b"root\0"), "partition-8");
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
