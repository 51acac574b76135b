//! Who gets a message.

use super::*;

fn x2_targets(icr: u64, sender: u8) -> Option<u64> {
    let mut apics: Vec<_> = (0..40).map(x2apic).collect();
    match apics[usize::from(sender)].write_msr(0x830, icr, 0) {
        Ok(Effect::Send(message)) => {
            let address = |id: u8| apics[usize::from(id)].address();
            Some(message.targets(Some(sender), (1 << 40) - 1, address))
        }
        other => {
            assert_eq!(other, Ok(Effect::None));
            None
        }
    }
}

#[test]
fn shorthands_of_an_x2apic() {
    let all = (1 << 40) - 1;
    assert_eq!(x2_targets(0x4_0030, 3), None, "self needs nobody");
    assert_eq!(x2_targets(0x8_0030, 3), Some(all));
    assert_eq!(x2_targets(0xc_0030, 3), Some(all & !8));
    assert_eq!(x2_targets(0xc_0500, 3), Some(all & !8), "INIT");
    assert_eq!(x2_targets(0xc_8500, 3), None, "INIT de-assert");
    assert_eq!(x2_targets(0x8_0500, 3), None, "INIT to all and self");
    assert_eq!(x2_targets(0xc_0400, 3), Some(all & !8), "NMI");
    assert_eq!(x2_targets(0xc_0200, 3), None, "SMI");
}

#[test]
fn destinations_of_an_x2apic() {
    assert_eq!(x2_targets(5 << 32 | 0x30, 3), Some(1 << 5));
    assert_eq!(x2_targets(3 << 32 | 0x30, 3), None, "oneself");
    assert_eq!(x2_targets(0xff << 32 | 0x30, 3), Some(0));
    assert_eq!(x2_targets(77 << 32 | 0x30, 3), Some(0));
    assert_eq!(x2_targets(0xffff_ffff << 32 | 0x30, 3), Some((1 << 40) - 1));
    assert_eq!(x2_targets(0x0001_0006 << 32 | 0x830, 3), Some(0b110 << 16));
    assert_eq!(x2_targets(0x0000_8001 << 32 | 0x830, 3), Some(0x8001));
    assert_eq!(
        x2_targets(0xffff_ffff << 32 | 0x830, 3),
        Some((1 << 40) - 1)
    );
    assert_eq!(x2_targets(5 << 32 | 0x600 | 0x9a, 3), Some(1 << 5), "SIPI");
}

#[test]
fn a_self_ipi_is_there_at_once() {
    let mut apic = x2apic(3);
    assert_eq!(apic.write_msr(0x83f, 0x44, 0), Ok(Effect::None));
    assert_eq!(inject(&mut apic), Some(0x44));
    assert_eq!(apic.write_msr(0x830, 0x4_4055, 0), Ok(Effect::None));
    assert_eq!(inject(&mut apic), Some(0x55));
    assert_eq!(apic.write_msr(0x830, 3 << 32 | 0x400, 0), Ok(Effect::None));
    assert!(apic.has_nmi());
    assert_eq!(apic.write_msr(0x83f, 0x0f, 0), Ok(Effect::None));
    let _ = apic.write_msr(0x828, 0, 0);
    assert_eq!(apic.read_msr(0x828, 0), Ok(1 << 5));
}

/// Four xAPICs with these logical ids.
fn xapics(ldr: [u8; 4], flat: bool) -> Vec<VLapic> {
    let mut apics: Vec<_> = (0..4).map(xapic).collect();
    for (apic, ldr) in apics.iter_mut().zip(ldr) {
        let _ = apic.write_register(0xd0, u32::from(ldr) << 24, 0);
        let _ = apic.write_register(0xe0, if flat { u32::MAX } else { 0x0fff_ffff }, 0);
    }
    apics
}

fn x_targets(apics: &mut [VLapic], low: u32, destination: u8) -> Option<u64> {
    let _ = apics[0].write_register(0x310, u32::from(destination) << 24, 0);
    match apics[0].write_register(0x300, low, 0) {
        Effect::Send(message) => {
            Some(message.targets(Some(0), 0xf, |id| apics[usize::from(id)].address()))
        }
        _ => None,
    }
}

#[test]
fn flat_and_clustered_logical_destinations() {
    let mut apics = xapics([1, 2, 4, 8], true);
    assert_eq!(x_targets(&mut apics, 0x830, 0b1010), Some(0b1010));
    assert_eq!(x_targets(&mut apics, 0x830, 0xff), Some(0xf));
    assert_eq!(x_targets(&mut apics, 0x830, 0xf0), Some(0));
    assert_eq!(
        x_targets(&mut apics, 0x030, 0xff),
        Some(0xf),
        "physical broadcast"
    );
    assert_eq!(x_targets(&mut apics, 0x030, 2), Some(0b100));
    let mut apics = xapics([0x11, 0x12, 0x21, 0x22], false);
    assert_eq!(x_targets(&mut apics, 0x830, 0x13), Some(0b0011));
    assert_eq!(x_targets(&mut apics, 0x830, 0x22), Some(0b1000));
    assert_eq!(
        x_targets(&mut apics, 0x830, 0xf1),
        Some(0b0101),
        "all clusters"
    );
}

#[test]
fn lowest_priority_takes_one_and_spreads_by_vector() {
    let mut apics = xapics([1, 2, 4, 8], true);
    let mut seen = 0;
    for vector in 0x30..0x40 {
        let one = x_targets(&mut apics, 0x900 | vector, 0b1110).unwrap_or(0);
        assert_eq!(one.count_ones(), 1);
        seen |= one;
    }
    assert_eq!(seen, 0b1110);
}

#[test]
fn the_disabled_take_no_vectors() {
    let mut apics = xapics([1, 2, 4, 8], true);
    let _ = apics[2].write_register(0xf0, 0xff, 0);
    assert_eq!(apics[3].set_apic_base(DEFAULT_BASE), Ok(()));
    assert_eq!(x_targets(&mut apics, 0x830, 0xff), Some(0b0011));
    assert_eq!(
        x_targets(&mut apics, 0xc_0400, 0),
        Some(0b0110),
        "NMI needs no software enable"
    );
}

#[test]
fn message_signalled() {
    let apics: Vec<_> = (0..10).map(x2apic).collect();
    let targets =
        |message: Message| message.targets(None, 0x3ff, |id| apics[usize::from(id)].address());
    let fixed = Message::from_msi(0xfee0_5000, 0x41);
    assert_eq!(
        fixed,
        Some(Message {
            destination: Destination::Physical(5),
            delivery: Delivery::Fixed,
            vector: 0x41,
            level: false
        })
    );
    assert_eq!(fixed.map(targets), Some(1 << 5));
    assert_eq!(
        Message::from_msi(0xfeef_f000, 0x41).map(targets),
        Some(0x3ff)
    );
    let level = Message::from_msi(0xfee0_1000, 0x8041);
    assert!(level.is_some_and(|message| message.level));
    assert_eq!(
        Message::from_msi(0xfee0_6004, 0x41).map(targets),
        Some(0b110),
        "logical"
    );
    let one = Message::from_msi(0xfee0_600c, 0x41);
    assert_eq!(
        one.map(|message| message.delivery),
        Some(Delivery::LowestPriority)
    );
    assert_eq!(one.map(targets).map(u64::count_ones), Some(1));
    assert_eq!(
        Message::from_msi(0xfee0_0000, 0x400).map(|m| m.delivery),
        Some(Delivery::Nmi)
    );
    assert_eq!(Message::from_msi(0xfee0_0000, 0x700), None, "ExtINT");
}

#[test]
fn an_address_survives_packing() {
    for apic in [x2apic(9), xapic(2)] {
        assert_eq!(Address::from_raw(apic.address().raw()), apic.address());
    }
    assert!(
        Message::from_msi(0xfeef_f000, 0x41)
            .is_some_and(|m| m.targets(None, 1, |_| Address::default()) == 0)
    );
}

proptest! {
    #[test]
    fn targets_are_always_present_ones(
        icr in any::<u64>(), present in any::<u64>(), sender in 0_u8..64, raw in any::<[u32; 64]>(),
    ) {
        let mut apic = x2apic(sender);
        if let Ok(Effect::Send(message)) = apic.write_msr(0x830, icr & !0xfff3_2000, 0) {
            let targets = message.targets(Some(sender), present, |id| Address::from_raw(raw[usize::from(id)]));
            prop_assert_eq!(targets & !present, 0);
        }
        if let Some(message) = Message::from_msi(icr, icr >> 32) {
            let targets = message.targets(None, present, |id| Address::from_raw(raw[usize::from(id)]));
            prop_assert_eq!(targets & !present, 0);
        }
    }
}
