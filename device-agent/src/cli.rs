//! The command line of the agent: commands, output, exit codes.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use moorline_files::Blocking;
use moorline_proto::failure::{Failure, Style};
use moorline_proto::id::{DeviceId, ServiceName};
use moorline_proto::join::{Join, RelayUrlError};
use moorline_proto::pasted::Form;
use moorline_transport::descriptors;
use tokio::signal::unix::{SignalKind, signal};
use tracing::warn;
use tracing_subscriber::EnvFilter;

use crate::agent::Agent;
use crate::config::Config;
use crate::init::{CONFIG_FILE, NewDevice, init};
use crate::limits::JOIN_BYTES;
use crate::logging::{Log, LogFormat};
use crate::target::{Target, TargetParseError};

const EXAMPLES: &str = "\
Set up a device in three steps:
  moorline-agent init --join join.txt --device lamp-1 --dir /etc/moorline --service ssh=127.0.0.1:22 > lamp-1.pub
  moorline device add lamp-1 --key lamp-1.pub        (with the operator's token)
  moorline-agent run --config /etc/moorline/agent.toml

`moorline-relay join` prints the join string. The private key is generated here and never leaves this machine.";

/// Makes services of this machine reachable through a relay, without an open port.
#[derive(Debug, Parser)]
#[command(name = "moorline-agent", version, max_term_width = 100, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Set up a device: create its key and configuration, print the public key
    Init(InitArgs),
    /// Keep the device online until SIGTERM or SIGINT
    Run(RunArgs),
    /// Print the device's public key (SPKI in PEM), for `moorline device add`
    Key(ConfigArg),
    /// Validate the configuration and the files that it names
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
    /// Folder for configuration and key; created if necessary
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// Service that callers may reach: NAME=host:port or NAME=unix:/path; may be repeated
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
    /// Form of the log lines on standard error
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    log_format: LogFormat,
    /// Log level (error, warn, info, debug, trace), or a filter of tracing-subscriber
    #[arg(long, value_name = "FILTER", default_value = "info")]
    log: String,
}

fn parse_service(text: &str) -> Result<(ServiceName, Target), String> {
    let (name, target) = text.split_once('=').ok_or("expected NAME=TARGET, such as ssh=127.0.0.1:22")?;
    let name = name.parse().map_err(|error: moorline_proto::id::NameError| error.to_string())?;
    Ok((name, target.parse().map_err(|error: TargetParseError| error.to_string())?))
}

/// Runs the program. Exit codes: 0 success, 1 failure, 2 wrong usage.
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
        Err(failure) => {
            print_error(&failure.render("moorline-agent", error_style()));
            ExitCode::FAILURE
        }
    }
}

/// Colours on a terminal, unless `NO_COLOR` is set.
#[allow(clippy::disallowed_methods, reason = "NO_COLOR is read once, here")]
fn error_style() -> Style {
    Style::for_output(&io::stderr(), std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty()))
}

fn print(text: &str) -> Result<(), Failure> {
    let written = Blocking(io::stdout()).write_all(text.as_bytes());
    written.map_err(|error| Failure::of(&error).next("standard output cannot be written: redirect it elsewhere"))
}

fn print_error(text: &str) {
    // There is nowhere to report that this failed.
    Blocking(io::stderr()).write_all(text.as_bytes()).ok();
}

fn load_config(path: &Path) -> Result<Config, Failure> {
    Config::load(path).map_err(|error| Failure::of(&error).next(error.advice()))
}

fn run_init(args: &InitArgs) -> Result<(), Failure> {
    let new = NewDevice { join: read_join(&args.join)?, device: args.device.clone(), services: args.services.clone() };
    let identity = init(&new, &args.dir)
        .map_err(|error| Failure::of(&error).next("give --dir a folder that is writable and contains no device; nothing was changed"))?;
    print(&identity.public().to_pem())?;
    let (device, config) = (&args.device, args.dir.join(CONFIG_FILE));
    print_error(&format!(
        "Created {}. Register the public key above with the relay:\n  moorline device add {device} --key FILE\nThen run:\n  moorline-agent run --config {}\n",
        config.display(),
        config.display()
    ));
    Ok(())
}

fn read_join(path: &Path) -> Result<Join, Failure> {
    let read = |source: &mut dyn Read| {
        let mut text = String::new();
        source.take(JOIN_BYTES).read_to_string(&mut text).map(|_| text)
    };
    let text =
        if path.as_os_str() == "-" { read(&mut Blocking(io::stdin())) } else { File::open(path).and_then(|mut file| read(&mut file)) };
    let text =
        text.map_err(|error| Failure::of(&error).next("give --join a file with the join string that `moorline-relay join` prints, or -"))?;
    let what = || Failure::new(format!("{} does not contain a join string", path.display()));
    Form::JoinString.check(&text).map_err(|error| what().caused_by(&error).next(error.advice()))?;
    text.parse().map_err(|error: RelayUrlError| {
        what().caused_by(&error).next("the join string is one line that begins with https://; `moorline-relay join` prints it")
    })
}

fn run_check(path: &Path) -> Result<(), Failure> {
    let settings = load_config(path)?.settings;
    let names: Vec<&str> = settings.services.iter().map(|service| service.name.as_str()).collect();
    let names = if names.is_empty() { "no services".to_owned() } else { names.join(", ") };
    print(&format!("{}: valid. {} exposes {names} through {}\n", path.display(), settings.device, settings.join.url))
}

fn run_agent(args: &RunArgs) -> Result<(), Failure> {
    let filter =
        EnvFilter::try_new(&args.log).map_err(|error| Failure::of(&error).next("--log takes info, or info,moorline_agent=debug"))?;
    let log = Log::start(args.log_format, filter);
    let result = serve(&args.config.config, &log);
    log.finish();
    result
}

fn serve(config: &Path, log: &Log) -> Result<(), Failure> {
    descriptors::raise_limit();
    let config = load_config(config)?;
    let agent = Agent::new(config.settings, config.policy).map_err(|error| Failure::of(&error).next(error.advice()))?;
    // One thread carries a gigabyte per second, without handing work to another one. The device needs its other cores.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::of(&error).next("the system refused a resource: check its limits"))?;
    let result = runtime.block_on(async {
        tokio::select! {
            result = until_signalled(agent) => result,
            () = log.report_drops() => Ok(()),
        }
    });
    runtime.shutdown_background();
    result.map_err(|error| Failure::of(&error).next("the system refused a signal handler: check its limits"))
}

/// Runs the agent until SIGTERM or SIGINT, and then until it has closed its connections. A second signal ends it at once. SIGHUP, which by
/// default would end it without a word, is logged.
async fn until_signalled(agent: Agent) -> io::Result<()> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let mut hang_up = signal(SignalKind::hangup())?;
    let mut signalled = async || {
        loop {
            tokio::select! {
                _ = terminate.recv() => return,
                _ = interrupt.recv() => return,
                _ = hang_up.recv() => warn!(signal = "SIGHUP", "reloading is not supported; restart the agent to apply changes"),
            }
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
        () = signalled() => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
        assert!(parse_service("ssh=127.0.0.1:22").is_ok());
        for wrong in ["ssh", "SSH=127.0.0.1:22", "ssh=22"] {
            assert!(parse_service(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_join_string_whose_ca_is_not_a_certificate_is_refused_before_anything_is_created() {
        let folder = tempfile::tempdir().unwrap();
        let (join, device) = (folder.path().join("join.txt"), folder.path().join("lamp-1"));
        std::fs::write(&join, "https://relay.test#ca=MAA\n").unwrap();
        let args: [OsString; 8] = [
            "moorline-agent".into(),
            "init".into(),
            "--device".into(),
            "lamp-1".into(),
            "--join".into(),
            join.clone().into(),
            "--dir".into(),
            device.clone().into(),
        ];
        assert_eq!(main(args), ExitCode::FAILURE);
        assert!(read_join(&join).unwrap_err().causes()[0].contains("certificate"));
        assert!(!device.exists());
    }
}
