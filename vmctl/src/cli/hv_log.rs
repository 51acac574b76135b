//! `vmctl hv-log`: the microvisor's log, from the driver.

use std::io::{self, Write};
use std::thread;
use std::time::Duration;

use super::DeviceArgs;
use crate::exit::{Exit, Failed};
use crate::platform;

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
    let platform = |e: String| Failed::new(Exit::Platform, e);
    let device = platform::open_driver(&args.device.device).map_err(platform)?;
    let mut out = io::stdout().lock();
    let mut chunk = vec![0; 64 << 10];
    let mut position = 0;
    loop {
        let (copied, next) = device
            .read_log(position, &mut chunk)
            .map_err(|e| platform(e.to_string()))?;
        position = next;
        out.write_all(&chunk[..copied])?;
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
