//! Moves of SSE.

use super::*;

const OSFXSR: u64 = 1 << 9;
const OLD: u128 = 0x1111_2222_3333_4444_5555_6666_7777_8888;
const MEMORY_BYTES: u128 = 0x0f0e_0d0c_0b0a_0908_0706_0504_0302_0100;

/// Runs `code`, which has the operands XMM3 and [RBX]. Returns both.
fn moved(code: &[u8]) -> (u128, u128) {
    let (_, fake) = run(64, code, |s, f| {
        s.cr4 = OSFXSR;
        s.gpr[3] = DEVICE;
        f.device[..16].copy_from_slice(&MEMORY_BYTES.to_le_bytes());
        f.vectors[3] = OLD;
    });
    let memory = fake.device.first_chunk().unwrap();
    assert_eq!(fake.vectors[2..5].iter().filter(|v| **v != 0).count(), 1);
    (fake.vectors[3], u128::from_le_bytes(*memory))
}

#[test]
fn each_move_takes_its_part() {
    const LOW: u128 = u64::MAX as u128;
    let double = MEMORY_BYTES & LOW;
    for (code, loaded) in [
        // movdqu, movups, movapd, movntdqa, lddqu
        (&[0xf3, 0x0f, 0x6f, 0x1b][..], MEMORY_BYTES),
        (&[0x0f, 0x10, 0x1b], MEMORY_BYTES),
        (&[0x66, 0x0f, 0x28, 0x1b], MEMORY_BYTES),
        (&[0x66, 0x0f, 0x38, 0x2a, 0x1b], MEMORY_BYTES),
        (&[0xf2, 0x0f, 0xf0, 0x1b], MEMORY_BYTES),
        // movss, movd, movsd, movq: the rest is cleared
        (&[0xf3, 0x0f, 0x10, 0x1b], 0x0302_0100),
        (&[0x66, 0x0f, 0x6e, 0x1b], 0x0302_0100),
        (&[0xf2, 0x0f, 0x10, 0x1b], double),
        (&[0xf3, 0x0f, 0x7e, 0x1b], double),
        (&[0x66, 0x48, 0x0f, 0x6e, 0x1b], double),
        // movlps, movhps: the other half stays
        (&[0x0f, 0x12, 0x1b], OLD & !LOW | double),
        (&[0x0f, 0x16, 0x1b], OLD & LOW | double << 64),
    ] {
        assert_eq!(moved(code), (loaded, MEMORY_BYTES), "{code:02x?}");
    }
    let with_first = |bytes: u32, value: u128| {
        let mask = u128::MAX >> (128 - 8 * bytes);
        MEMORY_BYTES & !mask | value & mask
    };
    for (code, stored) in [
        // movdqu, movaps, movntdq
        (&[0xf3, 0x0f, 0x7f, 0x1b][..], OLD),
        (&[0x0f, 0x29, 0x1b], OLD),
        (&[0x66, 0x0f, 0xe7, 0x1b], OLD),
        // movss, movd, movq, movlpd, movhpd
        (&[0xf3, 0x0f, 0x11, 0x1b], with_first(4, OLD)),
        (&[0x66, 0x0f, 0x7e, 0x1b], with_first(4, OLD)),
        (&[0x66, 0x0f, 0xd6, 0x1b], with_first(8, OLD)),
        (&[0x66, 0x0f, 0x13, 0x1b], with_first(8, OLD)),
        (&[0x66, 0x0f, 0x17, 0x1b], with_first(8, OLD >> 64)),
    ] {
        assert_eq!(moved(code), (OLD, stored), "{code:02x?}");
    }
}

#[test]
fn a_device_is_accessed_eight_bytes_at_a_time() {
    // movdqu xmm3, [rbx]
    let (_, fake) = run(64, &[0xf3, 0x0f, 0x6f, 0x1b], |s, _| {
        s.cr4 = OSFXSR;
        s.gpr[3] = DEVICE + 8;
    });
    assert_eq!(fake.log, [('r', 8, 8, 0), ('r', 16, 8, 0)]);
}

fn fault(code: &[u8], set: impl FnOnce(&mut ExecutionState)) -> (Fault, Fake) {
    let mut fake = Fake::new(code);
    let mut s = state(64);
    s.cr4 = OSFXSR;
    s.gpr[3] = DEVICE + 8;
    set(&mut s);
    let fault = emulate(&mut s, &mut fake, &[], MEMORY).unwrap_err();
    assert_eq!(s.rip, CODE);
    (fault, fake)
}

#[test]
fn an_aligned_move_elsewhere_faults() {
    // movdqa [rbx], xmm3
    let (fault, fake) = fault(&[0x66, 0x0f, 0x7f, 0x1b], |_| {});
    assert_eq!(fault, Fault::Protection);
    assert!(fake.log.is_empty());
}

/// The CPU has checked that before it stopped: the code is another one by now.
#[test]
fn the_cpu_itself_says_that_the_registers_are_off() {
    let code = [0xf3, 0x0f, 0x7f, 0x1b];
    for set in [
        (|s: &mut ExecutionState| s.cr4 = 0) as fn(&mut ExecutionState),
        |s| s.cr0 |= 1 << 3,
        |s| s.cr0 |= 1 << 2,
    ] {
        let (fault, fake) = fault(&code, set);
        assert_eq!(fault, Fault::Changed);
        assert!(fake.log.is_empty());
    }
}

#[test]
fn what_is_no_move_is_not_emulated() {
    // paddb xmm3, [rbx]; movq mm3, [rbx]
    for code in [&[0x66, 0x0f, 0xfc, 0x1b][..], &[0x0f, 0x6f, 0x1b]] {
        let (fault, _) = fault(code, |_| {});
        assert!(matches!(fault, Fault::NotEmulated(_)), "{fault:?}");
    }
}
