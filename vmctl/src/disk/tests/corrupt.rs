//! Images that are not what they should be.

use super::*;

#[test]
fn a_corrupt_header_is_an_error() {
    let folder = Folder::new();
    let path = folder.image("disk.qcow2", MIB);
    let sound = fs::read(&path).unwrap();
    let wrong: &[(u64, &[u8], &str)] = &[
        (0, b"QFI\0", "not a qcow2 image"),
        (4, &[0, 0, 0, 9], "qcow2 version 9"),
        (20, &[0, 0, 0, 63], "clusters of 2^63"),
        (20, &[0xff; 4], "clusters of 2^4294967295"),
        (24, &[0x7f; 8], "the L1 table is too short"),
        (24, &[0; 8], "the disk has size 0"),
        (28, &[0, 0, 1, 1], "no whole number of 512-byte sectors"),
        (32, &[0, 0, 0, 2], "encrypted"),
        (36, &[0, 0, 0, 0], "the L1 table is too short"),
        (36, &[0xff; 4], "it has 33554432 at most"),
        (36, &[0, 0x10, 0, 0], "the L1 table lies behind the end"),
        (40, &[0x7f; 8], "the L1 table is at 0x7f7f7f7f7f7f7f7f"),
        (
            40,
            &[0x7f, 0, 0, 0, 0, 0, 0, 0],
            "the L1 table lies behind the end",
        ),
        (48, &[0xff; 8], "the refcount table is at"),
        (56, &[0xff; 4], "it has 8388608 at most"),
        (72, &[0, 0, 0, 0, 0, 0, 0, 1], "not closed properly"),
        (72, &[0, 0, 0, 0, 0, 0, 0, 2], "marked as corrupt"),
        (72, &[0, 0, 0, 0, 0, 0, 0, 4], "external data file"),
        (
            72,
            &[0x80, 0, 0, 0, 0, 0, 0, 0],
            "features 0x8000000000000000",
        ),
        (96, &[0xff; 4], "reference counts of 2^4294967295"),
        (100, &[0; 4], "the qcow2 header is truncated"),
        (8, &[0xff; 12], "name is 4294967295 bytes long"),
        (
            8,
            &[0x7f, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9],
            "the qcow2 header is truncated",
        ),
        (60, &[0, 0, 0, 1], "has internal snapshots"),
        (65536, &[0; 8], "reference counts are corrupt"),
        (
            65536,
            &[0, 0xff, 0, 0, 0, 0, 0, 0],
            "reference counts are corrupt",
        ),
        (
            65536,
            &[0, 0, 0, 0, 0, 0, 0x90, 1],
            "reference counts are corrupt",
        ),
        (2 * 65536, &[0; 2], "reference counts are corrupt"),
    ];
    for (offset, bytes, what) in wrong {
        fs::write(&path, &sound).unwrap();
        patch(&path, *offset, bytes);
        let error = refusal(&path);
        assert!(error.contains(what), "{offset}: {error}");
        assert_eq!(error.lines().count(), 1);
    }
    for len in [0, 3, 4, 71, 103, 104, 200, 65536, 3 * 65536] {
        fs::write(&path, &sound[..len]).unwrap();
        let error = refusal(&path);
        assert!(!error.is_empty());
    }
}

/// Whatever bytes a header and the tables have, to open and to read it does no harm. To write is
/// another matter: tables may point to each other, and `imago` does not look for that.
#[test]
fn any_header_and_table_is_survived() {
    let folder = Folder::new();
    let path = folder.image("disk.qcow2", MIB);
    write(&writer(&path), 0, &pattern(0, 200_000));
    let sound = fs::read(&path).unwrap();
    let ends = (sound.len() / 65536) as u64;
    let mut seed = 0x2545_f491_4f6c_dd1d_u64;
    let mut random = || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    for round in 0..1000 {
        fs::write(&path, &sound).unwrap();
        for _ in 0..=random() % 3 {
            let (cluster, field) = match round % 2 {
                0 => (0, random() % 20),
                _ => (random() % ends, random() % 8),
            };
            let value = random() >> (random() % 64);
            patch(&path, cluster * 65536 + field * 8, &value.to_be_bytes());
        }
        let Ok(image) = open(&path, Access::Write) else {
            continue;
        };
        let mut bytes = vec![0; 70_000];
        let end = image.capacity().min(200_000);
        let len = bytes.len().min(end as usize);
        let _ = image.read(end - len as u64, &mut [IoSliceMut::new(&mut bytes[..len])]);
        let _ = image.flush();
    }
}

#[test]
fn the_format_of_a_backing_file_is_said_and_known() {
    let folder = Folder::new();
    let base = folder.image("base.img", MIB);
    let top = folder.overlay("top.qcow2", MIB, &base);
    let bytes = fs::read(&top).unwrap();
    let at = bytes
        .windows(4)
        .position(|w| w == 0xe279_2aca_u32.to_be_bytes());
    let at = at.unwrap() as u64;
    patch(&top, at + 8, b"ra\n");
    assert!(
        refusal(&top).ends_with("format \"ra\\n\""),
        "{}",
        refusal(&top)
    );
    patch(&top, at, &[0x12; 4]);
    assert!(refusal(&top).ends_with("the image does not say its format"));
}

#[test]
fn contents_do_not_make_a_raw_disk_qcow2() {
    let folder = Folder::new();
    let raw = folder.image("disk.img", MIB);
    assert_eq!(Format::detect(&raw), Ok(Format::Raw));
    write(
        &writer(&raw),
        0,
        &fs::read(folder.image("x.qcow2", MIB)).unwrap(),
    );
    assert!(
        Format::detect(&raw)
            .unwrap_err()
            .to_string()
            .contains("--format")
    );
    assert_eq!(Format::of_contents(&raw), Ok(Format::Qcow2));
    assert_eq!(reader(&raw).capacity(), MIB);
    assert!(Format::detect(&folder.path("none")).is_err());
}
