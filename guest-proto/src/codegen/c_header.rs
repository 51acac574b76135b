//! The C header `microvisor_abi.h`.
//!
//! Names: `MapRange` is `struct mv_map_range`, `Status::NeedPages` is `MV_STATUS_NEED_PAGES`.
//! Every size and offset is asserted, so that a C compiler that lays something out differently
//! says so.

use std::fmt::Write;

use super::{CATALOG, Item};
use crate::layout::{Enum, Struct};
use crate::{ABI_VERSION, cpuid};

/// The whole header.
pub fn c_header() -> String {
    let mut out = String::from(
        "/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 OR MIT */\n\
         /*\n * The Microvisor ABI.\n *\n * Generated from the guest-proto crate; do not edit:\n\
         \x20*   cargo run -p guest-proto --features codegen --bin abi -- c-header\n */\n\
         #ifndef MICROVISOR_ABI_H\n#define MICROVISOR_ABI_H\n\n\
         #ifdef __KERNEL__\n#include <linux/build_bug.h>\n#include <linux/stddef.h>\n#else\n\
         #include <assert.h>\n#include <stddef.h>\n#endif\n#include <linux/types.h>\n\n",
    );
    define(&mut out, "MV_ABI_VERSION", format!("{ABI_VERSION:#010x}U"));
    define(
        &mut out,
        "MV_SIGNATURE",
        format!("\"{}\"", cpuid::SIGNATURE.escape_ascii()),
    );
    for section in CATALOG {
        let _ = write!(out, "\n/* ---- {} ---- */\n", section.title);
        for item in section.items {
            out.push('\n');
            match item {
                Item::Struct(layout) => structure(&mut out, layout),
                Item::Constants(prefix, layout) => constants(&mut out, prefix, layout),
            }
        }
    }
    out.push_str("\n#endif /* MICROVISOR_ABI_H */\n");
    out
}

fn define(out: &mut String, name: &str, value: String) {
    let _ = writeln!(out, "#define {name:<39} {value}");
}

/// A number as C writes it, of the narrowest type of `int`, `unsigned int` and wider.
fn number(value: i64) -> String {
    match value {
        i64::MIN..0 => format!("({value})"),
        0..256 => format!("{value}"),
        256..=0x7fff_ffff => format!("{value:#x}"),
        0x8000_0000..=0xffff_ffff => format!("{value:#x}U"),
        _ => format!("{value:#x}ULL"),
    }
}

fn constants(out: &mut String, prefix: &str, layout: &Enum) {
    comment(out, "", layout.doc);
    out.push('\n');
    for variant in layout.variants {
        comment(out, "", variant.doc);
        let name = format!("MV_{prefix}{}", upper(variant.name));
        define(out, &name, number(variant.value));
    }
}

fn structure(out: &mut String, layout: &Struct) {
    let name = format!("struct mv_{}", lower(layout.name));
    comment(out, "", layout.doc);
    let _ = writeln!(out, "{name} {{");
    for field in layout.fields {
        comment(out, "\t", field.doc);
        let (ty, array) = c_type(field.ty);
        let _ = writeln!(out, "\t{ty} {}{array};", c_field(field.name));
    }
    let _ = writeln!(out, "}};");
    let _ = writeln!(
        out,
        "static_assert(sizeof({name}) == {}, \"size of {name}\");",
        layout.size
    );
    for field in layout.fields {
        let _ = writeln!(
            out,
            "static_assert(offsetof({name}, {0}) == {1}, \"offset of {0}\");",
            c_field(field.name),
            field.offset
        );
    }
}

/// A Rust type of the ABI as a C type, and what stands behind the name.
fn c_type(rust: &str) -> (String, String) {
    let inner = rust.trim_start_matches('[').trim_end_matches(']');
    let (element, array) = match inner.split_once(';') {
        Some((element, count)) => (element.trim(), format!("[{}]", count.trim())),
        None => (inner, String::new()),
    };
    let ty = match element {
        "u8" => "__u8".into(),
        "u16" => "__u16".into(),
        "u32" => "__u32".into(),
        "u64" => "__u64".into(),
        "i32" => "__s32".into(),
        "i64" => "__s64".into(),
        name => format!("struct mv_{}", lower(name)),
    };
    (ty, array)
}

/// A field's name, with an underscore behind it where it is a word of C.
fn c_field(name: &str) -> String {
    match name {
        "register" | "default" | "switch" | "long" | "short" => format!("{name}_"),
        _ => name.into(),
    }
}

/// A documentation comment as a C comment.
fn comment(out: &mut String, indent: &str, doc: &str) {
    let lines: Vec<&str> = doc.lines().map(str::trim).collect();
    // A `*/` in the text would end the comment.
    let text = |line: &str| line.replace("*/", "* /");
    match lines.as_slice() {
        [] => {}
        [line] => {
            let _ = writeln!(out, "{indent}/* {} */", text(line));
        }
        lines => {
            let _ = writeln!(out, "{indent}/*");
            for line in lines {
                let line = format!("{indent} * {}", text(line));
                let _ = writeln!(out, "{}", line.trim_end());
            }
            let _ = writeln!(out, "{indent} */");
        }
    }
}

/// `NeedPages` → `need_pages`.
fn lower(name: &str) -> String {
    let mut out = String::new();
    for (at, c) in name.chars().enumerate() {
        if c.is_ascii_uppercase() && at > 0 {
            out.push('_');
        }
        out.push(c.to_ascii_lowercase());
    }
    out
}

/// `NeedPages` and `NEED_PAGES` → `NEED_PAGES`.
fn upper(name: &str) -> String {
    if name.chars().any(|c| c.is_ascii_lowercase()) {
        lower(name).to_ascii_uppercase()
    } else {
        name.into()
    }
}
