//! Lives and deaths of a VM.

use super::*;

fn record(on_reboot: &str) -> Record {
    let text = format!("name='a'\nmemory='64M'\nkernel='/k'\non_reboot='{on_reboot}'");
    Record::new(VmConfig::parse("test", &text).unwrap())
}

fn running() -> Record {
    let mut r = record("restart");
    r.starting();
    r.reported(VmState::Running, "guest runs", false, 5);
    r
}

const CLEAN: WorkerExit = WorkerExit::Status(0);

#[test]
fn a_life() {
    let mut r = record("restart");
    assert_eq!((r.state(), r.reason()), (VmState::Defined, "never started"));
    r.may_start().unwrap();
    r.starting();
    assert!(r.may_start().is_err() && r.may_delete().is_err());
    assert_eq!(
        (r.may_stop(), r.may_pause()),
        (Ok(How::Later), Ok(How::Later))
    );
    r.reported(VmState::Running, "guest runs", false, 5);
    assert_eq!(r.started_ms, Some(5));
    assert_eq!(r.may_pause(), Ok(How::Now));
    r.reported(VmState::Paused, "by user", true, 6);
    assert_eq!(
        (r.may_pause(), r.may_resume()),
        (Ok(How::Done), Ok(How::Now))
    );
    assert!(r.may_stop().unwrap_err().message.contains("vmctl resume a"));
    r.reported(VmState::Running, "resumed", false, 7);
    assert_eq!(r.started_ms, Some(5));
    assert_eq!(r.may_stop(), Ok(How::Now));
    r.stop_asked(false, true, 8);
    r.ended(EndCause::PoweredOff, "guest powered off");
    assert_eq!(r.state(), VmState::Running);
    assert_eq!(r.exited(&CLEAN, None, 20_000), Next::Over);
    assert_eq!(
        (r.state(), r.reason()),
        (VmState::Stopped, "guest powered off")
    );
    assert_eq!((r.started_ms, r.may_stop()), (None, Ok(How::Done)));
    assert_eq!(r.asked, Asked::default());
    r.may_delete().unwrap();
}

#[test]
fn deaths() {
    let mut r = running();
    r.exited(&WorkerExit::Signal(9), Some("last"), 20);
    assert_eq!(
        (r.state(), r.reason()),
        (VmState::Crashed, "worker died: signal 9")
    );
    let mut r = running();
    r.exited(&WorkerExit::Signal(6), Some("panicked"), 20);
    assert_eq!(r.reason(), "worker died: signal 6: panicked");
    let mut r = running();
    r.ended(EndCause::Crashed, "triple fault at rip 0x10");
    r.ended(EndCause::PoweredOff, "second thoughts");
    r.exited(&CLEAN, None, 20_000);
    assert_eq!(
        (r.state(), r.reason()),
        (VmState::Crashed, "triple fault at rip 0x10")
    );
    let mut r = running();
    r.exited(&CLEAN, None, 20_000);
    assert_eq!(r.reason(), "worker exited unexpectedly: status 0");
    let mut r = running();
    r.killing();
    r.reported(VmState::Running, "not so", false, 9);
    assert_eq!(r.state(), VmState::Stopping);
    r.exited(&WorkerExit::Signal(9), None, 20);
    assert_eq!((r.state(), r.reason()), (VmState::Stopped, "killed"));
    r.starting();
    r.exited(&WorkerExit::Signal(9), None, 20);
    assert_eq!(r.state(), VmState::Crashed);
}

#[test]
fn reboots() {
    let mut r = running();
    r.ended(EndCause::Rebooted, "guest rebooted");
    assert_eq!(r.exited(&CLEAN, None, 20_000), Next::Reboot);
    r.rebooting();
    assert_eq!((r.state(), r.reboots), (VmState::Starting, 1));
    r.reported(VmState::Running, "guest runs", false, 9);
    assert_eq!(r.started_ms, Some(9));
    // A reboot instead of the power-off that was asked for still stops it.
    r.stop_asked(false, true, 10);
    r.ended(EndCause::Rebooted, "guest rebooted");
    assert_eq!(r.exited(&CLEAN, None, 20_000), Next::Over);
    assert_eq!(r.state(), VmState::Stopped);
    let mut r = record("stop");
    r.starting();
    r.ended(EndCause::Rebooted, "guest rebooted");
    assert_eq!(r.exited(&CLEAN, None, 20_000), Next::Over);
    assert_eq!(
        (r.state(), r.reason()),
        (VmState::Stopped, "guest rebooted")
    );
}

#[test]
fn a_hostile_worker_can_not_blank_or_forge() {
    let mut r = running();
    r.reported(VmState::Paused, " \n\x1b ", true, 1);
    assert_eq!(r.reason(), "no reason was given");
    r.reported(VmState::IoStalled, &"\x1b[2Jx".repeat(500), true, 1);
    assert!(r.reason().len() <= MAX_REASON && !r.reason().contains('\x1b'));
    r.reported(VmState::Stopped, "hidden", false, 1);
    assert_eq!(r.state(), VmState::IoStalled);
    r.exited(&CLEAN, None, 20_000);
    assert_eq!(r.state(), VmState::Crashed);
    assert!(r.reason().contains("without an end"), "{}", r.reason());
}

#[test]
fn a_stalled_vm_that_runs_on_may_be_stopped_but_not_resumed() {
    let mut r = running();
    r.reported(VmState::IoStalled, "disk0: late", false, 1);
    assert_eq!(r.may_stop(), Ok(How::Now));
    assert_eq!(r.may_pause(), Ok(How::Now));
    assert!(r.may_resume().is_err());
    r.reported(VmState::IoStalled, "disk0: no space left", true, 1);
    assert!(r.may_stop().is_err());
    assert_eq!(r.may_resume(), Ok(How::Now));
}

/// A guest that ran for `ms` milliseconds reboots; returns what follows.
fn reboots_after(r: &mut Record, ms: u64) -> Next {
    r.reported(VmState::Running, "started", false, 1000);
    r.ended(EndCause::Rebooted, "guest rebooted");
    let next = r.exited(&CLEAN, None, 1000 + ms);
    if next == Next::Reboot && r.boots_at_ms.is_none() {
        r.rebooting();
    }
    next
}

#[test]
fn quick_reboots_wait_and_are_counted() {
    let mut r = record("restart");
    r.starting();
    for _ in 0..3 {
        assert_eq!(reboots_after(&mut r, 5), Next::Reboot);
        assert_eq!(r.boots_at_ms, None);
    }
    r.reported(VmState::Running, "started", false, 1000);
    let often = "guest rebooted 3 times in a row within 10 s of its start";
    assert_eq!(r.reason(), format!("started; {often}"));
    assert_eq!(reboots_after(&mut r, 5), Next::Reboot);
    assert_eq!(r.boots_at_ms, Some(2005));
    assert_eq!(r.state(), VmState::Starting);
    assert!(
        r.reason().ends_with("; it boots again after 1 s"),
        "{}",
        r.reason()
    );
    r.rebooting();
    assert_eq!((r.boots_at_ms, r.reboots), (None, 4));
    assert_eq!(reboots_after(&mut r, 60_000), Next::Reboot);
    assert_eq!((r.boots_at_ms, r.reason()), (None, "guest rebooted"));
}

#[test]
fn what_is_asked_while_a_guest_reboots_is_not_forgotten() {
    // While its worker goes.
    let mut r = running();
    r.ended(EndCause::Rebooted, "guest rebooted");
    r.stop_asked(false, false, 10);
    assert_eq!(r.exited(&CLEAN, None, 20), Next::Over);
    assert_eq!(
        (r.state(), r.reason()),
        (VmState::Stopped, "guest rebooted; it was asked to stop")
    );
    // While it waits to boot again.
    let waiting = || {
        let mut r = record("restart");
        r.starting();
        for _ in 0..4 {
            reboots_after(&mut r, 5);
        }
        assert!(r.boots_at_ms.is_some());
        r
    };
    let mut r = waiting();
    assert_eq!(r.may_stop(), Ok(How::Later));
    r.stop_asked(false, false, 10);
    assert_eq!((r.state(), r.boots_at_ms), (VmState::Stopped, None));
    let mut r = waiting();
    r.killed_while_it_waits();
    assert_eq!((r.state(), r.reason()), (VmState::Stopped, "killed"));
    let mut r = waiting();
    r.asked.pause = true;
    r.rebooting();
    assert!(!r.owes_pause());
    r.reported(VmState::Running, "started", false, 9);
    assert!(r.owes_pause());
    r.reported(VmState::Paused, "by user", true, 9);
    assert!(!r.owes_pause() && !r.asked.pause);
    // While its next worker builds it.
    let mut r = record("restart");
    r.starting();
    r.stop_asked(false, false, 10);
    assert!(!r.owes_press());
    r.reported(VmState::Running, "started", false, 11);
    assert!(r.owes_press());
    // Held, the guest can't see the button.
    r.reported(VmState::Paused, "by user", true, 12);
    assert!(!r.owes_press());
}

#[test]
fn what_was_asked_of_a_vm_that_has_ended_is_forgotten() {
    for (end, killed) in [
        (EndCause::Crashed, false),
        (EndCause::PoweredOff, false),
        (EndCause::PoweredOff, true),
    ] {
        let mut r = running();
        r.stop_asked(false, true, 10);
        r.asked.pause = true;
        if killed {
            r.killing();
        }
        r.ended(end, "it is over");
        assert_eq!(r.exited(&CLEAN, None, 20), Next::Over);
        assert_eq!(r.asked, Asked::default());
    }
    let mut r = running();
    r.asked.pause = true;
    r.ended(EndCause::Rebooted, "guest rebooted");
    assert_eq!(r.exited(&CLEAN, None, 20), Next::Reboot);
    r.restart_failed("there is no worker");
    assert_eq!((r.state(), r.asked), (VmState::Crashed, Asked::default()));
}

#[test]
fn a_request_that_is_not_heeded_expires_and_changes_nothing() {
    let mut r = running();
    r.stop_asked(false, true, 1000);
    r.stop_asked(false, true, 5000);
    assert_eq!(r.asked.end.map(|end| end.asked_ms), Some(1000));
    assert_eq!(r.asked.expires_ms(), Some(125_000));
    assert_eq!(r.may_pause(), Ok(How::Now));
    assert!(!r.asked.expire(124_999) && r.asked.expire(125_000));
    r.ended(EndCause::Rebooted, "guest rebooted");
    assert_eq!(r.exited(&CLEAN, None, 200_000), Next::Reboot);
}

#[test]
fn a_reboot_that_is_asked_for_boots_whatever_the_guest_does() {
    for cause in [EndCause::PoweredOff, EndCause::Rebooted] {
        for on_reboot in ["restart", "stop"] {
            let mut r = record(on_reboot);
            assert!(
                r.may_reboot()
                    .unwrap_err()
                    .message
                    .contains("vmctl start a")
            );
            r.starting();
            r.reported(VmState::Running, "guest runs", false, 5);
            assert_eq!(r.may_reboot(), Ok(How::Now));
            r.stop_asked(true, true, 6);
            r.ended(cause, "it is over");
            assert_eq!(r.exited(&CLEAN, None, 7), Next::Reboot);
            assert_eq!((r.boots_at_ms, r.asked), (None, Asked::default()));
            r.rebooting();
            assert_eq!((r.state(), r.reboots), (VmState::Starting, 1));
        }
    }
    let mut r = running();
    r.stop_asked(true, true, 6);
    r.ended(EndCause::Crashed, "triple fault");
    assert_eq!(r.exited(&CLEAN, None, 7), Next::Over);
    assert_eq!(r.state(), VmState::Crashed);
}
