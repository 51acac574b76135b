//! A virtual CPU's model-specific registers that the microvisor leaves to the worker: memory type ranges, kvmclock, and
//! registers that kernels look for and that do nothing here.
//!
//! The set is the one that stock Linux and BSD kernels touch on an AMD CPU with KVM's signature. Any other register
//! faults with #GP, as on hardware.

use guest_proto::vcpu_page::{Intercept, Reply, ReplyFlags};

use super::clock::Clock;
use super::exit::vector;
use super::memory::Memory;

const VARIABLE_MTRRS: usize = 8;
const FIXED_MTRRS: [u32; 11] = [
    0x250, 0x258, 0x259, 0x268, 0x269, 0x26a, 0x26b, 0x26c, 0x26d, 0x26e, 0x26f,
];
/// Capabilities of the memory type ranges: eight variable ranges, fixed ranges, write-combining.
const MTRR_CAP: u64 = 0x500 | VARIABLE_MTRRS as u64;

/// The TSC counts with the P0 frequency. Linux calls the firmware broken without this bit.
const HWCR: u64 = 1 << 24;
/// LFENCE is serialising, which it is on every CPU that has nested paging and this register.
const DE_CFG: u64 = 1 << 1;
/// The microcode level that KVM shows. The host loads microcode.
const PATCH_LEVEL: u64 = 0x0100_0065;
/// Fast strings.
const MISC_ENABLE: u64 = 1;

/// A register, by its number.
enum Register<'a> {
    /// The register keeps the written value, which has no effect.
    Kept(&'a mut u64),
    /// The register reads as this value, and ignores writes.
    Constant(u64),
    /// The register reads as this value, and faults at a write.
    ReadOnly(u64),
    /// kvmclock's wall clock: a write asks for its record.
    WallClock,
    /// kvmclock's system time: a write asks for its record.
    SystemTime,
}

/// Error: the access faults with #GP.
struct GeneralProtection;

/// The registers of one virtual CPU.
#[derive(Debug)]
pub(super) struct Msrs {
    clock: Clock,
    /// PhysBase and PhysMask of each variable range.
    variable_mtrrs: [u64; 2 * VARIABLE_MTRRS],
    fixed_mtrrs: [u64; FIXED_MTRRS.len()],
    mtrr_default: u64,
    wall_clock: u64,
    system_time: u64,
}

impl Msrs {
    /// The registers as firmware leaves them: all memory is write-back.
    pub(super) fn new(clock: Clock) -> Self {
        const ENABLED: u64 = 1 << 11;
        const FIXED_ENABLED: u64 = 1 << 10;
        const WRITE_BACK: u64 = 6;
        Self {
            clock,
            variable_mtrrs: [0; 2 * VARIABLE_MTRRS],
            fixed_mtrrs: [WRITE_BACK * 0x0101_0101_0101_0101; FIXED_MTRRS.len()],
            mtrr_default: ENABLED | FIXED_ENABLED | WRITE_BACK,
            wall_clock: 0,
            system_time: 0,
        }
    }

    /// Answers a RDMSR or WRMSR.
    pub(super) fn answer(&mut self, intercept: &Intercept, ram: &Memory) -> Reply {
        let answer = match u32::try_from(intercept.address) {
            Ok(number) if intercept.is_write != 0 => self.write(number, intercept.data, ram),
            Ok(number) => self.read(number),
            Err(_) => Err(GeneralProtection),
        };
        match answer {
            Ok(data) => Reply {
                flags: ReplyFlags::DATA.bits(),
                data,
                ..Reply::default()
            },
            Err(GeneralProtection) => Reply {
                flags: ReplyFlags::EXCEPTION.bits(),
                exception: vector::PROTECTION,
                ..Reply::default()
            },
        }
    }

    fn register(&mut self, number: u32) -> Option<Register<'_>> {
        Some(match number {
            0x4b56_4d00 => Register::WallClock,
            0x4b56_4d01 => Register::SystemTime,
            0x0000_00fe => Register::ReadOnly(MTRR_CAP),
            0x0000_0200..=0x0000_020f => {
                Register::Kept(self.variable_mtrrs.get_mut(number as usize - 0x200)?)
            }
            0x0000_02ff => Register::Kept(&mut self.mtrr_default),
            // P5 machine check; machine checks with no bank; debug control and last branches.
            0x0000_0000 | 0x0000_0001 => Register::Constant(0),
            0x0000_0179 => Register::ReadOnly(0),
            0x0000_017a | 0x0000_017b => Register::Constant(0),
            0x0000_01d9 | 0x0000_01db..=0x0000_01de => Register::Constant(0),
            0x0000_01a0 => Register::Constant(MISC_ENABLE),
            0x0000_008b => Register::Constant(PATCH_LEVEL),
            // K7 performance counters, which count nothing.
            0xc001_0000..=0xc001_0007 => Register::Constant(0),
            // SYSCFG, TOP_MEM, TOP_MEM2, NB_CFG, patch loader.
            0xc001_0010 | 0xc001_001a | 0xc001_001d | 0xc001_001f | 0xc001_0020 => {
                Register::Constant(0)
            }
            0xc001_0015 => Register::Constant(HWCR),
            // Interrupt pending message, MMIO configuration base.
            0xc001_0055 | 0xc001_0058 => Register::Constant(0),
            // P-state limit, control, status and definitions: there are none.
            0xc001_0061..=0xc001_006b => Register::Constant(0),
            // SMM address and mask.
            0xc001_0112 | 0xc001_0113 => Register::Constant(0),
            // LS_CFG, IC_CFG, DC_CFG, BU_CFG, FP_CFG, BU_CFG2, and DE_CFG.
            0xc001_1020..=0xc001_1023 | 0xc001_1028 | 0xc001_102a => Register::Constant(0),
            0xc001_1029 => Register::Constant(DE_CFG),
            _ => {
                let fixed = FIXED_MTRRS.iter().position(|msr| *msr == number)?;
                Register::Kept(self.fixed_mtrrs.get_mut(fixed)?)
            }
        })
    }

    fn read(&mut self, number: u32) -> Result<u64, GeneralProtection> {
        Ok(match self.register(number).ok_or(GeneralProtection)? {
            Register::Kept(value) => *value,
            Register::Constant(value) | Register::ReadOnly(value) => value,
            Register::WallClock => self.wall_clock,
            Register::SystemTime => self.system_time,
        })
    }

    fn write(&mut self, number: u32, value: u64, ram: &Memory) -> Result<u64, GeneralProtection> {
        const ENABLE: u64 = 1;
        match self.register(number).ok_or(GeneralProtection)? {
            Register::Kept(kept) => *kept = value,
            Register::Constant(_) => {}
            Register::ReadOnly(_) => return Err(GeneralProtection),
            Register::WallClock => {
                let written = self.clock.write_wall_clock(ram, value);
                written.map_err(|_| GeneralProtection)?;
                self.wall_clock = value;
            }
            Register::SystemTime => {
                if value & ENABLE != 0 {
                    let written = self.clock.write_system_time(ram, value & !ENABLE);
                    written.map_err(|_| GeneralProtection)?;
                }
                self.system_time = value;
            }
        }
        Ok(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ram() -> Memory {
        Memory::from_ranges(&[(vm_memory::GuestAddress(0), 0x10_000)]).unwrap()
    }

    fn msrs() -> Msrs {
        Msrs::new(Clock::new(1_000_000, 0))
    }

    fn access(msrs: &mut Msrs, ram: &Memory, number: u32, write: Option<u64>) -> Option<u64> {
        let intercept = Intercept {
            address: number.into(),
            is_write: write.is_some().into(),
            data: write.unwrap_or_default(),
            ..Intercept::default()
        };
        let reply = msrs.answer(&intercept, ram);
        if reply.flags == ReplyFlags::DATA.bits() {
            return Some(reply.data);
        }
        let fault = (ReplyFlags::EXCEPTION.bits(), 13);
        assert_eq!((reply.flags, reply.exception), fault);
        None
    }

    #[test]
    fn every_mtrr_has_a_word_of_its_own() {
        let (mut msrs, ram) = (msrs(), ram());
        let numbers: Vec<u32> = (0x200..0x210).chain(FIXED_MTRRS).chain([0x2ff]).collect();
        for number in &numbers {
            let value = Some(u64::from(*number));
            assert_eq!(access(&mut msrs, &ram, *number, value), Some(0));
        }
        for number in numbers {
            assert_eq!(access(&mut msrs, &ram, number, None), Some(number.into()));
        }
    }

    #[test]
    fn a_register_that_is_not_there_faults() {
        let (mut msrs, ram) = (msrs(), ram());
        // ARCH_CAPABILITIES, VM_CR, VM_HSAVE_PA, XSS, SMCA, core performance, no number of anything.
        for number in [
            0x10a,
            0xc001_0114,
            0xc001_0117,
            0xda0,
            0xc000_2000,
            0xc001_0200,
            0x251,
            !0,
        ] {
            assert_eq!(access(&mut msrs, &ram, number, None), None, "{number:#x}");
            assert_eq!(
                access(&mut msrs, &ram, number, Some(0)),
                None,
                "{number:#x}"
            );
        }
        assert_eq!(access(&mut msrs, &ram, 0xfe, Some(0)), None, "read only");
        assert_eq!(access(&mut msrs, &ram, 0xfe, None), Some(0x508));
        assert_eq!(access(&mut msrs, &ram, 0xc001_0015, Some(0)), Some(0));
        assert_eq!(access(&mut msrs, &ram, 0xc001_0015, None), Some(HWCR));
    }

    #[test]
    fn the_clocks_records_are_written_where_the_guest_says() {
        use vm_memory::Bytes;
        let (mut msrs, ram) = (msrs(), ram());
        let word = |at: u64| ram.read_obj::<u32>(vm_memory::GuestAddress(at)).unwrap();
        assert_eq!(access(&mut msrs, &ram, 0x4b56_4d01, Some(0x1000)), Some(0));
        assert_eq!(word(0x1000), 0, "it is not enabled");
        assert_eq!(access(&mut msrs, &ram, 0x4b56_4d01, Some(0x1001)), Some(0));
        assert_eq!(access(&mut msrs, &ram, 0x4b56_4d01, None), Some(0x1001));
        assert_eq!(word(0x1000), 2);
        assert_eq!(access(&mut msrs, &ram, 0x4b56_4d00, Some(0x2000)), Some(0));
        assert_eq!(word(0x2000), 2);
        for wrong in [0x1003, 0x1_0001, 0xfff0 | 1, u64::MAX] {
            assert_eq!(access(&mut msrs, &ram, 0x4b56_4d01, Some(wrong)), None);
            assert_eq!(access(&mut msrs, &ram, 0x4b56_4d01, None), Some(0x1001));
        }
    }
}
