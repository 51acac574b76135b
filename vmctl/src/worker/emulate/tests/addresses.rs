//! Linear addresses: page tables, faults, and accesses over two pages.

use super::*;

/// 4-level tables at 0x4000: linear 0x40_0000 + n pages.
pub(super) fn paged(fake: &mut Fake, s: &mut ExecutionState, pages: &[u64]) {
    s.cr0 |= 1 << 31;
    s.cr4 = 1 << 5;
    s.cr3 = 0x4000;
    fake.put(0x4000, 0x5007);
    fake.put(0x5000, 0x6007);
    fake.put(0x6000 + 8 * 2, 0x7007);
    for (i, page) in (0..).zip(pages) {
        fake.put(0x7000 + 8 * i, *page);
    }
}

#[test]
fn an_instruction_and_its_operand_cross_pages() {
    // mov [rbx], ecx at the end of a page; its data at the end of another
    let mut fake = Fake::new(&[]);
    let mut s = state(64);
    paged(&mut fake, &mut s, &[0x8003, 0x9003, 0xa003, DEVICE | 3]);
    fake.ram[0x8fff] = 0x89;
    fake.ram[0x9000] = 0x0b;
    s.rip = 0x40_0fff;
    s.gpr[3] = 0x40_2ffe;
    s.gpr[1] = 0x4433_2211;
    emulate(&mut s, &mut fake, &[], MEMORY).unwrap();
    assert_eq!(&fake.ram[0xaffe..0xb000], [0x11, 0x22]);
    assert_eq!(fake.log, [('w', 0, 2, 0x4433)]);
    assert_eq!(s.rip, 0x40_1001);
}

#[test]
fn page_faults_have_their_code_and_change_nothing() {
    let mut fake = Fake::new(&[]);
    let mut s = state(64);
    paged(&mut fake, &mut s, &[0x8003, 0x9001, 0]);
    s.cr0 |= 1 << 16;
    fake.ram[0x8000..0x8002].copy_from_slice(&[0x89, 0x0b]);
    s.rip = 0x40_0000;
    let mut fault = |address: u64, attributes: u16| {
        s.gpr[3] = address;
        s.segment[2].attributes = attributes;
        let before = s;
        let result = emulate(&mut s, &mut fake, &[], MEMORY);
        assert_eq!(s, before);
        result
    };
    let page = |address, code| Err(Fault::Page { address, code });
    // The offset is not that of the access at which the CPU stopped.
    assert_eq!(fault(0x40_1008, 0x93), page(0x40_1008, 3), "read-only");
    assert_eq!(fault(0x40_2008, 0x93), page(0x40_2008, 2), "not present");
    // In ring 3 the code itself is out of reach.
    assert_eq!(fault(0x40_1008, 0xf3), page(0x40_0000, 5));
}

#[test]
fn an_address_that_the_cpu_has_translated_is_not_translated_again() {
    // Page 1 of the guest is not present any more.
    let attempt = |code: &[u8], cause| {
        let mut fake = Fake::new(&[]);
        let mut s = state(64);
        paged(&mut fake, &mut s, &[0x8003, 0]);
        fake.ram[0x8000..0x8000 + code.len()].copy_from_slice(code);
        s.rip = 0x40_0000;
        (s.gpr[3], s.gpr[4]) = (0x40_1010, 0x40_0800);
        emulate(&mut s, &mut fake, &[], cause).map(|()| fake.log)
    };
    let cause = |is_write| Cause::Memory {
        gpa: DEVICE + 0x10,
        is_write,
    };
    let fault = Err(Fault::Page {
        address: 0x40_1010,
        code: 0,
    });
    // mov ecx, [rbx]; push qword [rbx]
    let (read, push) = ([0x8b, 0x0b], [0xff, 0x33]);
    assert_eq!(attempt(&read, cause(false)), Ok(vec![('r', 0x10, 4, 0)]));
    // An instruction with two operands may have stopped at the other one.
    assert_eq!(attempt(&push, cause(false)), fault);
    // mov [rbx], ecx: the CPU has checked a read alone.
    let write_fault = Err(Fault::Page {
        address: 0x40_1010,
        code: 2,
    });
    assert_eq!(attempt(&[0x89, 0x0b], cause(false)), write_fault);
}

#[test]
fn a_code_page_that_is_missing_faults_at_its_start() {
    let mut fake = Fake::new(&[]);
    let mut s = state(64);
    paged(&mut fake, &mut s, &[0x8003, 0]);
    fake.ram[0x8fff] = 0x89;
    s.rip = 0x40_0fff;
    assert_eq!(
        emulate(&mut s, &mut fake, &[], MEMORY),
        Err(Fault::Page {
            address: 0x40_1000,
            code: 0
        })
    );
}

#[test]
fn other_page_table_formats() {
    let walk = |s: &mut ExecutionState, fake: &mut Fake, linear: u64| {
        paging::translate(&Registers::new(s), fake, linear, Access::READ)
    };
    // 32-bit with a 4 MiB page
    let mut fake = Fake::new(&[]);
    let mut s = state(32);
    s.cr0 |= 1 << 31;
    s.cr3 = 0x4000;
    s.cr4 = 1 << 4;
    fake.put(0x4000 + 4, 0x80_0083);
    assert_eq!(walk(&mut s, &mut fake, 0x40_1234), Ok(0x80_1234));
    // PAE, pointers on 32 bytes
    s.cr4 = 1 << 5;
    s.cr3 = 0x4020;
    fake.put(0x4020 + 8 * 3, 0x5001);
    fake.put(0x5000 + 8, 0x60_0083);
    assert_eq!(walk(&mut s, &mut fake, 0xc020_0010), Ok(0x60_0010));
    // 5 levels with a 1 GiB page
    let mut s = state(64);
    s.cr0 |= 1 << 31;
    s.cr3 = 0x8000;
    s.cr4 = 1 << 5 | 1 << 12;
    fake.put(0x8000 + 8, 0x9003);
    fake.put(0x9000, 0xa003);
    fake.put(0xa000 + 8 * 5, 3 << 30 | 0x83);
    let linear = 1 << 48 | 5 << 30 | 0x1234_5678;
    assert_eq!(walk(&mut s, &mut fake, linear), Ok(3 << 30 | 0x1234_5678));
}

#[test]
fn smap_smep_and_protection_keys_count() {
    const SMEP: u64 = 1 << 20;
    const SMAP: u64 = 1 << 21;
    const PKE: u64 = 1 << 22;
    const AC: u64 = 1 << 18;
    const USER: u64 = 0xf3;
    const SUPERVISOR: u64 = 0x93;
    // Page 0 is the supervisor's; page 1 a user's with key 5; page 2 the supervisor's with key 5.
    let walk = |cr4: u64, rflags: u64, pkru: u64, stack: u64, page: u64, access| {
        let mut fake = Fake::new(&[]);
        let mut s = state(64);
        let key = 5 << 59;
        paged(&mut fake, &mut s, &[0x8003, 0x9007 | key, 0xa003 | key]);
        s.cr0 |= 1 << 16;
        s.cr4 |= cr4;
        s.rflags |= rflags;
        s.pkru = pkru;
        s.segment[2].attributes = stack as u16;
        let linear = 0x40_0000 + 0x1000 * page;
        let result = paging::translate(&Registers::new(&mut s), &mut fake, linear, access);
        result.map(drop).map_err(|fault| match fault {
            Fault::Page { code, .. } => code,
            other => panic!("{other:?}"),
        })
    };
    let (read, write, fetch, system) = (Access::READ, Access::WRITE, Access::FETCH, Access::SYSTEM);
    // Without the bits the supervisor does what it likes.
    assert_eq!(walk(0, 0, !0, SUPERVISOR, 1, write), Ok(()));
    assert_eq!(walk(0, 0, !0, SUPERVISOR, 1, fetch), Ok(()));
    assert_eq!(walk(SMAP, 0, 0, SUPERVISOR, 1, read), Err(0x1));
    assert_eq!(walk(SMAP, 0, 0, SUPERVISOR, 1, write), Err(0x3));
    assert_eq!(walk(SMAP, AC, 0, SUPERVISOR, 1, write), Ok(()));
    assert_eq!(walk(SMAP, AC, 0, USER, 1, system), Err(0x1));
    assert_eq!(walk(SMAP, 0, 0, USER, 1, write), Ok(()));
    assert_eq!(walk(SMAP, 0, 0, SUPERVISOR, 0, write), Ok(()));
    assert_eq!(walk(0, 0, 0, USER, 0, system), Ok(()));
    assert_eq!(walk(SMEP, 0, 0, SUPERVISOR, 1, fetch), Err(0x11));
    assert_eq!(walk(SMEP, 0, 0, USER, 1, fetch), Ok(()));
    let (no_access, no_write, others) = (1 << 10, 2 << 10, !(3 << 10));
    assert_eq!(walk(PKE, 0, no_access, USER, 1, read), Err(0x25));
    assert_eq!(walk(PKE, 0, no_access, SUPERVISOR, 1, read), Err(0x21));
    assert_eq!(walk(PKE, 0, no_write, USER, 1, write), Err(0x27));
    assert_eq!(walk(PKE, 0, no_write, USER, 1, read), Ok(()));
    assert_eq!(walk(PKE, 0, others, USER, 1, write), Ok(()));
    assert_eq!(walk(PKE, 0, no_access, SUPERVISOR, 2, write), Ok(()));
    assert_eq!(walk(PKE, 0, no_access, USER, 1, fetch), Ok(()));
}
