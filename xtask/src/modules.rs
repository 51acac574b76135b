//! Modules of a stock kernel: an initramfs gets the few that it needs, unpacked, and either the order in
//! which to load them at boot, or what `modprobe` reads to load them when the kernel asks.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::Result;
use crate::archive::Archive;
use crate::files::{context, decompress, folder};
use crate::kernel::Kernel;
use crate::packages::{self, Need};

const XZ: &[Need] = &[Need {
    file: "/usr/bin/xz",
    packages: &["xz-utils"],
    why: "unpacks the stock kernel's modules",
}];

/// Puts modules, named by their path, and `lib/modules/order` into an initramfs. What the kernel has
/// built in is left out.
pub(crate) fn add(archive: &mut Archive, kernel: &Kernel, needed: &[&str]) -> Result<()> {
    let mut order = String::new();
    if let Some(modules) = &kernel.modules {
        let builtin = modules.join("modules.builtin");
        let builtin = fs::read_to_string(&builtin).map_err(context(&builtin))?;
        for path in needed {
            if builtin
                .lines()
                .any(|line| line == format!("kernel/{path}.ko"))
            {
                continue;
            }
            let module = unpacked(modules, path)?;
            let name = module.file_name().unwrap_or_default().to_string_lossy();
            archive.file(&module, &format!("lib/modules/{name}"), 0o644);
            order.push_str(&format!("{name}\n"));
        }
    }
    archive.text(order, "lib/modules/order");
    Ok(())
}

/// Puts modules, named by their path, and all that they depend on into an initramfs, for the kernel to
/// load by `modprobe` when they are first used.
pub(crate) fn add_on_demand(archive: &mut Archive, kernel: &Kernel, wanted: &[&str]) -> Result<()> {
    let Some(modules) = &kernel.modules else {
        return Ok(());
    };
    let found = with_dependencies(modules, wanted)?;
    let release = modules.file_name().unwrap_or_default().to_string_lossy();
    let folder = format!("lib/modules/{release}");
    let (mut dependencies, mut aliases) = (String::new(), String::new());
    for (name, module) in &found {
        archive.file(&module.file, &format!("{folder}/{name}.ko"), 0o644);
        let mut needed = Vec::new();
        closure(name, &found, &mut needed);
        // `modprobe` loads the last one first.
        let needed: String = needed.iter().rev().map(|n| format!(" {n}.ko")).collect();
        dependencies.push_str(&format!("{name}.ko:{needed}\n"));
        for alias in &module.aliases {
            aliases.push_str(&format!("alias {alias} {name}\n"));
        }
    }
    archive.text(dependencies, &format!("{folder}/modules.dep"));
    archive.text(aliases, &format!("{folder}/modules.alias"));
    Ok(())
}

/// Returns the files of a module, named by its path, and of all that it depends on, in the order in which they load.
pub(crate) fn in_order(kernel: &Kernel, wanted: &str) -> Result<Vec<PathBuf>> {
    let Some(modules) = &kernel.modules else {
        return Err(format!("{wanted}: this kernel came without modules"));
    };
    let mut found = with_dependencies(modules, &[wanted])?;
    let name = name_of(wanted);
    let mut order = Vec::new();
    closure(&name, &found, &mut order);
    order.push(name);
    let files = order.iter().filter_map(|name| found.remove(name));
    Ok(files.map(|module| module.file).collect())
}

/// Returns modules, named by their path, and all that they depend on, by their names.
fn with_dependencies(modules: &Path, wanted: &[&str]) -> Result<BTreeMap<String, Module>> {
    let paths = loadable(modules)?;
    let mut found = BTreeMap::new();
    let mut open: Vec<String> = wanted.iter().map(|path| name_of(path)).collect();
    while let Some(name) = open.pop() {
        // What is built in is in no list of modules.
        if let Some(path) = paths.get(&name)
            && !found.contains_key(&name)
        {
            let module = Module::read(unpacked(modules, path)?)?;
            open.extend(module.needs.iter().cloned());
            found.insert(name, module);
        }
    }
    Ok(found)
}

/// A module's file, and what it says of itself.
struct Module {
    file: PathBuf,
    /// Names of the modules that it depends on.
    needs: Vec<String>,
    /// What the kernel asks for when it wants this one.
    aliases: Vec<String>,
}

impl Module {
    /// Reads the strings of its `.modinfo`.
    fn read(file: PathBuf) -> Result<Self> {
        let bytes = fs::read(&file).map_err(context(&file))?;
        let values = |key: &str| {
            let texts = bytes.split(|&byte| byte == 0);
            let values = texts.filter_map(|text| text.strip_prefix(key.as_bytes()));
            values
                .map(|value| String::from_utf8_lossy(value).into_owned())
                .collect::<Vec<_>>()
        };
        let depends = values("depends=").pop();
        let depends = depends.ok_or_else(|| format!("{}: no module", file.display()))?;
        let needs = depends.split(',').filter(|name| !name.is_empty());
        Ok(Self {
            needs: needs.map(name_of).collect(),
            aliases: values("alias="),
            file,
        })
    }
}

/// What a module depends on, each behind what it depends on itself.
fn closure(name: &str, modules: &BTreeMap<String, Module>, all: &mut Vec<String>) {
    for need in modules.get(name).iter().flat_map(|module| &module.needs) {
        if modules.contains_key(need) && !all.contains(need) {
            closure(need, modules, all);
            all.push(need.clone());
        }
    }
}

/// The path of each module that a kernel can load, by its name.
fn loadable(modules: &Path) -> Result<BTreeMap<String, String>> {
    let order = modules.join("modules.order");
    let order = fs::read_to_string(&order).map_err(context(&order))?;
    let paths = order
        .lines()
        .filter_map(|line| line.strip_prefix("kernel/")?.strip_suffix(".ko"));
    Ok(paths.map(|path| (name_of(path), path.to_owned())).collect())
}

/// A module's name: the last part of its path, without hyphens.
fn name_of(path: &str) -> String {
    let name = path.rsplit('/').next().unwrap_or(path);
    name.replace('-', "_")
}

/// The plain file of a module that may be compressed.
fn unpacked(modules: &Path, path: &str) -> Result<PathBuf> {
    let plain = modules.join(format!("kernel/{path}.ko"));
    if plain.exists() {
        return Ok(plain);
    }
    let release = modules.file_name().unwrap_or_default();
    let unpacked = folder()?.join("modules").join(release);
    fs::create_dir_all(&unpacked).map_err(context(&unpacked))?;
    let to = unpacked.join(plain.file_name().unwrap_or_default());
    if !to.exists() {
        packages::install(XZ)?;
        decompress("xz", &plain.with_extension("ko.xz"), &to)?;
    }
    Ok(to)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependencies_come_before_what_needs_them() {
        let module = |needs: &[&str]| Module {
            file: PathBuf::new(),
            needs: needs.iter().map(ToString::to_string).collect(),
            aliases: Vec::new(),
        };
        let modules = BTreeMap::from([
            ("masq".to_owned(), module(&["tables", "nat"])),
            ("nat".to_owned(), module(&["tables", "built_in"])),
            ("tables".to_owned(), module(&[])),
        ]);
        let mut all = Vec::new();
        closure("masq", &modules, &mut all);
        assert_eq!(all, ["tables", "nat"]);
        assert_eq!(name_of("net/802/hyphens-in-it"), "hyphens_in_it");
    }
}
