//! Commands that only look.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use guest_proto::control::{DiskStatus, NicStatus, VmInfo, VmState, VmStatus};
use serde::Serialize;

use super::output::{self, Colour, Column, Format, FormatArgs, Style, Table, plain};
use super::top::Exits;
use super::{DeviceArgs, complete, lifecycle, top};
use crate::client::Client;
use crate::config::{NicConfig, VmConfig, check_name, format_size};
use crate::console::log::Reader;
use crate::daemon;
use crate::exit::{ExitStatus, Failed};
use crate::net::{self, Place, Station};

#[derive(Debug, clap::Args)]
pub(super) struct ListArgs {
    /// Show the known addresses of the guests, too
    #[arg(long)]
    addresses: bool,
    #[command(flatten)]
    format: FormatArgs,
}

/// A VM, as `list` shows it.
#[derive(Serialize)]
struct Listed {
    #[serde(flatten)]
    status: VmStatus,
    /// Addresses of the guest, if `--addresses` is given.
    #[serde(skip_serializing_if = "Option::is_none")]
    addresses: Option<Vec<IpAddr>>,
}

pub(super) fn list(args: &ListArgs, mut client: Client) -> Result<(), Failed> {
    let vms = client.list()?;
    let stations = args.addresses.then(net::stations).transpose()?;
    let listed = |status: VmStatus| {
        let stations = stations.as_deref();
        let addresses = stations.map(|stations| addresses(&status.name, stations));
        Listed { status, addresses }
    };
    let vms: Vec<_> = vms.into_iter().map(listed).collect();
    match args.format.format {
        Format::Json => output::json(&vms),
        Format::Table => output::text(&table(&vms).render(Style::of_stdout())),
    }
}

fn addresses(vm: &str, stations: &[Station]) -> Vec<IpAddr> {
    let own = stations.iter().filter(|station| station.vm == vm);
    own.flat_map(|station| &station.addresses)
        .copied()
        .collect()
}

fn table(vms: &[Listed]) -> Table {
    let mut columns = vec![
        Column::Right("ID"),
        Column::Cut("NAME"),
        Column::Left("STATE"),
        Column::Cut("REASON"),
        Column::Right("VCPUS"),
        Column::Right("MEM"),
        Column::Right("CPU%"),
        Column::Right("UPTIME"),
    ];
    if vms.iter().any(|vm| vm.addresses.is_some()) {
        columns.push(Column::Left("ADDRESSES"));
    }
    let mut table = Table::new(columns);
    for Listed {
        status: vm,
        addresses,
    } in vms
    {
        let mut row = vec![
            plain(vm.id.map(|id| id.to_string())),
            plain(Some(vm.name.clone())),
            (vm.state.to_string(), colour(vm.state)),
            plain(Some(reason(vm))),
            plain(vcpus(vm.vcpus)),
            plain(memory(vm.memory)),
            plain(vm.cpu_percent.map(|percent| format!("{percent:.1}"))),
            plain(vm.uptime_ms.map(|ms| output::duration(ms / 1000))),
        ];
        if let Some(addresses) = addresses {
            row.push(output::list(addresses));
        }
        table.row(row);
    }
    table
}

/// The pending requests and the reason of the state.
fn reason(vm: &VmStatus) -> String {
    match lifecycle::asked(vm) {
        Some(asked) => format!("{asked}; {}", vm.reason),
        None => vm.reason.clone(),
    }
}

fn colour(state: VmState) -> Colour {
    match state {
        VmState::Running => Colour::Green,
        VmState::Crashed | VmState::IoStalled => Colour::Red,
        VmState::Starting | VmState::Paused | VmState::Stopping => Colour::Yellow,
        VmState::Defined | VmState::Stopped => Colour::Dim,
    }
}

/// The text of a count of virtual CPUs; none if the count is not known.
fn vcpus(count: u32) -> Option<String> {
    (count > 0).then(|| count.to_string())
}

/// The text of a size of memory; none if the size is not known. Root's is no round number.
fn memory(bytes: u64) -> Option<String> {
    let rounded = match bytes {
        ..0x10_0000 => bytes,
        _ => bytes >> 20 << 20,
    };
    (bytes > 0).then(|| format_size(rounded))
}

#[derive(Debug, clap::Args)]
pub(super) struct InfoArgs {
    /// Name of the VM
    #[arg(add = complete::vms())]
    name: String,
    #[command(flatten)]
    format: FormatArgs,
    #[command(flatten)]
    device: DeviceArgs,
}

/// `VmInfo` in the form for programs: the configuration is an object, not a text.
#[derive(Serialize)]
struct InfoJson<'a> {
    #[serde(flatten)]
    status: &'a VmStatus,
    config: Option<VmConfig>,
    worker_pid: Option<u32>,
    worker_rss: Option<u64>,
    memory_used: Option<u64>,
    reboots: u32,
    exits: BTreeMap<&'static str, u64>,
    console: &'a str,
    vsock: Option<&'a str>,
    console_log: &'a str,
    worker_log: &'a str,
    disks: &'a [DiskStatus],
    nics: &'a [NicStatus],
}

pub(super) fn info(args: &InfoArgs, mut client: Client) -> Result<(), Failed> {
    let info = client.info(&args.name)?;
    let parse = |text: &String| VmConfig::parse(&args.name, text);
    let config = info.config.as_ref().map(parse).transpose();
    let config = config.map_err(|e| Failed::new(ExitStatus::Config, e))?;
    // Without the driver there is no partition that has exits.
    let device = args.device.open().ok();
    let exits = device
        .zip(info.status.id)
        .map_or_else(Vec::new, |(device, id)| top::exits(&device, id));
    match args.format.format {
        Format::Json => output::json(&InfoJson {
            status: &info.status,
            config,
            worker_pid: info.worker,
            worker_rss: info.worker_rss,
            memory_used: info.memory_used,
            reboots: info.reboots,
            exits: exits.iter().map(|exit| (exit.name, exit.count)).collect(),
            console: &info.console,
            vsock: info.vsock.as_deref(),
            console_log: &info.console_log,
            worker_log: &info.worker_log,
            disks: &info.disks,
            nics: &info.nics,
        }),
        Format::Table => output::text(&describe(&info, config.as_ref(), &exits)),
    }
}

fn describe(info: &VmInfo, config: Option<&VmConfig>, exits: &[Exits]) -> String {
    let status = &info.status;
    let or_none = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
    let path = |path: &Path| path.display().to_string();
    let kib = |bytes: Option<u64>| or_none(bytes.map(|bytes| format!("{} KiB", bytes >> 10)));
    let lines = [
        ("name", status.name.clone()),
        ("id", or_none(status.id.map(|id| id.to_string()))),
        ("state", status.state.to_string()),
        ("reason", reason(status)),
        ("vcpus", or_none(vcpus(status.vcpus))),
        ("memory", or_none(memory(status.memory))),
        ("memory touched", kib(info.memory_used)),
        (
            "cpu",
            or_none(status.cpu_percent.map(|percent| format!("{percent:.1} %"))),
        ),
        (
            "uptime",
            or_none(status.uptime_ms.map(|ms| output::duration(ms / 1000))),
        ),
        ("reboots", info.reboots.to_string()),
        ("exits", or_none(by_kind(exits))),
        ("kernel", or_none(config.map(|config| path(&config.kernel)))),
        (
            "initrd",
            or_none(config.and_then(|config| config.initrd.as_deref().map(path))),
        ),
        (
            "cmdline",
            or_none(config.map(|config| config.cmdline().to_owned())),
        ),
        (
            "worker pid",
            or_none(info.worker.map(|pid| pid.to_string())),
        ),
        ("worker memory", kib(info.worker_rss)),
        ("console", info.console.clone()),
        ("console log", info.console_log.clone()),
        ("worker log", info.worker_log.clone()),
    ];
    let vsock = config.and_then(|config| config.vsock.as_ref());
    let vsock = vsock.map(|vsock| {
        let way = info.vsock.as_deref().unwrap_or("vhost-vsock");
        ("vsock", format!("CID {} by {way}", vsock.cid()))
    });
    let has_told = |name: &str| info.disks.iter().any(|disk| disk.name == name);
    let told = info
        .disks
        .iter()
        .map(|disk| (&*disk.name, describe_disk(disk)));
    let others = config.into_iter().flat_map(|config| &config.disks);
    let others = others.filter(|disk| !has_told(&disk.name));
    let disks = told.chain(others.map(|disk| (&*disk.name, path(&disk.path))));
    let nics = config.into_iter().flat_map(|config| &config.nics);
    let nics = nics.map(|nic| {
        let told = info.nics.iter().find(|told| told.name == nic.name);
        (
            &*nic.name,
            told.map_or_else(|| planned_nic(nic), describe_nic),
        )
    });
    lines
        .into_iter()
        .chain(vsock)
        .chain(disks)
        .chain(nics)
        .map(|(key, value)| {
            format!(
                "{:<15} {}\n",
                output::printable(key),
                output::printable(&value)
            )
        })
        .collect()
}

/// Kinds of exits that have occurred, most frequent first.
fn by_kind(exits: &[Exits]) -> Option<String> {
    let mut kinds: Vec<_> = exits.iter().filter(|exit| exit.count > 0).collect();
    kinds.sort_by_key(|exit| Reverse(exit.count));
    let texts = kinds
        .iter()
        .map(|exit| format!("{} {}", exit.heading, exit.count));
    let text = texts.collect::<Vec<_>>().join(", ");
    Some(text).filter(|text| !text.is_empty())
}

/// A network card of a VM that does not run.
fn planned_nic(nic: &NicConfig) -> String {
    let place = nic.place();
    let place = place.as_ref().map_or("-", Place::name);
    let mac = nic
        .mac
        .map_or_else(|| "-".to_owned(), |mac| mac.to_string());
    format!("{mac} at {place}")
}

fn describe_nic(nic: &NicStatus) -> String {
    format!(
        "{} at {} by {}; {}, link {}, MTU {}, queues {} of {}, lost {}, refused {}",
        nic.mac,
        nic.place,
        nic.tap,
        nic.data_plane,
        if nic.is_up { "up" } else { "down" },
        nic.mtu,
        nic.pairs,
        nic.max_pairs,
        nic.lost,
        nic.refused
    )
}

fn describe_disk(disk: &DiskStatus) -> String {
    let files: Vec<_> = disk.files.iter().map(|file| &*file.path).collect();
    let kib = |bytes: u64| bytes >> 10;
    format!(
        "{}; {}, read {} KiB, written {} KiB, in flight {}, errors {}",
        files.join(" over "),
        format_size(disk.size),
        kib(disk.read),
        kib(disk.written),
        disk.in_flight,
        disk.errors
    )
}

#[derive(Debug, clap::Args)]
pub(super) struct LogsArgs {
    /// Name of the VM
    #[arg(add = complete::vms())]
    name: String,
    /// Go on, and print further output as it is written
    #[arg(short, long)]
    follow: bool,
    /// Print only the last COUNT lines
    #[arg(short = 'n', long, value_name = "COUNT")]
    lines: Option<usize>,
    /// Print the log of the VM's worker process, not the console
    #[arg(long, conflicts_with_all = ["follow", "lines"])]
    worker: bool,
    /// Directory of the daemon's files, for when the daemon does not run
    #[arg(long, value_name = "DIR", default_value = daemon::STATE_DIR)]
    state_dir: PathBuf,
}

/// The files of a VM's logs.
struct Logs {
    console: String,
    worker: String,
}

impl Logs {
    /// Returns the paths that the daemon tells, or those in `state_dir` if the daemon does not run.
    fn find(args: &LogsArgs, client: Result<Client, Failed>) -> Result<Self, Failed> {
        match client.and_then(|mut client| client.info(&args.name)) {
            Ok(info) => Ok(Self {
                console: info.console_log,
                worker: info.worker_log,
            }),
            Err(e) if e.exit == ExitStatus::NoDaemon && check_name(&args.name).is_ok() => {
                let (dir, console, worker) = daemon::logs_of(&args.state_dir, &args.name);
                match dir.try_exists() {
                    Ok(true) => Ok(Self {
                        console: console.display().to_string(),
                        worker: worker.display().to_string(),
                    }),
                    _ => Err(e),
                }
            }
            Err(e) => Err(e),
        }
    }
}

pub(super) fn logs(args: &LogsArgs, client: Result<Client, Failed>) -> Result<(), Failed> {
    let info = Logs::find(args, client)?;
    let mut out = io::stdout().lock();
    if args.worker {
        return match std::fs::File::open(&info.worker) {
            Ok(mut log) => Ok(io::copy(&mut log, &mut out).map(drop)?),
            // The VM was never started.
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(e) => Err(unreadable(&info.worker, &e)),
        };
    }
    let dir = Path::new(&info.console).parent();
    let dir = dir.unwrap_or(Path::new("/"));
    let failed = |e: io::Error| match e.kind() {
        io::ErrorKind::BrokenPipe => e.into(),
        _ => unreadable(&info.console, &e),
    };
    let mut reader = Reader::start(dir, args.lines, &mut out).map_err(failed)?;
    if !args.follow {
        return Ok(());
    }
    output::end_with_reader()?;
    match reader.follow(&mut out) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            let message = format!("{}: it was deleted", args.name);
            Err(Failed::new(ExitStatus::NotFound, message))
        }
        other => other.map_err(failed),
    }
}

fn unreadable(path: &str, error: &io::Error) -> Failed {
    Failed::new(ExitStatus::Failed, format!("{path}: {error}"))
}

/// `vmctl events`, which ends by a signal only.
pub(super) fn events(mut client: Client) -> Result<(), Failed> {
    output::end_with_reader()?;
    client.subscribe()?;
    let mut out = io::stdout().lock();
    loop {
        let status = client.event(None)?;
        serde_json::to_writer(&mut out, &status)
            .map_err(io::Error::from)
            .and_then(|()| writeln!(out))
            .and_then(|()| out.flush())
            .map_err(output::unwritten)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_has_no_blank_cell() {
        let status = VmStatus {
            id: None,
            name: "demo".to_owned(),
            state: VmState::Defined,
            reason: "never started".to_owned(),
            vcpus: 2,
            memory: 256 << 20,
            cpu_percent: None,
            uptime_ms: None,
            stop_asked_ms: None,
            reboot_asked_ms: None,
            pause_asked: false,
        };
        let listed = |addresses| Listed {
            status: status.clone(),
            addresses,
        };
        assert_eq!(
            table(&[listed(None)]).render(Style::default()),
            "ID  NAME  STATE    REASON         VCPUS   MEM  CPU%  UPTIME\n \
             -  demo  defined  never started      2  256M     -       -\n"
        );
        let both = vec!["10.77.0.9".parse().unwrap(), "fd00::9".parse().unwrap()];
        assert_eq!(
            table(&[listed(Some(both)), listed(Some(vec![]))]).render(Style::default()),
            "ID  NAME  STATE    REASON         VCPUS   MEM  CPU%  UPTIME  ADDRESSES\n \
             -  demo  defined  never started      2  256M     -       -  10.77.0.9,fd00::9\n \
             -  demo  defined  never started      2  256M     -       -  -\n"
        );
    }

    #[test]
    fn a_list_fits_a_terminal_of_80_columns() {
        let status = VmStatus {
            id: Some(254),
            name: "a-name-of-a-machine-in-a-rack".to_owned(),
            state: VmState::IoStalled,
            reason: "disk0: no space left on device, and more words".to_owned(),
            vcpus: 64,
            memory: 512 << 30,
            cpu_percent: Some(6400.0),
            uptime_ms: Some(26 * 3_600_000),
            stop_asked_ms: Some(12_000),
            reboot_asked_ms: None,
            pause_asked: false,
        };
        let addresses = None;
        let style = Style {
            width: Some(80),
            colour: false,
        };
        let text = table(&[Listed { status, addresses }]).render(style);
        assert!(
            text.lines().all(|line| line.chars().count() <= 80),
            "{text}"
        );
        assert!(text.contains("stop as"), "{text}");
    }

    #[test]
    fn uptimes_have_two_units_at_most() {
        assert_eq!(output::duration(59), "59s");
        assert_eq!(output::duration(61), "1m01s");
        assert_eq!(output::duration(3_600), "1h00m");
        assert_eq!(output::duration(26 * 3_600), "1d02h");
        assert_eq!(memory((4 << 30) - 4096).as_deref(), Some("4095M"));
    }
}
