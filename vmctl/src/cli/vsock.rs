//! `vmctl vsock`: standard input and output as one end of a connection to a guest's socket device, or from it.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread;

use guest_proto::control::VmInfo;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{PollFd, PollFlags, poll};
use vsock::{VMADDR_CID_ANY, VsockListener, VsockStream};

use super::lifecycle;
use crate::client::Client;
use crate::config::VmConfig;
use crate::daemon;
use crate::exit::{ExitStatus, Failed};

#[derive(Debug, clap::Args)]
pub(super) struct VsockArgs {
    /// Name of the VM, or cid:N, an address of vsock(7); in a guest, cid:2 is VM 0
    #[arg(value_name = "VM")]
    target: String,
    /// Number of the port
    port: u32,
    /// Listen, and accept one connection
    #[arg(short, long)]
    listen: bool,
}

pub(super) fn run(args: &VsockArgs, runtime_dir: &Path) -> Result<(), Failed> {
    let stream = match args.target.strip_prefix("cid:") {
        Some(cid) => {
            let number = cid.parse().map_err(|_| {
                let message = format!("cid:{}: expected a number", cid.escape_default());
                Failed::new(ExitStatus::Usage, message)
            })?;
            by_address(number, args)?
        }
        None => {
            let info = Client::connect(runtime_dir)?.info(&args.target)?;
            let Some(config) = &info.config else {
                let status = lifecycle::describe(&info.status);
                return Err(Failed::new(ExitStatus::Config, status));
            };
            let config = VmConfig::parse(&args.target, config);
            let config = config.map_err(|e| Failed::new(ExitStatus::Config, e))?;
            match config.vsock.filter(|vsock| !vsock.has_unix_socket()) {
                Some(vsock) => by_address(vsock.cid(), args)?,
                None => by_socket(&info, args)?,
            }
        }
    };
    Ok(relay(stream)?)
}

/// Connects to a guest by its VM's socket, or waits for the guest.
fn by_socket(info: &VmInfo, args: &VsockArgs) -> Result<OwnedFd, Failed> {
    let name = &info.status.name;
    let Some(path) = &info.vsock else {
        let message = format!("{name}: it has no socket device: its configuration has no [vsock]");
        return Err(Failed::new(ExitStatus::State, message));
    };
    if args.listen {
        let path = PathBuf::from(format!("{path}_{}", args.port));
        let in_path =
            |e: io::Error| Failed::new(ExitStatus::Failed, format!("{}: {e}", path.display()));
        return accept(&path).map_err(in_path);
    }
    if !info.status.state.is_alive() {
        let message = format!(
            "{name}: it is {}; \"vmctl start {name}\"",
            info.status.state
        );
        return Err(Failed::new(ExitStatus::State, message));
    }
    let in_path = |e: io::Error| Failed::new(ExitStatus::Failed, format!("{path}: {e}"));
    let mut stream = UnixStream::connect(path).map_err(in_path)?;
    writeln!(stream, "CONNECT {}", args.port).map_err(in_path)?;
    if !is_accepted(&mut stream).map_err(in_path)? {
        let message = format!(
            "{name}: no program in the guest listens at port {}",
            args.port
        );
        return Err(Failed::new(ExitStatus::Failed, message));
    }
    Ok(stream.into())
}

/// Reads the line that begins with OK, and no byte behind it.
fn is_accepted(stream: &mut UnixStream) -> io::Result<bool> {
    let mut line = Vec::new();
    let mut byte = [0];
    while byte != *b"\n" && line.len() < 32 {
        match stream.read(&mut byte) {
            Ok(1..) => line.push(byte[0]),
            Ok(0) => return Ok(false),
            Err(e) if e.kind() == io::ErrorKind::ConnectionReset => return Ok(false),
            Err(e) => return Err(e),
        }
    }
    Ok(line.starts_with(b"OK "))
}

/// Waits for a connection to a socket, which exists only for that time.
fn accept(path: &Path) -> io::Result<OwnedFd> {
    let listener = daemon::listen(path).map_err(|e| match e.kind() {
        io::ErrorKind::AddrInUse => io::Error::other(
            "another program listens there, or a killed program has left this file: then delete it",
        ),
        _ => e,
    })?;
    // Whoever interrupts the program does not have to remove the socket.
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        signals.add(signal);
    }
    signals.thread_block()?;
    let interrupted = SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC)?;
    let mut fds = [
        PollFd::new(&listener, PollFlags::IN),
        PollFd::new(&interrupted, PollFlags::IN),
    ];
    let waited = poll(&mut fds, None);
    std::fs::remove_file(path)?;
    waited?;
    // Here a signal that has come ends the program.
    signals.thread_unblock()?;
    let (stream, _) = listener.accept()?;
    Ok(stream.into())
}

/// Connects to an address of `vsock(7)`, or waits for a connection to this machine's own.
fn by_address(cid: u32, args: &VsockArgs) -> Result<OwnedFd, Failed> {
    let stream = match args.listen {
        true => VsockListener::bind_with_cid_port(VMADDR_CID_ANY, args.port)
            .and_then(|listener| listener.accept())
            .map(|(stream, _)| stream),
        false => VsockStream::connect_with_cid_port(cid, args.port),
    };
    let failed = |e| {
        let message = format!("cid:{cid}: port {}: {e}", args.port);
        Failed::new(ExitStatus::Failed, message)
    };
    Ok(stream.map_err(failed)?.into())
}

/// Copies standard input to the connection, and the connection to standard output, until both have ended or the other
/// side has closed the connection.
fn relay(stream: OwnedFd) -> io::Result<()> {
    let mut stream = File::from(stream);
    let mut to = stream.try_clone()?;
    let (ended, end) = io::pipe()?;
    let typing = move || {
        // If the other side does not want it, the rest of standard input is of no use.
        let _ = io::copy(&mut io::stdin().lock(), &mut to);
        let _ = rustix::net::shutdown(&to, rustix::net::Shutdown::Write);
        drop(end);
    };
    thread::Builder::new()
        .name("typing".to_owned())
        .spawn(typing)?;
    let mut stdout = io::stdout().lock();
    match io::copy(&mut stream, &mut stdout) {
        // The other side has not read all that was typed.
        Err(e) if e.kind() == io::ErrorKind::ConnectionReset => return stdout.flush(),
        other => drop(other?),
    }
    stdout.flush()?;
    let mut fds = [
        PollFd::new(&stream, PollFlags::empty()),
        PollFd::new(&ended, PollFlags::empty()),
    ];
    poll(&mut fds, None)?;
    Ok(())
}
