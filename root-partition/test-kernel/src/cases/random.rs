//! Calls at random, on one CPU and on both: every answer is one that the call's documentation
//! names, and in the end everything comes back.

use guest_proto::Status;
use guest_proto::hypercall::{CALLS, CallDoc, Hypercall, MapRange};
use spin::Once;

use super::FOREIGN_PAGES;
use crate::hv::{self, Answer};
use crate::memory::Pages;
use crate::report::{Case, Outcome, cases, ensure, fail};
use crate::{apic, cpu, probe, second};

/// The case that needs the second CPU.
pub(super) const TWO_CPUS: &[Case] = &[Case {
    name: "answers_are_documented_on_both",
    run: answers_are_documented_on_both,
}];

cases![answers_are_documented];

/// Pages that the calls are about: root's kernel must not lose its own.
const ARENA: u64 = 160;
const CALLS_PER_CPU: u64 = 10_000;
/// Ticks of root's timer after which a guest's turn ends.
const TURN: u64 = 200_000;

fn arena() -> Pages {
    static ARENA_PAGES: Once<Pages> = Once::new();
    *ARENA_PAGES.call_once(|| Pages::take(ARENA))
}

/// Xorshift (Marsaglia 2003).
struct Random(u64);

impl Random {
    fn word(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, end: u64) -> u64 {
        self.word() % end
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    /// Any number, small ones and powers of two more often.
    fn number(&mut self) -> u64 {
        match self.below(4) {
            0 => self.below(20),
            1 => 1 << self.below(64),
            2 => (1 << self.below(64)) - 1,
            _ => self.word(),
        }
    }

    fn pfn(&mut self) -> u64 {
        if self.one_in(20) {
            FOREIGN_PAGES[self.below(FOREIGN_PAGES.len() as u64) as usize].0
        } else {
            arena().pfn() + self.below(ARENA)
        }
    }

    /// An argument that makes sense more often than not, by its name in the documentation.
    fn argument(&mut self, name: &str) -> u64 {
        // Any number might be a page that this kernel stands in.
        if name != "pfn" && self.one_in(30) {
            return self.number();
        }
        match name {
            "partition" => 1 + self.below(3),
            "vcpu" => self.below(3),
            "pfn" => self.pfn(),
            "count" => 1 + self.below(16) * self.below(2),
            "gpa_pfn" | "start" => self.below(32),
            "position" => self.below(5000),
            "property" => 1 + self.below(4),
            "value" => [1, 1_000_000, 0][self.below(3) as usize],
            "space" => (1 + self.below(2)) | self.below(2) << 8 | (1 + self.below(8)) << 16,
            "base" | "tag" => self.below(64),
            "address" => 0xfee0_0000 | self.below(4) << 12,
            "data" => self.below(0x1_0000),
            "register" => self.below(0x40) << 4 | self.below(2) << 31,
            _ => 0,
        }
    }

    /// Makes one page of the arena a list for `memory_map`, or garbage, if root has it.
    fn scribble(&mut self) {
        let page = arena().page(self.below(ARENA));
        for n in 0..16 {
            let entry = MapRange {
                gpa_pfn: self.below(32),
                pfn: self.pfn(),
                pages: 1 + self.below(3) as u32,
                flags: self.below(2) as u32,
            };
            let words: [u64; 3] = zerocopy::transmute!(entry);
            for (word, at) in words.into_iter().zip(0..) {
                let word = if self.one_in(40) { self.word() } else { word };
                // A page that is not root's now faults.
                let _ = probe::write(page.address() + 8 * (3 * n + at), word);
            }
        }
    }
}

fn is_documented(call: &CallDoc, answer: Answer) -> bool {
    match answer.status() {
        Some(Status::Ok | Status::InvalidArgument) => true,
        Some(status) => call.errors.iter().any(|(named, _)| *named == status),
        None => false,
    }
}

/// Makes calls; the first answer that is not documented, and the set of calls that succeeded.
fn storm(seed: u64) -> (Option<(u64, Answer)>, u64) {
    let mut random = Random(seed);
    let mut succeeded = 0;
    for _ in 0..CALLS_PER_CPU {
        if random.one_in(4) {
            random.scribble();
        }
        let index = random.below(CALLS.len() as u64) as usize;
        let call = &CALLS[index];
        // Partitions would not live long.
        if call.call == Hypercall::PartitionDestroy && !random.one_in(20) {
            continue;
        }
        let mut args = [0; 5];
        for (arg, doc) in args.iter_mut().zip(call.args) {
            *arg = random.argument(doc.name);
        }
        let runs = call.call == Hypercall::VcpuRun;
        if runs {
            apic::arm_timer(TURN);
        }
        let answer = hv::raw(call.call.raw(), args);
        if runs {
            apic::stop_timer();
            cpu::take_interrupts();
        }
        if !is_documented(call, answer) {
            return (Some((call.call.raw(), answer)), succeeded);
        }
        if answer.status() == Some(Status::Ok) {
            succeeded |= 1 << index;
        }
    }
    (None, succeeded)
}

/// Everything is root's again, and works.
fn clean_up() -> Outcome {
    hv::destroy_all();
    hv::pass_epoch_everywhere()?;
    arena().fill(Pages::PATTERN);
    ensure("the arena is root's", arena().holds(Pages::PATTERN))
}

/// `whole`: every call must have succeeded once. On one of two CPUs alone no epoch passes, so not
/// much can.
fn judge((wrong, succeeded): (Option<(u64, Answer)>, u64), whole: bool) -> Outcome {
    clean_up()?;
    if let Some((number, answer)) = wrong {
        return fail(format_args!("call {number:#x} answers {answer:x?}"));
    }
    for (n, call) in CALLS.iter().enumerate() {
        if whole && succeeded & 1 << n == 0 {
            return fail(format_args!("{} never succeeded", call.name));
        }
    }
    Ok(())
}

fn answers_are_documented() -> Outcome {
    judge(storm(0x9e37_79b9_7f4a_7c15), !second::is_up())
}

fn answers_are_documented_on_both() -> Outcome {
    fn task(_: [u64; 5]) -> Answer {
        match storm(0x0dd0_5eed_0dd0_5eed) {
            (None, _) => Answer {
                status: 0,
                value: 0,
            },
            // What is no status is the call's number.
            (Some((number, answer)), _) => Answer {
                status: number,
                value: answer.status,
            },
        }
    }
    second::begin(task, [0; 5])?;
    let own = storm(0x1234_5678_9abc_def1);
    let other = second::finish()?;
    judge(own, false)?;
    if other.status != 0 {
        return fail(format_args!(
            "on the second CPU: call and answer {other:x?}"
        ));
    }
    Ok(())
}
