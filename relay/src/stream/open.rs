//! Opens a stream for a request: sets it up, and gives it a task.

use std::sync::Arc;

use crate::core::Core;
use crate::stream::handle::StreamHandle;
use crate::stream::idle_caller;
use crate::stream::refusal::Refusal;
use crate::stream::request::StreamRequest;
use crate::stream::setup::{Prepared, prepare};

/// Opens a stream, or finds the one that the same key opened before.
///
/// # Errors
/// [`Refusal`]: what the relay can decide by itself. It leaves an end record too.
///
/// # Cancel safety
/// Dropping the future before it returns leaves nothing behind.
pub async fn open(core: &Arc<Core>, request: StreamRequest) -> Result<StreamHandle, Refusal> {
    let (actor, start, stream) = match prepare(core, request).await? {
        Prepared::Earlier(stream) => return Ok(stream),
        Prepared::New(actor, start, stream) => (actor, start, stream),
    };
    let core_of_task = Arc::clone(core);
    core.tasks.spawn("stream", async move {
        if let Some(kept) = actor.run(start).await {
            idle_caller::keep(core_of_task, kept.leg).await;
        }
    });
    Ok(stream)
}
