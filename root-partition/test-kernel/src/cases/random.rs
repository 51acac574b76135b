//! Calls at random, on one CPU and on both: every answer is one that the call's documentation
//! names, the nested maps are right meanwhile, and in the end everything comes back.
//!
//! The calls know the structure of what they send: arguments are chosen by their names, and pages are filled
//! with lists, states, replies and code that are mostly right. So guests come to run, with a few words wrong.

use core::mem::offset_of;
use core::ops::Range;
use core::sync::atomic::{AtomicU64, Ordering};

use guest_proto::Status;
use guest_proto::cpuid::CpuidEntry;
use guest_proto::hypercall::{CALLS, CallDoc, Hypercall, MapRange};
use guest_proto::limits::PAGE_SIZE;
use guest_proto::vcpu_page::{PostedInterrupts, Reply, RingConsumer, RunExit, VcpuPage, VcpuState};
use spin::Once;

use super::FOREIGN_PAGES;
use crate::guest::{Mode, start};
use crate::hv::{self, Answer};
use crate::memory::Pages;
use crate::report::{Case, Outcome, cases, ensure, fail};
use crate::{apic, cpu, probe, second};

/// The cases that need the second CPU.
pub(super) const TWO_CPUS: &[Case] = &[Case {
    name: "answers_are_documented_on_both",
    run: || on_both(CALLS_PER_CPU, 0x1234_5678_9abc_def1, false),
}];

/// The case of the long run, of as many calls as [`set_long`] was told.
pub const LONG: &[Case] = &[Case {
    name: "many_answers_are_documented_on_both",
    run: || {
        let (calls, seed) = (
            LONG_CALLS.load(Ordering::Relaxed),
            LONG_SEED.load(Ordering::Relaxed),
        );
        on_both(calls / 2, seed, true)
    },
}];

cases![answers_are_documented];

static LONG_CALLS: AtomicU64 = AtomicU64::new(0);
static LONG_SEED: AtomicU64 = AtomicU64::new(0);

/// Sets what [`LONG`] does: the calls of both CPUs together, and what they are chosen by.
pub fn set_long(calls: u64, seed: u64) {
    LONG_CALLS.store(calls, Ordering::Relaxed);
    LONG_SEED.store(seed, Ordering::Relaxed);
}

/// Pages that the calls are about: root's kernel must not lose its own. Mostly each has one part to play.
const ARENA: u64 = 160;
/// Lists for `memory_map`, and pages that calls fill.
const LISTS: Range<u64> = 0..8;
/// Pages of virtual CPUs.
const VCPUS: Range<u64> = 8..20;
/// RAM: guest page `n` of partition `id` at `GUEST_PAGES * (id % PARTITIONS) + n`.
const RAM: Range<u64> = 20..68;
/// Metadata.
const METADATA: Range<u64> = 68..ARENA;
/// Partitions that the calls are about, from 1 on.
const PARTITIONS: u64 = 3;
const CALLS_PER_CPU: u64 = 10_000;
/// Calls of each CPU between two checks of the nested maps.
const ROUND: u64 = 5_000;
/// Bit of [`Storm::succeeded`] of the first `RunExit`.
const RUN_EXITS: u8 = 32;
/// Guest pages that have RAM now and then.
const GUEST_PAGES: u64 = 16;
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

    /// A page of the arena that plays `part`, or seldom any other page.
    fn pfn(&mut self, part: Range<u64>) -> u64 {
        match self.below(40) {
            0 | 1 => FOREIGN_PAGES[self.below(FOREIGN_PAGES.len() as u64) as usize].0,
            2 => arena().pfn() + self.below(ARENA),
            _ => arena().pfn() + part.start + self.below(part.end - part.start),
        }
    }

    /// An argument that makes sense more often than not, by its name in the documentation.
    fn argument(&mut self, call: Hypercall, name: &str) -> u64 {
        // Any number might be a page that this kernel stands in.
        if name != "pfn" && self.one_in(30) {
            return self.number();
        }
        match name {
            "partition" => 1 + self.below(PARTITIONS),
            "vcpu" => self.below(3),
            "pfn" => self.pfn(match call {
                Hypercall::Deposit => METADATA,
                Hypercall::VcpuCreate => VCPUS,
                _ => LISTS,
            }),
            "count" if call == Hypercall::VcpuSetCpuid => self.below(3),
            "count" if call == Hypercall::Deposit => 1 + self.below(16),
            "count" => 1 + self.below(4) * self.below(2),
            "gpa_pfn" => self.below(GUEST_PAGES),
            "start" => self.below(4) * self.below(2),
            "position" => self.below(5000) | (self.below(260) * self.below(2)) << 36,
            "property" => 1 + self.below(4),
            "value" => [1, 1_000_000, 0][self.below(3) as usize],
            "length" => 1 + self.below(8),
            "flags" if call == Hypercall::DoorbellAdd => self.below(2),
            "port" | "tag" => self.below(64),
            "address" => 0xfee0_0000 | self.below(4) << 12,
            "data" => self.below(0x1_0000),
            "register" => self.below(0x40) << 4 | self.below(2) << 31,
            _ => 0,
        }
    }

    /// Makes pages what a call with these arguments, or a guest, may take for good. A page that is not
    /// root's now stays as it is.
    fn prepare(&mut self, call: Hypercall, args: [u64; 5]) {
        let list = args[1].wrapping_sub(arena().pfn());
        match call {
            Hypercall::MemoryMap if LISTS.contains(&list) && !self.one_in(8) => {
                self.put_list(arena().page(list), args[0]);
            }
            Hypercall::VcpuSetCpuid => {
                let page = args[2].wrapping_sub(arena().pfn());
                if LISTS.contains(&page) {
                    self.put_cpuid(arena().page(page));
                }
            }
            Hypercall::VcpuSetState => self.put_vcpu(),
            Hypercall::VcpuRun if self.one_in(8) => self.put_vcpu(),
            Hypercall::VcpuRun if self.one_in(2) => self.put_ram(),
            _ => {}
        }
    }

    /// Answers of CPUID, in order more often than not.
    fn put_cpuid(&mut self, page: Pages) {
        for n in 0..3 {
            let entry = CpuidEntry {
                leaf: n as u32 * 4 + self.below(5) as u32,
                subleaf: self.below(2) as u32,
                flags: 1,
                eax: self.word() as u32,
                ..CpuidEntry::default()
            };
            let words: [u64; 4] = zerocopy::transmute!(entry);
            self.put(page, 32 * n, &words, 100);
        }
    }

    /// A list of what stands where in a partition's RAM.
    fn put_list(&mut self, page: Pages, partition: u64) {
        for n in 0..16 {
            let gpa_pfn = self.below(GUEST_PAGES);
            let index = (partition % PARTITIONS) * GUEST_PAGES + gpa_pfn;
            let other = self.pfn(RAM);
            let entry = MapRange {
                gpa_pfn,
                pfn: if self.one_in(8) {
                    other
                } else {
                    arena().pfn() + RAM.start + index
                },
                pages: 1 + self.below(3) as u32,
                flags: u32::from(self.one_in(8)),
            };
            let words: [u64; 3] = zerocopy::transmute!(entry);
            self.put(page, 24 * n, &words, 100);
        }
    }

    /// What the microvisor reads in the page of a virtual CPU.
    fn put_vcpu(&mut self) {
        let page = arena().page(VCPUS.start + self.below(VCPUS.end - VCPUS.start));
        let mode = [Mode::Real, Mode::Protected, Mode::Long][self.below(3) as usize];
        let state = VcpuState {
            rip: self.below(GUEST_PAGES) * PAGE_SIZE,
            rflags: 2 | self.below(2) << 9,
            run_state: (self.below(4) / 2) as u32,
            ..start::state(mode)
        };
        let words: [u64; 80] = zerocopy::transmute!(state);
        self.put(page, offset_of!(VcpuPage, state) as u64, &words, 200);
        let reply = Reply {
            flags: self.below(8) as u32,
            exception: self.below(40) as u32,
            data: self.word(),
            ..Reply::default()
        };
        let words: [u64; 8] = zerocopy::transmute!(reply);
        self.put(page, offset_of!(VcpuPage, reply) as u64, &words, 40);
        let posted = PostedInterrupts {
            pending: [self.number(), self.number(), 0, self.number()],
            level: [0, self.number(), 0, 0],
            outstanding: self.below(2) as u32,
            nmi: self.below(2) as u32,
            ..PostedInterrupts::default()
        };
        let words: [u64; 16] = zerocopy::transmute!(posted);
        self.put(page, offset_of!(VcpuPage, posted) as u64, &words, 40);
        let consumer = RingConsumer {
            tail: self.number() as u32,
            need_wakeup: self.below(2) as u32,
            ..RingConsumer::default()
        };
        let words: [u64; 8] = zerocopy::transmute!(consumer);
        self.put(page, offset_of!(VcpuPage, consumer) as u64, &words, 40);
    }

    /// What a guest may find in its memory: page tables where its states expect them, and instructions.
    fn put_ram(&mut self) {
        const RIGHTS: u64 = 0b111;
        const LARGE: u64 = 1 << 7;
        let index = self.below(RAM.end - RAM.start);
        let page = arena().page(RAM.start + index);
        match index % GUEST_PAGES {
            2 => self.put(page, 0, &[(3 * PAGE_SIZE) | RIGHTS], 40),
            3 => self.put(page, 0, &[LARGE | RIGHTS, 1 << 30 | LARGE | RIGHTS], 40),
            _ => {
                let mut words = [0; 64];
                for word in &mut words {
                    let code = CODE[self.below(CODE.len() as u64) as usize];
                    let mut bytes = self.word().to_le_bytes();
                    bytes[..code.len()].copy_from_slice(code);
                    *word = u64::from_le_bytes(bytes);
                }
                self.put(page, 0, &words, 1000);
            }
        }
    }

    /// Writes words into a page, one in `spoil` of them another than given.
    fn put(&mut self, page: Pages, offset: u64, words: &[u64], spoil: u64) {
        for (word, at) in words.iter().zip(0..) {
            let word = if self.one_in(spoil) {
                self.number()
            } else {
                *word
            };
            // A page that is not root's now faults.
            let _ = probe::write(page.address() + offset + 8 * at, word);
        }
    }
}

/// Instructions that exit, that take time or change the CPU's mode, each at the start of eight bytes: what
/// follows is their operand, or other instructions.
const CODE: &[&[u8]] = &[
    &[0x90, 0xeb, 5],                         // NOP; JMP to the next
    &[0xf4, 0xeb, 5],                         // HLT; JMP to the next
    &[0xfb, 0xeb, 5],                         // STI; JMP to the next
    &[0xfa, 0xeb, 5],                         // CLI; JMP to the next
    &[0xe6, 7, 0xeb, 4],                      // OUT 7, AL; JMP to the next
    &[0xe6],                                  // OUT imm8, AL
    &[0xe4],                                  // IN AL, imm8
    &[0xee],                                  // OUT DX, AL
    &[0xf3, 0x6e],                            // REP OUTSB
    &[0xf3, 0x6c],                            // REP INSB
    &[0xcd],                                  // INT imm8
    &[0xeb, 0xfe],                            // JMP to itself
    &[0xb9],                                  // MOV ECX, imm32
    &[0xb8, 0x40, 0, 0x0c, 0, 0xeb, 1],       // MOV EAX, an IPI to all others; JMP to the next
    &[0x89, 0x00, 0xeb, 4],                   // MOV [EAX], EAX; JMP to the next
    &[0x8b, 0x00, 0xeb, 4],                   // MOV EAX, [EAX]; JMP to the next
    &[0x0f, 0xa2, 0xeb, 4],                   // CPUID; JMP to the next
    &[0x0f, 0x31, 0xeb, 4],                   // RDTSC; JMP to the next
    &[0x0f, 0x32, 0xeb, 4],                   // RDMSR; JMP to the next
    &[0x0f, 0x30, 0xeb, 4],                   // WRMSR; JMP to the next
    &[0x66, 0xb9, 0x30, 8, 0, 0, 0x0f, 0x30], // 16-bit: MOV ECX, x2APIC's ICR; WRMSR
    &[0xb9, 0x30, 8, 0, 0, 0x0f, 0x30, 0x90], // MOV ECX, x2APIC's ICR; WRMSR
    &[0xb9, 0x38, 8, 0, 0, 0x0f, 0x30, 0x90], // MOV ECX, x2APIC's timer count; WRMSR
    &[0xb9, 0xe0, 6, 0, 0, 0x0f, 0x30, 0x90], // MOV ECX, TSC_DEADLINE; WRMSR
    &[0x0f, 0x08],                            // INVD
    &[0x0f, 0x0b],                            // UD2
    &[0x0f, 0x01, 0xd9],                      // VMMCALL
    &[0x0f, 0x01, 0xd8],                      // VMRUN
    &[0x0f, 0x01, 0xdc],                      // STGI
    &[0x0f, 0x01, 0xd1],                      // XSETBV
    &[0x0f, 0x22, 0xc0],                      // MOV CR0, EAX
    &[0x0f, 0x22, 0xd8],                      // MOV CR3, EAX
    &[0x0f, 0x22, 0xe0],                      // MOV CR4, EAX
    &[0x0f, 0x23, 0xf8],                      // MOV DR7, EAX
];

fn is_documented(call: &CallDoc, answer: Answer) -> bool {
    match answer.status() {
        Some(Status::Ok) if call.call == Hypercall::VcpuRun => {
            RunExit::from_raw(answer.value as u8).is_some()
        }
        Some(Status::Ok | Status::InvalidArgument) => true,
        Some(status) => call.errors.iter().any(|(named, _)| *named == status),
        None => false,
    }
}

/// What came of calls.
struct Storm {
    /// The first answer that is not documented, and its call's number.
    wrong: Option<(u64, Answer)>,
    /// The calls that succeeded, as a set of indices; from [`RUN_EXITS`] on, how turns ended.
    succeeded: u64,
}

/// Makes calls.
fn storm(calls: u64, seed: u64) -> Storm {
    let mut random = Random(seed | 1);
    let mut succeeded = 0;
    for _ in 0..calls {
        let index = random.below(CALLS.len() as u64) as usize;
        let call = &CALLS[index];
        // Partitions would not live long.
        if call.call == Hypercall::PartitionDestroy && !random.one_in(20) {
            continue;
        }
        let mut args = [0; 5];
        for (arg, doc) in args.iter_mut().zip(call.args) {
            *arg = random.argument(call.call, doc.name);
        }
        random.prepare(call.call, args);
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
            let wrong = Some((call.call.raw(), answer));
            return Storm { wrong, succeeded };
        }
        if answer.status() == Some(Status::Ok) {
            succeeded |= 1 << index;
            if runs {
                succeeded |= 1 << (RUN_EXITS + answer.value as u8);
            }
        }
    }
    Storm {
        wrong: None,
        succeeded,
    }
}

/// Everything is root's again, and works.
fn clean_up() -> Outcome {
    hv::destroy_all();
    hv::pass_epoch_everywhere()?;
    arena().fill(Pages::PATTERN);
    ensure("the arena is root's", arena().holds(Pages::PATTERN))
}

fn all_documented(storm: &Storm) -> Outcome {
    match storm.wrong {
        Some((number, answer)) => fail(format_args!("call {number:#x} answers {answer:x?}")),
        None => Ok(()),
    }
}

/// Each call must have succeeded once.
fn all_succeeded(succeeded: u64) -> Outcome {
    for (n, call) in CALLS.iter().enumerate() {
        if succeeded & 1 << n == 0 {
            return fail(format_args!("{} never succeeded", call.name));
        }
    }
    Ok(())
}

/// Guests must have executed something, until each of these ended a turn once.
fn guests_ran(succeeded: u64) -> Outcome {
    for exit in [RunExit::Interrupt, RunExit::Intercept, RunExit::Halted] {
        if succeeded & 1 << (RUN_EXITS + exit.raw()) == 0 {
            return fail(format_args!("no turn ended by {exit:?}"));
        }
    }
    Ok(())
}

fn answers_are_documented() -> Outcome {
    let storm = storm(CALLS_PER_CPU, 0x9e37_79b9_7f4a_7c15);
    let verified = hv::verify();
    clean_up()?;
    all_documented(&storm)?;
    verified?;
    // On one of two CPUs alone no epoch passes, so not much can succeed.
    if second::is_up() {
        return Ok(());
    }
    all_succeeded(storm.succeeded)
}

/// Makes calls on both CPUs at once, in rounds, with a check of the nested maps in each.
fn on_both(calls_per_cpu: u64, seed: u64, whole: bool) -> Outcome {
    let (mut left, mut succeeded, mut seeds) = (calls_per_cpu, 0, Random(seed | 1));
    let mut outcome = Ok(());
    while left > 0 && outcome.is_ok() {
        let calls = left.min(ROUND);
        left -= calls;
        outcome = round(calls, [seeds.word(), seeds.word()]).map(|set| succeeded |= set);
    }
    clean_up()?;
    outcome?;
    if whole {
        all_succeeded(succeeded)?;
        guests_ran(succeeded)?;
    }
    Ok(())
}

/// Makes calls on both CPUs at once; the set of calls that succeeded.
fn round(calls: u64, seeds: [u64; 2]) -> Outcome<u64> {
    fn task([calls, seed, ..]: [u64; 5]) -> Answer {
        let storm = storm(calls, seed);
        match storm.wrong {
            None => Answer {
                status: 0,
                value: storm.succeeded,
            },
            // What is no status is the call's number.
            Some((number, answer)) => Answer {
                status: number,
                value: answer.status,
            },
        }
    }
    let [own_seed, other_seed] = seeds;
    second::begin(task, [calls, other_seed, 0, 0, 0])?;
    let own = storm(calls, own_seed);
    // The other CPU may still be at its calls.
    let verified = hv::verify();
    let other = second::finish()?;
    all_documented(&own)?;
    if other.status != 0 {
        return fail(format_args!(
            "on the second CPU: call and answer {other:x?}"
        ));
    }
    verified?;
    Ok(own.succeeded | other.value)
}
