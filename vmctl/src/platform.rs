//! Whether this machine can run VMs: the CPU, the microvisor under this kernel, and the driver.
//!
//! [`Hypervisor::detect`] asks CPUID alone, so that it works without the driver; [`open_driver`]
//! opens the device and checks that both sides speak one ABI. Each answer that is a no says what
//! to do.

use std::arch::x86_64::__cpuid;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use guest_proto::cpuid::Features;
use guest_proto::{ABI_VERSION, cpuid};

use crate::driver::{Device, DriverError};
use crate::file::{FileError, at};

/// Path of the driver's device.
pub const DEVICE: &str = "/dev/microvisor";

/// The hypervisor under this kernel, by CPUID.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hypervisor {
    /// The microvisor, with its ABI version, its features and this partition's id.
    Microvisor {
        /// ABI version.
        abi: u32,
        /// Features that the CPU offers and the microvisor uses.
        features: Features,
        /// Id of the partition that asks: 0 in root.
        partition: u32,
    },
    /// Another one, with its signature.
    Other(String),
    /// None.
    None,
}

/// Error: VMs can't be made here.
#[derive(Debug, thiserror::Error)]
pub enum PlatformError {
    /// This machine is a guest of the microvisor's, with this number.
    #[error("this is guest {0} of Microvisor: only its root partition makes VMs")]
    Guest(u32),
    /// Another hypervisor is below.
    #[error("not under Microvisor: the hypervisor below is \"{0}\"")]
    OtherHypervisor(String),
    /// No hypervisor is below.
    #[error("not under Microvisor: boot it first, with this kernel as its module")]
    NoHypervisor,
    /// The CPU has no SVM.
    #[error("this CPU has no AMD-V (SVM), or firmware has disabled it: Microvisor can't run here")]
    NoSvm,
    /// The CPU has no nested paging.
    #[error("this CPU has no nested paging: Microvisor can't run here")]
    NoNestedPaging,
    /// The driver has an ABI that this build does not speak.
    #[error("{}: the driver has {error}", path.display())]
    DriverAbi {
        /// The driver's device.
        path: PathBuf,
        /// Both versions.
        error: BadAbi,
    },
    /// The device is not there.
    #[error("{}: the driver is not loaded: \"modprobe microvisor\", or insmod its file", .0.display())]
    NotLoaded(PathBuf),
    /// The device is for others.
    #[error("{}: permission denied: run as root", .0.display())]
    NotPermitted(PathBuf),
    /// The device can't be opened.
    #[error(transparent)]
    Device(#[from] FileError),
    /// The device is another one.
    #[error("{}: not Microvisor's driver: {error}", path.display())]
    NotTheDriver {
        /// The device.
        path: PathBuf,
        /// The reason.
        error: DriverError,
    },
}

impl Hypervisor {
    /// Asks CPUID.
    pub fn detect() -> Self {
        // Bit 31 of leaf 1's ECX says that the hypervisor's leaves exist; without it they repeat
        // the highest basic leaf (APM vol. 3, appendix E.3.2).
        if __cpuid(1).ecx & 1 << 31 == 0 {
            return Self::None;
        }
        let root = cpuid::leaf::ROOT_BASE;
        let guest = cpuid::leaf::GUEST_BASE;
        for base in [root, guest] {
            if signature(base) == cpuid::SIGNATURE {
                let answer = __cpuid(base + 1);
                return Self::Microvisor {
                    abi: answer.eax,
                    features: Features::from_bits_retain(answer.ebx),
                    partition: answer.ecx,
                };
            }
        }
        Self::Other(
            String::from_utf8_lossy(&signature(root))
                .trim_end_matches('\0')
                .to_owned(),
        )
    }

    /// Checks that VMs can be made from here.
    ///
    /// # Errors
    ///
    /// Fails with `Guest`, `OtherHypervisor` or `NoHypervisor`.
    pub fn check(&self) -> Result<(), PlatformError> {
        match self {
            Self::Microvisor { partition: 0, .. } => Ok(()),
            Self::Microvisor { partition, .. } => Err(PlatformError::Guest(*partition)),
            Self::Other(name) => {
                let name = name.escape_default().to_string();
                Err(PlatformError::OtherHypervisor(name))
            }
            Self::None => Err(PlatformError::NoHypervisor),
        }
    }
}

fn signature(base: u32) -> [u8; 12] {
    let answer = __cpuid(base);
    let mut bytes = [0; 12];
    for (to, word) in bytes
        .chunks_mut(4)
        .zip([answer.ebx, answer.ecx, answer.edx])
    {
        to.copy_from_slice(&word.to_le_bytes());
    }
    bytes
}

/// Checks that the CPU has the features that the microvisor needs. Under the microvisor, CPUID hides SVM.
///
/// # Errors
///
/// Fails with `NoSvm` or `NoNestedPaging`.
pub fn check_cpu() -> Result<(), PlatformError> {
    const SVM: u32 = 1 << 2;
    const NESTED_PAGING: u32 = 1 << 0;
    // The highest leaf is asked first: beyond it the answers mean nothing.
    let highest = __cpuid(0x8000_0000).eax;
    if highest < 0x8000_000a || __cpuid(0x8000_0001).ecx & SVM == 0 {
        return Err(PlatformError::NoSvm);
    }
    if __cpuid(0x8000_000a).edx & NESTED_PAGING == 0 {
        return Err(PlatformError::NoNestedPaging);
    }
    Ok(())
}

/// Error: the other side has an ABI that this build does not speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("ABI version {found}, but this vmctl needs {ours}")]
pub struct BadAbi {
    found: Abi,
    ours: Abi,
}

/// An ABI version as people read it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Abi(pub u32);

impl Abi {
    /// Checks that this build can talk to a peer of this version.
    ///
    /// # Errors
    ///
    /// Fails with [`BadAbi`], which has both versions.
    pub fn check(self) -> Result<(), BadAbi> {
        let ours = Abi(ABI_VERSION);
        if self.0 >> 16 != ours.0 >> 16 || self.0 < ours.0 {
            return Err(BadAbi { found: self, ours });
        }
        Ok(())
    }
}

impl fmt::Display for Abi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0 >> 16, self.0 & 0xffff)
    }
}

/// Opens the driver's device and checks its version.
///
/// # Errors
///
/// Not under the microvisor, driver not loaded, no permission, another ABI.
pub fn open_driver(path: &Path) -> Result<Device, PlatformError> {
    let device = Device::open(path).map_err(|error| no_device(path, error))?;
    let (info, _) = device.info().map_err(|error| PlatformError::NotTheDriver {
        path: path.to_owned(),
        error,
    })?;
    let version = Abi(info.driver_abi).check();
    version.map_err(|error| PlatformError::DriverAbi {
        path: path.to_owned(),
        error,
    })?;
    Ok(device)
}

fn no_device(path: &Path, error: io::Error) -> PlatformError {
    match error.kind() {
        io::ErrorKind::NotFound => match Hypervisor::detect().check() {
            Ok(()) => PlatformError::NotLoaded(path.to_owned()),
            Err(error) => error,
        },
        io::ErrorKind::PermissionDenied => PlatformError::NotPermitted(path.to_owned()),
        _ => at(path)(error).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_that_can_talk() {
        assert!(Abi(ABI_VERSION).check().is_ok());
        assert!(Abi(ABI_VERSION + 1).check().is_ok());
        for wrong in [ABI_VERSION + 0x1_0000, ABI_VERSION - 0x1_0000] {
            let error = Abi(wrong).check().unwrap_err();
            let line = error.to_string();
            assert!(line.contains(&Abi(ABI_VERSION).to_string()), "{line}");
        }
    }

    #[test]
    fn a_device_that_is_not_the_drivers_is_named() {
        let error = open_driver(Path::new("/dev/null")).unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("/dev/null: not Microvisor's driver"),
            "{error}"
        );
        // Under the microvisor the driver is missing, elsewhere the microvisor.
        let error = open_driver(Path::new("/dev/no-such-device")).unwrap_err();
        let expected = match Hypervisor::detect().check() {
            Ok(()) => "the driver is not loaded".to_owned(),
            Err(e) => e.to_string(),
        };
        assert!(error.to_string().contains(&expected), "{error}");
    }

    #[test]
    fn only_root_makes_vms() {
        let partition = |partition| Hypervisor::Microvisor {
            abi: ABI_VERSION,
            features: Features::empty(),
            partition,
        };
        assert!(partition(0).check().is_ok());
        let guest = partition(3).check().unwrap_err();
        assert!(matches!(guest, PlatformError::Guest(3)), "{guest}");
        let other = Hypervisor::Other("KVM\x1bVM".to_owned()).check();
        let other = other.unwrap_err().to_string();
        assert!(other.contains("KVM") && !other.contains('\x1b'), "{other}");
    }
}
