//! Where the commands keep what they build: folders under `target/machine`.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

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

/// Says which file an error is about.
pub(crate) fn context(path: &Path) -> impl Fn(io::Error) -> String {
    let path = path.display().to_string();
    move |error| format!("{path}: {error}")
}
