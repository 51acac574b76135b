//! Names of devices, by which messages and `vmctl detach` tell the devices of a VM apart.

use serde::de::Error;
use serde::{Deserialize, Deserializer};

/// Characters of a name.
const MAX_NAME: usize = 32;

/// Reads a name.
pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let name = String::deserialize(deserializer)?;
    let is_name = name.len() <= MAX_NAME
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.chars().all(is_name_character);
    if !is_name {
        return Err(D::Error::custom(format!(
            "\"{}\": expected at most {MAX_NAME} letters, digits, \".\", \"-\" and \"_\", and first a \
             letter or digit",
            name.escape_default()
        )));
    }
    Ok(name)
}

fn is_name_character(c: char) -> bool {
    c.is_ascii_alphanumeric() || "-_.".contains(c)
}

/// Makes a name of `text`, or of `kind` if that is impossible.
pub(super) fn name_of(text: &str, kind: &str) -> String {
    let name = text.replace(|c: char| !is_name_character(c), "-");
    let name = name.trim_start_matches(|c: char| !c.is_ascii_alphanumeric());
    match name.get(..MAX_NAME).unwrap_or(name) {
        "" => kind.to_owned(),
        name => name.to_owned(),
    }
}

/// Returns `name`, with a number behind it if it is not free.
pub(super) fn free_name(name: String, is_free: impl Fn(&str) -> bool) -> String {
    let numbered = (2..).map(|n| {
        let end = format!("-{n}");
        let len = name.len().min(MAX_NAME - end.len());
        format!("{}{end}", &name[..len])
    });
    let mut candidates = std::iter::once(name.clone()).chain(numbered);
    candidates.find(|name| is_free(name)).unwrap_or(name)
}
