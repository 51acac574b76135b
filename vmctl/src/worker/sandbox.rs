//! What a worker gives up before its guest runs.
//!
//! A guest that takes over its worker gets a process without privileges to gain, without a file
//! system but its console log (Landlock, where the kernel has it), and with the system calls of
//! a running VM alone (seccomp): its descriptors are all it has. [`begin`] comes first of all,
//! [`lose_files`] before the virtual CPUs' threads exist (they inherit it), [`lose_system_calls`]
//! when they do, and before one of them runs.

mod filter;
#[cfg(test)]
mod tests;
mod violation;

use std::os::fd::BorrowedFd;

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, PathBeneath, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
};
use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};
use rustix::thread::set_no_new_privs;

use super::journal;

/// File descriptors that a worker may have: for devices, consoles and virtual CPUs.
const MAX_DESCRIPTORS: u64 = 4096;

/// Nothing new to be gained by an exec, no core dump with guest memory in it, no debugger.
///
/// # Errors
///
/// One line.
pub(super) fn begin() -> Result<(), String> {
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
        .map_err(|e| format!("sandbox: {}", std::io::Error::from(e)))?;
    violation::report_violations()
}

/// Leaves the calling thread, and those that it starts, the files of `state_dir` that a console
/// log needs, and no network. A kernel without Landlock leaves everything, and the log says so.
pub(super) fn lose_files(state_dir: BorrowedFd<'_>) {
    match restrict(state_dir) {
        Ok(RulesetStatus::FullyEnforced | RulesetStatus::PartiallyEnforced) => {}
        Ok(RulesetStatus::NotEnforced) => {
            journal::say(format_args!("sandbox: this kernel has no Landlock"));
        }
        Err(e) => journal::say(format_args!("sandbox: Landlock: {e}")),
    }
}

fn restrict(state_dir: BorrowedFd<'_>) -> Result<RulesetStatus, RulesetError> {
    let newest = ABI::V6;
    // The log is appended to, and renamed when it is full.
    let log = AccessFs::WriteFile | AccessFs::MakeReg | AccessFs::RemoveFile;
    let status = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(newest))?
        .handle_access(AccessNet::from_all(newest))?
        .scope(Scope::from_all(newest))?
        .create()?
        .add_rule(PathBeneath::new(state_dir, log))?
        .restrict_self()?;
    Ok(status.ruleset)
}

/// Leaves every thread of this process, and those that it starts, the system calls of a running VM.
///
/// # Errors
///
/// One line.
pub(super) fn lose_system_calls() -> Result<(), String> {
    let failed = |e: &dyn std::fmt::Display| format!("sandbox: system calls: {e}");
    for program in [filter::no_clone3(), filter::program()] {
        let program = program.map_err(|e| failed(&e))?;
        seccompiler::apply_filter_all_threads(&program).map_err(|e| failed(&e))?;
    }
    Ok(())
}
