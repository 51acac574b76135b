//! The tunnel that encrypts a network's packets between machines: a WireGuard device, set up by the program `wg` (`wg(8)`).
//!
//! Each machine has one key pair, and its address in a tunnel is made from the public key. A packet from such an address
//! was sent by whoever has the private key: the kernel checks that.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustix::io::Errno;

use super::address::Cidr6;
use super::link::{Interface, Links};
use super::overlay::lookup;
use super::{NetError, discard, find, kernel, mark, not_made, program};

/// The port of WireGuard, unless the user says another one.
const DEFAULT_PORT: u16 = 51820;
/// The file of the machine's private key.
const KEY: &str = "/var/lib/microvisor/wireguard.key";
/// Bytes of the largest packet in a tunnel: what WireGuard's headers leave of 1500, over IPv6, too.
pub(super) const MTU: u16 = 1420;

/// Error: a text is no key.
#[derive(Debug, thiserror::Error)]
#[error("\"{0}\" is not a public key, such as \"vmctl net key\" prints")]
pub struct BadKey(String);

/// Error: a text is no other machine.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// The text has no key.
    #[error("peer {0}: expected KEY@HOST")]
    NoKey(String),
    /// The key of a peer is none.
    #[error("peer {peer}: {error}")]
    Key {
        /// The peer, as the user wrote it.
        peer: String,
        /// The reason.
        error: BadKey,
    },
    /// The host has no address.
    #[error("peer {peer}: {error}")]
    Host {
        /// The peer, as the user wrote it.
        peer: String,
        /// The reason.
        error: io::Error,
    },
}

/// A public key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key([u8; 32]);

impl Key {
    /// Returns the machine's address in the tunnel of the network `vni`, whose prefix has 64 bits: a unique local one
    /// (RFC 4193) with the identifier in it, and the first bytes of the key.
    fn address(self, vni: u32) -> Ipv6Addr {
        let prefix = 0xfd6d_7600_0000_0000 | u64::from(vni) << 16;
        let mut host = [0; 8];
        host.copy_from_slice(&self.0[..8]);
        Ipv6Addr::from_bits(u128::from(prefix) << 64 | u128::from(u64::from_be_bytes(host)))
    }
}

impl FromStr for Key {
    type Err = BadKey;

    fn from_str(text: &str) -> Result<Self, BadKey> {
        let bytes = STANDARD.decode(text).ok();
        let key = bytes.and_then(|bytes| bytes.try_into().ok());
        key.map(Self)
            .ok_or_else(|| BadKey(text.escape_default().to_string()))
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&STANDARD.encode(self.0))
    }
}

/// Another machine at the end of a tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Peer {
    key: Key,
    endpoint: SocketAddr,
}

impl FromStr for Peer {
    type Err = PeerError;

    /// `KEY@HOST` or `KEY@HOST:PORT`.
    fn from_str(text: &str) -> Result<Self, PeerError> {
        let peer = || text.escape_default().to_string();
        let parts = text.split_once('@');
        let (key, host) = parts.ok_or_else(|| PeerError::NoKey(peer()))?;
        let key = key.parse().map_err(|error| PeerError::Key {
            peer: peer(),
            error,
        })?;
        let endpoint = endpoint(host).map_err(|error| PeerError::Host {
            peer: peer(),
            error,
        })?;
        Ok(Self { key, endpoint })
    }
}

/// Returns the address of `HOST` or `HOST:PORT`, where IPv6 addresses with a port have brackets.
fn endpoint(text: &str) -> io::Result<SocketAddr> {
    let has_port = text.contains(':') && text.parse::<IpAddr>().is_err();
    match has_port {
        true => lookup(text),
        false => lookup((text, DEFAULT_PORT)),
    }
}

/// The tunnel of one network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Tunnel {
    /// UDP port of this machine.
    port: u16,
    peers: Vec<Peer>,
}

impl Tunnel {
    pub(super) fn new(port: u16, peers: Vec<Peer>) -> Self {
        Self { port, peers }
    }

    /// Returns the other machines' addresses outside of the tunnel.
    pub(super) fn endpoints(&self) -> Vec<IpAddr> {
        self.peers.iter().map(|peer| peer.endpoint.ip()).collect()
    }

    /// Returns the other machines' addresses in the tunnel of a network.
    pub(super) fn addresses(&self, vni: u32) -> Vec<IpAddr> {
        let address = |peer: &Peer| IpAddr::V6(peer.key.address(vni));
        self.peers.iter().map(address).collect()
    }

    /// Makes the device of a network. Returns this machine's own address in the tunnel.
    pub(super) fn open(&self, links: &mut Links, vni: u32) -> Result<Ipv6Addr, NetError> {
        let name = device(vni);
        let (private, own) = self.own_key(vni)?;
        links
            .add_wireguard(&name)
            .map_err(|e| match Errno::from_io_error(&e) {
                Some(Errno::EXIST) => NetError::Conflict(format!(
                    "{name}: there is an interface of this name already"
                )),
                _ => not_made(&name, "WireGuard")(e),
            })?;
        let address = own.address(vni);
        self.set_up(links, vni, &private, address)
            .map_err(kernel(&name))
            .inspect_err(|_| discard(links, &name))?;
        Ok(address)
    }

    fn set_up(
        &self,
        links: &mut Links,
        vni: u32,
        private: &str,
        address: Ipv6Addr,
    ) -> io::Result<()> {
        let name = device(vni);
        let index = find(links, &name)?.index;
        links.set_alias(index, &mark::of_tunnel(vni))?;
        wg(
            &["setconf", &name, "/dev/stdin"],
            &self.config(vni, private),
        )?;
        links.set_mtu(index, MTU)?;
        links.add_address6(index, Cidr6::of_root(address))?;
        links.set_up(index, true)
    }

    /// Returns this machine's private and public key. Refuses a peer that has the same.
    fn own_key(&self, vni: u32) -> Result<(String, Key), NetError> {
        let (private, own) = own_key().map_err(kernel(&device(vni)))?;
        if self.peers.iter().any(|peer| peer.key == own) {
            let line = format!("peer {own}: that is this machine's own key");
            return Err(NetError::Invalid(line));
        }
        Ok((private, own))
    }

    /// Returns what [`update`] takes, so that bad peers are refused before anything has changed.
    pub(super) fn prepare_update(&self, vni: u32) -> Result<String, NetError> {
        let (private, _) = self.own_key(vni)?;
        Ok(self.config(vni, &private))
    }

    /// Returns the configuration that `wg` reads. It does not leave this process but to `wg`.
    fn config(&self, vni: u32, private: &str) -> String {
        let peer = |peer: &Peer| {
            let (key, endpoint, address) = (peer.key, peer.endpoint, peer.key.address(vni));
            format!("[Peer]\nPublicKey={key}\nEndpoint={endpoint}\nAllowedIPs={address}/128\n")
        };
        let peers: String = self.peers.iter().map(peer).collect();
        let port = self.port;
        format!("[Interface]\nPrivateKey={private}\nListenPort={port}\n{peers}")
    }
}

/// Has a network's device have other peers. What goes to those that stay is not disturbed.
pub(super) fn update(vni: u32, config: &str) -> io::Result<()> {
    wg(&["syncconf", &device(vni), "/dev/stdin"], config).map(drop)
}

/// Returns the UDP port of a network's device.
pub(super) fn port(vni: u32) -> io::Result<u16> {
    let port = wg(&["show", &device(vni), "listen-port"], "")?;
    port.trim().parse().map_err(io::Error::other)
}

/// Returns the name of a network's device.
pub(super) fn device(vni: u32) -> String {
    format!("wg{vni}")
}

/// Removes a network's device, if there is one.
pub(super) fn close(links: &mut Links, there: &[Interface], vni: u32) -> io::Result<()> {
    let is_it = |it: &&Interface| it.name == device(vni) && it.alias == mark::of_tunnel(vni);
    let found = there.iter().find(is_it);
    found.map_or(Ok(()), |device| links.delete(device.index))
}

/// Returns this machine's public key, which is made when it is asked for first.
///
/// # Errors
///
/// The program `wg` is missing, or the file of the key can't be written.
pub fn key() -> Result<Key, NetError> {
    let own = own_key().map_err(|e| NetError::Kernel(e.to_string()))?;
    Ok(own.1)
}

/// Returns this machine's private and public key.
fn own_key() -> io::Result<(String, Key)> {
    let in_file = |e: io::Error| io::Error::new(e.kind(), format!("{KEY}: {e}"));
    let private = match fs::read_to_string(KEY) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => make_key()?,
        text => text.map_err(in_file)?,
    };
    let private = private.trim().to_owned();
    let public = wg(&["pubkey"], &private)?;
    let public = public.trim().parse();
    Ok((private, public.map_err(io::Error::other)?))
}

/// Makes the private key. Of two programs that do so at once, one gets the other's.
fn make_key() -> io::Result<String> {
    let private = wg(&["genkey"], "")?;
    let path = Path::new(KEY);
    if let Some(dir) = path.parent() {
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true).mode(0o700).create(dir)?;
    }
    let new = path.with_extension(format!("key-{}", std::process::id()));
    let mut options = File::options();
    options.write(true).create(true).truncate(true).mode(0o600);
    let write = || {
        let mut file = options.open(&new)?;
        file.write_all(private.as_bytes())?;
        file.sync_all()?;
        fs::hard_link(&new, path)
    };
    let linked = write();
    // The device may not exist.
    let _ = fs::remove_file(&new);
    match linked {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => fs::read_to_string(path),
        linked => linked.map(|()| private),
    }
}

/// Runs `wg`, and returns what it prints.
fn wg(arguments: &[&str], input: &str) -> io::Result<String> {
    let output = program::run("wg", "wireguard-tools", arguments, input)?;
    if !output.status.success() {
        let line = program::first_line(&output);
        let line = line.unwrap_or_else(|| output.status.to_string());
        return Err(io::Error::other(format!("wg: {line}")));
    }
    String::from_utf8(output.stdout).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "AQIDBAUGBwgJCgsMDQ4PEBESExQVFhcYGRobHB0eHyA=";

    #[test]
    fn addresses_are_those_of_keys_and_networks() {
        let key: Key = TEXT.parse().unwrap();
        assert_eq!(key.to_string(), TEXT);
        assert_eq!(
            key.address(77).to_string(),
            "fd6d:7600:4d:0:102:304:506:708"
        );
        assert_eq!(
            key.address(0xffffff).segments()[..4],
            [0xfd6d, 0x76ff, 0xffff, 0]
        );
        for wrong in ["", "x", "AQID", &TEXT[..43]] {
            assert!(wrong.parse::<Key>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn peers_are_told_to_wg() {
        let peer = |host: &str| format!("{TEXT}@{host}").parse::<Peer>();
        for (host, endpoint) in [
            ("192.0.2.1", "192.0.2.1:51820"),
            ("192.0.2.1:9", "192.0.2.1:9"),
            ("2001:db8::1", "[2001:db8::1]:51820"),
            ("[2001:db8::1]:9", "[2001:db8::1]:9"),
        ] {
            assert_eq!(peer(host).unwrap().endpoint.to_string(), endpoint);
        }
        let tunnel = Tunnel::new(51820, vec![peer("192.0.2.1").unwrap()]);
        let expected = format!(
            "[Interface]\nPrivateKey=secret\nListenPort=51820\n[Peer]\nPublicKey={TEXT}\n\
             Endpoint=192.0.2.1:51820\nAllowedIPs=fd6d:7600:4d:0:102:304:506:708/128\n"
        );
        assert_eq!(tunnel.config(77, "secret"), expected);
        for (text, what) in [
            ("192.0.2.1", "peer 192.0.2.1: expected KEY@HOST"),
            ("x@192.0.2.1", "peer x@192.0.2.1: \"x\" is not a public key"),
        ] {
            let error = text.parse::<Peer>().unwrap_err();
            assert!(error.to_string().starts_with(what), "{error}");
        }
        assert!(peer("").is_err() && peer("192.0.2.1:x").is_err());
    }
}
