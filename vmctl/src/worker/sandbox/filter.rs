//! The system calls of a worker whose VM runs.

use std::collections::BTreeMap;

use guest_proto::driver::ioctl as driver;
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition,
    SeccompFilter, SeccompRule, TargetArch,
};
use vhost::vhost_kern::vhost_binding as vhost;

use crate::net::tap::request as tap;

/// Allowed with any arguments: reading, writing and waiting for open files; taking files from the
/// daemon; allocating, freeing and flushing disk images; a new console log; locks between threads; memory; the end of a thread.
const ALLOWED: &[i64] = &[
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_preadv,
    libc::SYS_preadv2,
    libc::SYS_pwritev,
    libc::SYS_fallocate,
    libc::SYS_ftruncate,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_eventfd2,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_sendto,
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_accept4,
    libc::SYS_shutdown,
    libc::SYS_close,
    libc::SYS_openat,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_fstat,
    libc::SYS_fstatfs,
    libc::SYS_statx,
    libc::SYS_newfstatat,
    libc::SYS_lseek,
    libc::SYS_futex,
    libc::SYS_sched_yield,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_restart_syscall,
    libc::SYS_brk,
    libc::SYS_munmap,
    libc::SYS_madvise,
    libc::SYS_getrandom,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_sched_getaffinity,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

/// Allowed, but never to make memory executable; the argument with the protection.
const NOT_EXECUTABLE: &[(i64, u8)] = &[(libc::SYS_mmap, 2), (libc::SYS_mprotect, 2)];

/// The ioctls of a VM that runs, beside those of vhost: of its partition and virtual CPUs, never of the driver's device, which reaches
/// other partitions; for non-blocking sockets; and for the sizes of a block device and of its sectors (Linux's
/// `include/uapi/linux/fs.h`); and
/// for the queues, offloads, filters and link of a tap device, but not to become another tap.
const IOCTLS: &[u64] = &[
    driver::PARTITION_DOORBELL,
    driver::PARTITION_IRQFD,
    driver::PARTITION_MSI,
    driver::PARTITION_KICK_ALL,
    driver::PARTITION_DESTROY,
    driver::VCPU_GET_STATE,
    driver::VCPU_SET_STATE,
    driver::VCPU_APIC,
    driver::VCPU_KICK,
    libc::FIONBIO,
    tap::GET_INTERFACE as u64,
    tap::SET_OFFLOAD as u64,
    tap::SET_ADDRESSES as u64,
    tap::ATTACH_FILTER as u64,
    tap::DETACH_FILTER as u64,
    tap::SET_QUEUE as u64,
    tap::SET_CARRIER as u64,
    BLKGETSIZE64,
    BLKSSZGET,
];
const BLKGETSIZE64: u64 = 0x8008_1272;
const BLKSSZGET: u64 = 0x1268;

/// The ioctls by which root's kernel serves the queues of network cards and of a socket device.
fn vhost() -> [u64; 12] {
    [
        vhost::VHOST_SET_OWNER(),
        vhost::VHOST_SET_MEM_TABLE(),
        vhost::VHOST_GET_FEATURES(),
        vhost::VHOST_SET_FEATURES(),
        vhost::VHOST_SET_VRING_NUM(),
        vhost::VHOST_SET_VRING_BASE(),
        vhost::VHOST_SET_VRING_ADDR(),
        vhost::VHOST_SET_VRING_KICK(),
        vhost::VHOST_SET_VRING_CALL(),
        vhost::VHOST_SET_VRING_ERR(),
        vhost::VHOST_NET_SET_BACKEND(),
        vhost::VHOST_VSOCK_SET_RUNNING(),
    ]
}

/// The commands of `fcntl`: copies of a descriptor, its flags and its file's, and locks on disk images. None
/// has signals sent to another process.
const FCNTLS: &[i32] = &[
    libc::F_DUPFD_CLOEXEC,
    libc::F_GETFD,
    libc::F_SETFD,
    libc::F_GETFL,
    libc::F_SETFL,
    libc::F_OFD_GETLK,
    libc::F_OFD_SETLK,
];

/// The flag of `clone` that starts a thread, which inherits this filter, and not a process. The
/// flags of `clone3` lie in memory, where no filter sees them: [`no_clone3`].
const THREAD: u64 = libc::CLONE_THREAD as u64;

/// Returns a filter that answers `clone3` with `ENOSYS`, so that the C library uses `clone`.
pub(super) fn no_clone3() -> Result<BpfProgram, BackendError> {
    SeccompFilter::new(
        BTreeMap::from([(libc::SYS_clone3, Vec::new())]),
        SeccompAction::Allow,
        SeccompAction::Errno(libc::ENOSYS as u32),
        TargetArch::x86_64,
    )?
    .try_into()
}

pub(super) fn program() -> Result<BpfProgram, BackendError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        ALLOWED.iter().map(|&call| (call, Vec::new())).collect();
    for &(call, argument) in NOT_EXECUTABLE {
        let rule = masked(argument, libc::PROT_EXEC as u64, 0)?;
        rules.insert(call, vec![rule]);
    }
    // The reallocation of large memory; it can't change a mapping's protection.
    rules.insert(libc::SYS_mremap, Vec::new());
    rules.insert(libc::SYS_clone, vec![masked(0, THREAD, THREAD)?]);
    // The other filter answers it. Of two answers the kernel takes the stricter one.
    rules.insert(libc::SYS_clone3, Vec::new());
    // A thread sets its name.
    let name = is(0, libc::PR_SET_NAME as u64)?;
    rules.insert(libc::SYS_prctl, vec![name]);
    let numbers = IOCTLS.iter().copied().chain(vhost());
    let numbers = numbers.map(|number| is(1, number));
    rules.insert(libc::SYS_ioctl, numbers.collect::<Result<_, _>>()?);
    let commands = FCNTLS.iter().map(|&command| is(1, command as u64));
    rules.insert(libc::SYS_fcntl, commands.collect::<Result<_, _>>()?);
    // Signals to this process's own threads.
    let own = rustix::process::getpid().as_raw_nonzero().get();
    rules.insert(libc::SYS_tgkill, vec![is(0, own as u64)?]);
    SeccompFilter::new(
        rules,
        // SIGSYS, whose handler says which call it was.
        SeccompAction::Trap,
        SeccompAction::Allow,
        TargetArch::x86_64,
    )?
    .try_into()
}

/// The low half of an argument has this value.
fn is(argument: u8, value: u64) -> Result<SeccompRule, BackendError> {
    masked(argument, u64::from(u32::MAX), value)
}

/// The low half of an argument, masked, has this value.
fn masked(argument: u8, mask: u64, value: u64) -> Result<SeccompRule, BackendError> {
    let condition = SeccompCondition::new(
        argument,
        SeccompCmpArgLen::Dword,
        SeccompCmpOp::MaskedEq(mask),
        value,
    )?;
    SeccompRule::new(vec![condition])
}
