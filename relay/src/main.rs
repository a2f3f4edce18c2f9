//! The relay as a program. All of it is in the library, so that tests can run it within their own process too.

use std::process::ExitCode;

fn main() -> ExitCode {
    moorline_relay::cli::main(std::env::args_os())
}
