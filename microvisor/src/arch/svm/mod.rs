//! AMD's Secure Virtual Machine: the control block, and the world switch.

use core::arch::asm;
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicBool, Ordering};

use guest_proto::limits::MAX_CPUS;

mod asid;
mod exit;
mod guest;
mod permissions;
mod state;
mod switch;
mod vmcb;

pub use guest::Guest;
pub use state::guest_efer;
pub use vmcb::{Start, Vmcb};

use super::extended::Features;
use super::hw::Exit;
use super::speculation::Speculation;
use super::{cpuid, exception, memory, read_msr, write_msr};
use crate::memory::Frame;

const EFER: u32 = 0xc000_0080;
const EFER_SVME: u64 = 1 << 12;
const VM_CR: u32 = 0xc001_0114;
const VM_CR_SVMDIS: u64 = 1 << 4;
const VM_CR_R_INIT: u64 = 1 << 1;
const VM_CR_DIS_A20M: u64 = 1 << 2;
const VM_HSAVE_PA: u32 = 0xc001_0117;
/// CPUID 1 ECX.
const HYPERVISOR: u32 = 1 << 31;
/// CPUID 8000_000A EDX.
const NEXT_RIP_SAVE: u32 = 1 << 3;

/// General registers that the control block does not hold. RSP stands in the block.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Registers {
    /// RBX.
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

impl Registers {
    /// The register of this number in instructions; RAX and RSP stand in the control block.
    fn slot(&mut self, n: usize) -> Option<&mut u64> {
        match n {
            1 => Some(&mut self.rcx),
            2 => Some(&mut self.rdx),
            3 => Some(&mut self.rbx),
            5 => Some(&mut self.rbp),
            6 => Some(&mut self.rsi),
            7 => Some(&mut self.rdi),
            _ => self.r.get_mut(n.wrapping_sub(8)),
        }
    }

    fn get(mut self, n: usize) -> u64 {
        self.slot(n).map_or(0, |register| *register)
    }

    fn set(&mut self, n: usize, value: u64) {
        if let Some(register) = self.slot(n) {
            *register = value;
        }
    }
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

/// EFER.AutoIBRS where the CPU has it (APM vol. 2 §3.1.7), or 0: branches of less privileged code do not
/// steer those of more privileged code.
pub fn automatic_ibrs() -> u64 {
    const LEAF: u32 = 0x8000_0021;
    const AUTOMATIC_IBRS: u32 = 1 << 8;
    let has = cpuid(0x8000_0000, 0).eax >= LEAF && cpuid(LEAF, 0).eax & AUTOMATIC_IBRS != 0;
    u64::from(has) << 21
}

#[repr(C, align(4096))]
struct Page([u8; 4096]);

/// What one physical CPU needs to run VM 0.
#[repr(C)]
struct RootFrames {
    host_save: Page,
    /// What VMSAVE stores of the microvisor's.
    host: Page,
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
            host: Page([0; 4096]),
            vmcb: Vmcb::zeroed(),
            taken: AtomicBool::new(false),
        }
    }; MAX_CPUS as usize],
));

/// A physical CPU, as the guests need it that run there.
#[derive(Debug)]
pub struct Cpu {
    index: usize,
    /// Physical address of what VMSAVE stored of the microvisor's registers.
    host: u64,
    asids: asid::Asids,
    features: Features,
    /// Serial of the partition that had the last turn.
    last_partition: u64,
    /// A machine check came during a guest's turn.
    machine_check: bool,
}

impl Cpu {
    /// Which CPU this is, from 0.
    pub fn index(&self) -> usize {
        self.index
    }

    /// Before a turn of the partition with this serial.
    pub fn enter_partition(&mut self, serial: u64, policy: Speculation) {
        if policy.forgets_before(self.last_partition, serial) {
            self.features.prediction_barrier();
        }
        self.last_partition = serial;
    }

    /// After a guest's turn.
    pub fn leave_partition(&mut self, policy: Speculation) {
        if policy.forgets_after() {
            self.features.prediction_barrier();
        }
    }

    /// Keeps a machine check for root.
    pub fn note_machine_check(&mut self) {
        self.machine_check = true;
    }

    /// Whether a machine check came that root does not know of.
    pub fn take_machine_check(&mut self) -> bool {
        core::mem::take(&mut self.machine_check)
    }

    /// A CPU that runs nothing.
    #[cfg(test)]
    pub(crate) fn idle(index: usize) -> Self {
        Self {
            index,
            host: 0,
            asids: asid::Asids::new(16),
            features: Features::none(),
            last_partition: 0,
            machine_check: false,
        }
    }
}

/// This CPU's context of the root partition.
#[derive(Debug)]
pub struct RootCpu {
    vmcb: &'static mut Vmcb,
    vmcb_physical: u64,
    /// What guests need of the CPU.
    pub cpu: Cpu,
    /// General registers.
    pub registers: Registers,
    /// Where the instruction of the last exit ends.
    next_rip: u64,
    has_next_rip: bool,
    /// The CPU turns an INIT into #SX.
    redirects_init: bool,
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
        // SAFETY: as above.
        let host = memory::image_physical(unsafe { &raw const (*frames).host });
        // SAFETY: setting SVME and the host save area of this CPU; the areas are used by nothing else.
        unsafe {
            write_msr(EFER, read_msr(EFER) | EFER_SVME | automatic_ibrs());
            write_msr(
                VM_HSAVE_PA,
                memory::image_physical(&raw const (*frames).host_save),
            );
            asm!("vmsave rax", in("rax") host, options(nostack));
        }
        // SAFETY: an INIT comes as #SX, which `exception` takes; no address line is masked.
        let redirects = unsafe {
            let wanted = read_msr(VM_CR) | VM_CR_R_INIT | VM_CR_DIS_A20M;
            exception::try_write_msr(VM_CR, wanted) && read_msr(VM_CR) & VM_CR_R_INIT != 0
        };
        // SAFETY: exclusive by `taken`.
        let vmcb = unsafe { &mut (*frames).vmcb };
        let vmcb_physical = memory::image_physical(&raw const *vmcb);
        vmcb.init_root(&permissions::root_maps());
        let cpu = Cpu {
            index,
            host,
            asids: asid::Asids::new(cpuid(0x8000_000a, 0).ebx),
            features: Features::enable(),
            last_partition: 0,
            machine_check: false,
        };
        Some(Self {
            vmcb,
            vmcb_physical,
            cpu,
            registers: Registers::default(),
            next_rip: 0,
            redirects_init: redirects && cpuid(1, 0).ecx & HYPERVISOR == 0,
            has_next_rip: cpuid(0x8000_000a, 0).edx & NEXT_RIP_SAVE != 0,
        })
    }

    /// Lets INIT, NMIs and interrupts wait until this CPU is in guest mode (GIF = 0).
    pub fn hold_events(&mut self) {
        // SAFETY: SVM is on; each world switch leaves GIF at 0 too.
        unsafe { asm!("clgi", options(nomem, nostack)) };
    }

    /// Writes a register of root's whose value root's policy, `root::msr`, has let pass. False if the CPU
    /// refuses.
    #[must_use]
    pub fn write_msr(&mut self, msr: u32, value: u64) -> bool {
        // SAFETY: the policy lets no value pass that takes from the microvisor what it relies on.
        unsafe { exception::try_write_msr(msr, value) }
    }

    /// Runs VM 0 on this CPU until the next exit.
    pub fn enter(&mut self) -> Exit {
        // SAFETY: the control block is complete, and its nested map is root's.
        unsafe { switch::enter(self.vmcb_physical, &mut self.registers, self.cpu.host) };
        self.vmcb.entered();
        self.vmcb.forget_event();
        let (exit, next) = exit::decode(self.vmcb, self.has_next_rip);
        self.next_rip = next;
        exit
    }

    /// Consumes the INIT of the last exit, which would be there again at the next entry (APM vol. 2 §15.28);
    /// whether an NMI came meanwhile. `None`: this CPU would obey the INIT. So would one that another
    /// hypervisor emulates: KVM and QEMU's TCG take R_INIT and do nothing with it.
    pub fn consume_init(&mut self) -> Option<bool> {
        // SAFETY: SVM is on, and R_INIT set.
        self.redirects_init
            .then(|| unsafe { exception::consume_init() })
    }

    /// VM 0 goes on after the instruction of the last exit.
    pub fn skip(&mut self) {
        self.vmcb.set_rip(self.next_rip);
        self.vmcb.set_interrupt_shadow(false);
    }

    /// Which CPU this is, from 0.
    pub fn index(&self) -> usize {
        self.cpu.index
    }

    /// Gives VM 0 its nested map. Before the first entry.
    pub fn set_nested_map(&mut self, top: Frame) {
        self.vmcb.set_nested_map(top.base().as_u64());
    }

    /// Makes the next entry forget VM 0's translations.
    pub fn flush(&mut self) {
        self.vmcb.flush_next();
    }

    /// The control block.
    pub fn vmcb(&mut self) -> &mut Vmcb {
        self.vmcb
    }
}
