//! The other CPU and the mailbox that wakes it, from the tables that `boot_params` leads to (ACPI
//! 6.4 §5.2.12).

use crate::memory::read;

/// Where the boot protocol has the RSDP's address.
const RSDP: u64 = 0x70;
const HEADER: u64 = 36;

/// What the MADT says.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cpus {
    /// APIC id of a CPU that is not this one.
    pub other: Option<u32>,
    /// Address of the multiprocessor wakeup mailbox.
    pub mailbox: Option<u64>,
}

/// Reads the MADT. `own_id` is this CPU's APIC id.
pub fn cpus(boot_params: u64, own_id: u32) -> Option<Cpus> {
    let madt = find(read(boot_params + RSDP), *b"APIC")?;
    let end = madt + u64::from(read::<u32>(madt + 4));
    let mut cpus = Cpus::default();
    let mut at = madt + HEADER + 8;
    while at + 2 <= end {
        let [kind, len]: [u8; 2] = read(at);
        let (id, enabled): (u32, bool) = match kind {
            0 => (read::<u8>(at + 3).into(), read::<u32>(at + 4) & 1 != 0),
            9 => (read(at + 4), read::<u32>(at + 8) & 1 != 0),
            0x10 => {
                cpus.mailbox = Some(read(at + 8));
                (own_id, false)
            }
            _ => (own_id, false),
        };
        if enabled && id != own_id && cpus.other.is_none() {
            cpus.other = Some(id);
        }
        at += u64::from(len.max(2));
    }
    Some(cpus)
}

/// The table of this signature.
fn find(rsdp: u64, signature: [u8; 4]) -> Option<u64> {
    if read::<[u8; 8]>(rsdp) != *b"RSD PTR " {
        return None;
    }
    let has_xsdt = read::<u8>(rsdp + 15) >= 2;
    let (root, width) = if has_xsdt {
        (read::<u64>(rsdp + 24), 8)
    } else {
        (read::<u32>(rsdp + 16).into(), 4)
    };
    let end = root + u64::from(read::<u32>(root + 4));
    (root + HEADER..end)
        .step_by(width)
        .map(|at| {
            if has_xsdt {
                read::<u64>(at)
            } else {
                read::<u32>(at).into()
            }
        })
        .find(|table| read::<[u8; 4]>(*table) == signature)
}
