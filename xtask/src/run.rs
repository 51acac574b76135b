//! `cargo xtask run`.

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use crate::Result;
use crate::initramfs::Addition;
use crate::machine::Machine;
use crate::parts::Parts;

/// Exit status of a machine that could not be built, hung or reset, as opposed to a script's own.
const NO_STATUS: u8 = 125;

/// Options of `cargo xtask run`.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Run FILE as a shell script in VM 0, with its output alone on standard output, and exit with
    /// its status (125: the machine failed)
    #[arg(long, value_name = "FILE")]
    script: Option<PathBuf>,
    /// Put a file or a folder into VM 0; a relative ROOTPATH is relative to the script's folder
    #[arg(long, value_name = "HOSTPATH:ROOTPATH")]
    add: Vec<Addition>,
    /// Give VM 0 another disk (/dev/vdb, then /dev/vdc): a raw image, or an ext4 file system of the
    /// files of a folder; nothing that VM 0 writes to the disk is kept
    #[arg(long, value_name = "FILE_OR_FOLDER")]
    disk: Vec<PathBuf>,
    /// CPUs of the machine
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=255))]
    cpus: u32,
    /// Memory of the machine, as QEMU spells it
    #[arg(long, value_name = "SIZE", default_value = "4G")]
    mem: String,
    /// Count instructions for time: repeatable runs, on one host thread
    #[arg(long)]
    icount: bool,
    /// Boot VM 0 with another kernel: a Debian package, or a bzImage (without modules)
    #[arg(long, value_name = "DEB_OR_FILE")]
    kernel: Option<PathBuf>,
    /// How long a script may take, the boot included
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    timeout: u64,
}

/// Boots VM 0: to its shell, or for a script, whose exit status this is.
pub(crate) fn run(options: &Options) -> ExitCode {
    match boot(options) {
        Ok(status) => ExitCode::from(status),
        Err(message) => {
            eprintln!("xtask: {message}");
            ExitCode::from(NO_STATUS)
        }
    }
}

fn boot(options: &Options) -> Result<u8> {
    let machine = Machine {
        cpus: options.cpus,
        memory: options.mem.clone(),
        icount: options.icount,
        add: options.add.clone(),
        disks: options.disk.clone(),
        timeout: Duration::from_secs(options.timeout),
        ..Machine::default()
    };
    if let Some(script) = &options.script {
        // Before anything is built for it.
        std::fs::File::open(script).map_err(|error| format!("{}: {error}", script.display()))?;
    }
    let parts = Parts::prepare(options.kernel.as_deref())?;
    match &options.script {
        None => machine.interactive(&parts).map(|()| 0),
        Some(script) => {
            let ended = machine.script(&parts, script, &mut io::stdout().lock())?;
            if ended.status != 0 {
                eprintln!(
                    "xtask: {} ended with status {}; the console: {}",
                    script.display(),
                    ended.status,
                    ended.keep_log()?.display()
                );
            }
            Ok(ended.status)
        }
    }
}
