//! The program dnsmasq (`dnsmasq(8)`), which leases the guests of a network their addresses and answers for
//! their names: one process for each network. Its address and name files tell it all; it remembers nothing, so
//! that it can be killed and started at any time.

use std::fmt::Write;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::address::{Cidr6, Mac};
use super::{Mode, Network, program};
use crate::wire::timespec;

/// The time in which the process must end by itself.
const TIMEOUT: Duration = Duration::from_secs(5);

/// A guest of a network, with the addresses that it is leased.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Host {
    pub(super) mac: Mac,
    pub(super) vm: String,
    pub(super) addresses: Vec<IpAddr>,
}

/// The directory of a network's process, and its files.
#[derive(Clone, Debug)]
pub(super) struct Files(pub(super) PathBuf);

impl Files {
    pub(super) fn config(&self) -> PathBuf {
        self.0.join("dnsmasq.conf")
    }

    /// Leased addresses by guest.
    pub(super) fn leases(&self) -> PathBuf {
        self.0.join("dhcp-hosts")
    }

    /// Names, as in `hosts(5)`.
    pub(super) fn names(&self) -> PathBuf {
        self.0.join("hosts")
    }

    fn pid(&self) -> PathBuf {
        self.0.join("pid")
    }

    /// Returns the process's configuration.
    pub(super) fn config_text(&self, network: &Network) -> String {
        let name = &network.name;
        let path = |path: PathBuf| path.display().to_string();
        let mut lines = vec![
            // A packet that another network's guest sends to this network's address is not answered.
            "bind-dynamic".to_owned(),
            "except-interface=lo".to_owned(),
            format!("interface={name}"),
            format!("pid-file={}", path(self.pid())),
            // Names: those of the guests, and with a way out those that VM 0 knows.
            format!("domain={name}"),
            format!("local=/{name}/"),
            "domain-needed".to_owned(),
            "no-hosts".to_owned(),
            format!("addn-hosts={}", path(self.names())),
            // Addresses: each guest has its own, and nobody else is leased any. The process keeps no file.
            format!("dhcp-hostsfile={}", path(self.leases())),
            "leasefile-ro".to_owned(),
            "dhcp-authoritative".to_owned(),
            "no-ping".to_owned(),
            // A guest does not name itself.
            "dhcp-ignore-names".to_owned(),
            // Guests can't fill the system's log.
            "quiet-dhcp".to_owned(),
            "quiet-dhcp6".to_owned(),
            "quiet-ra".to_owned(),
        ];
        if network.mode == Mode::Isolated {
            lines.push("no-resolv".to_owned());
        }
        if let Some(address) = network.address.filter(|_| network.dhcp) {
            let (first, mask) = (address.network(), address.mask());
            lines.push(format!("dhcp-range={first},static,{mask},1h"));
            if network.mode == Mode::Isolated {
                // An option without a value is none: there is no way out.
                lines.push("dhcp-option=option:router".to_owned());
            }
            lines.push(format!("dhcp-option=option:mtu,{}", network.mtu));
        }
        if let Some(address) = network.address6 {
            // Hosts make addresses in the prefix by themselves, and by DHCPv6 get the same. Nothing routes IPv6:
            // root is a router that lasts for 0 seconds.
            lines.push("enable-ra".to_owned());
            let first = address.network();
            let prefix = Cidr6::PREFIX;
            lines.push(format!("dhcp-range={first},static,slaac,{prefix},1h"));
            lines.push(format!("ra-param={name},mtu:{},60,0", network.mtu));
        }
        lines.join("\n") + "\n"
    }

    /// Starts the process. It is in the background and serves when this returns.
    ///
    /// # Errors
    ///
    /// The program is missing, or it says why it does not start.
    pub(super) fn start(&self) -> io::Result<()> {
        let output = program::run("dnsmasq", "dnsmasq-base", &[&self.option()], "")?;
        if output.status.success() {
            return Ok(());
        }
        Err(io::Error::other(match program::first_line(&output) {
            Some(line) => line.trim().to_owned(),
            None => format!("dnsmasq: {}", output.status),
        }))
    }

    /// The one option of the process, by which it is known.
    fn option(&self) -> String {
        format!("--conf-file={}", self.config().display())
    }

    /// Returns the process, if it runs. The descriptor is readable when it has ended.
    pub(super) fn running(&self) -> Option<OwnedFd> {
        let text = fs::read_to_string(self.pid()).ok()?;
        let pid = Pid::from_raw(text.trim().parse().ok()?)?;
        let process = pidfd_open(pid, PidfdFlags::empty()).ok()?;
        // Another process can have the number by now. This one was opened before its command line is read.
        let command = fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero())).ok()?;
        let option = self.option();
        let mut arguments = command.split(|&byte| byte == 0);
        arguments
            .any(|argument| argument == option.as_bytes())
            .then_some(process)
    }

    /// Ends the process, if it runs.
    pub(super) fn stop(&self) {
        let Some(process) = self.running() else {
            return;
        };
        for signal in [Signal::TERM, Signal::KILL] {
            let _ = pidfd_send_signal(&process, signal);
            let mut fds = [PollFd::new(&process, PollFlags::IN)];
            if matches!(poll(&mut fds, Some(&timespec(TIMEOUT))), Ok(1..)) {
                return;
            }
        }
    }

    /// Has the process read its address and name files again.
    pub(super) fn reload(&self) {
        if let Some(process) = self.running() {
            let _ = pidfd_send_signal(&process, Signal::HUP);
        }
    }
}

/// Returns the lines of [`Files::leases`].
pub(super) fn lease_lines(hosts: &[Host]) -> String {
    let mut text = String::new();
    for host in hosts {
        let mac = host.mac;
        let addresses = host.addresses.iter().map(|ip| match ip {
            IpAddr::V4(ip) => format!("{ip},"),
            IpAddr::V6(ip) => format!("[{ip}],"),
        });
        let addresses: String = addresses.collect();
        let _ = writeln!(text, "{mac},{addresses}{},1h", host.vm);
    }
    text
}

/// Returns the lines of [`Files::names`], which are those of `/etc/hosts`, too.
pub(super) fn name_lines(network: &str, hosts: &[Host]) -> String {
    let mut text = String::new();
    for host in hosts {
        for ip in &host.addresses {
            let vm = &host.vm;
            let _ = writeln!(text, "{ip} {vm}.{network} {vm}");
        }
    }
    text
}
