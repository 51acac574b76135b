//! Carrying requests out.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::{self, Builder, Scope};

use virtio_bindings::virtio_blk::{VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP};

use super::crew::{Count, Crew};
use super::lead::Lead;
use super::request::{Operation, Request};
use super::{Options, QUEUE_SIZE, Refusal};
use crate::config::OnError;
use crate::disk::{CachedRead, Image, IoError};
use crate::worker::event::Event;
use crate::worker::journal;
use crate::worker::memory::Memory;
use crate::worker::stall::Stalls;
use crate::worker::virtio::thread::serve_kicks;
use crate::worker::virtio::{Malformed, Serve, Vring, read_bytes};

/// Bytes of the serial number (virtio 1.2 §5.2.6).
const SERIAL_LEN: usize = 20;
/// Errors of the image that a disk logs.
const MAX_REPORTS: u32 = 16;

/// What all threads of a disk share.
#[derive(Debug)]
pub(super) struct Disk {
    pub(super) image: Image,
    pub(super) options: Options,
    stalls: Arc<Stalls>,
    reports: AtomicU32,
}

/// How an attempt to carry out a request without waiting went.
enum Attempt {
    /// The request was carried out.
    Done(Result<usize, Refusal>),
    /// It was not: the request will hardly wait, but nothing says so.
    Short,
    /// It was not: the request has to wait.
    Long,
}

/// The server of one queue.
pub(super) struct Server {
    disk: Arc<Disk>,
    threads: Count,
}

/// What all threads of a queue share.
struct Work<'a> {
    disk: &'a Disk,
    memory: &'a Memory,
    vring: &'a Vring,
    stop: &'a Event,
    lead: Lead,
    threads: Count,
    /// What a thread has found wrong with the queue.
    malformed: OnceLock<Malformed>,
}

/// What all threads of a queue borrow: where they work, their work, the crew, and the crew's work.
struct Post<'scope, 'env, W> {
    scope: &'scope Scope<'scope, 'env>,
    work: &'scope Work<'env>,
    crew: &'scope Crew<Request>,
    finish: &'scope W,
}

impl Server {
    pub(super) fn new(disk: Arc<Disk>, threads: Count) -> Self {
        Self { disk, threads }
    }
}

impl Serve for Server {
    fn run(&mut self, memory: &Memory, vring: &Vring, stop: &Event) -> Result<(), Malformed> {
        let work = Work {
            disk: &self.disk,
            memory,
            vring,
            stop,
            lead: Lead::default(),
            threads: self.threads.clone(),
            malformed: OnceLock::new(),
        };
        let crew = Crew::new(work.thread_name(), self.threads.clone());
        let finish = |request| work.finish(request);
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

impl<W: Fn(Request) + Sync> Post<'_, '_, W> {
    /// Serves the queue until it is stopped or another thread leads.
    fn lead(&self) {
        let work = self.work;
        let mut leads = true;
        let served = serve_kicks(work.memory, work.vring, work.stop, || {
            leads = self.take_some()?;
            Ok(match leads {
                true => ControlFlow::Continue(()),
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
        let mut leads = true;
        let mut carried_out = Vec::new();
        for _ in 0..QUEUE_SIZE {
            let Some(chain) = work.vring.pop(work.memory)? else {
                break;
            };
            let request = Request::of(work.memory, chain)?;
            let request = match work.disk.try_at_once(work.memory, &request.operation) {
                Attempt::Done(outcome) => {
                    work.answer(&request, outcome)?;
                    continue;
                }
                Attempt::Short => Some(request),
                Attempt::Long => self.crew.give(self.scope, self.finish, request),
            };
            if let Some(request) = request {
                leads = self.work_as_leader(|| carried_out.push(work.carry_out(request)));
                // Requests share the write of the tables, if there are any.
                if leads && !work.disk.image.has_tables() {
                    work.answer_all(&mut carried_out)?;
                }
            }
            if !leads {
                break;
            }
        }
        if !carried_out.is_empty() {
            let mut answered = Ok(());
            let mut complete = || answered = work.complete(&mut carried_out);
            match leads {
                true => leads = self.work_as_leader(complete),
                false => complete(),
            }
            answered?;
        }
        if let Some(malformed) = work.malformed.get() {
            return Err(*malformed);
        }
        work.vring.notify(work.memory)?;
        Ok(leads)
    }

    fn work_as_leader(&self, act: impl FnOnce()) -> bool {
        let start_deputy = || {
            let (post, count) = (*self, &self.work.threads);
            let thread = Builder::new().name(self.work.thread_name());
            count.take(false) && {
                let started = thread.spawn_scoped(self.scope, move || {
                    if post.work.lead.watch() {
                        post.lead();
                    }
                    post.work.threads.put_back();
                });
                if started.is_err() {
                    count.put_back();
                }
                started.is_ok()
            }
        };
        self.work.lead.work(start_deputy, act)
    }
}

/// A request that was carried out and not yet answered.
struct CarriedOut {
    request: Request,
    outcome: Result<usize, Refusal>,
}

impl Work<'_> {
    fn thread_name(&self) -> String {
        format!("{}.{}-io", self.disk.options.name, self.vring.index)
    }

    /// Carries out a request and answers it, on a thread of the crew.
    fn finish(&self, request: Request) {
        let mut carried_out = vec![self.carry_out(request)];
        let answered = self.complete(&mut carried_out);
        if let Err(malformed) = answered.and_then(|()| self.vring.notify(self.memory)) {
            self.fail(malformed);
        }
    }

    /// Has the queue no longer served.
    fn fail(&self, malformed: Malformed) {
        let _ = self.malformed.set(malformed);
        // Another thread may lead.
        self.vring.kick.signal();
    }

    fn carry_out(&self, request: Request) -> CarriedOut {
        let outcome = match &request.operation {
            Ok(operation) => self.disk.carry_out(self.memory, operation, self.stop),
            Err(refusal) => Err(*refusal),
        };
        CarriedOut { request, outcome }
    }

    /// Makes the writes among some requests as safe as their answers promise, and answers all.
    fn complete(&self, carried_out: &mut Vec<CarriedOut>) -> Result<(), Malformed> {
        let has_written = |done: &CarriedOut| {
            let operation = done.request.operation.as_ref();
            done.outcome.is_ok() && operation.is_ok_and(Operation::is_write)
        };
        if carried_out.iter().any(has_written)
            && let Err(refusal) = self.disk.complete_writes(self.stop)
        {
            let writes = carried_out.iter_mut().filter(|done| has_written(done));
            writes.for_each(|done| done.outcome = Err(refusal));
        }
        self.answer_all(carried_out)
    }

    fn answer_all(&self, carried_out: &mut Vec<CarriedOut>) -> Result<(), Malformed> {
        for done in carried_out.drain(..) {
            self.answer(&done.request, done.outcome)?;
        }
        Ok(())
    }

    /// Returns a request to the driver. Does not interrupt the driver.
    fn answer(&self, request: &Request, outcome: Result<usize, Refusal>) -> Result<(), Malformed> {
        let (status, written) = match outcome {
            Ok(written) => (VIRTIO_BLK_S_OK, written),
            Err(Refusal::Failed) => (VIRTIO_BLK_S_IOERR, 0),
            Err(Refusal::Unsupported) => (VIRTIO_BLK_S_UNSUPP, 0),
        };
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
            reports: AtomicU32::new(0),
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

    /// Carries out a request. Returns the number of bytes written to the guest.
    fn carry_out(
        &self,
        memory: &Memory,
        operation: &Operation,
        stop: &Event,
    ) -> Result<usize, Refusal> {
        let mut written = 0;
        match operation {
            Operation::Read { offset, buffers } => {
                let slices = buffers.slices(memory);
                self.attempt(stop, |image| image.read_guest(*offset, &slices))?;
                written = buffers.len();
            }
            Operation::Write { offset, buffers } => {
                let slices = buffers.slices(memory);
                self.attempt(stop, |image| image.write_guest(*offset, &slices))?;
            }
            Operation::Flush => self.attempt(stop, Image::flush)?,
            Operation::Discard { ranges } => {
                for range in ranges {
                    self.attempt(stop, |image| image.discard(range.offset, range.len))?;
                }
            }
            Operation::WriteZeroes { ranges } => {
                for range in ranges {
                    self.attempt(stop, |image| image.write_zeroes(range.offset, range.len))?;
                }
            }
            // It never waits.
            Operation::Serial { .. } => return Err(Refusal::Unsupported),
        }
        Ok(written)
    }

    /// Makes writes as safe as their answers promise.
    fn complete_writes(&self, stop: &Event) -> Result<(), Refusal> {
        match self.options.writethrough {
            true => self.attempt(stop, Image::flush),
            false => self.attempt(stop, Image::write_back),
        }
    }

    /// Calls `act` on the image. After an error for which the VM is to stop, waits until the user
    /// resumes the VM and tries again.
    pub(super) fn attempt(
        &self,
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
            if on_error == OnError::Pause {
                // A flush that succeeds later would say that nothing was lost.
                if self.stalls.wait(stop, reason) && !matches!(error, IoError::Lost(_)) {
                    continue;
                }
            } else if self.reports.fetch_add(1, Ordering::Relaxed) < MAX_REPORTS {
                journal::say(format_args!("{reason}"));
            }
            return Err(Refusal::Failed);
        }
    }
}
