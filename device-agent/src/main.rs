//! The program `moorline-agent`. All of it is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    moorline_agent::cli::main(std::env::args_os())
}
