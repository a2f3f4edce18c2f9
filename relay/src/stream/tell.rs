//! Legs that are told that there is no stream, each in a task of its own: no slot is held by a goodbye.

use std::sync::Arc;

use moorline_proto::bounds::CLOSE_TIMEOUT;
use moorline_proto::close::CloseReason;
use moorline_proto::id::StreamId;
use moorline_proto::leg::{LegText, Refused};
use moorline_proto::problem::Problem;
use tokio::sync::mpsc;

use crate::splice::{Leg, Side};
use crate::stream::handle::Event;
use crate::stream::join::LegOf;
use crate::stream::registry::Streams;
use crate::tasks::Tasks;

/// Hands a leg to its stream's actor. Where the stream is over, or was opened without the leg, the leg is told so and closed.
pub async fn hand_in(streams: &Streams, stream: StreamId, events: mpsc::Sender<Event>, of: LegOf, leg: Box<Leg>) {
    if let Err(unsent) = events.send(Event::Joined(of, leg)).await
        && let Event::Joined(of, leg) = unsent.0
    {
        late(streams.refusal(stream), of, leg).await;
    }
}

/// Tells a caller's leg why there is no stream, and closes it.
pub async fn refuse(mut leg: Box<Leg>, problem: &Problem) {
    let refused = LegText::Refused(Box::new(Refused { problem: problem.clone() }));
    if leg.send(&refused, CLOSE_TIMEOUT).await.is_ok() {
        leg.close(CloseReason::Refused, &problem.code, CLOSE_TIMEOUT).await;
    }
}

/// A leg that came too late for its stream.
pub(super) async fn late(problem: Option<Arc<Problem>>, of: LegOf, leg: Box<Leg>) {
    match (of.side(), problem) {
        (Side::Caller, Some(problem)) => refuse(leg, &problem).await,
        (Side::Caller | Side::Device, _) => leg.close(CloseReason::Refused, "the stream is over", CLOSE_TIMEOUT).await,
    }
}

/// Closes a leg that the stream does without.
pub(super) fn dismiss(tasks: &Tasks, leg: Box<Leg>, reason: CloseReason, words: &str) {
    let words = words.to_owned();
    tasks.spawn("closing", async move { leg.close(reason, &words, CLOSE_TIMEOUT).await });
}
