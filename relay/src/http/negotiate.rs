//! `POST /v1/devices/{device}/streams`: negotiates a stream that another request, perhaps another program's, joins.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{Path, Request, State};
use axum::response::{IntoResponse, Response};
use http::header::CACHE_CONTROL;
use http::{HeaderMap, HeaderValue, StatusCode};
use moorline_proto::api::{NegotiationState, OpenStream, StreamTicket};
use moorline_proto::names::leg_path;
use tokio::time::{Instant, timeout};

use crate::http::body;
use crate::http::problem::Refusal;
use crate::http::stream_request::{self, Question};
use crate::http::{Edge, parse, visitor};
use crate::stream::{Begun, Decision, Via};

/// Negotiates a stream: 201 once the device said yes, 202 while it is not known, the problem once it said no.
///
/// # Errors
/// What the relay can decide by itself, and what the device decided in the time that was waited for it.
pub async fn negotiate(State(edge): State<Arc<Edge>>, Path(device): Path<String>, request: Request) -> Result<Response, Refusal> {
    let since = Instant::now();
    let device = parse(&device)?;
    let key = stream_request::key(request.headers())?;
    let visitor = visitor(&request)?;
    let (head, body) = request.into_parts();
    let open: OpenStream = stream_request::check(body::json(body).await?)?;
    let caller = edge.caller(&head.headers, &visitor)?;
    let question = Question { device, open, key, via: Via::Negotiation, since };
    let (begun, _) = edge.begin(question, &caller, &visitor).await?;

    let patience = preferred_wait(&head.headers).map_or(edge.times.prefer_wait_max, |wait| wait.min(edge.times.prefer_wait_max));
    let state = decided(begun.clone(), patience).await?;
    let token = edge.openings.caller_token(begun.stream).map_err(|refused| Refusal::from(refused.problem()))?;
    let ticket =
        StreamTicket { stream: begun.stream, state, url: leg_path(&edge.node, &begun.stream), token, expires_at: begun.expires_at };
    let status = if state == NegotiationState::Accepted { StatusCode::CREATED } else { StatusCode::ACCEPTED };
    let mut answer = (status, Json(ticket)).into_response();
    answer.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(answer)
}

/// How far the negotiation is after `patience` at the latest.
async fn decided(mut begun: Begun, patience: Duration) -> Result<NegotiationState, Refusal> {
    let is_final = |decision: &Decision| matches!(decision, Decision::Accepted | Decision::Refused(_));
    // Out of patience, or a stream that is over: what was said last counts.
    drop(timeout(patience, begun.decision.wait_for(is_final)).await);
    match &*begun.decision.borrow() {
        Decision::Waiting => Ok(NegotiationState::Waiting),
        Decision::Offered => Ok(NegotiationState::Offered),
        Decision::Accepted => Ok(NegotiationState::Accepted),
        Decision::Refused(problem) => Err(Refusal::from((**problem).clone())),
    }
}

/// `Prefer: wait=N` (RFC 7240). What is not understood is no preference.
fn preferred_wait(headers: &HeaderMap) -> Option<Duration> {
    let values = headers.get_all("prefer").iter().filter_map(|value| value.to_str().ok());
    let mut preferences = values.flat_map(|text| text.split(',')).map(str::trim);
    let seconds = preferences.find_map(|preference| preference.strip_prefix("wait=")?.parse().ok());
    seconds.map(Duration::from_secs)
}
