//! Nothing posted is lost, and no trigger mode.

use super::*;

#[cfg(not(loom))]
#[test]
fn takes_what_was_posted_once() {
    let lines = PostedLines::default();
    assert_eq!(lines.take(), None);
    assert!(lines.post(0x31, false));
    assert!(!lines.post(0xff, true));
    assert!(!lines.post_nmi());
    let posted = lines.take();
    let mut expected = Posted {
        nmis: 1,
        ..Posted::default()
    };
    expected.pending[0] = 1 << 0x31;
    expected.pending[3] = 1 << 63;
    expected.level[3] = 1 << 63;
    assert_eq!(posted, Some(expected));
    assert_eq!(lines.take(), None);
    assert!(lines.post(0x20, false));
}

#[cfg(loom)]
#[test]
fn no_interrupt_and_no_trigger_mode_is_lost() {
    loom::model(|| {
        let lines = loom::sync::Arc::new(PostedLines::default());
        let posters: Vec<_> = [(0x30, true), (0x31, false)]
            .map(|(vector, level)| {
                let lines = lines.clone();
                loom::thread::spawn(move || {
                    lines.post(vector, level);
                })
            })
            .into();
        let (mut pending, mut level) = (0, 0);
        let mut collect = |posted: Option<Posted>| {
            let posted = posted.unwrap_or_default();
            assert_eq!(pending & posted.pending[0], 0, "delivered twice");
            pending |= posted.pending[0];
            level |= posted.level[0];
        };
        collect(lines.take());
        for poster in posters {
            assert!(poster.join().is_ok());
        }
        collect(lines.take());
        assert_eq!((pending, level), (0b11 << 0x30, 1 << 0x30));
    });
}
