//! Where the commands keep what they build: folders under `target/machine`.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{Result, root};

/// The folder of everything about the emulated machine.
pub(crate) fn folder() -> Result<PathBuf> {
    let folder = root().join("target/machine");
    fs::create_dir_all(&folder).map_err(context(&folder))?;
    Ok(folder)
}

/// Where a package of that name is unpacked; not there before it is.
pub(crate) fn unpacked(name: &str) -> Result<PathBuf> {
    let folder = folder()?.join("packages");
    fs::create_dir_all(&folder).map_err(context(&folder))?;
    Ok(folder.join(name))
}

/// The last entry of a folder whose name has a prefix.
pub(crate) fn newest(folder: &Path, prefix: &str) -> Option<PathBuf> {
    fs::read_dir(folder)
        .ok()?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            path.file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with(prefix))
        })
        .max()
}

/// Unpacks a file with `xz` or `gzip`; `to` appears when it is complete.
pub(crate) fn decompress(program: &str, from: &Path, to: &Path) -> Result<()> {
    let partial = to.with_extension("partial");
    let output = File::create(&partial).map_err(context(&partial))?;
    let status = Command::new(program)
        .arg("-dc")
        .arg(from)
        .stdout(output)
        .status();
    match status {
        Ok(status) if status.success() => fs::rename(&partial, to).map_err(context(to)),
        Ok(status) => Err(format!("{program}: {}: {status}", from.display())),
        Err(error) => Err(format!("{program}: {error}")),
    }
}

/// Says which file an error is about.
pub(crate) fn context(path: &Path) -> impl Fn(io::Error) -> String {
    let path = path.display().to_string();
    move |error| format!("{path}: {error}")
}
