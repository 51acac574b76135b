//! The bus, and what devices do to each other.

use super::super::pci::window;
use super::*;

fn post(offset: u32, data: u64) -> PostedWrite {
    PostedWrite {
        kind: PostedKind::Port.raw(),
        size: 1,
        tag: SERIAL_TAG,
        offset,
        data,
    }
}

fn redirect_serial(devices: &mut Devices) {
    devices.write_memory(layout::IOAPIC, 4, 0x10 + 2 * u64::from(irq::SERIAL));
    devices.write_memory(layout::IOAPIC + 0x10, 4, 0x24);
}

#[test]
fn posted_bytes_come_out_in_order_and_interrupt() {
    let mut devices = Devices::new();
    redirect_serial(&mut devices);
    devices.posted(&post(1, 2));
    assert_eq!(devices.take_msis().len(), 1, "the transmitter is empty");
    assert_eq!(devices.read_port(port::SERIAL + 2, 1) & 0xf, 0x2);
    for byte in *b"hi\n" {
        devices.posted(&post(0, u64::from(byte)));
    }
    assert_eq!(devices.serial_output(), b"hi\n");
    assert_eq!(devices.take_msis()[0].data & 0xff, 0x24);
}

#[test]
fn typed_bytes_are_read_and_interrupt() {
    let mut devices = Devices::new();
    redirect_serial(&mut devices);
    devices.write_port(port::SERIAL + 1, 1, 1);
    devices.type_serial(b"ls");
    assert_eq!(devices.take_msis().len(), 1);
    assert_eq!(devices.read_port(port::SERIAL + 5, 1) & 1, 1);
    assert_eq!(devices.read_port(port::SERIAL, 1), u64::from(b'l'));
    assert_eq!(devices.read_port(port::SERIAL, 1), u64::from(b's'));
    assert_eq!(devices.read_port(port::SERIAL + 5, 1) & 1, 0);
    assert_eq!(devices.serial_room(), 64);
}

#[test]
fn what_ends_a_machine() {
    let asked = |at: u16, value: u64| {
        let mut devices = Devices::new();
        devices.write_port(at, 1, value);
        devices.take_request()
    };
    let power_off = |value| {
        let mut devices = Devices::new();
        devices.write_port(port::PM1_CONTROL, 2, value);
        devices.take_request()
    };
    assert_eq!(power_off(0x3401), Some(GuestRequest::PowerOff));
    assert_eq!(power_off(0x1401), None);
    assert_eq!(power_off(0x2001), None, "another sleep type");
    assert_eq!(asked(port::RESET, 1), Some(GuestRequest::Reset));
    assert_eq!(asked(port::SYSTEM_CONTROL, 3), Some(GuestRequest::Reset));
    assert_eq!(asked(port::SYSTEM_CONTROL, 2), None);
    assert_eq!(asked(port::I8042, 0xfe), Some(GuestRequest::Reset));
    assert_eq!(asked(port::RESET_CONTROL, 6), Some(GuestRequest::Reset));
    assert_eq!(asked(port::RESET_CONTROL, 2), None);
    let mut devices = Devices::new();
    devices.write_port(window::ADDRESS, 4, 0xffff_ffff);
    assert_eq!(
        devices.take_request(),
        None,
        "the search for PCI is no reset"
    );
    assert_eq!(asked(port::PVPANIC, 1), Some(GuestRequest::Panicked));
    assert_eq!(asked(port::PVPANIC, 2), None);
}

#[test]
fn the_power_button_holds_the_sci_until_the_guest_has_seen_it() {
    const BUTTON: u64 = 1 << 8;
    const LEVEL: u64 = 1 << 15;
    const VECTOR: u64 = 0x25;
    let mut devices = Devices::new();
    devices.press_power_button();
    devices.write_memory(layout::IOAPIC, 4, 0x10 + 2 * u64::from(irq::SCI));
    devices.write_memory(layout::IOAPIC + 0x10, 4, LEVEL | VECTOR);
    assert!(devices.take_msis().is_empty(), "the event is not enabled");
    devices.write_port(port::PM1_EVENT, 2, BUTTON);
    devices.write_port(port::PM1_EVENT + 2, 2, BUTTON);
    assert_eq!(devices.take_msis().len(), 1);
    assert_eq!(devices.read_port(port::PM1_EVENT, 4), BUTTON << 16 | BUTTON);
    devices.write_port(port::PM1_EVENT, 2, BUTTON);
    devices.write_memory(layout::IOAPIC + 0x40, 4, VECTOR);
    assert!(devices.take_msis().is_empty());
    devices.press_power_button();
    assert_eq!(devices.take_msis().len(), 1);
}

#[test]
fn a_guest_tells_that_it_sleeps() {
    let mut devices = Devices::new();
    for is_asleep in [true, false] {
        devices.write_port(port::SLEEP, 1, is_asleep.into());
        assert_eq!(devices.is_asleep(), is_asleep);
        assert!(devices.take_sleep_change());
        devices.write_port(port::SLEEP, 1, is_asleep.into());
        assert!(!devices.take_sleep_change());
    }
    assert_eq!(devices.stray_accesses(), 0);
}

#[test]
fn where_nothing_is_all_ones_are_read_and_counted() {
    let mut devices = Devices::new();
    assert_eq!(devices.read_port(0x1234, 2), 0xffff);
    assert_eq!(devices.read_port(0xcfc, 4), 0xffff_ffff);
    assert_eq!(devices.read_memory(0xf000_0000, 8), u64::MAX);
    assert_eq!(devices.read_memory(0xf000_0000, 1), 0xff);
    devices.write_port(0x80, 1, 0);
    assert_eq!(devices.stray_accesses(), 2 + 4 + 2 + 1);
}

#[test]
fn an_end_of_interrupt_reaches_the_ioapic() {
    let mut devices = Devices::new();
    let eoi = PostedWrite {
        kind: PostedKind::Eoi.raw(),
        size: 0,
        tag: 0,
        offset: 0,
        data: 0x41,
    };
    devices.posted(&eoi);
    assert_eq!(devices.stray_accesses(), 0);
}

#[test]
fn devices_are_settled_once_all_is_taken() {
    let mut devices = Devices::new();
    redirect_serial(&mut devices);
    assert!(devices.is_settled());
    devices.write_port(port::SERIAL + 1, 1, 2);
    assert!(!devices.is_settled(), "an interrupt");
    devices.take_msis();
    devices.write_port(port::SERIAL, 1, u64::from(b'x'));
    devices.take_msis();
    assert!(!devices.is_settled(), "output");
    devices.serial_output().clear();
    devices.write_port(port::I8042, 1, I8042_RESET.into());
    assert!(!devices.is_settled(), "a request");
    devices.take_request();
    devices.write_port(port::SLEEP, 1, 1);
    assert!(!devices.is_settled(), "the guest sleeps");
    devices.take_sleep_change();
    devices.read_port(0x9999, 1);
    assert!(!devices.is_settled(), "an access to nothing");
    devices.take_strays();
    assert!(devices.is_settled());
}
