//! Finds Linux's words in the console output when it panics.
//!
//! pvpanic says *that* a guest panicked, the console says *why*; where the guest has no pvpanic
//! driver, the console is all there is.

const PANIC: &str = "Kernel panic - not syncing: ";
const END: &str = "---[ end Kernel panic - not syncing";
/// Longer lines are cut: what is looked for stands near the beginning.
const LINE: usize = 256;

/// Watches the output.
#[derive(Debug, Default)]
pub struct PanicText {
    line: Vec<u8>,
    text: Option<String>,
    ended: bool,
}

impl PanicText {
    /// Looks at the next output.
    pub fn watch(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            match byte {
                b'\n' => self.end_line(),
                _ => {
                    // Anything after the end says that it was a report of an old panic.
                    if !byte.is_ascii_whitespace() {
                        self.ended = false;
                    }
                    if self.line.len() < LINE {
                        self.line.push(byte);
                    }
                }
            }
        }
    }

    fn end_line(&mut self) {
        let line = String::from_utf8_lossy(&self.line);
        // Behind a time stamp, if any.
        let message = match line.trim_start_matches('\r').strip_prefix('[') {
            Some(rest) => rest.split_once("] ").map_or("", |(_, message)| message),
            None => line.trim_start_matches('\r'),
        };
        if let Some(why) = message.strip_prefix(PANIC) {
            self.text = Some(why.trim_end().chars().filter(|c| !c.is_control()).collect());
        } else if message.starts_with(END) && self.text.is_some() {
            self.ended = true;
        }
        self.line.clear();
    }

    /// Returns the reason of the guest's panic, if it has panicked.
    pub fn text(&self) -> Option<&str> {
        self.text.as_deref()
    }

    /// Whether the last thing that was said is the end of a panic: nothing will follow it if that
    /// was true.
    pub fn at_end(&self) -> bool {
        self.ended
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_is_found() {
        let mut watcher = PanicText::default();
        watcher.watch(b"[    1.0] hello\r\n[    1.2] Kernel panic - not sync");
        assert_eq!(watcher.text(), None);
        watcher.watch(b"ing: Attempted to kill init! exitcode=0x0000\r\n[ 1.3] CPU: 0\r\n");
        assert_eq!(
            watcher.text(),
            Some("Attempted to kill init! exitcode=0x0000")
        );
        assert!(!watcher.at_end());
        watcher.watch(b"[ 1.4] ---[ end Kernel panic - not syncing: Attempted ]---\r\n");
        assert!(watcher.at_end());
    }

    #[test]
    fn a_panic_that_is_quoted_is_none() {
        let mut watcher = PanicText::default();
        watcher.watch(b"# grep 'Kernel panic - not syncing: x' log\r\n");
        assert_eq!(watcher.text(), None);
        watcher.watch(b"Kernel panic - not syncing: old\n---[ end Kernel panic - not syncing ]\n");
        watcher.watch(b"# ");
        assert!(!watcher.at_end());
    }
}
