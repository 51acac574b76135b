//! The bus as software finds it.

use super::*;
use crate::worker::memory::Ram;
use crate::worker::virtio::entropy::Entropy;

/// A bus with a device in slot 1.
fn bus() -> Bus {
    let ram = Ram::new(4 << 20).unwrap();
    let mut bus = Bus::default();
    assert_eq!(bus.free_slot(), Some(1));
    let device = Box::new(Entropy);
    let pins = Arc::new(Event::new().unwrap());
    let transport = Transport::new(1, device, ram.mapping().clone(), pins).unwrap();
    bus.insert(1, Box::new(transport));
    bus
}

fn select(bus: &mut Bus, slot: u32, at: u32) {
    assert!(bus.write_port(0xcf8, 4, u64::from(ENABLE | slot << 11 | at)));
}

#[test]
fn ports_and_memory_lead_to_the_same_configuration() {
    let mut bus = bus();
    select(&mut bus, 1, 0);
    assert_eq!(bus.read_port(0xcf8, 4), Some(0x8000_0800));
    assert_eq!(bus.read_port(0xcfc, 4), Some(0x1044_1af4));
    assert_eq!(bus.read_port(0xcfe, 2), Some(0x1044));
    assert_eq!(bus.read_memory(0xe000_8000, 4), Some(0x1044_1af4));
    assert_eq!(
        bus.read_memory(0xe000_8000, 8),
        Some(0x0003_1044_1af4 | 0x10 << 48)
    );
    assert!(bus.write_memory(0xe000_803c, 1, 9));
    select(&mut bus, 1, 0x3c);
    assert_eq!(bus.read_port(0xcfc, 1), Some(9));
}

#[test]
fn where_nothing_is_ones_are_read() {
    let mut bus = bus();
    for slot in [2, 31] {
        select(&mut bus, slot, 0);
        assert_eq!(bus.read_port(0xcfc, 4), Some(0xffff_ffff));
        assert_eq!(bus.read_port(0xcfc, 2), Some(0xffff));
    }
    // Another bus, another function.
    for address in [0x8001_0800, 0x8000_0900] {
        bus.write_port(0xcf8, 4, address);
        assert_eq!(bus.read_port(0xcfc, 4), Some(0xffff_ffff));
    }
    bus.write_port(0xcf8, 4, 0x0000_0800);
    assert_eq!(bus.read_port(0xcfc, 4), None, "nothing is selected");
    assert_eq!(bus.read_memory(0xc000_0000, 4), Some(0xffff_ffff));
    assert_eq!(bus.read_port(0xc000, 1), Some(0xff));
    assert_eq!(bus.read_memory(0xfed0_0000, 4), None);
    assert_eq!(bus.read_port(0x3f8, 1), None);
    assert!(
        !bus.write_port(0xcf9, 1, 6),
        "the reset control is not here"
    );
}

/// Takes the changes of doorbells: tag, and port unless the doorbell ends.
fn doorbells(bus: &mut Bus) -> Vec<(u16, Option<u16>)> {
    let effects = bus.take_effects().into_iter();
    effects
        .map(|effect| match effect {
            Effect::AddDoorbell { port, tag, .. } => (tag, Some(port)),
            Effect::RemoveDoorbell(tag) => (tag, None),
            other => panic!("{other:?}"),
        })
        .collect()
}

#[test]
fn doorbells_follow_the_ports() {
    let mut bus = bus();
    assert_eq!(doorbells(&mut bus), [(0x140, Some(0xc100))]);
    select(&mut bus, 1, 0x14);
    bus.write_port(0xcfc, 4, 0xd001);
    assert_eq!(doorbells(&mut bus), [(0x140, None), (0x140, Some(0xd000))]);
    select(&mut bus, 1, 4);
    bus.write_port(0xcfc, 2, 2);
    assert_eq!(doorbells(&mut bus), [(0x140, None)]);
    bus.write_port(0xcfc, 2, 3);
    assert_eq!(doorbells(&mut bus), [(0x140, Some(0xd000))]);
    // COM1's ports are not the device's to take.
    select(&mut bus, 1, 0x14);
    bus.write_port(0xcfc, 4, 0x3f9);
    assert_eq!(doorbells(&mut bus), [(0x140, None)]);
    assert_eq!(bus.read_port(0x3f8, 1), None);
    bus.write_port(0xcfc, 4, 0xdf01);
    assert_eq!(doorbells(&mut bus), [(0x140, Some(0xdf00))]);
    bus.ask_for(Kind::Entropy, "rng");
    give_up(&mut bus, 1 << 1);
    assert_eq!(doorbells(&mut bus), [(0x140, None)]);
    assert_eq!(bus.free_slot(), Some(1));
}

/// The guest gives up the devices of these slots.
fn give_up(bus: &mut Bus, slots: u64) {
    assert!(bus.write_port(0x610, 4, slots));
}

#[test]
fn a_device_goes_when_it_was_asked_for() {
    let mut bus = bus();
    give_up(&mut bus, u64::from(u32::MAX));
    assert_eq!(bus.take_removed().len(), 0);
    assert!(!bus.ask_for(Kind::Block, "rng"));
    assert_eq!(bus.read_port(0x60c, 4), Some(0));
    assert!(bus.ask_for(Kind::Entropy, "rng"));
    assert_eq!(bus.read_port(0x60c, 4), Some(1 << 1));
    give_up(&mut bus, 1 << 2);
    assert_eq!(bus.take_removed().len(), 0);
    give_up(&mut bus, 1 << 1);
    let removed = bus.take_removed();
    assert_eq!(removed[0].name(), "rng");
    select(&mut bus, 1, 0);
    assert_eq!(bus.read_port(0xcfc, 4), Some(0xffff_ffff));
    // It comes back.
    let device = removed.into_iter().next().unwrap();
    bus.plug(1, Box::new(device));
    assert_eq!(bus.read_port(0x608, 4), Some(1 << 1));
    assert_eq!(bus.read_port(0x608, 4), Some(0));
    assert_eq!(bus.read_port(0xcfc, 4), Some(0x1044_1af4));
    give_up(&mut bus, 1 << 1);
    assert_eq!(bus.take_removed().len(), 0);
}

#[test]
fn any_access_is_answered() {
    let mut bus = bus();
    let sizes = [1, 2, 4, 8];
    for size in sizes {
        for at in (0..0x8000).step_by(usize::from(size)) {
            let gpa = 0xc001_0000 + at as u64;
            bus.write_memory(gpa, size, u64::MAX);
            bus.read_memory(gpa, size);
        }
        for at in 0..0x1000 {
            bus.read_memory(0xe000_8000 + at, size);
            bus.write_memory(0xe000_8000 + at, size, u64::MAX);
        }
        for port in 0xcf8..=0xcff {
            bus.write_port(port, size.min(4), 0x8000_08ff);
            bus.read_port(port, size.min(4));
        }
    }
}
