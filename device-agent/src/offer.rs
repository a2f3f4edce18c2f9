//! One offer: decide, dial the target, accept, join the leg, carry bytes, report.

use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use http::HeaderMap;
use moorline_proto::bounds::TARGET_TIMEOUT;
use moorline_proto::causes::Causes;
use moorline_proto::control::{Accept, CallerInfo, Offer, Reject, RejectCode};
use moorline_proto::id::{Feature, ServiceName, StreamId};
use moorline_proto::millis::Millis;
use moorline_proto::text::{Data, Text};
use moorline_transport::bridge::{LocalSide, bridge};
use moorline_transport::connection::Connection;
use moorline_transport::dial::{DialError, Dialer};
use moorline_transport::leg::{EndReason, Leg, OpenError};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{Instant, sleep, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::control_sender::ControlSender;
use crate::policy::Policy;
use crate::target::{AnyStream, LocalStream};

/// Between two tries to join a leg, before the deadline.
const JOIN_RETRY_INTERVAL: Duration = Duration::from_millis(300);
/// Why a stream was not opened: the leg's connection was one too many.
const NO_DESCRIPTORS: &str = "no_descriptors";

/// A question, as whoever decides sees it.
#[derive(Clone, Debug)]
pub struct OfferInfo {
    /// Names the stream.
    pub stream: StreamId,
    /// What the caller wants to reach.
    pub service: ServiceName,
    /// Who asks, from where, and why.
    pub caller: CallerInfo,
    /// From the caller, opaque to the relay.
    pub data: Option<Data>,
    /// What the caller would use.
    pub features: Vec<Feature>,
    /// The target should answer in this time.
    pub target_timeout: Duration,
}

/// What is decided about an offer.
#[derive(Debug)]
pub enum Decision {
    /// It is taken.
    Accept(Accepted),
    /// It is not.
    Reject {
        /// Why.
        code: RejectCode,
        /// In words that the caller sees.
        detail: String,
    },
}

impl Decision {
    /// A no, with words that the caller sees (the first 256 characters).
    pub fn reject(code: RejectCode, detail: impl Into<String>) -> Self {
        Self::Reject { code, detail: detail.into() }
    }
}

/// A yes, and what stands behind it: a live target.
#[derive(Debug)]
pub struct Accepted {
    local: LocalStream,
    data: Option<Data>,
    features: Vec<Feature>,
}

impl Accepted {
    /// With a TCP connection: the one kind that shows its other end when the stream was cut.
    pub fn tcp(tcp: TcpStream) -> Self {
        Self::local(LocalStream::Tcp(tcp))
    }

    /// With a Unix socket.
    pub fn unix(unix: UnixStream) -> Self {
        Self::local(LocalStream::Unix(unix))
    }

    /// With any stream of bytes.
    pub fn stream(stream: impl AnyStream + 'static) -> Self {
        Self::local(LocalStream::Any(Box::new(stream)))
    }

    /// With what a target gave.
    pub fn local(local: LocalStream) -> Self {
        Self { local, data: None, features: Vec::new() }
    }

    /// Sends the caller some data with the yes.
    #[must_use]
    pub fn with_data(mut self, data: Data) -> Self {
        self.data = Some(data);
        self
    }

    /// Names those of the offered features that this side will use.
    #[must_use]
    pub fn with_features(mut self, features: Vec<Feature>) -> Self {
        self.features = features;
        self
    }
}

/// What a decision is when it is on its way.
pub type DecisionFuture<'a> = Pin<Box<dyn Future<Output = Decision> + Send + 'a>>;

/// Decides about offers. Closures do: `|offer: OfferInfo| async move { … }`.
pub trait Handler: Send + Sync + 'static {
    /// Decides about one offer, and dials what stands behind a yes. Dropped when the offer becomes void.
    fn decide(&self, offer: OfferInfo) -> DecisionFuture<'_>;
}

impl<F, D> Handler for F
where
    F: Fn(OfferInfo) -> D + Send + Sync + 'static,
    D: Future<Output = Decision> + Send + 'static,
{
    fn decide(&self, offer: OfferInfo) -> DecisionFuture<'_> {
        Box::pin(self(offer))
    }
}

impl Handler for Policy {
    /// Dials the service's target.
    fn decide(&self, offer: OfferInfo) -> DecisionFuture<'_> {
        Box::pin(async move {
            let target = match self.decide(&offer.service) {
                Ok(target) => target,
                Err(code) => return Decision::reject(code, format!("no service {:?} here", offer.service.as_str())),
            };
            match target.dial(offer.target_timeout).await {
                Ok(local) => Decision::Accept(Accepted::local(local)),
                Err(error) => {
                    warn!(service = %offer.service, %target, error = %Causes(&error), "target not reached");
                    // The address of the target is the device's own matter.
                    Decision::reject(error.code(), error.to_string())
                }
            }
        })
    }
}

/// What one offer's task uses.
#[derive(Clone)]
pub(crate) struct OfferContext {
    pub dialer: Dialer,
    pub handler: Arc<dyn Handler>,
    pub control: ControlSender,
    pub trusted_suffix: Option<String>,
}

/// Carries out one offer, until its stream is over, or `cancel` says that it is void, or the agent stops. After `opened` only the leg's end
/// counts, and `stop`: the far side sees a reset.
pub(crate) async fn serve_offer(context: OfferContext, offer: Offer, cancel: CancellationToken, stop: CancellationToken) {
    let (stream, service, caller) = (offer.stream, offer.service.clone(), offer.caller.id());
    let started = Instant::now();
    let deadline = started + Duration::from_millis(offer.expires_in_ms);
    let Some(endpoint) = LegEndpoint::resolve(&context, &offer).await else {
        return info!(%stream, %service, %caller, result = "policy", "stream not opened");
    };
    let joined = tokio::select! {
        joined = decide_and_join(&context, &offer, &endpoint, deadline) => joined,
        () = cancel.cancelled() => Err("cancelled"),
    };
    let (local, mut leg) = match joined {
        Ok(joined) => joined,
        Err(result) => return info!(%stream, %service, %caller, result, "stream not opened"),
    };
    let opened = tokio::select! {
        opened = wait_opened(&context, &offer, &endpoint, &mut leg, deadline) => opened,
        () = cancel.cancelled() => Err("cancelled"),
    };
    if let Err(result) = opened {
        return info!(%stream, %service, %caller, result, "stream not opened");
    }
    debug!(%stream, %service, %caller, "stream opened");
    let bridged = bridge(local, leg, stop.cancelled()).await;
    let lasted_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
    let (to_caller_bytes, to_target_bytes) = (bridged.to_leg_bytes, bridged.from_leg_bytes);
    info!(%stream, %service, %caller, result = bridged.ended.name(), to_target_bytes, to_caller_bytes, lasted_ms, "stream ended");
}

/// Decides, says so, and joins the leg.
async fn decide_and_join(
    context: &OfferContext,
    offer: &Offer,
    endpoint: &LegEndpoint,
    deadline: Instant,
) -> Result<(impl LocalSide + use<>, Leg), &'static str> {
    let started = Instant::now();
    let left = deadline.saturating_duration_since(started);
    let info = OfferInfo {
        stream: offer.stream,
        service: offer.service.clone(),
        caller: offer.caller.clone(),
        data: offer.data.clone(),
        features: offer.features.clone(),
        target_timeout: TARGET_TIMEOUT.min(left),
    };
    let reject_on_panic = RejectOnPanic(Some(context), offer.stream);
    let mut deciding = pin!(timeout_at(deadline, context.handler.decide(info)));
    let (mut connecting, mut connected) = (pin!(endpoint.dialer.ahead(deadline)), None);
    let decision = loop {
        // Whoever decides has the first word: for a no that comes at once, nothing is connected.
        tokio::select! {
            biased;
            decision = &mut deciding => break decision,
            connection = &mut connecting, if connected.is_none() => connected = Some(flush_idle(connection, deadline).await),
        }
    };
    reject_on_panic.disarm();
    match decision {
        Ok(Decision::Accept(Accepted { local, data, features })) => {
            let dial_ms = Some(Millis::from_duration(started.elapsed()));
            context.control.send(Accept { stream: offer.stream, attempt: Default::default(), data, features, dial_ms }).await;
            let connected = match connected {
                Some(connected) => connected,
                None => connecting.await,
            };
            Ok((local, join_or_reject(context, offer, endpoint, Some(connected), deadline).await?))
        }
        Ok(Decision::Reject { code, detail }) => {
            context.reject(offer.stream, code, &detail).await;
            Err(code.as_str())
        }
        Err(_) => {
            context.reject(offer.stream, RejectCode::TargetTimeout, "no decision before the deadline").await;
            Err(RejectCode::TargetTimeout.as_str())
        }
    }
}

/// The relay is told that TLS is done, since the connection has to wait. Whether it lives is seen when it is used.
async fn flush_idle(mut connected: Result<Connection, DialError>, deadline: Instant) -> Result<Connection, DialError> {
    if let Ok(connection) = &mut connected {
        timeout_at(deadline, connection.flush()).await.ok();
    }
    connected
}

/// An offer that nobody has answered. Where the handler panics, the caller hears so at once.
struct RejectOnPanic<'a>(Option<&'a OfferContext>, StreamId);

impl RejectOnPanic<'_> {
    fn disarm(mut self) {
        self.0 = None;
    }
}

impl Drop for RejectOnPanic<'_> {
    fn drop(&mut self) {
        if let Some(context) = self.0.filter(|_| std::thread::panicking()) {
            context.control.try_send(Reject { stream: self.1, attempt: Default::default(), code: RejectCode::Internal, detail: None });
        }
    }
}

impl OfferContext {
    async fn reject(&self, stream: StreamId, code: RejectCode, detail: &str) {
        self.control.send(Reject { stream, attempt: Default::default(), code, detail: Some(Text::truncated(detail)) }).await;
    }
}

/// Where the leg is joined.
struct LegEndpoint {
    dialer: Dialer,
    path: String,
}

impl LegEndpoint {
    /// Only the relay's own: an offer that leads elsewhere is rejected.
    async fn resolve(context: &OfferContext, offer: &Offer) -> Option<Self> {
        match context.dialer.url().resolve(offer.url.as_str(), context.trusted_suffix.as_deref()) {
            Ok((url, path)) => Some(Self { dialer: context.dialer.at(url), path }),
            Err(error) => {
                warn!(stream = %offer.stream, %error, "an offer was rejected");
                context.reject(offer.stream, RejectCode::Policy, "the leg's address is not the relay's").await;
                None
            }
        }
    }
}

/// Joins the leg. Where that fails for good the relay is told, so that the caller does not wait out the deadline.
async fn join_or_reject(
    context: &OfferContext,
    offer: &Offer,
    endpoint: &LegEndpoint,
    ahead: Option<Result<Connection, DialError>>,
    deadline: Instant,
) -> Result<Leg, &'static str> {
    let joined = join(offer, endpoint, ahead, deadline).await;
    if let Err(result) = joined {
        if result == NO_DESCRIPTORS {
            warn!(stream = %offer.stream, "no file descriptors are left: raise the limit (LimitNOFILE=)");
        }
        context.reject(offer.stream, RejectCode::Internal, result).await;
    }
    joined
}

/// Joins the leg, over what was connected ahead, then again and again until the deadline: a lossy link must not burn the stream.
async fn join(
    offer: &Offer,
    endpoint: &LegEndpoint,
    mut ahead: Option<Result<Connection, DialError>>,
    deadline: Instant,
) -> Result<Leg, &'static str> {
    loop {
        let joined = match ahead.take() {
            Some(Ok(connection)) => endpoint.dialer.leg_on(connection, &endpoint.path, &offer.token, deadline).await,
            Some(Err(error)) => Err(error),
            None => endpoint.dialer.leg(&endpoint.path, &HeaderMap::new(), Some(&offer.token), deadline).await,
        };
        match joined {
            Ok(leg) => return Ok(leg),
            Err(error) if error.refusal().is_some_and(|refusal| (400..429).contains(&refusal.status)) => {
                debug!(stream = %offer.stream, %error, "the leg was refused");
                return Err("leg_refused");
            }
            // Trying again would take what other streams need.
            Err(DialError::NoDescriptors) => return Err(NO_DESCRIPTORS),
            Err(error) if Instant::now() + JOIN_RETRY_INTERVAL >= deadline => {
                debug!(stream = %offer.stream, %error, "no leg before the deadline");
                return Err("leg_timeout");
            }
            Err(error) => {
                debug!(stream = %offer.stream, %error, "the leg is dialled again");
                sleep(JOIN_RETRY_INTERVAL).await;
            }
        }
    }
}

/// Waits for `opened`; a leg that is lost before is joined again.
async fn wait_opened(
    context: &OfferContext,
    offer: &Offer,
    endpoint: &LegEndpoint,
    leg: &mut Leg,
    deadline: Instant,
) -> Result<(), &'static str> {
    loop {
        // The relay closes the leg at the deadline; a little later we stop waiting for it.
        match timeout_at(deadline + Duration::from_secs(5), leg.opened()).await {
            Ok(Ok(_)) => return Ok(()),
            Ok(Err(OpenError::Ended(EndReason::Lost(_)))) => *leg = join_or_reject(context, offer, endpoint, None, deadline).await?,
            Ok(Err(error)) => {
                debug!(stream = %offer.stream, %error, "the stream did not come about");
                return Err("refused");
            }
            Err(_) => return Err("leg_timeout"),
        }
    }
}
