//! The table `[vsock]`: the socket device.

use serde::{Deserialize, Deserializer, Serialize};

/// The first address that a guest can have: 0 and 1 are reserved, 2 is VM 0 (`vsock(7)`).
const FIRST_CID: u32 = 3;

/// A socket device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct VsockConfig {
    /// The guest's own address, its context identifier: 3 to 4294967294.
    #[serde(deserialize_with = "cid")]
    pub cid: u32,
}

impl Default for VsockConfig {
    fn default() -> Self {
        Self { cid: FIRST_CID }
    }
}

fn cid<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    let number = i64::deserialize(deserializer)?;
    match u32::try_from(number) {
        // The highest number means any address.
        Ok(cid) if cid >= FIRST_CID && cid != u32::MAX => Ok(cid),
        _ => Err(serde::de::Error::custom(format!(
            "{number}: expected a number from {FIRST_CID} to {}",
            u32::MAX - 1
        ))),
    }
}
