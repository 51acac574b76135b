//! The manual's rules, and random operations against a model that is as slow as it is plain.

use std::vec::Vec;

use proptest::prelude::*;

use super::registers::MSR_TSC_DEADLINE;
use super::*;

mod addressing;
mod model;
mod timing;

const GHZ: TscRate = TscRate::from_khz(1_000_000);

fn x2apic(id: u8) -> VLapic {
    let mut apic = VLapic::new(id, id == 0, true, GHZ);
    assert_eq!(apic.write_msr(0x80f, 0x1ff, 0), Ok(Effect::Address));
    apic
}

fn xapic(id: u8) -> VLapic {
    let mut apic = VLapic::new(id, id == 0, false, GHZ);
    assert_eq!(apic.write_register(0xf0, 0x1ff, 0), Effect::Address);
    apic
}

fn inject(apic: &mut VLapic) -> Option<u8> {
    let vector = apic.next_interrupt()?;
    apic.accept(vector);
    Some(vector)
}

#[test]
fn is_small() {
    assert!(size_of::<VLapic>() <= 256, "{}", size_of::<VLapic>());
}

#[test]
fn apic_base_goes_only_where_the_manual_lets_it() {
    use Mode::{Disabled, X2Apic, XApic};
    let value = |mode| match mode {
        Disabled => DEFAULT_BASE,
        XApic => DEFAULT_BASE | 0x800,
        X2Apic => DEFAULT_BASE | 0xc00,
    };
    for from in [Disabled, XApic, X2Apic] {
        for to in [Disabled, XApic, X2Apic] {
            let mut apic = VLapic::new(3, false, from == X2Apic, GHZ);
            if from == Disabled {
                assert_eq!(apic.set_apic_base(value(Disabled)), Ok(()));
            }
            assert_eq!(apic.apic_base(), value(from));
            let allowed = !matches!((from, to), (X2Apic, XApic) | (Disabled, X2Apic));
            assert_eq!(
                apic.set_apic_base(value(to)).is_ok(),
                allowed,
                "{from:?} {to:?}"
            );
            assert_eq!(apic.mode(), if allowed { to } else { from });
        }
    }
    let mut apic = VLapic::new(0, true, false, GHZ);
    assert_eq!(apic.apic_base(), DEFAULT_BASE | 0x900);
    for bad in [
        DEFAULT_BASE | 0x400,
        DEFAULT_BASE | 0x801,
        DEFAULT_BASE | 0xa00,
        0xfed0_0800,
        1 << 52,
    ] {
        assert_eq!(apic.set_apic_base(bad), Err(GeneralProtection), "{bad:#x}");
    }
}

#[test]
fn disabling_forgets_and_x2apic_keeps() {
    let mut apic = xapic(1);
    apic.post(0x50, false);
    let _ = apic.write_register(0xd0, 0x0200_0000, 0);
    assert_eq!(apic.set_apic_base(DEFAULT_BASE | 0xc00), Ok(()));
    assert_eq!(apic.next_interrupt(), Some(0x50));
    assert_eq!(apic.read_msr(0x80d, 0), Ok(2));
    assert_eq!(apic.set_apic_base(DEFAULT_BASE), Ok(()));
    assert_eq!(apic.next_interrupt(), None);
    apic.post(0x51, false);
    apic.post_nmi();
    assert_eq!((apic.next_interrupt(), apic.has_nmi()), (None, false));
}

#[test]
fn each_mode_has_its_own_door() {
    let mut apic = xapic(0);
    assert_eq!(apic.read_msr(0x802, 0), Err(GeneralProtection));
    assert_eq!(apic.write_msr(0x80b, 0, 0), Err(GeneralProtection));
    // TSC_DEADLINE has nothing to do with the mode.
    assert_eq!(apic.read_msr(MSR_TSC_DEADLINE, 0), Ok(0));
}

#[test]
fn x2apic_faults_on_reserved_bits_and_absent_registers() {
    let mut apic = x2apic(0);
    let write_only = [0x80b, 0x83f];
    let absent = [
        0x800, 0x801, 0x809, 0x80c, 0x80e, 0x831, 0x829, 0x82f, 0x83a, 0x83d, 0x840, 0x8ff,
    ];
    for msr in write_only.into_iter().chain(absent) {
        assert_eq!(apic.read_msr(msr, 0), Err(GeneralProtection), "{msr:#x}");
    }
    let read_only = (0x802..=0x803)
        .chain([0x80a, 0x80d])
        .chain(0x810..=0x827)
        .chain([0x839]);
    for msr in read_only {
        assert!(apic.read_msr(msr, 0).is_ok(), "{msr:#x}");
        assert_eq!(
            apic.write_msr(msr, 0, 0),
            Err(GeneralProtection),
            "{msr:#x}"
        );
    }
    for msr in absent {
        assert_eq!(
            apic.write_msr(msr, 0, 0),
            Err(GeneralProtection),
            "{msr:#x}"
        );
    }
    for (msr, bad) in [
        (0x808, 0x100),
        (0x80b, 1),
        (0x80f, 0x400),
        (0x828, 1),
        (0x832, 0x6_0000),
        (0x832, 0x100),
        (0x835, 0x800),
        (0x837, 0x100),
        (0x83e, 4),
        (0x83f, 0x100),
        (0x830, 1 << 13),
        (0x830, 1 << 20),
        (0x838, 1 << 32),
        (0x808, 1 << 63),
    ] {
        assert_eq!(
            apic.write_msr(msr, bad, 0),
            Err(GeneralProtection),
            "{msr:#x} {bad:#x}"
        );
    }
}

#[test]
fn reset_values() {
    let mut apic = VLapic::new(5, false, false, GHZ);
    for (offset, value) in [
        (0x20, 0x0500_0000),
        (0x30, 0x0005_0014),
        (0x80, 0),
        (0xd0, 0),
        (0xe0, u32::MAX),
        (0xf0, 0xff),
        (0x280, 0),
        (0x300, 0),
        (0x310, 0),
        (0x320, 0x1_0000),
        (0x350, 0x1_0000),
        (0x370, 0x1_0000),
        (0x380, 0),
        (0x390, 0),
        (0x3e0, 0),
    ] {
        assert_eq!(apic.read_register(offset, 0), value, "{offset:#x}");
    }
}

#[test]
fn init_keeps_id_and_mode() {
    let mut apic = x2apic(7);
    apic.post(0x40, true);
    apic.post_nmi();
    apic.set_cr8(5);
    apic.init();
    assert_eq!(apic.mode(), Mode::X2Apic);
    assert_eq!(apic.read_msr(0x802, 0), Ok(7));
    assert_eq!(apic.read_msr(0x80f, 0), Ok(0xff));
    assert_eq!(
        (apic.cr8(), apic.highest_request(), apic.has_nmi()),
        (0, None, false)
    );
}

#[test]
fn priorities_nest() {
    let mut apic = x2apic(0);
    apic.post(0x31, false);
    apic.post(0x35, false);
    apic.post(0x61, false);
    assert_eq!(inject(&mut apic), Some(0x61));
    assert_eq!(apic.processor_priority(), 0x60);
    // Same class as what is in service: waits.
    apic.post(0x6f, false);
    assert_eq!(apic.next_interrupt(), None);
    apic.post(0x70, false);
    assert_eq!(inject(&mut apic), Some(0x70));
    assert_eq!(apic.write_msr(0x80b, 0, 0), Ok(Effect::None));
    assert_eq!(apic.write_msr(0x80b, 0, 0), Ok(Effect::None));
    assert_eq!(inject(&mut apic), Some(0x6f));
    assert_eq!(apic.write_msr(0x80b, 0, 0), Ok(Effect::None));
    apic.set_cr8(3);
    assert_eq!(
        (apic.next_interrupt(), apic.highest_request()),
        (None, Some(0x35))
    );
    apic.set_cr8(2);
    assert_eq!(inject(&mut apic), Some(0x35));
    apic.unaccept(0x35);
    assert_eq!(inject(&mut apic), Some(0x35));
}

#[test]
fn the_sub_class_survives_a_round_trip_through_v_tpr() {
    let mut apic = x2apic(0);
    assert_eq!(apic.write_msr(0x808, 0x27, 0), Ok(Effect::None));
    let v_tpr = apic.cr8();
    apic.set_cr8(v_tpr);
    assert_eq!(apic.read_msr(0x808, 0), Ok(0x27));
    assert_eq!(apic.processor_priority(), 0x27);
    apic.set_cr8(0);
    assert_eq!(apic.read_msr(0x808, 0), Ok(0));
}

#[test]
fn only_level_triggered_ends_are_told() {
    let mut apic = x2apic(0);
    apic.post(0x41, true);
    assert_eq!(inject(&mut apic), Some(0x41));
    assert_eq!(apic.write_msr(0x80b, 0, 0), Ok(Effect::LevelEoi(0x41)));
    apic.post(0x41, false);
    assert_eq!(inject(&mut apic), Some(0x41));
    assert_eq!(apic.write_msr(0x80b, 0, 0), Ok(Effect::None));
    assert_eq!(apic.write_msr(0x80b, 0, 0), Ok(Effect::None));
}

#[test]
fn posted_interrupts_merge() {
    let mut apic = x2apic(0);
    let mut posted = Posted {
        nmis: 1,
        ..Posted::default()
    };
    posted.pending[0] = 1 << 0x30 | 1 << 3;
    posted.pending[3] = 1;
    posted.level[3] = 1;
    apic.merge(&posted);
    assert!(apic.has_nmi());
    assert_eq!(inject(&mut apic), Some(0xc0));
    assert_eq!(apic.write_msr(0x80b, 0, 0), Ok(Effect::LevelEoi(0xc0)));
    assert_eq!(inject(&mut apic), Some(0x30));
    assert_eq!(apic.highest_request(), None);
    // The illegal one is an error, and nothing else.
    assert_eq!(apic.write_msr(0x828, 0, 0), Ok(Effect::None));
    assert_eq!(apic.read_msr(0x828, 0), Ok(1 << 6));
}

#[test]
fn errors_show_after_the_write_and_interrupt_once() {
    let mut apic = xapic(0);
    let _ = apic.write_register(0x370, 0x77, 0);
    assert_eq!(apic.read_register(0x3f0, 0), 0);
    assert_eq!(apic.read_register(0x280, 0), 0);
    assert_eq!(inject(&mut apic), Some(0x77));
    let _ = apic.write_register(0x40, 0, 0);
    assert_eq!(apic.highest_request(), None);
    // ICR with vector 2: bit 5.
    assert_eq!(apic.write_register(0x300, 0x4_0002, 0), Effect::None);
    let _ = apic.write_register(0x280, 0, 0);
    assert_eq!(apic.read_register(0x280, 0), 0xa0);
    let _ = apic.write_register(0x280, 0, 0);
    assert_eq!(apic.read_register(0x280, 0), 0);
    // An error entry with an illegal vector of its own must not recurse.
    let _ = apic.write_register(0x370, 0x05, 0);
    let _ = apic.read_register(0x3f0, 0);
}

#[test]
fn software_disable_masks_the_table() {
    let mut apic = x2apic(0);
    assert_eq!(apic.write_msr(0x835, 0x700, 0), Ok(Effect::None));
    assert_eq!(apic.write_msr(0x80f, 0xff, 0), Ok(Effect::Address));
    assert_eq!(apic.read_msr(0x835, 0), Ok(0x1_0700));
    assert_eq!(apic.write_msr(0x836, 0x400, 0), Ok(Effect::None));
    assert_eq!(apic.read_msr(0x836, 0), Ok(0x1_0400));
    apic.post(0x30, false);
    assert_eq!(apic.highest_request(), None);
    apic.post_nmi();
    assert!(apic.has_nmi());
}

#[test]
fn xapic_drops_reserved_bits_and_read_only_writes() {
    let mut apic = xapic(1);
    let _ = apic.write_register(0x320, !(3 << 17), 0);
    assert_eq!(apic.read_register(0x320, 0), 0x1_00ff);
    let _ = apic.write_register(0x350, u32::MAX, 0);
    assert_eq!(apic.read_register(0x350, 0), 0x1_a7ff);
    let _ = apic.write_register(0x20, 0x0900_0000, 0);
    assert_eq!(apic.read_register(0x20, 0), 0x0100_0000);
    let _ = apic.write_register(0xe0, 0, 0);
    assert_eq!(apic.read_register(0xe0, 0), 0x0fff_ffff);
    let _ = apic.write_register(0x310, u32::MAX, 0);
    assert_eq!(apic.read_register(0x310, 0), 0xff00_0000);
}

#[test]
fn the_bit_registers_show_32_vectors_each() {
    let mut apic = x2apic(0);
    for vector in [0x1f, 0x20, 0x5f, 0x80, 0xff] {
        apic.post(vector, vector == 0x80);
    }
    let read = |apic: &mut VLapic, first: u32| {
        (0..8)
            .map(|n| apic.read_msr(first + n, 0))
            .collect::<Result<Vec<_>, _>>()
    };
    assert_eq!(
        read(&mut apic, 0x820),
        Ok([1 << 31, 1, 1 << 31, 0, 1, 0, 0, 1 << 31].to_vec())
    );
    assert_eq!(
        read(&mut apic, 0x818),
        Ok([0, 0, 0, 0, 1, 0, 0, 0].to_vec())
    );
    assert_eq!(inject(&mut apic), Some(0xff));
    assert_eq!(
        read(&mut apic, 0x810),
        Ok([0, 0, 0, 0, 0, 0, 0, 1 << 31].to_vec())
    );
}

proptest! {
    /// A guest can write anything anywhere: nothing panics, and what is offered outranks the task.
    #[test]
    fn survives_any_access(
        x2 in any::<bool>(),
        ops in proptest::collection::vec((0_u32..0x42, any::<u64>(), 0_u32..4, any::<bool>()), 0..60),
    ) {
        let mut apic = if x2 { x2apic(2) } else { xapic(2) };
        let mut now = 0_u64;
        for (register, value, shrink, write) in ops {
            let value = value >> (shrink * 16);
            now = now.wrapping_add(value >> 40);
            match (x2, write) {
                (true, true) => _ = apic.write_msr(0x800 + register, value, now),
                (true, false) => _ = apic.read_msr(0x800 + register, now),
                (false, true) => _ = apic.write_register(register << 4, value as u32, now),
                (false, false) => _ = apic.read_register(register << 4, now),
            }
            let _ = apic.write_msr(MSR_TSC_DEADLINE, value, now);
            apic.expire(now);
            prop_assert!(apic.deadline().is_none_or(|at| at > now));
            if let Some(vector) = inject(&mut apic) {
                prop_assert!(vector >> 4 > apic.cr8());
            }
        }
    }
}

#[test]
fn two_nmis_wait_and_one_while_another_is_in_service() {
    let waiting = |apic: &mut VLapic| {
        let mut count = 0;
        while apic.has_nmi() {
            apic.accept_nmi();
            count += 1;
        }
        count
    };
    let posted = |nmis| Posted {
        nmis,
        ..Posted::default()
    };
    let mut apic = x2apic(0);
    apic.post_nmi();
    apic.merge(&posted(1));
    assert_eq!(waiting(&mut apic), 2);
    apic.post_nmi();
    apic.merge(&posted(u32::MAX));
    assert_eq!(waiting(&mut apic), 2);
    apic.merge(&posted(2));
    apic.nmi_is_in_service();
    assert_eq!(waiting(&mut apic), 1);
}
