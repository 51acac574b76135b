//! Making images, and changing their size.

use super::*;

#[test]
fn creating_overwrites_nothing_and_leaves_nothing_behind() {
    let folder = Folder::new();
    let path = folder.image("disk.qcow2", MIB);
    let before = fs::read(&path).unwrap();
    let error = create(&path, Format::Qcow2, MIB, None).unwrap_err();
    assert_eq!(error.problem, Problem::Exists);
    assert_eq!(snapshot(&path, Format::Qcow2, &path), Err(error));
    assert_eq!(fs::read(&path).unwrap(), before);
    let new = folder.path("new.qcow2");
    let tries = [
        create(&new, Format::Qcow2, 0, None),
        create(&new, Format::Qcow2, 513, None),
        create(&new, Format::Qcow2, 1 << 60, None),
        create(&new, Format::Raw, u64::MAX - 511, None),
        create(
            &new,
            Format::Raw,
            MIB,
            Some(Backing {
                path: &path,
                format: Format::Qcow2,
            }),
        ),
        create(
            &new,
            Format::Qcow2,
            MIB,
            Some(Backing {
                path: &new,
                format: Format::Qcow2,
            }),
        ),
        create(&folder.path("none/new"), Format::Raw, MIB, None),
    ];
    for (at, tried) in tries.iter().enumerate() {
        let error = tried.as_ref().unwrap_err().to_string();
        assert_eq!(error.lines().count(), 1, "{at}: {error}");
    }
    let names = fs::read_dir(folder.path("")).unwrap();
    assert_eq!(names.count(), 1);
}

#[test]
fn a_disk_grows_with_zeroes() {
    let folder = Folder::new();
    let base = folder.image("base.img", 2 * MIB);
    write(&writer(&base), 0, &pattern(0, 2 * MIB as usize));
    let top = folder.overlay("top.qcow2", MIB + 512, &base);
    assert_eq!(resize(&top, Format::Qcow2, 8 * MIB, false), Ok(MIB + 512));
    let image = reader(&top);
    assert_eq!(image.capacity(), 8 * MIB);
    assert_eq!(read(&image, MIB, 512), pattern(MIB, 512));
    let new = read(&image, MIB + 512, 7 * MIB as usize - 512);
    assert_eq!(new.iter().position(|&byte| byte != 0), None);
    drop(image);
    assert_sound(&top);
}

#[test]
fn a_disk_shrinks_only_if_told_to() {
    let folder = Folder::new();
    for name in ["disk.img", "disk.qcow2"] {
        let path = folder.image(name, 4 * MIB);
        let format = Format::of_name(&path);
        write(&writer(&path), 0, &pattern(0, 4 * MIB as usize));
        let error = resize(&path, format, MIB + 512, false).unwrap_err();
        assert_eq!(error.problem, Problem::Wrong);
        assert_eq!(resize(&path, format, MIB + 512, true), Ok(4 * MIB));
        assert_eq!(resize(&path, format, 3 * MIB, false), Ok(MIB + 512));
        let image = reader(&path);
        assert_eq!(read(&image, MIB, 512), pattern(MIB, 512));
        let behind = read(&image, MIB + 512, 2 * MIB as usize - 512);
        assert_eq!(behind.iter().position(|&byte| byte != 0), None, "{name}");
        drop(image);
        if format == Format::Qcow2 {
            assert_sound(&path);
        }
    }
}

#[test]
fn a_full_clone_has_the_data_of_the_chain_and_no_backing_file() {
    let folder = Folder::new();
    let size = 5 * MIB + 512;
    let base = folder.image("base.img", size);
    write(&writer(&base), 0, &pattern(0, 70_000));
    let top = folder.overlay("top.qcow2", size, &base);
    write(&writer(&top), 65_000, b"on top");
    write(&writer(&top), size - 4, b"last");
    let data = read(&reader(&top), 0, size as usize);
    for name in ["copy.qcow2", "copy.img"] {
        let copy = folder.path(name);
        let new = Format::of_name(&copy);
        let dirs = BackingDirs::Only(&[]);
        clone_full(&top, Format::Qcow2, &copy, new, dirs).unwrap();
        let layers = info(&copy, new).unwrap();
        assert_eq!((layers.len(), layers[0].virtual_size), (1, size));
        assert!(layers[0].size_on_disk < 2 * MIB, "{layers:?}");
        assert_eq!(read(&reader(&copy), 0, size as usize), data);
        let error = clone_full(&top, Format::Qcow2, &copy, new, dirs).unwrap_err();
        assert_eq!(error.problem, Problem::Exists);
    }
    assert_sound(&folder.path("copy.qcow2"));
    // The data of a file that only the header names does not get into a copy.
    fs::create_dir(folder.path("other")).unwrap();
    let far = folder.overlay("other/far.qcow2", size, &base);
    let copy = folder.path("other/copy.img");
    let dirs = BackingDirs::Only(&[]);
    let error = clone_full(&far, Format::Qcow2, &copy, Format::Raw, dirs).unwrap_err();
    assert_eq!(error.problem, Problem::Wrong);
    assert!(!copy.exists());
}
