//! One offer: decide, connect to the target, accept, join the leg, carry bytes, report.
//!
//! ```text
//!   offer ─▶ decide ─▶ accept ─▶ join the leg ─▶ opened ─▶ bridge ─▶ end
//!              │          the connection to the relay is made while the target is dialled
//!              └─▶ reject
//! ```
//!
//! Until `opened`, a cancel or a newer offer of the same stream ends all of it without an answer.

use std::error::Error;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderMap;
use moorline_proto::bounds::TARGET_TIMEOUT;
use moorline_proto::causes::Causes;
use moorline_proto::control::{Accept, Offer, Reject, RejectCode};
use moorline_proto::millis::Millis;
use moorline_proto::text::{Text, printable};
use moorline_transport::backoff::{Backoff, Pauses};
use moorline_transport::bridge::{LocalSide, bridge};
use moorline_transport::connection::Connection;
use moorline_transport::dial::{DialError, Dialer};
use moorline_transport::leg::{EndReason, Leg, OpenError};
use tokio::io::AsyncWriteExt;
use tokio::time::{Instant, sleep_until, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::control_sender::ControlSender;
use crate::handler::{Accepted, Decision, Handler, OfferInfo};
use crate::limits::{OPENED_GRACE, PEER_TEXT_CHARS};
use crate::streams::StreamGuard;

/// The result of an offer whose leg could not be connected for lack of file descriptors.
const NO_DESCRIPTORS: &str = "no_descriptors";

/// What the task of an offer uses.
pub(crate) struct OfferContext {
    pub(crate) dialer: Dialer,
    pub(crate) handler: Arc<dyn Handler>,
    pub(crate) control: ControlSender,
    pub(crate) trusted_suffix: Option<String>,
}

/// An offer on its way to an open stream.
struct Opening<'a> {
    context: &'a OfferContext,
    offer: &'a Offer,
    deadline: Instant,
}

/// The address of a leg.
struct LegEndpoint {
    dialer: Dialer,
    path: String,
}

/// Serves one offer until its stream has ended. `cancel` ends it before `opened`, `end_streams` afterwards; the far side sees a reset then.
pub(crate) async fn serve_offer(
    context: OfferContext,
    offer: Offer,
    mut guard: StreamGuard,
    cancel: CancellationToken,
    end_streams: CancellationToken,
) {
    let (stream, service, caller) = (offer.stream, &offer.service, offer.caller.id());
    let reason = offer.caller.reason.as_ref().map(Text::as_str);
    let started = Instant::now();
    let expires_in = Duration::from_millis(offer.expires_in_ms);
    let opening = Opening { context: &context, offer: &offer, deadline: started + expires_in };
    // Boxed: opening is large and short, the stream small and long.
    let opened = cancel.run_until_cancelled(Box::pin(opening.open())).await.unwrap_or(Err("cancelled"));
    let (local, leg) = match opened {
        Ok(opened) if guard.opened() => opened,
        Ok(_) => return info!(%stream, %service, %caller, reason, result = "cancelled", "stream not opened"),
        Err(result) => return info!(%stream, %service, %caller, reason, result, "stream not opened"),
    };
    debug!(%stream, %service, %caller, "stream opened");
    let bridged = bridge(local, leg, end_streams.cancelled()).await;
    let lasted_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
    let (to_caller_bytes, to_target_bytes) = (bridged.to_leg_bytes, bridged.from_leg_bytes);
    let result = bridged.ended.name();
    info!(%stream, %service, %caller, reason, result, to_target_bytes, to_caller_bytes, lasted_ms, "stream ended");
}

impl Opening<'_> {
    /// From the offer to `opened`. An error is the result for the log; the relay has its answer then.
    async fn open(&self) -> Result<(impl LocalSide + use<>, Leg), &'static str> {
        let endpoint = self.endpoint().await?;
        let mut backoff = Backoff::new(Pauses::REQUEST);
        let (local, mut leg) = self.decide_and_join(&endpoint, &mut backoff).await?;
        self.wait_opened(&endpoint, &mut leg, &mut backoff).await?;
        Ok((local, leg))
    }

    /// The address of the leg. An address that is not the relay's own is rejected.
    async fn endpoint(&self) -> Result<LegEndpoint, &'static str> {
        let dialer = &self.context.dialer;
        match dialer.url().resolve(self.offer.url.as_str(), self.context.trusted_suffix.as_deref()) {
            Ok((url, path)) => Ok(LegEndpoint { dialer: dialer.at(url), path }),
            Err(error) => {
                warn!(stream = %self.offer.stream, error = loggable(&error), "offer rejected: its leg is at a foreign address");
                self.reject(RejectCode::Policy, "the leg's address is not the relay's").await;
                Err(RejectCode::Policy.as_str())
            }
        }
    }

    /// Asks the handler, answers the offer, and joins the leg.
    async fn decide_and_join(&self, endpoint: &LegEndpoint, backoff: &mut Backoff) -> Result<(impl LocalSide + use<>, Leg), &'static str> {
        let started = Instant::now();
        let reject_on_panic = RejectOnPanic(Some(self));
        let mut deciding = pin!(timeout_at(self.deadline, self.context.handler.decide(self.info(started))));
        let (mut connecting, mut connected) = (pin!(endpoint.dialer.preconnect(self.deadline)), None);
        let decision = loop {
            // The decision comes first: nothing is connected for an offer that is rejected at once.
            tokio::select! {
                biased;
                decision = &mut deciding => break decision,
                connection = &mut connecting, if connected.is_none() => connected = Some(flush_idle(connection, self.deadline).await),
            }
        };
        reject_on_panic.disarm();
        match decision {
            Ok(Decision::Accept(Accepted { local, data, features })) => {
                let dial_ms = Some(Millis::from_duration(started.elapsed()));
                let Offer { stream, attempt, .. } = *self.offer;
                self.context.control.send(Accept { stream, attempt, data, features, dial_ms }).await;
                let connected = match connected {
                    Some(connected) => connected,
                    None => connecting.await,
                };
                Ok((local, self.or_reject(self.join(endpoint, Some(connected), backoff).await).await?))
            }
            Ok(Decision::Reject { code, detail }) => {
                self.reject(code, &detail).await;
                Err(code.as_str())
            }
            Err(_) => {
                self.reject(RejectCode::TargetTimeout, "no decision before the deadline").await;
                Err(RejectCode::TargetTimeout.as_str())
            }
        }
    }

    fn info(&self, now: Instant) -> OfferInfo {
        let left = self.deadline.saturating_duration_since(now);
        OfferInfo {
            stream: self.offer.stream,
            service: self.offer.service.clone(),
            caller: self.offer.caller.clone(),
            data: self.offer.data.clone(),
            features: self.offer.features.clone(),
            target_timeout: TARGET_TIMEOUT.min(left),
        }
    }

    fn rejection(&self, code: RejectCode, detail: Option<&str>) -> Reject {
        Reject { stream: self.offer.stream, attempt: self.offer.attempt, code, detail: detail.map(Text::truncated) }
    }

    async fn reject(&self, code: RejectCode, detail: &str) {
        self.context.control.send(self.rejection(code, Some(detail))).await;
    }

    /// Tells the relay that the leg could not be joined, so that the caller need not wait until the deadline.
    async fn or_reject(&self, joined: Result<Leg, &'static str>) -> Result<Leg, &'static str> {
        if let Err(result) = joined {
            if result == NO_DESCRIPTORS {
                warn!(stream = %self.offer.stream, "no file descriptors left: raise the limit (LimitNOFILE=)");
            }
            self.reject(RejectCode::Internal, result).await;
        }
        joined
    }

    /// Joins the leg over the connection that was made ahead, then over new ones until the deadline: one lost connection must not cost
    /// the stream.
    async fn join(
        &self,
        endpoint: &LegEndpoint,
        mut ahead: Option<Result<Connection, DialError>>,
        backoff: &mut Backoff,
    ) -> Result<Leg, &'static str> {
        let (stream, token) = (self.offer.stream, &self.offer.token);
        loop {
            let joined = match ahead.take() {
                Some(Ok(connection)) => endpoint.dialer.leg_on(connection, &endpoint.path, token, self.deadline).await,
                Some(Err(error)) => Err(error),
                None => endpoint.dialer.leg(&endpoint.path, &HeaderMap::new(), Some(token), self.deadline).await,
            };
            match joined {
                Ok(leg) => return Ok(leg),
                Err(error) if error.refusal().is_some_and(|refusal| (400..429).contains(&refusal.status)) => {
                    debug!(%stream, error = loggable(&error), "the relay refused the leg");
                    return Err("leg_refused");
                }
                // Another attempt would take what other streams need.
                Err(DialError::NoDescriptors) => return Err(NO_DESCRIPTORS),
                Err(error) => {
                    debug!(%stream, error = loggable(&error), "the leg was not joined");
                    self.pause(backoff).await?;
                }
            }
        }
    }

    /// Waits before the leg is joined again. Fails at once if that would be after the deadline.
    async fn pause(&self, backoff: &mut Backoff) -> Result<(), &'static str> {
        let again = Instant::now() + backoff.pause(&mut rand::rng());
        if again >= self.deadline {
            return Err("leg_timeout");
        }
        sleep_until(again).await;
        Ok(())
    }

    /// Waits for `opened`. A leg that is lost before is joined again.
    async fn wait_opened(&self, endpoint: &LegEndpoint, leg: &mut Leg, backoff: &mut Backoff) -> Result<(), &'static str> {
        loop {
            match timeout_at(self.deadline + OPENED_GRACE, leg.opened()).await {
                Ok(Ok(_)) => return Ok(()),
                Ok(Err(OpenError::Ended(EndReason::Lost(_)))) => {
                    let joined = match self.pause(backoff).await {
                        Ok(()) => self.join(endpoint, None, backoff).await,
                        Err(result) => Err(result),
                    };
                    *leg = self.or_reject(joined).await?;
                }
                Ok(Err(error)) => {
                    debug!(stream = %self.offer.stream, error = loggable(&error), "the relay did not open the stream");
                    return Err("refused");
                }
                Err(_) => return Err("leg_timeout"),
            }
        }
    }
}

/// Flushes a connection that has to wait, so that the relay sees the end of the TLS handshake. Whether it still works is seen when it is used.
async fn flush_idle(mut connected: Result<Connection, DialError>, deadline: Instant) -> Result<Connection, DialError> {
    if let Ok(connection) = &mut connected {
        timeout_at(deadline, connection.flush()).await.ok();
    }
    connected
}

/// An error and its causes, which may contain text of the relay, in a bounded number of printable characters.
fn loggable(error: &(dyn Error + 'static)) -> String {
    printable(&Causes(error).to_string(), PEER_TEXT_CHARS)
}

/// Rejects the offer if the handler panics, so that the caller need not wait until the deadline.
struct RejectOnPanic<'a>(Option<&'a Opening<'a>>);

impl RejectOnPanic<'_> {
    fn disarm(mut self) {
        self.0 = None;
    }
}

impl Drop for RejectOnPanic<'_> {
    fn drop(&mut self) {
        if let Some(opening) = self.0.filter(|_| std::thread::panicking()) {
            opening.context.control.try_send(opening.rejection(RejectCode::Internal, None));
        }
    }
}
