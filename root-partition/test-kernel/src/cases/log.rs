//! The microvisor's log as root reads it.

use guest_proto::hypercall::Hypercall;

use super::FOREIGN_PAGES;
use crate::hv;
use crate::memory::Pages;
use crate::report::{Outcome, cases, ensure, equal};

cases![
    it_begins_with_the_version,
    it_is_read_piece_by_piece,
    a_position_past_the_end_is_the_end,
    the_page_must_be_roots,
];

/// Reads from a position on: the count of bytes, and the position after them.
fn read(page: Pages, position: u64) -> Outcome<(u64, u64)> {
    let end = hv::call(Hypercall::LogRead, [page.pfn(), position]).ok()?;
    Ok((page.load(0), end))
}

fn it_begins_with_the_version() -> Outcome {
    let page = Pages::scratch();
    let (count, end) = read(page, 0)?;
    equal(
        "bytes, position",
        (count, end),
        (count.clamp(1, 4088), count),
    )?;
    let text: [u8; 24] = page.load(8);
    equal("text", &text[..23], &b"<6>microvisor: version "[..])
}

fn it_is_read_piece_by_piece() -> Outcome {
    let page = Pages::scratch();
    let mut position = 0;
    for _ in 0..64 {
        let (count, end) = read(page, position)?;
        equal("no gap", end, position + count)?;
        if count == 0 {
            return equal("the end", hv::machine_info()?.log_position, position);
        }
        position = end;
    }
    crate::report::fail(format_args!("the log never ends"))
}

fn a_position_past_the_end_is_the_end() -> Outcome {
    let end = hv::machine_info()?.log_position;
    for position in [end, end + 1, u64::MAX] {
        equal(
            "bytes, position",
            read(Pages::scratch(), position)?,
            (0, end),
        )?;
    }
    // A position inside a line.
    let (count, after) = read(Pages::scratch(), 3)?;
    ensure("something", count > 0)?;
    equal("the position after it", after, 3 + count)
}

fn the_page_must_be_roots() -> Outcome {
    for (pfn, status) in FOREIGN_PAGES {
        hv::call(Hypercall::LogRead, [pfn, 0]).is(status)?;
    }
    Ok(())
}
