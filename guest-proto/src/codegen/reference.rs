//! The tables of `docs/hypercalls.md`.

use std::fmt::Write;

use super::{CATALOG, Item};
use crate::hypercall::{CALLS, CallDoc};
use crate::layout::{Enum, Struct};
use crate::status::Status;

/// Registers of the arguments, in order.
const REGISTERS: [&str; 5] = ["RDI", "RSI", "RDX", "R10", "R8"];
/// Modules whose definitions hypercalls use.
const MODULES: [&str; 4] = ["lib", "cpuid", "hypercall", "vcpu_page"];

/// Every call, status and structure, as Markdown.
pub fn hypercall_reference() -> String {
    let mut out = String::from("## Calls\n\n");
    for call in CALLS {
        describe(&mut out, call);
    }
    out.push_str("## Statuses\n\n| RAX | name | meaning |\n|---|---|---|\n");
    for status in Status::LAYOUT.variants {
        let doc = line(status.doc);
        let _ = writeln!(out, "| {} | `{}` | {doc} |", status.value, status.name);
    }
    out.push_str("\n## Definitions\n");
    let sections = CATALOG
        .iter()
        .filter(|section| MODULES.contains(&section.module));
    for section in sections {
        let _ = write!(out, "\n### {}\n", section.title);
        for item in section.items {
            match item {
                // Above.
                Item::Constants(_, layout) if layout.name == "Hypercall" => {}
                Item::Constants(_, layout) => constants(&mut out, layout),
                Item::Struct(layout) => structure(&mut out, layout),
            }
        }
    }
    out
}

fn describe(out: &mut String, call: &CallDoc) {
    let (name, number) = (call.name, call.call.raw());
    let _ = write!(
        out,
        "### `{name}` ({number:#06x})\n\n{}\n\n",
        paragraph(call.doc)
    );
    let _ = writeln!(out, "| | |\n|---|---|");
    for (register, arg) in REGISTERS.iter().zip(call.args) {
        let _ = writeln!(out, "| {register} | `{}`: {} |", arg.name, line(arg.doc));
    }
    let _ = writeln!(out, "| → RDX | {} |", line(call.value));
    for (status, when) in call.errors {
        let _ = writeln!(out, "| `{}` | {} |", status.name(), line(when));
    }
    out.push('\n');
}

fn constants(out: &mut String, layout: &Enum) {
    let _ = write!(
        out,
        "\n#### `{}`\n\n{}\n\n",
        layout.name,
        paragraph(layout.doc)
    );
    out.push_str("| value | name | meaning |\n|---|---|---|\n");
    for variant in layout.variants {
        let value = match variant.value {
            small @ i64::MIN..256 => small.to_string(),
            large => format!("{large:#x}"),
        };
        let doc = line(variant.doc);
        let _ = writeln!(out, "| {value} | `{}` | {doc} |", variant.name);
    }
}

fn structure(out: &mut String, layout: &Struct) {
    let _ = write!(
        out,
        "\n#### `{}`, {} bytes\n\n{}\n\n",
        layout.name,
        layout.size,
        paragraph(layout.doc)
    );
    out.push_str("| offset | type | name | meaning |\n|---|---|---|---|\n");
    for field in layout.fields {
        let doc = line(field.doc);
        let _ = writeln!(
            out,
            "| {:#x} | `{}` | `{}` | {doc} |",
            field.offset, field.ty, field.name
        );
    }
}

/// Every number, size and offset, a line each: what a driver that was built relies on.
pub fn layout() -> String {
    let mut out = format!("version {:#x}\n", crate::ABI_VERSION);
    for item in CATALOG.iter().flat_map(|section| section.items) {
        match item {
            Item::Constants(_, layout) => {
                for variant in layout.variants {
                    let (name, value) = (variant.name, variant.value);
                    let _ = writeln!(out, "{}.{name} = {value:#x}", layout.name);
                }
            }
            Item::Struct(layout) => {
                let _ = writeln!(out, "{}: {}", layout.name, layout.size);
                for field in layout.fields {
                    let (name, offset, size) = (field.name, field.offset, field.size);
                    let _ = writeln!(out, "{}.{name} @ {offset} + {size}", layout.name);
                }
            }
        }
    }
    out
}

/// A documentation comment, without the space that begins its lines.
fn paragraph(doc: &str) -> String {
    let lines: Vec<&str> = doc.trim().lines().map(str::trim).collect();
    lines.join("\n")
}

/// Text for a cell.
fn line(text: &str) -> String {
    let words: Vec<&str> = text.split_whitespace().collect();
    words.join(" ").replace('|', "\\|")
}
