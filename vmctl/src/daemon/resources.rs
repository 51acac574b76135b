//! The resources that VMs take: their partitions in the driver, and root's memory.

use std::io;
use std::path::{Path, PathBuf};

use guest_proto::limits::PAGE_SIZE;
use log::error;

use crate::config::{check_name, format_size};
use crate::driver::{Device, DriverError};
use crate::platform::{self, PlatformError};
use crate::proc;

/// Memory of root's that a VM takes beside the guest's RAM: the worker, and a 256th of the RAM
/// for nested tables and page pins.
const OVERHEAD: u64 = 8 << 20;

/// Error: a VM can't have what it needs of the machine, or can't give it back.
#[derive(Debug, thiserror::Error)]
pub(super) enum ResourceError {
    /// A process that is no worker of this daemon's has the VM's partition.
    #[error("process {pid}, which this daemon did not start, runs partition {id} of this name")]
    Taken { pid: u32, id: u64 },
    /// The driver does not tell its partitions.
    #[error("{0}")]
    List(DriverError),
    /// The driver keeps a partition.
    #[error("partition {id}: {error}")]
    Destroy { id: u64, error: DriverError },
    /// The kernel does not tell how much memory there is.
    #[error("/proc/meminfo: {0}")]
    MemInfo(io::Error),
    /// Root has less memory.
    #[error(
        "memory: {} is more than root has: {} are available; set a smaller memory or stop a VM",
        format_size(*wanted),
        format_size(available >> 20 << 20)
    )]
    Memory { wanted: u64, available: u64 },
}

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

    /// Checks that partitions can be made.
    ///
    /// # Errors
    ///
    /// The driver is missing, or another one.
    pub(super) fn check(&self) -> Result<(), PlatformError> {
        match &self.device {
            Some(path) => platform::open_driver(path).map(drop),
            None => Ok(()),
        }
    }

    /// Bytes of RAM that a partition has been given so far.
    pub(super) fn populated(&self, id: u64) -> Option<u64> {
        let info = self.open()?.partition_info(id).ok()?;
        Some(info.ram_pages * PAGE_SIZE)
    }

    /// Returns the partitions that there are.
    pub(super) fn all(&self) -> Vec<Found> {
        let Some(device) = self.open() else {
            return Vec::new();
        };
        let ids = device.list_partitions().unwrap_or_default();
        let info = |id| Some((id, device.partition_info(id).ok()?));
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
    /// Fails with `Taken`.
    pub(super) fn make_room(&self, name: &str, known: &[u32]) -> Result<(), ResourceError> {
        for found in self.all().iter().filter(|found| found.name == name) {
            if let Some(pid) = found.worker.filter(|pid| !known.contains(pid)) {
                return Err(ResourceError::Taken { pid, id: found.id });
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
    /// Fails with `List` or `Destroy`.
    pub(super) fn destroy_named(&self, name: &str) -> Result<(), ResourceError> {
        let Some(device) = self.open() else {
            return Ok(());
        };
        let mut result = Ok(());
        for id in device.list_partitions().map_err(ResourceError::List)? {
            // One that went between the two calls is not an error.
            let Ok(info) = device.partition_info(id) else {
                continue;
            };
            // A worker can give its partition another VM's name: that one is in use, and must not
            // keep this VM's own from going.
            if name_of(id, &info.name) == name
                && let Err(error) = device.destroy_partition(id)
            {
                result = Err(ResourceError::Destroy { id, error });
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
    /// Its name. It is the VM's name if the worker has told the driver the right one.
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
/// Fails with `MemInfo` or `Memory`.
pub(super) fn check_memory(wanted: u64, promised: u64) -> Result<(), ResourceError> {
    let memory = proc::memory().map_err(ResourceError::MemInfo)?;
    fits(wanted, memory.available.saturating_sub(promised))
}

fn fits(wanted: u64, available: u64) -> Result<(), ResourceError> {
    let needed = wanted.saturating_add(wanted / 256 + OVERHEAD);
    if needed <= available {
        return Ok(());
    }
    Err(ResourceError::Memory { wanted, available })
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
        assert!(fits(256 << 20, 300 << 20).is_ok());
        let error = fits(512 << 20, 300 << 20).unwrap_err().to_string();
        assert!(error.contains("512M") && error.contains("300M"), "{error}");
        assert!(fits(u64::MAX, 300 << 20).is_err());
        assert!(check_memory(1 << 50, 0).is_err());
        assert!(check_memory(1 << 20, u64::MAX).is_err());
    }

    #[test]
    fn without_a_driver_there_is_nothing_to_destroy() {
        for device in [None, Some(Path::new("/dev/no-such-device"))] {
            let partitions = Partitions::new(device);
            partitions.destroy_named("a").unwrap();
            assert_eq!(partitions.populated(1), None);
        }
    }
}
