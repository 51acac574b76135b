//! The nested map of the CPUs that VM 0 has not started yet. Such a CPU reaches only the pages where it waits,
//! which never change hands. So TLB epochs need not count it, whatever VM 0 makes it execute there.

use core::ops::Range;

use super::entry::Entry;
use super::{LARGE_PAGES, store};
use crate::memory::{Frame, PhysMap};

/// Count of frames that the map takes in one run: a table of each level.
pub const WAITING_TABLES: u64 = 4;

/// Builds the map of `pages`, which lie below 2 MiB, in the frames from `first_table` on. Returns the top table.
pub fn build_waiting(map: &PhysMap, first_table: Frame, pages: Range<u64>) -> Frame {
    let table = |n| first_table.offset(n);
    for n in 0..WAITING_TABLES {
        map.zero(table(n));
    }
    for n in 1..WAITING_TABLES {
        store(map, table(n - 1), 0, Entry::table(table(n)));
    }
    for page in pages.filter(|page| *page < LARGE_PAGES) {
        store(
            map,
            table(WAITING_TABLES - 1),
            page,
            Entry::page(Frame::new(page), true),
        );
    }
    first_table
}

#[cfg(test)]
mod tests {
    use crate::memory::Frame;
    use crate::memory::nested::lookup;
    use crate::memory::testing::{Fake, WAITING};

    #[test]
    fn a_waiting_cpu_reaches_its_pages_and_nothing_else() {
        let fake = Fake::new(1024);
        for n in (0..fake.frames).chain([1 << 18, 1 << 27]) {
            let reached = lookup(&fake.memory.map, fake.memory.waiting, n);
            let expected = WAITING.contains(&n).then_some((Frame::new(n), true));
            assert_eq!(reached, expected, "page {n}");
        }
    }
}
