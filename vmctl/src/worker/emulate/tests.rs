//! Instructions against a memory of 64 KiB, a device at `DEVICE` and a port that counts.

mod addresses;
mod integer;
mod vector;

use super::plain::Plain;
use super::*;
use guest_proto::vcpu_page::Segment;
use iced_x86::{Decoder, DecoderOptions};

const DEVICE: u64 = 0x10_0000;
const CODE: u64 = 0x1000;

struct Fake {
    ram: Vec<u8>,
    device: [u8; 64],
    log: Vec<(char, u64, u8, u64)>,
    vectors: [u128; 16],
}

impl Fake {
    fn new(code: &[u8]) -> Self {
        let mut ram = vec![0; 0x1_0000];
        ram[CODE as usize..][..code.len()].copy_from_slice(code);
        Self {
            ram,
            device: [0; 64],
            log: Vec::new(),
            vectors: [0; 16],
        }
    }

    fn put(&mut self, at: u64, value: u64) {
        self.ram[at as usize..][..8].copy_from_slice(&value.to_le_bytes());
    }
}

impl Space for Fake {
    fn read_ram(&mut self, gpa: u64, bytes: &mut [u8]) -> bool {
        let from = gpa as usize;
        match self.ram.get(from..from + bytes.len()) {
            Some(ram) => bytes.copy_from_slice(ram),
            None => return false,
        }
        true
    }

    fn read_word(&mut self, gpa: u64) -> Option<u64> {
        let mut bytes = [0; 8];
        self.read_ram(gpa, &mut bytes)
            .then(|| u64::from_le_bytes(bytes))
    }

    fn write_ram(&mut self, gpa: u64, bytes: &[u8]) -> bool {
        let to = gpa as usize;
        match self.ram.get_mut(to..to + bytes.len()) {
            Some(ram) => ram.copy_from_slice(bytes),
            None => return false,
        }
        true
    }

    fn read_device(&mut self, gpa: u64, size: u8) -> u64 {
        let at = (gpa - DEVICE) as usize;
        let mut word = [0; 8];
        word[..usize::from(size)].copy_from_slice(&self.device[at..at + usize::from(size)]);
        let value = u64::from_le_bytes(word);
        self.log.push(('r', gpa - DEVICE, size, value));
        value
    }

    fn write_device(&mut self, gpa: u64, size: u8, value: u64) {
        let at = (gpa - DEVICE) as usize;
        let bytes = value.to_le_bytes();
        self.device[at..at + usize::from(size)].copy_from_slice(&bytes[..usize::from(size)]);
        self.log.push(('w', gpa - DEVICE, size, value));
    }

    fn read_port(&mut self, port: u16, size: u8) -> u64 {
        self.log.push(('i', u64::from(port), size, 0));
        self.log.len() as u64
    }

    fn write_port(&mut self, port: u16, size: u8, value: u64) {
        self.log.push(('o', u64::from(port), size, value));
    }

    fn vectors(&mut self) -> Option<[u128; 16]> {
        Some(self.vectors)
    }

    fn set_vectors(&mut self, vectors: &[u128; 16]) {
        self.vectors = *vectors;
    }
}

/// Ring 0 without paging: `long` mode only says how to decode.
fn state(bits: u32) -> ExecutionState {
    let mut state = ExecutionState {
        rip: CODE,
        rflags: 2,
        cr0: 1,
        ..ExecutionState::default()
    };
    let attributes = match bits {
        64 => {
            state.efer = 1 << 10;
            0xa9b
        }
        32 => 0xc9b,
        _ => {
            state.cr0 = 0;
            0x09b
        }
    };
    state.segment[1] = Segment {
        attributes,
        ..Segment::default()
    };
    state
}

/// Emulates an instruction that was not decoded before.
fn emulate(
    state: &mut ExecutionState,
    fake: &mut Fake,
    known: &[u8],
    cause: Cause,
) -> Result<(), Fault> {
    super::emulate(state, fake, &mut Decoded::default(), known, cause)
}

const MEMORY: Cause = Cause::Memory {
    gpa: DEVICE,
    is_write: true,
};

/// What makes a CPU stop at `code`, which ends with the opcode if it is a string instruction.
fn cause(code: &[u8], state: &ExecutionState) -> Cause {
    let port = |size, is_write| Cause::Port {
        port: state.gpr[2] as u16,
        size,
        is_write,
    };
    match code.last() {
        Some(0x6e) => port(1, true),
        Some(0x6d) => port(2, false),
        _ => MEMORY,
    }
}

fn run(
    bits: u32,
    code: &[u8],
    set: impl FnOnce(&mut ExecutionState, &mut Fake),
) -> (ExecutionState, Fake) {
    let mut fake = Fake::new(code);
    let mut state = state(bits);
    set(&mut state, &mut fake);
    let cause = cause(code, &state);
    emulate(&mut state, &mut fake, &[], cause).unwrap();
    assert_eq!(state.rip, CODE + code.len() as u64);
    (state, fake)
}

#[test]
fn moves_of_every_size() {
    // mov [rbx+4], ecx
    let (_, fake) = run(64, &[0x89, 0x4b, 0x04], |s, _| {
        s.gpr[3] = DEVICE;
        s.gpr[1] = 0xffff_ffff_1234_5678;
    });
    assert_eq!(fake.log, [('w', 4, 4, 0x1234_5678)]);
    // mov eax, [rbx]: clears the upper half
    let (s, _) = run(64, &[0x8b, 0x03], |s, f| {
        s.gpr[3] = DEVICE;
        s.gpr[0] = u64::MAX;
        f.device[0] = 7;
    });
    assert_eq!(s.gpr[0], 7);
    // mov ah, [rbx]
    let (s, _) = run(64, &[0x8a, 0x23], |s, f| {
        s.gpr[3] = DEVICE;
        s.gpr[0] = 0x1122_3344;
        f.device[0] = 0xab;
    });
    assert_eq!(s.gpr[0], 0x1122_ab44);
    // movsx rax, word [rbx]; movzx eax, byte [rbx]
    let high = |s: &mut ExecutionState, f: &mut Fake| {
        s.gpr[3] = DEVICE;
        f.device[..2].copy_from_slice(&[0x80, 0xff]);
    };
    assert_eq!(
        run(64, &[0x48, 0x0f, 0xbf, 0x03], high).0.gpr[0],
        0xffff_ffff_ffff_ff80
    );
    assert_eq!(run(64, &[0x0f, 0xb6, 0x03], high).0.gpr[0], 0x80);
    // mov qword [rbx], -1 (sign-extended immediate)
    let (_, fake) = run(64, &[0x48, 0xc7, 0x03, 0xff, 0xff, 0xff, 0xff], high);
    assert_eq!(fake.log, [('w', 0, 8, u64::MAX)]);
}

/// Maps the memory and the device to themselves, by a large page.
fn map_flat(bits: u32, s: &mut ExecutionState, fake: &mut Fake) {
    s.cr0 |= 1 | 1 << 31;
    s.cr3 = 0x4000;
    if bits == 64 {
        s.cr4 = 1 << 5;
        fake.put(0x4000, 0x5003);
        fake.put(0x5000, 0x6003);
        fake.put(0x6000, 0x83);
    } else {
        s.cr4 = 1 << 4;
        fake.put(0x4000, 0x83);
    }
}

/// Without the offset of the access, emulation works out the whole address.
#[test]
fn a_plain_move_does_what_the_whole_emulation_does() {
    let start = |bits: u32, fake: &mut Fake| {
        let mut s = state(bits);
        map_flat(bits, &mut s, fake);
        s.gpr = std::array::from_fn(|i| 0x0765_4321_1000_0003 * (i as u64 + 1));
        // Flat code has no base; FS and code of 16 and 32 bits have one.
        (s.gpr[3], s.gpr[1]) = (DEVICE - 0x20, 5);
        if bits != 64 {
            (s.gpr[3], s.segment[3].base) = (0x20, DEVICE - 0x40);
        }
        s.segment[4].base = 0x10;
        s
    };
    let after = |bits: u32, code: &[u8], is_write, offset: u64| {
        let mut fake = Fake::new(code);
        fake.device = std::array::from_fn(|i| 0x80 + i as u8);
        let mut s = start(bits, &mut fake);
        let cause = Cause::Memory {
            gpa: DEVICE + offset,
            is_write,
        };
        emulate(&mut s, &mut fake, &[], cause).unwrap();
        (s, fake.log)
    };
    let address = (DEVICE + 0x18).to_le_bytes();
    let relative = (DEVICE as u32 + 0x18 - CODE as u32 - 6).to_le_bytes();
    let moffs = [&[0x48, 0xa1][..], &address].concat();
    let rip = [&[0x8b, 0x05][..], &relative].concat();
    // Bits, code, the offset that it accesses, and its size.
    let cases: &[(u32, &[u8], u64, u8)] = &[
        (64, &[0x8b, 0x43, 0x28], 0x8, 4),
        (64, &[0x48, 0x8b, 0x43, 0x28], 0x8, 8),
        (64, &[0x66, 0x8b, 0x43, 0x28], 0x8, 2),
        (64, &[0x8a, 0x63, 0x29], 0x9, 1),
        (64, &[0x40, 0x8a, 0x63, 0x29], 0x9, 1),
        (64, &[0x8b, 0x44, 0x8b, 0x28], 0x1c, 4),
        (64, &[0x67, 0x8b, 0x43, 0x28], 0x8, 4),
        (64, &[0x64, 0x8b, 0x43, 0x20], 0x10, 4),
        (64, &moffs, 0x18, 8),
        (64, &rip, 0x18, 4),
        (64, &[0x88, 0x63, 0x20], 0, 1),
        (64, &[0x89, 0x53, 0x24], 0x4, 4),
        (64, &[0x44, 0x89, 0x53, 0x24], 0x4, 4),
        (64, &[0x48, 0xc7, 0x43, 0x20, 0xfe, 0xff, 0xff, 0xff], 0, 8),
        (64, &[0x66, 0xc7, 0x43, 0x20, 0x34, 0x12], 0, 2),
        (64, &[0xc6, 0x43, 0x21, 0x80], 0x1, 1),
        (32, &[0x8b, 0x43, 0x28], 0x8, 4),
        (32, &[0xa3, 0x58, 0, 0, 0], 0x18, 4),
        (16, &[0x8b, 0x47, 0x20], 0, 2),
        (16, &[0x67, 0x66, 0x89, 0x43, 0x28], 0x8, 4),
    ];
    for &(bits, code, offset, size) in cases {
        let mut decoder = Decoder::with_ip(bits, code, CODE, DecoderOptions::NONE);
        let plain = Plain::of(&decoder.decode(), bits).unwrap();
        let s = start(bits, &mut Fake::new(code));
        assert_eq!(plain.offset(&s), offset, "{code:x?}");
        let is_write = after(bits, code, true, offset ^ 0x20).1[0].0 == 'w';
        let whole = after(bits, code, is_write, offset ^ 0x20);
        assert_eq!(whole.1.len(), 1, "{code:x?}");
        assert_eq!((whole.1[0].1, whole.1[0].2), (offset, size), "{code:x?}");
        assert_eq!(after(bits, code, is_write, offset), whole, "{code:x?}");
        assert_eq!(whole.0.rip, CODE + code.len() as u64);
    }
}

#[test]
fn a_plain_move_makes_the_access_that_the_cpu_has_checked() {
    // mov [rbx], ecx
    let mut fake = Fake::new(&[0x89, 0x0b]);
    let mut s = state(64);
    // There are no page tables for this address.
    addresses::paged(&mut fake, &mut s, &[CODE | 3]);
    (s.rip, s.gpr[3], s.gpr[1]) = (0x40_0000, 0xdead_0010, 7);
    let at = |gpa, is_write| Cause::Memory { gpa, is_write };
    emulate(&mut s, &mut fake, &[], at(DEVICE + 0x10, true)).unwrap();
    assert_eq!(fake.log, [('w', 0x10, 4, 7)]);
    // A read was checked, and not a write; the end of a page is not the whole access.
    for (address, cause) in [
        (0xdead_0010, at(DEVICE + 0x10, false)),
        (0xdead_0ffe, at(DEVICE + 0xffe, true)),
    ] {
        (s.rip, s.gpr[3]) = (0x40_0000, address);
        let fault = emulate(&mut s, &mut fake, &[], cause).unwrap_err();
        assert!(matches!(fault, Fault::Page { .. }), "{fault:?}");
        assert_eq!(fake.log.len(), 1);
    }
}

#[test]
fn bytes_that_the_cpu_told_are_not_fetched() {
    // mov [rbx], ecx; in memory, and in the page tables, is nothing.
    let mut known = [0x90; MAX_LENGTH];
    known[..2].copy_from_slice(&[0x89, 0x0b]);
    let attempt = |known: &[u8]| {
        let mut fake = Fake::new(&[]);
        let mut s = state(64);
        (s.cr0, s.cr3) = (s.cr0 | 1 << 31, 0x4000);
        (s.gpr[1], s.gpr[3]) = (7, DEVICE);
        emulate(&mut s, &mut fake, known, MEMORY).map(|()| fake.log)
    };
    assert_eq!(attempt(&known).unwrap(), [('w', 0, 4, 7)]);
    // Some bytes are not the whole instruction.
    for bytes in [&known[..14], &[]] {
        assert!(matches!(
            attempt(bytes),
            Err(Fault::Page { address: CODE, .. })
        ));
    }
}

#[test]
fn arithmetic_reads_changes_and_writes_with_flags() {
    // or dword [rbx], 0x10000
    let (_, fake) = run(64, &[0x81, 0x0b, 0, 0, 1, 0], |s, f| {
        s.gpr[3] = DEVICE;
        f.device[0] = 5;
    });
    assert_eq!(fake.log, [('r', 0, 4, 5), ('w', 0, 4, 0x1_0005)]);
    // sub dword [rbx], eax → borrow, sign
    let (s, _) = run(64, &[0x29, 0x03], |s, _| {
        s.gpr[3] = DEVICE;
        s.gpr[0] = 1;
    });
    assert_eq!(s.rflags & 0x8d5, 0x95, "CF PF AF SF");
    // test byte [rbx], 0x10: no write
    let (s, fake) = run(64, &[0xf6, 0x03, 0x10], |s, _| s.gpr[3] = DEVICE);
    assert_eq!(fake.log.len(), 1);
    assert_ne!(s.rflags & 0x40, 0);
    // inc dword [rbx] keeps CF
    let (s, _) = run(64, &[0xff, 0x03], |s, _| {
        s.gpr[3] = DEVICE;
        s.rflags |= 1;
    });
    assert_eq!(s.rflags & 1, 1);
    // add byte [rbx], 1: 0x7f overflows
    let (s, _) = run(64, &[0x80, 0x03, 1], |s, f| {
        s.gpr[3] = DEVICE;
        f.device[0] = 0x7f;
    });
    assert_ne!(s.rflags & 0x800, 0);
}

#[test]
fn exchanges_and_bits() {
    // xchg [rbx], eax
    let (s, fake) = run(64, &[0x87, 0x03], |s, f| {
        s.gpr[3] = DEVICE;
        s.gpr[0] = 9;
        f.device[0] = 4;
    });
    assert_eq!((s.gpr[0], fake.device[0]), (4, 9));
    // lock cmpxchg [rbx], ecx: equal
    let (s, fake) = run(64, &[0xf0, 0x0f, 0xb1, 0x0b], |s, f| {
        s.gpr[3] = DEVICE;
        s.gpr[0] = 4;
        s.gpr[1] = 8;
        f.device[0] = 4;
    });
    assert_ne!(s.rflags & 0x40, 0);
    assert_eq!(fake.device[0], 8);
    // bts [rbx], eax with bit 35: in the next word
    let (s, fake) = run(64, &[0x0f, 0xab, 0x03], |s, _| {
        s.gpr[3] = DEVICE;
        s.gpr[0] = 35;
        s.rflags |= 1;
    });
    assert_eq!((s.rflags & 1, fake.device[4]), (0, 8));
    // bt dword [rbx], 3
    let (s, _) = run(64, &[0x0f, 0xba, 0x23, 3], |s, f| {
        s.gpr[3] = DEVICE;
        f.device[0] = 8;
    });
    assert_eq!(s.rflags & 1, 1);
}

#[test]
fn strings_move_between_ram_and_device() {
    // rep movsd
    let (s, fake) = run(64, &[0xf3, 0xa5], |s, f| {
        s.gpr[6] = 0x2000;
        s.gpr[7] = DEVICE;
        s.gpr[1] = 3;
        f.put(0x2000, 0x2222_2222_1111_1111);
        f.put(0x2008, 0x3333_3333);
    });
    assert_eq!(fake.log[2], ('w', 8, 4, 0x3333_3333));
    assert_eq!((s.gpr[1], s.gpr[6], s.gpr[7]), (0, 0x200c, DEVICE + 12));
    // std; stosb
    let (s, fake) = run(32, &[0xaa], |s, _| {
        s.gpr[7] = DEVICE + 1;
        s.gpr[0] = 0x1ff;
        s.rflags |= 1 << 10;
    });
    assert_eq!(fake.log, [('w', 1, 1, 0xff)]);
    assert_eq!(s.gpr[7], DEVICE);
    // repne scasb stops behind the byte that it looked for
    let (s, _) = run(64, &[0xf2, 0xae], |s, f| {
        s.gpr[7] = DEVICE;
        s.gpr[0] = 9;
        s.gpr[1] = 10;
        f.device[2] = 9;
    });
    assert_eq!((s.gpr[7], s.gpr[1]), (DEVICE + 3, 7));
}

#[test]
fn string_ports() {
    // rep outsb
    let (s, fake) = run(64, &[0xf3, 0x6e], |s, f| {
        s.gpr[6] = 0x2000;
        s.gpr[1] = 2;
        s.gpr[2] = 0x3f8;
        f.put(0x2000, 0x6968);
    });
    assert_eq!(fake.log, [('o', 0x3f8, 1, 0x68), ('o', 0x3f8, 1, 0x69)]);
    assert_eq!(s.gpr[6], 0x2002);
    // insw in real mode
    let (_, fake) = run(16, &[0x6d], |s, _| {
        s.gpr[7] = 0x3000;
        s.gpr[2] = 0x1f0;
        s.segment[0].base = 0x100;
    });
    assert_eq!(fake.ram[0x3100], 1);
}

#[test]
fn a_long_string_comes_back_for_the_rest() {
    let mut fake = Fake::new(&[0xf3, 0x6e]);
    let mut s = state(64);
    s.gpr[6] = 0x2000;
    s.gpr[1] = 1500;
    let out = cause(&[0x6e], &s);
    emulate(&mut s, &mut fake, &[], out).unwrap();
    assert_eq!((s.rip, s.gpr[1]), (CODE, 1500 - 1024));
    emulate(&mut s, &mut fake, &[], out).unwrap();
    assert_eq!((s.rip, s.gpr[1]), (CODE + 2, 0));
    assert_eq!(fake.log.len(), 1500);
}

#[test]
fn what_is_not_emulated_says_its_bytes() {
    // fld dword [rbx]
    let mut fake = Fake::new(&[0xd9, 0x03]);
    let fault = emulate(&mut state(64), &mut fake, &[], MEMORY).unwrap_err();
    let Fault::NotEmulated(bytes) = fault else {
        panic!("{fault:?}");
    };
    assert_eq!(bytes.to_string(), "d9 03");
    let mut fake = Fake::new(&[0x0f, 0x0b]);
    assert!(emulate(&mut state(64), &mut fake, &[], MEMORY).is_err());
    let mut fake = Fake::new(&[0x06]);
    assert_eq!(
        emulate(&mut state(64), &mut fake, &[], MEMORY),
        Err(Fault::UndefinedOpcode)
    );
}

/// A program in ring 3 with IOPL 0, whose task state segment at 0x8000 has its map of ports at offset 0x68.
fn with_ports(fake: &mut Fake, s: &mut ExecutionState, limit: u32) {
    s.segment[2].attributes = 0xf3;
    s.tr = Segment {
        attributes: 0x8b,
        limit,
        base: 0x8000,
        ..Segment::default()
    };
    fake.put(0x8000 + 100, 0x68 << 16);
}

#[test]
fn a_program_has_the_ports_of_its_map() {
    // outsb to port 0x3f8: bit 0 of byte 0x7f of the map
    const BYTE: u64 = 0x8000 + 0x68 + 0x7f;
    let outsb = |limit, map: u8, change: &dyn Fn(&mut ExecutionState)| {
        let mut fake = Fake::new(&[0x6e]);
        let mut s = state(64);
        s.gpr[2] = 0x3f8;
        s.gpr[6] = 0x2000;
        with_ports(&mut fake, &mut s, limit);
        fake.ram[BYTE as usize] = map;
        change(&mut s);
        let out = cause(&[0x6e], &s);
        let result = emulate(&mut s, &mut fake, &[], out);
        assert_eq!(fake.log.len(), usize::from(result.is_ok()));
        result
    };
    let same = |_: &mut ExecutionState| {};
    assert_eq!(outsb(0x2068, 0, &same), Ok(()));
    assert_eq!(outsb(0x2068, 0xfe, &same), Ok(()));
    assert_eq!(outsb(0x2068, 1, &same), Err(Fault::Protection));
    // The map ends before the second byte that the CPU reads, or there is none.
    assert_eq!(outsb(0x68 + 0x80, 0, &same), Ok(()));
    assert_eq!(outsb(0x68 + 0x7f, 0, &same), Err(Fault::Protection));
    assert_eq!(outsb(103, 0, &same), Err(Fault::Protection));
    assert_eq!(outsb(102, 0, &same), Err(Fault::Protection));
    // A task state segment of 16 bits has none.
    let narrow = |s: &mut ExecutionState| s.tr.attributes = 0x83;
    assert_eq!(outsb(0x2068, 0, &narrow), Err(Fault::Protection));
    // IOPL lets the program have every port, but not in virtual-8086 mode.
    let iopl = |s: &mut ExecutionState| s.rflags |= 3 << 12;
    assert_eq!(outsb(0x68, 1, &iopl), Ok(()));
    let ring_0 = |s: &mut ExecutionState| s.segment[2].attributes = 0x93;
    assert_eq!(outsb(0x68, 1, &ring_0), Ok(()));
    let mut s = state(16);
    (s.cr0, s.rflags) = (1, 2 | 3 << 12 | 1 << 17);
    s.segment[2].attributes = 0xf3;
    assert!(!Registers::new(&mut s).may_use_ports());
}

#[test]
fn a_wide_access_needs_all_of_its_ports() {
    let insw = |map: u16| {
        let mut fake = Fake::new(&[0x66, 0x6d]);
        let mut s = state(64);
        s.gpr[2] = 0x3ff;
        s.gpr[7] = 0x3000;
        with_ports(&mut fake, &mut s, 0x2068);
        fake.put(0x8000 + 0x68 + 0x7f, u64::from(map));
        let cause = cause(&[0x6d], &s);
        emulate(&mut s, &mut fake, &[], cause)
    };
    assert_eq!(insw(0), Ok(()));
    assert_eq!(insw(0x7f), Ok(()));
    for map in [0x80, 0x100] {
        assert_eq!(insw(map), Err(Fault::Protection), "{map:#x}");
    }
}

#[test]
fn only_the_instruction_that_stopped_the_cpu_is_emulated() {
    let attempt = |code: &[u8], cause| {
        let mut fake = Fake::new(code);
        let mut s = state(64);
        (s.gpr[2], s.gpr[3], s.gpr[6], s.gpr[7]) = (0x3f8, DEVICE, 0x2000, 0x3000);
        let result = emulate(&mut s, &mut fake, &[], cause);
        if result.is_err() {
            assert_eq!((s.rip, fake.log.len()), (CODE, 0), "{code:x?}");
        }
        result
    };
    let memory = |gpa, is_write| Cause::Memory { gpa, is_write };
    let port = |port, size, is_write| Cause::Port {
        port,
        size,
        is_write,
    };
    let changed = Err(Fault::Changed);
    // mov [rbx], ecx; mov ecx, [rbx]; or [rbx], ecx; outsb; insb
    let (write, read, or, outsb, insb) = ([0x89, 0x0b], [0x8b, 0x0b], [0x09, 0x0b], [0x6e], [0x6c]);
    assert_eq!(attempt(&write, memory(DEVICE, true)), Ok(()));
    assert_eq!(
        attempt(&write, memory(DEVICE + 8, true)),
        Ok(()),
        "the same page"
    );
    assert_eq!(attempt(&write, memory(DEVICE, false)), changed);
    assert_eq!(attempt(&write, memory(DEVICE + 0x1000, true)), changed);
    assert_eq!(attempt(&read, memory(DEVICE, false)), Ok(()));
    assert_eq!(attempt(&or, memory(DEVICE, true)), Ok(()));
    assert_eq!(attempt(&or, memory(DEVICE, false)), Ok(()));
    assert_eq!(attempt(&read, memory(DEVICE - 0x1000, false)), changed);
    assert_eq!(attempt(&write, port(0x3f8, 1, true)), changed);
    assert_eq!(attempt(&outsb, port(0x3f8, 1, true)), Ok(()));
    assert_eq!(attempt(&outsb, port(0x3f9, 1, true)), changed);
    assert_eq!(attempt(&outsb, port(0x3f8, 2, true)), changed);
    assert_eq!(attempt(&outsb, port(0x3f8, 1, false)), changed);
    assert_eq!(attempt(&insb, port(0x3f8, 1, true)), changed);
    assert_eq!(attempt(&outsb, memory(DEVICE, true)), changed);
}
