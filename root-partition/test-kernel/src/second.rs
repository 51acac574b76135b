//! The second CPU: comes up through the mailbox, then does what the first one asks for.
#![allow(unsafe_code, reason = "the wakeup mailbox")]

use core::sync::atomic::{AtomicBool, AtomicU16, AtomicU32, AtomicU64, Ordering};

use guest_proto::hypercall::Hypercall;
use spin::Mutex;

use crate::hv::{self, Answer};
use crate::report::{Outcome, fail};
use crate::{acpi, apic, cpu, trap};

/// What the second CPU is to do.
pub type Task = fn([u64; 5]) -> Answer;

enum Job {
    Idle,
    Wanted(Task, [u64; 5]),
    Running,
    Done(Answer),
}

static JOB: Mutex<Job> = Mutex::new(Job::Idle);
static UP: AtomicBool = AtomicBool::new(false);
static PLACE: Mutex<Option<Place>> = Mutex::new(None);

/// The second CPU while it waits.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// Its APIC ID.
    pub id: u32,
    /// Address of the multiprocessor wakeup mailbox.
    pub mailbox: u64,
}

/// Ticks of the time-stamp counter that a wait lasts at most: half a minute on a busy machine.
const TIMEOUT: u64 = 100_000_000_000;

/// Waits for `done`, not for ever.
#[track_caller]
pub fn wait_for(what: &str, mut done: impl FnMut() -> bool) -> Outcome {
    let start = cpu::tsc();
    while !done() {
        if cpu::tsc().wrapping_sub(start) > TIMEOUT {
            return fail(format_args!("waited in vain: {what}"));
        }
        core::hint::spin_loop();
    }
    Ok(())
}

/// Whether there is a second CPU.
pub fn is_up() -> bool {
    UP.load(Ordering::Acquire)
}

/// Looks for a second CPU; whether the machine has one.
pub fn find(boot_params: u64) -> Outcome<bool> {
    let own_id = cpu::cpuid(1, 0).ebx >> 24;
    let Some(cpus) = acpi::cpus(boot_params, own_id) else {
        return fail(format_args!("there is no MADT"));
    };
    let Some(id) = cpus.other else {
        return Ok(false);
    };
    let Some(mailbox) = cpus.mailbox else {
        return fail(format_args!("the MADT has no wakeup mailbox"));
    };
    *PLACE.lock() = Some(Place { id, mailbox });
    Ok(true)
}

/// Where the second CPU waits.
#[track_caller]
pub fn place() -> Outcome<Place> {
    match *PLACE.lock() {
        Some(place) => Ok(place),
        None => fail(format_args!("there is no second CPU")),
    }
}

/// Writes a command into the mailbox.
pub fn command(command: u16, id: u32, entry: u64) -> Outcome<Command> {
    let mailbox = place()?.mailbox;
    // SAFETY: the mailbox is a reserved page that both sides touch with atomics alone.
    let (word, apic_id, vector) = unsafe {
        (
            AtomicU16::from_ptr(mailbox as *mut u16),
            AtomicU32::from_ptr((mailbox + 4) as *mut u32),
            AtomicU64::from_ptr((mailbox + 8) as *mut u64),
        )
    };
    apic_id.store(id, Ordering::Relaxed);
    vector.store(entry, Ordering::Relaxed);
    word.store(command, Ordering::Release);
    Ok(Command(word))
}

/// A command in the mailbox.
#[derive(Debug)]
pub struct Command(&'static AtomicU16);

impl Command {
    /// Whether the second CPU has taken it.
    pub fn taken(&self) -> bool {
        self.0.load(Ordering::Acquire) == 0
    }
}

/// Wakes the second CPU at `entry`.
pub fn start(entry: u64) -> Outcome {
    let command = command(1, place()?.id, entry)?;
    wait_for("the mailbox command is taken", || command.taken())?;
    wait_for("the second CPU runs", is_up)
}

/// The second CPU, for good.
pub fn main() -> ! {
    trap::init(1);
    cpu::enable_vectors();
    apic::init();
    UP.store(true, Ordering::Release);
    loop {
        let job = {
            let mut job = JOB.lock();
            match *job {
                Job::Wanted(task, args) => {
                    *job = Job::Running;
                    Some((task, args))
                }
                _ => None,
            }
        };
        if let Some((task, args)) = job {
            let answer = task(args);
            *JOB.lock() = Job::Done(answer);
        }
        core::hint::spin_loop();
    }
}

/// Interrupts the second CPU: a guest's turn there ends.
pub fn kick() {
    if let Some(place) = *PLACE.lock() {
        apic::send(place.id);
    }
}

/// The same by an NMI.
pub fn send_nmi() {
    if let Some(place) = *PLACE.lock() {
        apic::send_nmi(place.id);
    }
}

/// Makes the second CPU begin a task.
#[track_caller]
pub fn begin(task: Task, args: [u64; 5]) -> Outcome {
    let mut job = JOB.lock();
    if !is_up() || !matches!(*job, Job::Idle) {
        return fail(format_args!("the second CPU is not free"));
    }
    *job = Job::Wanted(task, args);
    Ok(())
}

/// Waits for the task's end.
#[track_caller]
pub fn finish() -> Outcome<Answer> {
    let mut answer = None;
    wait_for("the second CPU ends its task", || {
        let mut job = JOB.lock();
        if let Job::Done(done) = *job {
            *job = Job::Idle;
            answer = Some(done);
        }
        answer.is_some()
    })?;
    match answer {
        Some(answer) => Ok(answer),
        None => fail(format_args!("the second CPU has no answer")),
    }
}

/// A hypercall on the second CPU.
#[track_caller]
pub fn call<const N: usize>(call: Hypercall, args: [u64; N]) -> Outcome<Answer> {
    /// The number is the last of the arguments: no call has as many as five.
    fn task(args: [u64; 5]) -> Answer {
        let [a, b, c, d, number] = args;
        hv::raw(number, [a, b, c, d, 0])
    }
    let mut words = hv::widen(args);
    words[4] = call.raw();
    begin(task, words)?;
    finish()
}
