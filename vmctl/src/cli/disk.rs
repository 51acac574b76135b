//! `vmctl disk`: disk images, without the daemon.

use std::fs;
use std::path::{Path, PathBuf};

use clap::Subcommand;

use super::output::{self, Colour, Column, FormatArgs, Style, Table};
use crate::config::{format_size, parse_size};
use crate::disk::{self, Backing, BackingDirs, DiskError, Format, Layer, Problem, Usage};
use crate::exit::{ExitStatus, Failed};

#[derive(Debug, clap::Args)]
pub(super) struct DiskArgs {
    #[command(subcommand)]
    command: DiskCommand,
}

#[derive(Debug, Subcommand)]
enum DiskCommand {
    /// Create an image for another VM: a qcow2 overlay, or with --full a copy of the data
    #[command(after_help = "Example:\n  vmctl disk clone debian.qcow2 web.qcow2")]
    Clone(CloneArgs),
    /// Create an empty image, or with --backing an overlay of another image
    #[command(after_help = "Example:\n  vmctl disk create web.qcow2 20G --backing debian.qcow2")]
    Create(CreateArgs),
    /// Show an image and its backing files; a VM may be using them
    #[command(after_help = "Example:\n  vmctl disk info web.qcow2 --format json")]
    Info(InfoArgs),
    /// Resize an image that no VM uses
    #[command(after_help = "Example:\n  vmctl disk resize web.qcow2 40G")]
    Resize(ResizeArgs),
    /// Create a qcow2 overlay of an image, which must not be written from then on
    #[command(after_help = "Example:\n  vmctl disk snapshot web.qcow2 web-new.qcow2")]
    Snapshot(SnapshotArgs),
}

#[derive(Debug, clap::Args)]
struct CloneArgs {
    /// The image. Without --full it becomes a backing file, which must not be written from then on
    file: PathBuf,
    /// The image to create
    clone: PathBuf,
    /// Copy the data, so that the new image needs no backing file
    #[arg(long)]
    full: bool,
    /// Directory that may hold the image's backing files, besides the image's own
    #[arg(long, value_name = "DIR", requires = "full")]
    backing_dir: Vec<PathBuf>,
    /// Format of the image, in place of the one that its name tells
    #[arg(long, value_enum)]
    format: Option<Format>,
}

#[derive(Debug, clap::Args)]
struct CreateArgs {
    /// The image to create
    file: PathBuf,
    /// Size of the disk: 512M, 20G
    #[arg(value_parser = parse_size)]
    size: u64,
    /// Format of the image. By default *.qcow2 is qcow2, any other name is raw
    #[arg(long, value_enum)]
    format: Option<Format>,
    /// Backing file: the data that the new image reads until it is written
    #[arg(long, value_name = "FILE")]
    backing: Option<PathBuf>,
    /// Format of the backing file, in place of the one that its name tells
    #[arg(long, value_enum, requires = "backing")]
    backing_format: Option<Format>,
}

#[derive(Debug, clap::Args)]
struct InfoArgs {
    /// The image
    file: PathBuf,
    /// Format of the image, if its name and its contents disagree
    #[arg(long, value_name = "FORMAT")]
    image_format: Option<Format>,
    #[command(flatten)]
    format: FormatArgs,
}

#[derive(Debug, clap::Args)]
struct ResizeArgs {
    /// The image
    file: PathBuf,
    /// The new size
    #[arg(value_parser = parse_size)]
    size: u64,
    /// Allow a smaller size: the data behind the new end is lost
    #[arg(long)]
    shrink: bool,
    /// Format of the image, in place of the one that its name tells
    #[arg(long, value_enum)]
    format: Option<Format>,
}

#[derive(Debug, clap::Args)]
struct SnapshotArgs {
    /// The image that becomes a backing file
    file: PathBuf,
    /// The image to create
    overlay: PathBuf,
    /// Format of the backing file, in place of the one that its name tells
    #[arg(long, value_enum)]
    format: Option<Format>,
}

pub(super) fn run(args: &DiskArgs) -> Result<(), Failed> {
    match &args.command {
        DiskCommand::Clone(args) => clone(args),
        DiskCommand::Create(args) => create(args),
        DiskCommand::Info(args) => info(args),
        DiskCommand::Resize(args) => resize(args),
        DiskCommand::Snapshot(args) => snapshot(args),
    }
}

impl From<DiskError> for Failed {
    fn from(error: DiskError) -> Self {
        let exit = match error.problem {
            Problem::Wrong => ExitStatus::Config,
            Problem::InUse | Problem::Exists => ExitStatus::State,
            Problem::Io => ExitStatus::Failed,
        };
        Self::new(exit, error.to_string())
    }
}

fn clone(args: &CloneArgs) -> Result<(), Failed> {
    let format = Format::said_or_detected(args.format, &args.file)?;
    if !args.full {
        return overlay(&args.file, format, &args.clone);
    }
    let dirs = BackingDirs::Only(&args.backing_dir);
    let new = Format::of_name(&args.clone);
    disk::clone_full(&args.file, format, &args.clone, new, dirs)?;
    say(
        &args.clone,
        &format!("created, a copy of {}", args.file.display()),
    )
}

fn create(args: &CreateArgs) -> Result<(), Failed> {
    let format = args.format.unwrap_or_else(|| Format::of_name(&args.file));
    let backing = match &args.backing {
        None => None,
        Some(path) => Some(Backing {
            path,
            format: Format::said_or_detected(args.backing_format, path)?,
        }),
    };
    disk::create(&args.file, format, args.size, backing)?;
    let size = format_size(args.size);
    say(&args.file, &format!("created, {} of {size}", format.name()))?;
    match &args.backing {
        Some(backing) => explain_place(backing, &args.file),
        None => Ok(()),
    }
}

fn info(args: &InfoArgs) -> Result<(), Failed> {
    let format = Format::said_or_named(args.image_format, &args.file)?;
    if format.is_doubtful {
        let file = args.file.display();
        let line = format!(
            "{file}: shown as raw. It begins like a qcow2 image, but its name does not end in .qcow2, and a guest may have written that: --image-format qcow2 shows it as qcow2"
        );
        output::complain(&line);
    }
    let layers = disk::info(&args.file, format.format)?;
    match args.format.format {
        output::Format::Json => output::json(&layers),
        output::Format::Table => output::text(&table(&layers).render(Style::of_stdout())),
    }
}

fn resize(args: &ResizeArgs) -> Result<(), Failed> {
    let format = Format::said_or_detected(args.format, &args.file)?;
    let old = disk::resize(&args.file, format, args.size, args.shrink)?;
    let (old, new) = (format_size(old), format_size(args.size));
    say(&args.file, &format!("resized from {old} to {new}"))
}

fn snapshot(args: &SnapshotArgs) -> Result<(), Failed> {
    let format = Format::said_or_detected(args.format, &args.file)?;
    overlay(&args.file, format, &args.overlay)
}

/// Creates the qcow2 image `new` over `base`.
fn overlay(base: &Path, format: Format, new: &Path) -> Result<(), Failed> {
    disk::snapshot(base, format, new)?;
    say(new, &format!("created over {}", base.display()))?;
    explain_place(base, new)
}

/// Tells which key a VM needs to use the image `new`, if its backing file `base` lies in another directory.
fn explain_place(base: &Path, new: &Path) -> Result<(), Failed> {
    let (Ok(base), Ok(dir)) = (fs::canonicalize(base), fs::canonicalize(disk::folder(new))) else {
        return Ok(());
    };
    if base.starts_with(dir) {
        return Ok(());
    }
    let dirs = [disk::folder(&base)];
    say(
        new,
        &format!("a VM needs backing_dirs = {dirs:?} in the [[disk]] table to use this image"),
    )
}

fn say(path: &Path, what: &str) -> Result<(), Failed> {
    let line = output::printable(&format!("{}: {what}", path.display()));
    output::text(&format!("{line}\n"))
}

/// The image first, its backing files below.
fn table(layers: &[Layer]) -> Table {
    let mut table = Table::new(vec![
        Column::Cut("FILE"),
        Column::Left("FORMAT"),
        Column::Right("SIZE"),
        Column::Right("ON DISK"),
        Column::Left("IN USE"),
    ]);
    for layer in layers {
        let (usage, colour) = match layer.in_use {
            Usage::No => ("no", Colour::Plain),
            Usage::Read => ("read", Colour::Green),
            Usage::Write => ("written", Colour::Yellow),
        };
        table.row([
            (layer.file.display().to_string(), Colour::Plain),
            (layer.format.name().to_owned(), Colour::Plain),
            (format_size(layer.virtual_size), Colour::Plain),
            (format_size(layer.size_on_disk), Colour::Plain),
            (usage.to_owned(), colour),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        disk: DiskArgs,
    }

    fn run_line(line: &[&Path]) -> Result<(), Failed> {
        let line = std::iter::once(Path::new("disk")).chain(line.iter().copied());
        run(&Line::try_parse_from(line).unwrap().disk)
    }

    #[test]
    fn every_command_works_without_a_daemon() {
        let folder = tempfile::tempdir().unwrap();
        let [a, b, c, d] =
            ["a.qcow2", "b.qcow2", "c.qcow2", "d.raw"].map(|name| folder.path().join(name));
        let say = Path::new;
        run_line(&[say("create"), &a, say("1M")]).unwrap();
        run_line(&[say("snapshot"), &a, &b]).unwrap();
        run_line(&[say("clone"), &b, &c]).unwrap();
        run_line(&[say("clone"), &c, &d, say("--full")]).unwrap();
        run_line(&[say("resize"), &b, say("2M")]).unwrap();
        run_line(&[say("info"), &b, say("--format"), say("json")]).unwrap();
        let exit = |line: &[&Path]| run_line(line).unwrap_err().exit;
        assert_eq!(exit(&[say("create"), &a, say("1M")]), ExitStatus::State);
        assert_eq!(exit(&[say("resize"), &b, say("1M")]), ExitStatus::Config);
        let layers = disk::info(&b, Format::Qcow2).unwrap();
        assert_eq!(layers[0].virtual_size, 2 << 20);
        assert_eq!(layers[1].file, a);
        assert_eq!(disk::info(&c, Format::Qcow2).unwrap().len(), 3);
        assert_eq!(disk::info(&d, Format::Raw).unwrap().len(), 1);
    }

    #[test]
    fn a_header_that_a_guest_can_have_written_is_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        let [base, image, raw] =
            ["base.qcow2", "image.qcow2", "x.img"].map(|name| folder.path().join(name));
        let say = Path::new;
        run_line(&[say("create"), &base, say("1M")]).unwrap();
        run_line(&[say("snapshot"), &base, &image]).unwrap();
        fs::rename(&image, &raw).unwrap();
        let shown = Format::said_or_named(None, &raw).unwrap();
        assert_eq!((shown.format, shown.is_doubtful), (Format::Raw, true));
        run_line(&[say("info"), &raw]).unwrap();
        // The header is damaged: only whoever follows it notices.
        let file = fs::File::options().write(true).open(&raw).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, &[0xff; 4], 4).unwrap();
        run_line(&[say("info"), &raw]).unwrap();
        let as_qcow2 = [say("info"), &raw, say("--image-format"), say("qcow2")];
        assert_eq!(run_line(&as_qcow2).unwrap_err().exit, ExitStatus::Config);
    }

    #[test]
    fn a_table_has_the_image_first() {
        let layer = |file: &str, format, in_use| Layer {
            file: file.into(),
            format,
            virtual_size: 1 << 30,
            size_on_disk: 196 << 10,
            in_use,
        };
        let layers = [
            layer("web.qcow2", Format::Qcow2, Usage::Write),
            layer("base.img", Format::Raw, Usage::Read),
        ];
        assert_eq!(
            table(&layers).render(Style::default()),
            "FILE       FORMAT  SIZE  ON DISK  IN USE\n\
             web.qcow2  qcow2     1G     196K  written\n\
             base.img   raw       1G     196K  read\n"
        );
    }

    #[test]
    fn every_command_has_an_example() {
        use clap::CommandFactory;
        for sub in Line::command().get_subcommands() {
            let help = sub.get_after_help().map(ToString::to_string);
            let call = format!("Example:\n  vmctl disk {} ", sub.get_name());
            assert!(help.unwrap_or_default().starts_with(&call));
        }
    }
}
