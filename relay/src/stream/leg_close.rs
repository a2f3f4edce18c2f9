//! Closes the legs of streams that were refused, are over, or were opened without them. No stream slot is held meanwhile.

use std::sync::Arc;

use moorline_proto::bounds::CLOSE_TIMEOUT;
use moorline_proto::close::CloseReason;
use moorline_proto::id::StreamId;
use moorline_proto::leg::{LegText, Refused};
use moorline_proto::problem::Problem;
use tokio::sync::mpsc;

use crate::splice::leg_end::LegEnd;
use crate::splice::{Leg, Side};
use crate::stream::handle::Event;
use crate::stream::join::LegOf;
use crate::stream::registry::Streams;
use crate::tasks::Tasks;

/// Delivers a leg to its stream's actor. If the stream is over, or was opened without this leg, the leg is closed instead.
pub async fn deliver(streams: &Streams, stream: StreamId, events: mpsc::Sender<Event>, of: LegOf, leg: Box<Leg>) {
    if let Err(unsent) = events.send(Event::Joined(of, leg)).await
        && let Event::Joined(of, leg) = unsent.0
    {
        close_late(streams.refusal(stream), of, leg).await;
    }
}

/// Sends `refused` on a caller's leg and closes it.
pub async fn refuse(mut leg: Box<Leg>, problem: &Problem) {
    if send_refused(&mut leg, problem).await.is_ok() {
        leg.close(CloseReason::Refused, &problem.code, CLOSE_TIMEOUT).await;
    }
}

async fn send_refused(leg: &mut Leg, problem: &Problem) -> Result<(), LegEnd> {
    let refused = LegText::Refused(Box::new(Refused { problem: problem.clone() }));
    leg.send(&refused, CLOSE_TIMEOUT).await
}

/// The caller's leg of a stream that is over, on which another one may begin.
#[derive(Debug)]
pub(super) struct Kept {
    pub(super) leg: Box<Leg>,
    /// There was no stream: it was refused.
    pub(super) was_refused: bool,
}

/// Sends `refused` as the answer to an `ask`. Returns the leg, if nothing came on it behind that; else closes it.
pub(super) async fn refuse_ask(mut leg: Box<Leg>, problem: &Problem) -> Option<Kept> {
    send_refused(&mut leg, problem).await.ok()?;
    if leg.is_clean() {
        return Some(Kept { leg, was_refused: true });
    }
    leg.close(CloseReason::Refused, &problem.code, CLOSE_TIMEOUT).await;
    None
}

/// Closes a leg that joined after its stream had ended or been opened.
pub(super) async fn close_late(problem: Option<Arc<Problem>>, of: LegOf, leg: Box<Leg>) {
    match (of.side(), problem) {
        (Side::Caller, Some(problem)) => refuse(leg, &problem).await,
        (Side::Caller | Side::Device, _) => leg.close(CloseReason::Refused, "the stream is over", CLOSE_TIMEOUT).await,
    }
}

/// Closes a leg that the stream does not use, in a task of its own.
pub(super) fn close_unused(tasks: &Tasks, leg: Box<Leg>, reason: CloseReason, detail: &str) {
    let detail = detail.to_owned();
    tasks.spawn("closing", async move { leg.close(reason, &detail, CLOSE_TIMEOUT).await });
}
