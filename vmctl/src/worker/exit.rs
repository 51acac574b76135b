//! The worker's answer to an intercept: a function of the intercept, the registers, the devices
//! and guest memory. Nothing here waits, or knows of threads and descriptors.
//!
//! Neighbours: `vcpu` fetches the intercept and gives the answer back, [`Devices`] has the
//! devices, [`emulate()`] executes what touched memory.

use std::sync::atomic::Ordering;

use guest_proto::vcpu_page::{
    ExecutionState, Intercept, InterceptFlags, InterceptKind, Reply, ReplyFlags,
};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use super::devices::{Access, Devices};
use super::emulate::{Cause, Decoded, Fault, Space, emulate, is_user};
use super::end::End;
use super::journal;
use super::memory::{Memory, layout};

/// Exception vectors.
pub(super) mod vector {
    pub(in crate::worker) const DIVIDE: u32 = 0;
    pub(in crate::worker) const UNDEFINED_OPCODE: u32 = 6;
    pub(in crate::worker) const PROTECTION: u32 = 13;
    pub(in crate::worker) const PAGE_FAULT: u32 = 14;
}

/// Size of the local APIC's page.
const LAPIC_SIZE: u64 = 0x1000;

/// Whether an intercept is an access to a port that is answered without the registers.
pub(super) fn is_plain_port(intercept: &Intercept) -> bool {
    intercept.kind == InterceptKind::Port.raw()
        && intercept.flags & InterceptFlags::STRING.bits() == 0
}

/// Answers an access to a port.
pub(super) fn port(intercept: &Intercept, devices: &mut Devices) -> Reply {
    let port = intercept.address as u16;
    if intercept.is_write != 0 {
        devices.write_port(port, intercept.size, intercept.data);
        return Reply::default();
    }
    Reply {
        flags: ReplyFlags::DATA.bits(),
        data: devices.read_port(port, intercept.size),
        ..Reply::default()
    }
}

/// Executes the instruction that touched device memory, or a string instruction on a port, on
/// `state`.
///
/// # Errors
///
/// The guest can't go on.
pub(super) fn instruction(
    intercept: &Intercept,
    state: &mut ExecutionState,
    bus: &mut Bus<'_, impl Access, impl Registers>,
    decoded: &mut Decoded,
) -> Result<Reply, End> {
    let rip = state.rip;
    let known = usize::from(intercept.instruction_len).min(intercept.instruction.len());
    let is_write = intercept.is_write != 0;
    let cause = if intercept.kind == InterceptKind::Port.raw() {
        Cause::Port {
            port: intercept.address as u16,
            size: intercept.size,
            is_write,
        }
    } else {
        Cause::Memory {
            gpa: intercept.address,
            is_write,
        }
    };
    bus.apic = Apic::of(intercept);
    let executed = emulate(state, bus, decoded, &intercept.instruction[..known], cause);
    let mut flags = ReplyFlags::REGISTERS;
    flags.set(ReplyFlags::VECTORS, bus.changes_vectors);
    flags.set(ReplyFlags::APIC, bus.apic.written.is_some());
    let done = Reply {
        flags: flags.bits(),
        data: bus.apic.written.unwrap_or_default().into(),
        ..Reply::default()
    };
    let exception = |vector, error_code: u32, fault_address| Reply {
        flags: (ReplyFlags::REGISTERS | ReplyFlags::EXCEPTION | flags & ReplyFlags::APIC).bits(),
        exception: vector,
        error_code: u64::from(error_code),
        fault_address,
        ..done
    };
    let at = intercept.address;
    match executed {
        Ok(()) | Err(Fault::Changed) => Ok(done),
        Err(Fault::Page { address, code }) => Ok(exception(vector::PAGE_FAULT, code, address)),
        Err(Fault::Divide) => Ok(exception(vector::DIVIDE, 0, 0)),
        Err(Fault::UndefinedOpcode) => Ok(exception(vector::UNDEFINED_OPCODE, 0, 0)),
        Err(Fault::Protection) => Ok(exception(vector::PROTECTION, 0, 0)),
        // The mistake is a program's, which must not end its machine.
        Err(Fault::NotEmulated(_) | Fault::NotInRam(_)) if is_user(state) => {
            journal::guest(format_args!(
                "a program touches {at:#x}, where there is no memory, at rip {rip:#x} with an instruction that is not emulated"
            ));
            Ok(exception(vector::UNDEFINED_OPCODE, 0, 0))
        }
        Err(Fault::NotEmulated(bytes)) => Err(End::crashed(format_args!(
            "instruction {bytes} at rip {rip:#x} touches {at:#x}, where there is no memory, and can't be \
             emulated"
        ))),
        Err(Fault::NotInRam(gpa)) => Err(End::crashed(format_args!(
            "code or page tables for rip {rip:#x} lie at {gpa:#x}, where there is no memory"
        ))),
    }
}

/// The end that an intercept means that is none of the above.
pub(super) fn end(intercept: &Intercept) -> End {
    let rip = intercept.rip;
    match InterceptKind::from_raw(intercept.kind) {
        Some(InterceptKind::Shutdown) => End::crashed(format_args!("triple fault at rip {rip:#x}")),
        Some(InterceptKind::EntryFailed) => End::crashed(format_args!(
            "the CPU refused the virtual CPU's state at rip {rip:#x} (exit code {:#x})",
            intercept.error_code
        )),
        _ => End::failed(format_args!(
            "the driver answered with an intercept of kind {}",
            intercept.kind
        )),
    }
}

/// Registers of the virtual CPU that do not come with an intercept.
pub(super) trait Registers {
    /// Reads a register of the local APIC by its offset, or writes it. `None` where the APIC has no registers in memory, because
    /// it is in x2APIC mode or disabled.
    fn apic(&mut self, register: u32, value: Option<u32>) -> Option<u32>;
    /// Returns the XMM registers; `None` if they can't be had.
    fn vectors(&mut self) -> Option<[u128; 16]>;
    /// Puts XMM registers where a reply with `VECTORS` is answered from.
    fn set_vectors(&mut self, vectors: &[u128; 16]);
}

/// The devices and memory that a virtual CPU reaches.
#[derive(Debug)]
pub(super) struct Bus<'a, D, R> {
    devices: &'a mut D,
    ram: &'a Memory,
    registers: R,
    /// The instruction has changed XMM registers.
    changes_vectors: bool,
    apic: Apic,
}

/// The register of the local APIC that an intercept is about.
#[derive(Debug, Default)]
struct Apic {
    /// Its offset, if the intercept is about one.
    register: Option<u32>,
    /// Its value, which came with the intercept.
    value: Option<u32>,
    /// The value that the reply writes to it.
    written: Option<u32>,
}

impl Apic {
    fn of(intercept: &Intercept) -> Self {
        let is_apic = intercept.flags & InterceptFlags::APIC.bits() != 0;
        Self {
            register: lapic_offset(intercept.address)
                .filter(|_| is_apic)
                .map(|offset| offset & !0xf),
            value: (is_apic && intercept.is_write == 0).then_some(intercept.data as u32),
            written: None,
        }
    }
}

impl<'a, D, R: Registers> Bus<'a, D, R> {
    pub(super) fn new(devices: &'a mut D, ram: &'a Memory, registers: R) -> Self {
        Self {
            devices,
            ram,
            registers,
            changes_vectors: false,
            apic: Apic::default(),
        }
    }

    /// Reads a register of the local APIC; `None` where it has none in memory.
    fn read_apic(&mut self, register: u32) -> Option<u32> {
        match self.apic.value {
            Some(value) if self.apic.register == Some(register) => Some(value),
            _ => {
                self.finish_write();
                self.registers.apic(register, None)
            }
        }
    }

    /// Writes a register of the local APIC. Returns false where it has none in memory.
    fn write_apic(&mut self, register: u32, value: u32) -> bool {
        self.finish_write();
        if self.apic.register == Some(register) {
            self.apic.written = Some(value);
            // A later read of the same instruction gets the register's new value.
            self.apic.value = None;
            return true;
        }
        self.registers.apic(register, Some(value)).is_some()
    }

    /// Carries out the write that waits for the reply, before another access.
    fn finish_write(&mut self) {
        if let (Some(register), Some(value)) = (self.apic.register, self.apic.written.take()) {
            self.registers.apic(register, Some(value));
        }
    }
}

/// Offset in the local APIC's page.
fn lapic_offset(gpa: u64) -> Option<u32> {
    let offset = gpa.checked_sub(layout::LAPIC)?;
    (offset < LAPIC_SIZE).then_some(offset as u32)
}

impl<D: Access, R: Registers> Space for Bus<'_, D, R> {
    fn read_ram(&mut self, gpa: u64, bytes: &mut [u8]) -> bool {
        // No read crosses a page, so it is in one region.
        let slice = self.ram.get_slice(GuestAddress(gpa), bytes.len());
        slice.is_ok_and(|slice| slice.copy_to(bytes) == bytes.len())
    }

    fn read_word(&mut self, gpa: u64) -> Option<u64> {
        self.ram.load(GuestAddress(gpa), Ordering::Relaxed).ok()
    }

    fn write_ram(&mut self, gpa: u64, bytes: &[u8]) -> bool {
        self.ram.write_slice(bytes, GuestAddress(gpa)).is_ok()
    }

    fn read_device(&mut self, gpa: u64, size: u8) -> u64 {
        if let Some(offset) = lapic_offset(gpa)
            && let Some(register) = self.read_apic(offset & !0xf)
        {
            // A register is 32 bits wide, and 16 bytes from the next.
            return u64::from(register)
                .checked_shr(8 * (offset & 0xf))
                .unwrap_or(0);
        }
        self.devices.devices().read_memory(gpa, size)
    }

    fn write_device(&mut self, gpa: u64, size: u8, value: u64) {
        if let Some(offset) = lapic_offset(gpa)
            && offset & 0xf == 0
            && size >= 4
            && self.write_apic(offset, value as u32)
        {
            return;
        }
        self.devices.devices().write_memory(gpa, size, value);
    }

    fn read_port(&mut self, port: u16, size: u8) -> u64 {
        self.devices.devices().read_port(port, size)
    }

    fn write_port(&mut self, port: u16, size: u8, value: u64) {
        self.devices.devices().write_port(port, size, value);
    }

    fn vectors(&mut self) -> Option<[u128; 16]> {
        self.registers.vectors()
    }

    fn set_vectors(&mut self, vectors: &[u128; 16]) {
        self.registers.set_vectors(vectors);
        self.changes_vectors = true;
    }
}

#[cfg(test)]
mod tests {
    use super::super::devices::port as ports;
    use super::super::memory::Ram;
    use super::*;
    use guest_proto::control::EndCause;
    use guest_proto::vcpu_page::Segment;

    const CODE: u64 = 0x1000;

    /// A CPU in flat 32-bit mode, without paging, at `code`.
    fn guest(ram: &Ram, code: &[u8]) -> ExecutionState {
        ram.mapping().write_slice(code, GuestAddress(CODE)).unwrap();
        let flat = Segment {
            attributes: 0xc93,
            limit: u32::MAX,
            ..Segment::default()
        };
        ExecutionState {
            rip: CODE,
            cr0: 1,
            segment: [flat; 6],
            ..ExecutionState::default()
        }
    }

    fn touch(gpa: u64) -> Intercept {
        Intercept {
            kind: InterceptKind::Memory.raw(),
            flags: InterceptFlags::STATE.bits(),
            address: gpa,
            is_write: 1,
            rip: CODE,
            ..Intercept::default()
        }
    }

    impl Access for Devices {
        fn devices(&mut self) -> &mut Devices {
            self
        }
    }

    fn no_apic(_: u32, _: Option<u32>) -> Option<u32> {
        None
    }

    /// Registers: a local APIC, and XMM registers.
    struct Fake<F> {
        apic: F,
        vectors: [u128; 16],
    }

    impl<F> Fake<F> {
        fn new(apic: F) -> Self {
            Self {
                apic,
                vectors: [0; 16],
            }
        }
    }

    impl<F: FnMut(u32, Option<u32>) -> Option<u32>> Registers for &mut Fake<F> {
        fn apic(&mut self, register: u32, value: Option<u32>) -> Option<u32> {
            (self.apic)(register, value)
        }

        fn vectors(&mut self) -> Option<[u128; 16]> {
            Some(self.vectors)
        }

        fn set_vectors(&mut self, vectors: &[u128; 16]) {
            self.vectors = *vectors;
        }
    }

    #[test]
    fn a_port_read_is_answered_and_a_write_needs_none() {
        let mut devices = Devices::new();
        let mut intercept = Intercept {
            kind: InterceptKind::Port.raw(),
            address: u64::from(ports::SERIAL) + 5,
            size: 1,
            ..Intercept::default()
        };
        assert!(is_plain_port(&intercept));
        let reply = port(&intercept, &mut devices);
        assert_eq!((reply.flags, reply.data), (ReplyFlags::DATA.bits(), 0x60));
        intercept.address = u64::from(ports::SERIAL);
        intercept.is_write = 1;
        intercept.data = u64::from(b'x');
        assert_eq!(port(&intercept, &mut devices), Reply::default());
        assert_eq!(devices.serial_output(), b"x");
    }

    #[test]
    fn a_string_to_a_port_is_executed_from_the_registers() {
        let ram = Ram::new(4 << 20).unwrap();
        // rep outsb
        let mut state = guest(&ram, &[0xf3, 0x6e]);
        ram.mapping()
            .write_slice(b"hello", GuestAddress(0x2000))
            .unwrap();
        state.gpr[6] = 0x2000;
        state.gpr[1] = 5;
        state.gpr[2] = u64::from(ports::SERIAL);
        let intercept = Intercept {
            kind: InterceptKind::Port.raw(),
            flags: InterceptFlags::STRING.bits()
                | InterceptFlags::REP.bits()
                | InterceptFlags::STATE.bits(),
            address: u64::from(ports::SERIAL),
            size: 1,
            is_write: 1,
            ..Intercept::default()
        };
        assert!(!is_plain_port(&intercept));
        let mut devices = Devices::new();
        let mut fake = Fake::new(no_apic);
        let mut bus = Bus::new(&mut devices, ram.mapping(), &mut fake);
        let reply = instruction(&intercept, &mut state, &mut bus, &mut Decoded::default()).unwrap();
        assert_eq!(reply.flags, ReplyFlags::REGISTERS.bits());
        assert_eq!((state.rip, state.gpr[1]), (CODE + 2, 0));
        assert_eq!(devices.serial_output(), b"hello");
    }

    #[test]
    fn the_ioapic_and_the_local_apic_are_in_memory() {
        let ram = Ram::new(4 << 20).unwrap();
        let mut devices = Devices::new();
        let mut run = |code: &[u8], gpa, apic: &mut dyn FnMut(u32, Option<u32>) -> Option<u32>| {
            let mut state = guest(&ram, code);
            let mut fake = Fake::new(apic);
            let mut bus = Bus::new(&mut devices, ram.mapping(), &mut fake);
            let reply =
                instruction(&touch(gpa), &mut state, &mut bus, &mut Decoded::default()).unwrap();
            assert_eq!(reply.flags, ReplyFlags::REGISTERS.bits());
            state
        };
        // mov dword [0xfec00000], 1; mov eax, [0xfec00010]
        run(
            &[0xc7, 5, 0, 0, 0xc0, 0xfe, 1, 0, 0, 0],
            layout::IOAPIC,
            &mut no_apic,
        );
        let state = run(&[0xa1, 0x10, 0, 0xc0, 0xfe], layout::IOAPIC, &mut no_apic);
        assert_eq!(state.gpr[0], 0x17_0020);
        // mov dword [0xfee000b0], 0; mov eax, [0xfee00030]
        let mut asked = Vec::new();
        let mut apic = |register, value| {
            asked.push((register, value));
            Some(0x1234)
        };
        run(
            &[0xc7, 5, 0xb0, 0, 0xe0, 0xfe, 0, 0, 0, 0],
            layout::LAPIC,
            &mut apic,
        );
        let state = run(&[0xa1, 0x30, 0, 0xe0, 0xfe], layout::LAPIC, &mut apic);
        assert_eq!(state.gpr[0], 0x1234);
        assert_eq!(asked, [(0xb0, Some(0)), (0x30, None)]);
        // The same where the local APIC has no registers in memory.
        let state = run(&[0xa1, 0x30, 0, 0xe0, 0xfe], layout::LAPIC, &mut no_apic);
        assert_eq!(state.gpr[0], 0xffff_ffff);
        assert_eq!(devices.stray_accesses(), 1);
    }

    #[test]
    fn the_register_of_an_intercept_needs_no_call() {
        let ram = Ram::new(4 << 20).unwrap();
        let mut devices = Devices::new();
        let mut run = |code: &[u8], is_write, offset| {
            let mut state = guest(&ram, code);
            (state.gpr[0], state.gpr[7]) = (7, layout::LAPIC + offset);
            let mut intercept = touch(layout::LAPIC + offset);
            intercept.flags |= InterceptFlags::APIC.bits();
            intercept.is_write = u8::from(is_write);
            intercept.data = 0x55;
            let mut asked = Vec::new();
            let mut fake = Fake::new(|register, value| {
                asked.push((register, value));
                Some(0x30)
            });
            let mut bus = Bus::new(&mut devices, ram.mapping(), &mut fake);
            let reply =
                instruction(&intercept, &mut state, &mut bus, &mut Decoded::default()).unwrap();
            let written = reply.flags & ReplyFlags::APIC.bits() != 0;
            (state.gpr[0], written.then_some(reply.data), asked)
        };
        // mov eax, [rdi]; mov [rdi], eax
        assert_eq!(run(&[0x8b, 0x07], false, 0x20), (0x55, None, vec![]));
        assert_eq!(run(&[0x89, 0x07], true, 0xf0), (7, Some(7), vec![]));
        // or [rdi], eax: the intercept of a write has no value.
        let read = vec![(0xf0, None)];
        assert_eq!(run(&[0x09, 0x07], true, 0xf0), (7, Some(0x37), read));
        // rep stosd over two registers and the reserved words between them: in the guest's order
        let mut state = guest(&ram, &[0xf3, 0xab]);
        (state.gpr[0], state.gpr[1], state.gpr[7]) = (9, 5, layout::LAPIC + 0x80);
        let mut intercept = touch(layout::LAPIC + 0x80);
        intercept.flags |= InterceptFlags::APIC.bits();
        let mut asked = Vec::new();
        let mut fake = Fake::new(|register, value| {
            asked.push((register, value));
            Some(0)
        });
        let mut bus = Bus::new(&mut devices, ram.mapping(), &mut fake);
        let reply = instruction(&intercept, &mut state, &mut bus, &mut Decoded::default()).unwrap();
        assert_eq!(reply.flags, ReplyFlags::REGISTERS.bits());
        assert_eq!(asked, [(0x80, Some(9)), (0x90, Some(9))]);
    }

    #[test]
    fn a_guest_that_faults_gets_its_exception() {
        let ram = Ram::new(4 << 20).unwrap();
        // ud2, and a move through page tables that hold nothing.
        let mut state = guest(&ram, &[0x0f, 0x0b]);
        let mut devices = Devices::new();
        let mut fake = Fake::new(no_apic);
        let mut bus = Bus::new(&mut devices, ram.mapping(), &mut fake);
        let at = touch(layout::IOAPIC);
        let reply = instruction(&at, &mut state, &mut bus, &mut Decoded::default());
        let end = reply.unwrap_err();
        assert_eq!(end.cause, EndCause::Crashed);
        assert!(end.reason.contains("0f 0b at rip 0x1000"), "{}", end.reason);

        let mut state = guest(&ram, &[0xa1, 0, 0, 0, 0]);
        state.cr0 |= 1 << 31;
        state.cr3 = 0x3000;
        state.cr2 = 0;
        let reply = instruction(&at, &mut state, &mut bus, &mut Decoded::default()).unwrap();
        assert_eq!(
            reply.flags & ReplyFlags::EXCEPTION.bits(),
            ReplyFlags::EXCEPTION.bits()
        );
        assert_eq!(reply.exception, vector::PAGE_FAULT);
        assert_eq!(reply.fault_address, CODE);
    }

    #[test]
    fn a_program_that_does_what_is_not_emulated_does_not_end_the_vm() {
        let ram = Ram::new(4 << 20).unwrap();
        let mut devices = Devices::new();
        let mut fake = Fake::new(no_apic);
        let mut bus = Bus::new(&mut devices, ram.mapping(), &mut fake);
        // fld dword [0xfec00000]
        let code = [0xd9, 0x05, 0, 0, 0xc0, 0xfe];
        for (ring, is_end) in [(0, true), (3, false)] {
            let mut state = guest(&ram, &code);
            state.segment[2].attributes |= ring << 5;
            let answer = instruction(
                &touch(layout::IOAPIC),
                &mut state,
                &mut bus,
                &mut Decoded::default(),
            );
            assert_eq!(answer.is_err(), is_end, "ring {ring}");
            if let Ok(reply) = answer {
                assert_eq!(
                    reply.flags & ReplyFlags::EXCEPTION.bits(),
                    ReplyFlags::EXCEPTION.bits()
                );
                assert_eq!(reply.exception, vector::UNDEFINED_OPCODE);
                assert_eq!(state.rip, CODE);
            }
        }
    }

    #[test]
    fn vector_registers_are_answered_when_they_change() {
        let ram = Ram::new(4 << 20).unwrap();
        let mut devices = Devices::new();
        let mut fake = Fake::new(no_apic);
        fake.vectors[3] = 1;
        for (code, flags) in [
            // movd [0xfec00000], xmm3; movd xmm3, [0xfec00010]
            ([0x66, 0x0f, 0x7e, 0x1d, 0, 0, 0xc0, 0xfe], 0),
            (
                [0x66, 0x0f, 0x6e, 0x1d, 0x10, 0, 0xc0, 0xfe],
                ReplyFlags::VECTORS.bits(),
            ),
        ] {
            let mut state = guest(&ram, &code);
            state.cr4 = 1 << 9;
            let mut bus = Bus::new(&mut devices, ram.mapping(), &mut fake);
            let reply = instruction(
                &touch(layout::IOAPIC),
                &mut state,
                &mut bus,
                &mut Decoded::default(),
            )
            .unwrap();
            assert_eq!(reply.flags, ReplyFlags::REGISTERS.bits() | flags);
        }
        // Register 1 of the I/O APIC: its version.
        assert_eq!(fake.vectors[3], 0x17_0020);
    }

    #[test]
    fn ends_say_where() {
        let intercept = |kind: InterceptKind| Intercept {
            kind: kind.raw(),
            rip: 0xffff_8000_0010_0000,
            error_code: u64::MAX,
            ..Intercept::default()
        };
        let shutdown = end(&intercept(InterceptKind::Shutdown));
        assert_eq!(shutdown.cause, EndCause::Crashed);
        assert_eq!(shutdown.reason, "triple fault at rip 0xffff800000100000");
        let refused = end(&intercept(InterceptKind::EntryFailed));
        assert!(refused.reason.contains("0xffffffffffffffff"));
        assert_eq!(end(&intercept(InterceptKind::None)).cause, EndCause::Failed);
    }
}
