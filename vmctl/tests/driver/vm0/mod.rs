//! What only VM 0 can show.

mod attach;
mod guest;
mod hostile;
mod interrupts;
mod memory;
mod networks;
mod races;
mod vcpu;

use std::path::Path;
use std::time::{Duration, Instant};

use vmctl::driver::{Device, DriverError};

fn device() -> Device {
    Device::open(Path::new("/dev/microvisor")).unwrap()
}

/// The errno of what must fail.
fn errno<T>(result: Result<T, DriverError>) -> rustix::io::Errno {
    match result {
        Ok(_) => panic!("it succeeded"),
        Err(error) => error.errno,
    }
}

/// Waits for something that another process or thread does.
fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !is_so() {
        assert!(Instant::now() < end, "{what}: not within 20 seconds");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn the_driver_says_what_it_is() {
    let (info, machine) = device().info().unwrap();
    assert_eq!(info.driver_abi, guest_proto::ABI_VERSION);
    assert_eq!(machine.abi_version >> 16, guest_proto::ABI_VERSION >> 16);
    assert!(info.tsc_khz > 100_000);
    assert!(machine.cpus >= 1 && machine.frames > 100_000);
}

#[test]
fn the_log_is_read_in_pieces_of_any_size() {
    let device = device();
    let mut whole = vec![0; 1 << 16];
    let (length, end) = device.read_log(0, &mut whole).unwrap();
    assert!(length > 0 && end >= length as u64);
    let (mut position, mut pieces) = (end - length as u64, Vec::new());
    while pieces.len() < length {
        let mut piece = [0; 7];
        let (count, next) = device.read_log(position, &mut piece).unwrap();
        assert!(count > 0 && next > position);
        pieces.extend_from_slice(&piece[..count]);
        position = next;
    }
    assert!(pieces.starts_with(&whole[..length]));
}

#[test]
fn counters_are_of_cpus_that_exist() {
    let device = device();
    let root = device.counters(0, 0).unwrap();
    assert!(root.runs > 0 && root.now_tsc > 0);
    assert_eq!(errno(device.counters(0, 64)), rustix::io::Errno::NXIO);
    assert_eq!(errno(device.counters(200, 0)), rustix::io::Errno::NOENT);
}
