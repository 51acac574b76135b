//! Virtual CPUs: running, stopping, state.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use guest_proto::vcpu_page::InterceptKind;
use rustix::io::Errno;
use vmctl::driver::{Kicker, Vcpu};

use super::guest::{CODE, Guest, byte, eventually_running, write};
use super::{device, errno, eventually};

/// jmp $
const SPIN: &[u8] = &[0xeb, 0xfe];
/// hlt; jmp -3
const HALT: &[u8] = &[0xf4, 0xeb, 0xfd];

#[test]
fn a_port_is_read_and_written() {
    // in al, 0x10; out 0x11, al
    let mut guest = Guest::new(&[0xe4, 0x10, 0xe6, 0x11]);
    let read = guest.run();
    assert_eq!(read.kind, InterceptKind::Port.raw());
    assert_eq!((read.address, read.size, read.is_write), (0x10, 1, 0));
    guest.answer(0x5a);
    assert_eq!(guest.run_to_out(), (0x11, 0x5a));
    let info = guest.device.partition_info(guest.vm.id()).unwrap();
    assert_eq!(info.vcpus, 1);
    let counters = guest.device.counters(guest.vm.id(), 0).unwrap();
    assert!(counters.runs >= 2);
}

#[test]
fn state_is_what_was_set() {
    let mut guest = Guest::new(SPIN);
    let mut state = guest.vcpu.fetch_state().unwrap();
    assert_eq!(state.rip, CODE);
    state.gpr[3] = 0x1234_5678_9abc_def0;
    state.cr2 = 0xdead_b000;
    guest.vcpu.store_state(&state).unwrap();
    let now = guest.vcpu.fetch_state().unwrap();
    assert_eq!((now.gpr[3], now.cr2), (state.gpr[3], state.cr2));
    let (mut same, _) = guest.vm.vcpu(0).unwrap();
    assert_eq!(same.fetch_state().unwrap().gpr[3], state.gpr[3]);
}

#[test]
fn indices_end_at_63() {
    let guest = Guest::new(SPIN);
    guest.vm.vcpu(63).unwrap();
    assert_eq!(errno(guest.vm.vcpu(64)), Errno::RANGE);
    assert_eq!(errno(guest.vm.vcpu(u32::MAX)), Errno::RANGE);
    let info = guest.device.partition_info(guest.vm.id()).unwrap();
    assert_eq!(info.vcpus, 2);
}

/// Runs until something but a mere pass through user space ends it; a kick does once `stop` is set.
fn run_until(vcpu: &mut Vcpu, stop: &AtomicBool) -> Result<(), Errno> {
    loop {
        let result = vcpu.run();
        if result != Err(Errno::INTR) || stop.load(Ordering::SeqCst) {
            return result;
        }
    }
}

/// Runs a guest in a thread, does `then` meanwhile and sets `stop`; how the run ended.
fn run_while(code: &[u8], then: impl FnOnce(&Guest, &Kicker, &AtomicBool)) -> Result<(), Errno> {
    let guest = Guest::new(code);
    let (mut vcpu, _ring) = guest.vm.vcpu(0).unwrap();
    let kicker = vcpu.kicker().unwrap();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let runner = scope.spawn(|| run_until(&mut vcpu, &stop));
        eventually_running(&guest.device, guest.vm.id());
        then(&guest, &kicker, &stop);
        runner.join().unwrap()
    })
}

#[test]
fn a_kick_stops_a_guest_that_computes() {
    let result = run_while(SPIN, |_, kicker, stop| {
        stop.store(true, Ordering::SeqCst);
        kicker.kick().unwrap();
    });
    assert_eq!(result, Err(Errno::INTR));
}

#[test]
fn a_kick_wakes_a_guest_that_halts() {
    let guest = Guest::new(HALT);
    let (mut vcpu, _ring) = guest.vm.vcpu(0).unwrap();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let runner = scope.spawn(|| run_until(&mut vcpu, &stop));
        thread::sleep(Duration::from_millis(300));
        stop.store(true, Ordering::SeqCst);
        guest.vm.kick_all().unwrap();
        assert_eq!(runner.join().unwrap(), Err(Errno::INTR));
    });
}

#[test]
fn a_kick_between_runs_counts_for_the_next() {
    // out 0x10, al; out 0x11, al
    let mut guest = Guest::new(&[0xe6, 0x10, 0xe6, 0x11]);
    guest.vcpu.kicker().unwrap().kick().unwrap();
    guest.vm.kick_all().unwrap();
    assert_eq!(guest.vcpu.run(), Err(Errno::INTR));
    assert_eq!(guest.run_to_out().0, 0x10);
    assert_eq!(guest.run_to_out().0, 0x11);
}

#[test]
fn a_guest_that_halts_costs_no_time() {
    let result = run_while(HALT, |guest, kicker, stop| {
        let runs = || guest.device.counters(guest.vm.id(), 0).unwrap().runs;
        thread::sleep(Duration::from_millis(300));
        let before = runs();
        thread::sleep(Duration::from_millis(1000));
        assert!(runs() <= before + 1, "it is run again and again");
        stop.store(true, Ordering::SeqCst);
        kicker.kick().unwrap();
    });
    assert_eq!(result, Err(Errno::INTR));
}

#[test]
fn one_thread_at_a_time() {
    let result = run_while(SPIN, |guest, kicker, stop| {
        let (mut second, _ring) = guest.vm.vcpu(0).unwrap();
        assert_eq!(second.run(), Err(Errno::BUSY));
        assert_eq!(errno(second.fetch_state()), Errno::BUSY);
        assert_eq!(errno(second.read_apic(0x20)), Errno::BUSY);
        stop.store(true, Ordering::SeqCst);
        kicker.kick().unwrap();
    });
    assert_eq!(result, Err(Errno::INTR));
}

#[test]
fn destroying_stops_what_runs_and_what_halts() {
    for code in [SPIN, HALT] {
        let device = device();
        let (id, runner) = {
            let guest = std::mem::ManuallyDrop::new(Guest::new(code));
            let (mut vcpu, _ring) = guest.vm.vcpu(0).unwrap();
            let never = AtomicBool::new(false);
            (
                guest.vm.id(),
                thread::spawn(move || run_until(&mut vcpu, &never)),
            )
        };
        eventually("the guest was entered", || {
            device.counters(id, 0).unwrap().runs > 0
        });
        device.destroy_partition(id).unwrap();
        assert_eq!(runner.join().unwrap(), Err(Errno::NODEV));
    }
}

#[test]
fn two_virtual_cpus_run_at_once_and_halted_ones_wake_each_other() {
    // On the boot CPU: INIT and SIPI to the other, through the worker's half of an xAPIC access;
    // then both count, each in a byte of its own.
    // inc byte [0x5000]; jmp -6
    let mut guest = Guest::new(&[0xfe, 0x06, 0x00, 0x50, 0xeb, 0xfa]);
    // inc byte [0x5001]; jmp -6, at the SIPI's page
    write(&guest.memfd, 0x3000, &[0xfe, 0x06, 0x01, 0x50, 0xeb, 0xfa]);
    let (mut other, _ring) = guest.vm.vcpu(1).unwrap();
    let stop = AtomicBool::new(false);
    let waits = thread::scope(|scope| {
        let second = scope.spawn(|| run_until(&mut other, &stop));
        thread::sleep(Duration::from_millis(200));
        // Interrupt command: to APIC 1, INIT, then start-up at page 3.
        guest.vcpu.write_apic(0xf0, 0x1ff).unwrap();
        for command in [0x4500, 0x4603] {
            guest.vcpu.write_apic(0x310, 1 << 24).unwrap();
            guest.vcpu.write_apic(0x300, command).unwrap();
        }
        let first = scope.spawn(|| run_until(&mut guest.vcpu, &stop));
        for at in [0x5000, 0x5001] {
            let before = byte(&guest.memfd, at);
            eventually("it counts", || byte(&guest.memfd, at) != before);
        }
        stop.store(true, Ordering::SeqCst);
        guest.vm.kick_all().unwrap();
        [first.join().unwrap(), second.join().unwrap()]
    });
    assert_eq!(waits, [Err(Errno::INTR), Err(Errno::INTR)]);
}
