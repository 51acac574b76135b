//! The catalog is complete, and the header is C that agrees with Rust.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use super::{CATALOG, Item, c_header, hypercall_reference, layout};

/// Every name that a definition macro is given in `source`.
fn defined(source: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let mut inside = false;
    for line in source.lines() {
        let line = line.trim();
        let macros = [
            "abi_struct! {",
            "abi_enum! {",
            "abi_flags! {",
            "abi_consts! {",
        ];
        if macros.iter().any(|name| line.contains(name)) {
            inside = true;
            continue;
        }
        for keyword in ["pub struct ", "pub enum ", "pub mod "] {
            if let (true, Some(rest)) = (inside, line.strip_prefix(keyword))
                && let Some((name, _)) = rest.split_once(':')
            {
                names.insert(name.trim().to_owned());
                inside = false;
            }
        }
    }
    names
}

#[test]
fn catalog_has_every_definition() {
    for section in CATALOG {
        let path = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("src")
            .join(format!("{}.rs", section.module));
        let source = fs::read_to_string(&path).expect("source of the module");
        let listed: BTreeSet<String> = section
            .items
            .iter()
            .map(|item| match item {
                Item::Struct(layout) => layout.name.to_owned(),
                Item::Constants(_, layout) => layout.name.to_owned(),
            })
            .collect();
        assert_eq!(listed, defined(&source), "{}", path.display());
    }
}

#[test]
fn names_are_unique() {
    let mut seen = BTreeSet::new();
    for line in c_header().lines() {
        if let Some(rest) = line.strip_prefix("#define ") {
            let name = rest.split_whitespace().next().expect("a name");
            assert!(seen.insert(name.to_owned()), "{name} is defined twice");
        }
    }
}

#[test]
fn header_says_what_rust_says() {
    let header = c_header();
    let has = |line: &str| assert!(header.contains(line), "no line {line:?}");
    has("MV_STATUS_NEED_PAGES                    (-12)");
    has("MV_CALL_VCPU_RUN                        0x302");
    has("MV_IOCTL_VCPU_KICK                      0x5624");
    has("MV_SIGNATURE                            \"MicrovisorHV\"");
    has("\tstruct mv_posted_write ring[128];");
    has("static_assert(offsetof(struct mv_vcpu_page, ring) == 2048,");
}

/// The assertions in the header hold where a C compiler lays the structures out.
#[test]
fn header_compiles() {
    let mut compiler = Command::new("gcc")
        .args(["-std=gnu11", "-Wall", "-Wextra", "-Wpadded", "-Werror"])
        .args(["-fsyntax-only", "-x", "c", "-"])
        .stdin(Stdio::piped())
        .spawn()
        .expect("gcc");
    std::io::Write::write_all(
        compiler.stdin.as_mut().expect("a pipe"),
        c_header().as_bytes(),
    )
    .expect("gcc reads");
    assert!(compiler.wait().expect("gcc ends").success());
}

/// The generated part of a file: what follows this line.
const GENERATED: &str =
    "<!-- generated: cargo run -p guest-proto --features codegen --bin abi -- hypercalls -->\n\n";

#[test]
fn the_documentation_says_what_the_definitions_say() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/hypercalls.md");
    let text = fs::read_to_string(&path).expect("docs/hypercalls.md");
    let (_, tables) = text.split_once(GENERATED).expect("the generated part");
    assert!(
        tables == hypercall_reference(),
        "docs/hypercalls.md has drifted: print its tables again"
    );
}

/// Numbers, sizes and offsets of version 1: a change of one breaks every driver that was built.
#[test]
fn layouts_are_frozen() {
    let now = layout();
    let frozen = include_str!("frozen.txt");
    for line in frozen.lines() {
        assert!(now.lines().any(|n| n == line), "{line} is no longer so");
    }
    for line in now.lines() {
        assert!(
            frozen.lines().any(|f| f == line),
            "{line} is new: raise the minor version and add it to frozen.txt"
        );
    }
}
