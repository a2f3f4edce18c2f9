//! Opens streams: sends the request, repeats it while its leg is lost, and returns the relay's verdict.
//!
//! ```text
//!   open ──── connect ────▶ 101 … opened ─▶ Stream          one request: what most programs want
//!   negotiate ── POST ────▶ StreamTicket ─▶ join ─▶ Stream   two requests, possibly by two programs
//! ```
//!
//! Does not own: the legs ([`crate::leg_request`]), why a stream was not opened ([`crate::open_error`]), the open stream ([`crate::stream`]).

use std::pin::Pin;
use std::time::{Duration, SystemTime};

use http::{HeaderMap, HeaderName, HeaderValue, Method};
use moorline_proto::api::StreamTicket;
use moorline_proto::bounds::{DEFAULT_DEADLINE, PREFER_WAIT_MAX, REASON_CHARS};
use moorline_proto::id::{DeviceId, Feature, ServiceName};
use moorline_proto::names::{IDEMPOTENCY_KEY_HEADER, connect_path, device_streams_path};
use moorline_proto::reuse::Ask;
use moorline_proto::secret::Secret;
use moorline_proto::text::{Data, Text};
use moorline_transport::dial::Response;
use tokio::io::{AsyncRead, empty};
use tokio::time::Instant;

use crate::client::{Client, Inner};
use crate::early::EarlyBytes;
use crate::leg_request::{LegRequest, Reuse};
use crate::open_error::{OpenError, request_error};
use crate::retry::retry_until;
use crate::stream::Stream;
use crate::stream_options::{self, Key, StreamOptions};

/// For the relay's response to an ordinary request, on top of the time that the request itself may take.
pub(crate) const RESPONSE_TIMEOUT: Duration = Duration::from_secs(15);
/// The longest wait for a ticket's stream, whatever this machine's clock says: as long as a stream may wait and open.
const MAX_TICKET_LIFETIME: Duration = Open::MAX_WAIT.saturating_add(Open::MAX_DEADLINE);

type OpenFuture = Pin<Box<dyn Future<Output = Result<Stream, OpenError>> + Send>>;

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
        let response = response.await.map_err(|error| OpenError::give_up(error, waited))?;
        response.json().map_err(|error| OpenError::Answer(error.to_string()))
    }

    /// Opens the stream, and sends what `source` has to say without waiting for that: up to 64 KiB, which would otherwise lose a round trip.
    /// What was read from `source` is the stream's; [`Stream::bridge`] or the program carries on behind it. An end of `source` is left to it, too.
    ///
    /// ```no_run
    /// # async fn example(client: moorline::Client, mut local: tokio::net::TcpStream) -> Result<(), Box<dyn std::error::Error>> {
    /// let stream = client.open(&"lamp-1".parse()?, &"http".parse()?).send_from(&mut local).await?;
    /// stream.bridge(local, std::future::pending()).await;
    ///
    /// let request = b"GET / HTTP/1.0\r\n\r\n";
    /// let stream = client.open(&"lamp-1".parse()?, &"http".parse()?).send_from(&mut request.as_slice()).await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`OpenError`]. Bytes that were read are lost then, and never reach the device's side.
    ///
    /// # Cancel safety
    /// As awaiting the request itself. Bytes that were read are lost.
    pub async fn send_from<S: AsyncRead + Unpin + ?Sized>(self, source: &mut S) -> Result<Stream, OpenError> {
        let early = EarlyBytes::new(source);
        // Boxed: opening is large and short, the stream small and long.
        Box::pin(self.client.inner.token.send(OpenError::problem, |token| self.open_with(token, &early))).await
    }

    /// Without a key of the caller's each token has one of its own: a stream that waited until the first token's end is over.
    async fn open_with<S: AsyncRead + Unpin + ?Sized>(
        &self,
        token: Option<Secret>,
        early: &EarlyBytes<'_, S>,
    ) -> Result<Stream, OpenError> {
        let key = self.options.key.clone().unwrap_or_else(Key::random);
        let Inner { dialer, pool, .. } = &*self.client.inner;
        let ask = Ask::new(self.device.clone(), self.options.body(&self.service), Some(key.as_str().to_owned()));
        let leg = LegRequest {
            dialer: if pool.keeps_legs() { dialer.with_reuse() } else { dialer.clone() },
            path: connect_path(&self.device, &self.service),
            headers: self.options.headers(&key),
            bearer: token,
            reuse: Some(Reuse::new(ask, pool)),
        };
        leg.join(self.options.limit(), early).await
    }
}

impl IntoFuture for Open {
    type Output = Result<Stream, OpenError>;
    type IntoFuture = OpenFuture;

    fn into_future(self) -> OpenFuture {
        Box::pin(async { self.send_from(&mut empty()).await })
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
        let leg = LegRequest { dialer: home.at(url), path, headers: HeaderMap::new(), bearer, reuse: None };
        leg.join(self.time_left() + RESPONSE_TIMEOUT, &EarlyBytes::new(&mut empty())).await
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
