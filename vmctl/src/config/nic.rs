//! The tables `[[nic]]`: network cards.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use guest_proto::limits::MAX_DOORBELLS;
use serde::{Deserialize, Deserializer, Serialize};

use super::{ConfigError, MAX_DEVICES, Source, count, names};
use crate::net::{Mac, Place, Rules, Vlan};

/// Doorbells that the disks and NICs of a VM share by default, one for each queue. The other devices have the
/// rest; queues of a socket device may find none left, and then are notified by exits to the worker.
pub const DOORBELLS: u32 = MAX_DOORBELLS as u32 - 4;
/// Largest default number of pairs of queues.
const DEFAULT_PAIRS: u32 = 4;
/// Pairs of queues that a NIC can have.
const MAX_PAIRS: u16 = 16;

/// Bits per second that a NIC can be limited to. The lowest one still lets a packet of Ethernet through.
const MIN_RATE: u64 = 100_000;
const MAX_RATE: u64 = 1_000_000_000_000;
/// Frames per second that a NIC can be limited to, at most.
const MAX_PACKETS: u32 = 100_000_000;

/// A network card.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NicConfig {
    /// Network of `vmctl net` that the NIC is plugged into.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<String>,
    /// Bridge of VM 0 that the NIC is plugged into, in place of a network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bridge: Option<String>,
    /// Tap device of VM 0 that is the other end of the NIC's cable, in place of a network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tap: Option<String>,
    /// Name in messages, and for `vmctl detach`: by default the name of the network, bridge or tap.
    /// Empty only in a table that is not yet part of a VM's configuration.
    #[serde(
        default,
        deserialize_with = "names::deserialize",
        skip_serializing_if = "String::is_empty"
    )]
    pub name: String,
    /// MAC address; by default one that is made from the names of the VM and the NIC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<Mac>,
    /// VLAN that the NIC is in. Frames of the guest carry its tag only if it is tagged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vlan: Option<Vlan>,
    /// More VLANs that the NIC is in, tagged.
    #[serde(
        default,
        deserialize_with = "trunks",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub trunks: Vec<u16>,
    /// Bytes of the largest packet, 68 to 65535; by default that of the network.
    #[serde(
        default,
        deserialize_with = "mtu",
        skip_serializing_if = "Option::is_none"
    )]
    pub mtu: Option<u16>,
    /// Number of pairs of queues, 1 to 16; by default one for each virtual CPU, but at most 4.
    #[serde(
        default,
        deserialize_with = "pairs",
        skip_serializing_if = "Option::is_none"
    )]
    pub queues: Option<u16>,
    /// Whether the cable is plugged in.
    #[serde(default)]
    pub link: LinkState,
    /// The one IPv4 address that the guest may use. By default it may use any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<Ipv4Addr>,
    /// The same for IPv6, beside the link-local address that is made of the MAC address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address6: Option<Ipv6Addr>,
    /// The guest may use any MAC and IP address, and be a DHCP server or a router.
    #[serde(default)]
    pub spoof: bool,
    /// Bits per second, in each direction. In TOML `"100M"`.
    #[serde(
        default,
        deserialize_with = "rate",
        skip_serializing_if = "Option::is_none"
    )]
    pub rate: Option<u64>,
    /// Frames per second, in each direction.
    #[serde(
        default,
        deserialize_with = "packets",
        skip_serializing_if = "Option::is_none"
    )]
    pub packets: Option<u32>,
}

/// Whether a cable is plugged in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LinkState {
    /// The cable is plugged in.
    #[default]
    Up,
    /// The cable is not plugged in.
    Down,
}

/// Error: keys of NICs that do not go together.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum BadNic {
    /// The NIC is plugged into nothing, or into several places.
    #[error("a NIC has one of the keys \"network\", \"bridge\" and \"tap\"")]
    Place,
    /// The NIC may use any address, and has one.
    #[error("a NIC with \"spoof\" may use any address, and has none of its own")]
    SpoofedAddress,
    /// The NIC's tap is another program's, and the NIC has VLANs.
    #[error("tap \"{0}\": a tap of another program can have no \"vlan\" and no \"trunks\" here")]
    TapWithVlans(String),
    /// A VLAN is with and without tags.
    #[error("VLAN {0} is both \"vlan\" and among \"trunks\"")]
    VlanTwice(u16),
    /// Two devices have one name.
    #[error("two devices have the name \"{0}\"")]
    NameTwice(String),
    /// Two NICs have one MAC address.
    #[error("two NICs have the MAC address {0}")]
    MacTwice(Mac),
}

impl NicConfig {
    /// Makes the configuration of a NIC of settings (`key=value`).
    ///
    /// # Errors
    ///
    /// A setting is wrong.
    pub fn new(settings: &[String]) -> Result<Self, ConfigError> {
        let nic: Self = Source::new("nic", String::new(), settings)?.deserialize()?;
        nic.check().map_err(|e| ConfigError(format!("nic: {e}")))?;
        Ok(nic)
    }

    /// Returns where the NIC is plugged in. A NIC of a VM's configuration has exactly one place.
    pub fn place(&self) -> Option<Place> {
        match (&self.network, &self.bridge, &self.tap) {
            (Some(name), None, None) => Some(Place::Network(name.clone())),
            (None, Some(name), None) => Some(Place::Bridge(name.clone())),
            (None, None, Some(name)) => Some(Place::Tap(name.clone())),
            _ => None,
        }
    }

    /// Returns what the guest may send.
    pub fn rules(&self) -> Rules {
        let address6 = self.address6.map(IpAddr::from);
        Rules {
            spoof: self.spoof,
            addresses: self
                .address
                .map(IpAddr::from)
                .into_iter()
                .chain(address6)
                .collect(),
            rate: self.rate,
            packets: self.packets,
        }
    }

    /// Checks what no single key tells.
    fn check(&self) -> Result<(), BadNic> {
        let place = self.place().ok_or(BadNic::Place)?;
        let has_address = self.address.is_some() || self.address6.is_some();
        if self.spoof && has_address {
            return Err(BadNic::SpoofedAddress);
        }
        let has_vlans = self.vlan.is_some() || !self.trunks.is_empty();
        if matches!(place, Place::Tap(_)) && has_vlans {
            return Err(BadNic::TapWithVlans(place.name().to_owned()));
        }
        let vlan = self.vlan.map(Vlan::id);
        if let Some(&id) = self.trunks.iter().find(|&&id| vlan == Some(id)) {
            return Err(BadNic::VlanTwice(id));
        }
        Ok(())
    }
}

/// Returns how many pairs of queues each of `nics` NICs has unless its configuration says. A pair has two
/// doorbells, and the control queue has one; the NICs share half of the doorbells.
pub(super) fn default_pairs(vcpus: u32, nics: usize) -> u16 {
    let share = DOORBELLS / 2 / nics.max(1) as u32;
    let pairs = share.saturating_sub(1) / 2;
    vcpus.min(DEFAULT_PAIRS).min(pairs).max(1) as u16
}

/// Gives each NIC of the VM `vm` a name and a MAC address that has none. Devices of other kinds have
/// the names `taken`.
///
/// # Errors
///
/// Two devices have one name, or two NICs one MAC address.
pub(super) fn complete(vm: &str, nics: &mut [NicConfig], taken: &[&str]) -> Result<(), BadNic> {
    for index in 0..nics.len() {
        let nic = &nics[index];
        let has_name = |name: &str, nics: &[NicConfig]| nics.iter().any(|nic| nic.name == name);
        if nic.name.is_empty() {
            let place = nic.place();
            let place = place.as_ref().map_or("nic", Place::name);
            let is_free = |name: &str| !has_name(name, nics) && !taken.contains(&name);
            let name = names::free_name(names::name_of(place, "nic"), is_free);
            nics[index].name = name;
        } else if taken.contains(&&*nic.name) || has_name(&nic.name, &nics[..index]) {
            return Err(BadNic::NameTwice(nic.name.clone()));
        }
        let nic = &mut nics[index];
        let made = || Mac::of_text(&format!("{vm}/{}", nic.name));
        let mac = *nic.mac.get_or_insert_with(made);
        if nics[..index].iter().any(|other| other.mac == Some(mac)) {
            return Err(BadNic::MacTwice(mac));
        }
    }
    Ok(())
}

/// Reads the list of NICs.
pub(super) fn list<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<NicConfig>, D::Error> {
    let nics = Vec::<NicConfig>::deserialize(deserializer)?;
    if nics.len() > MAX_DEVICES {
        return Err(serde::de::Error::custom(format!(
            "{}: a VM has at most {MAX_DEVICES} NICs",
            nics.len()
        )));
    }
    let checked = nics.iter().try_for_each(NicConfig::check);
    checked.map_err(serde::de::Error::custom)?;
    Ok(nics)
}

fn trunks<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u16>, D::Error> {
    let ids = Vec::<i64>::deserialize(deserializer)?;
    let vlan = |id: i64| {
        let id = u16::try_from(id).unwrap_or(0);
        Vlan::new(id, true).map(Vlan::id)
    };
    let mut ids: Vec<u16> = ids
        .into_iter()
        .map(vlan)
        .collect::<Result<_, _>>()
        .map_err(serde::de::Error::custom)?;
    ids.sort_unstable();
    ids.dedup();
    Ok(ids)
}

fn mtu<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u16>, D::Error> {
    let bytes = i64::deserialize(deserializer)?;
    let mtu = crate::net::check_mtu(bytes).map_err(serde::de::Error::custom)?;
    Ok(Some(mtu))
}

/// Reads `"100M"`: bits per second, with a unit of 1000, 1000² or 1000³.
fn rate<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "expected bits per second, as \"100M\"")]
    enum Form {
        Number(u64),
        Text(String),
    }
    let text = match Form::deserialize(deserializer)? {
        Form::Number(number) => number.to_string(),
        Form::Text(text) => text,
    };
    let (digits, unit) = match text.strip_suffix(['k', 'M', 'G']) {
        Some(digits) => (digits, &text[digits.len()..]),
        None => (&*text, ""),
    };
    let unit = match unit {
        "k" => 1_000,
        "M" => 1_000_000,
        "G" => 1_000_000_000,
        _ => 1,
    };
    let bits = digits.parse::<u64>().ok();
    let bits = bits.and_then(|number| number.checked_mul(unit));
    match bits {
        Some(bits @ MIN_RATE..=MAX_RATE) => Ok(Some(bits)),
        _ => Err(serde::de::Error::custom(format!(
            "\"{}\": expected bits per second from \"100k\" to \"1000G\"",
            text.escape_default()
        ))),
    }
}

fn packets<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u32>, D::Error> {
    count::deserialize(deserializer, MAX_PACKETS)
}

fn pairs<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u16>, D::Error> {
    count::deserialize(deserializer, MAX_PAIRS)
}
