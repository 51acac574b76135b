//! Numbers of things.

use std::fmt::{self, Display};
use std::marker::PhantomData;

use serde::Deserializer;
use serde::de::{Error, Visitor};

/// Reads a number from 1 to `most`.
pub(super) fn deserialize<'de, D, N>(deserializer: D, most: N) -> Result<Option<N>, D::Error>
where
    D: Deserializer<'de>,
    N: TryFrom<i64> + PartialOrd + Display + Copy,
{
    between(deserializer, 1, most).map(Some)
}

/// Reads a number from `least` to `most`.
pub(super) fn between<'de, D, N>(deserializer: D, least: i64, most: N) -> Result<N, D::Error>
where
    D: Deserializer<'de>,
    N: TryFrom<i64> + PartialOrd + Display + Copy,
{
    deserializer.deserialize_i64(Number {
        least,
        most,
        kind: PhantomData,
    })
}

struct Number<N> {
    least: i64,
    most: N,
    kind: PhantomData<N>,
}

impl<N: Display> Display for Number<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a number from {} to {}", self.least, self.most)
    }
}

impl<N: TryFrom<i64> + PartialOrd + Display + Copy> Visitor<'_> for Number<N> {
    type Value = N;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.fmt(f)
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<N, E> {
        match N::try_from(number) {
            Ok(value) if number >= self.least && value <= self.most => Ok(value),
            _ => Err(E::custom(format_args!("expected {self}"))),
        }
    }
}
