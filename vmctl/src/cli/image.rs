//! `vmctl image`: disk images of whole systems, without the daemon.

use std::path::PathBuf;

use clap::Subcommand;

use super::output;
use crate::config::{format_size, parse_size};
use crate::exit::{ExitStatus, Failed};
use crate::image::{self, Debian, ImageError};

#[derive(Debug, clap::Args)]
pub(super) struct ImageArgs {
    #[command(subcommand)]
    command: ImageCommand,
}

#[derive(Debug, Subcommand)]
enum ImageCommand {
    /// Build the image of a new system, with its kernel and a configuration file beside it
    #[command(
        subcommand,
        after_help = "Example:\n  vmctl image build debian web.qcow2"
    )]
    Build(System),
}

#[derive(Debug, Subcommand)]
enum System {
    /// Build Debian 12 or another release from Debian's packages
    #[command(after_help = "Example:\n  vmctl image build debian web.qcow2 --include nginx")]
    Debian(DebianArgs),
}

#[derive(Debug, clap::Args)]
struct DebianArgs {
    /// The image to create: *.qcow2 is qcow2, any other name is raw
    image: PathBuf,
    /// Size of the disk
    #[arg(long, value_parser = parse_size, default_value = "8G")]
    size: u64,
    /// Name of the release
    #[arg(long, default_value = "bookworm")]
    release: String,
    /// Mirror of the packages, in place of Debian's own servers
    #[arg(long, value_name = "URL")]
    mirror: Option<String>,
    /// Further packages, separated by commas
    #[arg(long, value_name = "PACKAGES")]
    include: Vec<String>,
    /// File with public keys of ssh, whose owners may log in as root
    #[arg(long, value_name = "FILE")]
    ssh_key: Option<PathBuf>,
}

pub(super) fn run(args: &ImageArgs) -> Result<(), Failed> {
    let ImageCommand::Build(System::Debian(args)) = &args.command;
    let debian = Debian {
        image: &args.image,
        size: args.size,
        release: &args.release,
        mirror: args.mirror.as_deref(),
        include: &args.include,
        ssh_key: args.ssh_key.as_deref(),
    };
    let files = image::build_debian(&debian, &mut |step| output::note(&format!("vmctl: {step}")))?;
    let show = |path: &PathBuf| output::printable(&path.display().to_string());
    let [image, kernel, initrd, config] =
        [&files.image, &files.kernel, &files.initrd, &files.config].map(show);
    let size = format_size(args.size);
    output::text(&format!(
        "{image}: created, {size}, with {kernel}, {initrd} and {config}\n\
         start it by: vmctl run {config}\n"
    ))
}

impl From<ImageError> for Failed {
    fn from(error: ImageError) -> Self {
        let exit = match error {
            ImageError::Wrong(_) => ExitStatus::Config,
            ImageError::Exists(_) => ExitStatus::State,
            ImageError::Disk(error) => return error.into(),
            ImageError::Missing(_) | ImageError::Program(..) | ImageError::Io(..) => {
                ExitStatus::Failed
            }
        };
        Self::new(exit, error.to_string())
    }
}
