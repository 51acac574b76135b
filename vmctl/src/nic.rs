//! The files of a configured network card: its cable, and the kernel's part of its queues. To open
//! them takes privileges that a worker loses.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;

use crate::config::NicConfig;
use crate::net::{self, Cable, Mac, NetError, Tap};

/// By which root's kernel serves queues.
const VHOST: &str = "/dev/vhost-net";

/// The descriptors that a card works with.
#[derive(Debug)]
pub struct Opened {
    /// The other end of the cable.
    pub tap: Tap,
    /// The kernel's part of each pair of queues; none if the kernel has no vhost-net.
    pub vhosts: Vec<File>,
}

impl Opened {
    /// Plugs in a card of the VM `vm`, with `default_pairs` pairs of queues unless its configuration says.
    ///
    /// # Errors
    ///
    /// One line that names the network, bridge or tap.
    pub fn new(vm: &str, nic: &NicConfig, default_pairs: u16) -> Result<Self, NetError> {
        let incomplete = || {
            NetError::Invalid(format!(
                "{}: the NIC names no network, bridge or tap",
                nic.name
            ))
        };
        let place = nic.place().ok_or_else(incomplete)?;
        let tap = net::plug_in(&Cable {
            vm,
            place: &place,
            mac: mac(nic),
            vlan: nic.vlan,
            trunks: &nic.trunks,
            mtu: nic.mtu,
            rules: nic.rules(),
            pairs: nic.queues.unwrap_or(default_pairs),
            min_pairs: nic.queues.unwrap_or(1),
        })?;
        let vhosts: io::Result<_> = (0..tap.pairs()).map(|_| open_vhost(VHOST)).collect();
        // The worker serves the queues then.
        let vhosts = vhosts.unwrap_or_default();
        Ok(Self { tap, vhosts })
    }

    /// Returns the descriptors in the order of [`Self::of_files`], and the card's configuration that goes
    /// with them.
    pub fn into_files(self, nic: &NicConfig) -> (NicConfig, Vec<OwnedFd>) {
        let nic = NicConfig {
            queues: Some(self.tap.pairs()),
            mtu: Some(self.tap.mtu()),
            ..nic.clone()
        };
        let vhosts = self.vhosts.into_iter().map(OwnedFd::from);
        let files = self.tap.into_queues().into_iter().chain(vhosts);
        (nic, files.collect())
    }

    /// Takes what [`Self::into_files`] returned.
    ///
    /// # Errors
    ///
    /// The descriptors are others.
    pub fn of_files(nic: &NicConfig, mut queues: Vec<OwnedFd>) -> io::Result<Self> {
        let (Some(pairs), Some(mtu)) = (nic.queues, nic.mtu) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let pairs = usize::from(pairs);
        let vhosts = match queues.len() {
            count if count == pairs => Vec::new(),
            count if count == 2 * pairs => queues.split_off(pairs),
            _ => return Err(io::ErrorKind::InvalidInput.into()),
        };
        Ok(Self {
            tap: Tap::of_queues(queues, mtu)?,
            vhosts: vhosts.into_iter().map(File::from).collect(),
        })
    }
}

/// Returns the MAC address of a NIC. Each NIC of a VM's configuration has one.
pub fn mac(nic: &NicConfig) -> Mac {
    nic.mac.unwrap_or_else(|| Mac::of_text(&nic.name))
}

/// Opens a device of vhost.
///
/// # Errors
///
/// The file system's.
pub fn open_vhost(path: &str) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
}
