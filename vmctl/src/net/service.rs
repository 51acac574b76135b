//! The networks whose guests are leased addresses and have names: their files, and the programs that serve them.
//!
//! The kernel alone knows the networks and what is plugged into them. [`refresh`] brings all else in line with it, as
//! often as anybody calls it. The daemon's thread [`keep`] does so when an interface comes, goes or changes, and when
//! a program has ended.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::thread;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{FlockOperation, flock};

use super::address::{Cidr, Mac, Range};
use super::dnsmasq::{Files, Host, lease_lines, name_lines};
use super::lease::Leases;
use super::netlink::Changes;
use super::{Network, exists, filters, names};
use crate::wire::timespec;

/// Directory in which each served network has a directory.
const DIR: &str = "/run/microvisor/networks";
/// Names that VM 0 itself knows.
const HOSTS: &str = "/etc/hosts";
/// Addresses that guests were leased, in a network's directory.
const LEASES: &str = "leases";
/// Time after which [`keep`] starts a program again that does not start.
const RETRY: Duration = Duration::from_secs(10);
/// Changes within this time are handled together: a new interface changes several times.
const PAUSE: Duration = Duration::from_millis(50);

/// A lock. No other process changes the files while this value lives.
#[derive(Debug)]
pub(super) struct Lock {
    _file: File,
}

/// Waits until nobody else changes the files.
pub(super) fn lock() -> io::Result<Lock> {
    let file = lock_dir(Path::new(DIR), 0o755)?;
    Ok(Lock { _file: file })
}

/// Makes a directory in vmctl's runtime directory, and waits until nobody else has it locked.
pub(super) fn lock_dir(dir: &Path, mode: u32) -> io::Result<File> {
    // The programs are other users, who read files below.
    make_dir(Path::new("/run/microvisor"), 0o711)?;
    make_dir(dir, mode)?;
    let file = File::open(dir)?;
    flock(&file, FlockOperation::LockExclusive)?;
    Ok(file)
}

fn make_dir(dir: &Path, mode: u32) -> io::Result<()> {
    let made = fs::DirBuilder::new().mode(mode).create(dir);
    match made {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        made => made.map_err(|e| in_file(dir, &e)),
    }
}

fn in_file(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

fn files(network: &str) -> Files {
    Files(Path::new(DIR).join(network))
}

/// Returns the address of a guest in a network, the same as before if that is possible, and remembers it. `None` if
/// all addresses are in use.
pub(super) fn lease(
    _lock: &Lock,
    name: &str,
    network: Cidr,
    range: Range,
    mac: Mac,
    wanted: Option<Ipv4Addr>,
    in_use: &dyn Fn(Ipv4Addr) -> bool,
) -> io::Result<Option<Ipv4Addr>> {
    let dir = files(name).0;
    make_dir(&dir, 0o755)?;
    let path = dir.join(LEASES);
    let text = read(&path)?;
    let mut leases = Leases::parse(&text);
    let address = leases.of(network, range, mac, wanted, in_use);
    write_new(&path, &text, &leases.text())?;
    Ok(address)
}

/// Brings files and programs in line with the kernel. Returns what went wrong, by network.
pub(super) fn refresh(_lock: &Lock) -> Vec<(String, io::Error)> {
    let networks = match super::list() {
        Ok(networks) => networks,
        Err(e) => return vec![("networks".to_owned(), io::Error::other(e))],
    };
    let served: Vec<_> = networks
        .iter()
        .filter(|network| network.is_served())
        .collect();
    let mut errors = Vec::new();
    let mut names = String::new();
    for network in &served {
        let hosts = hosts(network);
        names += &name_lines(&network.name, &hosts);
        if let Err(e) = serve(network, &hosts) {
            errors.push((network.name.clone(), e));
        }
    }
    for name in directories() {
        if served.iter().all(|network| network.name != name) {
            let removed = remove(&name);
            errors.extend(removed.err().map(|e| (name, e)));
        }
    }
    if let Err(e) = write_names(&names) {
        errors.push((HOSTS.to_owned(), e));
    }
    errors
}

/// The guests of a network that have addresses.
fn hosts(network: &Network) -> Vec<Host> {
    let host = |port: &super::Port| {
        Some(Host {
            mac: port.mac?,
            vm: port.vm.clone()?,
            addresses: port.addresses.clone(),
        })
    };
    let hosts = network.ports.iter().filter_map(host);
    hosts.filter(|host| !host.addresses.is_empty()).collect()
}

fn serve(network: &Network, hosts: &[Host]) -> io::Result<()> {
    let files = files(&network.name);
    make_dir(&files.0, 0o755)?;
    let (config, leases, names) = (files.config(), files.leases(), files.names());
    let new_config = files.config_text(network);
    let new_leases = lease_lines(hosts);
    let (old_config, old_leases) = (read(&config)?, read(&leases)?);
    // A program that has leased an address to one guest does not lease it to another, whatever the files say.
    let has_left = |old: &str| new_leases.lines().all(|new| new != old);
    if old_config != new_config || old_leases.lines().any(has_left) {
        files.stop();
    }
    write_new(&config, &old_config, &new_config)?;
    let are_new = [
        write_new(&leases, &old_leases, &new_leases)?,
        write_new(&names, &read(&names)?, &name_lines(&network.name, hosts))?,
    ];
    if files.running().is_none() {
        return files.start();
    }
    if are_new.contains(&true) {
        files.reload();
    }
    Ok(())
}

/// Removes what is left of a network that is served no longer.
fn remove(name: &str) -> io::Result<()> {
    let files = files(name);
    files.stop();
    // Somebody removed the bridge, but did not know of the filter.
    if !exists(name) {
        filters::remove(name)?;
    }
    fs::remove_dir_all(&files.0).map_err(|e| in_file(&files.0, &e))
}

fn directories() -> Vec<String> {
    let entries = fs::read_dir(DIR).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    names.collect()
}

/// Brings the lines of VM 0's own file in line with the guests.
fn write_names(lines: &str) -> io::Result<()> {
    let path = Path::new(HOSTS);
    let old = read(path)?;
    let new = names::with_lines(&old, lines);
    if old == new {
        return Ok(());
    }
    write_new(path, &old, &new).map(|_| ())
}

/// Reads a file; one that is not there is empty.
fn read(path: &Path) -> io::Result<String> {
    match fs::read_to_string(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        text => text.map_err(|e| in_file(path, &e)),
    }
}

/// Replaces a file's text, whole or not at all. Returns false if it is the old text.
fn write_new(path: &Path, old: &str, new: &str) -> io::Result<bool> {
    if old == new && path.exists() {
        return Ok(false);
    }
    // The path as it is, behind links.
    let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let mode = fs::metadata(&path).map_or(0o644, |metadata| metadata.permissions().mode());
    let partial = path.with_extension("vmctl-new");
    let write = |path: &Path| {
        let mut options = File::options();
        let options = options.write(true).create(true).truncate(true);
        let mut file = options.mode(mode).open(path)?;
        file.write_all(new.as_bytes())?;
        file.set_permissions(fs::Permissions::from_mode(mode))
    };
    let replaced = write(&partial).and_then(|()| fs::rename(&partial, &path));
    match replaced {
        Ok(()) => Ok(true),
        // A file that is mounted by itself, as in containers, can only be written.
        Err(e) if e.kind() == io::ErrorKind::ResourceBusy => {
            let _ = fs::remove_file(&partial);
            write(&path).map(|()| true)
        }
        Err(e) => {
            let _ = fs::remove_file(&partial);
            Err(in_file(&path, &e))
        }
    }
}

/// Keeps all in line with the kernel for good, and calls `tell` with a line about each new problem.
pub fn keep(tell: impl Fn(&str)) {
    let mut told = HashMap::new();
    let mut changes = [Changes::of_links(), Changes::of_filters()];
    let mut filters_changed = true;
    // An earlier daemon may have ended between a change of a file and the word to its program.
    stop_all();
    loop {
        let [links, filters] = &mut changes;
        if let Ok(links) = links {
            links.skip();
        }
        filters_changed |= filters.as_mut().map_or(true, Changes::skip);
        let (mut errors, programs) = refreshed();
        if filters_changed {
            let failed = filters::restore();
            filters_changed = !failed.is_empty();
            errors.extend(failed);
        }
        let all_run = errors.is_empty() && programs.iter().all(Option::is_some);
        told.retain(|name, _| errors.iter().any(|(other, _)| other == name));
        for (name, error) in errors {
            let line = format!("{name}: {error}");
            if told.insert(name, line.clone()).as_ref() != Some(&line) {
                tell(&line);
            }
        }
        let mut fds: Vec<_> = programs
            .iter()
            .flatten()
            .map(|program| PollFd::new(program, PollFlags::IN))
            .collect();
        let open = changes.iter().flatten();
        fds.extend(open.map(|it| PollFd::from_borrowed_fd(it.as_fd(), PollFlags::IN)));
        let is_deaf = changes.iter().any(Result::is_err);
        let timeout = (!all_run || is_deaf).then(|| timespec(RETRY));
        let _ = poll(&mut fds, timeout.as_ref());
        thread::sleep(PAUSE);
    }
}

fn stop_all() {
    if Path::new(DIR).exists()
        && let Ok(_lock) = lock()
    {
        for name in directories() {
            files(&name).stop();
        }
    }
}

/// Refreshes all. Returns what went wrong, and the programs; `None` for one that does not run.
fn refreshed() -> (Vec<(String, io::Error)>, Vec<Option<OwnedFd>>) {
    // Without a network there is nothing to do, and nothing to make.
    let is_used = Path::new(DIR).exists() || serves_any();
    if !is_used {
        return (Vec::new(), Vec::new());
    }
    let errors = match lock() {
        Ok(lock) => refresh(&lock),
        Err(e) => vec![("networks".to_owned(), e)],
    };
    let programs = directories();
    let programs = programs.iter().map(|name| files(name).running());
    (errors, programs.collect())
}

fn serves_any() -> bool {
    super::list().is_ok_and(|networks| networks.iter().any(Network::is_served))
}
