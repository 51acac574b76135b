//! State that a worker's threads share: the devices with the rings that feed them, behind one lock, and
//! the ways to wake each other.
//!
//! All posted writes are applied before an access that a virtual CPU waits for, so that a device sees
//! the accesses of one CPU in program order, and those of another CPU that came before. Interrupts
//! and requests that come out of the devices leave after the lock is released: [`Vm::settle`].

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixListener;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use guest_proto::limits::RING_ENTRIES;
use log::error;

use super::devices::{Access, Devices, GuestRequest};
use super::end::End;
use super::event::Event;
use super::gate::Gate;
use super::journal;
use super::memory::Ram;
use super::pci::Effect;
use super::plugs::Plugs;
use super::stall::Stalls;
use super::virtio::console::Port;
use super::virtio::vsock::Mux;
use crate::driver::page::Ring;
use crate::driver::{DriverError, Partition};

/// Console output that may wait for the device thread before a virtual CPU has to.
const MAX_OUTPUT: usize = 256 << 10;
/// Period at which a virtual CPU that waits looks whether the VM has ended.
const OUTPUT_TIMEOUT: Duration = Duration::from_millis(100);

/// The state of the devices, and the posted writes that they have not seen.
#[derive(Debug)]
pub(super) struct DeviceState {
    /// The devices.
    pub(super) devices: Devices,
    rings: Vec<Ring>,
    /// The device thread sleeps until it is woken.
    asleep: bool,
    /// Users have typed more than the serial port could take.
    typing_waits: bool,
}

/// The devices for one access of a virtual CPU, locked when the access first needs them. An access to the local APIC needs none.
pub(super) struct Locked<'a> {
    vm: &'a Vm,
    state: Option<MutexGuard<'a, DeviceState>>,
}

impl<'a> Locked<'a> {
    pub(super) fn new(vm: &'a Vm) -> Self {
        Self { vm, state: None }
    }

    /// Gives the devices back as [`Vm::settle`] does. Returns whether more console output is kept than should be.
    pub(super) fn settle(self) -> bool {
        let Some(mut state) = self.state else {
            return false;
        };
        let is_full = state.is_full();
        self.vm.settle(state);
        is_full
    }
}

impl Access for Locked<'_> {
    /// What was posted before the access comes first.
    fn devices(&mut self) -> &mut Devices {
        let state = self.state.get_or_insert_with(|| {
            let mut state = self.vm.device_state();
            state.drain();
            state
        });
        &mut state.devices
    }
}

impl DeviceState {
    /// Applies the posted writes of all virtual CPUs. Returns false if there were none, and no
    /// output since the last time.
    ///
    /// Between two rings there is no order. A range is therefore posted only if the order of two
    /// CPUs' writes to it makes no difference, unless a CPU reads in between: this call comes before
    /// each access that is not posted.
    pub(super) fn drain(&mut self) -> bool {
        let mut any = !self.devices.serial_output().is_empty();
        for ring in &mut self.rings {
            any |= drain(ring, &mut self.devices);
        }
        any
    }

    /// Has the device thread woken by the next posted write or output. False if there is some
    /// already.
    #[must_use]
    pub(super) fn prepare_sleep(&mut self) -> bool {
        self.asleep = self.devices.serial_output().is_empty()
            && self.rings.iter_mut().all(Ring::prepare_sleep);
        if !self.asleep {
            self.cancel_sleep();
        }
        self.asleep
    }

    /// Takes that back.
    pub(super) fn cancel_sleep(&mut self) {
        self.asleep = false;
        for ring in &mut self.rings {
            ring.cancel_sleep();
        }
    }

    /// Returns how many typed bytes the serial port takes. If it takes none, the device thread is woken
    /// when it takes some again.
    pub(super) fn room_for_typing(&mut self) -> usize {
        let room = self.devices.serial_room();
        self.typing_waits = room == 0;
        room
    }

    /// Whether more console output is kept than should be.
    pub(super) fn is_full(&mut self) -> bool {
        self.devices.serial_output().len() > MAX_OUTPUT
    }

    /// Takes the console output.
    pub(super) fn take_output(&mut self) -> Vec<u8> {
        std::mem::take(self.devices.serial_output())
    }
}

/// Applies the posted writes of a ring, but no more than fit into it, so that a guest that never
/// stops writing can't keep the lock. Returns whether there were any.
fn drain(ring: &mut Ring, devices: &mut Devices) -> bool {
    for n in 0..RING_ENTRIES {
        match ring.pop() {
            Some(entry) => devices.posted(&entry),
            None => return n > 0,
        }
    }
    true
}

/// The reason why the VM ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Conclusion {
    /// The guest asked a device to end or reset the VM.
    Request(GuestRequest),
    /// Any other end.
    End(End),
}

/// One VM, as all its threads see it.
#[derive(Debug)]
pub(super) struct Vm {
    partition: Partition,
    /// Guest memory.
    pub(super) ram: Ram,
    /// The gate at which virtual CPUs wait.
    pub(super) gate: Gate,
    vcpus: usize,
    device_state: Mutex<DeviceState>,
    output_taken: Condvar,
    conclusion: Mutex<Option<Conclusion>>,
    wake: Arc<Event>,
    /// Device threads that wait until the VM is resumed.
    pub(super) stalls: Arc<Stalls>,
    /// The disks.
    pub(super) plugs: Arc<Plugs>,
    /// The console's port, if it is not the serial port.
    port: OnceLock<Arc<Port>>,
    /// Connections of the socket device, if the worker serves it.
    sockets: OnceLock<Arc<Mux>>,
}

/// Ends a partition, whose virtual CPUs' threads are gone.
pub(super) fn destroy(partition: &Partition) {
    if let Err(e) = partition.destroy() {
        // The daemon tries again when this process is gone.
        error!("{e}");
    }
}

impl Vm {
    /// Gives the partition and everything in it back. The virtual CPUs' threads are gone.
    pub(super) fn destroy(&self) {
        destroy(&self.partition);
    }

    /// Makes a VM whose virtual CPUs have these rings. `wake` wakes the device thread; the driver
    /// signals it too.
    pub(super) fn new(partition: Partition, ram: Ram, rings: Vec<Ring>, wake: Arc<Event>) -> Self {
        Self {
            partition,
            ram,
            gate: Gate::default(),
            vcpus: rings.len(),
            device_state: Mutex::new(DeviceState {
                devices: Devices::new(),
                rings,
                asleep: false,
                typing_waits: false,
            }),
            output_taken: Condvar::new(),
            conclusion: Mutex::default(),
            stalls: Arc::new(Stalls::new(Arc::clone(&wake))),
            port: OnceLock::new(),
            sockets: OnceLock::new(),
            plugs: Arc::new(Plugs::new(Arc::clone(&wake))),
            wake,
        }
    }

    /// Returns the port of the virtio console, if the VM has one.
    pub(super) fn port(&self) -> Option<&Port> {
        self.port.get().map(|port| &**port)
    }

    /// Makes the port of the virtio console.
    pub(super) fn make_port(&self) -> io::Result<Arc<Port>> {
        let port = Arc::new(Port::new(Arc::clone(&self.wake))?);
        Ok(Arc::clone(self.port.get_or_init(|| port)))
    }

    /// Returns the connections of the socket device, if the worker serves it.
    pub(super) fn sockets(&self) -> Option<&Mux> {
        self.sockets.get().map(|mux| &**mux)
    }

    /// Makes the socket device's connections, for a guest with the address `cid`.
    pub(super) fn make_sockets(&self, cid: u64, listener: UnixListener) -> io::Result<Arc<Mux>> {
        let mux = Arc::new(Mux::new(cid, listener, Arc::clone(&self.wake))?);
        Ok(Arc::clone(self.sockets.get_or_init(|| mux)))
    }

    /// Returns the number of virtual CPUs.
    pub(super) fn vcpus(&self) -> u32 {
        self.vcpus as u32
    }

    /// Locks the state of the devices.
    pub(super) fn device_state(&self) -> MutexGuard<'_, DeviceState> {
        self.device_state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives the devices back, and lets out what came out of them.
    pub(super) fn settle(&self, mut device_state: MutexGuard<'_, DeviceState>) {
        // Most accesses have no effect beside their answer.
        if device_state.devices.is_settled() && !device_state.typing_waits {
            return;
        }
        let msis = device_state.devices.take_msis();
        let request = device_state.devices.take_request();
        let effects = device_state.devices.take_effects();
        let removed = device_state.devices.pci().take_removed();
        let strays = device_state.devices.take_strays();
        let has_output = !device_state.devices.serial_output().is_empty();
        let is_wanted =
            has_output || device_state.typing_waits && device_state.devices.serial_room() > 0;
        let wakes = device_state.devices.take_sleep_change()
            || is_wanted && std::mem::take(&mut device_state.asleep);
        drop(device_state);
        for msi in msis {
            if let Err(e) = self.partition.send_msi(msi) {
                error!("{e}: address {:#x}, data {:#x}", msi.address, msi.data);
            }
        }
        for effect in effects {
            if let Err(e) = self.apply(&effect) {
                // The guest can put two devices at the same ports.
                journal::guest(format_args!("{e}: {effect:?}"));
            }
        }
        for device in removed {
            self.plugs.close(device);
        }
        for stray in strays {
            journal::guest(format_args!("{stray}"));
        }
        if let Some(request) = request {
            self.conclude(Conclusion::Request(request));
        } else if wakes {
            self.wake();
        }
    }

    /// Waits, on a virtual CPU's thread, while more console output is kept than should be.
    pub(super) fn hold_back(&self) {
        let mut device_state = self.device_state();
        while device_state.is_full() && !self.gate.is_over() {
            device_state = self
                .output_taken
                .wait_timeout(device_state, OUTPUT_TIMEOUT)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// Lets those go on that [`Self::hold_back`] holds.
    pub(super) fn output_taken(&self) {
        self.output_taken.notify_all();
    }

    /// Ends the VM. Only the first reason counts. The virtual CPU whose thread calls this stops; the device
    /// thread does the rest.
    pub(super) fn conclude(&self, conclusion: Conclusion) {
        self.gate.close();
        self.conclusion().get_or_insert(conclusion);
        self.wake();
    }

    /// Takes the reason why the VM ends, if it does.
    pub(super) fn take_conclusion(&self) -> Option<Conclusion> {
        self.conclusion().take()
    }

    fn conclusion(&self) -> MutexGuard<'_, Option<Conclusion>> {
        self.conclusion
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Holds all virtual CPUs. Returns false if one is not held within `timeout`.
    pub(super) fn hold(&self, timeout: Duration) -> bool {
        self.gate.close();
        self.kick();
        self.await_held(timeout)
    }

    /// Waits until all virtual CPUs' threads are held. Returns false if one is not held within `timeout`.
    pub(super) fn await_held(&self, timeout: Duration) -> bool {
        self.gate.await_all(self.vcpus, timeout)
    }

    /// Ends all virtual CPUs' threads. Returns false if one has not ended within `timeout`.
    pub(super) fn end(&self, timeout: Duration) -> bool {
        self.gate.end();
        self.kick();
        self.gate.await_all(self.vcpus, timeout)
    }

    fn kick(&self) {
        if let Err(e) = self.partition.kick_all() {
            error!("{e}");
        }
    }

    fn apply(&self, effect: &Effect) -> Result<(), DriverError> {
        match effect {
            Effect::BindInterrupt(event, msi) => self.partition.irqfd(event.as_fd(), *msi),
            Effect::UnbindInterrupt(event) => self.partition.remove_irqfd(event.as_fd()),
            Effect::AddDoorbell {
                port,
                length,
                tag,
                event,
            } => self
                .partition
                .signal_doorbell(*port, *length, *tag, event.as_fd()),
            Effect::RemoveDoorbell(tag) => self.partition.remove_doorbell(*tag),
        }
    }

    /// Returns the event that wakes the device thread.
    pub(super) fn wake_event(&self) -> Arc<Event> {
        Arc::clone(&self.wake)
    }

    fn wake(&self) {
        self.wake.signal();
    }

    /// Returns the event that the device thread waits for.
    pub(super) fn wake_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }

    /// Forgets that it was woken.
    pub(super) fn clear_wake(&self) {
        self.wake.clear();
    }
}
