//! The command line of the agent: what can be asked for, what is printed, and with which exit code the program ends.

use std::error::Error;
use std::ffi::OsString;
use std::io::{self, IsTerminal as _, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand, ValueEnum};
use moorline_proto::id::{DeviceId, ServiceName};
use moorline_proto::join::Join;
use moorline_transport::descriptors;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

use crate::agent::Agent;
use crate::config::Config;
use crate::init::{CONFIG_FILE, NewDevice, init};
use crate::target::Target;

const EXAMPLES: &str = "\
A device in three steps:
  moorline-agent init --join join.txt --device lamp-1 --dir /etc/moorline --service ssh=127.0.0.1:22 > lamp-1.pub
  moorline device add lamp-1 --key lamp-1.pub        (where the operator's token is)
  moorline-agent run --config /etc/moorline/agent.toml

The join string comes from `moorline-relay init`. The key is made here and never leaves this machine.";

/// Makes services of this machine reachable through a relay, by device id, without an open port.
#[derive(Debug, Parser)]
#[command(name = "moorline-agent", version, max_term_width = 100, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a device: its key, its configuration, the relay's CA; prints the public key
    Init(InitArgs),
    /// Keep the device online until SIGTERM or SIGINT
    Run(RunArgs),
    /// Print the device's public key (SPKI in PEM), for `moorline device add`
    Key(ConfigArg),
    /// Read the configuration and the files that it names, and say whether they are good
    Check(ConfigArg),
}

#[derive(Debug, Args)]
struct InitArgs {
    /// File with the join string, `-` for standard input
    #[arg(long, value_name = "FILE")]
    join: PathBuf,
    /// The device's id: a-z 0-9 - _ .
    #[arg(long, value_name = "ID")]
    device: DeviceId,
    /// Folder for configuration and key; made where it is missing
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// What callers may reach: NAME=host:port or NAME=unix:/path; can be given again
    #[arg(long = "service", value_name = "NAME=TARGET", value_parser = parse_service)]
    services: Vec<(ServiceName, Target)>,
}

#[derive(Debug, Args)]
struct ConfigArg {
    /// The configuration file
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
}

#[derive(Debug, Args)]
struct RunArgs {
    #[command(flatten)]
    config: ConfigArg,
    /// How log lines look, on standard error
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    log_format: LogFormat,
    /// What is logged: error, warn, info, debug, trace, or a filter of tracing-subscriber
    #[arg(long, value_name = "FILTER", default_value = "info")]
    log: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

fn parse_service(text: &str) -> Result<(ServiceName, Target), String> {
    let (name, target) = text.split_once('=').ok_or("NAME=TARGET, like ssh=127.0.0.1:22")?;
    let name = name.parse().map_err(|error: moorline_proto::id::NameError| error.to_string())?;
    Ok((name, target.parse().map_err(|error: crate::target::TargetParseError| error.to_string())?))
}

/// Runs the program. 0: done; 1: failed; 2: called wrongly.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => {
            error.print().ok();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    let result = match cli.command {
        Command::Init(args) => run_init(&args),
        Command::Key(args) => load_config(&args.config).and_then(|config| print(&config.settings.identity.public().to_pem())),
        Command::Check(args) => run_check(&args.config),
        Command::Run(args) => run_agent(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            print_error(&error.rendered());
            ExitCode::FAILURE
        }
    }
}

/// What went wrong, and what to do about it.
struct Failure {
    error: Box<dyn Error>,
    advice: &'static str,
}

impl Failure {
    fn new(error: impl Into<Box<dyn Error>>, advice: &'static str) -> Self {
        Self { error: error.into(), advice }
    }

    fn rendered(&self) -> String {
        let mut text = format!("moorline-agent: {}", self.error);
        let mut source = self.error.source();
        while let Some(error) = source {
            text.push_str(&format!("\n  because: {}", error.to_string().trim_end().replace('\n', "\n    ")));
            source = error.source();
        }
        format!("{text}\n  next: {}\n", self.advice)
    }
}

fn print(text: &str) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).map_err(|error| Failure::new(error, "give it somewhere to print to"))
}

fn print_error(text: &str) {
    // There is nowhere left to complain.
    io::stderr().lock().write_all(text.as_bytes()).ok();
}

fn load_config(path: &Path) -> Result<Config, Failure> {
    Config::load(path)
        .map_err(|error| Failure::new(error, "correct the configuration; `moorline-agent check --config FILE` looks at it again"))
}

fn run_init(args: &InitArgs) -> Result<(), Failure> {
    let mut text = String::new();
    let read = if args.join.as_os_str() == "-" {
        io::stdin().lock().take(64 * 1024).read_to_string(&mut text).map(drop)
    } else {
        std::fs::read_to_string(&args.join).map(|read| text = read)
    };
    read.map_err(|error| Failure::new(error, "give --join a file with the join string that `moorline-relay init` printed, or -"))?;
    let join: Join = text.parse().map_err(|error: moorline_proto::join::RelayUrlError| {
        Failure::new(error, "the join string is one line that begins with https://; `moorline-relay init` prints it")
    })?;
    let new = NewDevice { join, device: args.device.clone(), services: args.services.clone() };
    let identity =
        init(&new, &args.dir).map_err(|error| Failure::new(error, "give --dir a folder that may be written and holds no device"))?;
    print(&identity.public().to_pem())?;
    let (device, config) = (&args.device, args.dir.join(CONFIG_FILE));
    print_error(&format!(
        "Made {}. The public key above belongs to the relay:\n  moorline device add {device} --key FILE\nThen run:\n  moorline-agent run --config {}\n",
        config.display(),
        config.display()
    ));
    Ok(())
}

fn run_check(path: &Path) -> Result<(), Failure> {
    let settings = load_config(path)?.settings;
    let names: Vec<&str> = settings.services.iter().map(|service| service.name.as_str()).collect();
    let names = if names.is_empty() { "nothing".to_owned() } else { names.join(", ") };
    print(&format!("{}: good. {} exposes {names} through {}\n", path.display(), settings.device, settings.join.url))
}

fn run_agent(args: &RunArgs) -> Result<(), Failure> {
    let filter = EnvFilter::try_new(&args.log).map_err(|error| Failure::new(error, "--log takes info, or info,moorline_agent=debug"))?;
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).with_ansi(io::stderr().is_terminal());
    match args.log_format {
        LogFormat::Text => log.with_target(false).init(),
        LogFormat::Json => log.json().flatten_event(true).init(),
    }
    descriptors::raise_limit();
    let config = load_config(&args.config.config)?;
    let agent = Agent::new(config.settings, config.policy).map_err(|error| Failure::new(error, "see ca_file in the configuration"))?;
    // One thread carries a gigabyte in a second, and hands nothing to another: a device has better use for its cores.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::new(error, "this is a fault of the machine: see its limits"))?;
    let done = runtime.block_on(async {
        let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let mut signalled = async || {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        };
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let mut running = std::pin::pin!(agent.run(async { drop(stopped.await) }));
        tokio::select! {
            () = &mut running => return Ok(()),
            () = signalled() => drop(stop.send(())),
        }
        tokio::select! {
            () = running => {}
            // The second signal ends at once.
            () = signalled() => {}
        }
        Ok::<(), io::Error>(())
    });
    runtime.shutdown_background();
    done.map_err(|error| Failure::new(error, "this is a fault of the machine: it hands out no signals"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
        assert!(parse_service("ssh=127.0.0.1:22").is_ok());
        for wrong in ["ssh", "SSH=127.0.0.1:22", "ssh=22"] {
            assert!(parse_service(wrong).is_err(), "{wrong}");
        }
    }
}
