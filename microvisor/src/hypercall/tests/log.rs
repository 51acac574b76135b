//! The log, read page by page.

use std::string::String;
use std::vec;

use guest_proto::hypercall::Hypercall::LogRead;
use guest_proto::limits::PAGE_SIZE;

use super::World;
use super::lifecycle::info;
use crate::memory::Frame;

const PAGE: u64 = 1;
const TEXT: usize = PAGE_SIZE as usize - 8;

fn read(world: &mut World, position: u64) -> (String, u64) {
    let end = world.ok(LogRead, &[PAGE, position]);
    let mut page = vec![0; PAGE_SIZE as usize];
    let map = world.machine.memory.map;
    assert!(map.read(Frame::new(PAGE).base(), &mut page));
    let (count, text) = page.split_first_chunk().unwrap();
    let count = u64::from_le_bytes(*count) as usize;
    assert!(text[count..].iter().all(|byte| *byte == 0));
    (String::from_utf8_lossy(&text[..count]).into_owned(), end)
}

#[test]
fn root_reads_page_by_page() {
    let mut world = World::new();
    let long = "x".repeat(TEXT - 1);
    world.machine.log.append(long.as_bytes());
    world.machine.log.append(b"abc");
    assert_eq!(info(&mut world).log_position, TEXT as u64 + 2);
    assert_eq!(read(&mut world, 0), (long + "a", TEXT as u64));
    assert_eq!(
        read(&mut world, TEXT as u64),
        ("bc".into(), TEXT as u64 + 2)
    );
    assert_eq!(read(&mut world, u64::MAX), ("".into(), TEXT as u64 + 2));
}

#[test]
fn what_the_ring_has_lost_can_be_told_from_value_and_count() {
    let mut world = World::new();
    for line in 0..10_000 {
        world
            .machine
            .log
            .append(std::format!("{line:07}\n").as_bytes());
    }
    let (text, end) = read(&mut world, 16);
    let began = end - text.len() as u64;
    assert_eq!(began, 80_000 - (64 << 10));
    assert!(text.starts_with(&std::format!("{:07}\n", began / 8)));
}
