//! The gate of address line 20, which would mask the microvisor's own addresses too.

use crate::cpu::{read_port, write_port, write_port16, write_port32};
use crate::hv;
use crate::memory::Pages;
use crate::probe::{self, GENERAL_PROTECTION};
use crate::report::{Outcome, cases, equal};

cases![
    the_systems_control_port_keeps_it_open,
    the_keyboard_controller_keeps_it_open,
    wide_accesses_keep_it_open,
    strings_of_these_ports_are_refused,
    the_keyboard_controller_answers,
];

const CONTROL: u16 = 0x92;
const DATA: u16 = 0x60;
const COMMAND: u16 = 0x64;
const OPEN: u8 = 1 << 1;

/// Two places that differ in address line 20 alone are two, and the microvisor goes on.
fn is_open() -> Outcome {
    let pages = Pages::take(257);
    let (low, high) = (pages.address(), pages.address() + (1 << 20));
    probe::write(low, 1).ok();
    probe::write(high, 2).ok();
    equal("the word below", probe::read(low), Ok(1))?;
    equal("the word 1 MiB above", probe::read(high), Ok(2))?;
    hv::machine_info().map(drop)
}

fn the_systems_control_port_keeps_it_open() -> Outcome {
    is_open()?;
    let old = read_port(CONTROL);
    for byte in [old & !OPEN, 0, 0xfc] {
        write_port(CONTROL, byte);
        is_open()?;
        equal("the bit", read_port(CONTROL) & OPEN, OPEN)?;
    }
    write_port(CONTROL, old);
    is_open()
}

fn the_keyboard_controller_keeps_it_open() -> Outcome {
    // Write the output port: all but reset.
    for byte in [0xdd, 0x01] {
        write_port(COMMAND, 0xd1);
        write_port(DATA, byte);
        is_open()?;
    }
    // The same with a command between, or after a byte that comes too soon.
    write_port(COMMAND, 0xd1);
    write_port(COMMAND, 0xae);
    write_port(DATA, 0x01);
    is_open()?;
    for byte in [0x01, 0x01, 0x01] {
        write_port(COMMAND, 0xd1);
        write_port(COMMAND, 0xd1);
        write_port(DATA, byte);
        is_open()?;
    }
    // Close the gate; pulse it.
    for command in [0xdd, 0xfd, 0xf1, 0xf5] {
        write_port(COMMAND, command);
        is_open()?;
    }
    Ok(())
}

fn wide_accesses_keep_it_open() -> Outcome {
    write_port16(CONTROL - 1, 0);
    is_open()?;
    write_port16(CONTROL, 0);
    is_open()?;
    write_port32(CONTROL - 2, 0);
    is_open()?;
    write_port16(COMMAND - 1, 0xdd00);
    is_open()?;
    write_port16(COMMAND - 1, 0xd100);
    write_port32(DATA - 3, 0x0101_0101);
    is_open()
}

fn strings_of_these_ports_are_refused() -> Outcome {
    let page = Pages::take(1).address();
    for port in [CONTROL, DATA, COMMAND] {
        let out = probe::outs(port, page, 4);
        equal("REP OUTSB", out, Err(GENERAL_PROTECTION))?;
        is_open()?;
    }
    Ok(())
}

/// Root has the controller: its self-test ends with 0x55 (the answer of an AT's).
fn the_keyboard_controller_answers() -> Outcome {
    const FULL: u8 = 1;
    while read_port(COMMAND) & FULL != 0 {
        read_port(DATA);
    }
    write_port(COMMAND, 0xaa);
    crate::second::wait_for("the controller has an answer", || {
        read_port(COMMAND) & FULL != 0
    })?;
    equal("the self-test", read_port(DATA), 0x55)
}
