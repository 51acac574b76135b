//! The microvisor's end of a virtual CPU's posted-write ring.
//!
//! The ring itself is [`guest_proto::ring`]. When it is full, a doorbell write becomes an intercept. The end of an
//! interrupt must not be lost either, and cannot become an intercept: it stays in a backlog here.

use guest_proto::ring::{Producer, Push, Ring};
use guest_proto::shared::SharedPage;
use guest_proto::vcpu_page::{PostedKind, PostedWrite};

/// Producer of posted writes.
#[derive(Debug, Default)]
pub struct PostedRing {
    producer: Producer,
    /// Level-triggered vectors whose end the consumer does not know of yet.
    backlog: [u64; 4],
    behind: bool,
}

impl PostedRing {
    /// Makes the producer for a page that was never used.
    pub const fn new() -> Self {
        Self {
            producer: Producer::new(),
            backlog: [0; 4],
            behind: false,
        }
    }

    /// Posts a write to a doorbell. After [`Push::Full`] it has to be an intercept.
    #[inline]
    pub fn push(&mut self, page: &SharedPage, entry: PostedWrite) -> Push {
        let woke = match self.flush(page) {
            Push::Full => return Push::Full,
            flushed => flushed == Push::PostedWake,
        };
        match self.producer.push(Ring::from(page), entry) {
            // The backlog took the last place, and woke the consumer: it will make room.
            Push::Posted if woke => Push::PostedWake,
            pushed => pushed,
        }
    }

    /// Posts the end of a level-triggered interrupt. It is never lost: after [`Push::Full`] it waits
    /// for [`PostedRing::flush`].
    pub fn push_eoi(&mut self, page: &SharedPage, vector: u8) -> Push {
        self.note_eoi(vector);
        self.flush(page)
    }

    /// Leaves the end of a level-triggered interrupt to the next [`PostedRing::flush`]. It is for callers that cannot
    /// tell root to wake the consumer.
    pub fn note_eoi(&mut self, vector: u8) {
        self.backlog[usize::from(vector >> 6)] |= 1 << (vector & 63);
        self.behind = true;
    }

    /// Posts the backlog. Call it on the way into the guest, and before root is told that the guest
    /// halted: while [`PostedRing::is_behind`] holds, root must run the virtual CPU again instead of letting it sleep.
    #[inline]
    pub fn flush(&mut self, page: &SharedPage) -> Push {
        if self.behind {
            self.flush_backlog(page)
        } else {
            Push::Posted
        }
    }

    /// Returns whether ends of interrupts wait for room in the ring.
    pub fn is_behind(&self) -> bool {
        self.behind
    }

    #[cold]
    fn flush_backlog(&mut self, page: &SharedPage) -> Push {
        let mut wake = Push::Posted;
        for (n, word) in self.backlog.iter_mut().enumerate() {
            while *word != 0 {
                let vector = n as u64 * 64 + u64::from(word.trailing_zeros());
                let kind = PostedKind::Eoi.raw();
                let entry = PostedWrite {
                    kind,
                    data: vector,
                    ..PostedWrite::default()
                };
                match self.producer.push(Ring::from(page), entry) {
                    // An entry that woke the consumer went in: this must not be forgotten.
                    Push::Full => {
                        return if wake == Push::PostedWake {
                            wake
                        } else {
                            Push::Full
                        };
                    }
                    Push::PostedWake => wake = Push::PostedWake,
                    Push::Posted => {}
                }
                *word &= *word - 1;
            }
        }
        self.behind = false;
        wake
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use guest_proto::ring::Consumer;

    fn write(data: u64) -> PostedWrite {
        PostedWrite {
            kind: PostedKind::Port.raw(),
            size: 1,
            tag: 1,
            offset: 0,
            data,
        }
    }

    #[test]
    fn a_noted_eoi_wakes_the_consumer_when_it_is_posted() {
        let page = SharedPage::new();
        let mut consumer = Consumer::attach(Ring::from(&page));
        let mut ring = PostedRing::new();
        assert!(consumer.prepare_sleep(Ring::from(&page)));
        ring.note_eoi(0x51);
        assert!(ring.is_behind());
        assert!(consumer.pop(Ring::from(&page)).is_none());
        assert_eq!(ring.flush(&page), Push::PostedWake);
        let end = consumer.pop(Ring::from(&page)).map(|entry| entry.data);
        assert_eq!(end, Some(0x51));
    }

    #[test]
    fn an_eoi_waits_for_room_and_goes_first() {
        let page = SharedPage::new();
        let mut consumer = Consumer::attach(Ring::from(&page));
        let mut ring = PostedRing::new();
        for n in 0..128 {
            assert_eq!(ring.push(&page, write(n)), Push::Posted);
        }
        assert_eq!(ring.push_eoi(&page, 0x51), Push::Full);
        assert_eq!(ring.push_eoi(&page, 0xd2), Push::Full);
        assert!(ring.is_behind());
        assert_eq!(ring.push(&page, write(200)), Push::Full);
        for _ in 0..128 {
            assert!(consumer.pop(Ring::from(&page)).is_some());
        }
        assert!(consumer.prepare_sleep(Ring::from(&page)));
        assert_eq!(ring.push(&page, write(200)), Push::PostedWake);
        assert!(!ring.is_behind());
        let mut next = || {
            consumer
                .pop(Ring::from(&page))
                .map(|entry| (entry.kind, entry.data))
        };
        let eoi = PostedKind::Eoi.raw();
        assert_eq!(next(), Some((eoi, 0x51)));
        assert_eq!(next(), Some((eoi, 0xd2)));
        assert_eq!(next(), Some((PostedKind::Port.raw(), 200)));
        assert_eq!(next(), None);
    }
}
