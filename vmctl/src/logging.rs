//! The messages that the daemon and the workers log: which of them, and the form of a line.

use std::fmt;
use std::os::unix::fs::MetadataExt;
use std::str::FromStr;
use std::sync::OnceLock;

use log::{Level, LevelFilter, Metadata, Record};

/// What every path of this program's modules begins with.
const CRATE: &str = "vmctl::";

/// The least severe messages that are logged, by module: `LEVEL` and `MODULE=LEVEL`, separated by commas. A module
/// includes those below it, as `worker` includes `worker::virtio`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Levels {
    /// Of modules that have no level of their own.
    default: LevelFilter,
    modules: Vec<(String, LevelFilter)>,
}

/// An option that is not one of [`Levels`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadLevels {
    /// The word is no level.
    #[error("\"{0}\" is not a level: expected off, error, warn, info, debug or trace")]
    Level(String),
    /// The word is no module with messages.
    #[error(
        "\"{0}\" is not a module: expected daemon, worker, or one below them, such as worker::virtio"
    )]
    Module(String),
}

impl FromStr for Levels {
    type Err = BadLevels;

    fn from_str(text: &str) -> Result<Self, BadLevels> {
        let level = |word: &str| {
            let is_lower = !word.bytes().any(|byte| byte.is_ascii_uppercase());
            let level = word.parse().ok().filter(|_| is_lower);
            level.ok_or_else(|| BadLevels::Level(word.to_owned()))
        };
        let mut levels = Self {
            default: LevelFilter::Info,
            modules: Vec::new(),
        };
        for part in text.split(',') {
            match part.split_once('=') {
                None => levels.default = level(part)?,
                Some((module, word)) => {
                    if !matches!(module.split("::").next(), Some("daemon" | "worker")) {
                        return Err(BadLevels::Module(module.to_owned()));
                    }
                    levels.modules.push((module.to_owned(), level(word)?));
                }
            }
        }
        Ok(levels)
    }
}

impl fmt::Display for Levels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = |level: &LevelFilter| level.as_str().to_ascii_lowercase();
        f.write_str(&name(&self.default))?;
        let mut modules = self.modules.iter();
        modules.try_for_each(|(module, level)| write!(f, ",{module}={}", name(level)))
    }
}

impl Levels {
    /// Returns whether a message is logged. The level of the longest name counts.
    pub(crate) fn admit(&self, metadata: &Metadata<'_>) -> bool {
        let module = module(metadata);
        let has = |name: &str| {
            let rest = module.strip_prefix(name);
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
        };
        let own = self.modules.iter().filter(|(name, _)| has(name));
        let own = own.max_by_key(|(name, _)| name.len());
        metadata.level() <= own.map_or(self.default, |(_, level)| *level)
    }

    /// Returns the least severe level of any message that is logged.
    pub(crate) fn most(&self) -> LevelFilter {
        let own = self.modules.iter().map(|(_, level)| *level);
        own.fold(self.default, Ord::max)
    }
}

fn module<'a>(metadata: &Metadata<'a>) -> &'a str {
    let target = metadata.target();
    target.strip_prefix(CRATE).unwrap_or(target)
}

/// Returns the text of a message: one line, without its end.
pub(crate) fn line(record: &Record<'_>) -> String {
    let text = record.args();
    match record.level() {
        Level::Error => format!("error: {text}"),
        Level::Warn => format!("warning: {text}"),
        Level::Info => text.to_string(),
        Level::Debug => format!("debug: {}: {text}", module(record.metadata())),
        Level::Trace => format!("trace: {}: {text}", module(record.metadata())),
    }
}

/// Returns the prefix by which journald takes a line's priority, if standard error is journald's (systemd.exec(5),
/// `$JOURNAL_STREAM`; sd-daemon(3)).
pub(crate) fn priority(level: Level) -> &'static str {
    static IS_JOURNALD: OnceLock<bool> = OnceLock::new();
    if !IS_JOURNALD.get_or_init(is_journald) {
        return "";
    }
    match level {
        Level::Error => "<3>",
        Level::Warn => "<4>",
        Level::Info => "<6>",
        Level::Debug | Level::Trace => "<7>",
    }
}

fn is_journald() -> bool {
    let stream = std::env::var("JOURNAL_STREAM").unwrap_or_default();
    let Ok(here) = std::fs::metadata("/proc/self/fd/2") else {
        return false;
    };
    stream == format!("{}:{}", here.dev(), here.ino())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admits(levels: &str, target: &str, level: Level) -> bool {
        let levels: Levels = levels.parse().unwrap();
        levels.admit(&Metadata::builder().target(target).level(level).build())
    }

    #[test]
    fn the_longest_name_counts() {
        let levels = "warn,worker=debug,worker::virtio=off,daemon=info";
        for (target, level, expected) in [
            ("vmctl::worker::vcpu", Level::Debug, true),
            ("vmctl::worker", Level::Trace, false),
            ("vmctl::worker::virtio", Level::Error, false),
            ("vmctl::worker::virtio::block", Level::Error, false),
            ("vmctl::worker::virtio_gpu", Level::Debug, true),
            ("vmctl::daemon::vms", Level::Info, true),
            ("vmctl::net", Level::Info, false),
            ("vhost", Level::Warn, true),
        ] {
            assert_eq!(admits(levels, target, level), expected, "{target}");
        }
        assert_eq!(levels.parse::<Levels>().unwrap().most(), LevelFilter::Debug);
    }

    #[test]
    fn levels_are_written_as_they_are_read() {
        for text in [
            "info",
            "debug,worker=trace",
            "off,daemon::vms=error,worker=info",
        ] {
            assert_eq!(text.parse::<Levels>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn a_wrong_word_is_named() {
        for (text, word) in [
            ("", ""),
            ("loud", "loud"),
            ("INFO", "INFO"),
            ("info,", ""),
            ("worker=", ""),
            ("worker=loud", "loud"),
        ] {
            let expected = BadLevels::Level(word.to_owned());
            assert_eq!(text.parse::<Levels>(), Err(expected), "{text}");
        }
        let expected = BadLevels::Module("disk".to_owned());
        assert_eq!("disk=info".parse::<Levels>(), Err(expected));
    }
}
