//! Calls that no binding makes: any ioctl, with any argument.

#![allow(unsafe_code, reason = "raw ioctls, to call what the binding cannot")]

use std::ffi::c_void;
use std::os::fd::{AsFd, BorrowedFd};

use guest_proto::driver::{AttachPartition, Doorbell, IrqFd, MemorySlot, ioctl as number};
use rustix::io::Errno;
use rustix::ioctl::{Ioctl, IoctlOutput, Opcode, ioctl};

use super::guest::Guest;

/// An ioctl with a raw argument.
struct Raw {
    opcode: u64,
    argument: usize,
}

// SAFETY: whoever makes one sees to it that the argument is a number, an address where nothing is
// mapped, or one of memory that may be written.
unsafe impl Ioctl for Raw {
    type Output = i32;
    const IS_MUTATING: bool = true;

    fn opcode(&self) -> Opcode {
        self.opcode as Opcode
    }

    fn as_ptr(&mut self) -> *mut c_void {
        std::ptr::without_provenance_mut(self.argument)
    }

    unsafe fn output_from_ptr(out: IoctlOutput, _: *mut c_void) -> rustix::io::Result<i32> {
        Ok(out)
    }
}

fn call(fd: BorrowedFd<'_>, opcode: u64, argument: usize) -> Result<i32, Errno> {
    // SAFETY: see the impl; the callers pass such arguments only.
    unsafe { ioctl(fd, Raw { opcode, argument }) }
}

/// Calls with a structure, which the driver may write to.
fn with<T>(fd: BorrowedFd<'_>, opcode: u64, mut value: T) -> Result<i32, Errno> {
    call(fd, opcode, (&raw mut value).expose_provenance())
}

#[test]
fn helper_uses_an_fd_that_is_not_its_own() {
    let Ok(fd) = std::env::var("DRIVER_TEST_FD") else {
        return;
    };
    // SAFETY: inherited from the test, open as long as this process is.
    let fd = unsafe { BorrowedFd::borrow_raw(fd.parse().unwrap()) };
    for (opcode, argument) in [(number::PARTITION_KICK_ALL, 0), (number::PARTITION_VCPU, 0)] {
        assert_eq!(call(fd, opcode, argument), Err(Errno::PERM));
    }
    assert_eq!(
        with(fd, number::PARTITION_GET_MEMORY, MemorySlot::default()),
        Err(Errno::PERM)
    );
}

#[test]
fn no_argument_is_believed() {
    let guest = Guest::new(&[0xeb, 0xfe]);
    let vm = guest.vm.as_fd();
    let reserved = MemorySlot {
        size: 4096,
        reserved: 1,
        ..MemorySlot::default()
    };
    assert_eq!(
        with(vm, number::PARTITION_SET_MEMORY, reserved),
        Err(Errno::INVAL)
    );
    let closed = MemorySlot {
        slot: 1,
        fd: u32::MAX,
        gpa: 1 << 30,
        size: 4096,
        ..MemorySlot::default()
    };
    assert_eq!(
        with(vm, number::PARTITION_SET_MEMORY, closed),
        Err(Errno::BADF)
    );
    let none = Doorbell {
        eventfd: -2,
        ..Doorbell::default()
    };
    assert_eq!(
        with(vm, number::PARTITION_DOORBELL, none),
        Err(Errno::INVAL)
    );
    let far = Doorbell {
        tag: 0x1_0001,
        eventfd: -1,
        ..Doorbell::default()
    };
    assert_eq!(with(vm, number::PARTITION_DOORBELL, far), Err(Errno::RANGE));
    for reserved in [
        IrqFd {
            reserved: 1,
            ..IrqFd::default()
        },
        IrqFd {
            remove: 2,
            ..IrqFd::default()
        },
    ] {
        assert_eq!(
            with(vm, number::PARTITION_IRQFD, reserved),
            Err(Errno::INVAL)
        );
    }
    let device = guest.device.as_fd();
    for id in [0, 256, usize::MAX] {
        let attach = AttachPartition {
            id: id as u64,
            token: 0,
        };
        assert_eq!(
            with(device, number::DEV_ATTACH_PARTITION, attach),
            Err(Errno::NOENT)
        );
        assert_eq!(
            call(device, number::DEV_DESTROY_PARTITION, id),
            Err(Errno::NOENT)
        );
    }
}

/// Every number on every fd, where nothing is mapped: an error, whatever it is.
#[test]
fn no_address_is_believed() {
    let guest = Guest::new(&[0xeb, 0xfe]);
    let all = [
        number::DEV_INFO,
        number::DEV_CREATE_PARTITION,
        number::DEV_ATTACH_PARTITION,
        number::DEV_LIST_PARTITIONS,
        number::DEV_READ_LOG,
        number::DEV_READ_COUNTERS,
        number::DEV_PARTITION_INFO,
        number::PARTITION_SET_MEMORY,
        number::PARTITION_GET_MEMORY,
        number::PARTITION_DOORBELL,
        number::PARTITION_IRQFD,
        number::PARTITION_MSI,
        number::PARTITION_SET_PROPERTY,
        number::VCPU_APIC,
        number::VCPU_SET_CPUID,
    ];
    let before = guest.device.list_partitions().unwrap();
    for fd in [guest.device.as_fd(), guest.vm.as_fd(), guest.vcpu.as_fd()] {
        for opcode in all {
            for argument in [0, 1, 0x1000, 1 << 47, 0xffff_8880_0000_0000, usize::MAX] {
                let error = call(fd, opcode, argument).unwrap_err();
                assert!(
                    matches!(error, Errno::FAULT | Errno::NOTTY),
                    "{opcode:#x} with {argument:#x}: {error}"
                );
            }
        }
        for opcode in (0..0x100).map(|n| 0x5600 | n) {
            let known = [
                number::DEV_DESTROY_PARTITION,
                number::PARTITION_VCPU,
                number::PARTITION_KICK_ALL,
                number::PARTITION_DESTROY,
                number::PARTITION_EOI_EVENTFD,
                number::VCPU_GET_STATE,
                number::VCPU_SET_STATE,
                number::VCPU_KICK,
            ];
            if !known.contains(&opcode) {
                assert_eq!(call(fd, opcode, 0), Err(Errno::NOTTY), "{opcode:#x}");
            }
        }
    }
    assert_eq!(guest.device.list_partitions().unwrap(), before);
}
