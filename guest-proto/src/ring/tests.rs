//! The ring against a hostile other side, and (`--cfg loom`) under every interleaving.

use super::*;

fn entry(data: u64) -> PostedWrite {
    PostedWrite {
        kind: 1,
        size: 4,
        tag: data as u16,
        offset: 0,
        data,
    }
}

#[cfg(not(loom))]
mod plain {
    use super::*;

    fn rig(tail: u32) -> (SharedPage, Producer, Consumer) {
        let page = SharedPage::new();
        page.consumer.tail.store(tail, Ordering::Relaxed);
        let consumer = Consumer::attach(Ring::from(&page));
        (page, Producer { head: tail }, consumer)
    }

    #[test]
    fn keeps_order_over_the_wrap_of_the_index() {
        let (page, mut producer, mut consumer) = rig(u32::MAX - 200);
        for n in 0..1000 {
            assert_eq!(producer.push(Ring::from(&page), entry(n)), Push::Posted);
            if n >= 100 {
                assert_eq!(consumer.pop(Ring::from(&page)), Some(entry(n - 100)));
            }
        }
    }

    #[test]
    fn holds_exactly_its_entries() {
        let (page, mut producer, mut consumer) = rig(0);
        for n in 0..128 {
            assert_eq!(producer.push(Ring::from(&page), entry(n)), Push::Posted);
        }
        assert_eq!(producer.push(Ring::from(&page), entry(128)), Push::Full);
        assert_eq!(consumer.pop(Ring::from(&page)), Some(entry(0)));
        assert_eq!(producer.push(Ring::from(&page), entry(128)), Push::Posted);
        assert_eq!(
            std::iter::from_fn(|| consumer.pop(Ring::from(&page))).count(),
            128
        );
    }

    #[test]
    fn wakes_once() {
        let (page, mut producer, mut consumer) = rig(0);
        assert!(consumer.prepare_sleep(Ring::from(&page)));
        assert_eq!(producer.push(Ring::from(&page), entry(1)), Push::PostedWake);
        assert_eq!(producer.push(Ring::from(&page), entry(2)), Push::Posted);
        assert!(!consumer.prepare_sleep(Ring::from(&page)));
        assert_eq!(producer.push(Ring::from(&page), entry(3)), Push::Posted);
    }

    #[test]
    fn a_tail_that_never_was_is_full() {
        let (page, mut producer, _) = rig(0);
        for tail in [1, 2, 1000, u32::MAX / 2, u32::MAX - 127, u32::MAX - 1000] {
            page.consumer.tail.store(tail, Ordering::Relaxed);
            assert_eq!(
                producer.push(Ring::from(&page), entry(0)),
                Push::Full,
                "{tail}"
            );
        }
        // Within the ring's size behind: believed, and harmless.
        page.consumer.tail.store(u32::MAX, Ordering::Relaxed);
        assert_eq!(producer.push(Ring::from(&page), entry(0)), Push::Posted);
    }

    #[test]
    fn a_successor_recovers_from_a_bad_tail() {
        let (page, mut producer, _) = rig(0);
        assert_eq!(producer.push(Ring::from(&page), entry(0)), Push::Posted);
        page.consumer.tail.store(77, Ordering::Relaxed);
        let mut successor = Consumer::attach(Ring::from(&page));
        assert_eq!(successor.pop(Ring::from(&page)), None);
        assert_eq!(producer.push(Ring::from(&page), entry(5)), Push::Posted);
        assert_eq!(successor.pop(Ring::from(&page)), Some(entry(5)));
    }
}

#[cfg(loom)]
mod loomed {
    use super::*;
    use loom::sync::Arc;
    use loom::thread;

    #[derive(Default)]
    struct Small {
        producer: ProducerLine,
        consumer: ConsumerLine,
        slots: [Slot; 2],
    }

    impl Small {
        fn ring(&self) -> Ring<'_, 2> {
            Ring {
                producer: &self.producer,
                consumer: &self.consumer,
                slots: &self.slots,
            }
        }
    }

    #[test]
    fn no_entry_is_lost_or_torn() {
        loom::model(|| {
            let shared = Arc::new(Small::default());
            let theirs = shared.clone();
            let writer = thread::spawn(move || {
                let mut producer = Producer::new();
                (1..=3)
                    .filter(|n| producer.push(theirs.ring(), entry(*n)) != Push::Full)
                    .collect::<Vec<_>>()
            });
            let mut consumer = Consumer::attach(shared.ring());
            let mut got = Vec::new();
            for _ in 0..2 {
                got.extend(consumer.pop(shared.ring()));
            }
            let sent = writer.join().unwrap_or_default();
            got.extend(std::iter::from_fn(|| consumer.pop(shared.ring())));
            assert_eq!(got, sent.into_iter().map(entry).collect::<Vec<_>>());
        });
    }

    /// The consumer sleeps at most once; `entries` are pushed meanwhile.
    fn sleeper(entries: u64) {
        let shared = Arc::new(Small::default());
        let theirs = shared.clone();
        let writer = thread::spawn(move || {
            let mut producer = Producer::new();
            let pushed = (1..=entries).map(|n| producer.push(theirs.ring(), entry(n)));
            pushed.filter(|push| *push == Push::PostedWake).count()
        });
        let mut consumer = Consumer::attach(shared.ring());
        let mut got = 0;
        while got < entries {
            if consumer.pop(shared.ring()).is_some() {
                got += 1;
            } else if consumer.prepare_sleep(shared.ring()) {
                break;
            }
        }
        let wakes = writer.join().unwrap_or_default();
        assert!(got == entries || wakes > 0, "slept through an entry");
        while consumer.pop(shared.ring()).is_some() {
            got += 1;
        }
        assert_eq!(got, entries);
    }

    #[test]
    fn no_wakeup_is_lost() {
        loom::model(|| sleeper(1));
        loom::model(|| sleeper(2));
    }
}
