//! Whether this machine can run VMs: the CPU, the microvisor under this kernel, and the driver.
//!
//! [`Hypervisor::detect`] asks CPUID alone, so that it works without the driver; [`open_driver`]
//! opens the device and checks that both sides speak one ABI. Each answer that is a no says what
//! to do.

use std::arch::x86_64::__cpuid;
use std::fmt;
use std::io;
use std::path::Path;

use guest_proto::cpuid::Features;
use guest_proto::{ABI_VERSION, cpuid};

use crate::driver::Device;

/// Where the driver's device is.
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

    /// Whether VMs can be made from here.
    ///
    /// # Errors
    ///
    /// One line that says why not.
    pub fn check(&self) -> Result<(), String> {
        match self {
            Self::Microvisor { partition: 0, .. } => Ok(()),
            Self::Microvisor { partition, .. } => Err(format!(
                "this is guest {partition} of Microvisor: only its root partition makes VMs"
            )),
            Self::Other(name) => Err(format!(
                "not under Microvisor: the hypervisor below is \"{}\"",
                name.escape_default()
            )),
            Self::None => Err(
                "not under Microvisor: boot it first, with this kernel as its \
                               module"
                    .to_owned(),
            ),
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
/// One line that says what is missing.
pub fn check_cpu() -> Result<(), String> {
    const SVM: u32 = 1 << 2;
    const NESTED_PAGING: u32 = 1 << 0;
    // The highest leaf is asked first: beyond it the answers mean nothing.
    let highest = __cpuid(0x8000_0000).eax;
    if highest < 0x8000_000a || __cpuid(0x8000_0001).ecx & SVM == 0 {
        return Err(
            "this CPU has no AMD-V (SVM), or firmware has disabled it: Microvisor can't run here"
                .to_owned(),
        );
    }
    if __cpuid(0x8000_000a).edx & NESTED_PAGING == 0 {
        return Err("this CPU has no nested paging: Microvisor can't run here".to_owned());
    }
    Ok(())
}

/// An ABI version as people read it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Abi(pub u32);

impl Abi {
    /// Whether this build can talk to a peer of this version.
    ///
    /// # Errors
    ///
    /// One line with both versions.
    pub fn check(self) -> Result<(), String> {
        let ours = Abi(ABI_VERSION);
        if self.0 >> 16 != ours.0 >> 16 || self.0 < ours.0 {
            return Err(format!("ABI version {self}, but this vmctl needs {ours}"));
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
/// One line: not under the microvisor, driver not loaded, no permission, another ABI.
pub fn open_driver(path: &Path) -> Result<Device, String> {
    let device = Device::open(path).map_err(|e| no_device(path, &e))?;
    let (info, _) = device
        .info()
        .map_err(|e| format!("{}: not Microvisor's driver: {e}", path.display()))?;
    Abi(info.driver_abi)
        .check()
        .map_err(|e| format!("{}: the driver has {e}", path.display()))?;
    Ok(device)
}

fn no_device(path: &Path, error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => match Hypervisor::detect().check() {
            Ok(()) => format!(
                "{}: the driver is not loaded: \"modprobe microvisor\", or insmod its file",
                path.display()
            ),
            Err(e) => e,
        },
        io::ErrorKind::PermissionDenied => {
            format!("{}: permission denied: run as root", path.display())
        }
        _ => format!("{}: {error}", path.display()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_that_can_talk() {
        assert_eq!(Abi(ABI_VERSION).check(), Ok(()));
        assert_eq!(Abi(ABI_VERSION + 1).check(), Ok(()));
        for wrong in [ABI_VERSION + 0x1_0000, ABI_VERSION - 0x1_0000] {
            let error = Abi(wrong).check().unwrap_err();
            assert!(error.contains(&Abi(ABI_VERSION).to_string()), "{error}");
        }
    }

    #[test]
    fn a_device_that_is_not_the_drivers_is_named() {
        let error = open_driver(Path::new("/dev/null")).unwrap_err();
        assert!(
            error.starts_with("/dev/null: not Microvisor's driver"),
            "{error}"
        );
        // Under the microvisor the driver is missing, elsewhere the microvisor.
        let error = open_driver(Path::new("/dev/no-such-device")).unwrap_err();
        let expected = match Hypervisor::detect().check() {
            Ok(()) => "the driver is not loaded".to_owned(),
            Err(e) => e,
        };
        assert!(error.contains(&expected), "{error}");
    }

    #[test]
    fn only_root_makes_vms() {
        let partition = |partition| Hypervisor::Microvisor {
            abi: ABI_VERSION,
            features: Features::empty(),
            partition,
        };
        assert_eq!(partition(0).check(), Ok(()));
        assert!(partition(3).check().unwrap_err().contains("guest 3"));
        let other = Hypervisor::Other("KVM\x1bVM".to_owned())
            .check()
            .unwrap_err();
        assert!(other.contains("KVM") && !other.contains('\x1b'), "{other}");
    }
}
