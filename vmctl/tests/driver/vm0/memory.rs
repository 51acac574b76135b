//! RAM: what is refused, and what is held.

use std::os::fd::AsFd;

use guest_proto::driver::MemoryFlags;
use guest_proto::vcpu_page::InterceptKind;
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::io::Errno;

use super::guest::{CODE, Guest, MEMORY, byte, memfd, run, start_at, write};
use super::{device, errno};

const PAGE: u64 = 4096;

#[test]
fn memory_that_cannot_be_is_refused() {
    let device = device();
    let vm = device.create_partition("memory", 0).unwrap();
    let good = memfd(MEMORY);
    let set = |slot, gpa, size, offset, flags| {
        errno(vm.set_memory(slot, good.as_fd(), gpa, size, offset, flags))
    };
    assert_eq!(set(16, 0, PAGE, 0, 0), Errno::INVAL);
    assert_eq!(set(0, 1, PAGE, 0, 0), Errno::INVAL);
    assert_eq!(set(0, 0, PAGE + 1, 0, 0), Errno::INVAL);
    assert_eq!(set(0, 0, 0, 0, 0), Errno::INVAL);
    assert_eq!(set(0, 0, PAGE, 1, 0), Errno::INVAL);
    assert_eq!(set(0, 0, PAGE, 0, 1 << 2), Errno::INVAL);
    assert_eq!(set(0, 0, MEMORY + PAGE, 0, 0), Errno::INVAL);
    assert_eq!(set(0, 0, PAGE, MEMORY, 0), Errno::INVAL);
    assert_eq!(set(0, 0, PAGE, !0 << 12, 0), Errno::INVAL);
    assert_eq!(set(0, !0 << 12, PAGE, 0, 0), Errno::INVAL);
    assert_eq!(set(0, !0 << 12, 2 * PAGE, 0, 0), Errno::INVAL);
    assert_eq!(set(0, (1 << 48) - PAGE, 2 * PAGE, 0, 0), Errno::INVAL);
    assert_eq!(set(0, 0xfee0_0000, PAGE, 0, 0), Errno::ADDRINUSE);
    assert_eq!(set(0, 0xfedf_f000, MEMORY, 0, 0), Errno::ADDRINUSE);

    vm.set_memory(3, good.as_fd(), MEMORY, MEMORY, 0, 0)
        .unwrap();
    assert_eq!(set(3, 0, PAGE, 0, 0), Errno::EXIST);
    assert_eq!(set(4, MEMORY - PAGE, 2 * PAGE, 0, 0), Errno::ADDRINUSE);
    assert_eq!(set(4, 2 * MEMORY - PAGE, PAGE, 0, 0), Errno::ADDRINUSE);
    vm.set_memory(4, good.as_fd(), 2 * MEMORY, PAGE, 0, 0)
        .unwrap();

    let unsealed = memfd_create("unsealed", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&unsealed, MEMORY).unwrap();
    let file = std::fs::File::open("/dev/null").unwrap();
    assert_eq!(
        errno(vm.set_memory(0, unsealed.as_fd(), 0, PAGE, 0, 0)),
        Errno::PERM
    );
    assert_eq!(
        errno(vm.set_memory(0, file.as_fd(), 0, PAGE, 0, 0)),
        Errno::INVAL
    );
    let eventfd = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).unwrap();
    assert_eq!(
        errno(vm.set_memory(0, eventfd.as_fd(), 0, PAGE, 0, 0)),
        Errno::INVAL
    );
    device.destroy_partition(vm.id()).unwrap();
}

#[test]
fn memory_is_held_when_it_is_populated_and_let_go_with_the_partition() {
    let device = device();
    let (before, machine_before) = device.info().unwrap();
    let vm = device.create_partition("populate", 0).unwrap();
    let memory = memfd(32 << 20);
    vm.set_memory(0, memory.as_fd(), 0, 16 << 20, 0, 0).unwrap();
    assert_eq!(device.partition_info(vm.id()).unwrap().ram_pages, 0);
    // Neither end at a chunk's.
    let (gpa, size) = ((32 << 20) + 5 * PAGE, (7 << 20) + PAGE);
    vm.set_memory(
        1,
        memory.as_fd(),
        gpa,
        size,
        16 << 20,
        MemoryFlags::POPULATE.bits(),
    )
    .unwrap();
    let info = device.partition_info(vm.id()).unwrap();
    assert_eq!(info.ram_pages, size / PAGE);
    assert_eq!(info.memory, (16 << 20) + size);
    assert!(info.metadata_pages >= 3);
    let (during, machine) = device.info().unwrap();
    assert_eq!(during.ram_pages, before.ram_pages + info.ram_pages);
    assert_eq!(
        machine.guest_frames,
        machine_before.guest_frames + info.ram_pages
    );
    device.destroy_partition(vm.id()).unwrap();
    let (after, machine_after) = device.info().unwrap();
    assert_eq!(after.ram_pages, before.ram_pages);
    assert_eq!(after.metadata_pages, before.metadata_pages);
    assert_eq!(machine_after.guest_frames, machine_before.guest_frames);
    assert_eq!(
        machine_after.deposited_frames,
        machine_before.deposited_frames
    );
}

#[test]
fn a_guest_gets_the_chunks_that_it_touches() {
    // mov byte [0x5000], 0x77; out 0x10, al
    let mut guest = Guest::new(&[0xc6, 0x06, 0x00, 0x50, 0x77, 0xe6, 0x10]);
    assert_eq!(guest.run_to_out().0, 0x10);
    assert_eq!(byte(&guest.memfd, 0x5000), 0x77);
    let info = guest.device.partition_info(guest.vm.id()).unwrap();
    assert_eq!(info.ram_pages, 512);
}

#[test]
fn writes_to_read_only_memory_and_to_none_reach_the_worker() {
    // mov ax, 0x1000; mov ds, ax; mov byte [0], 0x77: to 0x10000
    let mut guest = Guest::new(&[0xb8, 0x00, 0x10, 0x8e, 0xd8, 0xc6, 0x06, 0x00, 0x00, 0x77]);
    let vm = guest.device.create_partition("read-only", 0).unwrap();
    vm.set_memory(0, guest.memfd.as_fd(), 0, 0x10000, 0, 0)
        .unwrap();
    vm.set_memory(
        1,
        guest.memfd.as_fd(),
        0x10000,
        PAGE,
        0x10000,
        MemoryFlags::READ_ONLY.bits(),
    )
    .unwrap();
    let (mut vcpu, _ring) = vm.vcpu(0).unwrap();
    start_at(&mut vcpu, CODE);
    write(&guest.memfd, 0x10000, &[0x55]);
    let intercept = run(&mut vcpu);
    assert_eq!(intercept.kind, InterceptKind::Memory.raw());
    assert_eq!(intercept.address, 0x10000);
    assert_eq!(byte(&guest.memfd, 0x10000), 0x55);
    drop(vcpu);
    guest.device.destroy_partition(vm.id()).unwrap();

    // Behind the end of RAM.
    let mut state = guest.vcpu.fetch_state().unwrap();
    state.segment[3].base = MEMORY;
    state.rip = CODE + 5;
    guest.vcpu.store_state(&state).unwrap();
    let intercept = guest.run();
    assert_eq!(intercept.kind, InterceptKind::Memory.raw());
    assert_eq!(intercept.address, MEMORY);
}
