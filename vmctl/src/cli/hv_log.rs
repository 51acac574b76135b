//! `vmctl hv-log`: the microvisor's log, from the driver.

use std::io::{self, Write};
use std::thread;
use std::time::Duration;

use super::{DeviceArgs, output};
use crate::exit::Failed;

/// How often a followed log is asked for more: nothing announces it.
const PERIOD: Duration = Duration::from_millis(500);

#[derive(Debug, clap::Args)]
pub(super) struct HvLogArgs {
    /// Go on as more is written
    #[arg(short, long)]
    follow: bool,
    #[command(flatten)]
    device: DeviceArgs,
}

pub(super) fn run(args: &HvLogArgs) -> Result<(), Failed> {
    let device = args.device.open()?;
    if args.follow {
        output::end_with_reader()?;
    }
    let mut out = io::stdout().lock();
    let mut chunk = vec![0; 64 << 10];
    let mut position = 0;
    loop {
        let (copied, next) = device.read_log(position, &mut chunk)?;
        position = next;
        out.write_all(&chunk[..copied]).map_err(output::unwritten)?;
        if copied > 0 {
            continue;
        }
        out.flush()?;
        if !args.follow {
            return Ok(());
        }
        thread::sleep(PERIOD);
    }
}
