//! `vmctl`: one binary that is the command line, the daemon and each VM's worker.

use std::process::ExitCode;

fn main() -> ExitCode {
    vmctl::cli::main()
}
