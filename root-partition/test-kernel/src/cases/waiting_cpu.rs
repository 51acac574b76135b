//! The second CPU before it is woken: it waits in the mailbox as a CPU of VM 0's, in guest mode.
//!
//! INIT is not sent here: QEMU's TCG resets a CPU also where SVM intercepts the INIT.

use guest_proto::Status;
use guest_proto::hypercall::{ExitKind, Hypercall};

use super::machine::root_exits;
use crate::memory::Pages;
use crate::report::{Outcome, cases, ensure, equal};
use crate::waiting::probe;
use crate::{hv, second};

cases![
    it_executes_in_guest_mode,
    it_reaches_the_pages_where_it_waits_alone,
    nmis_do_it_no_harm,
    it_takes_no_command_but_its_own,
    epochs_do_not_wait_for_it,
];

/// The waiting CPU executes what it should.
fn it_goes_on() -> Outcome {
    let mailbox = second::place()?.mailbox;
    probe(mailbox).map(drop)
}

fn it_executes_in_guest_mode() -> Outcome {
    const SVM: u64 = 1 << 2;
    let cpuid = || root_exits(1, ExitKind::Cpuid);
    let before = cpuid()?;
    let found = probe(second::place()?.mailbox)?;
    equal("SVM in its CPUID", found.features & SVM, 0)?;
    equal("exits for CPUID", cpuid()?, before + 1)
}

fn it_reaches_the_pages_where_it_waits_alone() -> Outcome {
    let mailbox = second::place()?.mailbox;
    equal("the mailbox's command", probe(mailbox)?.word, Some(0))?;
    let page = Pages::take(1);
    for outside in [
        page.address(),
        super::MICROVISOR,
        0x1000,
        0x3_0000,
        0xfee0_0000,
    ] {
        equal("a word outside", probe(outside)?.word, None)?;
    }
    Ok(())
}

fn nmis_do_it_no_harm() -> Outcome {
    for _ in 0..20 {
        second::send_nmi();
        it_goes_on()?;
    }
    Ok(())
}

/// A CPU that obeyed one of these would execute what is no code.
fn it_takes_no_command_but_its_own() -> Outcome {
    const NOWHERE: u64 = 1 << 46;
    let id = second::place()?.id;
    for (command, id) in [(1, id + 1), (1, id | 1 << 16), (2, id), (u16::MAX, id)] {
        let command = second::command(command, id, NOWHERE)?;
        it_goes_on()?;
        ensure("the command is there", !command.taken())?;
    }
    second::command(0, id, NOWHERE).map(drop)
}

fn epochs_do_not_wait_for_it() -> Outcome {
    let partition = hv::create()?;
    let pool = Pages::take(1);
    let epoch = hv::call(Hypercall::Deposit, [partition, pool.pfn(), 1]).ok()?;
    let passed = hv::call(Hypercall::EpochPass, []).is(Status::Ok)?;
    ensure("the epoch is over", passed >= epoch)?;
    hv::destroy(partition)?;
    Ok(())
}
