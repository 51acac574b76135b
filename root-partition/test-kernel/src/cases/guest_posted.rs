//! Posted writes: doorbells as a guest rings them.

use guest_proto::hypercall::{DoorbellFlags, Hypercall};
use guest_proto::limits::RING_ENTRIES;
use guest_proto::ring::{Consumer, Ring};
use guest_proto::vcpu_page::{PostedKind, PostedWrite};

use crate::guest::code::code;
use crate::guest::{Exit, Guest};
use crate::hv;
use crate::report::{Outcome, cases, ensure, equal};

cases![
    a_write_is_posted_and_the_guest_goes_on,
    a_sleeping_consumer_is_notified_once,
    a_full_ring_makes_an_intercept,
    a_signal_only_doorbell_posts_nothing,
    reads_and_writes_across_the_end_are_intercepts,
    a_removed_doorbell_rings_no_more,
];

const TAG: u16 = 7;
const PORT: u64 = 0x600;
const LENGTH: u64 = 4;

fn add(guest: &Guest, flags: DoorbellFlags) -> Outcome {
    let args = [guest.id, PORT, LENGTH, TAG.into(), flags.bits()];
    hv::call(Hypercall::DoorbellAdd, args).ok().map(|_| ())
}

fn with_doorbell(code: &[u8]) -> Outcome<Guest> {
    let guest = Guest::new(code)?;
    add(&guest, DoorbellFlags::empty())?;
    Ok(guest)
}

fn ring(guest: &Guest) -> Ring<'static, { RING_ENTRIES as usize }> {
    Ring::from(guest.shared(0))
}

fn posted(size: u8, offset: u32, data: u64) -> Option<PostedWrite> {
    Some(PostedWrite {
        kind: PostedKind::Port.raw(),
        size,
        tag: TAG,
        offset,
        data,
    })
}

fn a_write_is_posted_and_the_guest_goes_on() -> Outcome {
    let guest = with_doorbell(code![
        "mov eax, 0x12345678",
        "mov edx, 0x600",
        "out dx, al",
        "add edx, 2",
        "out dx, ax",
        "mov edx, 0x600",
        "out dx, eax",
        "hlt",
    ])?;
    guest.halt(0)?;
    let ring = ring(&guest);
    let mut consumer = Consumer::attach(ring);
    equal("a byte", consumer.pop(ring), posted(1, 0, 0x78))?;
    equal("two", consumer.pop(ring), posted(2, 2, 0x5678))?;
    equal("four", consumer.pop(ring), posted(4, 0, 0x1234_5678))?;
    equal("no more", consumer.pop(ring), None)?;
    guest.end()
}

/// Rings the doorbell ECX times with AL counting down.
fn ringing(times: u64) -> Outcome<Guest> {
    let guest = with_doorbell(code![
        "mov edx, 0x600",
        "2: mov eax, ecx",
        "out dx, eax",
        "dec ecx",
        "jnz 2b",
        "hlt",
    ])?;
    let mut state = guest.state(0)?;
    state.gpr[1] = times;
    guest.set_state(0, &state)?;
    Ok(guest)
}

fn a_sleeping_consumer_is_notified_once() -> Outcome {
    let guest = ringing(3)?;
    let ring = ring(&guest);
    let mut consumer = Consumer::attach(ring);
    ensure("the ring is empty", consumer.prepare_sleep(ring))?;
    match guest.run(0)? {
        Exit::Notify(TAG) => {}
        other => return guest.not(other, "Notify"),
    }
    equal("the entry is there", consumer.pop(ring), posted(4, 0, 3))?;
    // It is awake now, so the rest comes without.
    guest.halt(0)?;
    equal("the second", consumer.pop(ring), posted(4, 0, 2))?;
    equal("the third", consumer.pop(ring), posted(4, 0, 1))?;
    ensure("the ring is empty", consumer.prepare_sleep(ring))?;
    guest.end()
}

fn a_full_ring_makes_an_intercept() -> Outcome {
    const ENTRIES: u64 = RING_ENTRIES;
    let guest = ringing(ENTRIES + 2)?;
    let intercept = guest.port()?;
    equal(
        "the one too many",
        (intercept.address, intercept.data),
        (PORT, 2),
    )?;
    let ring = ring(&guest);
    let mut consumer = Consumer::attach(ring);
    for data in (3..ENTRIES + 3).rev() {
        equal("in order", consumer.pop(ring), posted(4, 0, data))?;
    }
    equal("no more", consumer.pop(ring), None)?;
    guest.halt(0)?;
    equal("the last", consumer.pop(ring), posted(4, 0, 1))?;
    guest.end()
}

fn a_signal_only_doorbell_posts_nothing() -> Outcome {
    let guest = Guest::new(code!["mov edx, 0x600", "out dx, ax", "out dx, ax", "hlt"])?;
    add(&guest, DoorbellFlags::SIGNAL_ONLY)?;
    for _ in 0..2 {
        match guest.run(0)? {
            Exit::Notify(TAG) => {}
            other => return guest.not(other, "Notify"),
        }
    }
    guest.halt(0)?;
    let ring = ring(&guest);
    equal("the ring", Consumer::attach(ring).pop(ring), None)?;
    guest.end()
}

fn reads_and_writes_across_the_end_are_intercepts() -> Outcome {
    let guest = with_doorbell(code![
        "mov edx, 0x600",
        "in al, dx",
        "mov edx, 0x602",
        "out dx, eax",
        "mov edx, 0x5ff",
        "out dx, ax",
        "hlt",
    ])?;
    for (address, is_write) in [(0x600, 0), (0x602, 1), (0x5ff, 1)] {
        let intercept = guest.port()?;
        let got = (intercept.address, intercept.is_write);
        equal("port, write", got, (address, is_write))?;
        if is_write == 0 {
            guest.reply(0, 0);
        }
    }
    guest.halt(0)?;
    let ring = ring(&guest);
    equal("the ring", Consumer::attach(ring).pop(ring), None)?;
    guest.end()
}

fn a_removed_doorbell_rings_no_more() -> Outcome {
    let guest = ringing(2)?;
    hv::call(Hypercall::DoorbellRemove, [guest.id, TAG.into()]).ok()?;
    equal("data", guest.port()?.data, 2)?;
    add(&guest, DoorbellFlags::empty())?;
    guest.halt(0)?;
    let ring = ring(&guest);
    let entry = Consumer::attach(ring).pop(ring);
    equal("the second", entry, posted(4, 0, 1))?;
    guest.end()
}
