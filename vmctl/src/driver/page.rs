//! A virtual CPU's shared page, mapped, and its posted-write ring.

use std::ops::Deref;
use std::os::fd::AsFd;
use std::ptr::NonNull;
use std::sync::Arc;

use guest_proto::limits::PAGE_SIZE;
use guest_proto::ring::Consumer;
use guest_proto::shared::SharedPage;
use guest_proto::vcpu_page::PostedWrite;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

const PAGE: usize = PAGE_SIZE as usize;

/// One page of shared memory.
#[derive(Debug)]
pub(super) struct Mapping(NonNull<SharedPage>);

// SAFETY: a `SharedPage` is all atomics; the mapping moves with its owner.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps the page of a virtual CPU's descriptor.
    pub(super) fn new(fd: impl AsFd) -> rustix::io::Result<Self> {
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing that exists.
        let at = unsafe {
            mmap(
                std::ptr::null_mut(),
                PAGE,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                fd,
                0,
            )
        }?;
        NonNull::new(at.cast())
            .map(Self)
            .ok_or(rustix::io::Errno::NOMEM)
    }
}

impl Deref for Mapping {
    type Target = SharedPage;

    fn deref(&self) -> &SharedPage {
        // SAFETY: a page is as large and as aligned as a `SharedPage`, which is sound over memory
        // that others write, and the mapping lives as long as `self`.
        unsafe { self.0.as_ref() }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped by `new`, and nothing borrowed from `self` is left.
        // An error would mean that the page is not mapped, which is what is wanted.
        let _ = unsafe { munmap(self.0.as_ptr().cast(), PAGE) };
    }
}

/// Consumer of a virtual CPU's posted writes; there is one, whoever has it borrowed.
#[derive(Debug)]
pub struct Ring {
    page: Arc<Mapping>,
    consumer: Consumer,
}

impl Ring {
    pub(super) fn new(page: Arc<Mapping>) -> Self {
        let consumer = Consumer::attach((&**page).into());
        Self { page, consumer }
    }

    /// Takes the oldest entry.
    pub fn pop(&mut self) -> Option<PostedWrite> {
        self.consumer.pop((&**self.page).into())
    }

    /// Asks to be notified of the next entry. False if there is one already: take it first.
    #[must_use]
    pub fn prepare_sleep(&mut self) -> bool {
        self.consumer.prepare_sleep((&**self.page).into())
    }

    /// Takes back what [`Self::prepare_sleep`] asked for: the consumer looks by itself.
    pub fn cancel_sleep(&mut self) {
        self.consumer.cancel_sleep((&**self.page).into());
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use guest_proto::ring::{Producer, Push};
    use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

    /// A ring without a driver, and what posts to it.
    pub(crate) fn ring() -> (Ring, impl FnMut(PostedWrite) -> Push) {
        let fd = memfd_create("page", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&fd, PAGE_SIZE).unwrap();
        let theirs = Mapping::new(&fd).unwrap();
        let ring = Ring::new(Arc::new(Mapping::new(&fd).unwrap()));
        let mut producer = Producer::new();
        (ring, move |entry| producer.push((&*theirs).into(), entry))
    }

    #[test]
    fn a_ring_works_across_two_mappings() {
        let (mut ring, mut post) = ring();
        let entry = PostedWrite {
            data: 7,
            ..PostedWrite::default()
        };
        assert!(ring.prepare_sleep());
        assert_eq!(post(entry), Push::PostedWake);
        assert!(!ring.prepare_sleep());
        assert_eq!(ring.pop(), Some(entry));
        assert_eq!(ring.pop(), None);
    }
}
