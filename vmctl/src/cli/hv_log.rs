//! `vmctl hv-log`: the microvisor's log, from the driver.

use std::io::{self, Write};
use std::thread;
use std::time::Duration;

use super::{DeviceArgs, output};
use crate::exit::Failed;

/// Period at which a followed log is read: new text is not announced.
const PERIOD: Duration = Duration::from_millis(500);

#[derive(Debug, clap::Args)]
pub(super) struct HvLogArgs {
    /// Go on, and print further messages as they are written
    #[arg(short, long)]
    follow: bool,
    /// Print only messages of this level, and more severe ones
    #[arg(long, value_name = "LEVEL", default_value = "trace")]
    level: Level,
    #[command(flatten)]
    device: DeviceArgs,
}

/// The severity of a message. The number is the microvisor's, in which 3, 4, 6 and 7 are those of RFC 5424.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Level {
    Error = 3,
    Warn = 4,
    Info = 6,
    Debug = 7,
    Trace = 8,
}

pub(super) fn run(args: &HvLogArgs) -> Result<(), Failed> {
    let device = args.device.open()?;
    if args.follow {
        output::end_with_reader()?;
    }
    let mut out = io::stdout().lock();
    let mut chunk = vec![0; 64 << 10];
    let mut lines = Lines::new(args.level);
    let mut position = 0;
    loop {
        let (copied, next) = device.read_log(position, &mut chunk)?;
        position = next;
        let text = lines.take(&chunk[..copied]);
        out.write_all(&text).map_err(output::unwritten)?;
        if copied > 0 {
            continue;
        }
        out.flush()?;
        if !args.follow {
            return Ok(());
        }
        thread::sleep(PERIOD);
    }
}

/// The lines of the log, which arrive in pieces. `<N>` stands before each, and tells how severe it is.
struct Lines {
    level: Level,
    /// The start of a line whose end has not arrived.
    rest: Vec<u8>,
}

impl Lines {
    fn new(level: Level) -> Self {
        Self {
            level,
            rest: Vec::new(),
        }
    }

    /// Takes a piece, and returns the whole lines that are severe enough. A line without a severity, which is the rest
    /// of one that the log has overwritten, is.
    fn take(&mut self, piece: &[u8]) -> Vec<u8> {
        self.rest.extend_from_slice(piece);
        let end = self.rest.iter().rposition(|byte| *byte == b'\n');
        let whole: Vec<u8> = self.rest.drain(..end.map_or(0, |at| at + 1)).collect();
        let mut text = Vec::new();
        for line in whole.split_inclusive(|byte| *byte == b'\n') {
            match line {
                [b'<', digit @ b'0'..=b'9', b'>', line @ ..] => {
                    if digit - b'0' <= self.level as u8 {
                        text.extend_from_slice(line);
                    }
                }
                line => text.extend_from_slice(line),
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &[u8] =
        b"st of it\n<6>microvisor: version\n<7>microvisor: root: refused\n<3>microvisor: panic\n";

    fn shown(level: Level, pieces: &[&[u8]]) -> String {
        let mut lines = Lines::new(level);
        let text = pieces.iter().flat_map(|piece| lines.take(piece));
        String::from_utf8(text.collect()).unwrap()
    }

    #[test]
    fn less_severe_lines_are_left_out() {
        let all = "st of it\nmicrovisor: version\nmicrovisor: root: refused\nmicrovisor: panic\n";
        assert_eq!(shown(Level::Trace, &[LOG]), all);
        let some = "st of it\nmicrovisor: version\nmicrovisor: panic\n";
        assert_eq!(shown(Level::Info, &[LOG]), some);
        assert_eq!(shown(Level::Error, &[LOG]), "st of it\nmicrovisor: panic\n");
    }

    #[test]
    fn a_line_may_arrive_in_pieces() {
        for at in 0..=LOG.len() {
            let (first, second) = LOG.split_at(at);
            let whole = shown(Level::Warn, &[first, second]);
            assert_eq!(whole, "st of it\nmicrovisor: panic\n", "cut at {at}");
        }
    }
}
