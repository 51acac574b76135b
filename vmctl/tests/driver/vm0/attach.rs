//! Who may use a partition: one living process at a time, whatever becomes of fds.

use std::io::{BufRead, BufReader, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::process::{Child, Command, Stdio};

use rustix::io::{Errno, FdFlags, fcntl_setfd};

use super::guest::{Guest, byte, eventually_running, memfd, run, start_at, write};
use super::{device, errno, eventually};

/// Another process, running one of the helpers below.
struct Helper {
    process: Child,
    /// What it said after `ready`.
    said: String,
}

impl Helper {
    fn start(name: &str) -> Self {
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "--nocapture", name])
            .env("DRIVER_TEST_HELPER", "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let said = lines
            .find_map(|line| Some(line.unwrap().split_once("ready ")?.1.to_string()))
            .expect("the helper is ready");
        // Its later lines must not meet a closed pipe.
        std::thread::spawn(move || lines.for_each(drop));
        Self { process, said }
    }

    fn number(&self, index: usize) -> u64 {
        self.said.split(' ').nth(index).unwrap().parse().unwrap()
    }

    fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        // Dead already is as good.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Whether this process is a helper; the helpers do nothing as tests.
fn is_helper() -> bool {
    std::env::var_os("DRIVER_TEST_HELPER").is_some()
}

fn ready(text: std::fmt::Arguments<'_>) {
    println!("ready {text}");
    std::io::stdout().flush().unwrap();
}

/// Waits to be killed.
fn wait() -> ! {
    loop {
        std::thread::park();
    }
}

#[test]
fn helper_runs_a_guest_for_ever() {
    if !is_helper() {
        return;
    }
    // inc byte [0x5000]; jmp -6
    let mut guest = Guest::new(&[0xfe, 0x06, 0x00, 0x50, 0xeb, 0xfa]);
    ready(format_args!("{} {}", guest.vm.id(), guest.vm.token()));
    loop {
        match guest.vcpu.run() {
            Ok(()) => panic!("{:?}", guest.vcpu.intercept()),
            Err(Errno::INTR) => {}
            Err(errno) => panic!("{errno}"),
        }
    }
}

#[test]
fn helper_leaves_its_fd_to_a_child() {
    if !is_helper() {
        return;
    }
    let vm = device().create_partition("inherited", 0).unwrap();
    let (id, token) = (vm.id(), vm.token());
    fcntl_setfd(&vm, FdFlags::empty()).unwrap();
    #[expect(clippy::zombie_processes, reason = "it is to outlive this process")]
    let child = Command::new("/bin/busybox")
        .args(["sleep", "1000"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    ready(format_args!("{id} {token} {}", child.id()));
    wait();
}

#[test]
fn helper_leaves_a_partition() {
    if std::env::var_os("DRIVER_TEST_LEAVES").is_some() {
        device().create_partition("left", 0).unwrap();
    }
}

#[test]
fn helper_destroys_all() {
    let device = device();
    for id in device.list_partitions().unwrap() {
        device.destroy_partition(id).unwrap();
    }
}

#[test]
fn a_partition_lives_by_its_id() {
    let device = device();
    let vm = device.create_partition("by-id", 0).unwrap();
    let (id, token) = (vm.id(), vm.token());
    let info = device.partition_info(id).unwrap();
    assert!(info.name.starts_with(b"by-id\0"));
    assert_eq!(info.worker, std::process::id());
    drop(vm);
    assert_eq!(device.list_partitions().unwrap(), [id]);
    assert_eq!(device.partition_info(id).unwrap().worker, 0);
    for wrong in [0, token ^ 1, !token] {
        assert_eq!(errno(device.attach_partition(id, wrong)), Errno::PERM);
    }
    assert_eq!(device.partition_info(id).unwrap().worker, 0);
    let again = device.attach_partition(id, token).unwrap();
    // Once more is no other process.
    drop(device.attach_partition(id, token).unwrap());
    assert_eq!(
        device.partition_info(id).unwrap().worker,
        std::process::id()
    );
    device.destroy_partition(id).unwrap();
    assert_eq!(errno(device.destroy_partition(id)), Errno::NOENT);
    assert_eq!(errno(device.attach_partition(id, token)), Errno::NOENT);
    assert_eq!(errno(again.kick_all()), Errno::NODEV);
    assert_eq!(errno(again.vcpu(0)), Errno::NODEV);
    assert!(device.list_partitions().unwrap().is_empty());
}

#[test]
fn a_partition_is_ended_by_its_own_descriptor() {
    let device = device();
    let vm = device.create_partition("own", 0).unwrap();
    let other = device.create_partition("other", 0).unwrap();
    assert_ne!(vm.token(), other.token());
    vm.destroy().unwrap();
    assert_eq!(device.list_partitions().unwrap(), [other.id()]);
    // The id is free again, and another partition gets it.
    let next = device.create_partition("next", 0).unwrap();
    assert_eq!(next.id(), vm.id());
    assert_eq!(errno(vm.destroy()), Errno::NODEV);
    assert_eq!(device.list_partitions().unwrap().len(), 2);
    for vm in [other, next] {
        vm.destroy().unwrap();
    }
    assert!(device.list_partitions().unwrap().is_empty());
}

#[test]
fn ids_run_out_and_come_back() {
    let device = device();
    let mut vms = Vec::new();
    let errno = loop {
        match device.create_partition("many", 0) {
            Ok(vm) => vms.push(vm),
            Err(error) => break error.errno,
        }
    };
    assert_eq!(errno, Errno::NOSPC);
    assert_eq!(vms.len(), 255);
    for vm in &vms {
        device.destroy_partition(vm.id()).unwrap();
    }
    assert!(device.list_partitions().unwrap().is_empty());
}

#[test]
fn a_living_worker_keeps_others_out_and_a_dead_one_leaves_all_but_itself() {
    let device = device();
    let mut worker = Helper::start("vm0::attach::helper_runs_a_guest_for_ever");
    let (id, token) = (worker.number(0), worker.number(1));
    eventually_running(&device, id);
    // Its first turn ends where it has no memory yet.
    eventually("it has memory", || {
        device.partition_info(id).unwrap().ram_pages > 0
    });
    assert_eq!(errno(device.attach_partition(id, token)), Errno::BUSY);
    assert_eq!(errno(device.destroy_partition(id)), Errno::BUSY);
    assert_eq!(
        device.partition_info(id).unwrap().worker,
        worker.process.id()
    );

    // In the middle of a run.
    worker.kill();
    eventually("nobody is attached", || {
        device.partition_info(id).unwrap().worker == 0
    });
    let info = device.partition_info(id).unwrap();
    assert_eq!((info.vcpus, info.memory), (1, 4 << 20));
    assert!(info.ram_pages > 0);

    let vm = device.attach_partition(id, token).unwrap();
    let (slot, memfd) = vm.memory(0).unwrap().unwrap();
    assert_eq!((slot.gpa, slot.size, slot.offset), (0, 4 << 20, 0));
    assert!(vm.memory(1).unwrap().is_none());
    assert_eq!(byte(&memfd, 0x1000), 0xfe);
    // It goes on where it was, and can be stopped: out 0x33, al
    let (mut vcpu, _) = vm.vcpu(0).unwrap();
    let state = vcpu.fetch_state().unwrap();
    assert!((0x1000..0x1006).contains(&state.rip));
    write(&memfd, 0x3000, &[0xe6, 0x33]);
    start_at(&mut vcpu, 0x3000);
    assert_eq!(run(&mut vcpu).address, 0x33);
    device.destroy_partition(id).unwrap();
}

#[test]
fn fds_in_a_child_neither_work_nor_keep_others_out() {
    let device = device();
    let mut worker = Helper::start("vm0::attach::helper_leaves_its_fd_to_a_child");
    let [id, token, child] = [0, 1, 2].map(|n| worker.number(n));
    worker.kill();
    let vm = device.attach_partition(id, token);
    Command::new("/bin/busybox")
        .args(["kill", &child.to_string()])
        .status()
        .unwrap();
    let vm = vm.unwrap();
    let memfd = memfd(4 << 20);
    vm.set_memory(0, memfd.as_fd(), 0, 4 << 20, 0, 0).unwrap();
    device.destroy_partition(id).unwrap();
}

#[test]
fn an_inherited_fd_answers_not_permitted() {
    let device = device();
    let vm = device.create_partition("inherited", 0).unwrap();
    fcntl_setfd(&vm, FdFlags::empty()).unwrap();
    let status = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "vm0::hostile::helper_uses_an_fd_that_is_not_its_own",
        ])
        .env("DRIVER_TEST_FD", vm.as_fd().as_raw_fd().to_string())
        .stdout(Stdio::null())
        .status()
        .unwrap();
    assert!(status.success());
    // Nor has the child's end changed anything here.
    vm.kick_all().unwrap();
    device.destroy_partition(vm.id()).unwrap();
}
