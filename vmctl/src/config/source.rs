//! TOML text with overrides, and the way back from a byte to a line.
//!
//! Each override is a document of its own, merged into the file's tree with its spans moved behind
//! the end of what came before, so that any span in the merged tree says where it was written.

use std::ops::Range;

use serde::de::DeserializeOwned;
use toml::Spanned;
use toml::de::{DeArray, DeTable, DeValue, Deserializer};

use super::ConfigError;

/// The text before an override in messages.
const OVERRIDE: &str = "--set ";
/// The message for a value that is not text where text is wanted.
const WANTS_TEXT: &str = "expected text in quotes";
/// Longest value that a message repeats.
const LONGEST_VALUE: usize = 60;

#[derive(Debug)]
pub(super) struct Source {
    /// Name of the file.
    origin: String,
    text: String,
    overrides: Vec<Override>,
}

#[derive(Debug)]
struct Override {
    /// The text that the user wrote.
    setting: String,
    /// The same as TOML.
    toml: String,
    /// The offset that is added to its spans.
    start: usize,
    /// The value was written as text because its key wants that.
    is_text: bool,
}

/// A value that does not fit.
struct Misfit {
    error: ConfigError,
    place: String,
    wants_text: bool,
}

impl Source {
    /// Checks the syntax of both.
    pub(super) fn new(
        origin: &str,
        text: String,
        settings: &[String],
    ) -> Result<Self, ConfigError> {
        DeTable::parse(&text).map_err(|e| {
            let at = e.span().map_or(0, |s| s.start);
            let message = e.message().replace('\n', ", ");
            ConfigError(format!("{origin}:{}: {message}", line(&text, at)))
        })?;
        let mut overrides = Vec::new();
        for setting in settings {
            overrides.push(Override {
                setting: setting.clone(),
                toml: override_toml(setting)?,
                start: 0,
                is_text: false,
            });
        }
        let mut source = Self {
            origin: origin.to_owned(),
            text,
            overrides,
        };
        source.set_starts();
        Ok(source)
    }

    /// The file's tree with the overrides in it.
    fn tree(&self) -> Result<Spanned<DeTable<'_>>, ConfigError> {
        let parse = |text, place: &str| {
            DeTable::parse(text).map_err(|e| ConfigError(format!("{place}: {}", e.message())))
        };
        let mut tree = parse(&self.text, &self.origin)?;
        for o in &self.overrides {
            let table = parse(&o.toml, &o.setting)?.into_inner();
            merge(tree.get_mut(), shift_table(table, o.start));
        }
        Ok(tree)
    }

    /// Returns what the text and the overrides say. An override whose key wants text has its value as text, also if that looks like
    /// a number, say: `cmdline=1`.
    pub(super) fn deserialize<T: DeserializeOwned>(&mut self) -> Result<T, ConfigError> {
        loop {
            let error = match self.try_deserialize() {
                Ok(value) => return Ok(value),
                Err(error) => error,
            };
            if !error.wants_text || !self.quote_override(&error.place) {
                return Err(error.error);
            }
        }
    }

    /// Writes the value of the override at `place` as text, and returns whether it was not.
    fn quote_override(&mut self, place: &str) -> bool {
        let is_at = |o: &&mut Override| !o.is_text && place == format!("{OVERRIDE}{}", o.setting);
        let Some(found) = self.overrides.iter_mut().find(is_at) else {
            return false;
        };
        found.is_text = true;
        if let Some(text) = as_text(&found.setting) {
            found.toml = text;
        }
        self.set_starts();
        true
    }

    /// Puts each override behind the end of what comes before it.
    fn set_starts(&mut self) {
        let mut start = self.text.len() + 1;
        for o in &mut self.overrides {
            o.start = start;
            start += o.toml.len() + 1;
        }
    }

    fn try_deserialize<T: DeserializeOwned>(&self) -> Result<T, Misfit> {
        let tree = self.tree().map_err(|error| Misfit {
            error,
            place: String::new(),
            wants_text: false,
        })?;
        T::deserialize(Deserializer::from(tree)).map_err(|mut e| {
            // Without a text, the error's rendering is "message\nin `key`\n".
            e.set_input(None);
            let rendered = e.to_string();
            let key = rendered
                .split_once("\nin `")
                .and_then(|(_, rest)| rest.split_once('`'))
                .map(|(key, _)| format!("{key}: "))
                .unwrap_or_default();
            let message = plain(e.message());
            let is_about_key = ["unknown key", "missing key", "duplicate key"]
                .iter()
                .any(|start| message.starts_with(start));
            let is_missing = message.starts_with("missing key");
            let span = e.span().filter(|_| !is_missing || !key.is_empty());
            let (place, value) = match span {
                Some(span) => (self.place(&span), self.value(&span)),
                None => (self.origin.clone(), None),
            };
            let error = ConfigError(match value.filter(|_| !is_about_key) {
                // The place of an override is the override, with its key and value.
                Some(_) if place.starts_with(OVERRIDE) => format!("{place}: {message}"),
                Some(value) if !key.is_empty() => {
                    let key = key.trim_end_matches(": ");
                    format!("{place}: {key} = {value}: {message}")
                }
                _ => format!("{place}: {key}{message}"),
            });
            Misfit {
                error,
                place,
                wants_text: message == WANTS_TEXT,
            }
        })
    }

    /// A value as it was written, if it is short.
    fn value(&self, span: &Range<usize>) -> Option<&str> {
        let (text, start) = match self.override_at(span) {
            Some(o) => (&*o.toml, o.start),
            None => (&*self.text, 0),
        };
        let value = text.get(span.start - start..span.end - start)?;
        let is_short = value.len() <= LONGEST_VALUE && !value.contains('\n');
        is_short.then_some(value).filter(|value| !value.is_empty())
    }

    /// Returns the place of a top-level key's value: `file:line`, or the override.
    pub(super) fn locate(&self, key: &str) -> String {
        self.tree()
            .ok()
            .and_then(|tree| tree.get_ref().get(key).map(|v| self.place(&v.span())))
            .unwrap_or_else(|| self.origin.clone())
    }

    /// Returns the override that a span lies in; none if it lies in the text.
    fn override_at(&self, span: &Range<usize>) -> Option<&Override> {
        self.overrides.iter().rfind(|o| o.start <= span.start)
    }

    fn place(&self, span: &Range<usize>) -> String {
        match self.override_at(span) {
            Some(o) => format!("{OVERRIDE}{}", o.setting),
            None => format!("{}:{}", self.origin, line(&self.text, span.start)),
        }
    }
}

/// Serde's message in the words of a user of TOML.
fn plain(message: &str) -> String {
    let message = message
        .replace('`', "\"")
        .replace('\n', ", ")
        .replace("unknown field", "unknown key")
        .replace("missing field", "missing key")
        .replace(
            "invalid IPv4 address syntax",
            "expected an IPv4 address such as 10.77.0.9",
        )
        .replace(
            "invalid IPv6 address syntax",
            "expected an IPv6 address such as fd00::9",
        );
    let Some((_, expected)) = message
        .strip_prefix("invalid type: ")
        .and_then(|rest| rest.rsplit_once("expected "))
    else {
        return message;
    };
    let expected = match expected {
        "i64" | "u64" | "u32" | "u16" => "a whole number",
        "a boolean" => "true or false",
        "path string" => "a path in quotes",
        "a string" => return WANTS_TEXT.to_owned(),
        "a sequence" => "a list in brackets",
        other => other,
    };
    format!("expected {expected}")
}

/// `key=value` as TOML. A value that is none is a string without its quotes: `memory=1G`.
fn override_toml(setting: &str) -> Result<String, ConfigError> {
    let wrong = |what: &str| ConfigError(format!("--set {setting}: {what}"));
    let (key, value) = setting
        .split_once('=')
        .ok_or_else(|| wrong("write it as key=value"))?;
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
    if key.is_empty() || !key.chars().all(plain) {
        return Err(wrong("the key is not a dotted key"));
    }
    let bare = format!("{key} = {value}");
    if DeTable::parse(&bare).is_ok_and(|t| t.get_ref().len() == 1) && !value.contains('\n') {
        return Ok(bare);
    }
    let quoted = as_text(setting).unwrap_or_default();
    match DeTable::parse(&quoted) {
        Ok(_) => Ok(quoted),
        Err(e) => Err(wrong(&e.message().replace('\n', ", "))),
    }
}

/// `key=value` as TOML, where the value is text.
fn as_text(setting: &str) -> Option<String> {
    let (key, value) = setting.split_once('=')?;
    Some(format!("{key} = {}", toml::Value::String(value.to_owned())))
}

fn merge<'i>(into: &mut DeTable<'i>, from: DeTable<'i>) {
    for (key, value) in from {
        match into.get_mut(key.get_ref().as_ref()) {
            Some(old) => merge_value(old, value),
            None => {
                into.insert(key, value);
            }
        }
    }
}

fn merge_value<'i>(old: &mut Spanned<DeValue<'i>>, new: Spanned<DeValue<'i>>) {
    match (old.get_mut(), new.get_ref()) {
        (DeValue::Table(old), DeValue::Table(_)) => {
            if let DeValue::Table(new) = new.into_inner() {
                merge(old, new);
            }
        }
        // `nic.0.mtu=1400`: the table of this number in an array of tables.
        (DeValue::Array(old), DeValue::Table(tables)) if has_elements(old, tables) => {
            if let DeValue::Table(tables) = new.into_inner() {
                merge_elements(old, tables);
            }
        }
        _ => *old = new,
    }
}

/// Whether all keys of `table` are numbers of tables in `array`, and their values tables.
fn has_elements(array: &DeArray<'_>, table: &DeTable<'_>) -> bool {
    let is_table = |value: &Spanned<DeValue<'_>>| value.get_ref().is_table();
    table.iter().all(|(key, value)| {
        let number = key.get_ref().parse::<usize>();
        let element = number.ok().and_then(|number| array.get(number));
        element.is_some_and(is_table) && is_table(value)
    })
}

fn merge_elements<'i>(array: &mut DeArray<'i>, tables: DeTable<'i>) {
    for (key, table) in tables {
        let number = key.get_ref().parse::<usize>();
        if let Some(element) = number.ok().and_then(|number| array.get_mut(number)) {
            merge_value(element, table);
        }
    }
}

fn shift_table(table: DeTable<'_>, by: usize) -> DeTable<'_> {
    let mut shifted = DeTable::new();
    for (key, value) in table {
        let key = Spanned::new(shift(&key.span(), by), key.into_inner());
        shifted.insert(key, shift_value(value, by));
    }
    shifted
}

fn shift_value(value: Spanned<DeValue<'_>>, by: usize) -> Spanned<DeValue<'_>> {
    let span = shift(&value.span(), by);
    let inner = match value.into_inner() {
        DeValue::Table(table) => DeValue::Table(shift_table(table, by)),
        other => other,
    };
    Spanned::new(span, inner)
}

fn shift(span: &Range<usize>, by: usize) -> Range<usize> {
    span.start + by..span.end + by
}

fn line(text: &str, at: usize) -> usize {
    let before = &text.as_bytes()[..at.min(text.len())];
    1 + before.iter().filter(|&&b| b == b'\n').count()
}
