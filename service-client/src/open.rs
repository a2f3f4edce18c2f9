//! Opens streams: sends the request, repeats it while its leg is lost, and returns the relay's verdict.
//!
//! ```text
//!   open ──── connect ────▶ 101 … opened ─▶ Stream          one request: what most programs want
//!   negotiate ── POST ────▶ StreamTicket ─▶ join ─▶ Stream   two requests, possibly by two programs
//! ```
//!
//! Owns: both ways, and [`OpenError`]. Does not own: the open stream ([`crate::stream`]), when to retry ([`crate::retry`]).

use std::pin::Pin;
use std::time::{Duration, SystemTime};

use http::{HeaderMap, HeaderName, HeaderValue, Method};
use moorline_proto::api::StreamTicket;
use moorline_proto::bounds::{DEFAULT_DEADLINE, PREFER_WAIT_MAX, REASON_CHARS};
use moorline_proto::close::CloseReason;
use moorline_proto::id::{DeviceId, Feature, ServiceName};
use moorline_proto::join::ForeignUrl;
use moorline_proto::leg::Peer;
use moorline_proto::names::{IDEMPOTENCY_KEY_HEADER, connect_path, device_streams_path};
use moorline_proto::problem::Problem;
use moorline_proto::secret::Secret;
use moorline_proto::text::{Data, Text};
use moorline_transport::dial::{DialError, Dialer, Response};
use moorline_transport::leg::{self, EndReason};
use tokio::time::Instant;
use tracing::debug;

use crate::client::Client;
use crate::refusal::{attempt_error, problem_of, problem_retry_after};
use crate::retry::{AttemptError, RetryError, retry_until};
use crate::stream::Stream;
use crate::stream_options::{self, Key, StreamOptions};

/// For the relay's response to an ordinary request, on top of the time that the request itself may take.
pub(crate) const RESPONSE_TIMEOUT: Duration = Duration::from_secs(15);
/// To reach the relay and receive its 101, which the relay never delays.
const DIAL_TIMEOUT: Duration = Duration::from_secs(20);
/// The longest wait for a ticket's stream, whatever this machine's clock says: as long as a stream may wait and open.
const MAX_TICKET_LIFETIME: Duration = Open::MAX_WAIT.saturating_add(Open::MAX_DEADLINE);

type OpenFuture = Pin<Box<dyn Future<Output = Result<Stream, OpenError>> + Send>>;

/// Why a stream was not opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The relay cannot be reached, or the peer is not a relay.
    #[error("the relay cannot be reached")]
    Unreachable(#[source] Box<DialError>),
    /// The relay or the device refused the stream.
    #[error("{} ({})", .0.detail, .0.code)]
    Refused(Box<Problem>),
    /// The leg ended before the stream was open. If a retry could help, it was retried for as long as there was time.
    #[error("the leg ended before the stream was open")]
    Ended(#[source] EndReason),
    /// The relay did not answer in the time it has.
    #[error("the relay did not answer within {waited:?}")]
    TimedOut {
        /// How long it was awaited.
        waited: Duration,
    },
    /// The relay's response breaks the protocol.
    #[error("the relay's response breaks the protocol: {0}")]
    Answer(String),
    /// The relay handed out an address of another host.
    #[error(transparent)]
    ForeignUrl(#[from] ForeignUrl),
}

impl OpenError {
    /// The relay's or the device's problem, if one of them refused.
    pub fn problem(&self) -> Option<&Problem> {
        match self {
            Self::Refused(problem) => Some(problem),
            Self::Unreachable(_) | Self::Ended(_) | Self::TimedOut { .. } | Self::Answer(_) | Self::ForeignUrl(_) => None,
        }
    }
}

impl Client {
    /// Requests a stream to a service of a device. Set options on the returned value where needed, then `.await` it.
    pub fn open(&self, device: &DeviceId, service: &ServiceName) -> Open {
        let (client, device, service) = (self.clone(), device.clone(), service.clone());
        Open { client, device, service, options: StreamOptions::default(), prefer_wait: None }
    }

    /// Joins a stream that was negotiated, possibly by another program ([`Open::negotiate`]).
    pub fn join(&self, ticket: &StreamTicket) -> JoinTicket {
        JoinTicket { client: self.clone(), ticket: ticket.clone() }
    }
}

/// A request for a stream: made by [`Client::open`], sent by `.await`.
///
/// # Cancel safety
/// Dropping the future cancels the request: the stream will not be opened, and the device is told. If the relay's 101 had not arrived yet,
/// the stream ends at its deadline.
#[derive(Clone, Debug)]
#[must_use = "nothing is sent before it is awaited"]
pub struct Open {
    client: Client,
    device: DeviceId,
    service: ServiceName,
    options: StreamOptions,
    prefer_wait: Option<Duration>,
}

impl Open {
    /// The longest wait for an offline device: seven days. Operators usually allow less.
    pub const MAX_WAIT: Duration = stream_options::MAX_WAIT;
    /// The shortest deadline: one second.
    pub const MIN_DEADLINE: Duration = stream_options::MIN_DEADLINE;
    /// The longest deadline: one day. Operators usually allow less.
    pub const MAX_DEADLINE: Duration = stream_options::MAX_DEADLINE;

    /// Waits this long for an offline device, in whole seconds. Default: zero, no waiting. More than [`Open::MAX_WAIT`] is taken as that.
    pub fn wait(mut self, wait: Duration) -> Self {
        self.options.set_wait(wait);
        self
    }

    /// How long opening may take once the device is online, in whole seconds. The relay has a maximum of its own. Default: 60 s. Less than
    /// [`Open::MIN_DEADLINE`] and more than [`Open::MAX_DEADLINE`] are taken as these.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.options.set_deadline(deadline);
        self
    }

    /// Why the stream is wanted; shown to the device and kept in the relay's records.
    pub fn reason(mut self, reason: Text<REASON_CHARS>) -> Self {
        self.options.reason = Some(reason);
        self
    }

    /// Opaque bytes for the device.
    pub fn data(mut self, data: Data) -> Self {
        self.options.data = Some(data);
        self
    }

    /// Features to use if the device supports them; at most 16.
    pub fn features(mut self, features: impl IntoIterator<Item = Feature>) -> Self {
        self.options.features = features.into_iter().collect();
        self
    }

    /// The idempotency key: until the deadline, the same key from the same caller names the same stream. Default: a random one.
    pub fn key(mut self, key: Key) -> Self {
        self.options.key = Some(key);
        self
    }

    /// For [`Open::negotiate`]: how long the relay may wait for the device before it answers, in whole seconds. Default: 20 s,
    /// and more is taken as that.
    pub fn prefer_wait(mut self, wait: Duration) -> Self {
        self.prefer_wait = Some(wait.min(PREFER_WAIT_MAX));
        self
    }

    /// Negotiates the stream without joining it. Whoever has the ticket can join: it is a secret.
    ///
    /// # Errors
    /// [`OpenError`], never [`OpenError::Ended`].
    ///
    /// # Cancel safety
    /// Dropping the future may leave a negotiated stream behind, which ends at its deadline. The same key finds it again.
    pub async fn negotiate(self) -> Result<StreamTicket, OpenError> {
        self.client.inner.token.send(OpenError::problem, |token| self.negotiate_with(token)).await
    }

    async fn negotiate_with(&self, token: Option<Secret>) -> Result<StreamTicket, OpenError> {
        let key = self.options.key.clone().unwrap_or_else(Key::random);
        let mut headers = HeaderMap::new();
        headers.insert(HeaderName::from_static(IDEMPOTENCY_KEY_HEADER), key.header());
        if let Some(wait) = self.prefer_wait {
            let value = HeaderValue::from_str(&format!("wait={}", wait.as_secs())).expect("digits are visible ASCII");
            headers.insert("prefer", value);
        }
        let body =
            serde_json::to_string(&self.options.body(&self.service)).expect("the body has string keys and no values that JSON lacks");
        let path = device_streams_path(&self.device);
        let inner = &self.client.inner;
        let response_time = self.prefer_wait.unwrap_or(PREFER_WAIT_MAX) + RESPONSE_TIMEOUT;
        let waited = self.options.limit().max(response_time);
        let deadline = Instant::now() + waited;
        let response = retry_until(deadline, async || {
            let deadline = deadline.min(Instant::now() + response_time);
            let response = inner.dialer.request(Method::POST, &path, &headers, token.as_ref(), Some(body.clone()), deadline).await;
            response.and_then(Response::accepted).map_err(request_error)
        });
        let response = response.await.map_err(|error| give_up(error, waited))?;
        response.json().map_err(|error| OpenError::Answer(error.to_string()))
    }

    async fn open(self) -> Result<Stream, OpenError> {
        self.client.inner.token.send(OpenError::problem, |token| self.open_with(token)).await
    }

    /// Without a key of the caller's each token has one of its own: a stream that waited until the first token's end is over.
    async fn open_with(&self, token: Option<Secret>) -> Result<Stream, OpenError> {
        let key = self.options.key.clone().unwrap_or_else(Key::random);
        let inner = &self.client.inner;
        let leg = LegRequest {
            dialer: inner.dialer.clone(),
            path: connect_path(&self.device, &self.service),
            headers: self.options.headers(&key),
            bearer: token,
            is_ticket: false,
        };
        leg.join(self.options.limit()).await
    }
}

impl IntoFuture for Open {
    type Output = Result<Stream, OpenError>;
    type IntoFuture = OpenFuture;

    fn into_future(self) -> OpenFuture {
        Box::pin(self.open())
    }
}

/// A negotiated stream to be joined: made by [`Client::join`], sent by `.await`.
///
/// # Cancel safety
/// Dropping the future leaves the stream unchanged; it can be joined until its deadline.
#[derive(Clone, Debug)]
#[must_use = "nothing is joined before it is awaited"]
pub struct JoinTicket {
    client: Client,
    ticket: StreamTicket,
}

impl JoinTicket {
    async fn join(self) -> Result<Stream, OpenError> {
        let home = &self.client.inner.dialer;
        let (url, path) = home.url().resolve(&self.ticket.url, None)?;
        let bearer = Some(self.ticket.token.clone());
        let leg = LegRequest { dialer: home.at(url), path, headers: HeaderMap::new(), bearer, is_ticket: true };
        leg.join(self.time_left() + RESPONSE_TIMEOUT).await
    }

    /// The relay enforces the deadline by its own clock. This machine's clock may be wrong, so it only decides how long to wait.
    #[allow(clippy::disallowed_methods, reason = "a ticket's end is wall time; what comes of it is bounded on both sides")]
    fn time_left(&self) -> Duration {
        let left = SystemTime::from(self.ticket.expires_at).duration_since(SystemTime::now()).unwrap_or_default();
        left.clamp(DEFAULT_DEADLINE, MAX_TICKET_LIFETIME)
    }
}

impl IntoFuture for JoinTicket {
    type Output = Result<Stream, OpenError>;
    type IntoFuture = OpenFuture;

    fn into_future(self) -> OpenFuture {
        Box::pin(self.join())
    }
}

/// The request for a caller leg, sent as often as necessary.
struct LegRequest {
    dialer: Dialer,
    path: String,
    headers: HeaderMap,
    bearer: Option<Secret>,
    /// A ticket is for one stream: once it is refused, another join only returns `stream_expired`.
    is_ticket: bool,
}

impl LegRequest {
    async fn join(self, waited: Duration) -> Result<Stream, OpenError> {
        let deadline = Instant::now() + waited;
        let opened = retry_until(deadline, || async {
            let tried = self.attempt(deadline).await;
            if let Err(failed) = &tried {
                debug!(?failed, path = self.path, "an attempt to open a stream failed");
            }
            tried
        });
        opened.await.map_err(|error| give_up(error, waited))
    }

    async fn attempt(&self, deadline: Instant) -> Result<Stream, AttemptError<OpenError>> {
        let dial_deadline = deadline.min(Instant::now() + DIAL_TIMEOUT);
        let leg = self.dialer.leg(&self.path, &self.headers, self.bearer.as_ref(), dial_deadline).await;
        let mut leg = leg.map_err(request_error)?;
        match leg.opened().await {
            Ok(opened) if matches!(opened.peer, Peer::Device { .. }) => Ok(Stream::new(leg, opened)),
            Ok(_) => Err(AttemptError::Final(OpenError::Answer("the peer in `opened` is not a device".to_owned()))),
            Err(leg::OpenError::Refused(problem)) => Err(match problem_retry_after(&problem) {
                Some(after) if !self.is_ticket => AttemptError::Later { error: OpenError::Refused(problem), after },
                Some(_) | None => AttemptError::Final(OpenError::Refused(problem)),
            }),
            Err(leg::OpenError::Ended(end)) if is_recoverable(&end) => Err(AttemptError::Lost(OpenError::Ended(end))),
            Err(leg::OpenError::Ended(end)) => Err(AttemptError::Final(OpenError::Ended(end))),
        }
    }
}

/// Whether a leg that ended like this before `opened` was only lost, so that the stream may still wait for it.
fn is_recoverable(end: &EndReason) -> bool {
    match end {
        EndReason::Lost(_) | EndReason::Silent(_) => true,
        EndReason::Finished | EndReason::CutShort | EndReason::ProtocolError { .. } => false,
        // A code outside the protocol comes from an intermediary.
        EndReason::Closed { code, .. } => CloseReason::from_code(*code).is_none_or(|reason| match reason {
            CloseReason::RelayDraining | CloseReason::PeerLost => true,
            CloseReason::Finished
            | CloseReason::Framing
            | CloseReason::BadUtf8
            | CloseReason::TooBig
            | CloseReason::Reset
            | CloseReason::IdleTimeout
            | CloseReason::Expired
            | CloseReason::Killed
            | CloseReason::Revoked
            | CloseReason::Superseded
            | CloseReason::Limit
            | CloseReason::Refused
            | CloseReason::Protocol
            | CloseReason::Unauthenticated
            | CloseReason::Forbidden => false,
        }),
    }
}

/// The error of a series of attempts that lasted `waited` at most.
fn give_up(error: RetryError<OpenError>, waited: Duration) -> OpenError {
    match error {
        RetryError::Attempt(error) | RetryError::TimedOut(Some(error)) => error,
        RetryError::TimedOut(None) => OpenError::TimedOut { waited },
    }
}

/// Sorts a request that failed. It carries an idempotency key or a leg token: sent again, it names the same stream.
fn request_error(error: DialError) -> AttemptError<OpenError> {
    if error.is_lost_exchange() {
        return AttemptError::LostExchange(unreachable_or_refused(error));
    }
    attempt_error(error, unreachable_or_refused)
}

fn unreachable_or_refused(error: DialError) -> OpenError {
    problem_of(error).map_or_else(OpenError::Unreachable, OpenError::Refused)
}
