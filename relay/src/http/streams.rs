//! `GET /v1/streams` and `DELETE /v1/streams/{stream}`: live streams, and the end of one.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, Request, State};
use http::StatusCode;
use moorline_proto::api::StreamList;
use moorline_proto::claims::Action;
use moorline_proto::close::CloseReason;
use moorline_proto::id::StreamId;
use moorline_proto::problem::ProblemCode;
use tracing::info;

use crate::access::policy::On;
use crate::http::problem::Refusal;
use crate::http::{Edge, parse, visitor};

/// The live streams that the caller may see.
///
/// # Errors
/// The token's.
pub async fn list(State(edge): State<Arc<Edge>>, request: Request) -> Result<Json<StreamList>, Refusal> {
    let visitor = visitor(&request)?;
    let caller = edge.caller(request.headers(), &visitor)?;
    let streams =
        edge.streams.all(|facts| edge.act(&caller, Action::StreamList, On::service(&facts.device, &facts.service), &visitor).is_ok());
    Ok(Json(StreamList { streams }))
}

/// Ends a stream: 204 once it was told to end.
///
/// # Errors
/// `stream_unknown`, also for a stream of a device that the caller may not see; `forbidden`.
pub async fn end(State(edge): State<Arc<Edge>>, Path(stream): Path<String>, request: Request) -> Result<StatusCode, Refusal> {
    let stream: StreamId = parse(&stream)?;
    let visitor = visitor(&request)?;
    let caller = edge.caller(request.headers(), &visitor)?;
    let unknown = || Refusal::new(ProblemCode::StreamUnknown, format!("there is no live stream {stream}"));
    let facts = edge.streams.facts(stream).ok_or_else(unknown)?;
    let leave = edge
        .act(&caller, Action::StreamEnd, On::service(&facts.device, &facts.service), &visitor)
        .map_err(|refusal| if refusal.problem().known_code() == Some(ProblemCode::DeviceUnknown) { unknown() } else { refusal })?;
    if !edge.streams.cut(stream, CloseReason::Killed) {
        return Err(unknown());
    }
    info!(%stream, device = %facts.device, by = %leave.caller(), "a stream was ended by an operator");
    Ok(StatusCode::NO_CONTENT)
}
