//! Prints what is generated from the ABI's definitions.

use std::io::Write;
use std::process::ExitCode;

use guest_proto::codegen;

const USAGE: &str = "usage: abi c-header | hypercalls | layout";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let text = match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["c-header"] => codegen::c_header(),
        ["hypercalls"] => codegen::hypercall_reference(),
        ["layout"] => codegen::layout(),
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match std::io::stdout().write_all(text.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("abi: {error}");
            ExitCode::FAILURE
        }
    }
}
