//! `moorline`: reaches the services of devices behind a relay from the shell.
//!
//! One file per command ([`login`], [`device`], [`forward`], [`connect`], [`ssh`]). [`cli`] is the command line, [`environment`] the variables, [`credentials`] selects
//! relay and token, [`open_stream`] opens streams for the commands, [`output`] prints, [`log`] logs, [`exit`] has the exit codes and the advice for each
//! problem.

mod cli;
mod connect;
mod credentials;
mod device;
mod environment;
mod exit;
mod forward;
mod listen;
mod log;
mod login;
mod open_stream;
mod output;
mod pair;
mod signals;
mod ssh;
mod ssh_disconnect;
mod ssh_words;
mod stdio;

use std::process::ExitCode;

use crate::cli::{Cli, Command};
use crate::credentials::Credentials;
use crate::environment::Environment;
use crate::exit::{Exit, Failure};
use crate::output::Output;

fn main() -> ExitCode {
    let cli = Cli::read(std::env::args_os()).unwrap_or_else(|error| error.exit());
    let environment = Environment::read();
    let (output, flush) = Output::new(environment.no_color);
    match log::start(&environment, &output).and_then(|()| run(cli, environment, output.clone())) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            output.failure(&failure);
            drop(flush);
            failure.exit.end()
        }
    }
}

fn run(cli: Cli, environment: Environment, output: Output) -> Result<(), Failure> {
    let credentials = Credentials { sources: cli.sources, environment };
    execute(cli.command, &credentials, output).map_err(|failure| credentials.explain(failure))
}

fn execute(command: Command, credentials: &Credentials, output: Output) -> Result<(), Failure> {
    match command {
        Command::Login(login) => login::run(&login, credentials, &output),
        Command::Device { action } => block_on(device::run(action, credentials, output)),
        Command::Forward(forward) => match block_on(forward::run(forward, credentials, output))? {},
        Command::Connect(connect) => block_on(connect::run(&connect, credentials, output)),
        Command::Ssh(ssh) => match ssh::run(&ssh, &credentials.sources)? {},
    }
}

/// A caller needs one thread only, and is faster with it: no work moves between threads.
fn block_on<T>(command: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::new(Exit::Failed, "cannot start").caused_by(&error))?;
    let result = runtime.block_on(command);
    // A name that is still being resolved must not delay the exit.
    runtime.shutdown_background();
    result
}
