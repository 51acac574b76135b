//! Reading and writing.

use std::io;

use super::*;

#[test]
fn what_is_written_is_read_again() {
    let folder = Folder::new();
    for name in ["disk.img", "disk.qcow2"] {
        for cache in [Cache::Writeback, Cache::None] {
            let path = folder.image(&format!("{cache:?}-{name}"), 4 * MIB);
            let open = |access| open_as(&path, access, cache);
            let image = match open(Access::Write) {
                Err(e) if cache == Cache::None => {
                    println!("{e}: not tried");
                    continue;
                }
                image => image.unwrap(),
            };
            assert_eq!((image.capacity(), image.is_read_only()), (4 * MIB, false));
            let spots = [(0, 512), (65_535, 3), (131_071, 70_001), (4 * MIB - 1, 1)];
            for (offset, len) in spots {
                write(&image, offset, &pattern(offset, len));
            }
            let check = |image: &Image| {
                for (offset, len) in spots {
                    assert_eq!(read(image, offset, len), pattern(offset, len), "{path:?}");
                }
                assert_eq!(read(image, MIB, 4096), [0; 4096]);
            };
            check(&image);
            image.write_zeroes(4 * MIB - 1024, 512).unwrap();
            write(&image, 4 * MIB - 10_000, &pattern(0, 9500));
            image.write_zeroes(4 * MIB - 10_000, 9_500).unwrap();
            image.write_zeroes(4 * MIB - 20_000, 15_000).unwrap();
            check(&image);
            assert_eq!(read(&image, 4 * MIB - 20_000, 19_500), [0; 19_500]);
            image.flush().unwrap();
            drop(image);
            check(&open(Access::Read).unwrap());
            assert_eq!(open(Access::Read).unwrap().capacity(), 4 * MIB);
            if Format::of_name(&path) == Format::Qcow2 {
                assert_sound(&path);
            }
        }
    }
}

#[test]
fn buffers_of_any_number_and_a_guests_memory() {
    let folder = Folder::new();
    let image = writer(&folder.image("disk.qcow2", MIB));
    let bytes = pattern(7, 3000);
    let slices: Vec<_> = bytes.iter().map(std::slice::from_ref).collect();
    let slices: Vec<_> = slices.into_iter().map(IoSlice::new).collect();
    image.write(7, &slices).unwrap();
    let mut back = vec![0; 3000];
    let mut slices: Vec<_> = back.chunks_mut(1).map(IoSliceMut::new).collect();
    image.read(7, &mut slices).unwrap();
    assert_eq!(back, bytes);

    let mut memory = vec![0; 3000];
    let (head, tail) = memory.split_at_mut(1001);
    let guest = [VolatileSlice::from(head), VolatileSlice::from(tail)];
    image.read_guest(7, &guest).unwrap();
    image.write_guest(500_000, &guest).unwrap();
    assert_eq!(memory, bytes);
    assert_eq!(read(&image, 500_000, 3000), bytes);
}

#[test]
fn nothing_is_done_behind_the_end_or_to_what_is_read_only() {
    let folder = Folder::new();
    for name in ["disk.img", "disk.qcow2"] {
        let path = folder.image(name, MIB);
        let image = writer(&path);
        let mut byte = [0];
        let mut byte = [IoSliceMut::new(&mut byte)];
        let outside = |result| matches!(result, Err(IoError::OutOfRange));
        assert!(outside(image.read(MIB, &mut byte)));
        assert!(outside(image.read(u64::MAX, &mut byte)));
        assert!(outside(image.write(MIB, &[IoSlice::new(&[1])])));
        assert!(outside(image.discard(MIB - 512, 1024)));
        assert!(outside(image.write_zeroes(512, u64::MAX)));
        assert_eq!(image.capacity(), MIB);
        drop(image);
        let image = reader(&path);
        let refused = |result| matches!(result, Err(IoError::ReadOnly));
        assert!(refused(image.write(0, &[IoSlice::new(&[1])])));
        assert!(refused(image.discard(0, 512)));
        assert!(refused(image.write_zeroes(0, 512)));
        image.flush().unwrap();
    }
}

#[test]
fn a_full_file_system_is_told_from_a_failing_one() {
    let error = |code| IoError::from(io::Error::from_raw_os_error(code));
    assert!(matches!(error(libc::ENOSPC), IoError::NoSpace));
    assert!(matches!(error(libc::EDQUOT), IoError::NoSpace));
    assert!(matches!(error(libc::EIO), IoError::Other(_)));
    // As imago hands it on: without the number.
    let wrapped = io::Error::new(io::ErrorKind::StorageFull, "writing a table");
    assert!(matches!(IoError::from(wrapped), IoError::NoSpace));
}

#[test]
fn an_overlay_reads_its_backing_file_and_leaves_it_alone() {
    let folder = Folder::new();
    for base in ["base.img", "base.qcow2"] {
        let base = folder.image(base, MIB);
        write(&writer(&base), 0, &pattern(0, MIB as usize));
        let before = fs::read(&base).unwrap();
        let top = folder.path("top.qcow2");
        let middle = folder.overlay("middle.qcow2", 2 * MIB, &base);
        assert_eq!(snapshot(&middle, Format::Qcow2, &top).unwrap(), 2 * MIB);
        let image = writer(&top);
        assert_eq!(read(&image, 12_345, 100_000), pattern(12_345, 100_000));
        assert_eq!(read(&image, MIB, 4096), [0; 4096]);
        write(&image, 100_000, b"over");
        image.discard(2 * 65536, 65536).unwrap();
        image.write_zeroes(999, 3).unwrap();
        image.flush().unwrap();
        drop(image);
        let image = reader(&top);
        assert_eq!(
            read(&image, 99_999, 6),
            [&pattern(99_999, 1)[..], b"over", &pattern(100_004, 1)].concat()
        );
        assert_eq!(read(&image, 2 * 65536, 65536), [0; 65536]);
        assert_eq!(read(&image, 998, 5)[1..4], [0; 3]);
        assert_eq!(read(&image, 998, 1), pattern(998, 1));
        drop(image);
        assert_eq!(fs::read(&base).unwrap(), before);
        assert_sound(&top);
        assert_sound(&middle);
        fs::remove_file(&top).unwrap();
        fs::remove_file(&middle).unwrap();
    }
}

#[test]
fn zeroes_and_discarded_blocks_read_as_zeroes() {
    let folder = Folder::new();
    for name in ["disk.img", "disk.qcow2"] {
        let path = folder.image(name, 2 * MIB);
        let image = writer(&path);
        write(&image, 0, &pattern(0, 2 * MIB as usize));
        image.write_zeroes(1001, 300_000).unwrap();
        image.discard(MIB, 512 << 10).unwrap();
        image.flush().unwrap();
        drop(image);
        let image = reader(&path);
        assert_eq!(read(&image, 0, 1001), pattern(0, 1001));
        assert!(read(&image, 1001, 300_000).iter().all(|&byte| byte == 0));
        assert_eq!(read(&image, 301_001, 9999), pattern(301_001, 9999));
        assert!(read(&image, MIB, 512 << 10).iter().all(|&byte| byte == 0));
        let behind = MIB + (512 << 10);
        assert_eq!(read(&image, behind, 512), pattern(behind, 512));
    }
}

#[test]
fn a_discard_that_fits_no_block_changes_nothing() {
    let folder = Folder::new();
    let image = writer(&folder.image("disk.qcow2", MIB));
    write(&image, 0, &pattern(0, 65536));
    image.discard(512, 1024).unwrap();
    assert_eq!(read(&image, 0, 65536), pattern(0, 65536));
}

#[test]
fn threads_share_an_image() {
    let folder = Folder::new();
    for cache in [Cache::Writeback, Cache::None] {
        let path = folder.image(&format!("{cache:?}.qcow2"), 8 * MIB);
        let Ok(image) = open_as(&path, Access::Write, cache) else {
            println!("no direct I/O here: not tried");
            continue;
        };
        std::thread::scope(|scope| {
            for thread in 0..4_u64 {
                let image = &image;
                scope.spawn(move || {
                    // Neighbours within a cluster, and within a block.
                    for at in (thread * 1000..8 * MIB - 1000).step_by(40_000) {
                        write(image, at, &pattern(at, 1000));
                        assert_eq!(read(image, at, 1000), pattern(at, 1000));
                        if at % 3 == 0 {
                            image.flush().unwrap();
                        }
                        if at % 5 == 0 {
                            image.discard(at, 100).unwrap();
                        }
                    }
                });
            }
        });
        image.flush().unwrap();
        for at in (0..8 * MIB - 4000).step_by(40_000) {
            assert_eq!(read(&image, at, 4000), pattern(at, 4000));
        }
        drop(image);
        assert_sound(&path);
    }
}

#[test]
fn images_that_qemu_made_are_written() {
    let folder = Folder::new();
    let raw = folder.path("source.img");
    fs::write(&raw, pattern(0, MIB as usize)).unwrap();
    let source = raw.to_str().unwrap();
    let options = [
        "compat=0.10",
        "cluster_size=512",
        "cluster_size=2M",
        "refcount_bits=1",
    ];
    for (at, options) in options.iter().enumerate() {
        for compressed in [&["-c"][..], &[]] {
            let path = folder.path(&format!("{at}{}.qcow2", compressed.len()));
            let mut line = vec!["convert", "-f", "raw", "-O", "qcow2", "-o", options];
            line.extend(compressed);
            line.push(source);
            match qemu_img(&line, &path) {
                None => return,
                made => assert_eq!(made, Some(true), "{line:?}"),
            }
            let image = writer(&path);
            assert_eq!(read(&image, 0, MIB as usize), pattern(0, MIB as usize));
            write(&image, 70_001, &pattern(5, 5000));
            image.write_zeroes(200_001, 300_000).unwrap();
            image.discard(600_000, 4096).unwrap();
            image.flush().unwrap();
            drop(image);
            let image = reader(&path);
            assert_eq!(read(&image, 70_001, 5000), pattern(5, 5000));
            assert_eq!(read(&image, 75_001, 125_000), pattern(75_001, 125_000));
            assert!(read(&image, 200_001, 300_000).iter().all(|&byte| byte == 0));
            assert_eq!(read(&image, 500_001, 9_999), pattern(500_001, 9_999));
            drop(image);
            resize(&path, Format::Qcow2, 3 * MIB, false).unwrap();
            resize(&path, Format::Qcow2, 512, true).unwrap();
            assert_sound(&path);
        }
    }
}

#[test]
fn what_a_raw_image_has_lost_does_not_read_as_zeroes() {
    let folder = Folder::new();
    let path = folder.image("short.raw", MIB);
    let base = folder.image("base.raw", MIB);
    let over = folder.overlay("over.qcow2", MIB, &base);
    for (image, short) in [(reader(&path), &path), (reader(&over), &base)] {
        let cut = OpenOptions::new().write(true).open(short).unwrap();
        cut.set_len(MIB / 2).unwrap();
        assert_eq!(read(&image, 0, 512), vec![0; 512]);
        let mut bytes = [0xee; 1024];
        let lost = image.read(MIB / 2 - 512, &mut [IoSliceMut::new(&mut bytes)]);
        assert!(matches!(lost, Err(IoError::Other(_))), "{lost:?}");
    }
}
