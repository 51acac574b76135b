//! From a CLI's request to its answer.

use guest_proto::control::{
    DaemonInfo, Failure, FailureKind, Request, Response, Until, VmState, VmStatus,
};

use super::vms::{Change, Ticket, Vms};

/// The answer to a request, or its way to the answer.
#[derive(Debug)]
pub(super) enum Answer {
    /// This answer, at once.
    Now(Box<Response>),
    /// An answer when the VM meets the condition.
    When(String, Until),
    /// An answer when the VM's worker has told its devices.
    Info(String),
    /// An answer when the disk of the VM was attached or detached.
    Device(String, String),
    /// The answer to this ticket.
    Later(Ticket),
    /// An answer per change.
    Events,
}

pub(super) fn answer(vms: &mut Vms, request: Request) -> Answer {
    let result = match request {
        Request::Ping => Ok(Response::Daemon(DaemonInfo {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            state_dir: vms.store.root().display().to_string(),
            runtime_dir: vms.runtime_dir().display().to_string(),
        })),
        Request::Define { config } => return later(vms.define(&config)),
        Request::Start { name } => return later(vms.start(&name)),
        Request::Stop { name, starts_again } => vms.stop(&name, starts_again).map(Response::Status),
        Request::Withdraw { name } => vms.withdraw(&name).map(Response::Status),
        Request::Kill { name } => vms.kill(&name).map(Response::Status),
        Request::Pause { name } => vms.pause(&name).map(Response::Status),
        Request::Resume { name } => vms.resume(&name).map(Response::Status),
        Request::Delete { name } => return later(vms.delete(&name)),
        Request::List => Ok(Response::List(vms.list())),
        Request::Info { name } if vms.ask_devices(&name) => return Answer::Info(name),
        Request::Info { name } => Ok(info(vms, &name)),
        Request::Wait { name, until } => match vms.status(&name) {
            Err(e) => Err(e),
            // A VM that was never started has no end to wait for.
            Ok(status) if until == Until::Ended && status.state == VmState::Defined => {
                Err(Failure {
                    kind: FailureKind::State,
                    message: format!("{name} was never started; \"vmctl start {name}\" starts it"),
                })
            }
            Ok(status) if holds(until, &status) => Ok(Response::Status(status)),
            Ok(_) => return Answer::When(name, until),
        },
        Request::Events => return Answer::Events,
        Request::Attach { name, device } => match vms.attach(&name, &device) {
            Ok(device) => return Answer::Device(name, device),
            Err(e) => Err(e),
        },
        Request::Resize {
            name,
            columns,
            rows,
        } => {
            let resized = vms.resize(&name, columns, rows);
            resized.map(|()| Response::Done)
        }
        Request::Rename { name, to } => return later(vms.rename(&name, &to)),
        Request::Redefine { name, config } => return later(vms.replace(&name, &config)),
        Request::Set { name, setting } => return later(vms.set(&name, &setting)),
        Request::Detach { name, device } => match vms.detach(&name, &device) {
            Ok(()) => return Answer::Device(name, device),
            Err(e) => Err(e),
        },
    };
    Answer::Now(Box::new(result.unwrap_or_else(Response::Error)))
}

/// Returns the answer to a request that may have begun: its ticket, or the failure.
fn later(begun: Result<Ticket, Failure>) -> Answer {
    match begun {
        Ok(ticket) => Answer::Later(ticket),
        Err(e) => Answer::Now(Box::new(Response::Error(e))),
    }
}

/// Returns the answer to a request for all facts about a VM.
pub(super) fn info(vms: &mut Vms, name: &str) -> Response {
    vms.info(name)
        .map_or_else(Response::Error, |info| Response::Info(Box::new(info)))
}

/// The answer to someone who waits, if a change makes one.
pub(super) fn met(until: Until, change: &Change) -> Option<Response> {
    let Some(status) = &change.status else {
        return Some(Response::Error(not_found(&change.name)));
    };
    if holds(until, status) {
        return Some(Response::Status(status.clone()));
    }
    if let (Until::State(_), Some(reason)) = (until, &change.refused) {
        return Some(Response::Error(Failure {
            kind: FailureKind::State,
            message: format!("{}: {reason}", change.name),
        }));
    }
    None
}

/// The answer to someone who waits for a device, if a change makes one.
pub(super) fn device_met(device: &str, change: &Change) -> Option<Response> {
    if change.status.is_none() {
        return Some(Response::Error(not_found(&change.name)));
    }
    let told = change.device.as_ref().filter(|told| told.name == device)?;
    Some(match &told.result {
        Ok(()) => Response::Device(device.to_owned()),
        Err(e) => Response::Error(e.clone()),
    })
}

fn holds(until: Until, status: &VmStatus) -> bool {
    match until {
        Until::Started => status.state != VmState::Starting,
        Until::State(state) => status.state == state || !status.state.is_alive(),
        Until::Ended => !status.state.is_alive(),
        Until::Rebooted => status.reboot_asked_ms.is_none() && status.state != VmState::Starting,
    }
}

pub(super) fn not_found(name: &str) -> Failure {
    if name == "root" {
        return Failure {
            kind: FailureKind::State,
            message: "root is VM 0, this system itself: \"vmctl list\" and \"vmctl top\" show it"
                .to_owned(),
        };
    }
    Failure {
        kind: FailureKind::NotFound,
        message: format!(
            "{}: no such VM; \"vmctl list\" shows all",
            name.escape_default()
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(state: VmState) -> VmStatus {
        VmStatus {
            id: None,
            name: "demo".to_owned(),
            state,
            reason: "a reason".to_owned(),
            vcpus: 1,
            memory: 1 << 20,
            cpu_percent: None,
            uptime_ms: None,
            stop_asked_ms: None,
            reboot_asked_ms: None,
            pause_asked: false,
        }
    }

    fn change(status: Option<&VmStatus>, refused: Option<&str>) -> Change {
        Change {
            name: "demo".to_owned(),
            status: status.cloned(),
            news: true,
            refused: refused.map(str::to_owned),
            has_devices: false,
            device: None,
        }
    }

    #[test]
    fn an_end_ends_every_wait() {
        for state in VmState::ALL {
            let over = !state.is_alive();
            let status = status(state);
            assert_eq!(holds(Until::Ended, &status), over);
            assert_eq!(holds(Until::Started, &status), state != VmState::Starting);
            let paused = Until::State(VmState::Paused);
            assert_eq!(holds(paused, &status), over || state == VmState::Paused);
        }
    }

    #[test]
    fn who_waits_is_told_of_refusals_and_deletion() {
        let running = status(VmState::Running);
        let paused = Until::State(VmState::Paused);
        assert_eq!(met(paused, &change(Some(&running), None)), None);
        let answer = met(paused, &change(Some(&running), Some("no")));
        assert!(
            matches!(&answer, Some(Response::Error(f)) if f.message == "demo: no"),
            "{answer:?}"
        );
        // Whoever waits for the end did not ask for what was refused.
        let refused = change(Some(&running), Some("no"));
        assert_eq!(met(Until::Ended, &refused), None);
        let answer = met(Until::Ended, &change(None, None));
        assert!(
            matches!(&answer, Some(Response::Error(f)) if f.kind == FailureKind::NotFound),
            "{answer:?}"
        );
    }
}
