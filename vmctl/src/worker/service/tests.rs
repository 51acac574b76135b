//! The device thread between a daemon, a console and a guest that are all played by the test.

use super::*;
use crate::driver::Partition;
use crate::driver::page;
use crate::wire::{Link, LinkError};
use crate::worker::devices::{SERIAL_TAG, port};
use crate::worker::event::Event;
use crate::worker::memory::Ram;
use guest_proto::control::Role;
use guest_proto::ring::Push;
use guest_proto::vcpu_page::{PostedKind, PostedWrite};
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;

const TIMEOUT: Duration = Duration::from_secs(20);

/// A VM with one virtual CPU, whose thread counts its turns.
struct Guest {
    dir: tempfile::TempDir,
    vm: Arc<Vm>,
    post: Box<dyn FnMut(PostedWrite) -> Push>,
    turns: Arc<AtomicU64>,
    vcpu: JoinHandle<()>,
    service: JoinHandle<End>,
}

impl Guest {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let listener = |name| UnixListener::bind(dir.path().join(name)).unwrap();
        let (ring, post) = page::tests::ring();
        let partition = Partition::without_driver(File::open(dir.path()).unwrap().into());
        let ram = Ram::new(2 << 20).unwrap();
        let vm = Arc::new(Vm::new(
            partition,
            ram,
            vec![ring],
            Arc::new(Event::new().unwrap()),
        ));
        let turns = Arc::new(AtomicU64::new(0));
        let vcpu = {
            let (vm, turns) = (Arc::clone(&vm), Arc::clone(&turns));
            std::thread::spawn(move || {
                while vm.gate.pass() {
                    turns.fetch_add(1, Ordering::Relaxed);
                    std::thread::yield_now();
                }
            })
        };
        let hub = Hub::new(listener("console"), None).unwrap();
        let mut control = Control::new(listener("control")).unwrap();
        let mut service = Service::new(Arc::clone(&vm), 7, hub);
        let service = std::thread::spawn(move || {
            let end = service.run(&mut control);
            assert!(service.finish());
            end
        });
        Self {
            dir,
            vm,
            post: Box::new(post),
            turns,
            vcpu,
            service,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn console(&self) -> UnixStream {
        let stream = UnixStream::connect(self.path("console")).unwrap();
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        stream
    }

    /// The guest writes to its serial port, as the microvisor and the driver hand it on.
    fn print(&mut self, text: &str) {
        for byte in text.bytes() {
            let entry = PostedWrite {
                kind: PostedKind::Port.raw(),
                size: 1,
                tag: SERIAL_TAG,
                offset: 0,
                data: u64::from(byte),
            };
            loop {
                match (self.post)(entry) {
                    Push::Posted => break,
                    Push::PostedWake => {
                        rustix::io::write(self.vm.wake_fd(), &1u64.to_ne_bytes()).unwrap();
                        break;
                    }
                    Push::Full => std::thread::yield_now(),
                }
            }
        }
    }

    /// The guest writes to a port and waits for it, as an intercept does.
    fn write_port(&self, port: u16, value: u64) {
        let mut device_state = self.vm.device_state();
        device_state.drain();
        device_state.devices.write_port(port, 1, value);
        self.vm.settle(device_state);
    }

    /// Whether the power button was pressed.
    fn is_pressed(&self) -> bool {
        self.takes_event(1, 1)
    }

    /// Whether it was woken.
    fn is_woken(&self) -> bool {
        self.takes_event(0, 1 << 5)
    }

    /// Takes an event, as a kernel's driver does. Returns whether it was there.
    fn takes_event(&self, byte: u16, bit: u64) -> bool {
        let status = port::PM1_EVENT + byte;
        self.write_port(status + 2, bit);
        let is_there = self.read_port(status) & bit != 0;
        if is_there {
            self.write_port(status, bit);
        }
        is_there
    }

    fn power_off(&self) {
        self.write_port(port::PM1_CONTROL_LAST, 0x34);
    }

    fn read_port(&self, port: u16) -> u64 {
        let mut device_state = self.vm.device_state();
        let value = device_state.devices.read_port(port, 1);
        self.vm.settle(device_state);
        value
    }

    fn end(self) -> End {
        let end = self.service.join().unwrap();
        self.vcpu.join().unwrap();
        end
    }
}

struct Daemon(Link);

impl Daemon {
    fn connect(path: &Path) -> Self {
        let stream = UnixStream::connect(path).unwrap();
        Self(Link::new(stream, Role::Daemon, Role::Worker).unwrap())
    }

    /// Connects as one that has not started the worker, and hears how the VM is.
    fn introduced(guest: &Guest) -> Self {
        let mut daemon = Self::connect(&guest.path("control"));
        let ready = WorkerEvent::Ready {
            partition: 7,
            devices: Vec::new(),
        };
        assert_eq!(daemon.ask(&WorkerCommand::Report), ready);
        let running = state(VmState::Running, "started");
        assert_eq!(daemon.hear().unwrap(), running);
        daemon
    }

    fn ask(&mut self, command: &WorkerCommand) -> WorkerEvent {
        self.0.send(command).unwrap();
        self.hear().unwrap()
    }

    fn hear(&mut self) -> Result<WorkerEvent, LinkError> {
        self.0.receive(Some(Instant::now() + TIMEOUT))
    }
}

fn state(state: VmState, reason: &str) -> WorkerEvent {
    WorkerEvent::State {
        state,
        reason: reason.to_owned(),
        is_held: matches!(state, VmState::Paused),
    }
}

fn until(mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + TIMEOUT;
    while !condition() {
        assert!(Instant::now() < deadline, "it never came true");
        std::thread::yield_now();
    }
}

#[test]
fn all_that_is_posted_comes_out_and_the_guest_powers_off() {
    let mut guest = Guest::start();
    let mut console = guest.console();
    let text = "0123456789abcdef\n".repeat(1000);
    guest.print(&text);
    let mut seen = vec![0; text.len()];
    console.read_exact(&mut seen).unwrap();
    assert_eq!(seen, text.as_bytes());
    // What is in the ring when the guest powers off comes out too.
    guest.print("bye");
    guest.power_off();
    let end = guest.end();
    assert_eq!(end, End::new(EndCause::PoweredOff, "guest powered off"));
    let mut rest = String::new();
    console.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "bye");
}

#[test]
fn typing_waits_for_room_and_nothing_is_lost() {
    let guest = Guest::start();
    let text = "a line that was typed\n".repeat(40);
    let mut console = guest.console();
    console.write_all(text.as_bytes()).unwrap();
    let mut read = String::new();
    until(|| {
        if guest.read_port(port::SERIAL + 5) & 1 != 0 {
            read.push(char::from(guest.read_port(port::SERIAL) as u8));
        }
        read.len() == text.len()
    });
    assert_eq!(read, text);
    guest.write_port(port::RESET, 1);
    assert_eq!(guest.end(), End::new(EndCause::Rebooted, "guest rebooted"));
}

#[test]
fn a_paused_vm_stands_still_and_goes_on() {
    let guest = Guest::start();
    let mut daemon = Daemon::connect(&guest.path("control"));
    let turns = || guest.turns.load(Ordering::Relaxed);
    until(|| turns() > 0);
    let paused = state(VmState::Paused, "paused by user");
    assert_eq!(daemon.ask(&WorkerCommand::Pause), paused);
    let held = turns();
    assert_eq!(daemon.ask(&WorkerCommand::Pause), paused);
    assert!(matches!(
        daemon.ask(&WorkerCommand::PowerButton),
        WorkerEvent::Refused { .. }
    ));
    assert_eq!(turns(), held);
    assert_eq!(
        daemon.ask(&WorkerCommand::Resume),
        state(VmState::Running, "resumed by user")
    );
    until(|| turns() > held);
    guest.power_off();
    guest.end();
}

#[test]
fn a_late_request_is_shown_and_the_vm_runs_on() {
    let guest = Guest::start();
    let mut daemon = Daemon::introduced(&guest);
    let turns = || guest.turns.load(Ordering::Relaxed);
    let stalls = &guest.vm.stalls;
    let late = state(VmState::IoStalled, "disk0: late");
    stalls.late("disk0: late".to_owned(), true);
    assert_eq!(daemon.hear().unwrap(), late);
    let before = turns();
    until(|| turns() > before);
    // The user may hold the VM meanwhile.
    let paused = state(VmState::Paused, "paused by user");
    assert_eq!(daemon.ask(&WorkerCommand::Pause), paused);
    let resumed = state(VmState::Running, "resumed by user");
    assert_eq!(daemon.ask(&WorkerCommand::Resume), resumed);
    assert_eq!(daemon.hear().unwrap(), late);
    stalls.ended();
    assert_eq!(
        daemon.hear().unwrap(),
        state(VmState::Running, "I/O goes on")
    );

    stalls.pause("disk0: late".to_owned());
    let held = WorkerEvent::State {
        state: VmState::IoStalled,
        reason: "disk0: late".to_owned(),
        is_held: true,
    };
    assert_eq!(daemon.hear().unwrap(), held);
    let before = turns();
    assert_eq!(daemon.ask(&WorkerCommand::Resume), resumed);
    until(|| turns() > before);
    guest.vm.stalls.kill("disk0: late".to_owned());
    assert_eq!(guest.end(), End::crashed("disk0: late"));
}

#[test]
fn the_power_button_is_pressed_and_changes_no_state() {
    let guest = Guest::start();
    let mut daemon = Daemon::connect(&guest.path("control"));
    daemon.0.send(&WorkerCommand::PowerButton).unwrap();
    until(|| guest.is_pressed());
    drop(daemon);
    let _daemon = Daemon::introduced(&guest);
    guest.power_off();
    assert_eq!(guest.end().cause, EndCause::PoweredOff);
}

#[test]
fn a_guest_that_sleeps_is_shown_and_woken() {
    let guest = Guest::start();
    let mut daemon = Daemon::introduced(&guest);
    let [asleep, woken, awake] = ["guest asleep", "guest is being woken", "guest woke up"]
        .map(|reason| state(VmState::Running, reason));
    let running = state(VmState::Running, "started");
    // A guest that is awake does not see a button when it is resumed.
    assert_eq!(daemon.ask(&WorkerCommand::Resume), running);
    assert!(!guest.is_pressed());
    guest.write_port(port::SLEEP, 1);
    assert_eq!(daemon.hear().unwrap(), asleep);
    assert_eq!(daemon.ask(&WorkerCommand::Resume), woken);
    assert!(guest.is_woken() && !guest.is_pressed());
    guest.write_port(port::SLEEP, 0);
    assert_eq!(daemon.hear().unwrap(), awake);
    std::thread::sleep(Duration::from_millis(100));
    assert!(!guest.is_pressed(), "it was only woken");
    // A guest that is to power off sees the button when it is awake.
    guest.write_port(port::SLEEP, 1);
    assert_eq!(daemon.hear().unwrap(), asleep);
    let paused = state(VmState::Paused, "paused by user");
    assert_eq!(daemon.ask(&WorkerCommand::Pause), paused);
    assert_eq!(daemon.ask(&WorkerCommand::Resume), asleep);
    assert!(!guest.is_woken(), "it sleeps on");
    assert_eq!(daemon.ask(&WorkerCommand::PowerButton), woken);
    assert!(guest.is_woken() && !guest.is_pressed());
    guest.write_port(port::SLEEP, 0);
    assert_eq!(daemon.hear().unwrap(), awake);
    until(|| guest.is_pressed());
    guest.power_off();
    assert_eq!(guest.end().cause, EndCause::PoweredOff);
}

#[test]
fn a_panic_has_its_text_from_the_console() {
    let mut guest = Guest::start();
    guest.print("[ 1.0] Kernel panic - not syncing: VFS: no root\r\n");
    guest.write_port(port::PVPANIC, 1);
    assert_eq!(guest.end(), End::crashed("kernel panic: VFS: no root"));

    // Without pvpanic: silence after the last line.
    let mut guest = Guest::start();
    guest.print("Kernel panic - not syncing: A\r\n---[ end Kernel panic - not syncing: A ]---\r\n");
    assert_eq!(guest.end(), End::crashed("kernel panic: A"));

    let mut guest = Guest::start();
    guest.print("Kernel panic - not syncing: B\r\nRebooting in 1 seconds..\r\n");
    guest.write_port(port::RESET, 1);
    let end = guest.end();
    assert_eq!(end.cause, EndCause::Rebooted);
    assert_eq!(end.reason, "guest rebooted after a kernel panic: B");
}

#[test]
fn the_first_conclusion_counts() {
    let dir = tempfile::tempdir().unwrap();
    let partition = Partition::without_driver(File::open(dir.path()).unwrap().into());
    let ram = Ram::new(2 << 20).unwrap();
    let vm = Vm::new(partition, ram, Vec::new(), Arc::new(Event::new().unwrap()));
    let first = Conclusion::End(End::crashed("triple fault at rip 0x1"));
    vm.conclude(first.clone());
    vm.conclude(Conclusion::Request(GuestRequest::PowerOff));
    assert_eq!(vm.take_conclusion(), Some(first));
}
