//! The device that a guest tells of its sleep (Low Power S0 Idle).
//!
//! A kernel that suspends to idle calls `_DSM` of this device before and after. Which of the three interfaces it takes depends
//! on the CPU's vendor and on the kernel's version (Linux `drivers/acpi/x86/s2idle.c`), so all three are here: Microsoft's,
//! Intel's, and AMD's, which has other numbers.

use acpi_tables::Aml;
use acpi_tables::aml::{
    Arg, BufferData, Device, EISAName, Equal, If, Method, Name, ONE, Path, Return, Store, Uuid,
    ZERO,
};

use super::{Raw, byte_register};
use crate::worker::devices::port;

/// An interface of `_DSM`: its identifier, and the numbers of the functions that enter and leave the sleep.
struct Interface {
    uuid: &'static str,
    enter: u8,
    leave: u8,
}

const INTERFACES: [Interface; 3] = [
    Interface {
        uuid: "11e00d56-ce64-47ce-837b-1f898f9aa461",
        enter: 5,
        leave: 6,
    },
    Interface {
        uuid: "c4eb40a0-6cd2-11e2-bcfd-0800200c9a66",
        enter: 5,
        leave: 6,
    },
    Interface {
        uuid: "e3f32452-febc-43ce-9039-932122d37721",
        enter: 2,
        leave: 3,
    },
];

/// Returns the device.
pub(super) fn device() -> Vec<u8> {
    let id = EISAName::new("PNP0D80");
    let hid = Name::new("_HID".into(), &id);
    let uid = Name::new("_UID".into(), &ZERO);
    let io = byte_register("SLIO", *b"SLPS", port::SLEEP);
    let functions = Raw(INTERFACES.iter().flat_map(functions).collect());
    let nothing = BufferData::new(vec![0]);
    let otherwise = Return::new(&nothing);
    let dsm = Method::new("_DSM".into(), 4, true, vec![&functions, &otherwise]);
    let mut bytes = Vec::new();
    Device::new("SLPD".into(), vec![&hid, &uid, &io, &dsm]).to_aml_bytes(&mut bytes);
    bytes
}

/// Returns what `_DSM` does for one interface.
fn functions(interface: &Interface) -> Vec<u8> {
    let (uuid, function) = (Uuid::new(interface.uuid), Arg(2));
    let is_asked = Equal::new(&Arg(0), &uuid);
    // Function 0 tells which functions there are.
    let known = BufferData::new(vec![1 | 1 << interface.enter | 1 << interface.leave]);
    let tell = Return::new(&known);
    let is_query = Equal::new(&function, &ZERO);
    let query = If::new(&is_query, vec![&tell]);
    let register = Path::new("SLPS");
    let (sleep, wake) = (Store::new(&register, &ONE), Store::new(&register, &ZERO));
    let is_enter = Equal::new(&function, &interface.enter);
    let enter = If::new(&is_enter, vec![&sleep]);
    let is_leave = Equal::new(&function, &interface.leave);
    let leave = If::new(&is_leave, vec![&wake]);
    let mut bytes = Vec::new();
    If::new(&is_asked, vec![&query, &enter, &leave]).to_aml_bytes(&mut bytes);
    bytes
}
