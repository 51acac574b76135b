//! `vmctl ssh`: the program ssh, with the address of a guest.

use std::io;
use std::net::IpAddr;
use std::os::unix::process::CommandExt;
use std::process::Command;

use crate::client::Client;
use crate::exit::{ExitStatus, Failed};
use crate::net;

#[derive(Debug, clap::Args)]
pub(super) struct SshArgs {
    /// Name of the VM; the name of a user in the guest and @ may stand before it
    #[arg(value_name = "[USER@]VM")]
    target: String,
    /// Options of ssh, and a command for the guest
    #[arg(
        value_name = "ARGUMENT",
        trailing_var_arg = true,
        allow_hyphen_values = true
    )]
    arguments: Vec<String>,
}

/// Executes ssh in place of this process. Returns only if that fails.
pub(super) fn run(args: &SshArgs, mut client: Client) -> Result<(), Failed> {
    let (user, name) = match args.target.rsplit_once('@') {
        Some((user, name)) => (Some(user), name),
        None => (None, &*args.target),
    };
    // The daemon says whether there is such a VM.
    let info = client.info(name)?;
    let stations = net::stations()?.into_iter();
    let own = stations.filter(|station| station.vm == name);
    let addresses: Vec<_> = own.flat_map(|station| station.addresses).collect();
    let Some(address) = best(&addresses) else {
        let message = format!(
            "{name}: no address is known ({}): a NIC has one by \"address\", or in a network made with --dhcp",
            info.status.state
        );
        return Err(Failed::new(ExitStatus::State, message));
    };
    let mut ssh = Command::new("ssh");
    // The host's key is the VM's, whatever address it has.
    ssh.arg("-o").arg(format!("HostKeyAlias={name}"));
    if let Some(user) = user {
        ssh.arg("-l").arg(user);
    }
    // Options stand before the host, and what follows them behind it.
    let options = leading_options(&args.arguments);
    let error = ssh
        .args(&args.arguments[..options])
        .arg(address.to_string())
        .args(&args.arguments[options..])
        .exec();
    let message = match error.kind() {
        io::ErrorKind::NotFound => {
            "the program ssh is missing: install the package openssh-client".to_owned()
        }
        _ => format!("ssh: {error}"),
    };
    Err(Failed::new(ExitStatus::Failed, message))
}

/// Returns the first IPv4 address, or the first address if there is none: root reaches that one most likely.
fn best(addresses: &[IpAddr]) -> Option<&IpAddr> {
    let v4 = addresses.iter().find(|address| address.is_ipv4());
    v4.or(addresses.first())
}

/// Returns how many of the arguments are ssh's options (`ssh(1)`), and values of options.
fn leading_options(arguments: &[String]) -> usize {
    /// Options that have a value, which can stand in the next argument.
    const WITH_VALUE: &str = "BbcDEeFIiJLlmOopPQRSWw";
    let mut count = 0;
    while let Some(option) = arguments.get(count) {
        let Some(letters) = option.strip_prefix('-').filter(|rest| !rest.is_empty()) else {
            break;
        };
        count += 1;
        if letters == "-" {
            break;
        }
        let has_value = |letter| WITH_VALUE.contains(letter);
        if letters.find(has_value) == Some(letters.len() - 1) {
            count += 1;
        }
    }
    count.min(arguments.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_stand_before_the_host() {
        let count = |text: &str| {
            let words: Vec<_> = text.split_whitespace().map(str::to_owned).collect();
            leading_options(&words)
        };
        for (text, options) in [
            ("", 0),
            ("uname -a", 0),
            ("-v uname -a", 1),
            ("-p 2222 uname", 2),
            ("-p2222 uname", 1),
            ("-tt -o A=b -- -x", 4),
            ("-4vi key", 2),
            ("-p", 1),
        ] {
            assert_eq!(count(text), options, "{text}");
        }
    }

    #[test]
    fn ipv4_goes_first() {
        let addresses = ["fd00::1".parse().unwrap(), "10.0.0.9".parse().unwrap()];
        assert_eq!(best(&addresses), Some(&addresses[1]));
        assert_eq!(best(&addresses[..1]), Some(&addresses[0]));
        assert_eq!(best(&[]), None);
    }
}
