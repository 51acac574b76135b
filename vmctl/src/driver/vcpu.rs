//! A virtual CPU's descriptor, and what is exchanged through its page while it is stopped.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use guest_proto::cpuid::CpuidEntry;
use guest_proto::driver::{ApicAccess, SetCpuid, ioctl as number};
use guest_proto::shared::First;
use guest_proto::vcpu_page::{
    ExecutionState, GeneralRegisters, Intercept, Reply, VcpuState, Vectors,
};
use rustix::io::Errno;

use super::page::Mapping;
use super::{DriverError, failed, opcode, plain, update};

/// Gets a virtual CPU's thread out of [`Vcpu::run`], from another thread.
#[derive(Debug)]
pub struct Kicker(OwnedFd);

impl Kicker {
    /// Makes [`Vcpu::run`] return [`Errno::INTR`] once, or at its next call.
    ///
    /// # Errors
    ///
    /// The driver's errno.
    pub fn kick(&self) -> Result<(), DriverError> {
        plain::<{ opcode(number::VCPU_KICK) }>(&self.0).map_err(failed("kick a virtual CPU"))
    }
}

/// A virtual CPU, for the one thread that runs it.
#[derive(Debug)]
pub struct Vcpu {
    fd: OwnedFd,
    page: Arc<Mapping>,
}

impl AsFd for Vcpu {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Vcpu {
    pub(super) fn new(fd: OwnedFd, page: Arc<Mapping>) -> Self {
        Self { fd, page }
    }

    /// Runs it until it needs the worker: see [`Self::intercept`].
    ///
    /// # Errors
    ///
    /// [`Errno::INTR`]: a signal or a kick, or nothing: just run again; [`Errno::NODEV`]: the partition is gone.
    pub fn run(&mut self) -> Result<(), Errno> {
        // No bytes are read: it is the system call that runs the virtual CPU.
        rustix::io::read(&self.fd, &mut [0_u8; 0]).map(drop)
    }

    /// Returns the handle that gets its thread out of [`Self::run`].
    ///
    /// # Errors
    ///
    /// The errors of `dup(2)`.
    pub fn kicker(&self) -> std::io::Result<Kicker> {
        self.fd.try_clone().map(Kicker)
    }

    /// Fetches the state from the microvisor.
    ///
    /// # Errors
    ///
    /// The driver's errno.
    pub fn fetch_state(&mut self) -> Result<VcpuState, DriverError> {
        plain::<{ opcode(number::VCPU_GET_STATE) }>(&self.fd)
            .map_err(failed("read a virtual CPU's state"))?;
        Ok(self.page.state.load())
    }

    /// Sets the whole state.
    ///
    /// # Errors
    ///
    /// The driver's errno.
    pub fn store_state(&mut self, state: &VcpuState) -> Result<(), DriverError> {
        self.page.state.store(state);
        plain::<{ opcode(number::VCPU_SET_STATE) }>(&self.fd)
            .map_err(failed("set a virtual CPU's state"))
    }

    /// Sets the answers of CPUID: at most 127 entries, in ascending order of leaf and subleaf.
    ///
    /// # Errors
    ///
    /// The driver's errno.
    pub fn set_cpuid(&mut self, entries: &[CpuidEntry]) -> Result<(), DriverError> {
        let mut arg = SetCpuid {
            entries: entries.as_ptr().expose_provenance() as u64,
            count: u32::try_from(entries.len()).unwrap_or(u32::MAX),
            reserved: 0,
        };
        update::<{ opcode(number::VCPU_SET_CPUID) }, _>(&self.fd, &mut arg)
            .map_err(failed("set a virtual CPU's CPUID"))
    }

    /// Reads a vLAPIC register by its offset in the APIC page.
    ///
    /// # Errors
    ///
    /// The driver's errno.
    pub fn read_apic(&mut self, register: u32) -> Result<u32, DriverError> {
        self.apic(register, 0)
    }

    /// Writes a vLAPIC register by its offset in the APIC page.
    ///
    /// # Errors
    ///
    /// The driver's errno.
    pub fn write_apic(&mut self, register: u32, value: u32) -> Result<(), DriverError> {
        self.apic(register | 1 << 31, value).map(drop)
    }

    fn apic(&mut self, register: u32, value: u32) -> Result<u32, DriverError> {
        let mut arg = ApicAccess {
            register,
            reserved: 0,
            value: u64::from(value),
        };
        update::<{ opcode(number::VCPU_APIC) }, _>(&self.fd, &mut arg)
            .map_err(failed("access a virtual APIC"))?;
        Ok(arg.value as u32)
    }

    /// Returns the intercept at which it stopped. Valid after [`Self::run`] answered `Ok`.
    pub fn intercept(&self) -> Intercept {
        self.page.intercept.load()
    }

    /// The registers beside an intercept that has them.
    pub fn execution_state(&self) -> ExecutionState {
        self.page.state.load_first()
    }

    /// Puts registers where a [`Reply`] with `REGISTERS` is answered from: the general ones, RIP and RFLAGS.
    pub fn set_registers(&mut self, state: &ExecutionState) {
        self.page.state.store_first(&GeneralRegisters::of(state));
    }

    /// Fetches the XMM registers from the microvisor, and the state beside an intercept once more.
    ///
    /// # Errors
    ///
    /// The driver's errno.
    pub fn fetch_vectors(&mut self) -> Result<[u128; 16], DriverError> {
        self.fetch_state()?;
        let words = self.page.vectors.load().xmm;
        let (pairs, _) = words.as_chunks::<2>();
        let mut vectors = [0; 16];
        for (vector, [low, high]) in vectors.iter_mut().zip(pairs) {
            *vector = u128::from(*high) << 64 | u128::from(*low);
        }
        Ok(vectors)
    }

    /// Puts XMM registers where a [`Reply`] with `VECTORS` is answered from.
    pub fn set_vectors(&mut self, vectors: &[u128; 16]) {
        let mut xmm = [0; 32];
        let (pairs, _) = xmm.as_chunks_mut::<2>();
        for ([low, high], vector) in pairs.iter_mut().zip(vectors) {
            (*low, *high) = (*vector as u64, (*vector >> 64) as u64);
        }
        self.page.vectors.store(&Vectors { xmm });
    }

    /// Answers the intercept; taken by the next [`Self::run`].
    pub fn reply(&mut self, reply: &Reply) {
        self.page.reply.store(reply);
    }
}
