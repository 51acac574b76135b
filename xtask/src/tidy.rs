//! Rules that no compiler knows: who may import whom, where `unsafe` may stand, and what a file looks
//! like.

use std::fs;
use std::path::Path;

use crate::files::context;
use crate::{Result, root};

/// Lines that a source file has at most.
const MAX_LINES: usize = 600;

/// The modules of the microvisor, the lowest first. A module imports only modules before it. `arch::svm` is
/// private to `arch`, so the compiler keeps it there.
const LAYERS: &[&str] = &[
    "memory",
    "arch",
    "log_buffer",
    "console",
    "counters",
    "trace",
    "panic",
    "fault",
    "vcpu",
    "partition",
    "machine",
    "hypercall",
    "root",
    "boot",
];

/// Files of the microvisor that are in no layer: they only put the others together.
const UNLAYERED: &[&str] = &["lib", "main"];

/// Where `unsafe` is allowed: a file, or a folder with a slash at its end.
const UNSAFE: &[&str] = &[
    "microvisor/src/arch/boot/descriptors.rs",
    "microvisor/src/arch/exception.rs",
    "microvisor/src/arch/extended.rs",
    "microvisor/src/arch/extended/boot.rs",
    "microvisor/src/arch/instructions.rs",
    "microvisor/src/arch/paging.rs",
    "microvisor/src/arch/stack.rs",
    "microvisor/src/arch/svm/guest.rs",
    "microvisor/src/arch/svm/root.rs",
    "microvisor/src/arch/svm/root/boot.rs",
    "microvisor/src/arch/svm/switch.rs",
    "microvisor/src/arch/svm/vmcb.rs",
    "microvisor/src/boot/entry.rs",
    "microvisor/src/boot/memory.rs",
    "microvisor/src/fault.rs",
    "microvisor/src/memory/physmap.rs",
    "microvisor/src/memory/testing.rs",
    "root-partition/bench-kernel/src/",
    "root-partition/test-kernel/src/",
    "vmctl/src/disk/storage.rs",
    "vmctl/src/driver.rs",
    "vmctl/src/driver/",
    "vmctl/src/net/tap.rs",
    "vmctl/src/worker/inherited.rs",
    "vmctl/src/worker/sandbox/violation.rs",
    "vmctl/src/worker/virtio/vhost.rs",
    "vmctl/tests/daemon/fake_worker.rs",
    "vmctl/tests/driver/vm0/hostile.rs",
];

/// What is unfinished, or true on one machine only. In halves, so that this file has none of them.
const FORBIDDEN: &[&str] = &[
    concat!("TO", "DO"),
    concat!("FIX", "ME"),
    concat!("to", "do!("),
    concat!("unimpl", "emented!("),
    concat!("/ho", "me/"),
    concat!("/wo", "rk/"),
];

/// Endings of the files that are read.
const SOURCES: &[&str] = &["rs", "c", "h", "sh", "md", "toml", "ld"];

/// A file and its path in the workspace.
struct Source {
    path: String,
    text: String,
}

#[test]
fn the_workspace_is_tidy() {
    let mut sources = Vec::new();
    read(&root(), "", &mut sources).unwrap();
    let breaches: Vec<String> = sources
        .iter()
        .flat_map(|source| {
            [imports, unsafety, size, opening, words]
                .into_iter()
                .flat_map(|rule| rule(source))
                .map(|what| format!("{}: {what}\n", source.path))
        })
        .collect();
    assert!(breaches.is_empty(), "\n{}", breaches.concat());
}

/// Reads the source files of a folder; hidden ones and what is built are none.
fn read(folder: &Path, prefix: &str, sources: &mut Vec<Source>) -> Result<()> {
    for entry in fs::read_dir(folder).map_err(context(folder))? {
        let path = entry.map_err(context(folder))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let ending = path.extension().unwrap_or_default().to_string_lossy();
        if name.starts_with('.') || name == "target" {
            continue;
        }
        if path.is_dir() {
            read(&path, &format!("{prefix}{name}/"), sources)?;
        } else if SOURCES.contains(&&*ending) || name == "init" {
            sources.push(Source {
                path: format!("{prefix}{name}"),
                text: fs::read_to_string(&path).map_err(context(&path))?,
            });
        }
    }
    Ok(())
}

/// No module of the microvisor imports one above it, and each is in a layer. Tests import any module.
fn imports(source: &Source) -> Vec<String> {
    let Some(path) = source.path.strip_prefix("microvisor/src/") else {
        return Vec::new();
    };
    let module = path.split(['/', '.']).next().unwrap_or_default();
    let Some(layer) = LAYERS.iter().position(|name| *name == module) else {
        return match UNLAYERED.contains(&module) {
            true => Vec::new(),
            false => vec![format!("`{module}` is in no layer")],
        };
    };
    if path.contains("tests") || path.contains("testing") {
        return Vec::new();
    }
    LAYERS[layer + 1..]
        .iter()
        .filter(|name| mentions(&source.text, name))
        .map(|name| format!("imports `{name}`, which lies above `{module}`"))
        .collect()
}

/// Whether the code names `crate::NAME`, by itself or in a `use crate::{...}`.
fn mentions(text: &str, name: &str) -> bool {
    text.lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .any(|line| {
            line.split("crate::").skip(1).any(|rest| {
                let names = rest.strip_prefix('{').unwrap_or(rest);
                let listed = rest.starts_with('{');
                let mut parts = names.split(',');
                let first = |part: &str| {
                    let part = part.trim();
                    let end = part.find(|c: char| !c.is_alphanumeric() && c != '_');
                    part[..end.unwrap_or(part.len())] == *name
                };
                if listed {
                    parts.any(first)
                } else {
                    first(names)
                }
            })
        })
}

/// The lint that denies `unsafe` is lifted only where the table says so.
fn unsafety(source: &Source) -> Vec<String> {
    let allowed = UNSAFE.iter().any(|place| {
        source.path == *place || (place.ends_with('/') && source.path.starts_with(place))
    });
    let lifted = source.path.ends_with(".rs")
        && !source.path.starts_with("xtask/")
        && source.text.contains("unsafe_code")
        && !source.text.contains("forbid(unsafe_code");
    if lifted && !allowed {
        vec!["allows unsafe code, and is not among the modules that may".into()]
    } else {
        Vec::new()
    }
}

fn size(source: &Source) -> Vec<String> {
    let lines = source.text.lines().count();
    let is_code = !source.path.ends_with(".md");
    if is_code && lines > MAX_LINES {
        vec![format!("{lines} lines; a file has {MAX_LINES} at most")]
    } else {
        Vec::new()
    }
}

/// A file says at its top what it is.
fn opening(source: &Source) -> Vec<String> {
    if source.path.ends_with(".rs") && !source.text.starts_with("//!") {
        vec!["does not begin with `//!` and what it is".into()]
    } else {
        Vec::new()
    }
}

fn words(source: &Source) -> Vec<String> {
    FORBIDDEN
        .iter()
        .filter(|word| source.text.contains(**word))
        .map(|word| format!("has \"{word}\" in it"))
        .collect()
}

mod tests {
    use super::*;

    fn source(path: &str, text: &str) -> Source {
        Source {
            path: path.into(),
            text: text.into(),
        }
    }

    #[test]
    fn imports_go_downward() {
        let breaches = |text| imports(&source("microvisor/src/memory/pool.rs", text)).len();
        assert_eq!(breaches("use crate::memory::Frame;\nuse super::Pool;"), 0);
        assert_eq!(breaches("use crate::vcpu::Vcpu;"), 1);
        assert_eq!(breaches("use crate::{memory, partition::Partition};"), 1);
        assert_eq!(breaches("    crate::arch::halt()"), 1);
        assert_eq!(breaches("//! see [`crate::vcpu`]"), 0);
        let test = source("microvisor/src/memory/tests.rs", "use crate::vcpu::Vcpu;");
        assert_eq!(imports(&test).len(), 0);
        let unknown = source("microvisor/src/new/mod.rs", "//! It.");
        assert_eq!(imports(&unknown).len(), 1);
    }

    #[test]
    fn unsafe_code_stays_where_it_is() {
        let text = "//! It.\n#![allow(\n    unsafe_code,\n    reason = \"ports\"\n)]";
        assert!(unsafety(&source("microvisor/src/arch/stack.rs", text)).is_empty());
        assert!(!unsafety(&source("microvisor/src/partition/mod.rs", text)).is_empty());
    }

    #[test]
    fn files_are_small_finished_and_say_what_they_are() {
        let long = format!("//! It.\n{}", "\n".repeat(MAX_LINES));
        assert_eq!(size(&source("a.rs", &long)).len(), 1);
        assert_eq!(opening(&source("a.rs", "use std::fs;")).len(), 1);
        let word = concat!("// TO", "DO: later");
        assert_eq!(words(&source("a.rs", word)).len(), 1);
    }
}
