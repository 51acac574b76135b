//! Files: chains, and who uses them.

use super::*;

#[test]
fn one_writes_or_many_read() {
    let folder = Folder::new();
    for name in ["disk.img", "disk.qcow2"] {
        let path = folder.image(name, MIB);
        let usage = || info(&path, Format::of_name(&path)).unwrap()[0].in_use;
        assert_eq!(usage(), Usage::No);
        let one = writer(&path);
        assert_eq!(usage(), Usage::Write);
        let error = open(&path, Access::Read).unwrap_err();
        assert_eq!(error.problem, Problem::InUse);
        assert_eq!(
            error.to_string(),
            format!("{}: in use by another VM", path.display())
        );
        assert_eq!(open(&path, Access::Write).unwrap_err(), error);
        if name == "disk.qcow2" {
            assert_ne!(qemu_img(&["check"], &path), Some(true));
        }
        drop(one);
        let readers = [reader(&path), reader(&path)];
        assert_eq!(usage(), Usage::Read);
        assert_eq!(open(&path, Access::Write).unwrap_err(), error);
        drop(readers);
        writer(&path);
    }
}

#[test]
fn overlays_share_a_backing_file_that_nobody_writes() {
    let folder = Folder::new();
    let base = folder.image("base.qcow2", MIB);
    let overlays = ["a.qcow2", "b.qcow2"].map(|name| folder.overlay(name, MIB, &base));
    let images = overlays.clone().map(|path| writer(&path));
    let error = open(&base, Access::Write).unwrap_err();
    assert_eq!(error.problem, Problem::InUse);
    drop(images);
    let image = writer(&base);
    let error = open(&overlays[0], Access::Write).unwrap_err();
    assert_eq!(error.problem, Problem::InUse);
    assert!(
        error.to_string().contains("a.qcow2: backing file "),
        "{error}"
    );
    assert_eq!(
        resize(&overlays[0], Format::Qcow2, 2 * MIB, false),
        Err(error)
    );
    drop(image);
}

#[test]
fn backing_files_are_there_and_form_no_loop() {
    let folder = Folder::new();
    let a = folder.image("a.qcow2", MIB);
    let b = folder.overlay("b.qcow2", MIB, &a);
    let c = folder.overlay("c.qcow2", MIB, &b);
    fs::rename(&c, &a).unwrap();
    let error = refusal(&b);
    assert!(
        error.ends_with("b.qcow2: its backing files form a loop"),
        "{error}"
    );
    fs::remove_file(&a).unwrap();
    let error = refusal(&b);
    assert!(error.contains("b.qcow2: backing file "), "{error}");
    assert!(error.ends_with("a.qcow2: no such file"), "{error}");
    fs::write(&a, "not it").unwrap();
    assert!(refusal(&b).ends_with("a.qcow2: not a qcow2 image"));
    fs::remove_file(&a).unwrap();
    fs::create_dir(&a).unwrap();
    assert!(refusal(&b).ends_with("a.qcow2: not a regular file or block device"));
}

#[test]
fn a_chain_has_an_end() {
    let folder = Folder::new();
    let mut last = folder.image("0.qcow2", MIB);
    for at in 1..16 {
        let next = folder.path(&format!("{at}.qcow2"));
        snapshot(&last, Format::Qcow2, &next).unwrap();
        last = next;
    }
    assert_eq!(reader(&last).capacity(), MIB);
    assert_eq!(info(&last, Format::Qcow2).unwrap().len(), 16);
    let error = snapshot(&last, Format::Qcow2, &folder.path("16.qcow2"));
    assert!(
        error
            .unwrap_err()
            .to_string()
            .ends_with("more than 15 backing files")
    );
}

#[test]
fn an_image_that_others_move_with_its_backing_file_stays_whole() {
    let folder = Folder::new();
    fs::create_dir(folder.path("one")).unwrap();
    let base = folder.image("one/base.img", MIB);
    write(&writer(&base), 0, b"base");
    folder.overlay("one/top.qcow2", MIB, &base);
    fs::rename(folder.path("one"), folder.path("two")).unwrap();
    assert_eq!(read(&reader(&folder.path("two/top.qcow2")), 0, 4), b"base");
    // From elsewhere its path is absolute.
    let far = folder.overlay("far.qcow2", MIB, &folder.path("two/base.img"));
    assert_eq!(read(&reader(&far), 0, 4), b"base");
}

#[test]
fn an_open_image_needs_no_paths() {
    let folder = Folder::new();
    let base = folder.image("base.qcow2", MIB);
    write(&writer(&base), 0, &pattern(0, 70_000));
    let top = folder.overlay("top.qcow2", MIB, &base);
    let chain = Chain::open(&top, Format::Qcow2, Access::Write, BackingDirs::Any).unwrap();
    fs::remove_file(&base).unwrap();
    fs::remove_file(&top).unwrap();
    let image = Image::new(chain, Cache::Writeback).unwrap();
    assert_eq!(read(&image, 0, 70_000), pattern(0, 70_000));
    write(&image, 65_000, b"still here");
    image.flush().unwrap();
    assert_eq!(read(&image, 65_000, 10), b"still here");
}

/// A guest can write a qcow2 header to its raw disk, and a header can name any file.
#[test]
fn backing_files_lie_in_the_directory_of_the_image_or_in_one_that_is_listed() {
    let folder = Folder::new();
    for dir in ["images", "images/bases", "elsewhere", "images-2"] {
        fs::create_dir(folder.path(dir)).unwrap();
    }
    let open_in = |path: &Path, dirs: &[PathBuf]| {
        Chain::open(path, Format::Qcow2, Access::Read, BackingDirs::Only(dirs))
            .map_err(|e| e.to_string())
    };
    let inner = folder.image("images/bases/inner.img", MIB);
    open_in(&folder.overlay("images/good.qcow2", MIB, &inner), &[]).unwrap();

    let near = folder.image("images-2/near.img", MIB);
    let outer = folder.image("elsewhere/outer.img", MIB);
    for (name, base) in [("near.qcow2", &near), ("outer.qcow2", &outer)] {
        let path = folder.overlay(&format!("images/{name}"), MIB, base);
        let error = open_in(&path, &[]).unwrap_err();
        let what = "lies neither below the image's directory nor in one of backing_dirs";
        assert!(error.ends_with(what), "{error}");
        assert!(error.contains(base.to_str().unwrap()), "{error}");
        let other = folder.path("images/bases");
        assert_eq!(
            open_in(&path, std::slice::from_ref(&other)).unwrap_err(),
            error
        );
        open_in(
            &path,
            &[other, folder.path("elsewhere"), folder.path("images-2")],
        )
        .unwrap();
    }

    // A second file of the chain, a name with "..", and a symbolic link lead outside.
    let deep = folder.overlay("images/deep.qcow2", MIB, &folder.path("images/outer.qcow2"));
    open_in(&deep, &[]).unwrap_err();
    open_in(&deep, &[folder.path("elsewhere")]).unwrap();
    std::os::unix::fs::symlink(&outer, folder.path("images/link.img")).unwrap();
    let link = folder.overlay("images/linked.qcow2", MIB, &folder.path("images/link.img"));
    open_in(&link, &[]).unwrap_err();
    open_in(&link, &[folder.path("elsewhere")]).unwrap();
}
