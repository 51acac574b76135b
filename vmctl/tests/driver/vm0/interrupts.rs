//! Interrupts into a guest, and its notices to the worker.

use std::os::fd::{AsFd, OwnedFd};
use std::thread;
use std::time::Duration;

use guest_proto::driver::Msi;
use guest_proto::vcpu_page::PostedKind;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::{Errno, write};

use super::errno;
use super::guest::Guest;

/// sti; hlt; jmp -3
const HALT: &[u8] = &[0xfb, 0xf4, 0xeb, 0xfd];

/// To APIC 0, fixed, edge-triggered.
fn fixed(vector: u8) -> Msi {
    Msi {
        address: 0xfee0_0000,
        data: vector.into(),
    }
}

/// mov al, VECTOR; out 0x12, al; iret
fn report(vector: u8) -> [u8; 5] {
    [0xb0, vector, 0xe6, 0x12, 0xcf]
}

fn halting(vectors: &[u8]) -> Guest {
    let mut guest = Guest::new(HALT);
    for vector in vectors {
        guest.on_interrupt(*vector, &report(*vector));
    }
    guest
}

/// Runs until the interrupt's handler reports, and ends the interrupt.
fn expect(guest: &mut Guest, vector: u8) {
    assert_eq!(guest.run_to_out(), (0x12, vector.into()));
    guest.vcpu.write_apic(0xb0, 0).unwrap();
}

fn new_eventfd() -> OwnedFd {
    eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap()
}

fn signal(eventfd: &OwnedFd) {
    assert_eq!(write(eventfd, &1_u64.to_ne_bytes()).unwrap(), 8);
}

fn is_signalled(eventfd: &OwnedFd, within: Duration) -> bool {
    let mut fds = [PollFd::new(eventfd, PollFlags::IN)];
    let timeout = Timespec {
        tv_sec: 0,
        tv_nsec: within.subsec_nanos().into(),
    };
    poll(&mut fds, Some(&timeout)).unwrap() == 1
}

/// Does `then` while the guest halts, which has interrupts reported by `expect`.
fn meanwhile(guest: &mut Guest, vector: u8, then: impl FnOnce() + Send) {
    thread::scope(|scope| {
        scope.spawn(|| {
            thread::sleep(Duration::from_millis(300));
            then();
        });
        expect(guest, vector);
    });
}

#[test]
fn a_message_wakes_a_halted_guest() {
    let mut guest = halting(&[0x41, 0x51]);
    let vm = guest.attach();
    meanwhile(&mut guest, 0x41, || vm.send_msi(fixed(0x41)).unwrap());
    // Lowest priority, logical: by the microvisor's rules. Logical id 1 of APIC 0, flat model.
    guest.vcpu.write_apic(0xe0, 0xffff_ffff).unwrap();
    guest.vcpu.write_apic(0xd0, 1 << 24).unwrap();
    let logical = Msi {
        address: 0xfee0_0000 | 1 << 12 | 1 << 2 | 1 << 3,
        data: 0x151,
    };
    meanwhile(&mut guest, 0x51, || vm.send_msi(logical).unwrap());
}

#[test]
fn a_message_reaches_a_guest_that_computes() {
    // sti; jmp $
    let mut guest = Guest::new(&[0xfb, 0xeb, 0xfe]);
    guest.on_interrupt(0x41, &report(0x41));
    let vm = guest.attach();
    meanwhile(&mut guest, 0x41, || vm.send_msi(fixed(0x41)).unwrap());
}

#[test]
fn messages_that_cannot_be_are_refused_and_those_to_nobody_lost() {
    let guest = halting(&[]);
    for address in [0, 0xfed0_0000, 0x1_fee0_0000, !0] {
        let msi = Msi {
            address,
            data: 0x41,
        };
        assert_eq!(errno(guest.vm.send_msi(msi)), Errno::INVAL);
        let eventfd = new_eventfd();
        assert_eq!(errno(guest.vm.irqfd(eventfd.as_fd(), msi)), Errno::INVAL);
    }
    guest
        .vm
        .send_msi(Msi {
            address: 0xfee0_0000 | 5 << 12,
            data: 0x41,
        })
        .unwrap();
}

#[test]
fn an_irqfd_delivers_its_message_until_it_is_unbound() {
    let mut guest = halting(&[0x41, 0x51, 0x61]);
    let eventfd = new_eventfd();
    // What was signalled before counts too.
    signal(&eventfd);
    guest.vm.irqfd(eventfd.as_fd(), fixed(0x41)).unwrap();
    expect(&mut guest, 0x41);
    meanwhile(&mut guest, 0x41, || signal(&eventfd));
    assert!(!is_signalled(&eventfd, Duration::ZERO), "it was read");

    guest.vm.irqfd(eventfd.as_fd(), fixed(0x51)).unwrap();
    meanwhile(&mut guest, 0x51, || signal(&eventfd));

    guest.vm.remove_irqfd(eventfd.as_fd()).unwrap();
    assert_eq!(errno(guest.vm.remove_irqfd(eventfd.as_fd())), Errno::NOENT);
    signal(&eventfd);
    assert!(is_signalled(&eventfd, Duration::ZERO), "nobody reads it");
    guest.vm.send_msi(fixed(0x61)).unwrap();
    expect(&mut guest, 0x61);
}

#[test]
fn an_irqfd_that_is_closed_or_left_is_no_harm() {
    let guest = halting(&[]);
    for _ in 0..5000 {
        let eventfd = new_eventfd();
        guest.vm.irqfd(eventfd.as_fd(), fixed(0x41)).unwrap();
    }
    let left = new_eventfd();
    guest.vm.irqfd(left.as_fd(), fixed(0x41)).unwrap();
    drop(guest);
    signal(&left);
    assert!(is_signalled(&left, Duration::ZERO));
}

#[test]
fn the_virtual_apics_timer_wakes_a_halted_guest() {
    let mut guest = halting(&[0x41]);
    // Divide by 1; one-shot; the count last, which starts it.
    guest.vcpu.write_apic(0x3e0, 0xb).unwrap();
    guest.vcpu.write_apic(0x320, 0x41).unwrap();
    for _ in 0..3 {
        guest.vcpu.write_apic(0x380, 20_000_000).unwrap();
        expect(&mut guest, 0x41);
    }
}

#[test]
fn the_virtual_apics_timer_interrupts_a_guest_that_computes() {
    // sti; jmp $
    let mut guest = Guest::new(&[0xfb, 0xeb, 0xfe]);
    guest.on_interrupt(0x41, &report(0x41));
    guest.vcpu.write_apic(0x3e0, 0xb).unwrap();
    guest.vcpu.write_apic(0x320, 0x41).unwrap();
    guest.vcpu.write_apic(0x380, 20_000_000).unwrap();
    expect(&mut guest, 0x41);
}

#[test]
fn a_doorbell_is_posted_and_rings_only_for_a_sleeper() {
    // mov al, 7; out 0x20, al; out 0x20, al; out 0x10, al; out 0x20, al; out 0x10, al
    let mut guest = Guest::new(&[
        0xb0, 7, 0xe6, 0x20, 0xe6, 0x20, 0xe6, 0x10, 0xe6, 0x20, 0xe6, 0x10,
    ]);
    let bell = new_eventfd();
    guest.vm.doorbell(0x20, 4, 9, bell.as_fd()).unwrap();
    assert!(guest.ring.prepare_sleep());
    assert_eq!(guest.run_to_out().0, 0x10);
    assert!(is_signalled(&bell, Duration::ZERO));
    for _ in 0..2 {
        let entry = guest.ring.pop().unwrap();
        assert_eq!(entry.kind, PostedKind::Port.raw());
        assert_eq!((entry.tag, entry.offset, entry.data), (9, 0, 7));
    }
    assert!(guest.ring.pop().is_none());
    let mut count = [0; 8];
    rustix::io::read(&bell, &mut count).unwrap();
    assert_eq!(u64::from_ne_bytes(count), 1, "once for both");

    assert_eq!(guest.run_to_out().0, 0x10);
    assert!(guest.ring.pop().is_some());
    assert!(!is_signalled(&bell, Duration::ZERO), "nobody slept");
}

#[test]
fn doorbells_are_removed_by_hand_and_with_who_made_them() {
    // out 0x20, al, four times
    let guest = Guest::new(&[0xe6, 0x20, 0xe6, 0x20, 0xe6, 0x20, 0xe6, 0x20]);
    let bell = new_eventfd();
    let add = |base, length, tag| guest.vm.doorbell(base, length, tag, bell.as_fd());
    assert_eq!(errno(guest.vm.remove_doorbell(9)), Errno::NOENT);
    add(0x20, 1, 9).unwrap();
    assert_eq!(errno(add(0x20, 1, 10)), Errno::ADDRINUSE);
    assert_eq!(errno(add(0x30, 1, 9)), Errno::ADDRINUSE);
    assert_eq!(errno(add(0x30, 0, 10)), Errno::RANGE);
    assert_eq!(errno(add(0x30, 4097, 10)), Errno::RANGE);
    guest.vm.remove_doorbell(9).unwrap();
    add(0x20, 1, 10).unwrap();
    guest.vm.eoi_eventfd(bell.as_fd()).unwrap();
    assert_eq!(errno(guest.vm.eoi_eventfd(bell.as_fd())), Errno::ADDRINUSE);
    let eoi = guest_proto::hypercall::doorbell_tags::EOI;
    assert_eq!(errno(guest.vm.remove_doorbell(eoi)), Errno::RANGE);
    assert_eq!(errno(add(0x40, 1, eoi)), Errno::RANGE);
    guest.vm.remove_eoi_eventfd().unwrap();
    assert_eq!(errno(guest.vm.remove_eoi_eventfd()), Errno::NOENT);
    guest.vm.eoi_eventfd(bell.as_fd()).unwrap();
}

#[test]
fn the_end_of_a_level_triggered_interrupt_is_posted_and_wakes() {
    let mut guest = halting(&[0x41, 0x42]);
    let bell = new_eventfd();
    guest.vm.eoi_eventfd(bell.as_fd()).unwrap();
    assert!(guest.ring.prepare_sleep());
    let mut level = fixed(0x41);
    level.data |= 1 << 15 | 1 << 14;
    guest.vm.send_msi(level).unwrap();
    expect(&mut guest, 0x41);
    // The guest goes on after its write.
    guest.vm.send_msi(fixed(0x42)).unwrap();
    expect(&mut guest, 0x42);
    assert!(is_signalled(&bell, Duration::ZERO));
    let entry = guest.ring.pop().unwrap();
    assert_eq!((entry.kind, entry.data), (PostedKind::Eoi.raw(), 0x41));
}
