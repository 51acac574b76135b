//! The place of a PC's firmware, where a guest finds the reset vector alone.
//!
//! A kernel that reboots "by BIOS" goes back to real mode and jumps there, as Linux does with `reboot=bios`.

use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use super::devices::port;
use super::memory::{Ram, layout};

/// Writes the code at the reset vector, which asks for a reset.
///
/// # Errors
///
/// The memory is not there.
pub(super) fn write(ram: &Ram) -> Result<(), GuestMemoryError> {
    let [low, high] = port::RESET.to_le_bytes();
    let code = [
        // mov dx, RESET; mov al, RESET_VALUE; out dx, al
        0xba,
        low,
        high,
        0xb0,
        port::RESET_VALUE,
        0xee,
        // hlt; jmp to it
        0xf4,
        0xeb,
        0xfd,
    ];
    ram.mapping()
        .write_slice(&code, GuestAddress(layout::RESET_VECTOR))
}
