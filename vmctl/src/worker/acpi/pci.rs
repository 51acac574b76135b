//! The PCI host bridge and its slots.

use acpi_tables::Aml;
use acpi_tables::aml::{
    AddressSpace as Window, AddressSpaceCacheable, And, Device as AmlDevice, EISAName, Field,
    FieldAccessType, FieldEntry, FieldLockRule, FieldUpdateRule, IO, If, Local, Memory32Fixed,
    Method, Name, Notify, OpRegion, OpRegionSpace, Package, PackageBuilder, Path, ResourceTemplate,
    Store, ZERO,
};

use super::Raw;
use crate::worker::pci::{SLOTS, pin, slots, window};

/// The method that looks which slots have something new.
pub(super) const SCAN: &str = "\\_SB_.PCI0.PSCN";

/// Values that a slot is notified of (ACPI 6.5 §5.6.6).
const DEVICE_CHECK: u8 = 1;
const EJECT_REQUEST: u8 = 3;

/// Returns the PCI host bridge with its windows.
pub(super) fn host_bridge() -> Raw {
    let (express, plain) = (EISAName::new("PNP0A08"), EISAName::new("PNP0A03"));
    let hid = Name::new("_HID".into(), &express);
    let cid = Name::new("_CID".into(), &plain);
    let uid = Name::new("_UID".into(), &ZERO);
    let segment = Name::new("_SEG".into(), &ZERO);
    let first = Name::new("_BBN".into(), &ZERO);
    let buses = Window::new_bus_number(0u16, 0u16);
    let config = IO::new(window::ADDRESS, window::ADDRESS, 1, 8);
    let (low, high) = (*window::IO.start(), *window::IO.end());
    let ports = Window::new_io(low, high, None);
    let (low, high) = (*window::MEMORY.start(), *window::MEMORY.end());
    let cache = AddressSpaceCacheable::NotCacheable;
    let memory = Window::new_memory(cache, true, low, high, None);
    let template = ResourceTemplate::new(vec![&buses, &config, &ports, &memory]);
    let crs = Name::new("_CRS".into(), &template);
    let slots = hot_plug();
    let routing = routing();
    let mut bytes = Vec::new();
    AmlDevice::new(
        "PCI0".into(),
        vec![&hid, &cid, &uid, &segment, &first, &crs, &routing, &slots],
    )
    .to_aml_bytes(&mut bytes);
    Raw(bytes)
}

/// Returns the device that reserves configuration space: kernels use MCFG's addresses only if a
/// device reserves them (PCI Firmware 3.0 §4.1.2).
pub(super) fn motherboard() -> Raw {
    let id = EISAName::new("PNP0C02");
    let hid = Name::new("_HID".into(), &id);
    let uid = Name::new("_UID".into(), &ZERO);
    let (start, end) = (*window::ECAM.start(), *window::ECAM.end());
    let ecam = Memory32Fixed::new(true, start, end - start + 1);
    let template = ResourceTemplate::new(vec![&ecam]);
    let crs = Name::new("_CRS".into(), &template);
    let mut bytes = Vec::new();
    AmlDevice::new("MBRD".into(), vec![&hid, &uid, &crs]).to_aml_bytes(&mut bytes);
    Raw(bytes)
}

/// Returns `_PRT`: which pin of the I/O APIC the interrupt pin INTA of each slot leads to.
fn routing() -> Raw {
    let mut routes = PackageBuilder::new();
    for slot in 1..SLOTS as u8 {
        // All functions of the slot.
        let address = u32::from(slot) << 16 | 0xffff;
        let pin = pin(slot);
        routes.add_element(&Package::new(vec![&address, &ZERO, &ZERO, &pin]));
    }
    let mut bytes = Vec::new();
    Name::new("_PRT".into(), &routes).to_aml_bytes(&mut bytes);
    Raw(bytes)
}

/// Returns the slots' devices and the method that looks which of them have something new, over the
/// registers of [`slots`].
fn hot_plug() -> Raw {
    let (start, length) = (*window::SLOTS.start(), slots::LENGTH);
    let mut bytes = Vec::new();
    let mut put = |aml: &dyn Aml| aml.to_aml_bytes(&mut bytes);
    put(&OpRegion::new(
        "PHIO".into(),
        OpRegionSpace::SystemIO,
        &start,
        &length,
    ));
    // The registers in their order.
    let register = |name| FieldEntry::Named(name, 32);
    put(&Field::new(
        "PHIO".into(),
        FieldAccessType::DWord,
        FieldLockRule::NoLock,
        FieldUpdateRule::WriteAsZeroes,
        vec![register(*b"PHUP"), register(*b"PHDN"), register(*b"PHEJ")],
    ));
    for slot in 1..SLOTS as u32 {
        let number = Name::new("_SUN".into(), &slot);
        let address = slot << 16;
        let address = Name::new("_ADR".into(), &address);
        let (register, bit) = (Path::new("PHEJ"), 1u32 << slot);
        let give_up = Store::new(&register, &bit);
        let eject = Method::new("_EJ0".into(), 1, true, vec![&give_up]);
        let name = name_of(slot);
        put(&AmlDevice::new(
            (&*name).into(),
            vec![&number, &address, &eject],
        ));
    }
    let mut notices = Vec::new();
    for (register, value) in [("PHUP", DEVICE_CHECK), ("PHDN", EJECT_REQUEST)] {
        // Reading takes the bits.
        let (taken, register) = (Local(0), Path::new(register));
        Store::new(&taken, &register).to_aml_bytes(&mut notices);
        for slot in 1..SLOTS as u32 {
            let (bit, name) = (1u32 << slot, name_of(slot));
            let is_set = And::new(&ZERO, &taken, &bit);
            let device = Path::new(&name);
            let notify = Notify::new(&device, &value);
            If::new(&is_set, vec![&notify]).to_aml_bytes(&mut notices);
        }
    }
    let notices = Raw(notices);
    put(&Method::new("PSCN".into(), 0, true, vec![&notices]));
    Raw(bytes)
}

/// Returns the name of a slot's device.
fn name_of(slot: u32) -> String {
    format!("S{slot:03X}")
}
