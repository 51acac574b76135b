//! Carrying requests out.

use std::cell::RefCell;
use std::io::{IoSlice, IoSliceMut};
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicI32, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::{self, Scope};
use std::time::Instant;

use guest_proto::control::{DiskFile, DiskStatus};
use log::warn;
use virtio_bindings::virtio_blk::{VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP};

use super::crew::{Count, Crew};
use super::flights::{Flights, Id, Late};
use super::lead::Lead;
use super::request::{Operation, Request};
use super::{Options, QUEUE_SIZE, Refusal};
use crate::config::{OnError, OnTimeout};
use crate::disk::{CachedRead, Image, IoError};
use crate::worker::event::Event;
use crate::worker::memory::Memory;
use crate::worker::stall::Stalls;
use crate::worker::virtio::thread::serve_kicks;
use crate::worker::virtio::{Malformed, Serve, Vring, read_bytes};

/// Bytes of the serial number (virtio 1.2 §5.2.6).
const SERIAL_LEN: usize = 20;
/// Errors of the image that a disk logs.
const MAX_REPORTS: u32 = 16;

/// The state that all threads of a disk share.
#[derive(Debug)]
pub(super) struct Disk {
    pub(super) image: Image,
    pub(super) options: Options,
    stalls: Arc<Stalls>,
    /// The threads of all queues.
    threads: Count,
    reports: AtomicU32,
    /// Writes that the driver has an error for, and that root may still carry out. Negative for a
    /// moment if root carries one out while it is given up.
    lost_writes: AtomicI32,
    counters: Counters,
}

#[derive(Debug, Default)]
struct Counters {
    read: AtomicU64,
    written: AtomicU64,
    in_flight: AtomicU32,
    errors: AtomicU64,
}

/// The result of an attempt to carry out a request without waiting.
enum Attempt {
    /// The request was carried out.
    Done(Result<usize, Refusal>),
    /// The request was not carried out. It will hardly wait, but nothing says so.
    Short,
    /// The request was not carried out, because it has to wait.
    Long,
}

/// The server of one queue.
pub(super) struct Server(pub(super) Arc<Disk>);

/// The state that all threads of a queue share.
struct Work<'a> {
    disk: &'a Disk,
    memory: &'a Memory,
    vring: &'a Vring,
    stop: &'a Event,
    lead: Lead,
    flights: Flights,
    /// The error that a thread has found in the queue.
    malformed: OnceLock<Malformed>,
}

/// A request that a thread carries out.
struct Job {
    id: Id,
    request: Arc<Request>,
}

/// Values that all threads of a queue borrow: the place of their work, the work, the crew, and the crew's work.
struct Post<'scope, 'env, W> {
    scope: &'scope Scope<'scope, 'env>,
    work: &'scope Work<'env>,
    crew: &'scope Crew<Job>,
    finish: &'scope W,
}

impl Serve for Server {
    fn run(&mut self, memory: &Memory, vring: &Vring, stop: &Event) -> Result<(), Malformed> {
        let work = Work {
            disk: &self.0,
            memory,
            vring,
            stop,
            lead: Lead::default(),
            flights: Flights::new(self.0.options.io_timeout),
            malformed: OnceLock::new(),
        };
        let crew = Crew::new(work.thread_name(), self.0.threads.clone());
        let finish = |job| work.finish(job);
        thread::scope(|scope| {
            let post = Post {
                scope,
                work: &work,
                crew: &crew,
                finish: &finish,
            };
            post.lead();
        });
        work.malformed.into_inner().map_or(Ok(()), Err)
    }
}

impl<W> Clone for Post<'_, '_, W> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<W> Copy for Post<'_, '_, W> {}

impl<W: Fn(Job) + Sync> Post<'_, '_, W> {
    /// Serves the queue until it is stopped or another thread leads.
    fn lead(&self) {
        let work = self.work;
        let mut leads = true;
        let served = serve_kicks(work.memory, work.vring, work.stop, || {
            leads = self.take_some()?;
            Ok(match leads {
                true => ControlFlow::Continue(work.deal_with_late()?),
                false => ControlFlow::Break(()),
            })
        });
        if let Err(malformed) = served {
            work.fail(malformed);
        }
        if leads || served.is_err() {
            work.lead.close();
            self.crew.close();
        }
    }

    /// Takes available requests, carries out those that are short, and gives those to the crew that
    /// are known to wait. Returns whether the caller still leads.
    fn take_some(&self) -> Result<bool, Malformed> {
        let work = self.work;
        let mut carried_out = Vec::new();
        let taken = self.take_into(&mut carried_out);
        let mut leads = taken.unwrap_or(false);
        if !carried_out.is_empty() {
            let mut answered = Ok(());
            let mut complete = || answered = work.complete(&mut carried_out);
            match leads {
                true => leads = self.work_as_leader(complete),
                false => complete(),
            }
            answered?;
        }
        taken?;
        if let Some(malformed) = work.malformed.get() {
            return Err(*malformed);
        }
        work.vring.notify(work.memory)?;
        Ok(leads)
    }

    /// Does the same, and leaves requests in `carried_out` that it does not answer.
    fn take_into(&self, carried_out: &mut Vec<CarriedOut>) -> Result<bool, Malformed> {
        let work = self.work;
        let mut leads = true;
        for _ in 0..QUEUE_SIZE {
            let Some(chain) = work.vring.pop(work.memory)? else {
                break;
            };
            let request = Request::of(work.memory, chain)?;
            work.disk.counters.in_flight.fetch_add(1, Ordering::Relaxed);
            let attempt = work.disk.try_at_once(work.memory, &request.operation);
            if let Attempt::Done(outcome) = attempt {
                work.answer(&request, outcome)?;
                continue;
            }
            let request = Arc::new(request);
            let id = work.flights.begin(&request);
            let job = match (Job { id, request }, attempt) {
                (job, Attempt::Long) => self.crew.give(self.scope, self.finish, job),
                (job, _) => Some(job),
            };
            if let Some(job) = job {
                leads = self.work_as_leader(|| carried_out.push(work.carry_out(job)));
                // Requests share the write of the tables, if there are any.
                if leads && !work.disk.image.has_tables() {
                    work.answer_all(carried_out)?;
                }
            }
            if !leads {
                break;
            }
        }
        Ok(leads)
    }

    fn work_as_leader(&self, act: impl FnOnce()) -> bool {
        let start_deputy = || {
            let (post, work) = (*self, self.work);
            let name = work.thread_name();
            work.disk.threads.spawn(false, &name, self.scope, move || {
                if post.work.lead.watch() {
                    post.lead();
                }
            })
        };
        self.work.lead.work(start_deputy, act)
    }
}

/// A request that was carried out and not yet answered.
struct CarriedOut {
    job: Job,
    outcome: Result<usize, Refusal>,
}

impl Work<'_> {
    fn thread_name(&self) -> String {
        format!("{}.{}-io", self.disk.options.name, self.vring.index)
    }

    /// Carries out a request and answers it, on a thread of the crew.
    fn finish(&self, job: Job) {
        let mut carried_out = vec![self.carry_out(job)];
        let answered = self.complete(&mut carried_out);
        if let Err(malformed) = answered.and_then(|()| self.vring.notify(self.memory)) {
            self.fail(malformed);
        }
    }

    /// Does what the configuration says with requests that are late. Returns when to look again.
    fn deal_with_late(&self) -> Result<Option<Instant>, Malformed> {
        let (late, next) = self.flights.late(Instant::now());
        let gives_up = !late.is_empty() && self.disk.options.on_timeout == OnTimeout::Report;
        for late in late {
            let reason = format!("{}: {late}", self.disk.options.name);
            match self.disk.options.on_timeout {
                OnTimeout::Wait => self.disk.stalls.late(reason, late.is_first),
                OnTimeout::Pause => self.disk.stalls.pause(reason),
                OnTimeout::Kill => self.disk.stalls.kill(reason),
                OnTimeout::Report => self.give_up(&late, &reason)?,
            }
        }
        if gives_up {
            self.vring.notify(self.memory)?;
        }
        Ok(next)
    }

    /// Answers a request with an error although a thread still carries it out.
    fn give_up(&self, late: &Late, reason: &str) -> Result<(), Malformed> {
        if !self.flights.give_up(late.id) {
            return Ok(());
        }
        self.disk.report(reason);
        if late.request.is_write() {
            self.disk.lost_writes.fetch_add(1, Ordering::SeqCst);
        }
        self.answer(&late.request, Err(Refusal::Failed))
    }

    /// Has the queue no longer served.
    fn fail(&self, malformed: Malformed) {
        let _ = self.malformed.set(malformed);
        // Another thread may lead.
        self.vring.kick.signal();
    }

    fn carry_out(&self, job: Job) -> CarriedOut {
        let outcome = match &job.request.operation {
            Ok(operation) => self.attempt_operation(job.id, operation),
            Err(refusal) => Err(*refusal),
        };
        CarriedOut { job, outcome }
    }

    /// Makes the writes among some requests as safe as their answers promise, and answers all.
    fn complete(&self, carried_out: &mut Vec<CarriedOut>) -> Result<(), Malformed> {
        let has_written = |done: &CarriedOut| done.outcome.is_ok() && done.job.request.is_write();
        let written = carried_out.iter().filter(|done| has_written(done));
        let written: Vec<_> = written.map(|done| done.job.id).collect();
        if !written.is_empty()
            && let Err(refusal) = self.complete_writes(&written)
        {
            let writes = carried_out.iter_mut().filter(|done| has_written(done));
            writes.for_each(|done| done.outcome = Err(refusal));
        }
        self.answer_all(carried_out)
    }

    fn answer_all(&self, carried_out: &mut Vec<CarriedOut>) -> Result<(), Malformed> {
        let mut answered = Ok(());
        for CarriedOut { job, outcome } in carried_out.drain(..) {
            let ended = self.flights.end(job.id);
            if ended.was_late && self.disk.options.on_timeout == OnTimeout::Wait {
                self.disk.stalls.ended();
            }
            if !ended.is_given_up {
                answered = answered.and(self.answer(&job.request, outcome));
            } else if job.request.is_write() {
                self.disk.lost_writes.fetch_sub(1, Ordering::SeqCst);
            }
        }
        answered
    }

    /// Returns a request to the driver. Does not interrupt the driver.
    fn answer(&self, request: &Request, outcome: Result<usize, Refusal>) -> Result<(), Malformed> {
        let (status, written) = match outcome {
            Ok(written) => (VIRTIO_BLK_S_OK, written),
            Err(Refusal::Failed) => (VIRTIO_BLK_S_IOERR, 0),
            Err(Refusal::Unsupported) => (VIRTIO_BLK_S_UNSUPP, 0),
        };
        self.disk.count(&request.operation, outcome.is_ok());
        request.status.write(self.memory, &[status as u8]);
        // With the status.
        let written = written as u32 + 1;
        self.vring.push(self.memory, request.head, written)
    }
}

impl Disk {
    pub(super) fn new(image: Image, options: Options, stalls: Arc<Stalls>) -> Self {
        Self {
            image,
            options,
            stalls,
            threads: Count::default(),
            reports: AtomicU32::new(0),
            lost_writes: AtomicI32::new(0),
            counters: Counters::default(),
        }
    }

    /// Carries out a request unless the thread might have to wait.
    fn try_at_once(&self, memory: &Memory, operation: &Result<Operation, Refusal>) -> Attempt {
        match operation {
            Ok(Operation::Read { offset, buffers }) => {
                let slices = buffers.slices(memory);
                match self.image.read_guest_cached(*offset, &slices) {
                    Ok(CachedRead::Done) => Attempt::Done(Ok(buffers.len())),
                    Ok(CachedRead::Waits) => Attempt::Long,
                    // The next try deals with an error.
                    Ok(CachedRead::Unknown) | Err(_) => Attempt::Short,
                }
            }
            Ok(Operation::Serial { buffers }) => {
                let mut serial = [0; SERIAL_LEN];
                read_bytes(self.options.serial.as_bytes(), 0, &mut serial);
                Attempt::Done(Ok(buffers.write(memory, &serial)))
            }
            Ok(Operation::Write { .. }) if self.ends_in_cache() => Attempt::Short,
            Ok(_) => Attempt::Long,
            Err(refusal) => Attempt::Done(Err(*refusal)),
        }
    }

    fn ends_in_cache(&self) -> bool {
        self.image.is_cached() && !self.options.writethrough
    }

    /// Calls `act` on the image, for some requests. After an error for which the VM is to stop, waits
    /// until the user resumes the VM and tries again.
    pub(super) fn attempt(
        &self,
        flights: &Flights,
        ids: &[Id],
        stop: &Event,
        act: impl Fn(&Image) -> Result<(), IoError>,
    ) -> Result<(), Refusal> {
        loop {
            let error = match act(&self.image) {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            let on_error = match error {
                IoError::NoSpace => self.options.on_enospc,
                IoError::Lost(_) | IoError::Other(_) => self.options.on_error,
                // The guest's own mistakes.
                IoError::ReadOnly | IoError::OutOfRange => return Err(Refusal::Failed),
            };
            let reason = format!("{}: {error}", self.options.name);
            if on_error == OnError::Report {
                self.report(&reason);
                return Err(Refusal::Failed);
            }
            let open = ids.iter().filter(|&&id| flights.hold(id)).count();
            let goes_on = open > 0 && self.stalls.wait(stop, reason);
            // A flush that succeeds later would say that nothing was lost.
            if !goes_on || matches!(error, IoError::Lost(_)) {
                return Err(Refusal::Failed);
            }
            ids.iter().for_each(|&id| flights.go_on(id));
        }
    }

    /// Counts an answer.
    fn count(&self, operation: &Result<Operation, Refusal>, is_ok: bool) {
        let counters = &self.counters;
        let add = |counter: &AtomicU64, n: usize| {
            counter.fetch_add(n as u64, Ordering::Relaxed);
        };
        match operation {
            _ if !is_ok => add(&counters.errors, 1),
            Ok(Operation::Read { buffers, .. }) => add(&counters.read, buffers.len()),
            Ok(Operation::Write { buffers, .. }) => add(&counters.written, buffers.len()),
            _ => {}
        }
        counters.in_flight.fetch_sub(1, Ordering::Relaxed);
    }

    /// Returns what the disk is, and what it has done.
    pub(super) fn status(&self) -> DiskStatus {
        let files = self.image.files().iter().map(|(path, format)| DiskFile {
            path: path.display().to_string(),
            format: format.name().to_owned(),
        });
        DiskStatus {
            name: self.options.name.clone(),
            files: files.collect(),
            size: self.image.capacity(),
            read: self.counters.read.load(Ordering::Relaxed),
            written: self.counters.written.load(Ordering::Relaxed),
            in_flight: self.counters.in_flight.load(Ordering::Relaxed),
            errors: self.counters.errors.load(Ordering::Relaxed),
        }
    }

    /// Logs what went wrong, if it is not too much.
    fn report(&self, reason: &str) {
        if self.reports.fetch_add(1, Ordering::Relaxed) < MAX_REPORTS {
            warn!("{reason}");
        }
    }
}

impl Work<'_> {
    /// Carries out a request. Returns the number of bytes written to the guest.
    fn attempt_operation(&self, id: Id, operation: &Operation) -> Result<usize, Refusal> {
        // Root may still write older data to the same place, or lose it.
        let changes = operation.is_write() || matches!(operation, Operation::Flush);
        if changes && self.disk.lost_writes.load(Ordering::SeqCst) > 0 {
            return Err(Refusal::Failed);
        }
        match operation {
            Operation::Read { offset, buffers } if self.may_give_up() => {
                let mut bytes = vec![0; buffers.len()];
                let into = RefCell::new(&mut bytes[..]);
                self.attempt(&[id], |image| {
                    image.read(*offset, &mut [IoSliceMut::new(&mut into.borrow_mut())])
                })?;
                return match self.flights.hold(id) {
                    true => Ok(buffers.write(self.memory, &bytes)),
                    false => Err(Refusal::Failed),
                };
            }
            Operation::Read { offset, buffers } => {
                let slices = buffers.slices(self.memory);
                self.attempt(&[id], |image| image.read_guest(*offset, &slices))?;
                return Ok(buffers.len());
            }
            Operation::Write { offset, buffers } if self.may_give_up() => {
                let mut bytes = vec![0; buffers.len()];
                buffers.read(self.memory, &mut bytes);
                self.attempt(&[id], |image| image.write(*offset, &[IoSlice::new(&bytes)]))?;
            }
            Operation::Write { offset, buffers } => {
                let slices = buffers.slices(self.memory);
                self.attempt(&[id], |image| image.write_guest(*offset, &slices))?;
            }
            Operation::Flush => self.attempt(&[id], Image::flush)?,
            Operation::Discard { ranges } => {
                for range in ranges {
                    self.attempt(&[id], |image| image.discard(range.offset, range.len))?;
                }
            }
            Operation::WriteZeroes { ranges } => {
                for range in ranges {
                    self.attempt(&[id], |image| image.write_zeroes(range.offset, range.len))?;
                }
            }
            // This request never waits.
            Operation::Serial { .. } => return Err(Refusal::Unsupported),
        }
        Ok(0)
    }

    /// Returns whether a request may be answered while root still carries it out. Root then must not
    /// have the guest's buffers, which the guest uses again.
    fn may_give_up(&self) -> bool {
        self.disk.options.on_timeout == OnTimeout::Report
    }

    /// Makes writes as safe as their answers promise.
    fn complete_writes(&self, ids: &[Id]) -> Result<(), Refusal> {
        match self.disk.options.writethrough {
            true => self.attempt(ids, Image::flush),
            false => self.attempt(ids, Image::write_back),
        }
    }

    fn attempt(
        &self,
        ids: &[Id],
        act: impl Fn(&Image) -> Result<(), IoError>,
    ) -> Result<(), Refusal> {
        self.disk.attempt(&self.flights, ids, self.stop, act)
    }
}
