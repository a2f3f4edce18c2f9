//! A caller's leg that belongs to no stream: waits for an `ask`, answers it as a request of its own, and carries the stream.

use std::future::poll_fn;
use std::net::IpAddr;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use moorline_proto::api::OpenStream;
use moorline_proto::bounds::{CLOSE_TIMEOUT, REFUSALS_IN_A_ROW};
use moorline_proto::claims::Action;
use moorline_proto::close::CloseReason;
use moorline_proto::id::DeviceId;
use moorline_proto::problem::{Problem, ProblemCode};
use moorline_proto::reuse::Ask;
use tokio::time::{Instant, sleep_until};
use tracing::debug;

use crate::access::permit::StreamPermit;
use crate::access::policy::{Permit, Resource};
use crate::access::principal::AskingCaller;
use crate::core::Core;
use crate::limits::WATCHED_EXPIRY;
use crate::splice::reuse::{Reuse, Said};
use crate::splice::{Leg, Watched};
use crate::stream::idle_device::{answer, close_ended};
use crate::stream::join::LegOf;
use crate::stream::leg_close::{Kept, deliver, refuse_ask};
use crate::stream::request::{StreamRequest, Via};
use crate::stream::setup::{Prepared, prepare, record_denied};

/// Keeps a caller's leg whose stream is over, or that was opened idle, and carries one stream after the other on it.
pub async fn keep(core: Arc<Core>, mut leg: Box<Leg>) {
    let mut refusals = 0;
    loop {
        // Looked at for each stream: with a key, a leg of another token may have taken the place of the one before.
        let Some(Reuse::Caller(asking)) = leg.reuse() else { return leg.close(CloseReason::Finished, "", CLOSE_TIMEOUT).await };
        let asking = asking.clone();
        let ask = match Box::pin(wait(&core, leg, &asking)).await {
            Some((asked, ask)) => {
                leg = asked;
                ask
            }
            None => return,
        };
        leg = match Box::pin(serve(&core, leg, &asking, ask)).await {
            Some(Kept { leg, was_refused: false }) => {
                refusals = 0;
                leg
            }
            Some(Kept { leg, was_refused: true }) if core.lifecycle.is_running() => {
                refusals += 1;
                if refusals >= REFUSALS_IN_A_ROW {
                    return leg.close(CloseReason::Limit, "refusals in a row", CLOSE_TIMEOUT).await;
                }
                leg
            }
            Some(Kept { leg, was_refused: true }) => return leg.close(CloseReason::RelayDraining, "", CLOSE_TIMEOUT).await,
            None => return,
        };
    }
}

/// Waits for an `ask`. Nothing, if the leg was closed instead.
async fn wait(core: &Core, mut leg: Box<Leg>, asking: &AskingCaller) -> Option<(Box<Leg>, Box<Ask>)> {
    let slot =
        core.streams.slots().idle_leg(&asking.caller.id).filter(|_| core.lifecycle.is_running() && time_left(core, asking).is_some());
    if slot.is_none() {
        leg.close(CloseReason::Finished, "", CLOSE_TIMEOUT).await;
        return None;
    }
    if let Err(end) = leg.become_idle(core.times.idle_leg, core.times.ping).await {
        close_ended(leg, &end).await;
        return None;
    }
    let (connection, until) = (leg.permit().idle(), Instant::now() + core.times.idle_leg);
    let (reason, detail) = loop {
        let expires = Instant::now() + time_left(core, asking).unwrap_or_default();
        let tick = leg.next_tick();
        tokio::select! {
            biased; // an `ask` that was read is answered
            watched = poll_fn(|cx| leg.poll_idle(cx)) => match watched {
                Watched::Said(Said::Ask(ask)) => return Some((leg, ask)),
                Watched::Ended(end) => break answer(&end),
                Watched::Said(Said::Accept(_) | Said::Reject(_)) | Watched::Early => {}
            },
            () = core.lifecycle.draining() => break (CloseReason::RelayDraining, String::new()),
            () = connection.evicted() => break (CloseReason::Finished, "the relay has connections enough".to_owned()),
            () = sleep_until(expires) => if time_left(core, asking).is_none() {
                break (CloseReason::Expired, String::new());
            },
            () = sleep_until(tick.min(until)) => {
                let now = Instant::now();
                if now >= until {
                    break (CloseReason::Finished, String::new());
                }
                // What it finds, the next watch finds again.
                poll_fn(|cx| {
                    drop(leg.on_tick(false, now, cx));
                    Poll::Ready(())
                })
                .await;
            }
        }
    };
    drop((slot, connection));
    debug!(caller = %asking.caller.id, %reason, detail, "an idle caller leg is closed");
    leg.close(reason, &detail, CLOSE_TIMEOUT).await;
    None
}

/// How long the caller's token is good, as far as it is watched. Nothing, once it has ended.
fn time_left(core: &Core, asking: &AskingCaller) -> Option<Duration> {
    let left = asking.caller.expires_at.as_millis().saturating_sub(core.clock.now().as_millis());
    (left > 0).then(|| Duration::from_millis(left).min(WATCHED_EXPIRY))
}

/// Answers one `ask`, and carries its stream. Returns the leg, if it may be used again.
async fn serve(core: &Arc<Core>, leg: Box<Leg>, asking: &AskingCaller, ask: Box<Ask>) -> Option<Kept> {
    let (device, open, key) = ask.into_parts();
    let since = Instant::now();
    let permit = match permit(core, asking, &device, &open, since) {
        Ok(permit) => permit,
        Err(problem) => return refuse_ask(leg, &problem).await,
    };
    let request = StreamRequest { open, permit, key, via: Via::Connect, since };
    // Boxed: long over while the stream runs.
    match Box::pin(prepare(core, request)).await {
        Ok(Prepared::New(actor, start, _)) => actor.with_caller(leg).run(start).await,
        Ok(Prepared::Earlier(stream)) => {
            deliver(&core.streams, stream.stream, stream.events(), LegOf::Caller, leg).await;
            None
        }
        Err(refusal) => refuse_ask(leg, &refusal.problem()).await,
    }
}

/// The decision, as for a request of its own.
fn permit(core: &Core, asking: &AskingCaller, device: &DeviceId, open: &OpenStream, since: Instant) -> Result<StreamPermit, Box<Problem>> {
    if open.deadline_s == Some(0) {
        return Err(Problem::new(ProblemCode::Malformed, "deadline: at least 1 second").into());
    }
    let AskingCaller { caller, address } = asking;
    let address: IpAddr = *address;
    let resource = Resource::service(device, &open.service);
    StreamPermit::decide(caller, Action::StreamOpen, resource, address, core.clock.now()).map_err(|denied| {
        record_denied(core, (caller, address), device, open, since, denied);
        Problem::new(denied.problem(), denied.to_string()).into()
    })
}
