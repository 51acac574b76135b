//! The device thread: posted writes, consoles, the daemon's commands, and the end of the VM.
//!
//! It sleeps in one `poll` on everything it serves. Before it does, it asks the virtual CPUs to
//! notify posted writes, and looks at their rings once more. While a guest writes, though, it looks
//! by itself every millisecond, so that a line on a console costs one wakeup and not one per byte.

mod attach;
mod sleep;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::{Duration, Instant};

use guest_proto::control::{EndCause, VmState, WorkerCommand, WorkerEvent};
use log::{debug, error, info, warn};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use super::control::Control;
use super::devices::{Devices, GuestRequest, PanicText};
use super::end::End;
use super::stall::News;
use super::virtio::Kind;
use super::virtio::console::{NAME as CONSOLE, Port};
use super::vm::{Conclusion, Vm};
use crate::console::hub::Hub;
use crate::wire::timespec;
use sleep::Sleep;

/// The time in which virtual CPUs must halt. They halt at once unless the driver is broken.
pub(super) const HOLD_TIMEOUT: Duration = Duration::from_secs(5);
/// A guest whose last words are the end of a panic, and who is silent for this long, is dead.
const PANIC_SILENCE: Duration = Duration::from_secs(3);
/// Period at which the device thread looks at the rings of a guest that writes.
const TICK: Duration = Duration::from_millis(1);
/// Time after the last write in which the device thread still looks.
const ATTENTION: Duration = Duration::from_millis(20);
/// The time that consoles have to read the last output.
const LAST_OUTPUT: Duration = Duration::from_millis(500);

/// One running VM's service.
#[derive(Debug)]
pub(super) struct Service {
    vm: Arc<Vm>,
    partition: u64,
    hub: Hub,
    /// The state and its reason, apart from the two below.
    state: VmState,
    reason: String,
    /// The state, and its reason, of a VM whose virtual CPUs are held until `Resume`.
    hold: Option<(VmState, String)>,
    /// The reason that names the late request.
    late: Option<String>,
    /// The reason for which the console's log can't be written.
    log_problem: Option<String>,
    sleep: Sleep,
    panic: PanicText,
    /// When the guest's silence means that its panic was real.
    dead_at: Option<Instant>,
    /// Until when it looks at the rings by itself.
    attentive_until: Instant,
}

impl Service {
    /// Serves `vm`, whose virtual CPUs are still held.
    pub(super) fn new(vm: Arc<Vm>, partition: u64, hub: Hub) -> Self {
        Self {
            vm,
            partition,
            hub,
            state: VmState::Starting,
            reason: "being built".to_owned(),
            hold: None,
            late: None,
            log_problem: None,
            sleep: Sleep::default(),
            panic: PanicText::default(),
            dead_at: None,
            attentive_until: Instant::now(),
        }
    }

    /// Lets the virtual CPUs go, and serves the VM until it ends. They are held, or about to be,
    /// when this returns.
    pub(super) fn run(&mut self, control: &mut Control) -> End {
        self.enter(control, VmState::Running, "started");
        self.vm.gate.open();
        loop {
            if let Some(end) = self.serve_devices() {
                return end;
            }
            while let Some(news) = self.vm.stalls.take_news() {
                if let Some(end) = self.hear(control, news) {
                    return end;
                }
            }
            for outcome in self.vm.plugs.take_outcomes() {
                self.tell_outcome(control, outcome);
            }
            self.ask_for_connections(control);
            self.watch_log(control);
            self.watch_sleep(control);
            if let Err(errno) = self.wait(control) {
                return End::failed(format_args!("poll: {}", std::io::Error::from(errno)));
            }
        }
    }

    /// Applies posted writes and hands on what comes out; the end of the VM, if it has come.
    fn serve_devices(&mut self) -> Option<End> {
        let mut device_state = self.vm.device_state();
        let wrote = device_state.drain();
        self.vm.settle(device_state);
        if self.hand_out_output() || wrote {
            self.attentive_until = Instant::now() + ATTENTION;
        }
        if let Some(conclusion) = self.vm.take_conclusion() {
            return Some(self.end_of(conclusion));
        }
        let is_dead = self.dead_at.is_some_and(|at| Instant::now() >= at);
        is_dead.then(|| End::crashed(self.panic_reason()))
    }

    /// Hands out what the guest wrote. Returns whether it wrote something.
    fn hand_out_output(&mut self) -> bool {
        let mut output = self.vm.device_state().take_output();
        let port = self.vm.port();
        output.extend(port.map(Port::take_output).unwrap_or_default());
        if output.is_empty() {
            return false;
        }
        self.vm.output_taken();
        self.panic.watch(&output);
        self.dead_at = self.panic.at_end().then(|| Instant::now() + PANIC_SILENCE);
        self.hub.output(&output);
        true
    }

    fn end_of(&self, conclusion: Conclusion) -> End {
        match conclusion {
            Conclusion::End(end) => end,
            Conclusion::Request(GuestRequest::PowerOff) => {
                End::new(EndCause::PoweredOff, "guest powered off")
            }
            Conclusion::Request(GuestRequest::Reset) => {
                let why = match self.panic.text() {
                    Some(text) => format!("guest rebooted after a kernel panic: {text}"),
                    None => "guest rebooted".to_owned(),
                };
                End::new(EndCause::Rebooted, why)
            }
            Conclusion::Request(GuestRequest::Panicked) => End::crashed(self.panic_reason()),
        }
    }

    fn panic_reason(&self) -> String {
        match self.panic.text() {
            Some(text) => format!("kernel panic: {text}"),
            None => "kernel panic".to_owned(),
        }
    }

    /// Sleeps until something happens, and serves sockets.
    fn wait(&mut self, control: &mut Control) -> Result<(), Errno> {
        let mut device_state = self.vm.device_state();
        // With no room for what users type, it stays in their sockets.
        let room = match self.vm.port() {
            Some(port) => port.room(),
            None => device_state.room_for_typing(),
        };
        let now = Instant::now();
        let last_words = room > 0 && self.hub.has_last_words();
        let timeout = if last_words {
            Some(Duration::ZERO)
        } else if now < self.attentive_until {
            Some(TICK)
        } else if device_state.prepare_sleep() && self.vm.port().is_none_or(Port::prepare_sleep) {
            let look = self.sleep.next_look(device_state.devices.is_asleep());
            let next = self.dead_at.into_iter().chain(look).min();
            next.map(|at| at.saturating_duration_since(now))
        } else {
            Some(Duration::ZERO)
        };
        drop(device_state);

        let mut fds = vec![PollFd::from_borrowed_fd(self.vm.wake_fd(), PollFlags::IN)];
        let listener_and_clients = self.hub.interests().enumerate();
        fds.extend(listener_and_clients.map(|(i, (fd, flags))| {
            let is_client = i > 0;
            let flags = if is_client && room == 0 {
                flags - PollFlags::IN
            } else {
                flags
            };
            PollFd::from_borrowed_fd(fd, flags)
        }));
        let consoles = 1..fds.len();
        fds.extend(
            control
                .interests()
                .map(|(fd, flags)| PollFd::from_borrowed_fd(fd, flags)),
        );
        let polled = match poll(&mut fds, timeout.map(timespec).as_ref()) {
            Err(Errno::INTR) => Ok(()),
            other => other.map(drop),
        };
        let is_ready = |fd: &PollFd<'_>| !fd.revents().is_empty();
        let woken = is_ready(&fds[0]);
        let consoles_ready = last_words || fds[consoles.clone()].iter().any(is_ready);
        let control_ready = fds[consoles.end..].iter().any(is_ready);
        drop(fds);
        polled?;

        self.vm.device_state().cancel_sleep();
        self.vm.port().inspect(|port| port.cancel_sleep());
        if woken {
            self.vm.clear_wake();
        }
        if consoles_ready {
            self.serve_consoles(room);
        }
        if control_ready {
            for command in control.service() {
                self.obey(control, command);
            }
        }
        Ok(())
    }

    fn serve_consoles(&mut self, room: usize) {
        let mut typed = Vec::new();
        self.hub.service(&mut typed, room);
        if typed.is_empty() {
            return;
        }
        if let Some(port) = self.vm.port() {
            port.type_in(&typed);
        } else {
            self.change_devices(|devices| devices.type_serial(&typed));
        }
    }

    fn obey(&mut self, control: &mut Control, command: WorkerCommand) {
        debug!("the daemon asks: {command:?}");
        match command {
            WorkerCommand::Start { .. } => refuse(control, "the VM was started already"),
            WorkerCommand::Report => {
                // The daemon was started anew.
                self.vm.sockets().inspect(|sockets| sockets.daemon_lost());
                control.send(&WorkerEvent::Ready {
                    partition: self.partition,
                    devices: self.vm.plugs.names(),
                });
                self.tell(control);
            }
            WorkerCommand::Pause => self.pause(control),
            WorkerCommand::Resume => self.resume(control),
            WorkerCommand::PowerButton => self.press_power_button(control),
            WorkerCommand::Devices => {
                let plugs = &self.vm.plugs;
                let (disks, nics) = (plugs.statuses(), plugs.nic_statuses());
                control.send(&WorkerEvent::Devices { disks, nics });
            }
            WorkerCommand::Resize { columns, rows } => self.resize(columns, rows),
            WorkerCommand::Attach {
                name,
                device,
                files,
            } => {
                let files = control.take_files(files);
                let attached = self.attach(&device, files);
                self.tell_attached(control, name, attached);
            }
            WorkerCommand::SetLink { name, is_up } => self.set_link(&name, is_up),
            WorkerCommand::Detach { name } => self.detach(control, name),
            WorkerCommand::Connected { request, files } => {
                let files = control.take_files(files).unwrap_or_default();
                let sockets = self.vm.sockets();
                sockets.inspect(|sockets| sockets.answer(request, files.into_iter().next()));
            }
        }
    }

    /// Tells when the console's log can't be written any more, or can be again.
    fn watch_log(&mut self, control: &mut Control) {
        if self.hub.log_problem() != self.log_problem.as_deref() {
            self.log_problem = self.hub.log_problem().map(str::to_owned);
            self.show(control);
        }
    }

    /// Tells when the guest goes to sleep or wakes up, and presses the power button for a guest that was woken to power off.
    fn watch_sleep(&mut self, control: &mut Control) {
        let now = Instant::now();
        if let Some(news) = self.sleep.look(self.is_guest_asleep(), now) {
            news.clone_into(&mut self.reason);
            self.show(control);
        }
        if self.sleep.presses(now) {
            self.push_button();
        }
    }

    /// Has the daemon make the connections that the guest wants, which this process may not.
    fn ask_for_connections(&self, control: &mut Control) {
        let Some(sockets) = self.vm.sockets() else {
            return;
        };
        for (request, port) in sockets.take_requests() {
            control.send(&WorkerEvent::Connect { request, port });
        }
        if !control.has_daemon() {
            sockets.daemon_lost();
        }
    }

    fn resize(&self, columns: u16, rows: u16) {
        let port = self.vm.port();
        if port.is_some_and(|port| port.resize(columns, rows)) {
            let mut device_state = self.vm.device_state();
            device_state
                .devices
                .pci()
                .config_changed(Kind::Console, CONSOLE);
        }
    }

    /// Plugs the cable of a network card in or out.
    fn set_link(&self, name: &str, is_up: bool) {
        if self.vm.plugs.set_link(name, is_up) {
            self.vm
                .device_state()
                .devices
                .pci()
                .config_changed(Kind::Net, name);
        }
    }

    fn detach(&mut self, control: &mut Control, name: String) {
        if self.hold.is_some() {
            let reason = "the VM is paused: resume it first".to_owned();
            return control.send(&WorkerEvent::DeviceRefused { name, reason });
        }
        let is_asked = self.change_devices(|devices| devices.ask_for_device(&name));
        if !is_asked {
            // The device may be closing at this moment.
            let reason = "the VM has no such device".to_owned();
            control.send(&WorkerEvent::DeviceRefused { name, reason });
        }
    }

    fn pause(&mut self, control: &mut Control) {
        if self.hold.is_some() {
            return self.tell(control);
        }
        if !self.vm.hold(HOLD_TIMEOUT) {
            self.vm.gate.open();
            return refuse(control, "the virtual CPUs did not come to a halt");
        }
        self.hold = Some((VmState::Paused, "paused by user".to_owned()));
        self.show(control);
    }

    /// Does what a request needs that root does not carry out. Returns the end of the VM, if it is
    /// that.
    fn hear(&mut self, control: &mut Control, news: News) -> Option<End> {
        match news {
            News::Pause(reason) => {
                if self.hold.is_none() && !self.vm.hold(HOLD_TIMEOUT) {
                    self.vm.gate.open();
                    error!("the virtual CPUs did not come to a halt");
                }
                self.hold = Some((VmState::IoStalled, reason));
            }
            News::Late(reason) => self.late = Some(reason),
            News::OnTime if self.late.is_none() => return None,
            News::OnTime => {
                self.late = None;
                "I/O goes on".clone_into(&mut self.reason);
            }
            News::Kill(reason) => return Some(End::crashed(reason)),
        }
        self.show(control);
        None
    }

    fn resume(&mut self, control: &mut Control) {
        if self.hold.take().is_none() {
            if self.is_guest_asleep() {
                return self.wake_guest(control);
            }
            return self.tell(control);
        }
        self.vm.stalls.resume();
        self.vm.gate.open();
        // A guest that sleeps sleeps on.
        if !self.is_guest_asleep() {
            "resumed by user".clone_into(&mut self.reason);
        }
        // Those who wait for the resumed VM hear of it also if a request is late.
        if let Some(late) = self.late.take() {
            self.tell(control);
            self.late = Some(late);
        }
        self.show(control);
    }

    fn press_power_button(&mut self, control: &mut Control) {
        if self.hold.is_some() {
            return refuse(control, "the VM is paused: resume it first");
        }
        if self.is_guest_asleep() {
            self.sleep.press_when_awake();
            return self.wake_guest(control);
        }
        self.push_button();
    }

    fn is_guest_asleep(&self) -> bool {
        self.vm.device_state().devices.is_asleep()
    }

    /// Changes the devices, and lets out what comes out of them.
    fn change_devices<T>(&self, change: impl FnOnce(&mut Devices) -> T) -> T {
        let mut device_state = self.vm.device_state();
        let changed = change(&mut device_state.devices);
        self.vm.settle(device_state);
        changed
    }

    fn wake_guest(&mut self, control: &mut Control) {
        self.change_devices(Devices::wake_guest);
        "guest is being woken".clone_into(&mut self.reason);
        self.show(control);
    }

    fn push_button(&self) {
        self.change_devices(Devices::press_power_button);
        info!("power button pressed");
    }

    fn enter(&mut self, control: &mut Control, state: VmState, reason: &str) {
        self.state = state;
        reason.clone_into(&mut self.reason);
        self.show(control);
    }

    /// Returns the state and its reason.
    fn shown(&self) -> (VmState, String) {
        let (state, reason) = match (&self.hold, &self.late) {
            (Some((state, reason)), _) => (*state, reason),
            (None, Some(reason)) => (VmState::IoStalled, reason),
            (None, None) => (self.state, &self.reason),
        };
        match &self.log_problem {
            None => (state, reason.clone()),
            Some(problem) => (
                state,
                format!("{reason}; the console log can't be written: {problem}"),
            ),
        }
    }

    /// Logs the state and tells it to the daemon.
    fn show(&self, control: &mut Control) {
        let (state, reason) = self.shown();
        warn!("{state}: {reason}");
        self.tell(control);
    }

    fn tell(&self, control: &mut Control) {
        let (state, reason) = self.shown();
        control.send(&WorkerEvent::State {
            state,
            reason,
            is_held: self.hold.is_some(),
        });
    }

    /// Sends the virtual CPUs' threads away and hands out the last output. False if a thread did
    /// not go.
    pub(super) fn finish(mut self) -> bool {
        let gone = self.vm.end(HOLD_TIMEOUT);
        // The console's thread hands on what the guest wrote last.
        let console = self.vm.device_state().devices.pci().take_console();
        if let Some(mut console) = console {
            console.close();
        }
        self.vm.device_state().drain();
        self.hand_out_output();
        self.flush_consoles();
        gone
    }

    fn flush_consoles(&mut self) {
        let deadline = Instant::now() + LAST_OUTPUT;
        loop {
            let mut fds: Vec<_> = self
                .hub
                .interests()
                .filter(|(_, flags)| flags.contains(PollFlags::OUT))
                .map(|(fd, _)| PollFd::from_borrowed_fd(fd, PollFlags::OUT))
                .collect();
            let left = deadline.saturating_duration_since(Instant::now());
            if fds.is_empty() || left.is_zero() {
                return;
            }
            // If it fails, the time passes.
            let _ = poll(&mut fds, Some(&timespec(left)));
            drop(fds);
            self.hub.service(&mut Vec::new(), 0);
        }
    }
}

fn refuse(control: &mut Control, why: &str) {
    control.send(&WorkerEvent::Refused {
        reason: why.to_owned(),
    });
}
