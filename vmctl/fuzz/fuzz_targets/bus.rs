//! Accesses to the PCI bus and its virtio devices.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| vmctl::worker::hostile::bus(data));
