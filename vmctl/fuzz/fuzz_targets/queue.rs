//! A queue of a virtio device, as a hostile driver leaves it.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| vmctl::worker::hostile::queue(data));
