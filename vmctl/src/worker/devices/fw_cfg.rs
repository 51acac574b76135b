//! QEMU's firmware configuration device (QEMU's `docs/specs/fw_cfg.rst`), for firmware and test kernels that ask for the number of
//! CPUs, the memory, the ACPI tables, the kernel and the initial RAM disk. Items are selected by a 16-bit port and read byte by byte
//! from another one. There is no DMA interface, and nothing can be written.

use std::fs::File;
use std::os::unix::fs::FileExt;

/// Selects an item: a write of 16 bits.
pub(super) const SELECTOR: u16 = 0x510;
/// The next byte of the item.
pub(super) const DATA: u16 = 0x511;

/// Bytes that are read from a file at once.
const CHUNK: u64 = 4096;
/// Keys of files begin here.
const FIRST_FILE: u16 = 0x20;
/// Key of the list of files.
const FILE_DIR: u16 = 0x19;
/// Longest name of a file, with its NUL.
const NAME: usize = 56;
/// Addresses at which QEMU's firmware puts a kernel, its command line and its setup (`hw/i386/x86-common.c`).
const KERNEL_ADDRESS: u32 = 0x10_0000;
const CMDLINE_ADDRESS: u32 = 0x2_0000;
const SETUP_ADDRESS: u32 = 0x1_0000;
/// Bit of the interface's version that says that items are read by ports.
const TRADITIONAL: u32 = 1 << 0;

/// The data that the device tells.
#[derive(Debug, Default)]
pub struct Facts {
    /// Virtual CPUs.
    pub cpus: u32,
    /// Bytes of RAM.
    pub memory: u64,
    /// Kernel command line, without its NUL.
    pub cmdline: String,
    /// The kernel's file: what of it runs in real mode, and the rest.
    pub kernel: Option<(Part, Part)>,
    /// The initial RAM disk, and where it lies in memory.
    pub initrd: Option<(Part, u32)>,
    /// The ACPI tables, and the root pointer to them.
    pub acpi: Option<(Vec<u8>, Vec<u8>)>,
}

/// A part of a file.
#[derive(Debug)]
pub struct Part {
    /// The open file.
    pub file: File,
    /// Offset of the part.
    pub start: u64,
    /// Bytes of the part.
    pub len: u64,
}

/// An item.
#[derive(Debug)]
enum Item {
    Bytes(Vec<u8>),
    Part(Part),
}

/// The device.
#[derive(Debug, Default)]
pub(super) struct FwCfg {
    items: Vec<(u16, Item)>,
    selected: u16,
    offset: u64,
    /// A piece of the selected item, and where it begins.
    chunk: (u64, Vec<u8>),
}

impl FwCfg {
    pub(super) fn new(facts: Facts) -> Self {
        let number = |value: u32| Item::Bytes(value.to_le_bytes().to_vec());
        let short = |value: u32| Item::Bytes((value as u16).to_le_bytes().to_vec());
        let mut line = facts.cmdline.into_bytes();
        line.push(0);
        let mut items = vec![
            (0x00, Item::Bytes(b"QEMU".to_vec())),
            (0x01, number(TRADITIONAL)),
            (0x03, Item::Bytes(facts.memory.to_le_bytes().to_vec())),
            (0x05, short(facts.cpus)),
            (0x0f, short(facts.cpus)),
            (0x14, number(line.len() as u32)),
            (0x15, Item::Bytes(line)),
        ];
        if let Some((setup, kernel)) = facts.kernel {
            items.extend([
                (0x07, number(KERNEL_ADDRESS)),
                (0x13, number(CMDLINE_ADDRESS)),
                (0x16, number(SETUP_ADDRESS)),
                (0x08, number(kernel.len as u32)),
                (0x11, Item::Part(kernel)),
                (0x17, number(setup.len as u32)),
                (0x18, Item::Part(setup)),
            ]);
        }
        if let Some((initrd, address)) = facts.initrd {
            items.extend([
                (0x0a, number(address)),
                (0x0b, number(initrd.len as u32)),
                (0x12, Item::Part(initrd)),
            ]);
        }
        let files = facts
            .acpi
            .map(|(tables, rsdp)| [("etc/acpi/rsdp", rsdp), ("etc/acpi/tables", tables)]);
        let mut list = Vec::new();
        for (key, (name, bytes)) in (FIRST_FILE..).zip(files.into_iter().flatten()) {
            list.push((key, name, bytes.len() as u32));
            items.push((key, Item::Bytes(bytes)));
        }
        items.push((FILE_DIR, Item::Bytes(directory(&list))));
        Self {
            items,
            ..Self::default()
        }
    }

    /// Selects an item, to be read from its beginning.
    pub(super) fn select(&mut self, key: u16) {
        self.selected = key;
        self.offset = 0;
        self.chunk = (0, Vec::new());
    }

    /// Reads the next byte of the selected item; zero beyond its end, and of an item that is not there.
    pub(super) fn read(&mut self) -> u8 {
        let offset = self.offset;
        self.offset = offset.saturating_add(1);
        let item = self.items.iter().find(|(key, _)| *key == self.selected);
        match item {
            Some((_, Item::Bytes(bytes))) => byte_at(bytes, offset),
            Some((_, Item::Part(part))) if offset < part.len => {
                let (start, chunk) = &mut self.chunk;
                let is_in = offset >= *start && offset - *start < chunk.len() as u64;
                if !is_in {
                    *start = offset;
                    *chunk = part.read(offset);
                }
                byte_at(chunk, offset - *start)
            }
            _ => 0,
        }
    }
}

impl Part {
    /// Reads some bytes; fewer, or none, where the file can't be read.
    fn read(&self, offset: u64) -> Vec<u8> {
        let mut bytes = vec![0; CHUNK.min(self.len - offset) as usize];
        let read = self.file.read_at(&mut bytes, self.start + offset);
        bytes.truncate(read.unwrap_or(0));
        bytes
    }
}

fn byte_at(bytes: &[u8], at: u64) -> u8 {
    let at = usize::try_from(at).ok();
    at.and_then(|at| bytes.get(at)).copied().unwrap_or(0)
}

/// The list of files, whose numbers are big-endian.
fn directory(files: &[(u16, &str, u32)]) -> Vec<u8> {
    let mut bytes = (files.len() as u32).to_be_bytes().to_vec();
    for (key, name, size) in files {
        bytes.extend(size.to_be_bytes());
        bytes.extend(key.to_be_bytes());
        bytes.extend([0; 2]);
        let mut field = [0; NAME];
        field[..name.len()].copy_from_slice(name.as_bytes());
        bytes.extend(field);
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn read(device: &mut FwCfg, key: u16, count: usize) -> Vec<u8> {
        device.select(key);
        (0..count).map(|_| device.read()).collect()
    }

    fn part(bytes: &[u8], start: u64, len: u64) -> Part {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        Part { file, start, len }
    }

    fn device() -> FwCfg {
        let kernel: Vec<u8> = (0..10_000_u32).map(|n| n as u8).collect();
        FwCfg::new(Facts {
            cpus: 3,
            memory: 5 << 30,
            cmdline: "a b".to_owned(),
            kernel: Some((part(&kernel, 0, 1024), part(&kernel, 1024, 8976))),
            initrd: Some((part(b"initrd", 0, 6), 0x1234_5000)),
            acpi: Some((vec![7; 9], vec![8; 36])),
        })
    }

    #[test]
    fn numbers_and_texts() {
        let mut device = device();
        assert_eq!(read(&mut device, 0x00, 6), *b"QEMU\0\0");
        assert_eq!(read(&mut device, 0x01, 4), [1, 0, 0, 0]);
        assert_eq!(read(&mut device, 0x03, 8), (5_u64 << 30).to_le_bytes());
        assert_eq!(read(&mut device, 0x05, 2), [3, 0]);
        assert_eq!(read(&mut device, 0x14, 4), [4, 0, 0, 0]);
        assert_eq!(read(&mut device, 0x15, 5), *b"a b\0\0");
        assert_eq!(read(&mut device, 0x0a, 4), 0x1234_5000_u32.to_le_bytes());
        // No item has this key.
        assert_eq!(read(&mut device, 0x4000, 2), [0, 0]);
    }

    #[test]
    fn files_are_read_to_their_end() {
        let mut device = device();
        assert_eq!(read(&mut device, 0x17, 4), 1024_u32.to_le_bytes());
        assert_eq!(read(&mut device, 0x08, 4), 8976_u32.to_le_bytes());
        let rest: Vec<u8> = (1024..10_000_u32).map(|n| n as u8).chain([0, 0]).collect();
        assert_eq!(read(&mut device, 0x11, 8978), rest);
        assert_eq!(read(&mut device, 0x18, 3), [0, 1, 2]);
        assert_eq!(read(&mut device, 0x12, 8), *b"initrd\0\0");
    }

    #[test]
    fn a_file_that_became_shorter_reads_as_zeros() {
        let facts = Facts {
            initrd: Some((part(b"short", 0, 9000), 0)),
            ..Facts::default()
        };
        let mut device = FwCfg::new(facts);
        let bytes = read(&mut device, 0x12, 9001);
        assert_eq!(bytes[..5], *b"short");
        assert!(bytes[5..].iter().all(|&byte| byte == 0));
    }

    #[test]
    fn the_directory_names_the_tables() {
        let mut device = device();
        let bytes = read(&mut device, FILE_DIR, 4 + 2 * 64);
        assert_eq!(bytes[..4], [0, 0, 0, 2]);
        assert_eq!(bytes[4..12], [0, 0, 0, 36, 0, 0x20, 0, 0]);
        assert_eq!(bytes[12..26], *b"etc/acpi/rsdp\0");
        assert_eq!(bytes[68..76], [0, 0, 0, 9, 0, 0x21, 0, 0]);
        assert_eq!(read(&mut device, 0x21, 10), [7, 7, 7, 7, 7, 7, 7, 7, 7, 0]);
    }
}
