//! What an offer asks for, on the control channel or on a leg: how it is decided, and what the log says of its stream.
//!
//! Does not own: how the answer reaches the relay ([`crate::offer`], [`crate::leg_offer`]).

use std::error::Error;
use std::time::Duration;

use moorline_proto::bounds::TARGET_TIMEOUT;
use moorline_proto::causes::Causes;
use moorline_proto::control::{Accept, Attempt, Offer, Reject, RejectCode};
use moorline_proto::id::StreamId;
use moorline_proto::millis::Millis;
use moorline_proto::reuse::LegOffer;
use moorline_proto::text::{Text, printable};
use moorline_transport::bridge::{Bridged, bridge};
use moorline_transport::leg::Leg;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use crate::handler::{Accepted, Decision, Handler, OfferInfo};
use crate::limits::PEER_TEXT_CHARS;
use crate::target::LocalStream;

/// A caller's wish for a stream.
pub(crate) struct StreamRequest {
    attempt: Attempt,
    info: Box<OfferInfo>,
    received: Instant,
    deadline: Instant,
}

impl From<&Offer> for StreamRequest {
    fn from(offer: &Offer) -> Self {
        let Offer { stream, attempt, service, caller, data, features, expires_in_ms, .. } = offer;
        let (service, caller, data, features) = (service.clone(), caller.clone(), data.clone(), features.clone());
        let info = OfferInfo { stream: *stream, service, caller, data, features, target_timeout: TARGET_TIMEOUT };
        Self::new(*attempt, *expires_in_ms, info)
    }
}

impl From<&LegOffer> for StreamRequest {
    fn from(offer: &LegOffer) -> Self {
        let LegOffer { stream, attempt, service, caller, data, features, expires_in_ms, .. } = offer;
        let (service, caller, data, features) = (service.clone(), caller.clone(), data.clone(), features.clone());
        let info = OfferInfo { stream: *stream, service, caller, data, features, target_timeout: TARGET_TIMEOUT };
        Self::new(*attempt, *expires_in_ms, info)
    }
}

impl StreamRequest {
    fn new(attempt: Attempt, expires_in_ms: u64, info: OfferInfo) -> Self {
        let received = Instant::now();
        let expires_in = Duration::from_millis(expires_in_ms);
        let info = Box::new(OfferInfo { target_timeout: info.target_timeout.min(expires_in), ..info });
        Self { attempt, info, received, deadline: received + expires_in }
    }

    /// Id of the stream.
    pub(crate) fn stream(&self) -> StreamId {
        self.info.stream
    }

    /// Which offer of the stream it is.
    pub(crate) fn attempt(&self) -> Attempt {
        self.attempt
    }

    /// When the stream must be open.
    pub(crate) fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Asks the handler, which connects to the target before it accepts. Fails with the answer for the relay.
    pub(crate) async fn decide(&self, handler: &dyn Handler) -> Result<(LocalStream, Accept), Reject> {
        let begun = Instant::now();
        match timeout_at(self.deadline, handler.decide(OfferInfo::clone(&self.info))).await {
            Ok(Decision::Accept(Accepted { local, data, features })) => {
                let dial_ms = Some(Millis::from_duration(begun.elapsed()));
                Ok((local, Accept { stream: self.info.stream, attempt: self.attempt, data, features, dial_ms }))
            }
            Ok(Decision::Reject { code, detail }) => Err(self.reject(code, Some(&detail))),
            Err(_) => Err(self.reject(RejectCode::TargetTimeout, Some("no decision before the deadline"))),
        }
    }

    /// A rejection of this attempt.
    pub(crate) fn reject(&self, code: RejectCode, detail: Option<&str>) -> Reject {
        Reject { stream: self.info.stream, attempt: self.attempt, code, detail: detail.map(Text::truncated) }
    }

    /// Carries the open stream until it has ended, or until `end_streams`; the far side sees a reset then.
    pub(crate) async fn carry(&self, local: LocalStream, leg: Leg, end_streams: &CancellationToken) -> Bridged {
        let OfferInfo { stream, service, caller, .. } = &*self.info;
        debug!(%stream, %service, caller = %caller.id(), "stream opened");
        let bridged = bridge(local, leg, end_streams.cancelled()).await;
        let lasted_ms = u64::try_from(self.received.elapsed().as_millis()).unwrap_or(u64::MAX);
        let (to_caller_bytes, to_target_bytes) = (bridged.to_leg_bytes, bridged.from_leg_bytes);
        let (caller, reason, result) = (caller.id(), self.reason(), bridged.ended.name());
        info!(%stream, %service, %caller, reason, result, to_target_bytes, to_caller_bytes, lasted_ms, "stream ended");
        bridged
    }

    /// Logs that the stream did not come about.
    pub(crate) fn log_not_opened(&self, result: &str) {
        let OfferInfo { stream, service, caller, .. } = &*self.info;
        info!(%stream, %service, caller = %caller.id(), reason = self.reason(), result, "stream not opened");
    }

    fn reason(&self) -> Option<&str> {
        self.info.caller.reason.as_ref().map(Text::as_str)
    }
}

/// An error and its causes, which may contain text of the relay, in a bounded number of printable characters.
pub(crate) fn loggable(error: &(dyn Error + 'static)) -> String {
    printable(&Causes(error).to_string(), PEER_TEXT_CHARS)
}
