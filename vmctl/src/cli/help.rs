//! The overview of the commands, and one line for each mistake in the arguments.

use clap::error::{ContextKind, ContextValue, ErrorKind};

/// The commands by what they are for. Each is in one group.
const GROUPS: &[(&str, &[&str])] = &[
    ("Define", &["run", "create", "edit", "rename", "delete"]),
    (
        "Run",
        &[
            "start", "stop", "reboot", "restart", "kill", "pause", "resume", "wait",
        ],
    ),
    ("Look", &["list", "info", "logs", "top", "events"]),
    ("Enter", &["console", "ssh", "vsock"]),
    ("Devices", &["attach", "detach", "set"]),
    ("Images", &["disk", "image"]),
    ("Networks", &["net"]),
    (
        "System",
        &["doctor", "version", "verify", "hv-log", "daemon"],
    ),
];

/// Commands of other programs, and the commands that do the same here.
const TIPS: &[(&str, &str)] = &[
    (
        "exec",
        "\"vmctl ssh VM COMMAND\" runs a command in a guest, \"vmctl console VM\" shows its console",
    ),
    ("top-vms", "\"vmctl top\""),
    ("migrate", "a VM can't move to another machine"),
    (
        "save",
        "\"vmctl pause VM\" holds a VM; its memory can't be saved",
    ),
    (
        "snapshot",
        "\"vmctl disk snapshot IMAGE NEW\" keeps a disk as it is",
    ),
    ("autostart", "\"vmctl start VM\" starts a VM"),
];

/// The commands on one screen.
pub(super) fn overview() -> String {
    let mut text = "Manages the virtual machines of Microvisor\n\n\
                    Usage: vmctl COMMAND [ARGUMENT...]\n\n"
        .to_owned();
    for (group, commands) in GROUPS {
        text.push_str(&format!("  {group:<9} {}\n", commands.join(", ")));
    }
    text.push_str(
        "\n\"vmctl help COMMAND\" shows what a command does, its options and an example;\n\
         \"vmctl --help\" shows a line for each command, and the exit codes.\n\
         First steps: \"vmctl doctor\", \"vmctl run demo.toml\", \"vmctl list\".\n",
    );
    text
}

/// A mistake in the arguments in one line: what is wrong, a tip if there is one, and how the command is used. Help is no
/// mistake.
pub(super) fn usage_error(error: &clap::Error) -> Option<String> {
    if matches!(
        error.kind(),
        ErrorKind::DisplayHelp
            | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
            | ErrorKind::DisplayVersion
    ) {
        return None;
    }
    if let Some(ContextValue::String(typed)) = error.get(ContextKind::InvalidSubcommand)
        && let Some((_, tip)) = TIPS.iter().find(|(name, _)| name == typed)
    {
        return Some(format!("there is no command '{typed}': {tip}"));
    }
    let text = error.to_string();
    let paragraphs = text.split("\n\n").map(|paragraph| {
        let lines = paragraph.lines().map(str::trim);
        lines.collect::<Vec<_>>().join(" ")
    });
    let parts = paragraphs.filter_map(|paragraph| {
        let is_no_use = paragraph.starts_with("For more") || paragraph.contains("as a value, use");
        let part = paragraph.trim_start_matches("error: ");
        let part = part.trim_start_matches("tip: ");
        (!is_no_use && !part.is_empty()).then(|| part.replacen("Usage: ", "usage: ", 1))
    });
    Some(parts.collect::<Vec<_>>().join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_overview_has_every_command_once_on_one_screen() {
        let command = super::super::command();
        let shown = command.get_subcommands().filter(|sub| !sub.is_hide_set());
        let mut names: Vec<_> = shown.map(clap::Command::get_name).collect();
        let mut grouped: Vec<_> = GROUPS.iter().flat_map(|group| group.1).copied().collect();
        names.sort_unstable();
        grouped.sort_unstable();
        assert_eq!(grouped, names);
        let text = overview();
        assert!(text.lines().count() <= 23, "{text}");
        assert!(text.lines().all(|line| line.len() <= 80), "{text}");
    }

    #[test]
    fn tips_are_for_words_that_are_no_commands() {
        let command = super::super::command();
        for (typed, tip) in TIPS {
            assert!(command.find_subcommand(typed).is_none(), "{typed}");
            let error = command.clone().try_get_matches_from(["vmctl", typed]);
            let line = usage_error(&error.unwrap_err()).unwrap();
            assert!(line.contains(typed) && line.ends_with(tip), "{line}");
        }
    }
}
