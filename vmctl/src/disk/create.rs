//! Making images, and changing their size.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, IoSlice, IoSliceMut};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf, absolute};

use imago::file::File as Storage;
use imago::qcow2::Qcow2;
use imago::{FormatAccess, FormatCreateBuilder};

use crate::config::format_size;

use super::chain::{check_depth, check_size, folder};
use super::{Access, BackingDirs, Cache, Chain, DiskError, Format, Image, Problem, SECTOR};

/// Bytes that are copied at a time.
const COPY_BLOCK: usize = 1 << 20;

/// The backing file of a new image.
#[derive(Clone, Copy, Debug)]
pub struct Backing<'a> {
    /// The path, as the user writes it.
    pub path: &'a Path,
    /// The format.
    pub format: Format,
}

/// Makes an image of `size` bytes that reads as zeroes, or as its backing file.
///
/// # Errors
///
/// There is such a file; `size` is none, or the format has no backing files; the backing file
/// can't be opened, or is being written.
pub fn create(
    path: &Path,
    format: Format,
    size: u64,
    backing: Option<Backing<'_>>,
) -> Result<(), DiskError> {
    check_size(path, size)?;
    // Held until the image is there.
    let chain = match &backing {
        None => None,
        Some(_) if format == Format::Raw => {
            let what = "a raw image has no backing file";
            return Err(DiskError::wrong(path, what));
        }
        Some(backing) => Some(Chain::open(
            backing.path,
            backing.format,
            Access::Read,
            BackingDirs::Any,
        )?),
    };
    if let Some(chain) = &chain {
        check_depth(path, chain.depth() + 1)?;
    }
    let named = backing
        .map(|backing| name_from(path, backing))
        .transpose()?;
    let draft = Draft::new(path)?;
    write(&draft.file, format, size, named).map_err(|e| DiskError::io(path, &e))?;
    draft.publish().map_err(|e| DiskError::io(path, &e))
}

/// Makes `overlay`, a qcow2 image over `base` and of its size.
///
/// # Errors
///
/// The errors of [`create`].
pub fn snapshot(base: &Path, format: Format, overlay: &Path) -> Result<u64, DiskError> {
    let chain = Chain::open(base, format, Access::Read, BackingDirs::Any)?;
    let backing = Backing { path: base, format };
    create(overlay, Format::Qcow2, chain.capacity(), Some(backing))?;
    Ok(chain.capacity())
}

/// Makes `copy`, an image of format `new` without a backing file, from the data of `image`. Where
/// the data is zero, `copy` takes no space.
///
/// # Errors
///
/// The errors of [`create`], and the data can't be read or written.
pub fn clone_full(
    image: &Path,
    format: Format,
    copy: &Path,
    new: Format,
    dirs: BackingDirs<'_>,
) -> Result<(), DiskError> {
    let chain = Chain::open(image, format, Access::Read, dirs)?;
    let size = chain.capacity();
    let draft = Draft::new(copy)?;
    let failed = |e| DiskError::io(copy, &e);
    write(&draft.file, new, size, None).map_err(failed)?;
    let from = Image::new(chain, Cache::Writeback)?;
    let to = Chain::open(&draft.draft, new, Access::Write, BackingDirs::Any)?;
    let to = Image::new(to, Cache::Writeback)?;
    let mut bytes = vec![0; COPY_BLOCK];
    let mut at = 0;
    while at < size {
        let len = (size - at).min(COPY_BLOCK as u64) as usize;
        let block = &mut bytes[..len];
        let read = from.read(at, &mut [IoSliceMut::new(block)]);
        read.map_err(|e| DiskError::of(image, e))?;
        if block.iter().any(|&byte| byte != 0) {
            let written = to.write(at, &[IoSlice::new(block)]);
            written.map_err(|e| DiskError::of(copy, e))?;
        }
        at += len as u64;
    }
    to.flush().map_err(|e| DiskError::of(copy, e))?;
    drop(to);
    draft.publish().map_err(failed)
}

/// Changes an image's size; answers what it was.
///
/// # Errors
///
/// The image can't be opened or is in use, or it would lose data and `shrink` is not set.
pub fn resize(path: &Path, format: Format, size: u64, shrink: bool) -> Result<u64, DiskError> {
    check_size(path, size)?;
    let chain = Chain::open(path, format, Access::Write, BackingDirs::Any)?;
    let old = chain.capacity();
    if size < old && !shrink {
        let (old, size) = (format_size(old), format_size(size));
        let what = format_args!(
            "{old} long: --shrink cuts it to {size}, and the data behind that is lost"
        );
        return Err(DiskError::wrong(path, what));
    }
    let first = &chain.image;
    let meta = first.file.metadata().map_err(|e| DiskError::io(path, &e))?;
    if meta.file_type().is_block_device() {
        let what = "a block device can't be resized";
        return Err(DiskError::wrong(path, what));
    }
    let backing = chain.backing.first().map_or(0, |link| link.size);
    let cluster = first.header.as_ref().map_or(SECTOR, |h| h.cluster);
    let mut image = Image::new(chain, Cache::Writeback)?;
    let resized = image.resize(size, backing, cluster);
    resized.map_err(|e| DiskError::of(path, e))?;
    Ok(old)
}

/// A file without a name of its own yet. It vanishes unless it is published.
struct Draft<'a> {
    file: File,
    draft: PathBuf,
    path: &'a Path,
}

impl<'a> Draft<'a> {
    fn new(path: &'a Path) -> Result<Self, DiskError> {
        if path.symlink_metadata().is_ok() {
            return Err(DiskError::new(Problem::Exists, path, "exists already"));
        }
        let Some(name) = path.file_name() else {
            return Err(DiskError::wrong(path, "names no file"));
        };
        let mut hidden = OsString::from(".");
        hidden.push(name);
        hidden.push(format!(".{}", std::process::id()));
        let draft = path.with_file_name(hidden);
        let mut options = OpenOptions::new();
        // A disk may hold anybody's secrets.
        options.read(true).write(true).create_new(true).mode(0o600);
        let file = options.open(&draft).map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => DiskError::wrong(path, "no such directory"),
            _ => DiskError::io(path, &e),
        })?;
        Ok(Self { file, draft, path })
    }

    /// Gives it its name, if nothing else has it by now, and makes that durable.
    fn publish(self) -> io::Result<()> {
        self.file.sync_all()?;
        fs::hard_link(&self.draft, self.path)?;
        File::open(folder(self.path))?.sync_all()
    }
}

impl Drop for Draft<'_> {
    fn drop(&mut self) {
        // Whoever removed it did what is wanted here.
        let _ = fs::remove_file(&self.draft);
    }
}

fn write(
    file: &File,
    format: Format,
    size: u64,
    backing: Option<(String, Format)>,
) -> io::Result<()> {
    if format == Format::Raw {
        return file.set_len(size);
    }
    let storage = Storage::try_from(file.try_clone()?)?;
    let mut image = Qcow2::<Storage, FormatAccess<Storage>>::create_builder(storage).size(size);
    if let Some((name, format)) = backing {
        image = image.backing(name, format.name().to_owned());
    }
    image.create()
}

/// Returns the name for the header: a name in the same directory, or else an absolute path. Relative paths
/// are the image's there, and the user's here.
fn name_from(path: &Path, backing: Backing<'_>) -> Result<(String, Format), DiskError> {
    let io = |e| DiskError::io(backing.path, &e);
    let there = fs::canonicalize(folder(backing.path)).map_err(io)?;
    let here =
        fs::canonicalize(folder(path)).map_err(|_| DiskError::wrong(path, "no such directory"))?;
    let name = match backing.path.file_name() {
        Some(name) if here == there => PathBuf::from(name),
        _ => absolute(backing.path).map_err(io)?,
    };
    match name.to_str() {
        Some(name) => Ok((name.to_owned(), backing.format)),
        None => Err(DiskError::wrong(backing.path, "not UTF-8 text")),
    }
}
