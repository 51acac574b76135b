//! The facts of an image, and its users.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::{Access, BackingDirs, DiskError, Format, Usage, chain, lock};

/// `st_blocks` counts in these.
const BLOCK: u64 = 512;

/// One file of an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Layer {
    /// Path of the file.
    pub file: PathBuf,
    /// Format of the file.
    pub format: Format,
    /// Bytes of the disk.
    pub virtual_size: u64,
    /// Bytes that it occupies.
    pub size_on_disk: u64,
    /// Use of the image by other programs.
    pub in_use: Usage,
}

/// Looks at an image and all that is behind it, also while others use it. It comes first.
///
/// # Errors
///
/// The errors of [`super::Chain::open`], but for the locks.
pub fn info(path: &Path, format: Format) -> Result<Vec<Layer>, DiskError> {
    let (image, backing) = chain::walk(path, format, Access::Read, BackingDirs::Any)?;
    let layers = std::iter::once(image).chain(backing).map(|link| {
        let io = |e| DiskError::io(&link.path, &e);
        Ok(Layer {
            size_on_disk: link.file.metadata().map_err(io)?.blocks() * BLOCK,
            in_use: lock::usage(&link.file).map_err(io)?,
            format: link.format(),
            virtual_size: link.size,
            file: link.path,
        })
    });
    layers.collect()
}
