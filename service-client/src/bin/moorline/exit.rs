//! The program's exit codes, and for each problem what to do next.

use std::error::Error;
use std::io;
use std::process::ExitCode;

use moorline::timeline::describe_steps;
use moorline::{DialError, Problem, ProblemCode};
use moorline_proto::failure::Failure as Report;

use crate::signals::ShutdownSignal;

/// The exit codes, as listed by `moorline --help`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// The stream was reset or lost, or a file or socket failed.
    Failed,
    /// The command line is wrong.
    Usage,
    /// The relay or the device refused the request.
    Refused,
    /// The relay cannot be reached.
    Unreachable,
    /// The credentials are missing or invalid.
    Credentials,
    /// A signal asked for the end.
    Signal(ShutdownSignal),
}

impl Exit {
    /// The exit code of the process. For a signal this does not return: the process ends by the signal itself. Nothing may be left to do.
    pub(crate) fn end(self) -> ExitCode {
        ExitCode::from(match self {
            Self::Failed => 1,
            Self::Usage => 2,
            Self::Refused => 3,
            Self::Unreachable => 4,
            Self::Credentials => 5,
            Self::Signal(signal) => {
                signal.end_process();
                signal.exit_code()
            }
        })
    }
}

/// What went wrong, for the user, and the exit code that follows from it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use = "a failure that nobody prints is lost"]
pub(crate) struct Failure {
    pub(crate) exit: Exit,
    /// Nothing is printed without it.
    pub(crate) report: Option<Report>,
    /// Whether the relay refused the token (401).
    pub(crate) is_token_refused: bool,
}

impl Failure {
    pub(crate) fn new(exit: Exit, what: impl Into<String>) -> Self {
        Self { exit, report: Some(Report::new(what)), is_token_refused: false }
    }

    /// A failure that needs no message.
    pub(crate) fn silent() -> Self {
        Self { exit: Exit::Failed, report: None, is_token_refused: false }
    }

    /// The end that a signal asked for.
    pub(crate) fn interrupted(signal: ShutdownSignal) -> Self {
        Self { exit: Exit::Signal(signal), ..Self::silent() }
    }

    /// The relay cannot be reached.
    pub(crate) fn unreachable(what: &str, error: &DialError) -> Self {
        let next = match error {
            DialError::Resolve { .. } => "check the host name in the profile, and this machine's DNS",
            DialError::Connect { .. } | DialError::Deadline { .. } => {
                "check that the relay is running and that no firewall blocks its port"
            }
            DialError::Tls { .. } => {
                let failure = Self::new(Exit::Unreachable, format!("{what}: the relay cannot be reached")).caused_by(error);
                let unknown = || "check any proxy or firewall between here and the relay, and the relay's log".to_owned();
                return failure.next(error.tls_fault().map_or_else(unknown, |fault| fault.advice()));
            }
            DialError::Http(_) | DialError::Body(_) | DialError::Upgrade(_) | DialError::Refused(_) => {
                "check that the address in the profile is a Moorline relay, and any proxy in front of it"
            }
            DialError::Request(_) => "check the names and the token",
            DialError::NoDescriptors => {
                let failure = Self::new(Exit::Failed, format!("{what}: too many open files")).caused_by(error);
                return failure.next("raise this shell's limit of open files (`ulimit -n`), or close some connections");
            }
        };
        Self::new(Exit::Unreachable, format!("{what}: the relay cannot be reached")).caused_by(error).next(next)
    }

    /// The system refused to install the handlers of signals.
    pub(crate) fn no_signals(error: &io::Error) -> Self {
        Self::new(Exit::Failed, "cannot catch signals").caused_by(error)
    }

    /// Adds a cause in words.
    pub(crate) fn because(self, cause: impl Into<String>) -> Self {
        Self { report: self.report.map(|report| report.because(cause)), ..self }
    }

    /// Adds an error and its sources as causes.
    pub(crate) fn caused_by(self, error: &(dyn Error + 'static)) -> Self {
        Self { report: self.report.map(|report| report.caused_by(error)), ..self }
    }

    /// Sets the advice.
    pub(crate) fn next(self, advice: impl Into<String>) -> Self {
        Self { report: self.report.map(|report| report.next(advice)), ..self }
    }

    #[cfg(test)]
    pub(crate) fn what(&self) -> &str {
        self.report.as_ref().map_or("", Report::what)
    }

    #[cfg(test)]
    pub(crate) fn causes(&self) -> &[String] {
        self.report.as_ref().map_or(&[], Report::causes)
    }

    #[cfg(test)]
    pub(crate) fn advice(&self) -> &str {
        self.report.as_ref().and_then(Report::advice).unwrap_or_default()
    }

    /// The relay or the device refused `what`.
    pub(crate) fn refused(what: &str, problem: &Problem) -> Self {
        let known = problem.known_code();
        let exit = if problem.status == 401 { Exit::Credentials } else { Exit::Refused };
        let title = known.map_or(problem.title.as_str(), |code| code.title());
        let mut failure = Self::new(exit, format!("{what}: {title} ({})", problem.code));
        failure.is_token_refused = problem.status == 401;
        if !problem.detail.is_empty() && problem.detail != title {
            failure = failure.because(problem.detail.clone());
        }
        if let Some(words) = &problem.device_detail {
            failure = failure.because(format!("the device says: {words}"));
        }
        if let Some(last_seen) = problem.last_seen {
            failure = failure.because(format!("the device was last seen at {last_seen}"));
        }
        if let Some(steps) = problem.timeline.as_ref().and_then(describe_steps) {
            failure = failure.because(format!("it went as far as: {steps}"));
        }
        if let Some(stream) = problem.stream {
            failure = failure.because(format!("the stream id in the logs of relay and device is {stream}"));
        }
        let again = problem.retry_after_s.map(|seconds| format!("try again in {seconds} s"));
        match (known.map(advice), again) {
            (Some(advice), Some(again)) => failure.next(format!("{advice}; {again}")),
            (Some(advice), None) => failure.next(advice),
            (None, Some(again)) => failure.next(again),
            (None, None) => failure.next("this version of moorline does not know the code; a newer one may"),
        }
    }
}

/// What to do about a problem.
pub(crate) const fn advice(code: ProblemCode) -> &'static str {
    match code {
        ProblemCode::Malformed => "check the names that you gave; if they are right, compare the versions of moorline and the relay",
        ProblemCode::TokenMissing => "log in with `moorline login`, or set MOORLINE_TOKEN",
        ProblemCode::TokenInvalid => {
            "check that the token is for this relay; the operator makes one with `moorline-relay token new`, `moorline login` keeps it"
        }
        ProblemCode::TokenExpired => {
            "ask the relay's operator for a new token (`moorline-relay token new`) and log in with it; a `moorline forward` that runs takes it"
        }
        ProblemCode::TokenNotYetValid => "compare the clocks of the relay and of whoever issued the token, or wait until it becomes valid",
        ProblemCode::Forbidden => "ask the relay's operator for a token that allows this action on this device and service",
        ProblemCode::RejectedByDevice => "the rules are in the device's own configuration: ask whoever looks after the device",
        ProblemCode::OriginNotAllowed => "the operator lists the origins of web pages in relay.toml, under `origins`",
        ProblemCode::Killed => "an operator ended it on purpose: ask why before you try again",
        ProblemCode::Revoked => "ask the relay's operator whether you or the device should be allowed again",
        ProblemCode::DeviceUnknown => "compare the id with `moorline device list`; a device that your token does not cover looks the same",
        ProblemCode::ServiceNotExposed => {
            "`moorline device show` lists the device's services; they are set in agent.toml on the device, under [services]"
        }
        ProblemCode::StreamUnknown => "negotiate a new stream: the relay does not know this one, or the token belongs to another",
        ProblemCode::NoSuchRoute => "check that the address in the profile is a Moorline relay, and as new as this moorline",
        ProblemCode::MethodNotAllowed => "compare the versions of moorline and the relay",
        ProblemCode::DeviceOffline => {
            "check that the device has power, network and a running moorline-agent, or wait for it with --wait 10m"
        }
        ProblemCode::TokenUsed => "open a new stream: this one has been joined",
        ProblemCode::Conflict => "look at the device with `moorline device show`, and remove it first if it should be replaced",
        ProblemCode::StreamExpired => "open a new stream: this one has ended",
        ProblemCode::TooLarge => "shorten the reason or the data that go with the request",
        ProblemCode::UpgradeRequired => "a proxy between here and the relay drops WebSocket upgrades: configure it to pass them",
        ProblemCode::RateLimited => "send fewer requests",
        ProblemCode::TooManyStreams => "close streams that are not needed, or ask the operator to raise `streams` or `streams_per_device`",
        ProblemCode::DeviceBusy => "the device takes no more streams now: close some of them, or try again later",
        ProblemCode::Internal => "give the stream id and the time to the relay's operator, whose log has the cause",
        ProblemCode::TargetRefused => "start the service on the device; nothing listens at the target that agent.toml names",
        ProblemCode::TargetTimeout => "the service's target does not answer the device: check its host, its firewall and its load",
        ProblemCode::TargetUnreachable => "check the target's name and address in agent.toml on the device, and its routes",
        ProblemCode::DeviceFailed => "check the agent's log on the device: descriptors, permissions on the target's socket",
        ProblemCode::Draining => "try again: another node of the relay takes over, or this one comes back",
        ProblemCode::Overloaded => "try again later; if this lasts, the operator has to add nodes or raise limits",
        ProblemCode::DirectoryUnavailable => "try again; if this lasts, the operator has to check the relay's database",
        ProblemCode::HandshakeTimeout => "the steps above show what was slow; try again, with a longer --deadline if the link is slow",
        ProblemCode::DeviceUnresponsive => {
            "the device's connection is dead and it will reconnect by itself: try again in a minute, or with --wait 2m"
        }
    }
}

#[cfg(test)]
mod tests {
    use moorline::Millis;

    use moorline::Timeline;

    use super::*;

    #[test]
    fn every_problem_has_advice_of_its_own() {
        let mut seen = std::collections::BTreeMap::new();
        for &code in ProblemCode::ALL {
            let advice = advice(code);
            assert!((10..160).contains(&advice.len()), "{code}: {} characters", advice.len());
            assert!(!advice.ends_with('.') && !advice.contains('\n'), "{code}");
            assert_eq!(seen.insert(advice, code), None, "{code}");
        }
    }

    #[test]
    fn a_refusal_contains_what_is_known() {
        let mut problem = Problem::new(ProblemCode::HandshakeTimeout, "the device did not join");
        problem.device_detail = Some("no".to_owned());
        problem.retry_after_s = Some(3);
        problem.timeline = Some(Timeline {
            offered_ms: Some(Millis::from_millis(4)),
            device_alive_ms: Some(Millis::from_millis(9)),
            ..Timeline::default()
        });
        let failure = Failure::refused("no stream to lamp-1/ssh", &problem);

        assert_eq!(failure.exit, Exit::Refused);
        assert_eq!(failure.what(), "no stream to lamp-1/ssh: the stream was not opened in time (handshake_timeout)");
        assert_eq!(
            failure.causes(),
            ["the device did not join", "the device says: no", "it went as far as: offered 4 ms, device alive 9 ms"]
        );
        assert!(failure.advice().ends_with("; try again in 3 s"));
    }

    #[test]
    fn invalid_tokens_are_credential_errors() {
        for &code in ProblemCode::ALL {
            let token = matches!(
                code,
                ProblemCode::TokenMissing | ProblemCode::TokenInvalid | ProblemCode::TokenExpired | ProblemCode::TokenNotYetValid
            );
            let exit = if token { Exit::Credentials } else { Exit::Refused };
            assert_eq!(Failure::refused("x", &Problem::new(code, "y")).exit, exit, "{code}");
        }
    }

    #[test]
    fn an_unknown_code_is_shown_unchanged() {
        let problem =
            Problem { code: "moon_phase".to_owned(), title: "wrong moon".to_owned(), ..Problem::new(ProblemCode::Conflict, "wait") };
        assert_eq!(Failure::refused("no stream", &problem).what(), "no stream: wrong moon (moon_phase)");
    }
}
