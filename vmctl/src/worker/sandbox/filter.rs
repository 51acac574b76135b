//! The system calls of a worker whose VM runs.

use std::collections::BTreeMap;

use guest_proto::driver::IOCTL_TYPE;
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition,
    SeccompFilter, SeccompRule, TargetArch,
};

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
    libc::SYS_fcntl,
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
    libc::SYS_tgkill,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

/// Allowed, but never to make memory executable; the argument with the protection.
const NOT_EXECUTABLE: &[(i64, u8)] = &[(libc::SYS_mmap, 2), (libc::SYS_mprotect, 2)];

/// The sizes of a block device and of its sectors (Linux's `include/uapi/linux/fs.h`).
const BLKGETSIZE64: u64 = 0x8008_1272;
const BLKSSZGET: u64 = 0x1268;

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
    let name = masked(0, u64::from(u32::MAX), libc::PR_SET_NAME as u64)?;
    rules.insert(libc::SYS_prctl, vec![name]);
    // The ioctls of the driver, which have a type of their own, that for non-blocking sockets, and those
    // for the sizes of a block device.
    let driver = masked(1, 0xff00, u64::from(IOCTL_TYPE) << 8)?;
    let non_blocking = masked(1, u64::from(u32::MAX), libc::FIONBIO)?;
    let size = masked(1, u64::from(u32::MAX), BLKGETSIZE64)?;
    let sector_size = masked(1, u64::from(u32::MAX), BLKSSZGET)?;
    let calls = vec![driver, non_blocking, size, sector_size];
    rules.insert(libc::SYS_ioctl, calls);
    SeccompFilter::new(
        rules,
        // SIGSYS, whose handler says which call it was.
        SeccompAction::Trap,
        SeccompAction::Allow,
        TargetArch::x86_64,
    )?
    .try_into()
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
