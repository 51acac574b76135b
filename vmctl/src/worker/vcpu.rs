//! A virtual CPU's thread: runs it, answers its intercepts, waits while the VM is held.

use std::io;
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};

use guest_proto::vcpu_page::{Intercept, InterceptKind, Reply};
use log::error;
use rustix::io::Errno;

use super::clock::Clock;
use super::devices::{Access, GuestRequest};
use super::emulate::Decoded;
use super::end::End;
use super::exit::{self, Bus, Registers};
use super::msr::Msrs;
use super::vm::{Conclusion, Locked, Vm};
use crate::driver::Vcpu;

/// Starts the thread of virtual CPU `index`. It waits at the VM's gate first.
pub(super) fn spawn(
    index: usize,
    mut vcpu: Vcpu,
    clock: Clock,
    vm: Arc<Vm>,
) -> io::Result<JoinHandle<()>> {
    Builder::new()
        .name(format!("vcpu{index}"))
        .spawn(move || run(index, &mut vcpu, Msrs::new(clock), &vm))
}

fn run(index: usize, vcpu: &mut Vcpu, mut msrs: Msrs, vm: &Vm) {
    let mut decoded = Decoded::default();
    while vm.gate.pass() {
        match vcpu.run() {
            Ok(()) => turn(vcpu, &mut msrs, &mut decoded, vm),
            Err(Errno::INTR) => {}
            Err(Errno::NODEV) => vm.conclude(Conclusion::End(End::failed(
                "the partition was destroyed while the worker ran it",
            ))),
            Err(errno) => vm.conclude(Conclusion::End(End::failed(format_args!(
                "run virtual CPU {index}: {}",
                io::Error::from(errno)
            )))),
        }
    }
}

impl Registers for &mut Vcpu {
    fn apic(&mut self, register: u32, value: Option<u32>) -> Option<u32> {
        // Refused in x2APIC mode: then nothing is there.
        match value {
            None => self.read_apic(register).ok(),
            Some(value) => self.write_apic(register, value).ok().map(|()| 0),
        }
    }

    fn vectors(&mut self) -> Option<[u128; 16]> {
        let fetched = self.fetch_vectors();
        fetched.inspect_err(|e| error!("{e}")).ok()
    }

    fn set_vectors(&mut self, vectors: &[u128; 16]) {
        Vcpu::set_vectors(self, vectors);
    }
}

/// Answers one intercept.
fn turn(vcpu: &mut Vcpu, msrs: &mut Msrs, decoded: &mut Decoded, vm: &Vm) {
    let intercept = vcpu.intercept();
    if intercept.kind == InterceptKind::Msr.raw() {
        let reply = msrs.answer(&intercept, vm.ram.mapping());
        return vcpu.reply(&reply);
    }
    let mut devices = Locked::new(vm);
    let answer = answer(&intercept, vcpu, vm, &mut devices, decoded);
    let is_full = devices.settle();
    match answer {
        Ok(reply) => vcpu.reply(&reply),
        Err(conclusion) => vm.conclude(conclusion),
    }
    if is_full {
        vm.hold_back();
    }
}

fn answer(
    intercept: &Intercept,
    vcpu: &mut Vcpu,
    vm: &Vm,
    devices: &mut Locked<'_>,
    decoded: &mut Decoded,
) -> Result<Reply, Conclusion> {
    if exit::is_plain_port(intercept) {
        return Ok(exit::port(intercept, devices.devices()));
    }
    match InterceptKind::from_raw(intercept.kind) {
        Some(InterceptKind::Port | InterceptKind::Memory) => {
            let mut state = vcpu.execution_state();
            let mut bus = Bus::new(devices, vm.ram.mapping(), &mut *vcpu);
            let reply = exit::instruction(intercept, &mut state, &mut bus, decoded)
                .map_err(Conclusion::End)?;
            vcpu.set_registers(&state);
            Ok(reply)
        }
        kind => {
            // Devices see all that the guest has written before its end.
            devices.devices();
            Err(match kind {
                Some(InterceptKind::Reset) => Conclusion::Request(GuestRequest::Reset),
                _ => Conclusion::End(exit::end(intercept)),
            })
        }
    }
}
