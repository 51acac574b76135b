//! A guest of a few instructions in real mode.

use std::os::fd::{AsFd, OwnedFd};

use guest_proto::vcpu_page::{Intercept, InterceptKind, Reply, ReplyFlags, RunState};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use rustix::io::{Errno, pread, pwrite};
use vmctl::driver::page::Ring;
use vmctl::driver::{Device, Partition, Vcpu};

use super::{device, eventually};

/// Where the guest begins.
pub(crate) const CODE: u64 = 0x1000;
/// Where its interrupt handlers are: each vector's at `HANDLER + 16 * vector`.
pub(crate) const HANDLER: u64 = 0x2000;
pub(crate) const MEMORY: u64 = 4 << 20;

/// A memfd of that size, sealed against shrinking.
pub(crate) fn memfd(size: u64) -> OwnedFd {
    let fd = memfd_create("guest", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
    ftruncate(&fd, size).unwrap();
    fcntl_add_seals(&fd, SealFlags::SHRINK).unwrap();
    fd
}

/// A partition with 4 MiB of RAM and one virtual CPU. Ends with this.
pub(crate) struct Guest {
    pub(crate) device: Device,
    pub(crate) vm: Partition,
    pub(crate) vcpu: Vcpu,
    pub(crate) ring: Ring,
    pub(crate) memfd: OwnedFd,
}

impl Guest {
    /// Another descriptor of the partition.
    pub(crate) fn attach(&self) -> Partition {
        self.device
            .attach_partition(self.vm.id(), self.vm.token())
            .unwrap()
    }

    /// Its first virtual CPU is to run `code`.
    pub(crate) fn new(code: &[u8]) -> Self {
        let device = device();
        let vm = device.create_partition("tiny", 0).unwrap();
        let memfd = memfd(MEMORY);
        write(&memfd, CODE, code);
        vm.set_memory(0, memfd.as_fd(), 0, MEMORY, 0, 0).unwrap();
        let (mut vcpu, ring) = vm.vcpu(0).unwrap();
        start_at(&mut vcpu, CODE);
        Self {
            device,
            vm,
            vcpu,
            ring,
            memfd,
        }
    }

    /// Interrupt `vector` is to run `code`; the virtual APIC takes interrupts.
    pub(crate) fn on_interrupt(&mut self, vector: u8, code: &[u8]) {
        let handler = HANDLER + 16 * u64::from(vector);
        write(&self.memfd, handler, code);
        write(
            &self.memfd,
            4 * u64::from(vector),
            &(handler as u32).to_le_bytes(),
        );
        self.vcpu.write_apic(0xf0, 0x1ff).unwrap();
    }

    /// Runs until the guest needs an answer.
    pub(crate) fn run(&mut self) -> Intercept {
        run(&mut self.vcpu)
    }

    /// Runs until the guest writes to a port: the port and the value.
    pub(crate) fn run_to_out(&mut self) -> (u64, u64) {
        let intercept = self.run();
        assert_eq!(intercept.kind, InterceptKind::Port.raw(), "{intercept:?}");
        assert_eq!(intercept.is_write, 1);
        (intercept.address, intercept.data)
    }

    /// Answers a read.
    pub(crate) fn answer(&mut self, data: u64) {
        self.vcpu.reply(&Reply {
            flags: ReplyFlags::DATA.bits(),
            data,
            ..Reply::default()
        });
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let destroyed = self.device.destroy_partition(self.vm.id());
        if !std::thread::panicking() {
            destroyed.unwrap();
        }
    }
}

pub(crate) fn write(memfd: &OwnedFd, at: u64, bytes: &[u8]) {
    assert_eq!(pwrite(memfd, bytes, at).unwrap(), bytes.len());
}

pub(crate) fn byte(memfd: &OwnedFd, at: u64) -> u8 {
    let mut byte = [0];
    assert_eq!(pread(memfd, &mut byte, at).unwrap(), 1);
    byte[0]
}

/// Runs until the guest needs an answer, however often the kernel wants the thread in between.
pub(crate) fn run(vcpu: &mut Vcpu) -> Intercept {
    loop {
        match vcpu.run() {
            Ok(()) => return vcpu.intercept(),
            Err(Errno::INTR) => {}
            Err(errno) => panic!("{errno}"),
        }
    }
}

/// Has a virtual CPU run on from `at`, in real mode with all segments at 0.
pub(crate) fn start_at(vcpu: &mut Vcpu, at: u64) {
    let mut state = vcpu.fetch_state().unwrap();
    for segment in &mut state.segment {
        segment.selector = 0;
        segment.base = 0;
    }
    state.rip = at;
    state.gpr[4] = 0x8000;
    state.run_state = RunState::Runnable.raw();
    vcpu.store_state(&state).unwrap();
}

/// Waits until a thread has entered the guest.
pub(crate) fn eventually_running(device: &Device, id: u64) {
    eventually("the guest runs", || {
        device
            .counters(id, 0)
            .is_ok_and(|counters| counters.runs > 0)
    });
}
