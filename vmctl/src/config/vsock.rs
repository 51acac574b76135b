//! The table `[vsock]`: the socket device.

use serde::{Deserialize, Deserializer, Serialize};

use super::count;

/// The first address that a guest can have: 0 and 1 are reserved, 2 is VM 0 (`vsock(7)`).
const FIRST_CID: u32 = 3;

/// A socket device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VsockConfig {
    /// The guest's own address, its context identifier: 3 to 4294967294. By default 3.
    #[serde(
        default,
        deserialize_with = "cid",
        skip_serializing_if = "Option::is_none"
    )]
    pub cid: Option<u32>,
    /// Root's kernel serves the device: VM 0 and the guest have addresses of `vsock(7)`, and there are no Unix
    /// sockets.
    #[serde(default)]
    pub vhost: bool,
}

impl VsockConfig {
    /// Returns the guest's address.
    pub fn cid(&self) -> u32 {
        self.cid.unwrap_or(FIRST_CID)
    }

    /// Returns whether programs of VM 0 reach the guest by a Unix socket.
    pub fn has_unix_socket(&self) -> bool {
        !self.vhost
    }

    fn check(&self) -> Result<(), &'static str> {
        match self.vhost && self.cid.is_none() {
            true => Err("\"vhost\" requires a \"cid\", which no other VM may have"),
            false => Ok(()),
        }
    }
}

/// Reads the table.
pub(super) fn table<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<VsockConfig>, D::Error> {
    let vsock = VsockConfig::deserialize(deserializer)?;
    vsock.check().map_err(serde::de::Error::custom)?;
    Ok(Some(vsock))
}

fn cid<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u32>, D::Error> {
    // The highest number means any address.
    count::between(deserializer, i64::from(FIRST_CID), u32::MAX - 1).map(Some)
}
