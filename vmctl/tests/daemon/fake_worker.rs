//! A worker without a guest. What is typed at its console makes it end: `off`, `reboot`, `crash`;
//! anything else is echoed. The command line of its configuration makes it misbehave from the
//! start: `no-kernel` can't be built, `deaf` ignores the power button, `drowsy` ignores it twice, `no-pause` refuses to
//! pause, `loops` reboots as soon as it runs,
//! `babbles` sends no messages but bytes, `lingers` says that it has ended and stays, `hangs-up` only
//! stays, `opens-long` opens an attached disk's image until `give up` is typed.

use std::fs::File;
use std::os::fd::{AsFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};

use guest_proto::control::{
    DeviceTable, DiskFile, DiskStatus, EndCause, Role, VmState, WORKER_CONSOLE_FD,
    WORKER_CONTROL_FD, WORKER_LOG_DIR_FD, WorkerCommand, WorkerEvent,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vmctl::config::{DeviceConfig, DiskConfig, VmConfig};
use vmctl::console::hub::Hub;
use vmctl::console::log::ConsoleLog;
use vmctl::wire::{Link, LinkError};

/// Set, with the VM's name, in the process that is to be a worker.
pub(crate) const ROLE: &str = "MICROVISOR_TEST_WORKER";
/// Partition id that it reports.
pub(crate) const PARTITION: u64 = 7;
/// A worker that a failed test has left does not stay for ever.
const LIFETIME: Duration = Duration::from_secs(120);

/// Not a test: what the test program does as a worker.
#[test]
fn serve() {
    if std::env::var_os(ROLE).is_none() {
        return;
    }
    let control = UnixListener::from(inherited(WORKER_CONTROL_FD));
    let console = UnixListener::from(inherited(WORKER_CONSOLE_FD));
    let log = ConsoleLog::open(inherited(WORKER_LOG_DIR_FD), 1 << 20);
    Worker {
        hub: Hub::new(console, Some(log)).unwrap(),
        control,
        link: None,
        config: None,
        files: Vec::new(),
        state: VmState::Starting,
        reason: "being built".to_owned(),
        presses: 0,
    }
    .serve();
    std::process::exit(0);
}

#[allow(unsafe_code, reason = "only so can an inherited descriptor be taken")]
fn inherited(fd: RawFd) -> OwnedFd {
    assert!(
        File::open(format!("/proc/self/fd/{fd}")).is_ok()
            || std::fs::read_link(format!("/proc/self/fd/{fd}")).is_ok(),
        "descriptor {fd} was not passed on"
    );
    // SAFETY: the daemon passes these descriptors on, and each is taken once.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

struct Worker {
    control: UnixListener,
    hub: Hub,
    link: Option<Link>,
    config: Option<VmConfig>,
    /// Files of attached disks, with the disk's name.
    files: Vec<(String, Vec<OwnedFd>)>,
    state: VmState,
    reason: String,
    /// How often the power button was pressed.
    presses: u32,
}

impl Worker {
    fn serve(mut self) {
        let end = Instant::now() + LIFETIME;
        self.control.set_nonblocking(true).unwrap();
        while Instant::now() < end {
            self.wait();
            if let Ok((stream, _)) = self.control.accept() {
                self.link = Some(
                    Link::new(stream, Role::Worker, Role::Daemon)
                        .unwrap()
                        .taking_files(),
                );
            }
            let mut typed = Vec::new();
            self.hub.service(&mut typed, 4096);
            if self.type_in(&typed) || self.obey() {
                return;
            }
        }
    }

    fn wait(&self) {
        let mut fds = vec![PollFd::new(&self.control, PollFlags::IN)];
        if let Some(link) = &self.link {
            fds.push(PollFd::from_borrowed_fd(link.as_fd(), link.interest()));
        }
        for (fd, flags) in self.hub.interests() {
            fds.push(PollFd::from_borrowed_fd(fd, flags));
        }
        let timeout = Timespec {
            tv_sec: 1,
            tv_nsec: 0,
        };
        poll(&mut fds, Some(&timeout)).unwrap();
    }

    /// Takes what users typed; true if it was the end.
    fn type_in(&mut self, typed: &[u8]) -> bool {
        self.hub.output(typed);
        let text = String::from_utf8_lossy(typed).into_owned();
        let (cause, reason) = match text.trim() {
            "off" => (EndCause::PoweredOff, "guest powered off"),
            "reboot" => (EndCause::Rebooted, "guest rebooted"),
            "connect" => {
                let request = 1;
                self.say(&WorkerEvent::Connect { request, port: 52 });
                return false;
            }
            "give up" => {
                let name = self.disks().pop().unwrap().name;
                let reason = "its file system does not answer".to_owned();
                self.say(&WorkerEvent::DeviceRefused { name, reason });
                return false;
            }
            "crash" => (EndCause::Crashed, "triple fault at rip 0x10"),
            _ => return false,
        };
        self.finish(cause, reason)
    }

    /// Does what the daemon says; true if it was the end.
    fn obey(&mut self) -> bool {
        loop {
            let Some(link) = &mut self.link else {
                return false;
            };
            link.fill().unwrap();
            let command = match link.message::<WorkerCommand>() {
                Ok(Some(command)) => command,
                Ok(None) => return false,
                Err(LinkError::Closed) => {
                    self.link = None;
                    return false;
                }
                Err(e) => panic!("{e}"),
            };
            if self.command(command) {
                return true;
            }
        }
    }

    fn command(&mut self, command: WorkerCommand) -> bool {
        let says = |word: &str, config: &Option<VmConfig>| {
            config.as_ref().is_some_and(|c| c.cmdline().contains(word))
        };
        match command {
            WorkerCommand::Start { config } => {
                self.config = Some(VmConfig::parse("wire", &config).unwrap());
                if says("no-kernel", &self.config) {
                    return self.finish(EndCause::StartFailed, "kernel: /k: not a kernel");
                }
                self.say_ready();
                self.hub.output(b"hello from the guest\r\n");
                if says("babbles", &self.config) {
                    let link = self.link.as_ref().unwrap();
                    rustix::io::write(link, &[0xff; 64]).unwrap();
                    return false;
                }
                if says("hangs-up", &self.config) {
                    self.link = None;
                    return false;
                }
                if says("lingers", &self.config) {
                    self.finish(EndCause::PoweredOff, "guest powered off");
                    return false;
                }
                self.enter(VmState::Running, "guest runs");
                if says("loops", &self.config) {
                    return self.finish(EndCause::Rebooted, "guest rebooted");
                }
            }
            WorkerCommand::Connected { files, .. } => {
                let link = self.link.as_mut().unwrap();
                let files = link.take_files(files as usize).unwrap();
                for file in &files {
                    rustix::io::write(file, b"hello from the guest\n").unwrap();
                }
                let words = format!("connections: {}\r\n", files.len());
                self.hub.output(words.as_bytes());
            }
            WorkerCommand::Report => {
                self.say_ready();
                let reason = self.reason.clone();
                self.enter(self.state, &reason);
            }
            WorkerCommand::Pause if says("no-pause", &self.config) => {
                let reason = "this guest can't be held".to_owned();
                self.say(&WorkerEvent::Refused { reason });
            }
            WorkerCommand::Pause => self.enter(VmState::Paused, "held by the user"),
            WorkerCommand::Resume => {
                self.enter(VmState::Running, "guest runs");
                if says("still-full", &self.config) {
                    self.enter(VmState::IoStalled, "disk0: no space left");
                }
            }
            WorkerCommand::Devices if says("no-disks", &self.config) => {}
            WorkerCommand::Devices => {
                let file = |path: &str, format: &str| DiskFile {
                    path: path.to_owned(),
                    format: format.to_owned(),
                };
                let disk = DiskStatus {
                    name: self.disks()[0].name.clone(),
                    files: vec![file("/top.qcow2", "qcow2"), file("/base.raw", "raw")],
                    size: 1 << 30,
                    read: 5 << 10,
                    written: 6 << 10,
                    in_flight: 7,
                    errors: 8,
                };
                self.say(&WorkerEvent::Devices {
                    disks: vec![disk],
                    nics: Vec::new(),
                });
            }
            WorkerCommand::Resize { columns, rows } => {
                let size = format!("{columns} by {rows}\r\n");
                self.hub.output(size.as_bytes());
            }
            WorkerCommand::Attach {
                name,
                device,
                files,
            } => self.attach(name, &device, files),
            WorkerCommand::SetLink { name, is_up } => {
                self.hub.output(format!("{name} {is_up}\r\n").as_bytes());
            }
            WorkerCommand::Detach { name } if says("keeps", &self.config) => {
                self.hub.output(name.as_bytes());
            }
            WorkerCommand::Detach { name } => self.detach(name),
            WorkerCommand::PowerButton => {
                self.presses += 1;
                let is_asleep = says("drowsy", &self.config) && self.presses < 3;
                if !says("deaf", &self.config) && !is_asleep {
                    return self.finish(EndCause::PoweredOff, "guest powered off");
                }
            }
        }
        false
    }

    fn disks(&mut self) -> &mut Vec<DiskConfig> {
        &mut self.config.as_mut().unwrap().disks
    }

    fn say_ready(&mut self) {
        let config = self.config.as_ref().unwrap();
        let devices = config.device_names().map(str::to_owned).collect();
        self.say(&WorkerEvent::Ready {
            partition: PARTITION,
            devices,
        });
    }

    /// Attaches a disk whose image says "good", and no other.
    fn attach(&mut self, name: String, device: &DeviceTable, files: u32) {
        let link = self.link.as_mut().unwrap();
        let files = link.take_files(files as usize).unwrap();
        let DeviceConfig::Disk(disk) = DeviceConfig::parse(device).unwrap() else {
            panic!("{device:?}");
        };
        assert_eq!(disk.name, name);
        let mut start = [0; 4];
        let image = File::from(files[0].try_clone().unwrap());
        image.read_exact_at(&mut start, 0).unwrap();
        if self
            .config
            .as_ref()
            .unwrap()
            .cmdline()
            .contains("opens-long")
        {
            return self.disks().push(disk);
        }
        if start != *b"good" {
            let reason = "the image is not good".to_owned();
            return self.say(&WorkerEvent::DeviceRefused { name, reason });
        }
        self.disks().push(disk);
        self.files.push((name.clone(), files));
        self.say(&WorkerEvent::Attached { name });
    }

    fn detach(&mut self, name: String) {
        self.disks().retain(|disk| disk.name != name);
        self.files.retain(|files| files.0 != name);
        self.say(&WorkerEvent::Detached { name });
    }

    fn enter(&mut self, state: VmState, reason: &str) {
        self.state = state;
        self.reason = reason.to_owned();
        let reason = self.reason.clone();
        let is_held = matches!(state, VmState::Paused | VmState::IoStalled);
        self.say(&WorkerEvent::State {
            state,
            reason,
            is_held,
        });
    }

    fn finish(&mut self, cause: EndCause, reason: &str) -> bool {
        let reason = reason.to_owned();
        self.say(&WorkerEvent::Ended { cause, reason });
        true
    }

    fn say(&mut self, event: &WorkerEvent) {
        if let Some(link) = &mut self.link {
            link.send(event).unwrap();
        }
    }
}
