//! The start of VM 0 on a physical CPU.
#![allow(
    unsafe_code,
    reason = "turns SVM on, and takes frames that each CPU takes once"
)]

use core::arch::asm;
use core::sync::atomic::Ordering;

use guest_proto::cpuid::bit::HYPERVISOR;
use guest_proto::limits::MAX_CPUS;
use guest_proto::vcpu_page::Segment;
use x86_64::registers::control::{Cr0Flags, Cr4Flags, Efer, EferFlags};

use super::{ROOT, Root, RootFrames, VM_HSAVE_PA};
use crate::arch::boot::Start;
use crate::arch::extended::Features;
use crate::arch::layout::image_physical;
use crate::arch::svm::cpu::{
    Cpu, SVM_LEAF, SvmFeatures, VM_CR, VmCr, automatic_ibrs, svm_features,
};
use crate::arch::svm::permissions;
use crate::arch::svm::registers::Registers;
use crate::arch::svm::vmcb::{DR6_RESET, DR7_RESET, RFLAGS_RESET, Save, TlbControl};
use crate::arch::{cpuid, exception, read_msr, write_msr};
use crate::memory::Gpa;

impl Root {
    pub(crate) fn new(index: usize, start: &Start) -> Option<Self> {
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
        let (host_save, host) =
            unsafe { (&raw const (*frames).host_save, &raw const (*frames).host) };
        let (host_save, host) = (image_physical(host_save), image_physical(host));
        // SAFETY: sets SVME and the host save area of this CPU; nothing else uses the areas.
        unsafe {
            let svme = EferFlags::SECURE_VIRTUAL_MACHINE_ENABLE.bits();
            Efer::write_raw(Efer::read_raw() | svme | automatic_ibrs());
            write_msr(VM_HSAVE_PA, host_save.as_u64());
            asm!("vmsave rax", in("rax") host.as_u64(), options(nostack));
        }
        // SAFETY: an INIT comes as #SX, which `exception` takes; no address line is masked.
        let redirects = unsafe {
            let wanted = read_msr(VM_CR) | (VmCr::R_INIT | VmCr::DIS_A20M).bits();
            exception::try_write_msr(VM_CR, wanted) && read_msr(VM_CR) & VmCr::R_INIT.bits() != 0
        };
        // SAFETY: exclusive by `taken`.
        let vmcb = unsafe { &mut (*frames).vmcb };
        let vmcb_physical = image_physical(&raw const *vmcb);
        vmcb.init_root(&permissions::root_maps());
        set_start(&mut vmcb.save, start);
        Some(Self {
            vmcb,
            vmcb_physical,
            cpu: Cpu::new(index, host, cpuid(SVM_LEAF, 0).ebx, Features::enable()),
            registers: Registers {
                rsi: start.rsi,
                ..Registers::default()
            },
            // KVM and QEMU's TCG take R_INIT and do nothing with it.
            redirects_init: redirects && cpuid(1, 0).ecx & HYPERVISOR == 0,
            has_next_rip: svm_features().contains(SvmFeatures::NEXT_RIP_SAVE),
            flush: match svm_features().contains(SvmFeatures::FLUSH_BY_ASID) {
                true => TlbControl::FLUSH_OWN,
                false => TlbControl::FLUSH_ALL,
            },
        })
    }
}

/// Sets the state of a CPU of VM 0 in 64-bit mode on identity page tables, interrupts off. NXE is set:
/// Linux's wakeup trampoline meets no-execute pages before it sets it by itself.
fn set_start(save: &mut Save, start: &Start) {
    let flat = |selector, attributes| Segment {
        selector,
        attributes,
        limit: u32::MAX,
        base: 0,
    };
    let system = |attributes, limit, base: Gpa| Segment {
        selector: 0,
        attributes,
        limit,
        base: base.as_u64(),
    };
    let none = Gpa::new(0);
    save.segment = [flat(0x18, 0xc93); 6];
    save.segment[Save::CS] = flat(0x10, 0xa9b);
    save.gdtr = system(0, 31, start.gdt);
    save.ldtr = system(0x82, 0xffff, none);
    save.idtr = system(0, 3 * 16 - 1, start.idt);
    save.tr = system(0x8b, 0xffff, none);
    let efer =
        EferFlags::NO_EXECUTE_ENABLE | EferFlags::LONG_MODE_ACTIVE | EferFlags::LONG_MODE_ENABLE;
    save.set_efer(efer.bits());
    let cr0 = Cr0Flags::PAGING
        | Cr0Flags::WRITE_PROTECT
        | Cr0Flags::NUMERIC_ERROR
        | Cr0Flags::EXTENSION_TYPE
        | Cr0Flags::MONITOR_COPROCESSOR
        | Cr0Flags::PROTECTED_MODE_ENABLE;
    save.cr0 = cr0.bits();
    save.cr3 = start.cr3.as_u64();
    save.cr4 = Cr4Flags::PHYSICAL_ADDRESS_EXTENSION.bits();
    (save.dr6, save.dr7) = (DR6_RESET, DR7_RESET);
    save.rflags = RFLAGS_RESET;
    save.rip = start.rip.as_u64();
    save.rsp = start.rsp.as_u64();
}
