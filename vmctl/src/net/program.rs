//! The programs of other packages that networks are made with.

use std::io::{self, Write};
use std::process::{Command, Output, Stdio};

/// Directories in which programs are searched.
const PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";

/// Runs the program `name` of Debian's package `package` to its end. It reads `input`.
///
/// # Errors
///
/// The program is missing, or can't be started. That it fails is for the caller to see.
pub(super) fn run(
    name: &str,
    package: &str,
    arguments: &[&str],
    input: &str,
) -> io::Result<Output> {
    let mut child = Command::new(name)
        .args(arguments)
        .env("PATH", PATH)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| {
            io::Error::other(match e.kind() {
                io::ErrorKind::NotFound => {
                    format!("the program {name} is missing: install the package {package}")
                }
                _ => format!("{name}: {e}"),
            })
        })?;
    let written = child
        .stdin
        .take()
        .map(|mut stdin| stdin.write_all(input.as_bytes()));
    let output = child.wait_with_output()?;
    // A program that ends early says why.
    if output.status.success() {
        written.unwrap_or(Ok(()))?;
    }
    Ok(output)
}

/// Returns the first line that says something of what a program wrote to standard error.
pub(super) fn first_line(output: &Output) -> Option<String> {
    let text = String::from_utf8_lossy(&output.stderr);
    let line = text.lines().find(|line| !line.trim().is_empty());
    line.map(str::to_owned)
}
