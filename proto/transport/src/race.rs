//! A race of the addresses of one name: an attempt is started every quarter of a second until one of them connects (RFC 8305).
//!
//! ```text
//!   first address ───────────────────────────────▶ (never answers)
//!        250 ms ─▶ second address ──▶ refused
//!                                     └▶ third address ──▶ connected: the others are dropped
//! ```
//!
//! The race does no I/O itself: what resolves the name and what connects to an address are arguments. It is our own because no crate that we use
//! has it for a plain socket: the connector of `hyper-util` races the two families, not the addresses, and neither limits their number nor
//! says what was tried.
//!
//! Does not own: the name, and what is remembered of it ([`crate::tcp`]).

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::time::{Instant, sleep_until};

use crate::descriptors;
use crate::error::{Attempts, ConnectError};

/// From the start of an attempt to the start of the next, unless it fails earlier. RFC 8305 section 8 recommends this Connection Attempt Delay.
pub(crate) const ATTEMPT_DELAY: Duration = Duration::from_millis(250);
/// The most addresses of a name that are tried, the last of them within two seconds: a name with hundreds takes neither hundreds of descriptors
/// nor a minute. Beyond: the addresses that come last are ignored.
pub(crate) const MAX_ADDRESSES: usize = 8;

/// Once one of the addresses has refused and all have been tried, those that are silent have this long to answer: a host that restarts is tried
/// again sooner than at the deadline, and the caller learns of the refusal. Enough for the retransmissions of a SYN after 1 s and 3 s (RFC 6298).
pub(crate) const AFTER_REFUSAL: Duration = Duration::from_secs(5);

/// Connects to the address that answers first.
///
/// With `first`, an address that is known already, the race starts with it, and `resolve` is polled only if that address has failed or not
/// answered within [`ATTEMPT_DELAY`]. The addresses of `resolve` are tried in their order.
///
/// # Errors
/// [`ConnectError`], at the deadline at the latest, or [`AFTER_REFUSAL`]. Where attempts fail for different reasons, it has the error that says most about the host: see [`tells_more`].
///
/// # Cancel safety
/// Dropping the future drops all attempts.
pub(crate) async fn race<S, C: Future<Output = io::Result<S>>>(
    first: Option<SocketAddr>,
    resolve: impl Future<Output = io::Result<Vec<SocketAddr>>>,
    connect: impl Fn(SocketAddr) -> C,
    deadline: Instant,
) -> Result<(SocketAddr, S), ConnectError> {
    let mut race = Race::new(first);
    let mut running = FuturesUnordered::new();
    let mut resolve = pin!(resolve);
    loop {
        if let Some(address) = race.next() {
            let connecting = connect(address);
            running.push(async move { (address, connecting.await) });
        }
        if running.is_empty() && race.resolution != Resolution::Running {
            return Err(race.all_failed());
        }
        let end = race.end_after_refusal().map_or(deadline, |end| end.min(deadline));
        // Biased: an address that has connected is used, whatever else has happened meanwhile.
        tokio::select! {
            biased;
            Some((address, connected)) = running.next(), if !running.is_empty() => match connected {
                Ok(stream) => return Ok((address, stream)),
                Err(error) => race.attempt_failed(address, error),
            },
            resolved = &mut resolve, if race.resolution == Resolution::Running => race.resolved(resolved),
            () = sleep_until(race.next_at), if race.waits_for_next() => race.is_due = true,
            () = sleep_until(end) => return Err(if end < deadline { race.all_failed() } else { race.timed_out() }),
        }
    }
}

/// How far the resolution of the name has come.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Resolution {
    /// Not asked for yet: an address was known before.
    Waiting,
    Running,
    Done,
}

/// The state of a race, apart from the attempts that run.
struct Race {
    first: Option<SocketAddr>,
    resolution: Resolution,
    /// Addresses that are still to be tried.
    waiting: VecDeque<SocketAddr>,
    /// The next attempt is due, whatever the time: the race has just begun, or an attempt has failed.
    is_due: bool,
    /// When the next attempt is due at the latest.
    next_at: Instant,
    /// When an address last refused.
    refused_at: Option<Instant>,
    attempts: Attempts,
    /// The error that says most so far.
    failure: Option<Failure>,
    has_descriptors: bool,
}

enum Failure {
    Resolve(io::Error),
    Connect(io::Error),
}

impl Race {
    fn new(first: Option<SocketAddr>) -> Self {
        let resolution = if first.is_some() { Resolution::Waiting } else { Resolution::Running };
        let waiting = VecDeque::from_iter(first);
        Self {
            first,
            resolution,
            waiting,
            is_due: true,
            next_at: Instant::now(),
            refused_at: None,
            attempts: Attempts::default(),
            failure: None,
            has_descriptors: true,
        }
    }

    /// The address whose attempt starts now. If there is none and the name is not resolved yet, that begins.
    fn next(&mut self) -> Option<SocketAddr> {
        if !self.is_due {
            return None;
        }
        let next = self.waiting.pop_front();
        match next {
            Some(address) => {
                self.is_due = false;
                self.next_at = Instant::now() + ATTEMPT_DELAY;
                self.attempts.begin(address);
            }
            None if self.resolution == Resolution::Waiting => self.resolution = Resolution::Running,
            None => {}
        }
        next
    }

    /// Whether something is to be done once the delay has passed.
    fn waits_for_next(&self) -> bool {
        !self.is_due && (self.resolution == Resolution::Waiting || !self.waiting.is_empty())
    }

    /// When the race ends before its deadline, because what is left of it is silent.
    fn end_after_refusal(&self) -> Option<Instant> {
        let has_tried_all = self.resolution == Resolution::Done && self.waiting.is_empty();
        self.refused_at.filter(|_| has_tried_all).map(|refused_at| refused_at.max(self.next_at) + AFTER_REFUSAL)
    }

    fn attempt_failed(&mut self, address: SocketAddr, error: io::Error) {
        tracing::debug!(%address, %error, "connecting to an address failed");
        self.attempts.fail(address, error.kind());
        self.is_due = true;
        if is_refusal(error.kind()) {
            self.refused_at = Some(Instant::now());
        }
        if descriptors::is_shortage(&error) {
            self.give_up();
        }
        match &self.failure {
            Some(Failure::Resolve(_)) => {}
            Some(Failure::Connect(known)) if !tells_more(&error, known) => {}
            _ => self.failure = Some(Failure::Connect(error)),
        }
    }

    fn resolved(&mut self, resolved: io::Result<Vec<SocketAddr>>) {
        self.resolution = Resolution::Done;
        match resolved {
            Ok(addresses) => self.waiting.extend(addresses.into_iter().filter(|&address| Some(address) != self.first)),
            Err(error) => {
                tracing::debug!(%error, "resolving a name failed");
                if descriptors::is_shortage_of_resolver(&error) {
                    self.give_up();
                }
                // It says more than the address that was known before and may be out of date.
                self.failure = Some(Failure::Resolve(error));
            }
        }
    }

    /// Starts no more attempts for lack of descriptors: they would fail too, and take what others need. Those that run have theirs.
    fn give_up(&mut self) {
        self.has_descriptors = false;
        self.waiting.clear();
        self.resolution = Resolution::Done;
    }

    fn all_failed(self) -> ConnectError {
        match self.failure {
            _ if !self.has_descriptors => ConnectError::NoDescriptors,
            Some(Failure::Connect(source)) => ConnectError::Failed { attempts: self.attempts, source },
            Some(Failure::Resolve(source)) => ConnectError::Resolve(source),
            None => ConnectError::Resolve(io::Error::new(io::ErrorKind::NotFound, "the name has no addresses")),
        }
    }

    fn timed_out(self) -> ConnectError {
        if self.has_descriptors { ConnectError::TimedOut(self.attempts) } else { ConnectError::NoDescriptors }
    }
}

/// Whether an error is the host's own answer.
fn is_refusal(kind: io::ErrorKind) -> bool {
    matches!(kind, io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset)
}

/// Whether an error says at least as much as an earlier one: that there is no way says nothing of the host, silence says little, and a refusal
/// is the host's own answer. Of equals the later one counts.
fn tells_more(error: &io::Error, known: &io::Error) -> bool {
    let rank = |error: &io::Error| match error.kind() {
        io::ErrorKind::NetworkUnreachable | io::ErrorKind::NetworkDown | io::ErrorKind::AddrNotAvailable => 0,
        io::ErrorKind::HostUnreachable => 1,
        io::ErrorKind::TimedOut => 2,
        kind if is_refusal(kind) => 4,
        _ => 3,
    };
    rank(error) >= rank(known)
}

/// The order in which addresses are tried: `preferred` before all others if it is one of them, then one of each family in turn, beginning with
/// the family that the resolver put first (RFC 8305 section 4, with a First Address Family Count of 1). At most [`MAX_ADDRESSES`], each once.
pub(crate) fn in_order(resolved: Vec<SocketAddr>, preferred: Option<SocketAddr>) -> Vec<SocketAddr> {
    let mut addresses = Vec::with_capacity(resolved.len());
    addresses.extend(preferred.filter(|preferred| resolved.contains(preferred)));
    let leads_v6 = resolved.first().is_some_and(SocketAddr::is_ipv6);
    let (mut leading, mut other): (VecDeque<_>, VecDeque<_>) = resolved.into_iter().partition(|address| address.is_ipv6() == leads_v6);
    while !(leading.is_empty() && other.is_empty()) {
        for address in [leading.pop_front(), other.pop_front()].into_iter().flatten() {
            if addresses.len() < MAX_ADDRESSES && !addresses.contains(&address) {
                addresses.push(address);
            }
        }
    }
    addresses
}
