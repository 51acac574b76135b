//! The rights that a worker gives up before its guest runs.
//!
//! A guest that takes over its worker gets a process of a user that owns nothing else, without
//! privileges to gain, without a file system but its console log (Landlock, where the kernel has
//! it), and with the system calls of a running VM alone (seccomp): its descriptors are all it has.
//! [`begin`] comes first of all, [`become_user`] and [`lose_files`] before the virtual CPUs' threads exist
//! (they inherit both), [`lose_system_calls`] when they do, and before one of them runs.

mod filter;
#[cfg(test)]
mod tests;
mod violation;

use std::io;
use std::os::fd::BorrowedFd;

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, PathBeneath, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
};
use log::warn;
use rustix::fs::{Gid, Uid, fchown};
use rustix::process::{
    DumpableBehavior, Resource, Rlimit, geteuid, set_dumpable_behavior, setrlimit,
};
use rustix::thread::{set_no_new_privs, set_thread_groups, set_thread_res_gid, set_thread_res_uid};

/// File descriptors that a worker may have: for devices, consoles and virtual CPUs.
const MAX_DESCRIPTORS: u64 = 4096;

/// Error: a worker cannot lose a right. It must not run then.
#[derive(Debug, thiserror::Error)]
pub(super) enum SandboxError {
    /// A limit of the process is not set.
    #[error("sandbox: {0}")]
    Process(io::Error),
    /// The handler for forbidden system calls is not installed.
    #[error("sandbox: signal handler: {0}")]
    SignalHandler(io::Error),
    /// Another thread would keep its user.
    #[error("sandbox: user: {0:?} threads")]
    Threads(io::Result<usize>),
    /// No user has the number of the partition's.
    #[error("sandbox: user: there is no such number")]
    NoSuchUser,
    /// The user of the process is not changed.
    #[error("sandbox: user: {0}")]
    User(io::Error),
    /// The directory of the console's log is not given to the user.
    #[error("sandbox: directory of the log: {0}")]
    LogDirectory(io::Error),
    /// The filter of system calls is not made.
    #[error("sandbox: system calls: {0}")]
    NoFilter(#[from] seccompiler::BackendError),
    /// The filter of system calls is not applied.
    #[error("sandbox: system calls: {0}")]
    Filter(#[from] seccompiler::Error),
}

/// Gives up new rights by an exec, core dumps with guest memory in them, and debuggers.
///
/// # Errors
///
/// Fails with [`SandboxError`].
pub(super) fn begin() -> Result<(), SandboxError> {
    let limit = |resource, value| {
        setrlimit(
            resource,
            Rlimit {
                current: Some(value),
                maximum: Some(value),
            },
        )
    };
    set_no_new_privs(true)
        .and_then(|()| set_dumpable_behavior(DumpableBehavior::NotDumpable))
        .and_then(|()| limit(Resource::Core, 0))
        .and_then(|()| limit(Resource::Nofile, MAX_DESCRIPTORS))
        .map_err(|e| SandboxError::Process(e.into()))?;
    violation::report_violations()
}

/// Becomes the user and the group of partition `id`, who are in no other group and have no capability, and
/// gives them the directory of the console's log. A worker that is not root's stays whose it is.
///
/// # Errors
///
/// Fails with [`SandboxError`].
pub(super) fn become_user(
    first: u32,
    id: u64,
    log_dir: BorrowedFd<'_>,
) -> Result<(), SandboxError> {
    if !geteuid().is_root() {
        return Ok(());
    }
    // These are changes of the calling thread alone.
    let threads = std::fs::read_dir("/proc/self/task").map(Iterator::count);
    if !matches!(threads, Ok(1)) {
        return Err(SandboxError::Threads(threads));
    }
    let number = u32::try_from(id).ok().and_then(|id| first.checked_add(id));
    let number = number.ok_or(SandboxError::NoSuchUser)?;
    let (uid, gid) = (Uid::from_raw(number), Gid::from_raw(number));
    fchown(log_dir, Some(uid), Some(gid)).map_err(|e| SandboxError::LogDirectory(e.into()))?;
    set_thread_groups(&[])
        .and_then(|()| set_thread_res_gid(gid, gid, gid))
        .and_then(|()| set_thread_res_uid(uid, uid, uid))
        .map_err(|e| SandboxError::User(e.into()))
}

/// Leaves the calling thread, and those that it starts, the files of `log_dir` that a console
/// log needs, and no network. A kernel without Landlock leaves everything, and the log says so.
pub(super) fn lose_files(log_dir: BorrowedFd<'_>) {
    match restrict(log_dir) {
        Ok(RulesetStatus::FullyEnforced | RulesetStatus::PartiallyEnforced) => {}
        Ok(RulesetStatus::NotEnforced) => {
            warn!("sandbox: this kernel has no Landlock");
        }
        Err(e) => warn!("sandbox: Landlock: {e}"),
    }
}

fn restrict(log_dir: BorrowedFd<'_>) -> Result<RulesetStatus, RulesetError> {
    let newest = ABI::V6;
    // The log is appended to, and renamed when it is full.
    let log = AccessFs::WriteFile | AccessFs::MakeReg | AccessFs::RemoveFile;
    let status = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(newest))?
        .handle_access(AccessNet::from_all(newest))?
        .scope(Scope::from_all(newest))?
        .create()?
        .add_rule(PathBeneath::new(log_dir, log))?
        .restrict_self()?;
    Ok(status.ruleset)
}

/// Leaves every thread of this process, and those that it starts, the system calls of a running VM.
///
/// # Errors
///
/// Fails with [`SandboxError`].
pub(super) fn lose_system_calls() -> Result<(), SandboxError> {
    for program in [filter::no_clone3(), filter::program()] {
        seccompiler::apply_filter_all_threads(&program?)?;
    }
    Ok(())
}
