//! ACPI tables: a hardware-reduced machine.
//!
//! RSDP → XSDT → FADT (→ DSDT), MADT and MCFG, built by the acpi_tables crate. Hardware-reduced means no
//! PM timer, no 8259, no SCI: power-off and reboot go through the sleep and reset registers, and
//! the power button and PCI hot plug are events of a Generic Event Device (ACPI 6.5 §5.6.9), as in
//! Cloud Hypervisor.

mod pci;

use acpi_tables::aml::{
    self, And, Device as AmlDevice, EISAName, Field, FieldAccessType, FieldEntry, FieldLockRule,
    FieldUpdateRule, If, Interrupt, Local, Method, MethodCall, Name, Notify, ONE, OpRegion,
    OpRegionSpace, Package, Path, ResourceTemplate, Scope, Store, ZERO,
};
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{
    EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic,
};
use acpi_tables::mcfg::MCFG;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, aml::IO};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use super::devices::{event, irq, port};
use super::memory::{Ram, layout};
use super::pci::window;

const OEM: [u8; 6] = *b"MICROV";
const TABLE: [u8; 8] = *b"GUEST   ";
const REVISION: u32 = 1;

/// Flags of the FADT's `IAPC_BOOT_ARCH`: there is no VGA, and (by a clear bit) no 8042.
const VGA_NOT_PRESENT: u16 = 1 << 2;
/// `SLP_TYP` of S5; what the sleep control register takes for power-off.
pub const S5: u8 = 5;

/// Bytes of the RSDP, with which the tables begin.
pub const RSDP_SIZE: usize = 36;

/// Writes all tables for `vcpus` virtual CPUs. Returns them, and where the RSDP is.
///
/// # Errors
///
/// The memory is not there.
pub fn write(ram: &Ram, vcpus: u32) -> Result<(Vec<u8>, u64), GuestMemoryError> {
    let (bytes, rsdp) = tables(layout::ACPI, vcpus);
    ram.mapping()
        .write_slice(&bytes, GuestAddress(layout::ACPI))?;
    Ok((bytes, rsdp))
}

/// All tables as they lie from `base` on, and where the RSDP is: first.
fn tables(base: u64, vcpus: u32) -> (Vec<u8>, u64) {
    // Room for the RSDP, whose address a kernel may have to search for on 16-byte borders.
    let mut bytes = vec![0; 64];
    let mut append = |table: &dyn Aml| {
        let at = base + bytes.len() as u64;
        table.to_aml_bytes(&mut bytes);
        bytes.resize(bytes.len().next_multiple_of(16), 0);
        at
    };
    let dsdt = append(&dsdt());
    let fadt = append(&fadt(dsdt));
    let madt = append(&madt(vcpus));
    let mcfg = append(&mcfg());
    let mut xsdt = XSDT::new(OEM, TABLE, REVISION);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    xsdt.add_entry(mcfg);
    let xsdt = append(&xsdt);
    let mut rsdp = Vec::new();
    Rsdp::new(OEM, xsdt).to_aml_bytes(&mut rsdp);
    bytes[..RSDP_SIZE].copy_from_slice(&rsdp);
    (bytes, base)
}

fn register(port: u16) -> GAS {
    GAS::new(
        AddressSpace::SystemIo,
        8,
        0,
        AccessSize::ByteAccess,
        u64::from(port),
    )
}

fn fadt(dsdt: u64) -> acpi_tables::fadt::FADT {
    let mut fadt = FADTBuilder::new(OEM, TABLE, REVISION)
        .dsdt_64(dsdt)
        .flag(Flags::Wbinvd)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        .flag(Flags::Headless)
        // The button is a device of its own (clear would mean a fixed one).
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton);
    fadt.iapc_boot_arch = VGA_NOT_PRESENT.into();
    fadt.reset_reg = register(port::RESET);
    fadt.reset_value = port::RESET_VALUE;
    fadt.sleep_control_reg = register(port::SLEEP_CONTROL);
    fadt.sleep_status_reg = register(port::SLEEP_STATUS);
    fadt.hypervisor_vendor_identity = u64::from_le_bytes(*b"Microvsr").into();
    fadt.finalize()
}

fn madt(vcpus: u32) -> MADT {
    let address = LocalInterruptController::Address(layout::LAPIC as u32);
    let mut madt = MADT::new(OEM, TABLE, REVISION, address);
    for index in 0..vcpus.min(u32::from(u8::MAX)) as u8 {
        madt.add_structure(ProcessorLocalApic::new(
            index,
            index,
            EnabledStatus::Enabled,
        ));
    }
    madt.add_structure(IoApic::new(0, layout::IOAPIC as u32, 0));
    madt
}

fn mcfg() -> MCFG {
    let mut mcfg = MCFG::new(OEM, TABLE, REVISION);
    mcfg.add_ecam(u64::from(*window::ECAM.start()), 0, 0, 0);
    mcfg
}

/// `_CRS`: ports, and an interrupt that is edge-triggered and active high.
fn resources(io: &IO, irq: Option<&Interrupt>) -> Vec<u8> {
    let mut children: Vec<&dyn Aml> = vec![io];
    if let Some(irq) = irq {
        children.push(irq);
    }
    let mut bytes = Vec::new();
    Name::new("_CRS".into(), &ResourceTemplate::new(children)).to_aml_bytes(&mut bytes);
    bytes
}

/// AML that is ready.
struct Raw(Vec<u8>);

impl Aml for Raw {
    fn to_aml_bytes(&self, sink: &mut dyn acpi_tables::AmlSink) {
        sink.vec(&self.0);
    }
}

fn isa_irq(number: u32) -> Interrupt {
    Interrupt::new(true, true, false, false, number)
}

/// A device with ports.
fn device(name: &str, id: &dyn Aml, io: &IO, irq: Option<&Interrupt>) -> Raw {
    let hid = Name::new("_HID".into(), id);
    let uid = Name::new("_UID".into(), &ZERO);
    let status = Name::new("_STA".into(), &0x0fu8);
    let crs = Raw(resources(io, irq));
    let mut bytes = Vec::new();
    AmlDevice::new(name.into(), vec![&hid, &uid, &status, &crs]).to_aml_bytes(&mut bytes);
    Raw(bytes)
}

fn dsdt() -> Sdt {
    let mut dsdt = Sdt::new(*b"DSDT", 36, 6, OEM, TABLE, REVISION);
    let mut aml = Vec::new();

    let serial = device(
        "COM1",
        &EISAName::new("PNP0501"),
        &IO::new(port::SERIAL, port::SERIAL, 1, 8),
        Some(&isa_irq(irq::SERIAL)),
    );
    let rtc = device(
        "RTC_",
        &EISAName::new("PNP0B00"),
        &IO::new(port::RTC_INDEX, port::RTC_INDEX, 1, 2),
        None,
    );
    let pvpanic = device(
        "PEVT",
        &"QEMU0001",
        &IO::new(port::PVPANIC, port::PVPANIC, 1, 1),
        None,
    );
    let button_id = EISAName::new("PNP0C0C");
    let button_hid = Name::new("_HID".into(), &button_id);
    let button_uid = Name::new("_UID".into(), &ZERO);
    let button = AmlDevice::new("PWRB".into(), vec![&button_hid, &button_uid]);
    let events = Raw(event_device());
    let (pci, motherboard) = (pci::host_bridge(), pci::motherboard());
    Scope::new(
        "\\_SB_".into(),
        vec![
            &pci,
            &motherboard,
            &serial,
            &rtc,
            &pvpanic,
            &button,
            &events,
        ],
    )
    .to_aml_bytes(&mut aml);

    Name::new(
        "\\_S5_".into(),
        &Package::new(vec![&S5, &ZERO, &ZERO, &ZERO]),
    )
    .to_aml_bytes(&mut aml);
    dsdt.append_slice(&aml);
    dsdt
}

/// The Generic Event Device: its interrupt says that [`port::EVENTS`] has something.
fn event_device() -> Vec<u8> {
    let hid = Name::new("_HID".into(), &"ACPI0013");
    let uid = Name::new("_UID".into(), &ZERO);
    // Level-triggered: the line is up while there are events, also those from before the guest had its driver.
    let interrupt = Interrupt::new(true, false, false, false, irq::EVENTS);
    let template = ResourceTemplate::new(vec![&interrupt]);
    let crs = Name::new("_CRS".into(), &template);
    let region = OpRegion::new("EVIO".into(), OpRegionSpace::SystemIO, &port::EVENTS, &ONE);
    let field = Field::new(
        "EVIO".into(),
        FieldAccessType::Byte,
        FieldLockRule::NoLock,
        FieldUpdateRule::WriteAsZeroes,
        vec![FieldEntry::Named(*b"EVNT", 8)],
    );
    // Reading takes all events.
    let (events, register) = (Local(0), Path::new("EVNT"));
    let take = Store::new(&events, &register);
    let is_pressed = And::new(&ZERO, &events, &event::POWER_BUTTON);
    let button = Path::new("\\_SB_.PWRB");
    let press = Notify::new(&button, &0x80u8);
    let if_pressed = If::new(&is_pressed, vec![&press]);
    let are_slots = And::new(&ZERO, &events, &event::SLOTS);
    let scan = MethodCall::new(pci::SCAN.into(), vec![]);
    let if_slots = If::new(&are_slots, vec![&scan]);
    let handler = Method::new("_EVT".into(), 1, true, vec![&take, &if_pressed, &if_slots]);
    let mut bytes = Vec::new();
    aml::Device::new(
        "GED_".into(),
        vec![&hid, &uid, &crs, &region, &field, &handler],
    )
    .to_aml_bytes(&mut bytes);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    fn word(bytes: &[u8], at: usize) -> u64 {
        u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
    }

    fn table(bytes: &[u8], base: u64, address: u64) -> &[u8] {
        let at = (address - base) as usize;
        let len = u32::from_le_bytes(bytes[at + 4..at + 8].try_into().unwrap()) as usize;
        let table = &bytes[at..at + len];
        assert_eq!(table.iter().fold(0u8, |sum, b| sum.wrapping_add(*b)), 0);
        table
    }

    #[test]
    fn every_table_can_be_reached_and_has_its_checksum() {
        let base = layout::ACPI;
        let (bytes, rsdp) = tables(base, 2);
        assert_eq!(rsdp, base);
        assert_eq!(&bytes[..8], b"RSD PTR ");
        assert_eq!(bytes[..20].iter().fold(0u8, |s, b| s.wrapping_add(*b)), 0);
        let xsdt = table(&bytes, base, word(&bytes, 24));
        let (fadt, madt) = (word(xsdt, 36), word(xsdt, 44));
        let fadt = table(&bytes, base, fadt);
        assert_eq!(&fadt[..4], b"FACP");
        assert_eq!(&table(&bytes, base, word(fadt, 140))[..4], b"DSDT");
        let madt = table(&bytes, base, madt);
        assert_eq!(madt.len(), 44 + 2 * 8 + 12);
        assert_eq!(madt[40..44], [0; 4], "no 8259");
    }

    #[test]
    fn the_largest_machine_fits_below_the_reset_vector() {
        let (bytes, _) = tables(layout::ACPI, 64);
        assert!(layout::ACPI + bytes.len() as u64 <= layout::RESET_VECTOR);
    }

    /// The disassembly is compared with what was meant.
    #[test]
    #[ignore = "needs iasl (Debian: acpica-tools)"]
    fn iasl_understands_the_dsdt() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("dsdt.aml");
        let mut bytes = Vec::new();
        dsdt().to_aml_bytes(&mut bytes);
        std::fs::write(&file, bytes).unwrap();
        let output = Command::new("iasl").arg("-d").arg(&file).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        let text = std::fs::read_to_string(dir.path().join("dsdt.dsl")).unwrap();
        for word in [
            "PNP0501",
            "PNP0A08",
            "ACPI0013",
            "Notify (\\_SB.PWRB, 0x80)",
            "PSCN ()",
            "0x001FFFFF, \n                    Zero, \n                    Zero, \n                    0x17",
            "Notify (S01F, 0x03)",
            "OperationRegion (PHIO, SystemIO, 0x0608, 0x0C)",
            "PHEJ = 0x80000000",
            "_S5",
        ] {
            assert!(text.contains(word), "{word} is not in\n{text}");
        }
    }
}
