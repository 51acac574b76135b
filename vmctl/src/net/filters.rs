//! The packet filters that were made, kept in files: another program can remove them (`nft flush ruleset`, as Debian's
//! nftables.service does when it starts), and then the daemon's thread makes them again.

use std::fmt;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use super::service::lock_dir;
use super::{exists, firewall};

/// Directory of the files. Each holds commands for `nft`.
const DIR: &str = "/run/microvisor/filters";

/// The owner of the filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Owner<'a> {
    /// The network of this name.
    Network(&'a str),
    /// The same network's, and what has changed in it since.
    Peers(&'a str),
    /// The port of this name.
    Port(&'a str),
}

impl<'a> Owner<'a> {
    /// Reads the name of a file.
    fn parse(file: &'a str) -> Option<Self> {
        let (kind, name) = file.split_once('-')?;
        match kind {
            "network" => Some(Self::Network(name)),
            "peers" => Some(Self::Peers(name)),
            "port" => Some(Self::Port(name)),
            _ => None,
        }
    }

    /// Returns the interface's name.
    fn interface(self) -> &'a str {
        match self {
            Self::Network(name) | Self::Peers(name) | Self::Port(name) => name,
        }
    }

    fn path(self) -> PathBuf {
        Path::new(DIR).join(self.to_string())
    }
}

impl fmt::Display for Owner<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Network(name) => write!(f, "network-{name}"),
            Self::Peers(name) => write!(f, "peers-{name}"),
            Self::Port(name) => write!(f, "port-{name}"),
        }
    }
}

/// Waits until nobody else changes filters, who has to keep the files in line with them.
fn lock() -> io::Result<File> {
    lock_dir(Path::new(DIR), 0o700)
}

/// Makes a filter of `text`, and keeps the text.
pub(super) fn make(owner: Owner<'_>, text: &str) -> io::Result<()> {
    let _lock = lock()?;
    if let Owner::Network(name) = owner {
        forget(Owner::Peers(name))?;
    }
    firewall::make(text)?;
    fs::write(owner.path(), text)
}

/// Removes a network's filter, and forgets it; none is no error.
pub(super) fn remove(network: &str) -> io::Result<()> {
    let _lock = lock()?;
    forget(Owner::Network(network))?;
    forget(Owner::Peers(network))?;
    firewall::clear(network)
}

fn forget(owner: Owner<'_>) -> io::Result<()> {
    match fs::remove_file(owner.path()) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

/// Makes filters again that are gone, and removes those of networks that are gone. Returns what went wrong, by the
/// name of the interface.
pub(super) fn restore() -> Vec<(String, io::Error)> {
    // Without a filter there is nothing to do, and nothing to make.
    if !Path::new(DIR).exists() {
        return Vec::new();
    }
    let failed = |e| vec![("filters".to_owned(), e)];
    let found = lock().and_then(|lock| Ok((lock, files()?, firewall::made()?)));
    let (_lock, files, made) = match found {
        Ok(found) => found,
        Err(e) => return failed(e),
    };
    let mut owners: Vec<_> = files.iter().filter_map(|file| Owner::parse(file)).collect();
    // A network's own filter comes before what has changed in it.
    owners.sort();
    let mut errors = Vec::new();
    for owner in owners {
        let name = owner.interface();
        let done = match owner {
            _ if !exists(name) => forget(owner).and_then(|()| match owner {
                Owner::Network(name) => firewall::clear(name),
                Owner::Peers(_) | Owner::Port(_) => Ok(()),
            }),
            Owner::Network(name) | Owner::Peers(name) if made.has_network(name) => Ok(()),
            Owner::Port(name) if made.has_port(name) => Ok(()),
            _ => fs::read_to_string(owner.path()).and_then(|text| firewall::make(&text)),
        };
        if let Err(e) = done {
            errors.push((name.to_owned(), e));
        }
    }
    errors
}

fn files() -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(DIR)? {
        names.extend(entry?.file_name().into_string());
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_name_their_owners_in_the_order_of_making() {
        let owners = [
            Owner::Network("lan-0"),
            Owner::Peers("lan-0"),
            Owner::Port("mv0"),
        ];
        let names = owners.map(|owner| owner.to_string());
        let mut read: Vec<_> = names
            .iter()
            .rev()
            .filter_map(|it| Owner::parse(it))
            .collect();
        read.sort();
        assert_eq!(read, owners);
        assert_eq!(Owner::parse("other-lan0"), None);
    }
}
