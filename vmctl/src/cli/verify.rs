//! `vmctl verify`: the microvisor checks its nested maps against its frame table.

use guest_proto::hypercall::{FrameOwner, VerifyDifference, VerifyReport, verify_maps};
use guest_proto::limits::ROOT_PARTITION;

use super::{DeviceArgs, output};
use crate::exit::{ExitStatus, Failed};

#[derive(Debug, clap::Args)]
pub(super) struct VerifyArgs {
    #[command(flatten)]
    device: DeviceArgs,
}

pub(super) fn run(args: &VerifyArgs) -> Result<(), Failed> {
    let device = args.device.open()?;
    let (mut frames, mut pages, mut position) = (0, 0, 0);
    loop {
        let found;
        (found, position) = device.verify(position)?;
        if found.difference != 0 {
            return Err(Failed::new(ExitStatus::Failed, describe(&found)));
        }
        frames += found.frames;
        pages += found.pages;
        if position == 0 {
            break;
        }
    }
    output::text(&format!(
        "{frames} frames and {pages} pages of guests: the nested maps and the frame table agree\n"
    ))
}

/// One line with both sides.
fn describe(found: &VerifyReport) -> String {
    let map = match found.map {
        ROOT_PARTITION => "the nested map of root".to_owned(),
        verify_maps::WAITING => "the nested map of CPUs that root has not started".to_owned(),
        id => format!("the nested map of partition {id}"),
    };
    let way = format!(
        "the entry for page {:#x} is {:#x} at level {}",
        found.page, found.entry, found.level
    );
    let table = format!(
        "by the frame table, frame {:#x} is {}",
        found.frame,
        owner(found.owner)
    );
    match VerifyDifference::from_raw(found.difference) {
        Some(VerifyDifference::Table) => {
            format!(
                "{map} has a table in frame {:#x} ({way}); {table}",
                found.frame
            )
        }
        Some(VerifyDifference::Page) => {
            format!("{map} maps frame {:#x} ({way}); {table}", found.frame)
        }
        Some(VerifyDifference::Frame) => format!("{table}; in {map} {way}"),
        Some(VerifyDifference::Owner) => format!("{table}, and there is no such partition"),
        None => format!(
            "difference {}, which this vmctl does not know: {map}: {way}; {table}",
            found.difference
        ),
    }
}

/// Returns the meaning of a word of the frame table.
fn owner(word: u64) -> String {
    let [kind, partition, ..] = word.to_le_bytes();
    let page = word >> 16;
    match FrameOwner::from_raw(kind) {
        Some(FrameOwner::Absent) => "not RAM".to_owned(),
        Some(FrameOwner::Reserved) => "the microvisor's".to_owned(),
        Some(FrameOwner::Root) => "root's".to_owned(),
        Some(FrameOwner::Pool) => format!("in the pool of partition {partition}"),
        Some(FrameOwner::Metadata) => format!("metadata of partition {partition}"),
        Some(FrameOwner::Guest) => format!("private page {page:#x} of partition {partition}"),
        Some(FrameOwner::Shared) => format!("page {page:#x} of partition {partition}"),
        Some(FrameOwner::SharedPage) => {
            format!("a page that partition {partition} shares with root")
        }
        None => format!("{word:#x}, which is no owner"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_has_both_sides() {
        let report = |kind: VerifyDifference, map, owner| VerifyReport {
            difference: kind.raw(),
            level: 0,
            map,
            page: 0x258,
            entry: 0x1e067,
            frame: 0x1e,
            owner,
            ..VerifyReport::default()
        };
        let shared = 0x258_0106;
        let table = [
            (
                report(VerifyDifference::Page, 1, 2),
                "the nested map of partition 1 maps frame 0x1e (the entry for page 0x258 is 0x1e067 at level 0); \
                 by the frame table, frame 0x1e is root's",
            ),
            (
                report(VerifyDifference::Table, 256, 0x304),
                "the nested map of CPUs that root has not started has a table in frame 0x1e (the entry for page \
                 0x258 is 0x1e067 at level 0); by the frame table, frame 0x1e is metadata of partition 3",
            ),
            (
                report(VerifyDifference::Frame, 0, shared),
                "by the frame table, frame 0x1e is page 0x258 of partition 1; in the nested map of root the entry \
                 for page 0x258 is 0x1e067 at level 0",
            ),
            (
                report(VerifyDifference::Owner, 9, 0x907),
                "by the frame table, frame 0x1e is a page that partition 9 shares with root, and there is no such \
                 partition",
            ),
        ];
        for (report, line) in table {
            assert_eq!(describe(&report), line);
        }
        let newer = VerifyReport {
            difference: 77,
            owner: 99,
            ..report(VerifyDifference::Page, 0, 0)
        };
        let line = describe(&newer);
        assert!(
            line.contains("77") && line.contains("0x63, which is no owner"),
            "{line}"
        );
    }
}
