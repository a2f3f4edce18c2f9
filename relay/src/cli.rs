//! The command line: arguments, output, exit codes.
//!
//! Does not own: the work itself ([`crate::init`], [`crate::join_string`], [`crate::serve`], [`crate::token`]).

use std::ffi::OsString;
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Parser, Subcommand, ValueEnum};
use moorline_files::Blocking;
use moorline_proto::claims::{AccessRule, Action, Pattern};
use moorline_proto::failure::{Failure, Style};
use moorline_proto::id::{Issuer, NodeId, Subject};
use moorline_proto::join::Join;
use serde_json::json;
use tracing_subscriber::EnvFilter;

use crate::clock::Clock;
use crate::config::TlsFiles;
use crate::init::{CreatedRelay, Init, init};
use crate::join_string::{CA_FILE, join};
use crate::logging;
use crate::serve::{Serve, serve};
use crate::token::{IssuedToken, MAX_LIFETIME, TokenRequest, mint};

/// A relay that carries streams (ssh, HTTP, anything on TCP) to devices which only dial out.
#[derive(Debug, Parser)]
#[command(name = "moorline-relay", version, max_term_width = 100, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
A relay in three steps:
  moorline-relay init --state /var/lib/moorline --name relay.example.com
  moorline-relay serve --state /var/lib/moorline
  moorline-relay token new --state /var/lib/moorline --subject alice --device 'lamp-*' --service ssh

`init` prints a join string, which devices and callers need to find the relay (moorline-agent
init, moorline login), and a token for you, with which you add devices (moorline device add).
`join` prints the join string again, `token new` another token.";

#[derive(Debug, Subcommand)]
enum Command {
    /// Create a relay's state folder: configuration, certificate, keys, database
    #[command(after_help = INIT_EXAMPLES)]
    Init(InitArgs),
    /// Run the relay until SIGTERM or SIGINT
    #[command(after_help = SERVE_EXAMPLES)]
    Serve(Box<ServeArgs>),
    /// Print the join string again, which devices and callers need to find the relay
    #[command(after_help = JOIN_EXAMPLES)]
    Join(JoinArgs),
    /// Issue tokens to callers
    #[command(subcommand)]
    Token(TokenCommand),
}

const INIT_EXAMPLES: &str = "\
Examples:
  With a CA of its own, which devices and callers get in the join string:
    moorline-relay init --state /var/lib/moorline --name relay.example.com --name 192.0.2.1
  With a certificate that machines already trust:
    moorline-relay init --state /var/lib/moorline --name relay.example.com \\
      --certificate /etc/letsencrypt/live/relay.example.com/fullchain.pem \\
      --key /etc/letsencrypt/live/relay.example.com/privkey.pem
  For programs, the token into a file that only you can read:
    (umask 077 && moorline-relay init --state ./state --name localhost \\
      --listen 127.0.0.1:8443 --json > relay.json)";

const SERVE_EXAMPLES: &str = "\
Examples:
  moorline-relay serve --state /var/lib/moorline
  moorline-relay serve --state /var/lib/moorline --log-format json --log info,moorline_relay=debug";

const JOIN_EXAMPLES: &str = "\
Examples:
  moorline-relay join --state /var/lib/moorline > join.txt
  moorline-relay join --state /var/lib/moorline --json

The join string is no secret and grants no access, but it says whom to trust: hand it over by a way
that nobody can change. It has the first of `names` in relay.toml, the first of `ports` (or the port
of the first listener), and the CA in ca.pem if the relay's certificate is its own.";

const TOKEN_EXAMPLES: &str = "\
Examples:
  Alice may reach ssh on every lamp for twelve hours:
    moorline-relay token new --state /var/lib/moorline --subject alice \\
      --device 'lamp-*' --service ssh > alice.token
  A program that adds and removes devices, for a year:
    moorline-relay token new --state /var/lib/moorline --subject provisioning \\
      --allow device.read,device.write --lifetime 365days

The token is a secret. It cannot be revoked before it expires: keep lifetimes short.";

#[derive(Debug, Args)]
struct InitArgs {
    /// Folder to create; one that already holds a relay is refused
    #[arg(long, value_name = "DIR")]
    state: PathBuf,
    /// Host name or IP address that devices and callers dial; the first goes into the join string
    #[arg(long = "name", value_name = "HOST", required = true)]
    names: Vec<String>,
    /// Address and port to listen on; the port goes into the join string
    #[arg(long, value_name = "ADDR:PORT", default_value = "0.0.0.0:443")]
    listen: SocketAddr,
    /// This process among the relay's nodes
    #[arg(long, default_value = "n1")]
    node: NodeId,
    /// Short name of the relay's own token issuer, the first part of a caller's name: relay:alice
    #[arg(long, default_value = "relay")]
    issuer: Issuer,
    /// Certificate to use instead of one of the relay's own CA: PEM, the whole chain
    #[arg(long, value_name = "FILE", requires = "key")]
    certificate: Option<PathBuf>,
    /// Private key of the certificate: PEM
    #[arg(long, value_name = "FILE", requires = "certificate")]
    key: Option<PathBuf>,
    /// Lifetime of the operator's token
    #[arg(long, value_name = "DURATION", default_value = "30days", value_parser = lifetime)]
    operator_lifetime: Duration,
    /// Print one JSON object: join, token, ca_file
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct ServeArgs {
    /// Folder that `init` created; one relay at a time runs on it
    #[arg(long, value_name = "DIR")]
    state: PathBuf,
    /// Listen here instead of on the first listener's address
    #[arg(long, value_name = "ADDR:PORT")]
    listen: Option<SocketAddr>,
    /// Format of the log, which goes to stderr
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    log_format: LogFormat,
    /// What to log: a level, or levels by module
    #[arg(long, value_name = "FILTER", default_value = "info")]
    log: EnvFilter,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LogFormat {
    /// For people
    Text,
    /// One JSON object a line
    Json,
}

#[derive(Debug, Args)]
struct JoinArgs {
    /// Folder that `init` created; the relay need not be running
    #[arg(long, value_name = "DIR")]
    state: PathBuf,
    /// Print one JSON object: join, ca_file
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum TokenCommand {
    /// Issue a token and print it
    #[command(after_help = TOKEN_EXAMPLES)]
    New(TokenArgs),
}

#[derive(Debug, Args)]
struct TokenArgs {
    /// Folder that `init` created; the relay need not be running
    #[arg(long, value_name = "DIR")]
    state: PathBuf,
    /// Who it is for; logs and devices are told this name
    #[arg(long, value_name = "NAME")]
    subject: Subject,
    /// What it allows
    #[arg(long, value_name = "ACTION", value_delimiter = ',', num_args = 1.., value_parser = actions())]
    #[arg(default_value = "stream.open,device.read")]
    allow: Vec<Action>,
    /// On which devices; * matches any characters
    #[arg(long = "device", value_name = "PATTERN", value_delimiter = ',', num_args = 1.., default_value = "*")]
    devices: Vec<Pattern>,
    /// To which services; * matches any characters
    #[arg(long = "service", value_name = "PATTERN", value_delimiter = ',', num_args = 1.., default_value = "*")]
    services: Vec<Pattern>,
    /// Lifetime, at most 100years
    #[arg(long, value_name = "DURATION", default_value = "12h", value_parser = lifetime)]
    lifetime: Duration,
    /// Print one JSON object: token, expires_at
    #[arg(long)]
    json: bool,
}

/// Parses an action. The error lists every action.
fn actions() -> impl TypedValueParser<Value = Action> {
    PossibleValuesParser::new(Action::ALL.iter().map(|action| action.as_str())).try_map(|word| word.parse())
}

fn lifetime(text: &str) -> Result<Duration, String> {
    let time = humantime::parse_duration(text).map_err(|error| format!("{error} (like 12h or 30days)"))?;
    match time {
        time if time.as_secs() == 0 => Err("a token lives at least one second".to_owned()),
        time if time > MAX_LIFETIME => Err(format!("a token lives at most {}", humantime::format_duration(MAX_LIFETIME))),
        time => Ok(time),
    }
}

/// Runs the program. Exit code 0: done; 1: failed; 2: usage error.
pub fn main(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => {
            // Help goes to stdout and ends with 0, usage errors to stderr with 2. If this fails, there is nobody left to tell.
            error.print().ok();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    match run(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            // If this fails, there is nobody left to tell.
            Blocking(io::stderr()).write_all(failure.render("moorline-relay", error_style()).as_bytes()).ok();
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<(), Failure> {
    let clock = Clock::system();
    match command {
        Command::Init(args) => {
            let (state, json) = (args.state.clone(), args.json);
            let created = in_runtime(init(&args.into(), &clock))?.map_err(|error| Failure::of(&error).next(error.advice()))?;
            print(&if json { created_json(&created) } else { created_text(&state, &created) })
        }
        Command::Serve(args) => {
            let failed = |error| Failure::of(&error).next("see this user's limits of threads (ulimit -u)");
            let _logging = logging::init(args.log_format.into(), args.log).map_err(failed)?;
            let options = Serve { state: args.state, listen: args.listen };
            let lock = in_runtime(serve(&options, clock))?.map_err(|error| Failure::of(&error).next(error.advice()))?;
            drop(lock); // the runtime has ended: nothing uses the folder any more
            Ok(())
        }
        Command::Join(args) => {
            let join = join(&args.state, &clock).map_err(|error| Failure::of(&error).next(error.advice()))?;
            print(&if args.json { join_json(&args.state, &join) } else { join.to_string() })
        }
        Command::Token(TokenCommand::New(args)) => {
            let (state, json) = (args.state.clone(), args.json);
            let issued = mint(&state, &args.into(), clock.now()).map_err(|error| Failure::of(&error).next(error.advice()))?;
            print(&issued_text(&issued, json))
        }
    }
}

/// How long the runtime's threads get to end after the work is done.
const RUNTIME_SHUTDOWN_TIMEOUT: Duration = Duration::from_millis(500);

fn in_runtime<T>(work: impl Future<Output = T>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::of(&error).next("check this user's limits (ulimit -a)"))?;
    let done = runtime.block_on(work);
    runtime.shutdown_timeout(RUNTIME_SHUTDOWN_TIMEOUT);
    Ok(done)
}

impl From<LogFormat> for logging::LogFormat {
    fn from(format: LogFormat) -> Self {
        match format {
            LogFormat::Text => Self::Text,
            LogFormat::Json => Self::Json,
        }
    }
}

impl From<InitArgs> for Init {
    fn from(args: InitArgs) -> Self {
        Self {
            state: args.state,
            names: args.names,
            listen: args.listen,
            node: args.node,
            issuer: args.issuer,
            own: args.certificate.zip(args.key).map(|(certificate, key)| TlsFiles { certificate, key }),
            operator_lifetime: args.operator_lifetime,
        }
    }
}

impl From<TokenArgs> for TokenRequest {
    fn from(args: TokenArgs) -> Self {
        let access = AccessRule { actions: args.allow, devices: args.devices, services: args.services };
        Self { subject: args.subject, access, lifetime: args.lifetime }
    }
}

fn created_json(created: &CreatedRelay) -> String {
    // The token is for the operator who ran the command.
    json!({ "join": created.join.to_string(), "token": created.token.reveal(), "ca_file": created.ca_file }).to_string()
}

fn created_text(state: &Path, created: &CreatedRelay) -> String {
    let state = state.display();
    format!(
        "A relay is ready in {state}.\n\n\
         Join string. Devices and callers need it to find the relay and to verify its identity; it grants no access:\n\n{}\n\n\
         Your token. It is a secret and allows everything until {}:\n\n{}\n\n\
         Next:\n  moorline-relay serve --state {state}\n  moorline login --join FILE --token-file FILE    (each put into a file of its own)",
        created.join,
        created.expires_at,
        created.token.reveal(), // for the operator who ran the command
    )
}

fn join_json(state: &Path, join: &Join) -> String {
    json!({ "join": join.to_string(), "ca_file": join.ca.as_ref().map(|_| state.join(CA_FILE)) }).to_string()
}

fn issued_text(issued: &IssuedToken, as_json: bool) -> String {
    let token = issued.token.reveal(); // for the operator who ran the command
    if as_json { json!({ "token": token, "expires_at": issued.expires_at }).to_string() } else { token.to_owned() }
}

/// Colours on a terminal, unless `NO_COLOR` is set.
#[allow(clippy::disallowed_methods, reason = "NO_COLOR is read once, here")]
fn error_style() -> Style {
    Style::for_output(&io::stderr(), std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty()))
}

/// Prints the one thing that was asked for.
fn print(text: &str) -> Result<(), Failure> {
    let printed = Blocking(io::stdout()).write_all(format!("{text}\n").as_bytes());
    printed.map_err(|error| Failure::of(&error).next("check where standard output goes: the output is lost"))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parse(line: &str) -> Result<Command, clap::Error> {
        Cli::try_parse_from(line.split(' ')).map(|cli| cli.command)
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_token_without_options_grants_what_most_callers_need() {
        let token = |line: &str| match parse(&format!("moorline-relay token new --state s --subject alice {line}")) {
            Ok(Command::Token(TokenCommand::New(args))) => TokenRequest::from(args),
            other => panic!("{other:?}"),
        };
        let most = token("--lifetime 12h");
        assert_eq!(most.access.actions, [Action::StreamOpen, Action::DeviceRead]);
        assert_eq!((most.access.devices, most.access.services), (vec![Pattern::any()], vec![Pattern::any()]));
        assert_eq!(most.lifetime, Duration::from_secs(12 * 60 * 60));
        let narrow = token("--allow stream.open --device lamp-* door-1 --device gate --service ssh,http");
        assert_eq!((narrow.access.actions.len(), narrow.access.devices.len(), narrow.access.services.len()), (1, 3, 2));
    }

    #[test]
    fn a_new_relay_listens_everywhere_and_has_names() {
        let Ok(Command::Init(args)) = parse("moorline-relay init --state s --name a.example --name 192.0.2.1") else { panic!() };
        let wanted = Init::from(args);
        assert_eq!((wanted.listen.to_string().as_str(), wanted.names.len()), ("0.0.0.0:443", 2));
        assert_eq!((wanted.node.as_str(), wanted.issuer.as_str(), wanted.own), ("n1", "relay", None));
        assert_eq!(wanted.operator_lifetime, Duration::from_secs(30 * 24 * 60 * 60));
    }

    #[test]
    fn an_invalid_value_is_a_usage_error_that_describes_valid_ones() {
        for (line, words) in [
            ("moorline-relay init --state s", "--name"),
            ("moorline-relay init --state s --name a --certificate c.pem", "--key"),
            ("moorline-relay serve --state s --listen localhost", "--listen"),
            ("moorline-relay serve --state s --log-format xml", "json"),
            ("moorline-relay token new --state s --subject a --allow everything", "stream.open"),
            ("moorline-relay token new --state s --subject a --lifetime 0s", "one second"),
            ("moorline-relay token new --state s --subject a --lifetime 101years", "100years"),
            ("moorline-relay token new --state s --subject a --lifetime 18446744073709551615s", "100years"),
            ("moorline-relay token new --state s --subject a --lifetime 18446744073709551615years", "12h"),
            ("moorline-relay init --state s --name a --operator-lifetime 18446744073709551615s", "100years"),
        ] {
            let error = parse(line).unwrap_err();
            assert!(error.exit_code() == 2 && error.to_string().contains(words), "{line}: {error}");
        }
    }
}
