//! `vmctl net`: host networks, from the kernel itself; no daemon is asked.

use std::str::FromStr;

use clap::Subcommand;

use super::output::{self, Colour, Column, Format, FormatArgs, Style, Table, list, plain};
use crate::exit::{ExitStatus, Failed};
use crate::net::{
    self, AddressError, Cidr, Cidr6, Mode, NetError, Network, Overlay, Port, Range, Spec,
};

#[derive(Debug, Subcommand)]
pub(super) enum NetCommand {
    /// Create a network, which is a bridge of this name
    #[command(after_help = "Example:\n  vmctl net create lan0 --address 10.77.0.1/24 --nat --dhcp")]
    Create(CreateArgs),
    /// Delete a network that no VM uses
    #[command(after_help = "Example:\n  vmctl net delete lan0")]
    Delete {
        /// Name of the network
        name: String,
    },
    /// Replace the list of a network's other machines
    #[command(after_help = "Example:\n  vmctl net set lan0 --peer 192.0.2.2 --peer 192.0.2.3")]
    Set {
        /// Name of the network
        name: String,
        /// Another machine, as for `net create`; give the option once for each machine
        #[arg(long, value_name = "HOST", required = true)]
        peer: Vec<String>,
    },
    /// Print this machine's public key, which the other machines of an encrypted network need
    #[command(after_help = "Example:\n  vmctl net key")]
    Key,
    /// List the networks
    #[command(
        visible_alias = "ls",
        after_help = "Example:\n  vmctl net list --format json"
    )]
    List {
        #[command(flatten)]
        format: FormatArgs,
    },
}

#[derive(Debug, clap::Args)]
pub(super) struct CreateArgs {
    /// Name of the network
    name: String,
    /// Root's IPv4 address in the network, with the length of its prefix
    #[arg(long, value_name = "CIDR")]
    address: Option<String>,
    /// Root's IPv6 address in the network, with a prefix of 64 bits; guests configure theirs by router advertisements
    #[arg(long, value_name = "CIDR")]
    address6: Option<String>,
    /// Let guests reach other networks through root, by NAT; without it they reach each other and root only
    #[arg(long, requires = "address")]
    nat: bool,
    /// Serve DHCP, and DNS for the names of VMs
    #[arg(long, requires = "address")]
    dhcp: bool,
    /// Lease only these addresses: 10.77.0.100-10.77.0.149
    #[arg(long, value_name = "FIRST-LAST", requires = "dhcp")]
    dhcp_range: Option<String>,
    /// Join the network, by VXLAN, with those of other machines that have the same identifier
    #[arg(long, value_name = "VNI", value_parser = vni, requires = "peer")]
    vxlan: Option<u32>,
    /// Encrypt the traffic to other machines by WireGuard, on UDP port 51820 or another one
    #[arg(
        long,
        value_name = "PORT",
        requires = "vxlan",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "51820"
    )]
    wireguard: Option<u16>,
    /// Name or address of another machine, with --wireguard KEY@HOST or KEY@HOST:PORT; may be repeated
    #[arg(long, value_name = "HOST", requires = "vxlan")]
    peer: Vec<String>,
    /// Let guests be in VLANs
    #[arg(long)]
    vlan_filtering: bool,
    /// Size of the largest packet in bytes, from 68 to 65535; 1500 by default
    #[arg(long, value_name = "BYTES", value_parser = mtu)]
    mtu: Option<u16>,
}

pub(super) fn run(command: NetCommand) -> Result<(), Failed> {
    match command {
        NetCommand::Create(args) => create(args),
        NetCommand::Delete { name } => {
            net::delete(&name)?;
            output::text(&format!("{name}: deleted\n"))
        }
        NetCommand::Set { name, peer } => {
            net::set_peers(&name, &peer)?;
            output::text(&format!("{name}: peers set\n"))
        }
        NetCommand::Key => output::text(&format!("{}\n", net::key()?)),
        NetCommand::List { format } => {
            let networks = net::list_guarded()?;
            match format.format {
                Format::Json => output::json(&networks),
                Format::Table => output::text(&table(&networks).render(Style::of_stdout())),
            }
        }
    }
}

fn create(args: CreateArgs) -> Result<(), Failed> {
    let name = args.name;
    let address: Option<Cidr> = parsed(args.address)?;
    let address6: Option<Cidr6> = parsed(args.address6)?;
    let range: Option<Range> = parsed(args.dhcp_range)?;
    let overlay = args.vxlan.map(|vni| match args.wireguard {
        Some(port) => Overlay::encrypted(vni, port, &args.peer),
        None => Overlay::new(vni, &args.peer),
    });
    let overlay = overlay.transpose();
    let overlay = overlay.map_err(|e| Failed::new(ExitStatus::Usage, e))?;
    let mode = if args.nat { Mode::Nat } else { Mode::Isolated };
    let spec = Spec {
        name,
        address,
        address6,
        mode,
        dhcp: args.dhcp,
        range,
        vlan_filtering: args.vlan_filtering,
        mtu: args.mtu,
        overlay,
    };
    for line in net::create(&spec)? {
        output::complain(&line);
    }
    output::text(&format!("{}: created ({})\n", spec.name, mode.name()))
}

/// Reads the value of an option, if the option is given.
fn parsed<T: FromStr<Err = AddressError>>(text: Option<String>) -> Result<Option<T>, Failed> {
    let value = text.map(|text| text.parse()).transpose();
    value.map_err(|e: AddressError| Failed::new(ExitStatus::Usage, e))
}

fn mtu(text: &str) -> Result<u16, String> {
    let bytes = text.parse().map_err(|_| "expected a number".to_owned())?;
    net::check_mtu(bytes).map_err(|e| e.to_string())
}

fn vni(text: &str) -> Result<u32, String> {
    let number = text.parse().map_err(|_| "expected a number".to_owned())?;
    net::check_vni(number).map_err(|e| e.to_string())
}

/// A row for each network, and one for each of its ports below it.
fn table(networks: &[Network]) -> Table {
    let mut table = Table::new(vec![
        Column::Left("NAME"),
        Column::Left("STATE"),
        Column::Left("MODE"),
        Column::Left("VM"),
        Column::Left("ADDRESS"),
        Column::Left("MAC"),
        Column::Left("VLANS"),
        Column::Right("LIMIT"),
        Column::Right("SENT"),
        Column::Right("RECEIVED"),
        Column::Right("DROPPED"),
    ]);
    for network in networks {
        let mac = network.mac.map(|mac| mac.to_string());
        let address = network.address.map(|address| address.to_string());
        let address6 = network.address6.map(|address| address.to_string());
        let addresses: Vec<_> = address.into_iter().chain(address6).collect();
        let mode = network.mode.name();
        let mode = if network.dhcp {
            format!("{mode},dhcp")
        } else {
            mode.to_owned()
        };
        let vlans = if network.vlan_filtering {
            "filtered"
        } else {
            "-"
        };
        let colour = match network.state {
            "up" => Colour::Green,
            _ => Colour::Dim,
        };
        table.row([
            plain(Some(network.name.clone())),
            (network.state.to_owned(), colour),
            plain(Some(mode)),
            plain(None),
            list(&addresses),
            plain(mac),
            plain(Some(vlans.to_owned())),
            plain(None),
            plain(None),
            plain(None),
            plain(None),
        ]);
        for port in &network.ports {
            table.row(row(port));
        }
    }
    table
}

fn row(port: &Port) -> [(String, Colour); 11] {
    let guard = port.guard.unwrap_or_default();
    let rate = guard.rate.map(rate);
    let packets = guard.packets.map(|packets| format!("{packets}/s"));
    let limits: Vec<_> = rate.into_iter().chain(packets).collect();
    let dropped = guard.dropped_sent + guard.dropped_received + port.lost;
    let colour = match dropped {
        0 => Colour::Plain,
        _ => Colour::Yellow,
    };
    let (kind, addresses) = match &port.overlay {
        Some(overlay) if overlay.wireguard => ("encrypted", &overlay.peers),
        Some(overlay) => ("overlay", &overlay.peers),
        None => ("port", &port.addresses),
    };
    [
        plain(Some(format!("  {}", port.name))),
        plain(Some(kind.to_owned())),
        plain(None),
        plain(port.vm.clone()),
        list(addresses),
        plain(port.mac.map(|mac| mac.to_string())),
        list(&port.vlans),
        list(&limits),
        plain(Some(amount(port.sent_bytes))),
        plain(Some(amount(port.received_bytes))),
        (dropped.to_string(), colour),
    ]
}

/// Bits per second, in the form of the configuration.
fn rate(bits: u64) -> String {
    let units = [("G", 1_000_000_000), ("M", 1_000_000), ("k", 1000)];
    let unit = units.iter().find(|(_, unit)| bits.is_multiple_of(*unit));
    match unit {
        Some((letter, unit)) if bits != 0 => format!("{}{letter}", bits / unit),
        _ => bits.to_string(),
    }
}

/// A count of bytes in some four digits.
fn amount(bytes: u64) -> String {
    match bytes {
        0..10_240 => format!("{bytes}B"),
        10_240..10_485_760 => format!("{}K", bytes >> 10),
        10_485_760..10_737_418_240 => format!("{}M", bytes >> 20),
        _ => format!("{}G", bytes >> 30),
    }
}

impl From<NetError> for Failed {
    fn from(error: NetError) -> Self {
        let exit = match error {
            NetError::Invalid(_) => ExitStatus::Usage,
            NetError::NotFound(_) => ExitStatus::NotFound,
            NetError::Conflict(_) => ExitStatus::State,
            NetError::Kernel(_) => ExitStatus::Failed,
        };
        Self::new(exit, error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::{Guard, Vlan};

    #[test]
    fn networks_and_their_ports_are_rows() {
        let networks = [Network {
            name: "lan0".to_owned(),
            state: "up",
            mode: Mode::Nat,
            address: "10.77.0.1/24".parse().ok(),
            address6: "fd00::1/64".parse().ok(),
            dhcp: true,
            mac: "52:54:00:00:00:01".parse().ok(),
            vlan_filtering: true,
            mtu: 1500,
            ports: vec![Port {
                name: "mv0".to_owned(),
                vm: Some("web".to_owned()),
                overlay: None,
                addresses: vec!["10.77.0.9".parse().unwrap()],
                mac: "52:54:00:00:00:02".parse().ok(),
                vlans: vec![Vlan::new(10, false).unwrap(), Vlan::new(20, true).unwrap()],
                sent_bytes: 70_000_000_000,
                received_bytes: 100_000,
                lost: 1,
                guard: Some(Guard {
                    rate: Some(2_500_000),
                    packets: Some(5000),
                    dropped_sent: 40,
                    dropped_received: 1,
                }),
            }],
        }];
        assert_eq!(
            table(&networks).render(Style::default()),
            "NAME   STATE  MODE      VM   ADDRESS                  MAC                VLANS     \
             \x20      LIMIT  SENT  RECEIVED  DROPPED\n\
             lan0   up     nat,dhcp  -    10.77.0.1/24,fd00::1/64  52:54:00:00:00:01  filtered  \
             \x20          -     -         -        -\n  \
               mv0  port   -         web  10.77.0.9                52:54:00:00:00:02  10,20t    \
             2500k,5000/s   65G       97K       42\n"
        );
    }
}
