//! Tests of disk images, on files of the host.

use std::fs::{self, OpenOptions};
use std::io::{IoSlice, IoSliceMut};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;
use vm_memory::VolatileSlice;

use super::*;

mod corrupt;
mod create;
mod files;
mod io;

const MIB: u64 = 1 << 20;

struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Makes an image; its name says its format.
    fn image(&self, name: &str, size: u64) -> PathBuf {
        let path = self.path(name);
        create(&path, Format::of_name(&path), size, None).unwrap();
        path
    }

    fn overlay(&self, name: &str, size: u64, base: &Path) -> PathBuf {
        let path = self.path(name);
        let format = Format::of_name(base);
        let backing = Backing { path: base, format };
        create(&path, Format::Qcow2, size, Some(backing)).unwrap();
        path
    }
}

fn open_as(path: &Path, access: Access, cache: Cache) -> Result<Image, DiskError> {
    let chain = Chain::open(path, Format::of_name(path), access, BackingDirs::Any)?;
    Image::new(chain, cache)
}

fn open(path: &Path, access: Access) -> Result<Image, DiskError> {
    open_as(path, access, Cache::Writeback)
}

fn writer(path: &Path) -> Image {
    open(path, Access::Write).unwrap()
}

fn reader(path: &Path) -> Image {
    open(path, Access::Read).unwrap()
}

fn refusal(path: &Path) -> String {
    open(path, Access::Write).unwrap_err().to_string()
}

fn read(image: &Image, offset: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0xee; len];
    image
        .read(offset, &mut [IoSliceMut::new(&mut bytes)])
        .unwrap();
    bytes
}

fn write(image: &Image, offset: u64, bytes: &[u8]) {
    image.write(offset, &[IoSlice::new(bytes)]).unwrap();
}

/// Bytes that tell where they belong.
fn pattern(offset: u64, len: usize) -> Vec<u8> {
    let bytes = (offset..).map(|at| (at % 251) as u8 | 1);
    bytes.take(len).collect()
}

fn patch(path: &Path, offset: u64, bytes: &[u8]) {
    let file = OpenOptions::new().write(true).open(path).unwrap();
    file.write_all_at(bytes, offset).unwrap();
}

/// Runs `qemu-img`, and says so if there is none.
fn qemu_img(args: &[&str], path: &Path) -> Option<bool> {
    match Command::new("qemu-img").args(args).arg(path).output() {
        Ok(output) => Some(output.status.success()),
        Err(e) => {
            println!("qemu-img: {e}: not compared with QEMU");
            None
        }
    }
}

fn assert_sound(path: &Path) {
    // Without a lock: a process that another test is just starting has this one's files until its exec.
    assert_ne!(qemu_img(&["check", "-U", "-q"], path), Some(false));
}
