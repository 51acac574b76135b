//! Kernels: what kind a file is, whether it is whole, and its way into guest memory.
//!
//! [`Kernel::open`] decides by content and checks everything that can be checked without a VM;
//! [`Kernel::load`] writes kernel, initial RAM disk, command line and the boot protocol's tables,
//! and answers with the [`Entry`] of the boot CPU. One module per kind; `elf` reads the
//! container that two of them share.

mod bzimage;
mod elf;
mod entry;
mod multiboot;
mod pvh;
#[cfg(test)]
pub(super) mod tests;

use std::fmt;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use vm_memory::{Bytes, GuestAddress, GuestMemoryError, ReadVolatile};

use super::devices::Part;
use super::memory::{Ram, layout};
use crate::file;
pub use entry::Entry;

/// Bytes that decide the kind: Multiboot allows its header anywhere in the first 8 KiB.
const HEAD: u64 = 8192;

/// One line that names the file and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadError(String);

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for LoadError {}

/// A file that was found and can be read.
#[derive(Debug)]
struct Source {
    path: PathBuf,
    file: File,
    size: u64,
}

impl Source {
    fn open(path: &Path) -> Result<Self, LoadError> {
        let error = |why: &dyn fmt::Display| LoadError(format!("{}: {why}", path.display()));
        let file = file::open_regular(path).map_err(|e| error(&file::describe(&e)))?;
        let meta = file.metadata().map_err(|e| error(&e))?;
        if meta.len() == 0 {
            return Err(error(&"the file is empty"));
        }
        Ok(Self {
            path: path.to_owned(),
            file,
            size: meta.len(),
        })
    }

    fn part(&self, start: u64, len: u64) -> io::Result<Part> {
        let file = self.file.try_clone()?;
        Ok(Part { file, start, len })
    }

    fn error(&self, why: impl fmt::Display) -> LoadError {
        LoadError(format!("{}: {why}", self.path.display()))
    }

    /// Reads up to `len` bytes at `offset`; fewer at the end of the file.
    fn bytes(&mut self, offset: u64, len: u64) -> Result<Vec<u8>, LoadError> {
        let mut bytes = Vec::new();
        self.file
            .seek(SeekFrom::Start(offset))
            .and_then(|_| (&self.file).take(len).read_to_end(&mut bytes))
            .map_err(|e| self.error(e))?;
        Ok(bytes)
    }

    /// Checks that the file holds `len` bytes at `offset`.
    fn check_extent(&self, offset: u64, len: u64) -> Result<(), LoadError> {
        match offset.checked_add(len) {
            Some(end) if end <= self.size => Ok(()),
            Some(end) => Err(self.error(format_args!(
                "truncated: by its header it has at least {end} bytes, but it has {}",
                self.size
            ))),
            None => Err(self.error("its header is malformed")),
        }
    }

    /// Copies part of the file into guest memory.
    fn copy(&mut self, offset: u64, len: u64, ram: &Ram, gpa: u64) -> Result<(), LoadError> {
        self.check_extent(offset, len)?;
        let len = usize::try_from(len).map_err(|e| self.error(e))?;
        let to = GuestAddress(gpa);
        self.file
            .seek(SeekFrom::Start(offset))
            .map_err(|e| self.error(e))?;
        copy_in(ram, to, &mut self.file, len).map_err(|e| self.error(e))
    }
}

fn copy_in(
    ram: &Ram,
    to: GuestAddress,
    file: &mut impl ReadVolatile,
    len: usize,
) -> Result<(), GuestMemoryError> {
    ram.mapping().read_exact_volatile_from(to, file, len)
}

/// The data that a kernel starts with besides itself.
#[derive(Debug)]
pub struct Boot<'a> {
    /// Command line.
    pub cmdline: &'a str,
    /// Initial RAM disk, or first module.
    pub initrd: Option<Initrd>,
    /// Address of the RSDP.
    pub rsdp: u64,
}

/// An initial RAM disk that was found and can be read.
#[derive(Debug)]
pub struct Initrd {
    source: Source,
    /// The address at which it was loaded.
    at: Option<u64>,
}

impl Initrd {
    /// Opens it.
    ///
    /// # Errors
    ///
    /// One line that names the file.
    pub fn open(path: &Path) -> Result<Self, LoadError> {
        let source = Source::open(path)?;
        Ok(Self { source, at: None })
    }

    /// Returns its file, and where it was loaded below 4 GiB.
    ///
    /// # Errors
    ///
    /// The process has no file descriptors left.
    pub fn into_part(self) -> io::Result<(Part, u32)> {
        let part = self.source.part(0, self.source.size)?;
        let at = self.at.and_then(|at| u32::try_from(at).ok());
        Ok((part, at.unwrap_or(0)))
    }

    /// Copies it to the highest page at or above `floor` and below `ceiling`; answers where.
    fn load_high(&mut self, ram: &Ram, floor: u64, ceiling: u64) -> Result<u64, LoadError> {
        let ceiling = ceiling.min(ram.low_end());
        let gpa = ceiling
            .checked_sub(self.source.size)
            .map(|gpa| gpa & !0xfff)
            .filter(|&gpa| gpa >= floor)
            .ok_or_else(|| {
                self.source.error(format_args!(
                    "{} bytes do not fit beside the kernel: give the VM more memory",
                    self.source.size
                ))
            })?;
        self.load_at(ram, gpa)
    }

    fn load_at(&mut self, ram: &Ram, gpa: u64) -> Result<u64, LoadError> {
        let size = self.source.size;
        if gpa.checked_add(size).is_none_or(|end| end > ram.low_end()) {
            return Err(self.source.error(format_args!(
                "{size} bytes do not fit behind the kernel: give the VM more memory"
            )));
        }
        self.source.copy(0, size, ram, gpa)?;
        self.at = Some(gpa);
        Ok(gpa)
    }
}

/// A kernel whose file is whole.
#[derive(Debug)]
pub struct Kernel {
    source: Source,
    kind: Kind,
}

/// The kinds of kernels.
#[derive(Debug)]
enum Kind {
    BzImage(bzimage::BzImage),
    Pvh(pvh::Pvh),
    Multiboot(multiboot::Multiboot),
}

impl Kernel {
    /// Opens a kernel, decides its kind, and checks that it is whole.
    ///
    /// # Errors
    ///
    /// One line that names the file and why.
    pub fn open(path: &Path) -> Result<Self, LoadError> {
        let mut source = Source::open(path)?;
        let kind = Self::probe(&mut source)?;
        Ok(Self { source, kind })
    }

    fn probe(source: &mut Source) -> Result<Kind, LoadError> {
        let head = source.bytes(0, HEAD)?;
        if let Some(image) = bzimage::BzImage::probe(source, &head)? {
            return Ok(Kind::BzImage(image));
        }
        let header = multiboot::Header::find(&head);
        let Some(elf) = elf::Elf::probe(source, &head)? else {
            return match header {
                Some(header) => multiboot::Multiboot::flat(source, header).map(Kind::Multiboot),
                None if head.starts_with(b"\x1f\x8b") => {
                    Err(source.error("not a kernel: a gzip file; unpack it first"))
                }
                None => Err(source.error(
                    "not a kernel: neither a bzImage, nor an ELF file, nor a Multiboot image",
                )),
            };
        };
        if let Some(entry) = elf.pvh_entry(source)? {
            return Ok(Kind::Pvh(pvh::Pvh { elf, entry }));
        }
        match header {
            Some(header) => multiboot::Multiboot::elf(source, header, elf).map(Kind::Multiboot),
            None => Err(source
                .error("not a kernel: an ELF file without a PVH entry note or a Multiboot header")),
        }
    }

    /// Whether its vLAPICs should start in x2APIC mode: kernels that know of virtual machines.
    pub fn wants_x2apic(&self) -> bool {
        !matches!(self.kind, Kind::Multiboot(_))
    }

    /// Returns the parts of its file: what of it runs in real mode, and the rest.
    ///
    /// # Errors
    ///
    /// The process has no file descriptors left.
    pub fn into_parts(self) -> io::Result<(Part, Part)> {
        let setup = match &self.kind {
            Kind::BzImage(image) => image.setup_size(),
            Kind::Pvh(_) | Kind::Multiboot(_) => 0,
        };
        let rest = self.source.size.saturating_sub(setup);
        Ok((self.source.part(0, setup)?, self.source.part(setup, rest)?))
    }

    /// Returns the kind of the kernel, for logs.
    pub fn describe(&self) -> &'static str {
        match self.kind {
            Kind::BzImage(_) => "bzImage",
            Kind::Pvh(_) => "PVH ELF",
            Kind::Multiboot(_) => "Multiboot",
        }
    }

    /// Writes everything into guest memory.
    ///
    /// # Errors
    ///
    /// One line that names the file: the memory is too small for it, or it can no longer be read.
    pub fn load(&mut self, ram: &Ram, boot: &mut Boot<'_>) -> Result<Entry, LoadError> {
        let mut line = Vec::with_capacity(boot.cmdline.len() + 1);
        line.extend_from_slice(boot.cmdline.as_bytes());
        line.push(0);
        self.write(ram, layout::CMDLINE, &line)?;
        let entry = match &self.kind {
            Kind::BzImage(image) => image.load(&mut self.source, ram, boot)?,
            Kind::Pvh(kernel) => kernel.load(&mut self.source, ram, boot)?,
            Kind::Multiboot(kernel) => kernel.load(&mut self.source, ram, boot)?,
        };
        entry.write_tables(ram).map_err(|e| self.source.error(e))?;
        Ok(entry)
    }

    fn write(&self, ram: &Ram, gpa: u64, bytes: &[u8]) -> Result<(), LoadError> {
        ram.mapping()
            .write_slice(bytes, GuestAddress(gpa))
            .map_err(|e| self.source.error(e))
    }
}
