//! A leg that is used again, from one stream to the next: idle, offered, decided, open, and idle again.
//!
//! ```text
//!   idle ─▶ offer ─▶ decide ─▶ accept ─▶ bridge ─▶ end ─▶ idle
//!                      └─▶ reject ─────────────────────▶ idle
//! ```
//!
//! What the caller sends meanwhile is held by the leg, and reaches the target after `accept`. If the leg is lost or closed before, or another
//! attempt replaces the offer, the target is dropped.

use std::sync::Arc;

use moorline_proto::control::{Accept, Reject, RejectCode};
use moorline_transport::leg::{IdleLeg, OfferedLeg, Withdrawn};
use tracing::{debug, info};

use crate::admission::{Admitted, Refused};
use crate::context::OfferContext;
use crate::idle_legs::IdlePlace;
use crate::request::{StreamRequest, loggable};
use crate::target::LocalStream;

/// What comes of an offer on a leg.
enum Decided {
    Accepted(LocalStream, Accept),
    Rejected(Reject),
    Withdrawn(Withdrawn),
}

/// Keeps a leg that has become idle, and serves the streams that are offered on it, until it ends.
pub(crate) async fn keep_leg(context: Arc<OfferContext>, idle: IdleLeg) {
    if let Some(place) = context.legs.place() {
        keep_leg_at(context, idle, place).await;
    } else {
        idle.close().await;
    }
}

/// [`keep_leg`], for a leg that has its place already.
pub(crate) async fn keep_leg_at(context: Arc<OfferContext>, idle: IdleLeg, place: IdlePlace) {
    let mut kept = (idle, place);
    while let Some(idle) = serve_next(&context, kept.0, kept.1).await {
        let Some(place) = context.legs.place() else { return idle.close().await };
        kept = (idle, place);
    }
}

/// Serves the next stream on an idle leg. Returns the leg if it is idle again.
async fn serve_next(context: &OfferContext, idle: IdleLeg, place: IdlePlace) -> Option<IdleLeg> {
    // Dropping the future closes the leg with 1000.
    let leg = match context.legs.while_kept(idle.next_offer()).await? {
        Ok(leg) => leg,
        Err(end) => {
            debug!(reason = loggable(&end), "an idle leg has ended");
            return None;
        }
    };
    place.used();
    let request = StreamRequest::from(leg.offer());
    let reject = match context.admission.admit(request.stream(), request.attempt(), context.max_streams) {
        Ok(admitted) => return serve_offer(context, &request, leg, admitted).await,
        Err(Refused::Reject(code, detail)) => request.reject(code, Some(detail)),
        Err(Refused::Outdated) => request.reject(RejectCode::Internal, Some("a later attempt is under way")),
    };
    debug!(stream = %request.stream(), code = %reject.code, "offer rejected");
    Box::pin(until_idle(context, leg, reject)).await
}

async fn serve_offer(context: &OfferContext, request: &StreamRequest, leg: OfferedLeg, admitted: Admitted) -> Option<IdleLeg> {
    let Admitted { mut guard, cancel } = admitted;
    // Boxed, as what follows a rejection: deciding is large and short, the stream small and long.
    let decided = cancel.run_until_cancelled(context.legs.while_online(Box::pin(decide(context, request, leg)))).await;
    let Some(Some((leg, decided))) = decided else {
        // The leg was dropped, which closes it.
        request.log_not_opened("cancelled");
        return None;
    };
    let reject = match decided {
        Decided::Accepted(local, accept) => {
            if !guard.opened(request.deadline()) {
                request.log_not_opened("cancelled");
                return None;
            }
            let bridged = request.carry(local, leg.accept(accept), &context.end_streams).await;
            guard.ended(&bridged.ended);
            return bridged.idle;
        }
        Decided::Rejected(reject) => {
            request.log_not_opened(reject.code.as_str());
            reject
        }
        Decided::Withdrawn(withdrawn) => {
            match withdrawn {
                Withdrawn::Cancelled(code) => info!(stream = %request.stream(), %code, "offer cancelled"),
                Withdrawn::Ended(end) => debug!(stream = %request.stream(), reason = loggable(&end), "the leg of an offer has ended"),
            }
            request.log_not_opened("cancelled");
            request.reject(RejectCode::Internal, None)
        }
    };
    drop(guard);
    Box::pin(until_idle(context, leg, reject)).await
}

/// Asks the handler, until the offer is withdrawn: what has come on the leg counts before the answer.
async fn decide(context: &OfferContext, request: &StreamRequest, mut leg: OfferedLeg) -> (OfferedLeg, Decided) {
    let decided = tokio::select! {
        biased;
        withdrawn = leg.withdrawn() => Decided::Withdrawn(withdrawn),
        decided = request.decide(&*context.handler) => match decided {
            Ok((local, accept)) => Decided::Accepted(local, accept),
            Err(reject) => Decided::Rejected(reject),
        },
    };
    (leg, decided)
}

/// Answers on the leg, which is idle then unless it has ended.
async fn until_idle(context: &OfferContext, leg: OfferedLeg, reject: Reject) -> Option<IdleLeg> {
    let idle = context.legs.while_online(leg.reject(reject)).await?;
    idle.inspect_err(|end| debug!(reason = loggable(end), "a leg has ended behind a rejection")).ok()
}
