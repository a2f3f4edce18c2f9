//! A device's leg that belongs to no stream: kept for the next one while its session lasts.

use std::sync::Arc;

use moorline_proto::bounds::CLOSE_TIMEOUT;
use moorline_proto::close::CloseReason;
use moorline_proto::control::{Cancel, CancelCode};
use moorline_proto::id::StreamId;
use tokio::time::{Instant, sleep_until};
use tracing::debug;

use crate::control::handle::{ChannelClosed, DeviceHandle};
use crate::core::Core;
use crate::splice::Leg;
use crate::splice::leg_end::LegEnd;

/// Keeps a device's leg whose stream is over, or that was opened idle, until a stream takes it or it is not wanted any more; then closes it.
pub async fn keep(core: Arc<Core>, session: DeviceHandle, mut leg: Box<Leg>) {
    if let Some(end) = session.end() {
        let (reason, detail) = session_closed(&end);
        return leg.close(reason, &detail, CLOSE_TIMEOUT).await;
    }
    let slot = session.idle_legs().reserve().filter(|_| core.lifecycle.is_running());
    let Some(slot) = slot else { return leg.close(CloseReason::Finished, "", CLOSE_TIMEOUT).await };
    if let Err(end) = leg.become_idle(core.times.idle_leg, core.times.ping).await {
        return close_ended(leg, &end).await;
    }
    let (connection, until) = (leg.permit().idle(), Instant::now() + core.times.idle_leg);
    slot.put(leg);
    let (reason, detail) = loop {
        tokio::select! {
            biased; // what was decided outside comes first: it is why a session ends when the relay leaves or the device is removed
            () = core.lifecycle.draining() => break (CloseReason::RelayDraining, String::new()),
            closed = session.closed() => break session_closed(&closed),
            end = slot.ended() => break answer(&end),
            () = slot.taken() => return,
            () = connection.evicted() => break (CloseReason::Finished, "the relay has connections enough".to_owned()),
            () = sleep_until(slot.next_tick(until).min(until)) => {
                if Instant::now() >= until {
                    break (CloseReason::Finished, String::new());
                }
                slot.on_tick().await;
            }
        }
    };
    // A stream may have taken it at this very moment: it is that stream's then.
    let left = slot.take();
    drop((slot, connection));
    if let Some(leg) = left {
        debug!(session = session.about().session, %reason, detail, "an idle device leg is closed");
        leg.close(reason, &detail, CLOSE_TIMEOUT).await;
    }
}

/// Takes back an offer that a device has not answered on its leg, which is kept if the device rejects.
pub async fn take_back(core: Arc<Core>, session: DeviceHandle, mut leg: Box<Leg>, cancel: (StreamId, CancelCode)) {
    let (stream, code) = cancel;
    if code == CancelCode::Draining {
        leg.push_cancel(Cancel { stream, code });
        return leg.close(CloseReason::RelayDraining, "", CLOSE_TIMEOUT).await;
    }
    if leg.take_back(Cancel { stream, code }).await {
        keep(core, session, leg).await;
    } else {
        leg.close(CloseReason::Refused, "no answer to cancel", CLOSE_TIMEOUT).await;
    }
}

fn session_closed(closed: &ChannelClosed) -> (CloseReason, String) {
    match closed {
        ChannelClosed::Revoked => (CloseReason::Revoked, String::new()),
        ChannelClosed::Superseded { .. } => (CloseReason::Superseded, String::new()),
        ChannelClosed::Lost => (CloseReason::Finished, "the control channel was lost".to_owned()),
    }
}

/// The Close for a leg that ended while it was idle.
pub(super) fn answer(end: &LegEnd) -> (CloseReason, String) {
    match end {
        LegEnd::Broke(reason, detail) => (*reason, detail.clone()),
        LegEnd::Done | LegEnd::Lost => (CloseReason::Finished, String::new()),
        LegEnd::Reset(_) => (CloseReason::Reset, String::new()),
    }
}

/// Closes a leg that ended while it became idle.
pub(super) async fn close_ended(leg: Box<Leg>, end: &LegEnd) {
    let (reason, detail) = answer(end);
    leg.close(reason, &detail, CLOSE_TIMEOUT).await;
}
