//! Shifts, products, bit counts, conditions, exchanges, the stack, and words of the system.

use super::addresses::paged;
use super::*;

const CF: u64 = 1 << 0;
const PF: u64 = 1 << 2;
const ZF: u64 = 1 << 6;
const SF: u64 = 1 << 7;
const OF: u64 = 1 << 11;

/// Runs `code` in 64-bit mode on `memory` at [RBX].
fn on(memory: u64, code: &[u8], set: impl FnOnce(&mut ExecutionState)) -> (ExecutionState, u64) {
    let (state, fake) = run(64, code, |s, f| {
        s.gpr[3] = DEVICE;
        f.device[..8].copy_from_slice(&memory.to_le_bytes());
        set(s);
    });
    let bytes = fake.device.first_chunk().unwrap();
    (state, u64::from_le_bytes(*bytes))
}

fn fault(code: &[u8], set: impl FnOnce(&mut ExecutionState, &mut Fake)) -> Fault {
    let mut fake = Fake::new(code);
    let mut s = state(64);
    s.gpr[3] = DEVICE;
    set(&mut s, &mut fake);
    let before = s;
    let fault = emulate(&mut s, &mut fake, &[], MEMORY).unwrap_err();
    assert_eq!((s.rip, s.gpr), (before.rip, before.gpr));
    fault
}

#[test]
fn shifts_and_rotations() {
    let carry_in = |s: &mut ExecutionState| s.rflags |= CF;
    const ALL: u64 = CF | OF | SF | PF;
    // The last column has the flags that are defined and change.
    for (code, before, after, flags, known) in [
        // shl byte [rbx], 1
        (&[0xd0, 0x23][..], 0xc1, 0x82, CF | SF | PF, ALL),
        // shr byte [rbx], 1
        (&[0xd0, 0x2b], 0x81, 0x40, CF | OF, ALL),
        // sar word [rbx], 4
        (
            &[0x66, 0xc1, 0x3b, 4],
            0x8008,
            0xf800,
            CF | SF | PF,
            ALL & !OF,
        ),
        // rol dword [rbx], 8
        (&[0xc1, 0x03, 8], 0x1234_5678, 0x3456_7812, 0, CF),
        // ror byte [rbx], 1
        (&[0xd0, 0x0b], 0x01, 0x80, CF | OF, CF | OF),
        // rcl byte [rbx], 1
        (&[0xd0, 0x13], 0x80, 0x01, CF | OF, CF | OF),
        // rcr byte [rbx], 1
        (&[0xd0, 0x1b], 0x00, 0x80, OF, CF | OF),
    ] {
        let (s, value) = on(before, code, carry_in);
        assert_eq!(value, after, "{code:02x?}");
        assert_eq!(s.rflags & known, flags, "{code:02x?}");
    }
    // shl dword [rbx], 32: no step, no flag
    let (s, value) = on(0x8000_0000, &[0xc1, 0x23, 32], |s| s.rflags |= CF | ZF);
    assert_eq!((value, s.rflags & (CF | ZF)), (0x8000_0000, CF | ZF));
    // shld [rbx], ecx, 8; shrd [rbx], rcx, cl
    let (_, value) = on(0x1122_3344, &[0x0f, 0xa4, 0x0b, 8], |s| {
        s.gpr[1] = 0xaabb_ccdd
    });
    assert_eq!(value, 0x2233_44aa);
    let (s, value) = on(0x88, &[0x48, 0x0f, 0xad, 0x0b], |s| s.gpr[1] = 0x0104);
    assert_eq!((value, s.rflags & CF), (0x4 << 60 | 0x8, CF));
}

#[test]
fn products_and_quotients() {
    // imul ecx, [rbx]: the product fits, or does not
    let (s, _) = on(0xffff_ffff, &[0x0f, 0xaf, 0x0b], |s| s.gpr[1] = u64::MAX);
    assert_eq!((s.gpr[1], s.rflags & (CF | OF)), (1, 0));
    let (s, _) = on(0x4000_0000, &[0x0f, 0xaf, 0x0b], |s| s.gpr[1] = 4);
    assert_eq!((s.gpr[1], s.rflags & (CF | OF)), (0, CF | OF));
    // imul rcx, [rbx], -2
    let (s, _) = on(21, &[0x48, 0x6b, 0x0b, 0xfe], |_| {});
    assert_eq!(s.gpr[1].cast_signed(), -42);
    // mul byte [rbx]: into AH and AL; mul qword [rbx]
    let (s, _) = on(0xff, &[0xf6, 0x23], |s| s.gpr[0] = 0x7702);
    assert_eq!(s.gpr[0], 0x01fe);
    let (s, _) = on(u64::MAX, &[0x48, 0xf7, 0x23], |s| s.gpr[0] = 2);
    assert_eq!((s.gpr[0], s.gpr[2]), (u64::MAX - 1, 1));
    // div dword [rbx]; idiv word [rbx]
    let (s, _) = on(10, &[0xf7, 0x33], |s| (s.gpr[2], s.gpr[0]) = (1, 5));
    assert_eq!((s.gpr[0], s.gpr[2]), (0x1999_999a, 1));
    let (s, _) = on(0xfffd, &[0x66, 0xf7, 0x3b], |s| {
        (s.gpr[2], s.gpr[0]) = (0xffff, 0xfff9)
    });
    assert_eq!((s.gpr[0], s.gpr[2]), (2, 0xffff));
    // By 0, and with a quotient that is too large.
    assert_eq!(fault(&[0xf7, 0x33], |s, _| s.gpr[0] = 1), Fault::Divide);
    let too_large = fault(&[0xf7, 0x3b], |s, f| {
        (s.gpr[2], s.gpr[0]) = (0xffff_ffff, 0x8000_0000);
        f.device[..4].copy_from_slice(&u32::MAX.to_le_bytes());
    });
    assert_eq!(too_large, Fault::Divide);
}

#[test]
fn bits_are_found_and_counted() {
    let find = |code: &[u8], memory| {
        let (s, _) = on(memory, code, |s| s.gpr[1] = u64::MAX);
        (s.gpr[1], s.rflags & (CF | ZF))
    };
    // bsf ecx, [rbx]; bsr ecx, [rbx]: nothing to find leaves even the upper half
    assert_eq!(find(&[0x0f, 0xbc, 0x0b], 0x0500), (8, 0));
    assert_eq!(find(&[0x0f, 0xbd, 0x0b], 0x0500), (10, 0));
    assert_eq!(find(&[0x0f, 0xbc, 0x0b], 0), (u64::MAX, ZF));
    assert_eq!(find(&[0x0f, 0xbd, 0x0b], 0), (u64::MAX, ZF));
    // tzcnt cx, [rbx]; lzcnt rcx, [rbx]; popcnt ecx, [rbx]
    let upper = 0xffff_ffff_ffff_0000;
    assert_eq!(find(&[0x66, 0xf3, 0x0f, 0xbc, 0x0b], 0), (upper | 16, CF));
    assert_eq!(find(&[0xf3, 0x48, 0x0f, 0xbd, 0x0b], 1), (63, 0));
    assert_eq!(find(&[0xf3, 0x48, 0x0f, 0xbd, 0x0b], 1 << 63), (0, ZF));
    assert_eq!(find(&[0xf3, 0x0f, 0xb8, 0x0b], 0xf00f), (8, 0));
}

#[test]
fn conditions() {
    // sete [rbx]; setg [rbx]
    let (_, value) = on(0xffff, &[0x0f, 0x94, 0x03], |s| s.rflags |= ZF);
    assert_eq!(value, 0xff01);
    let (_, value) = on(0xffff, &[0x0f, 0x9f, 0x03], |s| s.rflags |= SF);
    assert_eq!(value, 0xff00);
    // cmovb ecx, [rbx]: it reads, and clears the upper half, in any case
    for (flags, expected) in [(CF, 0x1234), (0, 0xffff_ffff)] {
        let (s, _) = on(0x1234, &[0x0f, 0x42, 0x0b], |s| {
            s.rflags |= flags;
            s.gpr[1] = u64::MAX;
        });
        assert_eq!(s.gpr[1], expected);
    }
    // movbe ecx, [rbx]; movbe [rbx], cx
    let (s, _) = on(0x1122_3344, &[0x0f, 0x38, 0xf0, 0x0b], |_| {});
    assert_eq!(s.gpr[1], 0x4433_2211);
    let (_, value) = on(0, &[0x66, 0x0f, 0x38, 0xf1, 0x0b], |s| s.gpr[1] = 0xabcd);
    assert_eq!(value, 0xcdab);
}

#[test]
fn a_wide_exchange() {
    let registers = |low, high| {
        move |s: &mut ExecutionState| {
            (s.gpr[0], s.gpr[2]) = (low, high);
            s.gpr[1] = 0x5555;
        }
    };
    // cmpxchg8b [rbx]: equal, so that ECX and EBX are stored
    let code = [0x0f, 0xc7, 0x0b];
    let (s, value) = on(2 << 32 | 1, &code, registers(1, 2));
    assert_eq!((value, s.rflags & ZF), (0x5555 << 32 | DEVICE, ZF));
    let (s, value) = on(2 << 32 | 1, &code, registers(1, 3));
    assert_eq!((value, s.rflags & ZF), (2 << 32 | 1, 0));
    assert_eq!((s.gpr[0], s.gpr[2]), (1, 2));
    // cmpxchg16b [rbx], not on 16 bytes
    let odd = fault(&[0x48, 0x0f, 0xc7, 0x0b], |s, _| s.gpr[3] = DEVICE + 8);
    assert_eq!(odd, Fault::Protection);
}

#[test]
fn the_stack_and_its_operand() {
    // push qword [rbx]; the stack is RAM
    let (s, fake) = run(64, &[0xff, 0x33], |s, f| {
        s.gpr[3] = DEVICE;
        s.gpr[4] = 0x8000;
        f.device[..8].copy_from_slice(&0x1122_u64.to_le_bytes());
    });
    assert_eq!(s.gpr[4], 0x7ff8);
    assert_eq!(fake.ram[0x7ff8..0x8000], 0x1122_u64.to_le_bytes());
    // pop dword [rbx]
    let (s, fake) = run(32, &[0x8f, 0x03], |s, f| {
        s.gpr[3] = DEVICE;
        s.gpr[4] = 0x8000;
        s.segment[2].attributes = 0xc93;
        f.put(0x8000, 0x77);
    });
    assert_eq!((s.gpr[4], fake.log[0]), (0x8004, ('w', 0, 4, 0x77)));
    // push -1, push rcx and pop rcx on a stack that is a device; pop [rsp] is addressed by the new pointer
    for (code, entry) in [
        (&[0x6a, 0xff][..], ('w', 8, 8, u64::MAX)),
        (&[0x51], ('w', 8, 8, 0x1234)),
        (&[0x59], ('r', 16, 8, 0)),
    ] {
        let (_, fake) = run(64, code, |s, _| {
            s.gpr[4] = DEVICE + 16;
            s.gpr[1] = 0x1234;
        });
        assert_eq!(fake.log, [entry]);
    }
    let (s, fake) = run(64, &[0x8f, 0x04, 0x24], |s, _| s.gpr[4] = DEVICE);
    assert_eq!(s.gpr[4], DEVICE + 8);
    assert_eq!(fake.log, [('r', 0, 8, 0), ('w', 8, 8, 0)]);
    // pop qword [rbx] from an empty page: nothing has changed
    let page_fault = fault(&[0x8f, 0x03], |s, f| {
        paged(f, s, &[0x9007, 0]);
        s.rip = 0x40_0000;
        s.gpr[4] = 0x40_1000;
        f.ram[0x9000..0x9002].copy_from_slice(&[0x8f, 0x03]);
    });
    assert!(matches!(page_fault, Fault::Page { .. }), "{page_fault:?}");
}

#[test]
fn words_of_the_system() {
    const UMIP: u64 = 1 << 11;
    // smsw [rbx]; str [rbx]
    let (_, value) = on(u64::MAX, &[0x0f, 0x01, 0x23], |s| s.cr0 = 0x0001_0033);
    assert_eq!(value, 0xffff_ffff_ffff_0033);
    let (_, value) = on(0, &[0x0f, 0x00, 0x0b], |s| s.tr.selector = 0x40);
    assert_eq!(value, 0x40);
    let forbidden = fault(&[0x0f, 0x01, 0x23], |s, _| {
        s.cr4 = UMIP;
        s.segment[2].attributes = 3 << 5;
    });
    assert_eq!(forbidden, Fault::Protection);
}
