//! AMD's Secure Virtual Machine: the control block, and the world switch.

use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicBool, Ordering};

use guest_proto::limits::MAX_CPUS;

mod permissions;
mod switch;
mod vmcb;

pub use vmcb::{Event, ExitCode, Start, Vmcb};

use super::{cpuid, memory, read_msr, write_msr};
use permissions::MsrPermissions;

const EFER: u32 = 0xc000_0080;
const EFER_SVME: u64 = 1 << 12;
const VM_CR: u32 = 0xc001_0114;
const VM_CR_SVMDIS: u64 = 1 << 4;
const VM_HSAVE_PA: u32 = 0xc001_0117;

/// General registers that the control block does not hold. RSP stands in the block.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Registers {
    /// RBX, RCX, RDX, RSI, RDI, RBP, R8 to R15, in this order.
    pub rbx: u64,
    /// RCX.
    pub rcx: u64,
    /// RDX.
    pub rdx: u64,
    /// RSI.
    pub rsi: u64,
    /// RDI.
    pub rdi: u64,
    /// RBP.
    pub rbp: u64,
    /// R8 to R15.
    pub r: [u64; 8],
}

/// Why this CPU cannot run the microvisor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unsupported {
    /// CPUID 8000_0001 ECX bit 2.
    NoSvm,
    /// CPUID 8000_000A EDX bit 0.
    NoNestedPaging,
    /// VM_CR.SVMDIS.
    DisabledByFirmware,
}

impl core::fmt::Display for Unsupported {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::NoSvm => "this CPU has no SVM (AMD virtualisation)",
            Self::NoNestedPaging => "this CPU has no nested paging (NPT)",
            Self::DisabledByFirmware => "SVM is disabled by firmware (VM_CR.SVMDIS)",
        })
    }
}

/// Checks that this CPU can run the microvisor; its SVM revision and feature bits.
pub fn supported() -> Result<(u8, u32), Unsupported> {
    if cpuid(0x8000_0000, 0).eax < 0x8000_000a || cpuid(0x8000_0001, 0).ecx & (1 << 2) == 0 {
        return Err(Unsupported::NoSvm);
    }
    let svm = cpuid(0x8000_000a, 0);
    if svm.edx & 1 == 0 {
        return Err(Unsupported::NoNestedPaging);
    }
    if read_msr(VM_CR) & VM_CR_SVMDIS != 0 {
        return Err(Unsupported::DisabledByFirmware);
    }
    Ok((svm.eax as u8, svm.edx))
}

#[repr(C, align(4096))]
struct Page([u8; 4096]);

/// What one physical CPU needs to run VM 0.
#[repr(C)]
struct RootFrames {
    host_save: Page,
    vmcb: Vmcb,
    taken: AtomicBool,
}

struct PerCpu(UnsafeCell<[RootFrames; MAX_CPUS as usize]>);

// SAFETY: each element is handed out once, guarded by its `taken`.
unsafe impl Sync for PerCpu {}

static ROOT: PerCpu = PerCpu(UnsafeCell::new(
    [const {
        RootFrames {
            host_save: Page([0; 4096]),
            vmcb: Vmcb::new(),
            taken: AtomicBool::new(false),
        }
    }; MAX_CPUS as usize],
));

static ROOT_MSRS: MsrPermissions = MsrPermissions::root();

/// The root partition's nested map: an identity of 512 GiB in 1 GiB pages, and of the first GiB in
/// 2 MiB pages, less the microvisor's own.
#[repr(C, align(4096))]
struct RootMap {
    top: [u64; 512],
    gibs: [u64; 512],
    first_gib: [u64; 512],
}

/// Bytes of a large page of the nested map: the microvisor's own memory is a multiple.
pub const LARGE_PAGE: u64 = 2 << 20;

const NESTED_PRESENT_WRITE_USER: u64 = 0b111;
const NESTED_LARGE: u64 = 1 << 7;

struct RootMapCell(UnsafeCell<RootMap>);

// SAFETY: written by the boot CPU before any other starts.
unsafe impl Sync for RootMapCell {}

static ROOT_MAP: RootMapCell = RootMapCell(UnsafeCell::new(RootMap {
    top: [0; 512],
    gibs: [0; 512],
    first_gib: [0; 512],
}));

/// Fills in root's nested map, without `[start, end)`, which lies in the first GiB. Once, on the
/// boot CPU, before the others start.
pub fn build_root_map(start: u64, end: u64) {
    // SAFETY: no other CPU runs yet, and no guest uses the map.
    let map = unsafe { &mut *ROOT_MAP.0.get() };
    map.top[0] = memory::image_physical(&raw const map.gibs) | NESTED_PRESENT_WRITE_USER;
    for (gib, entry) in (0_u64..).zip(map.gibs.iter_mut()) {
        *entry = gib << 30 | NESTED_LARGE | NESTED_PRESENT_WRITE_USER;
    }
    map.gibs[0] = memory::image_physical(&raw const map.first_gib) | NESTED_PRESENT_WRITE_USER;
    for (n, entry) in (0_u64..).zip(map.first_gib.iter_mut()) {
        let address = n * LARGE_PAGE;
        if address + LARGE_PAGE <= start || end <= address {
            *entry = address | NESTED_LARGE | NESTED_PRESENT_WRITE_USER;
        }
    }
}

/// This CPU's context of the root partition.
pub struct RootCpu {
    vmcb: &'static mut Vmcb,
    vmcb_physical: u64,
    /// General registers.
    pub registers: Registers,
}

impl RootCpu {
    /// Turns SVM on and takes this CPU's frames. `None` if the index was taken, or is too large.
    pub fn new(index: usize) -> Option<Self> {
        if index >= MAX_CPUS as usize {
            return None;
        }
        let first: *mut RootFrames = ROOT.0.get().cast();
        // SAFETY: in bounds; `taken` makes it this call's alone, and the others only read `taken`.
        let frames = unsafe { first.add(index) };
        // SAFETY: as above; an atomic may be shared.
        if unsafe { &(*frames).taken }.swap(true, Ordering::AcqRel) {
            return None;
        }
        // SAFETY: setting SVME and the host save area of this CPU; the area is used by nothing else.
        unsafe {
            write_msr(EFER, read_msr(EFER) | EFER_SVME);
            write_msr(
                VM_HSAVE_PA,
                memory::image_physical(&raw const (*frames).host_save),
            );
        }
        // SAFETY: exclusive by `taken`.
        let vmcb = unsafe { &mut (*frames).vmcb };
        let vmcb_physical = memory::image_physical(&raw const *vmcb);
        vmcb.init_root(
            memory::image_physical(&raw const ROOT_MSRS),
            memory::image_physical(ROOT_MAP.0.get().cast_const()),
        );
        Some(Self {
            vmcb,
            vmcb_physical,
            registers: Registers::default(),
        })
    }

    /// Runs VM 0 on this CPU until the next exit.
    pub fn enter(&mut self) -> ExitCode {
        // SAFETY: the control block is complete, and its nested map is root's.
        unsafe { switch::enter(self.vmcb_physical, &mut self.registers) };
        self.vmcb.exit_code()
    }

    /// The control block.
    pub fn vmcb(&mut self) -> &mut Vmcb {
        self.vmcb
    }
}
