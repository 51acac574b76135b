//! Numbers of things.

use std::fmt::Display;

use serde::de::Error;
use serde::{Deserialize, Deserializer};

/// Reads a number from 1 to `most`.
pub(super) fn deserialize<'de, D, N>(deserializer: D, most: N) -> Result<Option<N>, D::Error>
where
    D: Deserializer<'de>,
    N: TryFrom<i64> + PartialOrd + Display,
{
    let count = i64::deserialize(deserializer)?;
    match N::try_from(count) {
        Ok(number) if count >= 1 && number <= most => Ok(Some(number)),
        _ => Err(D::Error::custom(format!(
            "{count}: expected a number from 1 to {most}"
        ))),
    }
}
