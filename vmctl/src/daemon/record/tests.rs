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
    assert!(r.may_start().is_err() && r.may_delete().is_err() && r.may_stop().is_err());
    r.reported(VmState::Running, "guest runs", false, 5);
    assert_eq!(r.started_ms, Some(5));
    assert_eq!(r.may_pause(), Ok(true));
    r.reported(VmState::Paused, "by user", true, 6);
    assert_eq!((r.may_pause(), r.may_resume()), (Ok(false), Ok(true)));
    assert!(r.may_stop().unwrap_err().message.contains("vmctl resume a"));
    r.reported(VmState::Running, "resumed", false, 7);
    assert_eq!(r.started_ms, Some(5));
    assert_eq!(r.may_stop(), Ok(true));
    r.stopping();
    r.ended(EndCause::PoweredOff, "guest powered off");
    assert_eq!(r.state(), VmState::Stopping);
    assert_eq!(r.exited(&CLEAN, None), Next::Over);
    assert_eq!(
        (r.state(), r.reason()),
        (VmState::Stopped, "guest powered off")
    );
    assert_eq!((r.started_ms, r.may_stop()), (None, Ok(false)));
    r.may_delete().unwrap();
}

#[test]
fn deaths() {
    let mut r = running();
    r.exited(&WorkerExit::Signal(9), Some("last"));
    assert_eq!(
        (r.state(), r.reason()),
        (VmState::Crashed, "worker died: signal 9")
    );
    let mut r = running();
    r.exited(&WorkerExit::Signal(6), Some("panicked"));
    assert_eq!(r.reason(), "worker died: signal 6: panicked");
    let mut r = running();
    r.ended(EndCause::Crashed, "triple fault at rip 0x10");
    r.ended(EndCause::PoweredOff, "second thoughts");
    r.exited(&CLEAN, None);
    assert_eq!(
        (r.state(), r.reason()),
        (VmState::Crashed, "triple fault at rip 0x10")
    );
    let mut r = running();
    r.exited(&CLEAN, None);
    assert_eq!(r.reason(), "worker exited unexpectedly: status 0");
    let mut r = running();
    r.killing();
    r.reported(VmState::Running, "not so", false, 9);
    assert_eq!(r.state(), VmState::Stopping);
    r.exited(&WorkerExit::Signal(9), None);
    assert_eq!((r.state(), r.reason()), (VmState::Stopped, "killed"));
    r.starting();
    r.exited(&WorkerExit::Signal(9), None);
    assert_eq!(r.state(), VmState::Crashed);
}

#[test]
fn reboots() {
    let mut r = running();
    r.ended(EndCause::Rebooted, "guest rebooted");
    assert_eq!(r.exited(&CLEAN, None), Next::Reboot);
    r.rebooting();
    assert_eq!((r.state(), r.reboots), (VmState::Starting, 1));
    r.reported(VmState::Running, "guest runs", false, 9);
    assert_eq!(r.started_ms, Some(9));
    // A reboot instead of the power-off that was asked for still stops it.
    r.stopping();
    r.ended(EndCause::Rebooted, "guest rebooted");
    assert_eq!(r.exited(&CLEAN, None), Next::Over);
    assert_eq!(r.state(), VmState::Stopped);
    let mut r = record("stop");
    r.starting();
    r.ended(EndCause::Rebooted, "guest rebooted");
    assert_eq!(r.exited(&CLEAN, None), Next::Over);
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
    r.exited(&CLEAN, None);
    assert_eq!(r.state(), VmState::Crashed);
    assert!(r.reason().contains("without an end"), "{}", r.reason());
}

#[test]
fn a_stalled_vm_that_runs_on_may_be_stopped_but_not_resumed() {
    let mut r = running();
    r.reported(VmState::IoStalled, "disk0: late", false, 1);
    assert_eq!(r.may_stop(), Ok(true));
    assert_eq!(r.may_pause(), Ok(true));
    assert!(r.may_resume().is_err());
    r.reported(VmState::IoStalled, "disk0: no space left", true, 1);
    assert!(r.may_stop().is_err());
    assert_eq!(r.may_resume(), Ok(true));
}
