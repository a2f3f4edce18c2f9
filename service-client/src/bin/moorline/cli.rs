//! The command line and its help. The commands' own files do the work.

use std::ffi::OsString;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, CommandFactory as _, Parser, Subcommand};
use moorline::{DeviceId, Open, ServiceName};
use moorline_proto::bounds::{self, REASON_CHARS};
use moorline_proto::text::Text;

use crate::pair::Pair;
use crate::ssh_words;

const AFTER_HELP: &str = "\
Examples:
  moorline login --join join.txt --token-file token.txt
  moorline device list
  moorline ssh lamp-1
  moorline forward lamp-1 8080:http
  ssh -o ProxyCommand='moorline connect --for-ssh %h ssh' lamp-1

Credentials come from the profile, which `moorline login` writes, or from the variables MOORLINE_JOIN and MOORLINE_TOKEN.
They are never given as arguments: every process on the machine can read those.

Exit codes:
  0  done
  1  failed: the stream was reset or lost, or a file or socket failed
  2  the command line is wrong
  3  refused by the relay or the device; the advice is printed
  4  the relay cannot be reached
  5  the credentials are missing or invalid
After a signal, what is carried is reset, and the program ends by that signal.

MOORLINE_LOG=debug prints details on standard error.";

const LOGIN_HELP: &str = "\
Examples:
  moorline login --join join.txt --token-file token.txt
  moorline-relay token new --state /var/lib/moorline --subject alice | moorline login --join join.txt --token-file -

The join string is what `moorline-relay join` prints; it is not secret, but it says whom to trust. Nothing is sent to the relay.
A profile that is a symbolic link stays one: the file that it leads to is written.";

const DEVICE_HELP: &str = "\
Examples:
  moorline device add lamp-1 --key lamp-1.pub        the key is what `moorline-agent init` printed on the device
  ssh root@lamp-1 moorline-agent init … | moorline device add lamp-1 --key -
  moorline device list --json
  moorline device remove lamp-1";

const FORWARD_HELP: &str = "\
Examples:
  moorline forward lamp-1 8080:http                  http://localhost:8080 is the device's service `http`
  moorline forward lamp-1 2222:ssh 8080:http         several services at once
  moorline forward lamp-1 0.0.0.0:8080:http          for the whole network; think twice
  moorline forward lamp-1 0:http --json              any free port, reported on standard output

Each local connection becomes a stream of its own. If one is refused, the connection is reset and the reason printed. Ctrl-C stops it.
One connection to the relay is kept ready, and those of streams that ended in order are used again: a stream opens in one round trip then.
A token that expires is announced a quarter of an hour before. The profile (or --token-file) is read again then and when the relay refuses the
token as expired: after `moorline login` with a new one, new connections work again.";

const CONNECT_HELP: &str = "\
Examples:
  ssh -o ProxyCommand='moorline connect --for-ssh %h ssh' lamp-1
  printf 'GET / HTTP/1.0\\r\\n\\r\\n' | moorline connect lamp-1 http
  moorline connect lamp-1 backup --wait 10m --reason 'nightly backup' < archive.tar

The end of standard input ends that direction only; the other goes on until the device ends it. The exit code is 0 only if both ended cleanly.
Standard input is read at once, while the stream is opened: what was read is lost if there is no stream.";

const SSH_HELP: &str = "\
Examples:
  moorline ssh lamp-1
  moorline ssh root@lamp-1 uptime
  moorline ssh lamp-1 -L 9000:localhost:9000 -N
  moorline ssh lamp-1 --service ssh-admin --wait 5m
  moorline ssh lamp-1 --timeline true                says how long it took to reach the device

moorline's own options have two dashes. Everything else is ssh's, before the device or behind it, so that other programs can use this as their ssh:
  rsync -e 'moorline ssh' backup.tar root@lamp-1:
  GIT_SSH_COMMAND='moorline ssh' git clone lamp-1:project.git
  scp -S moorline-ssh backup.tar root@lamp-1:        moorline-ssh is a link to moorline: ln -s moorline moorline-ssh

ssh does the rest: keys, known_hosts (under the device's id) and exit codes. A failure is also told to ssh in its own protocol.";

/// Reaches the services of devices behind a Moorline relay, by device id and service name.
#[derive(Debug, Parser)]
#[command(name = "moorline", version, after_help = AFTER_HELP, max_term_width = 110)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) sources: Sources,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Where the credentials come from.
#[derive(Args, Clone, Debug)]
pub(crate) struct Sources {
    /// The profile with join string and token [default: moorline/profile.toml in $XDG_CONFIG_HOME or ~/.config]
    #[arg(long, value_name = "FILE", env = "MOORLINE_PROFILE", global = true)]
    pub(crate) profile: Option<PathBuf>,
    /// A file with the caller's token, instead of the profile's. For login also -, which is standard input
    #[arg(long, value_name = "FILE", global = true)]
    pub(crate) token_file: Option<PathBuf>,
}

/// The command.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Writes the profile: which relay, and your token for it
    #[command(after_help = LOGIN_HELP)]
    Login(Login),
    /// Adds, lists, shows and removes devices
    #[command(after_help = DEVICE_HELP)]
    Device {
        #[command(subcommand)]
        action: DeviceAction,
    },
    /// Listens on local ports and carries each connection to a service of the device
    #[command(after_help = FORWARD_HELP)]
    Forward(Forward),
    /// Connects standard input and output to a service of the device
    #[command(after_help = CONNECT_HELP)]
    Connect(Connect),
    /// Runs ssh to the device through the relay
    #[command(after_help = SSH_HELP)]
    Ssh(Ssh),
}

/// `moorline login`.
#[derive(Args, Debug)]
pub(crate) struct Login {
    /// A file with the join string that `moorline-relay join` prints, or - for standard input
    #[arg(long, value_name = "FILE|-")]
    pub(crate) join: PathBuf,
}

/// `moorline device …`.
#[derive(Debug, Subcommand)]
pub(crate) enum DeviceAction {
    /// Registers a device with its public key
    Add {
        /// The device's id: 1 to 128 of a-z 0-9 - _ .
        id: DeviceId,
        /// A file with its public key (PEM, as `moorline-agent key` prints it), or - for standard input
        #[arg(long, value_name = "FILE|-")]
        key: PathBuf,
    },
    /// Lists the devices that you may see
    List {
        /// One JSON array on standard output
        #[arg(long)]
        json: bool,
    },
    /// Shows everything that is known about one device
    Show {
        /// The device's id
        id: DeviceId,
        /// One JSON object on standard output
        #[arg(long)]
        json: bool,
    },
    /// Removes a device and its keys; it is disconnected
    Remove {
        /// The device's id
        id: DeviceId,
    },
}

/// The options of a request for a stream.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct StreamArgs {
    /// How long to wait for a device that is offline, like 30s or 10m, at most 7d [default: not at all]
    #[arg(long, value_name = "DURATION", value_parser = wait)]
    pub(crate) wait: Option<Duration>,
    /// How long opening may take once the device is online, from 1s to 1d [default: the relay's, usually 60s]
    #[arg(long, value_name = "DURATION", value_parser = deadline)]
    pub(crate) deadline: Option<Duration>,
    /// Why you want the stream; shown to the device and kept in the relay's records
    #[arg(long, value_name = "TEXT", value_parser = reason)]
    pub(crate) reason: Option<Text<REASON_CHARS>>,
    /// Print for each stream how long opening took, and where the time went
    #[arg(long)]
    pub(crate) timeline: bool,
}

/// `moorline forward`.
#[derive(Args, Debug)]
pub(crate) struct Forward {
    /// The device's id
    pub(crate) device: DeviceId,
    /// [ADDRESS:]PORT:SERVICE; the address defaults to localhost, which is 127.0.0.1 and ::1, port 0 is any free one
    #[arg(required = true, value_name = "LOCAL:SERVICE")]
    pub(crate) pairs: Vec<Pair>,
    /// One JSON object per listener on standard output, once it listens; with --timeline also one per stream
    #[arg(long)]
    pub(crate) json: bool,
    /// Idle connections to the relay that are kept for later streams, at most 64; with 0 each stream has one of its own
    #[arg(long, value_name = "COUNT", default_value_t = bounds::IDLE_LEGS, value_parser = clap::value_parser!(u32).range(0..=i64::from(bounds::IDLE_LEGS)))]
    pub(crate) idle_legs: u32,
    #[command(flatten)]
    pub(crate) stream_args: StreamArgs,
}

/// `moorline connect`.
#[derive(Args, Debug)]
pub(crate) struct Connect {
    /// The device's id
    pub(crate) device: DeviceId,
    /// The service's name
    pub(crate) service: ServiceName,
    /// Tell a failure to ssh in its own protocol too, so that it prints it even where it drops a ProxyCommand's standard error
    #[arg(long)]
    pub(crate) for_ssh: bool,
    #[command(flatten)]
    pub(crate) stream_args: StreamArgs,
}

/// `moorline ssh`.
#[derive(Args, Debug)]
pub(crate) struct Ssh {
    /// The service that is an ssh server
    #[arg(long, value_name = "NAME", default_value = "ssh")]
    pub(crate) service: ServiceName,
    #[command(flatten)]
    pub(crate) stream_args: StreamArgs,
    /// The device's id, after the user to log in as if that is not you; ssh's options may stand before it
    #[arg(value_name = "[USER@]DEVICE")]
    pub(crate) login: SshLogin,
    /// Options for ssh, and the command to run there
    #[arg(value_name = "ARGS", trailing_var_arg = true, allow_hyphen_values = true)]
    pub(crate) args: Vec<OsString>,
}

/// `user@device`, or a device alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SshLogin {
    pub(crate) user: Option<String>,
    pub(crate) device: DeviceId,
}

impl FromStr for SshLogin {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (user, device) = text.rsplit_once('@').map_or((None, text), |(user, device)| (Some(user), device));
        if user.is_some_and(|user| user.is_empty() || user.starts_with('-')) {
            return Err("the user before '@' is a name and does not begin with '-'".to_owned()); // ssh would take it for an option
        }
        Ok(Self { user: user.map(str::to_owned), device: device.parse().map_err(|error: moorline::NameError| error.to_string())? })
    }
}

impl Cli {
    /// Parses the command line.
    ///
    /// # Errors
    /// clap's errors and help texts, to be printed.
    pub(crate) fn read(args: impl IntoIterator<Item = OsString>) -> Result<Self, clap::Error> {
        Self::try_parse_from(ssh_words::sorted(&Self::command(), args))
    }
}

/// A span in whole seconds from `min` to `max`, as a number or with units.
fn whole_seconds(text: &str, min: Duration, max: Duration) -> Result<Duration, String> {
    let plain = text.parse().map(Duration::from_secs);
    let duration = plain.or_else(|_| humantime::parse_duration(text)).map_err(|error| format!("{error}; write it like 30s or 10m"))?;
    if !(min..=max).contains(&duration) {
        return Err(format!("it must be from {} to {}", humantime::format_duration(min), humantime::format_duration(max)));
    }
    if duration.subsec_nanos() == 0 { Ok(duration) } else { Err("it must be in whole seconds".to_owned()) }
}

fn wait(text: &str) -> Result<Duration, String> {
    whole_seconds(text, Duration::ZERO, Open::MAX_WAIT)
}

fn deadline(text: &str) -> Result<Duration, String> {
    whole_seconds(text, Open::MIN_DEADLINE, Open::MAX_DEADLINE)
}

fn reason(text: &str) -> Result<Text<REASON_CHARS>, String> {
    Text::new(text).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use clap::error::ErrorKind;

    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::read(std::iter::once("moorline").chain(line.split_whitespace()).map(OsString::from))
    }

    #[test]
    fn the_command_line_is_valid() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_commands_help_has_examples() {
        for command in Cli::command().get_subcommands() {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.starts_with("Examples:\n  "), "{}", command.get_name());
        }
    }

    #[test]
    fn no_option_takes_a_secret_and_no_help_shows_one() {
        let help = Cli::command().render_long_help().to_string();
        assert!(!help.contains("--token "), "{help}");
        parse("device list --token abc").unwrap_err();
    }

    #[test]
    fn forward_takes_several_pairs() {
        let Command::Forward(forward) = parse("forward lamp-1 8080:http 2222:ssh --json --wait 10m").unwrap().command else { panic!() };
        assert_eq!((forward.pairs.len(), forward.json, forward.stream_args.wait), (2, true, Some(Duration::from_secs(600))));
        parse("forward lamp-1").unwrap_err();
        parse("forward Lamp-1 8080:http").unwrap_err();
    }

    #[test]
    fn durations_are_whole_seconds() {
        assert_eq!(wait("90"), Ok(Duration::from_secs(90)));
        assert_eq!(wait("1m 30s"), Ok(Duration::from_secs(90)));
        assert_eq!(wait("0s"), Ok(Duration::ZERO));
        assert!(wait("1500ms").is_err() && wait("soon").is_err() && deadline("0").is_err());
    }

    #[test]
    fn a_duration_out_of_range_is_a_usage_error_that_names_the_range() {
        for huge in ["604801", "8d", "18446744073709551615", "18446744073709551615s", "18446744073709551616", "584942417355y", "99999999y"]
        {
            for option in ["--wait", "--deadline"] {
                for command in [format!("connect lamp-1 ssh {option} {huge}"), format!("ssh {option} {huge} lamp-1")] {
                    let error = parse(&command).unwrap_err();
                    assert_eq!((error.kind(), error.exit_code()), (ErrorKind::ValueValidation, 2), "{command}: {error}");
                }
            }
        }
        assert!(parse("connect lamp-1 ssh --wait 8d").unwrap_err().to_string().contains("from 0s to 7days"));
        assert!(parse("connect lamp-1 ssh --deadline 0").unwrap_err().to_string().contains("from 1s to 1day"));
        parse("connect lamp-1 ssh --wait 7d --deadline 1d").unwrap();
    }

    #[test]
    fn a_reason_has_at_most_256_characters() {
        assert_eq!(reason(&"x".repeat(REASON_CHARS)).unwrap().as_str().len(), REASON_CHARS);
        let too_long = "x".repeat(REASON_CHARS + 1);
        let args = ["moorline", "connect", "lamp-1", "ssh", "--reason", &too_long].map(OsString::from);
        assert_eq!(Cli::read(args).unwrap_err().kind(), ErrorKind::ValueValidation);
    }

    #[test]
    fn arguments_after_the_device_are_passed_to_ssh() {
        let ssh = |line: &str| match parse(line).unwrap().command {
            Command::Ssh(ssh) => ssh,
            other => panic!("{other:?}"),
        };
        let words = |ssh: &Ssh| ssh.args.iter().map(|word| word.to_str().unwrap().to_owned()).collect::<Vec<_>>();

        assert_eq!(words(&ssh("ssh -i key -v lamp-1 uptime")), ["-i", "key", "-v", "uptime"]);
        let plain = ssh("ssh root@lamp-1 -v -L 1:localhost:2 ls --all --service x");
        assert_eq!((plain.login.user.as_deref(), plain.login.device.as_str()), (Some("root"), "lamp-1"));
        assert_eq!(words(&plain), ["-v", "-L", "1:localhost:2", "ls", "--all", "--service", "x"]);

        let ours = ssh("--profile p ssh lamp-1 --service admin --wait 5m -t top");
        assert_eq!((ours.service.as_str(), ours.stream_args.wait), ("admin", Some(Duration::from_secs(300))));
        assert_eq!(words(&ours), ["-t", "top"]);
        for wrong in ["ssh", "ssh Lamp", "ssh @lamp-1"] {
            parse(wrong).unwrap_err();
        }
        assert!("-oProxyCommand=x@lamp-1".parse::<SshLogin>().is_err());
    }
}
