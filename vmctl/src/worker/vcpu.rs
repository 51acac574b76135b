//! A virtual CPU's thread: runs it, answers its intercepts, waits while the VM is held.

use std::io;
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};

use guest_proto::vcpu_page::{Intercept, InterceptKind, Reply};
use rustix::io::Errno;

use super::devices::Request;
use super::end::End;
use super::exit::{self, Bus};
use super::machine::{Bench, Machine, Verdict};
use crate::driver::Vcpu;

/// Starts the thread of virtual CPU `index`. It waits at the machine's gate first.
pub(super) fn spawn(
    index: usize,
    mut vcpu: Vcpu,
    machine: Arc<Machine>,
) -> io::Result<JoinHandle<()>> {
    Builder::new()
        .name(format!("vcpu{index}"))
        .spawn(move || run(index, &mut vcpu, &machine))
}

fn run(index: usize, vcpu: &mut Vcpu, machine: &Machine) {
    while machine.gate.pass() {
        match vcpu.run() {
            Ok(()) => turn(vcpu, machine),
            Err(Errno::INTR) => {}
            Err(Errno::NODEV) => machine.conclude(Verdict::End(End::failed(
                "the partition was destroyed under the worker",
            ))),
            Err(errno) => machine.conclude(Verdict::End(End::failed(format_args!(
                "run virtual CPU {index}: {}",
                io::Error::from(errno)
            )))),
        }
    }
}

/// Answers one intercept.
fn turn(vcpu: &mut Vcpu, machine: &Machine) {
    let intercept = vcpu.intercept();
    let mut bench = machine.bench();
    bench.drain();
    let answer = answer(&intercept, vcpu, machine, &mut bench);
    let full = bench.is_full();
    machine.settle(bench);
    match answer {
        Ok(reply) => vcpu.reply(&reply),
        Err(verdict) => machine.conclude(verdict),
    }
    if full {
        machine.hold_back();
    }
}

fn answer(
    intercept: &Intercept,
    vcpu: &mut Vcpu,
    machine: &Machine,
    bench: &mut Bench,
) -> Result<Reply, Verdict> {
    if exit::is_plain_port(intercept) {
        return Ok(exit::port(intercept, &mut bench.devices));
    }
    match InterceptKind::from_raw(intercept.kind) {
        Some(InterceptKind::Port | InterceptKind::Memory) => {
            let mut state = vcpu.state();
            let mut bus = Bus {
                devices: &mut bench.devices,
                ram: machine.ram.mapping(),
                // Refused in x2APIC mode: then nothing is there.
                apic: |register, value| match value {
                    None => vcpu.read_apic(register).ok(),
                    Some(value) => vcpu.write_apic(register, value).ok().map(|()| 0),
                },
            };
            let reply = exit::instruction(intercept, &mut state, &mut bus).map_err(Verdict::End)?;
            vcpu.set_state(&state);
            Ok(reply)
        }
        Some(InterceptKind::Reset) => Err(Verdict::Wish(Request::Reset)),
        _ => Err(Verdict::End(exit::end(intercept))),
    }
}
