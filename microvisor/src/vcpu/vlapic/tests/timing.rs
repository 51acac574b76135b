//! The timer.

use super::*;

fn timer(lvt: u64, divide: u64) -> VLapic {
    let mut apic = x2apic(0);
    assert_eq!(apic.write_msr(0x83e, divide, 0), Ok(Effect::Timer));
    assert_eq!(apic.write_msr(0x832, lvt, 0), Ok(Effect::None));
    apic
}

#[test]
fn one_shot_counts_down_once() {
    // Divider encoding 0b1011: by 1.
    let mut apic = timer(0x40, 0b1011);
    assert_eq!(apic.write_msr(0x838, 1000, 5000), Ok(Effect::Timer));
    assert_eq!(apic.deadline(), Some(6000));
    assert_eq!(apic.read_msr(0x839, 5300), Ok(700));
    apic.expire(5999);
    assert_eq!(apic.highest_request(), None);
    apic.expire(6000);
    assert_eq!(inject(&mut apic), Some(0x40));
    assert_eq!(apic.deadline(), None);
    assert_eq!(apic.read_msr(0x839, 7000), Ok(0));
    assert_eq!(apic.read_msr(0x838, 7000), Ok(1000));
}

#[test]
fn every_divider() {
    for (encoding, divider) in [
        (0, 2),
        (1, 4),
        (2, 8),
        (3, 16),
        (8, 32),
        (9, 64),
        (10, 128),
        (11, 1),
    ] {
        let mut apic = timer(0x40, encoding);
        assert_eq!(apic.write_msr(0x838, 10, 100), Ok(Effect::Timer));
        assert_eq!(apic.deadline(), Some(100 + 10 * divider), "{encoding:#b}");
    }
}

#[test]
fn the_bus_clock_is_a_gigahertz_whatever_the_tsc() {
    for khz in [100_000_u64, 999_999, 2_495_000, 100_000_000] {
        let mut apic = VLapic::new(0, true, true, TscRate::from_khz(khz));
        let _ = apic.write_msr(0x80f, 0x1ff, 0);
        let _ = apic.write_msr(0x83e, 0b1011, 0);
        let _ = apic.write_msr(0x832, 0x40, 0);
        let _ = apic.write_msr(0x838, 1_000_000_000, 0);
        let second = apic.deadline().unwrap_or(0);
        assert!(second.abs_diff(khz * 1000) <= 1, "{khz} {second}");
        let half = apic.read_msr(0x839, khz * 500).unwrap_or(0);
        assert!(half.abs_diff(500_000_000) <= 20, "{khz} {half}");
    }
}

#[test]
fn periodic_keeps_its_phase_and_merges_what_was_missed() {
    let mut apic = timer(0x2_0040, 0b1011);
    assert_eq!(apic.write_msr(0x838, 1_000_000, 0), Ok(Effect::Timer));
    apic.expire(1_000_000);
    assert_eq!(inject(&mut apic), Some(0x40));
    assert_eq!(apic.deadline(), Some(2_000_000));
    apic.expire(5_550_000);
    assert_eq!(apic.highest_request(), Some(0x40));
    assert_eq!(apic.deadline(), Some(6_000_000));
    assert_eq!(apic.read_msr(0x839, 5_600_000), Ok(400_000));
    assert_eq!(apic.write_msr(0x838, 0, 5_600_000), Ok(Effect::Timer));
    assert_eq!(apic.deadline(), None);
}

#[test]
fn a_period_is_not_shorter_than_200_us() {
    for (count, divide, expected) in [
        (1, 0b1011, 200_000),
        (199_999, 0b1011, 200_000),
        (200_001, 0b1011, 200_001),
        (1_000, 0b1010, 200_000),
        (2_000, 0b1010, 256_000),
    ] {
        let mut apic = timer(0x2_0040, divide);
        assert_eq!(apic.write_msr(0x838, count, 0), Ok(Effect::Timer));
        assert_eq!(apic.deadline(), Some(expected), "{count}");
        apic.expire(expected);
        assert_eq!(apic.deadline(), Some(2 * expected), "{count}");
        // The count that the guest reads stays in its bounds.
        let left = apic.read_msr(0x839, expected).unwrap_or(u64::MAX);
        assert!(left <= count, "{count}: {left}");
    }
    // A timer that counts once may be shorter, until it is made periodic.
    let mut apic = timer(0x40, 0b1011);
    let _ = apic.write_msr(0x838, 100, 0);
    assert_eq!(apic.deadline(), Some(100));
    let _ = apic.write_msr(0x832, 0x2_0040, 50);
    apic.expire(100);
    assert_eq!(apic.deadline(), Some(200_100));
}

#[test]
fn tsc_deadline() {
    let mut apic = timer(0x4_0040, 0);
    assert_eq!(
        apic.write_msr(MSR_TSC_DEADLINE, 500, 100),
        Ok(Effect::Timer)
    );
    assert_eq!(apic.read_msr(MSR_TSC_DEADLINE, 100), Ok(500));
    assert_eq!(apic.deadline(), Some(500));
    // The counting registers are dead in this mode.
    assert_eq!(apic.write_msr(0x838, 7, 100), Ok(Effect::Timer));
    assert_eq!(apic.read_msr(0x838, 100), Ok(0));
    assert_eq!(apic.read_msr(0x839, 100), Ok(0));
    apic.adjust_tsc(1000);
    assert_eq!(apic.deadline(), Some(500));
    apic.expire(500);
    assert_eq!(inject(&mut apic), Some(0x40));
    assert_eq!(apic.read_msr(MSR_TSC_DEADLINE, 500), Ok(0));
    let _ = apic.write_msr(0x80b, 0, 500);
    // In the past: at once.
    assert_eq!(apic.write_msr(MSR_TSC_DEADLINE, 1, 900), Ok(Effect::None));
    assert_eq!(inject(&mut apic), Some(0x40));
    assert_eq!(
        apic.write_msr(MSR_TSC_DEADLINE, 2000, 900),
        Ok(Effect::Timer)
    );
    assert_eq!(apic.write_msr(MSR_TSC_DEADLINE, 0, 900), Ok(Effect::Timer));
    assert_eq!(apic.deadline(), None);
}

#[test]
fn tsc_deadline_is_ignored_in_other_modes_and_switching_disarms() {
    let mut apic = timer(0x40, 0b1011);
    assert_eq!(apic.write_msr(MSR_TSC_DEADLINE, 500, 0), Ok(Effect::Timer));
    assert_eq!(apic.deadline(), None);
    let _ = apic.write_msr(0x838, 100, 0);
    let _ = apic.write_msr(0x832, 0x2_0040, 50);
    assert_eq!(apic.deadline(), Some(100), "one-shot to periodic goes on");
    let _ = apic.write_msr(0x832, 0x4_0040, 50);
    assert_eq!(apic.deadline(), None);
    let _ = apic.write_msr(MSR_TSC_DEADLINE, 500, 50);
    let _ = apic.write_msr(0x832, 0x40, 60);
    assert_eq!(apic.deadline(), None);
}

#[test]
fn a_masked_timer_runs_and_is_silent() {
    let mut apic = timer(0x1_0040, 0b1011);
    let _ = apic.write_msr(0x838, 100, 0);
    assert_eq!(apic.deadline(), None);
    assert_eq!(apic.read_msr(0x839, 40), Ok(60));
    let _ = apic.write_msr(0x832, 0x40, 50);
    assert_eq!(apic.deadline(), Some(100));
    let _ = apic.write_msr(0x832, 0x1_0040, 60);
    let _ = apic.write_msr(0x832, 0x40, 150);
    assert_eq!((apic.deadline(), apic.highest_request()), (None, None));
}

#[test]
fn a_new_divider_takes_what_is_left() {
    let mut apic = timer(0x40, 0b1011);
    let _ = apic.write_msr(0x838, 1000, 0);
    let _ = apic.write_msr(0x83e, 0, 400);
    assert_eq!(apic.deadline(), Some(400 + 1200));
}

#[test]
fn a_jump_of_the_tsc_does_not_move_a_counting_timer() {
    let mut apic = timer(0x40, 0b1011);
    let _ = apic.write_msr(0x838, 1000, 0);
    apic.adjust_tsc(-300);
    assert_eq!(apic.deadline(), Some(700));
}

#[test]
fn the_end_of_time_is_far_away() {
    let mut apic = timer(0x2_0040, 0b1010);
    let _ = apic.write_msr(0x838, u64::from(u32::MAX), u64::MAX - 5);
    assert_eq!(apic.deadline(), None);
    let _ = apic.write_msr(0x838, 1, u64::MAX - 200_200);
    apic.expire(u64::MAX);
    assert_eq!(apic.highest_request(), Some(0x40));
}
