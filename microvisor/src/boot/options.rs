//! The microvisor's own command line: words `KEY=VALUE`, apart from VM 0's.

use core::fmt::{Display, Formatter};

use crate::arch::Speculation;

/// The values of the options.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Options {
    pub(super) speculation: Speculation,
    /// See `arch::CpuFacts`. QEMU's TCG opens the window for a class that is held up, too, and aborts where a write
    /// to CR8 opens it (10.0: `cpu_interrupt` without its lock).
    pub(super) tpr_window: bool,
}

/// An option that has a wrong value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BadOption {
    Speculation,
    TprWindow,
}

impl Display for BadOption {
    fn fmt(&self, f: &mut Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::Speculation => "speculation= takes safe, guests or off",
            Self::TprWindow => "tpr-window= takes on or off",
        })
    }
}

impl Default for Options {
    fn default() -> Self {
        Self {
            speculation: Speculation::Safe,
            tpr_window: true,
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
                (key, _) => unknown(core::str::from_utf8(key).unwrap_or("?")),
            }
        }
        Ok(options)
    }
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
    fn a_wrong_value_is_an_error() {
        for value in ["", "SAFE", "none", "safe,off"] {
            let line = std::format!("speculation={value}");
            assert_eq!(speculation(&line), Err(BadOption::Speculation), "{value}");
        }
    }
}
