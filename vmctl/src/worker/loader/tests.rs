//! Kernels made here: whole ones of each kind, and ways in which they are broken.

use super::*;
use guest_proto::vcpu_page::VcpuState;
use std::fs;

const ENTRY: u32 = 0x10_0010;
const CODE: &[u8] = b"\xf4 code of the kernel";

fn put(image: &mut [u8], at: usize, bytes: &[u8]) {
    image[at..at + bytes.len()].copy_from_slice(bytes);
}

/// A bzImage that protocol 2.15 describes: 4 + 1 setup sectors and a 64-bit entry point.
fn bzimage() -> Vec<u8> {
    let mut image = vec![0; 5 * 512 + 0x1000];
    let size = (image.len() - 5 * 512) as u32;
    put(&mut image, 0x1f1, &[4]);
    put(&mut image, 0x1f4, &(size / 16).to_le_bytes());
    put(&mut image, 0x1fe, &0xaa55u16.to_le_bytes());
    put(&mut image, 0x202, b"HdrS");
    put(&mut image, 0x206, &0x20fu16.to_le_bytes());
    put(&mut image, 0x211, &[1]);
    put(&mut image, 0x22c, &0x7fff_ffffu32.to_le_bytes());
    put(&mut image, 0x236, &1u16.to_le_bytes());
    put(&mut image, 0x238, &2047u32.to_le_bytes());
    put(&mut image, 0x258, &0x10_0000u64.to_le_bytes());
    put(&mut image, 0x260, &0x20_0000u32.to_le_bytes());
    put(&mut image, 5 * 512 + 0x200, CODE);
    image
}

/// A 32-bit ELF file with one segment of 4 KiB at 1 MiB (twice that in memory), and a note if
/// `pvh`.
fn elf(pvh: bool) -> Vec<u8> {
    let mut image = vec![0; 0x2000];
    put(&mut image, 0, b"\x7fELF\x01\x01\x01");
    put(&mut image, 16, &2u16.to_le_bytes());
    put(&mut image, 18, &3u16.to_le_bytes());
    put(&mut image, 24, &ENTRY.to_le_bytes());
    put(&mut image, 28, &52u32.to_le_bytes());
    put(&mut image, 42, &32u16.to_le_bytes());
    put(&mut image, 44, &2u16.to_le_bytes());
    let mut header = |at: usize, words: [u32; 8]| {
        for (i, word) in words.into_iter().enumerate() {
            put(&mut image, at + 4 * i, &word.to_le_bytes());
        }
    };
    header(
        52,
        [1, 0x1000, 0xc010_0000, 0x10_0000, 0x1000, 0x2000, 7, 0x1000],
    );
    header(84, [4, 0x200, 0, 0, if pvh { 20 } else { 0 }, 20, 4, 4]);
    put(&mut image, 0x200, &4u32.to_le_bytes());
    put(&mut image, 0x204, &4u32.to_le_bytes());
    put(&mut image, 0x208, &18u32.to_le_bytes());
    put(&mut image, 0x20c, b"Xen\0");
    put(&mut image, 0x210, &ENTRY.to_le_bytes());
    put(&mut image, 0x1010, CODE);
    image
}

/// A PVH kernel that halts.
pub(in super::super) fn pvh_kernel() -> Vec<u8> {
    elf(true)
}

fn multiboot() -> Vec<u8> {
    let mut image = elf(false);
    let flags = 3u32;
    let magic = 0x1bad_b002u32;
    put(&mut image, 0x1000, &magic.to_le_bytes());
    put(&mut image, 0x1004, &flags.to_le_bytes());
    let sum = 0u32.wrapping_sub(magic).wrapping_sub(flags);
    put(&mut image, 0x1008, &sum.to_le_bytes());
    image
}

struct Files(tempfile::TempDir);

impl Files {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn add(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.0.path().join(name);
        fs::write(&path, bytes).unwrap();
        path
    }
}

/// Loads a kernel with a RAM disk of 3 bytes; where it is entered, and the memory.
fn load(image: &[u8], size: u64) -> Result<(VcpuState, Ram), LoadError> {
    let files = Files::new();
    let mut kernel = Kernel::open(&files.add("kernel", image))?;
    let initrd = Initrd::open(&files.add("initrd", b"ram"))?;
    let ram = Ram::new(size).unwrap();
    let mut boot = Boot {
        cmdline: "quiet x=1",
        initrd: Some(initrd),
        rsdp: layout::ACPI,
    };
    let entry = kernel.load(&ram, &mut boot)?;
    let mut state = VcpuState::default();
    entry.apply(&mut state);
    Ok((state, ram))
}

fn read<const N: usize>(ram: &Ram, gpa: u64) -> [u8; N] {
    let mut bytes = [0; N];
    ram.mapping()
        .read_slice(&mut bytes, GuestAddress(gpa))
        .unwrap();
    bytes
}

fn word(ram: &Ram, gpa: u64) -> u64 {
    u64::from(u32::from_le_bytes(read(ram, gpa)))
}

#[test]
fn a_bzimage_is_entered_with_its_boot_params() {
    let (state, ram) = load(&bzimage(), 16 << 20).unwrap();
    assert_eq!(state.rip, 0x10_0200);
    assert_eq!(&read::<5>(&ram, state.rip), &CODE[..5]);
    let params = state.gpr[6];
    let cmdline = word(&ram, params + 0x228);
    assert_eq!(&read(&ram, cmdline), b"quiet x=1\0");
    let (initrd, size) = (word(&ram, params + 0x218), word(&ram, params + 0x21c));
    assert_eq!((&read(&ram, initrd), size), (b"ram", 3));
    assert_eq!(word(&ram, params + 0x70), layout::ACPI);
    assert_eq!(read(&ram, params + 0x1e8), [3], "memory map entries");
}

#[test]
fn a_pvh_kernel_gets_its_start_info() {
    let (state, ram) = load(&pvh_kernel(), 16 << 20).unwrap();
    assert_eq!(state.rip, u64::from(ENTRY));
    assert_eq!((state.cr0 & 1, state.cr0 >> 31), (1, 0));
    assert_eq!(&read::<5>(&ram, state.rip), &CODE[..5]);
    let info = state.gpr[3];
    assert_eq!(word(&ram, info), 0x336e_c578);
    assert_eq!(word(&ram, info + 12), 1, "modules");
    let module = word(&ram, word(&ram, info + 16));
    assert_eq!(&read(&ram, module), b"ram");
    assert_eq!(&read(&ram, word(&ram, info + 24)), b"quiet x=1\0");
    assert_eq!(word(&ram, info + 32), layout::ACPI);
}

#[test]
fn a_multiboot_kernel_gets_its_information() {
    let (state, ram) = load(&multiboot(), 16 << 20).unwrap();
    assert_eq!(state.rip, u64::from(ENTRY));
    assert_eq!(state.gpr[0], 0x2bad_b002);
    let info = state.gpr[3];
    assert_eq!(&read(&ram, word(&ram, info + 16)), b"quiet x=1\0");
    let module = word(&ram, word(&ram, info + 24));
    assert_eq!(&read(&ram, module), b"ram");
    assert_eq!(module, 0x10_2000, "behind the kernel's zeroed memory");
}

/// The line of an error, without the path that it begins with.
fn refusal(image: &[u8], size: u64) -> String {
    let text = load(image, size).unwrap_err().to_string();
    let (path, why) = text.split_once(": ").unwrap();
    assert!(
        path.ends_with("/kernel") || path.ends_with("/initrd"),
        "{path}"
    );
    why.to_owned()
}

#[test]
fn what_is_no_kernel_is_refused() {
    let files = Files::new();
    let error = |path: &Path| Kernel::open(path).unwrap_err().to_string();
    let missing = files.0.path().join("missing");
    assert_eq!(
        error(&missing),
        format!("{}: no such file", missing.display())
    );
    assert!(error(files.0.path()).ends_with("not a regular file"));
    assert!(error(&files.add("empty", b"")).ends_with("the file is empty"));
    assert!(refusal(b"#!/bin/sh\n", 16 << 20).starts_with("not a kernel: neither a bzImage"));
    assert!(refusal(b"\x1f\x8b\x08", 16 << 20).contains("unpack it first"));
    assert!(refusal(&elf(false), 16 << 20).contains("without a PVH entry note"));
    let mut arm = pvh_kernel();
    arm[18] = 40;
    assert!(refusal(&arm, 16 << 20).contains("for another machine"));
    let mut old = bzimage();
    old[0x236] = 0;
    assert!(refusal(&old, 16 << 20).contains("without a 64-bit entry point"));
}

#[test]
fn a_truncated_kernel_is_refused_wherever_it_ends() {
    for (image, ends) in [
        (bzimage(), [0x220, 0x300, 5 * 512 + 0xfff]),
        (pvh_kernel(), [40, 60, 0x1fff]),
        (multiboot(), [40, 60, 0x1fff]),
    ] {
        for end in ends {
            let why = refusal(&image[..end], 16 << 20);
            assert!(why.starts_with("truncated: "), "{end:#x}: {why}");
        }
    }
}

#[test]
fn a_kernel_that_does_not_fit_says_what_it_needs() {
    let why = refusal(&bzimage(), 2 << 20);
    assert_eq!(
        why,
        "this kernel needs 3M of memory to start, and the VM has 2M"
    );
    let mut large = pvh_kernel();
    put(&mut large, 52 + 20, &0x100_0000u32.to_le_bytes());
    let why = refusal(&large, 4 << 20);
    assert!(
        why.starts_with("it loads 16777216 bytes at 0x100000"),
        "{why}"
    );
    // The kernel fits, and leaves nothing for the RAM disk.
    let mut tight = bzimage();
    put(&mut tight, 0x260, &0x30_0000u32.to_le_bytes());
    assert!(refusal(&tight, 4 << 20).contains("give the VM more memory"));
}
