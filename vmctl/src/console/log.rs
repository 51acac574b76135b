//! The console log: `console.log` in a directory of its own in the VM's state directory, and its
//! predecessor `console.log.1`.
//!
//! The writer (a worker) has only the directory's descriptor; the reader (`vmctl logs`) has a path.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags, inotify, openat, renameat};

/// Name of the file that is written.
pub const CURRENT: &str = "console.log";
/// Name of the file before it.
pub const PREVIOUS: &str = "console.log.1";

/// The writing end.
#[derive(Debug)]
pub struct ConsoleLog {
    dir: OwnedFd,
    /// The file that is written; `None` while it can't be opened.
    file: Option<File>,
    size: u64,
    limit: u64,
    /// Bytes of output that could not be written since the last that was.
    missing: u64,
    problem: Option<String>,
}

impl ConsoleLog {
    /// Opens the log in `dir`, to go on at its end; at `limit` bytes it starts a new file. A file that can't be
    /// opened is tried again at each output.
    pub fn open(dir: OwnedFd, limit: u64) -> Self {
        let mut log = Self {
            dir,
            file: None,
            size: 0,
            limit,
            missing: 0,
            problem: None,
        };
        log.problem = log.write(&[]).err().map(|e| e.to_string());
        log
    }

    /// Appends output. What the file system refuses is missing in the log, which says so as soon as it can be
    /// written again.
    pub fn append(&mut self, bytes: &[u8]) {
        let written = match self.missing {
            0 => self.write(bytes),
            missing => {
                let note = format!("\n[{missing} bytes of output could not be written]\n");
                self.write(&[note.as_bytes(), bytes].concat())
            }
        };
        match written {
            Ok(()) => (self.missing, self.problem) = (0, None),
            Err(e) => {
                self.missing += bytes.len() as u64;
                self.problem = Some(e.to_string());
            }
        }
    }

    /// Returns why the log can't be written, if it can't.
    pub fn problem(&self) -> Option<&str> {
        self.problem.as_deref()
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.size > 0 && self.size + bytes.len() as u64 > self.limit {
            renameat(&self.dir, CURRENT, &self.dir, PREVIOUS)?;
            (self.file, self.size) = (None, 0);
        }
        if self.file.is_none() {
            let file = open_current(&self.dir)?;
            self.size = file.metadata()?.len();
            self.file = Some(file);
        }
        if let Some(file) = &mut self.file {
            file.write_all(bytes)?;
        }
        self.size += bytes.len() as u64;
        Ok(())
    }
}

fn open_current(dir: &OwnedFd) -> io::Result<File> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::APPEND | OFlags::CLOEXEC;
    Ok(File::from(openat(
        dir,
        CURRENT,
        flags | OFlags::NOFOLLOW,
        Mode::RUSR | Mode::WUSR,
    )?))
}

/// Reads a log from its beginning, or its last lines, and then as it grows.
#[derive(Debug)]
pub struct Reader {
    dir: PathBuf,
    file: Option<File>,
}

impl Reader {
    /// Starts at the last `lines` lines, or at the beginning, and writes them to `out`.
    ///
    /// # Errors
    ///
    /// A file can't be read or `out` not written. A log that doesn't exist yet is empty.
    pub fn start(dir: &Path, lines: Option<usize>, out: &mut dyn Write) -> io::Result<Self> {
        let mut text = Vec::new();
        if let Some(mut previous) = open(&dir.join(PREVIOUS))? {
            previous.read_to_end(&mut text)?;
        }
        let mut file = open(&dir.join(CURRENT))?;
        if let Some(file) = &mut file {
            file.read_to_end(&mut text)?;
        }
        let from = lines.map_or(0, |n| start_of_last_lines(&text, n));
        out.write_all(&text[from..])?;
        out.flush()?;
        Ok(Self {
            dir: dir.to_owned(),
            file,
        })
    }

    /// Copies what is added to `out`, for ever.
    ///
    /// # Errors
    ///
    /// The errors of [`Self::start`], and the directory is gone because the VM was deleted.
    pub fn follow(&mut self, out: &mut dyn Write) -> io::Result<()> {
        let watch = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
        let what = inotify::WatchFlags::MODIFY
            | inotify::WatchFlags::CREATE
            | inotify::WatchFlags::MOVED_TO
            | inotify::WatchFlags::DELETE_SELF
            | inotify::WatchFlags::MOVE_SELF;
        inotify::add_watch(&watch, &self.dir, what)?;
        let mut events = [0; 4096];
        loop {
            self.copy_new(out)?;
            if !self.dir.exists() {
                return Err(io::ErrorKind::NotFound.into());
            }
            // A second at most, so that nothing depends on how complete inotify is.
            let timeout = Timespec {
                tv_sec: 1,
                tv_nsec: 0,
            };
            match poll(&mut [PollFd::new(&watch, PollFlags::IN)], Some(&timeout)) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
            while rustix::io::read(&watch, &mut events).is_ok_and(|n| n > 0) {}
        }
    }

    fn copy_new(&mut self, out: &mut dyn Write) -> io::Result<()> {
        loop {
            if let Some(file) = &mut self.file {
                io::copy(file, out)?;
                out.flush()?;
            }
            let Some(mut current) = open(&self.dir.join(CURRENT))? else {
                return Ok(());
            };
            if let Some(file) = &self.file
                && same_file(file, &current)?
            {
                return Ok(());
            }
            // The writer began a new file; the old one was read to its end above.
            current.seek(SeekFrom::Start(0))?;
            self.file = Some(current);
        }
    }
}

fn same_file(a: &File, b: &File) -> io::Result<bool> {
    use std::os::unix::fs::MetadataExt;
    let (a, b) = (a.metadata()?, b.metadata()?);
    Ok((a.dev(), a.ino()) == (b.dev(), b.ino()))
}

fn open(path: &Path) -> io::Result<Option<File>> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

fn start_of_last_lines(text: &[u8], lines: usize) -> usize {
    if lines == 0 {
        return text.len();
    }
    let body = text.strip_suffix(b"\n").unwrap_or(text);
    body.iter()
        .enumerate()
        .rev()
        .filter(|&(_, &b)| b == b'\n')
        .nth(lines - 1)
        .map_or(0, |(at, _)| at + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(dir: &Path, limit: u64) -> ConsoleLog {
        ConsoleLog::open(File::open(dir).unwrap().into(), limit)
    }

    #[test]
    fn rotates_at_the_limit_and_goes_on_where_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = log(dir.path(), 10);
        writer.append(b"12345678\n");
        writer.append(b"abc\n");
        drop(writer);
        log(dir.path(), 10).append(b"def\n");
        let read = |name| std::fs::read_to_string(dir.path().join(name)).unwrap();
        assert_eq!(read(PREVIOUS), "12345678\n");
        assert_eq!(read(CURRENT), "abc\ndef\n");
        let mut out = Vec::new();
        Reader::start(dir.path(), Some(2), &mut out).unwrap();
        assert_eq!(out, b"abc\ndef\n");
    }

    #[test]
    fn output_that_can_not_be_written_is_told_and_missing() {
        let dir = tempfile::tempdir().unwrap();
        let current = dir.path().join(CURRENT);
        std::os::unix::fs::symlink("/dev/full", &current).unwrap();
        let mut writer = log(dir.path(), 1000);
        assert!(writer.problem().is_some(), "a symbolic link is followed");
        writer.append(b"lost");
        std::fs::remove_file(&current).unwrap();
        writer.file = Some(File::options().write(true).open("/dev/full").unwrap());
        writer.append(b"too");
        let problem = writer.problem().unwrap();
        assert!(problem.contains("No space left"), "{problem}");
        writer.file = None;
        writer.append(b"again\n");
        assert_eq!(writer.problem(), None);
        let text = std::fs::read_to_string(&current).unwrap();
        assert_eq!(text, "\n[7 bytes of output could not be written]\nagain\n");
    }

    #[test]
    fn a_reader_follows_across_files() {
        let dir = tempfile::tempdir().unwrap();
        let mut out = Vec::new();
        let mut reader = Reader::start(dir.path(), None, &mut out).unwrap();
        let mut writer = log(dir.path(), 8);
        writer.append(b"one\n");
        reader.copy_new(&mut out).unwrap();
        writer.append(b"two\n");
        writer.append(b"three\n");
        reader.copy_new(&mut out).unwrap();
        assert_eq!(out, b"one\ntwo\nthree\n");
    }

    #[test]
    fn last_lines() {
        assert_eq!(start_of_last_lines(b"a\nb\nc", 1), 4);
        assert_eq!(start_of_last_lines(b"a\nb\nc\n", 2), 2);
        assert_eq!(start_of_last_lines(b"a\nb\n", 9), 0);
        assert_eq!(start_of_last_lines(b"", 1), 0);
        assert_eq!(start_of_last_lines(b"a\n", 0), 2);
    }
}
