//! Tables, JSON and colours.

use std::io::{self, Write};
use std::thread;

use serde::Serialize;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use crate::exit::{ExitStatus, Failed};

/// The format of a listing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Format {
    /// For people
    #[default]
    Table,
    /// For programs
    Json,
}

/// `--format`, for every command that lists.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(super) struct FormatArgs {
    /// Format of the output
    #[arg(long, value_enum, default_value_t)]
    pub(super) format: Format,
}

/// Prints a value as JSON.
pub(super) fn json<T: Serialize>(value: &T) -> Result<(), Failed> {
    let mut out = io::stdout().lock();
    serde_json::to_writer_pretty(&mut out, value)
        .map_err(io::Error::from)
        .and_then(|()| writeln!(out))
        .map_err(unwritten)
}

/// The failure to write standard output. It is silent if the reader has closed the pipe.
pub(super) fn unwritten(error: io::Error) -> Failed {
    match error.kind() {
        io::ErrorKind::BrokenPipe => error.into(),
        _ => Failed::new(
            ExitStatus::Failed,
            format!("standard output can't be written: {error}"),
        ),
    }
}

/// Prints text.
pub(super) fn text(text: &str) -> Result<(), Failed> {
    let written = io::stdout().lock().write_all(text.as_bytes());
    written.map_err(unwritten)
}

/// Prints a line that tells what was done. A closed pipe is no failure, because the work is done.
///
/// # Errors
///
/// Standard output can't be written; the message says that the work itself is done.
pub(super) fn done(line: &str) -> Result<(), Failed> {
    match writeln!(io::stdout(), "{line}") {
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => {
            let message = format!("{line}; but standard output can't be written: {e}");
            Err(Failed::new(ExitStatus::Failed, message))
        }
        _ => Ok(()),
    }
}

/// Ends this process, without a message, as soon as the reader of its standard output has closed the pipe. A command
/// that waits for its next output would not notice.
pub(super) fn end_with_reader() -> io::Result<()> {
    let thread = thread::Builder::new().name("reader".to_owned());
    let watch = || {
        // A pipe without a reader tells an error, unasked; a file and a terminal tell nothing.
        let stdout = io::stdout();
        let mut fds = [PollFd::new(&stdout, PollFlags::empty())];
        loop {
            match poll(&mut fds, None) {
                Err(Errno::INTR) => {}
                Err(_) => return,
                Ok(_) => std::process::exit(ExitStatus::Failed as i32),
            }
        }
    };
    thread.spawn(watch).map(drop)
}

/// Writes a line to standard error. If that can't be written, the command goes on and ends as it would.
pub(super) fn note(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}

/// Returns a message without control characters, which a terminal would obey.
pub(super) fn printable(message: &str) -> String {
    message
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}

/// Writes a message of this program to standard error, without control characters.
pub(super) fn complain(message: &str) {
    note(&format!("vmctl: {}", printable(message)));
}

/// A number of things: `1 partition`, `2 partitions`.
pub(super) fn count(number: u64, thing: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {thing}{plural}")
}

/// A time in two units at most.
pub(super) fn duration(seconds: u64) -> String {
    let (days, hours) = (seconds / 86400, seconds / 3600 % 24);
    let (minutes, seconds) = (seconds / 60 % 60, seconds % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m{seconds:02}s"),
        (0, _, _) => format!("{hours}h{minutes:02}m"),
        _ => format!("{days}d{hours:02}h"),
    }
}

/// The colour of a cell on a terminal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Colour {
    #[default]
    Plain,
    Bold,
    Green,
    Yellow,
    Red,
    Dim,
}

impl Colour {
    /// ECMA-48 SGR parameter.
    fn code(self) -> &'static str {
        match self {
            Self::Plain => "0",
            Self::Bold => "1",
            Self::Green => "32",
            Self::Yellow => "33",
            Self::Red => "31",
            Self::Dim => "2",
        }
    }
}

/// The abilities of the terminal at standard output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Style {
    /// Columns, where lines should not wrap.
    pub(super) width: Option<usize>,
    /// Whether to use colours.
    pub(super) colour: bool,
}

impl Style {
    /// Returns the style of standard output: plain unless it is the terminal that the user sits at. A serial
    /// port that a script writes to is a terminal too, but nobody's.
    pub(super) fn of_stdout() -> Self {
        let stdout = io::stdout();
        if rustix::termios::tcgetpgrp(&stdout).is_err() {
            return Self::default();
        }
        let size = rustix::termios::tcgetwinsize(&stdout).ok();
        let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        Self {
            // A serial terminal says 0.
            width: size
                .map(|size| usize::from(size.ws_col))
                .filter(|&columns| columns > 0),
            colour: !dumb && !set("NO_COLOR"),
        }
    }
}

/// A column's heading, and which side its cells keep to.
#[derive(Clone, Copy, Debug)]
pub(super) enum Column {
    Left(&'static str),
    Right(&'static str),
    /// Left, and cut where the line would be too long for the terminal.
    Cut(&'static str),
}

impl Column {
    fn heading(self) -> &'static str {
        match self {
            Self::Left(heading) | Self::Right(heading) | Self::Cut(heading) => heading,
        }
    }
}

/// A table, built row by row.
#[derive(Debug)]
pub(super) struct Table {
    columns: Vec<Column>,
    rows: Vec<Vec<(String, Colour)>>,
}

impl Table {
    pub(super) fn new(columns: Vec<Column>) -> Self {
        Self {
            columns,
            rows: Vec::new(),
        }
    }

    /// Adds a row; one cell per column.
    pub(super) fn row(&mut self, cells: impl IntoIterator<Item = (String, Colour)>) {
        let cells = cells
            .into_iter()
            .map(|(text, colour)| (printable(&text), colour));
        self.rows.push(cells.collect());
    }

    /// The whole as text, a heading first.
    pub(super) fn render(&self, style: Style) -> String {
        let mut widths: Vec<usize> = self
            .columns
            .iter()
            .enumerate()
            .map(|(at, column)| {
                let cells = self.rows.iter().filter_map(|row| row.get(at));
                let widest = cells.map(|(text, _)| text.chars().count()).max();
                widest.unwrap_or(0).max(column.heading().len())
            })
            .collect();
        if let Some(terminal) = style.width {
            self.cut(&mut widths, terminal);
        }
        let heading = self
            .columns
            .iter()
            .map(|column| (column.heading().to_owned(), Colour::Bold));
        let mut out = String::new();
        self.line(&mut out, &heading.collect::<Vec<_>>(), &widths, style);
        for row in &self.rows {
            self.line(&mut out, row, &widths, style);
        }
        out
    }

    fn cut(&self, widths: &mut [usize], terminal: usize) {
        let gaps = 2 * widths.len().saturating_sub(1);
        let mut excess = (widths.iter().sum::<usize>() + gaps).saturating_sub(terminal);
        // The last such column first.
        for (column, width) in self.columns.iter().zip(widths).rev() {
            if let Column::Cut(heading) = column {
                let cut = width.saturating_sub(excess).max(heading.len() + 4);
                excess = excess.saturating_sub(width.saturating_sub(cut));
                *width = cut.min(*width);
            }
        }
    }

    fn line(&self, out: &mut String, cells: &[(String, Colour)], widths: &[usize], style: Style) {
        let mut line = String::new();
        for ((column, (text, colour)), &width) in self.columns.iter().zip(cells).zip(widths) {
            if !line.is_empty() {
                line.push_str("  ");
            }
            let length = text.chars().count();
            let text = if length > width {
                let kept: String = text.chars().take(width.saturating_sub(1)).collect();
                kept + "…"
            } else {
                text.clone()
            };
            let blank = " ".repeat(width.saturating_sub(length));
            let coloured = if style.colour && *colour != Colour::Plain {
                format!("\x1b[{}m{text}\x1b[0m", colour.code())
            } else {
                text
            };
            match column {
                Column::Right(_) => line.extend([blank, coloured]),
                Column::Left(_) | Column::Cut(_) => line.extend([coloured, blank]),
            }
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
}

/// A cell of a table; a hyphen if it would be empty.
pub(super) fn plain(text: Option<String>) -> (String, Colour) {
    (text.unwrap_or_else(|| "-".to_owned()), Colour::Plain)
}

/// A cell with several values.
pub(super) fn list<T: ToString>(values: &[T]) -> (String, Colour) {
    let texts: Vec<_> = values.iter().map(ToString::to_string).collect();
    plain(Some(texts.join(",")).filter(|text| !text.is_empty()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let mut table = Table::new(vec![
            Column::Right("ID"),
            Column::Cut("REASON"),
            Column::Left("END"),
        ]);
        table.row([
            ("1".to_owned(), Colour::Plain),
            ("a long\x1b[2J story".to_owned(), Colour::Red),
            ("x".to_owned(), Colour::Plain),
        ]);
        table
    }

    #[test]
    fn columns_line_up_and_nothing_is_obeyed() {
        assert_eq!(
            table().render(Style::default()),
            "ID  REASON            END\n 1  a long [2J story  x\n"
        );
    }

    #[test]
    fn long_cells_are_cut_to_the_terminal() {
        let style = Style {
            width: Some(20),
            colour: false,
        };
        for line in table().render(style).lines() {
            assert!(line.chars().count() <= 20, "{line}");
        }
    }

    #[test]
    fn colours_do_not_count_as_width() {
        let style = Style {
            width: None,
            colour: true,
        };
        let text = table().render(style);
        assert!(
            text.contains("\x1b[31ma long [2J story\x1b[0m  x"),
            "{text}"
        );
    }
}
