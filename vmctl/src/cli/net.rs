//! `vmctl net`: host networks, from the kernel itself; no daemon is asked.

use clap::Subcommand;

use super::output::{self, Colour, Column, Format, FormatArgs, Style, Table};
use crate::exit::{Exit, Failed};
use crate::net::{self, Cidr, Mode, NetError, Network, Port, Spec};

#[derive(Debug, Subcommand)]
pub(super) enum NetCommand {
    /// Make a network: a bridge of this name
    #[command(after_help = "Example:\n  vmctl net create lan0 --address 10.77.0.1/24 --nat")]
    Create(CreateArgs),
    /// Remove a network that no VM uses
    #[command(after_help = "Example:\n  vmctl net delete lan0")]
    Delete {
        /// Name of the network
        name: String,
    },
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
    /// Root's address in it, with the length of its prefix
    #[arg(long, value_name = "CIDR")]
    address: Option<String>,
    /// Let its guests reach whom root reaches; otherwise they reach each other and root
    #[arg(long, requires = "address")]
    nat: bool,
    /// Let its guests be in VLANs
    #[arg(long)]
    vlan_filtering: bool,
    /// Bytes of the largest packet, 68 to 65535; Ethernet's 1500 otherwise
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
        NetCommand::List { format } => {
            let networks = net::list()?;
            match format.format {
                Format::Json => output::json(&networks),
                Format::Table => output::text(&table(&networks).render(Style::of_stdout())),
            }
        }
    }
}

fn create(args: CreateArgs) -> Result<(), Failed> {
    let name = args.name;
    let address = args.address.map(|text| text.parse::<Cidr>()).transpose();
    let address = address.map_err(|e| Failed::new(Exit::Usage, e))?;
    let mode = if args.nat { Mode::Nat } else { Mode::Isolated };
    let spec = Spec {
        name,
        address,
        mode,
        vlan_filtering: args.vlan_filtering,
        mtu: args.mtu,
    };
    net::create(&spec)?;
    output::text(&format!("{}: created ({})\n", spec.name, mode.name()))
}

fn mtu(text: &str) -> Result<u16, String> {
    let bytes = text.parse().map_err(|_| "expected a number".to_owned())?;
    net::check_mtu(bytes)
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
    ]);
    for network in networks {
        let mac = network.mac.map(|mac| mac.to_string());
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
            plain(Some(network.mode.name().to_owned())),
            plain(None),
            plain(network.address.map(|address| address.to_string())),
            plain(mac),
            plain(Some(vlans.to_owned())),
        ]);
        for port in &network.ports {
            table.row(row(port));
        }
    }
    table
}

fn row(port: &Port) -> [(String, Colour); 7] {
    let addresses: Vec<_> = port.addresses.iter().map(ToString::to_string).collect();
    let vlans: Vec<_> = port.vlans.iter().map(ToString::to_string).collect();
    let vlans = Some(vlans.join(",")).filter(|vlans| !vlans.is_empty());
    [
        plain(Some(format!("  {}", port.name))),
        plain(Some("port".to_owned())),
        plain(None),
        plain(port.vm.clone()),
        plain(Some(addresses.join(",")).filter(|addresses| !addresses.is_empty())),
        plain(port.mac.map(|mac| mac.to_string())),
        plain(vlans),
    ]
}

fn plain(text: Option<String>) -> (String, Colour) {
    (text.unwrap_or_else(|| "-".to_owned()), Colour::Plain)
}

impl From<NetError> for Failed {
    fn from(error: NetError) -> Self {
        let exit = match error {
            NetError::Invalid(_) => Exit::Usage,
            NetError::NotFound(_) => Exit::NotFound,
            NetError::Conflict(_) => Exit::State,
            NetError::Kernel(_) => Exit::Failed,
        };
        Self::new(exit, error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::Vlan;

    #[test]
    fn networks_and_their_ports_are_rows() {
        let networks = [Network {
            name: "lan0".to_owned(),
            state: "up",
            mode: Mode::Nat,
            address: "10.77.0.1/24".parse().ok(),
            mac: "52:54:00:00:00:01".parse().ok(),
            vlan_filtering: true,
            mtu: 1500,
            ports: vec![Port {
                name: "mv0".to_owned(),
                vm: Some("web".to_owned()),
                addresses: vec!["10.77.0.9".parse().unwrap()],
                mac: "52:54:00:00:00:02".parse().ok(),
                vlans: vec![Vlan::new(10, false).unwrap(), Vlan::new(20, true).unwrap()],
            }],
        }];
        assert_eq!(
            table(&networks).render(Style::default()),
            "NAME   STATE  MODE  VM   ADDRESS       MAC                VLANS\n\
             lan0   up     nat   -    10.77.0.1/24  52:54:00:00:00:01  filtered\n  \
               mv0  port   -     web  10.77.0.9     52:54:00:00:00:02  10,20t\n"
        );
    }
}
