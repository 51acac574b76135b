//! A folder per booted machine, so that machines do not disturb each other.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use crate::Result;
use crate::files::{context, folder};

/// Logs of failed runs that are kept.
const LOGS: usize = 16;

/// Files of one run; gone when it is dropped.
pub(crate) struct RunFolder {
    path: PathBuf,
    /// Held while the run lasts.
    _lock: File,
}

impl RunFolder {
    /// Makes one, and removes what dead processes left behind.
    pub(crate) fn new() -> Result<Self> {
        let runs = folder()?.join("runs");
        fs::create_dir_all(&runs).map_err(context(&runs))?;
        // One at a time: a folder without a held lock is a dead process's.
        let turn = folder()?.join("runs.lock");
        let turn_file = File::create(&turn).map_err(context(&turn))?;
        turn_file.lock().map_err(context(&turn))?;
        sweep(&runs);
        let mut number = 0;
        loop {
            let path = runs.join(format!("{}-{number}", std::process::id()));
            match fs::create_dir(&path) {
                Ok(()) => {
                    let lock = path.join("lock");
                    let file = File::create(&lock).map_err(context(&lock))?;
                    file.lock().map_err(context(&lock))?;
                    return Ok(Self { path, _lock: file });
                }
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => number += 1,
                Err(error) => return Err(context(&path)(error)),
            }
        }
    }

    /// A file in it.
    pub(crate) fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Keeps a log beyond the run; where.
    pub(crate) fn keep(&self, log: &Path, name: &str) -> Result<PathBuf> {
        let logs = folder()?.join("logs");
        fs::create_dir_all(&logs).map_err(context(&logs))?;
        let own = self.path.file_name().unwrap_or_default().to_string_lossy();
        let kept = logs.join(format!("{name}-{own}.log"));
        fs::copy(log, &kept).map_err(context(&kept))?;
        let mut all: Vec<_> = fs::read_dir(&logs)
            .map_err(context(&logs))?
            .filter_map(|entry| {
                let path = entry.ok()?.path();
                Some((fs::metadata(&path).ok()?.modified().ok()?, path))
            })
            .collect();
        all.sort();
        for (_, old) in all.iter().rev().skip(LOGS) {
            let _ = fs::remove_file(old);
        }
        Ok(kept)
    }
}

impl Drop for RunFolder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// Removes the folders whose lock nobody holds.
fn sweep(runs: &Path) {
    let Ok(entries) = fs::read_dir(runs) else {
        return;
    };
    for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
        let held = File::open(path.join("lock")).is_ok_and(|lock| lock.try_lock().is_err());
        if !held {
            let _ = fs::remove_dir_all(&path);
        }
    }
}
