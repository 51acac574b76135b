//! Sizes in bytes, written `"256M"`.

use std::fmt;

use serde::de::{Error, Visitor};
use serde::{Deserializer, Serializer};

use super::{MAX_MEMORY, MIN_MEMORY};

const UNITS: [(&str, u32); 4] = [("K", 10), ("M", 20), ("G", 30), ("T", 40)];

/// Error: a text is no size.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadSize {
    /// The text is a number alone.
    #[error("it has no unit: expected {0}M, or K, G or T")]
    NoUnit(String),
    /// The text has another form, or the size is too large.
    #[error("expected a size such as 256M or 2G")]
    Form,
}

/// Parses `512K`, `256M`, `1G`, `2T` (powers of 1024; a trailing `iB` or `B` is allowed).
///
/// # Errors
///
/// Fails with [`BadSize`], which shows the form.
pub fn parse_size(text: &str) -> Result<u64, BadSize> {
    let digits = text
        .find(|c: char| !c.is_ascii_digit())
        .ok_or_else(|| BadSize::NoUnit(text.to_owned()))?;
    let (number, unit) = text.split_at(digits);
    let unit = unit
        .strip_suffix("iB")
        .or(unit.strip_suffix('B'))
        .unwrap_or(unit);
    let unit = UNITS.iter().find(|(name, _)| *name == unit);
    let (_, shift) = unit.ok_or(BadSize::Form)?;
    let number: u64 = number.parse().map_err(|_| BadSize::Form)?;
    number.checked_mul(1 << shift).ok_or(BadSize::Form)
}

/// Formats bytes with the largest unit that divides them.
pub fn format_size(bytes: u64) -> String {
    for (unit, shift) in UNITS.iter().rev() {
        if bytes != 0 && bytes.is_multiple_of(1 << shift) {
            return format!("{}{unit}", bytes >> shift);
        }
    }
    format!("{bytes}B")
}

pub(super) fn serialize<S: Serializer>(bytes: &u64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&format_size(*bytes))
}

pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    struct Size;

    impl Visitor<'_> for Size {
        type Value = u64;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a size such as \"256M\" or \"2G\"")
        }

        fn visit_str<E: Error>(self, text: &str) -> Result<u64, E> {
            parse_size(text).map_err(E::custom)
        }
    }

    deserializer.deserialize_str(Size)
}

pub(super) mod memory {
    //! RAM: a size in whole pages, within what a partition can have.

    use super::*;

    pub(in super::super) use super::serialize;

    pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<u64, D::Error> {
        let bytes = super::deserialize(deserializer)?;
        if !(MIN_MEMORY..=MAX_MEMORY).contains(&bytes) {
            return Err(serde::de::Error::custom(format!(
                "expected a size from {} to {}",
                format_size(MIN_MEMORY),
                format_size(MAX_MEMORY)
            )));
        }
        if !bytes.is_multiple_of(guest_proto::limits::PAGE_SIZE) {
            return Err(serde::de::Error::custom(format!(
                "expected a whole number of pages of {}",
                format_size(guest_proto::limits::PAGE_SIZE)
            )));
        }
        Ok(bytes)
    }
}
