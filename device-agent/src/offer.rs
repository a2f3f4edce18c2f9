//! One offer on the control channel: decide, connect to the target, accept, join the leg, carry bytes.
//!
//! ```text
//!   offer ─▶ decide ─▶ accept ─▶ join the leg ─▶ opened ─▶ bridge ─▶ end
//!              │          the connection to the relay is made while the target is dialled
//!              └─▶ reject
//! ```
//!
//! Until `opened`, a cancel or a newer offer of the same stream ends all of it without an answer.

use std::pin::pin;
use std::sync::Arc;

use http::HeaderMap;
use moorline_proto::control::{Offer, RejectCode};
use moorline_transport::backoff::{Backoff, Pauses};
use moorline_transport::connection::Connection;
use moorline_transport::dial::DialError;
use moorline_transport::leg::{EndReason, IdleLeg, Leg, OpenError};
use tokio::io::AsyncWriteExt;
use tokio::time::{Instant, sleep_until, timeout_at};
use tracing::{debug, warn};

use crate::admission::Admitted;
use crate::context::{LegEndpoint, OfferContext};
use crate::leg_offer::keep_leg;
use crate::limits::OPENED_GRACE;
use crate::request::{StreamRequest, loggable};
use crate::target::LocalStream;

/// The result of an offer whose leg could not be connected for lack of file descriptors.
const NO_DESCRIPTORS: &str = "no_descriptors";

/// An offer on its way to an open stream.
struct Opening<'a> {
    context: &'a OfferContext,
    offer: &'a Offer,
    request: &'a StreamRequest,
}

/// Serves one offer until its stream has ended, and then those that are offered on its leg.
pub(crate) async fn serve_offer(context: Arc<OfferContext>, offer: Box<Offer>, admitted: Admitted) {
    if let Some(idle) = serve_first(&context, offer, admitted).await {
        keep_leg(context, idle).await;
    }
}

async fn serve_first(context: &OfferContext, offer: Box<Offer>, admitted: Admitted) -> Option<IdleLeg> {
    let Admitted { mut guard, cancel } = admitted;
    let request = StreamRequest::from(&*offer);
    let opening = Opening { context, offer: &offer, request: &request };
    // Boxed: opening is large and short, the stream small and long.
    let opened = cancel.run_until_cancelled(Box::pin(opening.open())).await.unwrap_or(Err("cancelled"));
    drop(offer);
    let (local, leg) = match opened {
        Ok(opened) if guard.opened(request.deadline()) => opened,
        Ok(_) => {
            request.log_not_opened("cancelled");
            return None;
        }
        Err(result) => {
            request.log_not_opened(result);
            return None;
        }
    };
    let bridged = request.carry(local, leg, &context.end_streams).await;
    guard.ended(&bridged.ended);
    bridged.idle
}

impl Opening<'_> {
    /// From the offer to `opened`. An error is the result for the log; the relay has its answer then.
    async fn open(&self) -> Result<(LocalStream, Leg), &'static str> {
        let endpoint = self.endpoint().await?;
        let mut backoff = Backoff::new(Pauses::REQUEST);
        let (local, mut leg) = self.decide_and_join(&endpoint, &mut backoff).await?;
        self.wait_opened(&endpoint, &mut leg, &mut backoff).await?;
        Ok((local, leg))
    }

    /// The address of the leg. An address that is not the relay's own is rejected.
    async fn endpoint(&self) -> Result<LegEndpoint, &'static str> {
        match self.context.endpoint(self.offer.url.as_str()) {
            Ok(endpoint) => Ok(endpoint),
            Err(error) => {
                warn!(stream = %self.offer.stream, error = loggable(&error), "offer rejected: its leg is at a foreign address");
                self.reject(RejectCode::Policy, "the leg's address is not the relay's").await;
                Err(RejectCode::Policy.as_str())
            }
        }
    }

    /// Asks the handler, answers the offer, and joins the leg.
    async fn decide_and_join(&self, endpoint: &LegEndpoint, backoff: &mut Backoff) -> Result<(LocalStream, Leg), &'static str> {
        let deadline = self.request.deadline();
        let reject_on_panic = RejectOnPanic(Some(self));
        let mut deciding = pin!(self.request.decide(&*self.context.handler));
        let (mut connecting, mut connected) = (pin!(endpoint.dialer.preconnect(deadline)), None);
        let decision = loop {
            // The decision comes first: nothing is connected for an offer that is rejected at once.
            tokio::select! {
                biased;
                decision = &mut deciding => break decision,
                connection = &mut connecting, if connected.is_none() => connected = Some(flush_idle(connection, deadline).await),
            }
        };
        reject_on_panic.disarm();
        match decision {
            Ok((local, accept)) => {
                self.context.control.send(accept).await;
                let connected = match connected {
                    Some(connected) => connected,
                    None => connecting.await,
                };
                Ok((local, self.or_reject(self.join(endpoint, Some(connected), backoff).await).await?))
            }
            Err(reject) => {
                let code = reject.code;
                self.context.control.send(reject).await;
                Err(code.as_str())
            }
        }
    }

    async fn reject(&self, code: RejectCode, detail: &str) {
        self.context.control.send(self.request.reject(code, Some(detail))).await;
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
                Some(Ok(connection)) => endpoint.dialer.leg_on(connection, &endpoint.path, token, self.request.deadline()).await,
                Some(Err(error)) => Err(error),
                None => endpoint.dialer.leg(&endpoint.path, &HeaderMap::new(), Some(token), self.request.deadline()).await,
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
        if again >= self.request.deadline() {
            return Err("leg_timeout");
        }
        sleep_until(again).await;
        Ok(())
    }

    /// Waits for `opened`. A leg that is lost before is joined again.
    async fn wait_opened(&self, endpoint: &LegEndpoint, leg: &mut Leg, backoff: &mut Backoff) -> Result<(), &'static str> {
        loop {
            match timeout_at(self.request.deadline() + OPENED_GRACE, leg.opened()).await {
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
            opening.context.control.try_send(opening.request.reject(RejectCode::Internal, None));
        }
    }
}
