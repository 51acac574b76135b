//! Calls that meet the end of their partition.

use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use guest_proto::driver::{MemoryFlags, Msi};
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::{Errno, write};
use vmctl::driver::{DriverError, Partition};

use super::guest::{memfd, start_at};
use super::{device, guest};

const MSI: Msi = Msi {
    address: 0xfee0_0000,
    data: 0x41,
};
/// Logical, so that the microvisor delivers it.
const LOGICAL: Msi = Msi {
    address: 0xfee0_1004,
    data: 0x141,
};

/// Repeats a call until the partition is gone; what it answers before is its own business.
fn until_gone<T>(mut call: impl FnMut() -> Result<T, DriverError>) {
    while !matches!(call(), Err(error) if error.errno == Errno::NODEV) {}
}

fn bind_and_unbind(vm: &Partition) {
    until_gone(|| {
        let bell = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        vm.doorbell(0x20, 1, 1, bell.as_fd())?;
        vm.irqfd(bell.as_fd(), MSI)?;
        vm.remove_doorbell(1)?;
        vm.remove_irqfd(bell.as_fd())
    });
}

#[test]
fn a_partition_ends_whatever_is_under_way() {
    for round in 0..6 {
        let device = device();
        let before = device.info().unwrap().0;
        let vm = device.create_partition("races", 0).unwrap();
        let ram = memfd(64 << 20);
        // out 0x20, al; hlt or jmp to itself
        let code: [&[u8]; 2] = [&[0xe6, 0x20, 0xeb, 0xfc], &[0xfb, 0xf4, 0xeb, 0xfd]];
        guest::write(&ram, 0x1000, code[round % 2]);
        vm.set_memory(0, ram.as_fd(), 0, 32 << 20, 0, 0).unwrap();
        let signalled = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        vm.irqfd(signalled.as_fd(), LOGICAL).unwrap();
        let over = AtomicBool::new(false);
        thread::scope(|scope| {
            for index in 0..2 {
                let (mut vcpu, _ring) = vm.vcpu(index).unwrap();
                start_at(&mut vcpu, 0x1000);
                scope.spawn(move || while vcpu.run() != Err(Errno::NODEV) {});
            }
            scope.spawn(|| bind_and_unbind(&vm));
            scope.spawn(|| until_gone(|| vm.send_msi(LOGICAL).and_then(|()| vm.send_msi(MSI))));
            scope.spawn(|| until_gone(|| vm.kick_all()));
            scope.spawn(|| until_gone(|| vm.memory(1)));
            scope.spawn(|| {
                let gpa = 1 << 30;
                until_gone(|| {
                    vm.set_memory(
                        1,
                        ram.as_fd(),
                        gpa,
                        64 << 20,
                        0,
                        MemoryFlags::POPULATE.bits(),
                    )
                });
            });
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    write(&signalled, &1_u64.to_ne_bytes()).unwrap();
                }
            });
            thread::sleep(Duration::from_millis(20 * round as u64));
            device.destroy_partition(vm.id()).unwrap();
            // Its number is free, and nothing that comes late may reach who has it next.
            let next = device.create_partition("next", 0).unwrap();
            thread::sleep(Duration::from_millis(20));
            device.destroy_partition(next.id()).unwrap();
            over.store(true, Ordering::Relaxed);
        });
        drop(vm);
        let after = device.info().unwrap().0;
        assert_eq!(after.ram_pages, before.ram_pages);
        assert_eq!(after.metadata_pages, before.metadata_pages);
    }
}

#[test]
fn pages_come_back() {
    let device = device();
    let numbers = |file, key: &str| -> i64 {
        let text = std::fs::read_to_string(file).unwrap();
        let lines = text.lines().map(str::split_whitespace);
        lines
            .filter_map(|mut words| {
                (words.next()? == key).then(|| words.next()?.parse::<i64>().ok())
            })
            .flatten()
            .sum()
    };
    // Linux does not count as free what its CPUs keep at hand, which is megabytes, more or less.
    let free = || numbers("/proc/meminfo", "MemFree:") + 4 * numbers("/proc/zoneinfo", "count:");
    let cycle = || {
        let vm = device.create_partition("cycle", 0).unwrap();
        let ram = memfd(16 << 20);
        vm.set_memory(0, ram.as_fd(), 0, 16 << 20, 0, MemoryFlags::POPULATE.bits())
            .unwrap();
        for index in 0..4 {
            vm.vcpu(index).unwrap();
        }
        device.destroy_partition(vm.id()).unwrap();
    };
    // What the first ones leave is caches, which do not grow.
    (0..5).for_each(|_| cycle());
    let before = free();
    (0..30).for_each(|_| cycle());
    let lost = before - free();
    assert!(lost < 8 << 10, "{lost} KiB of 480 MiB are lost");
}
