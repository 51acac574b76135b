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
