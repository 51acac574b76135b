//! ACPI tables of a machine without an 8259, an 8254 and a PM timer.
//!
//! RSDP → XSDT → FADT (→ FACS, DSDT), MADT and MCFG, built by the acpi_tables crate. The power button is fixed hardware
//! with an SCI, and not an event of a hardware-reduced machine: Linux lets nothing else of ACPI end suspend-to-idle
//! (`acpi_s2idle_wake` in `drivers/acpi/sleep.c`). PCI hot plug is an event of a Generic Event Device (ACPI 6.5 §5.6.9), as
//! in Cloud Hypervisor.

mod pci;
mod sleep;

use acpi_tables::aml::{
    self, And, Device as AmlDevice, EISAName, Field, FieldAccessType, FieldEntry, FieldLockRule,
    FieldUpdateRule, If, Interrupt, Local, Method, MethodCall, Name, ONE, OpRegion, OpRegionSpace,
    Package, Path, ResourceTemplate, Scope, Store, ZERO,
};
use acpi_tables::facs::FACS;
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
/// Latencies of C2 and C3, in microseconds, that mean that there is no such state.
const NO_C2: u16 = 101;
const NO_C3: u16 = 1001;
/// `SLP_TYP` of S5: the PM1 control register takes it for power-off.
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
    // First, because it lies on a 64-byte border.
    let facs = append(&FACS::new());
    let dsdt = append(&dsdt());
    let fadt = append(&fadt(facs, dsdt));
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

/// A register, or a block of them, of `bytes` bytes that are accessed `access` at a time.
fn register(port: u16, bytes: u8, access: AccessSize) -> GAS {
    GAS::new(
        AddressSpace::SystemIo,
        8 * bytes,
        0,
        access,
        u64::from(port),
    )
}

fn fadt(facs: u64, dsdt: u64) -> acpi_tables::fadt::FADT {
    let mut fadt = FADTBuilder::new(OEM, TABLE, REVISION)
        .firmware_ctrl_64(facs)
        .dsdt_64(dsdt)
        .flag(Flags::Wbinvd)
        .flag(Flags::ProcC1)
        .flag(Flags::ResetRegSup)
        .flag(Flags::Headless)
        .flag(Flags::LowPowerS0IdleCapable)
        // Of fixed hardware there is the power button (a clear bit), but no sleep button and no alarm.
        .flag(Flags::SlpButton)
        .flag(Flags::FixRtc);
    fadt.iapc_boot_arch = VGA_NOT_PRESENT.into();
    // Without an SMI command port, ACPI mode is always on.
    fadt.sci_int = (irq::SCI as u16).into();
    let (event, control) = (port::PM1_EVENT, port::PM1_CONTROL);
    fadt.pm1a_evt_blk = u32::from(event).into();
    fadt.pm1_evt_len = 4;
    fadt.x_pm1a_evt_blk = register(event, 4, AccessSize::WordAccess);
    fadt.pm1a_cnt_blk = u32::from(control).into();
    fadt.pm1_cnt_len = 2;
    fadt.x_pm1a_cnt_blk = register(control, 2, AccessSize::WordAccess);
    fadt.p_lvl2_lat = NO_C2.into();
    fadt.p_lvl3_lat = NO_C3.into();
    fadt.reset_reg = register(port::RESET, 1, AccessSize::ByteAccess);
    fadt.reset_value = port::RESET_VALUE;
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
    let sleep = Raw(sleep::device());
    let events = Raw(event_device());
    let (pci, motherboard) = (pci::host_bridge(), pci::motherboard());
    Scope::new(
        "\\_SB_".into(),
        vec![&pci, &motherboard, &serial, &rtc, &pvpanic, &sleep, &events],
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

/// A register of one byte at a port: a region, and the field in it by whose name AML reads and writes it.
fn byte_register(region: &str, field: [u8; 4], port: u16) -> Raw {
    let mut bytes = Vec::new();
    OpRegion::new(region.into(), OpRegionSpace::SystemIO, &port, &ONE).to_aml_bytes(&mut bytes);
    Field::new(
        region.into(),
        FieldAccessType::Byte,
        FieldLockRule::NoLock,
        FieldUpdateRule::WriteAsZeroes,
        vec![FieldEntry::Named(field, 8)],
    )
    .to_aml_bytes(&mut bytes);
    Raw(bytes)
}

/// The Generic Event Device: its interrupt says that [`port::EVENTS`] has something.
fn event_device() -> Vec<u8> {
    let hid = Name::new("_HID".into(), &"ACPI0013");
    let uid = Name::new("_UID".into(), &ZERO);
    // Level-triggered: the line is up while there are events, also those from before the guest had its driver.
    let interrupt = Interrupt::new(true, false, false, false, irq::EVENTS);
    let template = ResourceTemplate::new(vec![&interrupt]);
    let crs = Name::new("_CRS".into(), &template);
    let io = byte_register("EVIO", *b"EVNT", port::EVENTS);
    // Reading takes all events.
    let (events, register) = (Local(0), Path::new("EVNT"));
    let take = Store::new(&events, &register);
    let are_slots = And::new(&ZERO, &events, &event::SLOTS);
    let scan = MethodCall::new(pci::SCAN.into(), vec![]);
    let if_slots = If::new(&are_slots, vec![&scan]);
    let handler = Method::new("_EVT".into(), 1, true, vec![&take, &if_slots]);
    let mut bytes = Vec::new();
    aml::Device::new("GED_".into(), vec![&hid, &uid, &crs, &io, &handler]).to_aml_bytes(&mut bytes);
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
        let facs = word(fadt, 132);
        assert_eq!(facs % 64, 0);
        assert_eq!(&bytes[(facs - base) as usize..][..4], b"FACS");
        let flags = u32::from_le_bytes(fadt[112..116].try_into().unwrap());
        assert_eq!(
            flags & (1 << 4 | 1 << 20 | 1 << 21),
            1 << 21,
            "fixed button, not hardware-reduced, sleep"
        );
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
            "ToUUID (\"11e00d56-ce64-47ce-837b-1f898f9aa461\")",
            "SLPS = One",
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
