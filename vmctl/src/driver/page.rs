//! A virtual CPU's shared page, mapped.
//!
//! The microvisor and the driver write to it beside us, so that it is only ever copied from and to
//! in whole words, atomically, and never referred to. [`Ring`] is the consumer of posted writes.

use std::os::fd::AsFd;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

use guest_proto::limits::{PAGE_SIZE, RING_ENTRIES};
use guest_proto::vcpu_page::{PostedWrite, RingConsumer, RingProducer, VcpuPage};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use zerocopy::{FromBytes, Immutable, IntoBytes};

const PAGE: usize = PAGE_SIZE as usize;
const HEAD: usize =
    std::mem::offset_of!(VcpuPage, producer) + std::mem::offset_of!(RingProducer, head);
const TAIL: usize =
    std::mem::offset_of!(VcpuPage, consumer) + std::mem::offset_of!(RingConsumer, tail);
const NEED_WAKEUP: usize =
    std::mem::offset_of!(VcpuPage, consumer) + std::mem::offset_of!(RingConsumer, need_wakeup);
const ENTRIES: usize = std::mem::offset_of!(VcpuPage, ring);

/// One page of shared memory.
#[derive(Debug)]
pub(super) struct Mapping(NonNull<u8>);

// SAFETY: every access is an atomic one of a word inside the page; the mapping moves with its owner.
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

    /// A word of 4 bytes at `offset`.
    fn word(&self, offset: usize) -> &AtomicU32 {
        assert!(
            offset.is_multiple_of(4) && offset <= PAGE - 4,
            "inside the page"
        );
        // SAFETY: aligned and inside the mapping, which lives as long as `self`; whoever else
        // accesses this memory does so atomically.
        unsafe { AtomicU32::from_ptr(self.0.as_ptr().add(offset).cast()) }
    }

    /// A word of 8 bytes at `offset`.
    fn long(&self, offset: usize) -> &AtomicU64 {
        assert!(
            offset.is_multiple_of(8) && offset <= PAGE - 8,
            "inside the page"
        );
        // SAFETY: as in `word`.
        unsafe { AtomicU64::from_ptr(self.0.as_ptr().add(offset).cast()) }
    }

    /// Copies a structure out, word by word.
    pub(super) fn read<T: FromBytes + IntoBytes>(&self, offset: usize) -> T {
        let mut value = T::new_zeroed();
        for (i, bytes) in value.as_mut_bytes().chunks_exact_mut(8).enumerate() {
            let word = self.long(offset + 8 * i).load(Ordering::Relaxed);
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        value
    }

    /// Copies a structure in, word by word.
    pub(super) fn write<T: IntoBytes + Immutable>(&self, offset: usize, value: &T) {
        for (i, bytes) in value.as_bytes().chunks_exact(8).enumerate() {
            let mut word = [0; 8];
            word.copy_from_slice(bytes);
            self.long(offset + 8 * i)
                .store(u64::from_le_bytes(word), Ordering::Relaxed);
        }
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
    tail: u32,
}

impl Ring {
    pub(super) fn new(page: Arc<Mapping>) -> Self {
        let tail = page.word(TAIL).load(Ordering::Relaxed);
        Self { page, tail }
    }

    /// Takes the oldest entry.
    pub fn pop(&mut self) -> Option<PostedWrite> {
        // Acquire: the entry was written before the index.
        let head = self.page.word(HEAD).load(Ordering::Acquire);
        if head == self.tail {
            return None;
        }
        let slot = self.tail as usize % RING_ENTRIES as usize;
        let entry = self.page.read(ENTRIES + slot * size_of::<PostedWrite>());
        self.tail = self.tail.wrapping_add(1);
        // Release: the entry is read before its slot is free.
        self.page.word(TAIL).store(self.tail, Ordering::Release);
        Some(entry)
    }

    /// Asks for a Notify with the next entry; true if there is none yet, so that the consumer may
    /// sleep. The microvisor clears the wish when it has notified.
    #[must_use]
    pub fn sleep(&mut self) -> bool {
        self.page.word(NEED_WAKEUP).store(1, Ordering::SeqCst);
        // The wish must be seen before the index is looked at once more (the producer does the
        // same the other way round): else both could miss the other.
        fence(Ordering::SeqCst);
        self.page.word(HEAD).load(Ordering::Acquire) == self.tail
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use guest_proto::vcpu_page::{Intercept, PostedKind};
    use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

    fn mapping() -> Arc<Mapping> {
        let fd = memfd_create("page", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&fd, PAGE_SIZE).unwrap();
        Arc::new(Mapping::new(&fd).unwrap())
    }

    fn post(page: &Mapping, data: u64) {
        let head = page.word(HEAD).load(Ordering::Relaxed);
        let entry = PostedWrite {
            kind: PostedKind::Port.raw(),
            size: 1,
            tag: 7,
            offset: 0,
            data,
        };
        page.write(ENTRIES + (head as usize % 128) * 16, &entry);
        page.word(HEAD)
            .store(head.wrapping_add(1), Ordering::Release);
    }

    #[test]
    fn entries_come_in_order_across_the_wrap() {
        let page = mapping();
        for index in [HEAD, TAIL] {
            page.word(index).store(u32::MAX - 1, Ordering::Relaxed);
        }
        let mut ring = Ring::new(Arc::clone(&page));
        assert!(ring.pop().is_none());
        for data in 0..5 {
            post(&page, data);
        }
        for data in 0..5 {
            assert_eq!(ring.pop().unwrap().data, data);
        }
        assert!(ring.pop().is_none());
        assert_eq!(page.word(TAIL).load(Ordering::Relaxed), 3);
    }

    #[test]
    fn sleep_is_refused_while_something_waits() {
        let page = mapping();
        let mut ring = Ring::new(Arc::clone(&page));
        assert!(ring.sleep());
        assert_eq!(page.word(NEED_WAKEUP).load(Ordering::Relaxed), 1);
        post(&page, 1);
        assert!(!ring.sleep());
    }

    #[test]
    fn structures_cross_whole() {
        let page = mapping();
        let intercept = Intercept {
            address: 0x1234_5678_9abc,
            instruction: *b"fifteen bytes!!",
            ..Intercept::default()
        };
        page.write(0, &intercept);
        assert_eq!(page.read::<Intercept>(0), intercept);
    }
}
