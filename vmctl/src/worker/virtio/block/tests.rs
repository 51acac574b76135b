//! Requests, good and bad, on an image in a file.

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use vm_memory::{Bytes, GuestAddress};

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_DISCARD,
    VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
    VIRTIO_BLK_T_WRITE_ZEROES,
};

use super::super::tests::Driver;
use super::flights::{Flights, Id};
use super::*;
use crate::disk::{self, Access, BackingDirs, Cache, Chain, Format, IoError};
use crate::worker::event::{Event, wait_any};
use crate::worker::stall::News;

const SIZE: u64 = 1 << 20;
/// Where the driver keeps a request's header, data and status.
const HEADER_AT: u64 = 0x4_0000;
const DATA: u64 = 0x5_0000;
const STATUS: u64 = 0x6_0000;
const OK: u8 = VIRTIO_BLK_S_OK as u8;
const IOERR: u8 = VIRTIO_BLK_S_IOERR as u8;
const UNSUPP: u8 = VIRTIO_BLK_S_UNSUPP as u8;

struct Guest {
    driver: Driver,
    _dir: tempfile::TempDir,
    path: PathBuf,
}

fn open_image(path: &Path, format: Format, access: Access) -> Image {
    let chain = Chain::open(path, format, access, BackingDirs::Only(&[])).unwrap();
    Image::new(chain, Cache::Writeback).unwrap()
}

/// Makes a disk image in a new directory and opens it.
fn open(format: Format, access: Access) -> (tempfile::TempDir, PathBuf, Image) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    disk::create(&path, format, SIZE, None).unwrap();
    let image = open_image(&path, format, access);
    (dir, path, image)
}

fn options(on_enospc: OnError) -> Options {
    Options {
        name: "disk0".to_owned(),
        serial: "S3RIAL".to_owned(),
        queues: 1,
        writethrough: false,
        on_enospc,
        on_error: OnError::Report,
        io_timeout: Duration::from_secs(30),
        on_timeout: OnTimeout::Wait,
    }
}

fn guest(format: Format, access: Access, on_enospc: OnError) -> Guest {
    let stalls = Arc::new(Stalls::new(Arc::new(Event::new().unwrap())));
    let (dir, path, image) = open(format, access);
    let block = Block::new(image, options(on_enospc), stalls);
    let mut driver = Driver::new(Box::new(block));
    driver.start(0);
    Guest {
        driver,
        _dir: dir,
        path,
    }
}

fn raw() -> Guest {
    guest(Format::Raw, Access::Write, OnError::Report)
}

impl Guest {
    fn put(&self, at: u64, bytes: &[u8]) {
        let memory = self.driver.memory();
        memory.write_slice(bytes, GuestAddress(at)).unwrap();
    }

    fn get(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        let memory = self.driver.memory();
        memory.read_slice(&mut bytes, GuestAddress(at)).unwrap();
        bytes
    }

    fn send(&mut self, kind: u32, sector: u64, len: u32, writes: bool) {
        let mut header = Vec::from(kind.to_le_bytes());
        header.extend([0; 4]);
        header.extend(sector.to_le_bytes());
        self.put(HEADER_AT, &header);
        self.put(STATUS, &[0xee]);
        let parts = [
            (HEADER_AT, 16, false),
            (DATA, len, writes),
            (STATUS, 1, true),
        ];
        let has_data = |part: &(u64, u32, bool)| part.1 > 0;
        let parts: Vec<_> = parts.into_iter().filter(has_data).collect();
        self.driver.send(&parts);
    }

    /// Its status, and the length of the answer.
    fn request(&mut self, kind: u32, sector: u64, len: u32, writes: bool) -> (u8, u32) {
        self.send(kind, sector, len, writes);
        let len = self.driver.answer();
        (self.get(STATUS, 1)[0], len)
    }

    fn range(&self, sector: u64, sectors: u32, flags: u32) {
        let mut range = Vec::from(sector.to_le_bytes());
        range.extend(sectors.to_le_bytes());
        range.extend(flags.to_le_bytes());
        self.put(DATA, &range);
    }
}

#[test]
fn what_is_written_is_read_and_stands_in_the_file() {
    for format in [Format::Raw, Format::Qcow2] {
        let mut guest = guest(format, Access::Write, OnError::Report);
        guest.put(DATA, &[7; 1024]);
        assert_eq!(guest.request(VIRTIO_BLK_T_OUT, 3, 1024, false), (OK, 1));
        guest.put(DATA, &[0; 1024]);
        assert_eq!(guest.request(VIRTIO_BLK_T_IN, 3, 1024, true), (OK, 1025));
        assert_eq!(guest.get(DATA, 1024), [7; 1024]);
        assert_eq!(guest.request(VIRTIO_BLK_T_FLUSH, 0, 0, false), (OK, 1));
    }
}

/// As a worker that is killed leaves it: nothing is flushed, nothing dropped.
#[test]
fn what_was_acknowledged_is_in_the_file_without_a_flush() {
    let mut guest = guest(Format::Qcow2, Access::Write, OnError::Report);
    guest.put(DATA, &[9; 512]);
    assert_eq!(guest.request(VIRTIO_BLK_T_OUT, 100, 512, false), (OK, 1));
    let copy = guest.path.with_extension("copy");
    fs::copy(&guest.path, &copy).unwrap();
    let image = open_image(&copy, Format::Qcow2, Access::Read);
    let mut bytes = [0; 512];
    let mut buffers = [io::IoSliceMut::new(&mut bytes)];
    image.read(100 * SECTOR, &mut buffers).unwrap();
    assert_eq!(bytes, [9; 512]);
}

/// The requests of one queue are answered in any order; none of them is lost.
#[test]
fn a_burst_of_writes_and_reads_is_answered() {
    for format in [Format::Raw, Format::Qcow2] {
        let mut guest = guest(format, Access::Write, OnError::Report);
        for (kind, writes) in [(VIRTIO_BLK_T_OUT, false), (VIRTIO_BLK_T_IN, true)] {
            // Each has a page for its data, and another one for its header and status.
            let chains = [1, 2, 3, 4, 5].map(|n: u64| {
                let (page, data) = (0x10_0000 + n * 0x1000, 0x20_0000 + n * 0x1000);
                guest.put(page, &kind.to_le_bytes());
                guest.put(page + 8, &(n * 300).to_le_bytes());
                guest.put(page + 16, &[0xee]);
                guest.put(data, &[if writes { 0 } else { n as u8 }; 512]);
                [(page, 16, false), (data, 512, writes), (page + 16, 1, true)]
            });
            guest
                .driver
                .send_all(&chains.each_ref().map(|chain| &chain[..]));
            guest.driver.answer();
            for chain in chains {
                assert_eq!(guest.get(chain[2].0, 1), [OK]);
            }
        }
        for n in 1..=5 {
            assert_eq!(guest.get(0x20_0000 + n * 0x1000, 512), [n as u8; 512]);
        }
    }
}

/// Makes a qcow2 image whose second half can be neither read nor written.
fn half_broken() -> (tempfile::TempDir, PathBuf, Image) {
    const HALF: u64 = 512 << 20;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    disk::create(&path, Format::Qcow2, 2 * HALF, None).unwrap();
    let file = fs::File::options().read(true).write(true).open(&path);
    let file = file.unwrap();
    let mut l1_table = [0; 8];
    file.read_exact_at(&mut l1_table, 40).unwrap();
    // The second entry of the table is for the second half. All entries of the table that it points
    // to point to no cluster's start. It lies where no new cluster will be.
    let table = 64 << 20;
    let entries = (1u64 << 63 | 0x200).to_be_bytes().repeat(1 << 13);
    file.write_all_at(&entries, table).unwrap();
    let entry = u64::from_be_bytes(l1_table) + 8;
    file.write_all_at(&(1u64 << 63 | table).to_be_bytes(), entry)
        .unwrap();
    let image = open_image(&path, Format::Qcow2, Access::Write);
    (dir, path, image)
}

/// Makes a disk for which root may take a tenth of a second.
fn impatient(on_timeout: OnTimeout) -> (Guest, Arc<server::Disk>, Arc<Stalls>) {
    let stalls = Arc::new(Stalls::new(Arc::new(Event::new().unwrap())));
    let (dir, path, image) = open(Format::Raw, Access::Write);
    let options = Options {
        io_timeout: Duration::from_millis(100),
        on_timeout,
        ..options(OnError::Pause)
    };
    let block = Block::new(image, options, Arc::clone(&stalls));
    let disk = Arc::clone(&block.disk);
    let mut driver = Driver::new(Box::new(block));
    driver.start(0);
    let guest = Guest {
        driver,
        _dir: dir,
        path,
    };
    (guest, disk, stalls)
}

#[test]
fn a_late_request_is_named_and_ends_nevertheless() {
    let (mut guest, disk, stalls) = impatient(OnTimeout::Wait);
    let held_up = disk.image.hold_up();
    guest.send(VIRTIO_BLK_T_IN, 3, 512, true);
    for _ in 0..2 {
        let mut news = None;
        guest.driver.wait("news", |_| {
            news = stalls.take_news();
            news.is_some()
        });
        let name = "disk0: a read of 512 bytes at byte 1536 has had no answer for 0.";
        let is_late = |news: &News| matches!(news, News::Late(reason) if reason.starts_with(name));
        assert!(news.as_ref().is_some_and(is_late), "{news:?}");
    }
    drop(held_up);
    guest.driver.answer();
    assert_eq!(guest.get(STATUS, 1), [OK]);
    let on_time = |_: &mut Driver| stalls.take_news() == Some(News::OnTime);
    guest.driver.wait("the end of the news", on_time);
}

#[test]
fn a_late_request_stops_or_ends_the_vm() {
    for on_timeout in [OnTimeout::Pause, OnTimeout::Kill] {
        let (mut guest, disk, stalls) = impatient(on_timeout);
        let held_up = disk.image.hold_up();
        guest.send(VIRTIO_BLK_T_OUT, 0, 512, false);
        guest.driver.wait("news", |_| match stalls.take_news() {
            Some(News::Pause(_)) => on_timeout == OnTimeout::Pause,
            Some(News::Kill(_)) => on_timeout == OnTimeout::Kill,
            news => news.is_some_and(|news| panic!("{news:?}")),
        });
        drop(held_up);
        guest.driver.answer();
        assert_eq!(guest.get(STATUS, 1), [OK]);
    }
}

#[test]
fn a_late_request_is_given_up_and_touches_the_guest_no_more() {
    let (mut guest, disk, _) = impatient(OnTimeout::Report);
    let held_up = disk.image.hold_up();
    guest.put(DATA, &[7; 512]);
    assert_eq!(guest.request(VIRTIO_BLK_T_IN, 3, 512, true), (IOERR, 1));
    assert_eq!(guest.request(VIRTIO_BLK_T_OUT, 5, 512, false), (IOERR, 1));
    // Root still has the write: an answer in no time says that it does not get another one.
    let start = std::time::Instant::now();
    for kind in [VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_FLUSH] {
        let len = if kind == VIRTIO_BLK_T_OUT { 512 } else { 0 };
        assert_eq!(guest.request(kind, 5, len, false), (IOERR, 1));
    }
    assert!(start.elapsed() < Duration::from_millis(100));
    guest.put(DATA, &[9; 512]);
    drop(held_up);
    guest.driver.wait("the last write", |_| {
        fs::read(&guest.path).unwrap()[5 * 512..6 * 512] == [7; 512]
    });
    guest.driver.wait("writes again", |driver| {
        driver.send(&[(HEADER_AT, 16, false), (STATUS, 1, true)]);
        driver.answer();
        let memory = driver.memory();
        memory.read_obj::<u8>(GuestAddress(STATUS)).unwrap() == OK
    });
    assert_eq!(guest.get(DATA, 512), [9; 512], "the read came too late");
    let status = disk.status();
    assert!(status.errors >= 4 && status.in_flight == 0, "{status:?}");
    assert_eq!((status.read, status.written), (0, 0));
}

#[test]
fn a_request_that_waits_holds_up_no_other_one() {
    const BROKEN: u64 = (600 << 20) / SECTOR;
    let stalls = Arc::new(Stalls::new(Arc::new(Event::new().unwrap())));
    let (dir, path, image) = half_broken();
    let options = Options {
        on_error: OnError::Pause,
        ..options(OnError::Pause)
    };
    let block = Block::new(image, options, Arc::clone(&stalls));
    let mut driver = Driver::new(Box::new(block));
    driver.start(0);
    let mut guest = Guest {
        driver,
        _dir: dir,
        path,
    };
    // They wait for the user. Others don't, whichever thread takes them.
    for (waiting, kind) in [(1, VIRTIO_BLK_T_OUT), (2, VIRTIO_BLK_T_IN)] {
        guest.send(kind, BROKEN, 512, kind == VIRTIO_BLK_T_IN);
        guest
            .driver
            .wait("a stall", |_| stalls.take_news().is_some());
        guest.driver.kept = 3 * waiting;
        for n in 0..3 {
            guest.send(VIRTIO_BLK_T_OUT, n, 512, false);
            guest.driver.wait_for_all_but(waiting);
            assert_eq!(guest.get(STATUS, 1), [OK]);
        }
    }
    guest.driver.reset();
}

#[test]
fn the_serial_number_is_told() {
    let mut guest = raw();
    assert_eq!(guest.request(VIRTIO_BLK_T_GET_ID, 0, 20, true), (OK, 21));
    assert_eq!(guest.get(DATA, 20), *b"S3RIAL\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
}

#[test]
fn ranges_are_cleared() {
    let mut guest = raw();
    guest.put(DATA, &[7; 4096]);
    assert_eq!(guest.request(VIRTIO_BLK_T_OUT, 8, 4096, false), (OK, 1));
    guest.range(8, 4, 1);
    assert_eq!(
        guest.request(VIRTIO_BLK_T_DISCARD, 0, 16, false),
        (UNSUPP, 1)
    );
    assert_eq!(
        guest.request(VIRTIO_BLK_T_WRITE_ZEROES, 0, 16, false),
        (OK, 1)
    );
    assert_eq!(guest.request(VIRTIO_BLK_T_IN, 8, 4096, true).0, OK);
    assert_eq!(guest.get(DATA, 2048), [0; 2048]);
    assert_eq!(guest.get(DATA + 2048, 2048), [7; 2048]);
    guest.range(8, 8, 0);
    assert_eq!(guest.request(VIRTIO_BLK_T_DISCARD, 0, 16, false), (OK, 1));
    guest.range(u64::MAX, 1, 0);
    assert_eq!(
        guest.request(VIRTIO_BLK_T_WRITE_ZEROES, 0, 16, false),
        (IOERR, 1)
    );
    assert_eq!(
        guest.request(VIRTIO_BLK_T_WRITE_ZEROES, 0, 15, false),
        (UNSUPP, 1)
    );
}

#[test]
fn what_cannot_be_done_is_an_error_and_the_disk_goes_on() {
    let mut guest = raw();
    let end = SIZE / SECTOR;
    for sector in [end, end - 1, u64::MAX, u64::MAX / 512] {
        let (status, _) = guest.request(VIRTIO_BLK_T_OUT, sector, 1024, false);
        assert_eq!(status, IOERR, "{sector:#x}");
        let (status, _) = guest.request(VIRTIO_BLK_T_IN, sector, 1024, true);
        assert_eq!(status, IOERR, "{sector:#x}");
    }
    assert_eq!(guest.request(VIRTIO_BLK_T_IN, 0, 511, true).0, IOERR);
    assert_eq!(guest.request(77, 0, 0, false).0, UNSUPP);
    assert_eq!(guest.request(VIRTIO_BLK_T_IN, end - 1, 512, true).0, OK);
    assert_eq!(fs::metadata(&guest.path).unwrap().len(), SIZE);
}

#[test]
fn a_disk_to_read_is_not_written() {
    let mut guest = guest(Format::Raw, Access::Read, OnError::Report);
    let features = guest.driver.features();
    assert_eq!(features >> VIRTIO_BLK_F_RO & 1, 1);
    assert_eq!(features >> VIRTIO_BLK_F_DISCARD & 1, 0);
    guest.put(DATA, &[7; 512]);
    assert_eq!(guest.request(VIRTIO_BLK_T_OUT, 0, 512, false).0, IOERR);
    assert_eq!(fs::read(&guest.path).unwrap(), vec![0; SIZE as usize]);
}

#[test]
fn a_request_without_a_header_or_a_status_breaks_the_disk() {
    let mut guest = raw();
    guest
        .driver
        .send(&[(HEADER_AT, 15, false), (STATUS, 1, true)]);
    guest.driver.wait_until_broken();
    guest.driver.reset();
    guest.driver.start(0);
    guest.driver.send(&[(HEADER_AT, 16, false)]);
    guest.driver.wait_until_broken();
    guest.driver.reset();
    guest.driver.start(0);
    assert_eq!(guest.request(VIRTIO_BLK_T_IN, 0, 512, true), (OK, 513));
}

/// A disk without a driver.
fn disk(options: Options, stalls: &Arc<Stalls>) -> Disk {
    let (_dir, _, image) = open(Format::Raw, Access::Read);
    Disk::new(image, options, Arc::clone(stalls))
}

#[test]
fn an_error_is_reported_or_stops_the_vm_until_it_is_resumed() {
    let wake = Arc::new(Event::new().unwrap());
    let stalls = Arc::new(Stalls::new(Arc::clone(&wake)));
    let stop = Event::new().unwrap();
    let no_space = || IoError::NoSpace;
    let broken = || IoError::Other(io::Error::other("bad block"));
    type Case = (fn() -> IoError, OnError, OnError, Option<&'static str>);
    let (report, pause) = (OnError::Report, OnError::Pause);
    let cases: [Case; 4] = [
        (no_space, report, pause, None),
        (no_space, pause, report, Some("disk0: no space left")),
        (broken, pause, report, None),
        (broken, report, pause, Some("disk0: bad block")),
    ];
    for (error, on_enospc, on_error, stalled) in cases {
        let options = Options {
            on_error,
            ..options(on_enospc)
        };
        let disk = disk(options, &stalls);
        let tries = std::cell::Cell::new(0);
        let news = std::thread::scope(|scope| {
            let resumer = stalled.map(|_| {
                scope.spawn(|| {
                    wait_any(&[wake.as_fd()], None);
                    wake.clear();
                    let news = stalls.take_news();
                    stalls.resume();
                    news
                })
            });
            let flights = Flights::new(Duration::from_secs(30));
            let done = disk.attempt(&flights, &[Id::default()], &stop, |_| {
                tries.set(tries.get() + 1);
                match tries.get() {
                    1 => Err(error()),
                    _ => Ok(()),
                }
            });
            assert_eq!(done.is_ok(), stalled.is_some());
            resumer.and_then(|resumer| resumer.join().unwrap())
        });
        let stalled = stalled.map(|reason| News::Pause(reason.to_owned()));
        assert_eq!(news, stalled);
    }
    // The guest's own mistake never stops the VM.
    let options = Options {
        on_error: OnError::Pause,
        ..options(OnError::Pause)
    };
    let flights = Flights::new(Duration::from_secs(30));
    let act = |_: &Image| Err(IoError::OutOfRange);
    let done = disk(options, &stalls).attempt(&flights, &[Id::default()], &stop, act);
    assert_eq!(done, Err(Refusal::Failed));
}

#[test]
fn only_a_disk_with_a_cache_offers_flushes() {
    for (writethrough, flushes) in [(false, 1), (true, 0)] {
        let stalls = Arc::new(Stalls::new(Arc::new(Event::new().unwrap())));
        let (_dir, _, image) = open(Format::Raw, Access::Write);
        let options = Options {
            writethrough,
            ..options(OnError::Report)
        };
        let block = Block::new(image, options, stalls);
        assert_eq!(block.features() >> VIRTIO_BLK_F_FLUSH & 1, flushes);
    }
}
