//! The microvisor's own command line: words `KEY=VALUE`, apart from VM 0's.

use core::fmt::{Display, Formatter};

use log::LevelFilter;

use crate::arch::Speculation;
use crate::console::Levels;

/// The values of the options.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Options {
    pub(super) speculation: Speculation,
    /// See `arch::CpuFacts`. QEMU's TCG opens the window for a class that is held up, too, and aborts where a write
    /// to CR8 opens it (10.0: `cpu_interrupt` without its lock).
    pub(super) tpr_window: bool,
    /// Levels of messages.
    pub(super) log: Levels,
}

/// An option that has a wrong value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BadOption {
    Speculation,
    TprWindow,
    Log,
}

impl Display for BadOption {
    fn fmt(&self, f: &mut Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::Speculation => "speculation= takes safe, guests or off",
            Self::TprWindow => "tpr-window= takes on or off",
            Self::Log => {
                "log= takes LEVEL and MODULE=LEVEL, separated by commas: a level is off, error, warn, info, debug or \
                 trace, a module boot, hypercall or root"
            }
        })
    }
}

impl Default for Options {
    fn default() -> Self {
        Self {
            speculation: Speculation::Safe,
            tpr_window: true,
            log: Levels::new(),
        }
    }
}

impl Options {
    /// Reads a command line, and tells `unknown` of each unknown key. A word without `=` is the image's
    /// name, which some loaders put first.
    ///
    /// # Errors
    ///
    /// Fails with the option whose value is wrong.
    pub(super) fn parse(line: &[u8], unknown: impl Fn(&str)) -> Result<Self, BadOption> {
        let mut options = Self::default();
        for word in line.split(u8::is_ascii_whitespace) {
            let Some(at) = word.iter().position(|byte| *byte == b'=') else {
                continue;
            };
            match word.split_at(at) {
                (b"speculation", value) => {
                    options.speculation = match value {
                        b"=safe" => Speculation::Safe,
                        b"=guests" => Speculation::Guests,
                        b"=off" => Speculation::Off,
                        _ => return Err(BadOption::Speculation),
                    };
                }
                (b"tpr-window", value) => {
                    options.tpr_window = match value {
                        b"=on" => true,
                        b"=off" => false,
                        _ => return Err(BadOption::TprWindow),
                    };
                }
                (b"log", value) => {
                    let value = value.strip_prefix(b"=").unwrap_or(value);
                    options.log = levels(value).ok_or(BadOption::Log)?;
                }
                (key, _) => unknown(core::str::from_utf8(key).unwrap_or("?")),
            }
        }
        Ok(options)
    }
}

/// Reads `LEVEL` and `MODULE=LEVEL`, separated by commas. Returns `None` for a level or a module that does not exist.
fn levels(text: &[u8]) -> Option<Levels> {
    let mut levels = Levels::new();
    for part in text.split(|byte| *byte == b',') {
        match part.iter().position(|byte| *byte == b'=') {
            None => levels.set_default(level(part)?),
            Some(at) => {
                let level = level(part.get(at + 1..)?)?;
                levels.set(part.get(..at)?, level).then_some(())?;
            }
        }
    }
    Some(levels)
}

fn level(name: &[u8]) -> Option<LevelFilter> {
    Some(match name {
        b"off" => LevelFilter::Off,
        b"error" => LevelFilter::Error,
        b"warn" => LevelFilter::Warn,
        b"info" => LevelFilter::Info,
        b"debug" => LevelFilter::Debug,
        b"trace" => LevelFilter::Trace,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn speculation(line: &str) -> Result<Speculation, BadOption> {
        Options::parse(line.as_bytes(), |_| {}).map(|options| options.speculation)
    }

    #[test]
    fn the_last_value_counts() {
        assert_eq!(speculation(""), Ok(Speculation::Safe));
        assert_eq!(speculation("/boot/microvisor"), Ok(Speculation::Safe));
        let line = "microvisor speculation=off x=1 speculation=guests";
        assert_eq!(speculation(line), Ok(Speculation::Guests));
        assert_eq!(speculation("speculation=off\t"), Ok(Speculation::Off));
    }

    #[test]
    fn an_unknown_key_is_told() {
        let told = core::cell::RefCell::new(std::vec::Vec::new());
        let tell = |key: &str| told.borrow_mut().push(std::string::String::from(key));
        Options::parse(b"image a=b speculation=off =\xff=", tell).unwrap();
        assert_eq!(told.into_inner(), ["a", ""]);
    }

    #[test]
    fn the_window_is_there_unless_it_is_turned_off() {
        let window = |line: &str| Options::parse(line.as_bytes(), |_| {}).map(|all| all.tpr_window);
        assert_eq!(window("image"), Ok(true));
        assert_eq!(window("tpr-window=off"), Ok(false));
        assert_eq!(window("tpr-window=off tpr-window=on"), Ok(true));
        assert_eq!(window("tpr-window=no"), Err(BadOption::TprWindow));
    }

    #[test]
    fn levels_are_of_the_option_log() {
        let log = |line: &str| Options::parse(line.as_bytes(), |_| {}).map(|all| all.log);
        assert_eq!(log("image"), Ok(Levels::new()));
        let mut levels = Levels::new();
        levels.set_default(LevelFilter::Debug);
        assert!(levels.set(b"boot", LevelFilter::Trace));
        assert_eq!(log("log=debug,boot=trace speculation=off"), Ok(levels));
        for bad in ["", "loud", "debug,", "boot", "boot=", "boot=loud", "x=off"] {
            let line = std::format!("log={bad}");
            assert_eq!(log(&line), Err(BadOption::Log), "{bad}");
        }
    }

    #[test]
    fn a_wrong_value_is_an_error() {
        for value in ["", "SAFE", "none", "safe,off"] {
            let line = std::format!("speculation={value}");
            assert_eq!(speculation(&line), Err(BadOption::Speculation), "{value}");
        }
    }
}
