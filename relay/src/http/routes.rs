//! The one table of method, path and handler of the public listeners.

use std::sync::Arc;

use axum::Router;
use axum::routing::{delete, get, post};
use moorline_proto::names::{ABOUT, CONTROL, DEVICES, STREAMS};
use moorline_proto::problem::ProblemCode;

use crate::http::problem::Refusal;
use crate::http::{Edge, about, connect, control, devices, legs, negotiate, streams};

/// Everything that a peer can ask for.
pub fn routes(edge: Arc<Edge>) -> Router {
    Router::new()
        .route(ABOUT, get(about::about))
        .route(CONTROL, get(control::control))
        .route(DEVICES, get(devices::list))
        .route("/v1/devices/{device}", get(devices::show).put(devices::put).delete(devices::remove))
        .route("/v1/devices/{device}/streams", post(negotiate::negotiate))
        .route("/v1/devices/{device}/connect/{service}", get(connect::connect))
        .route("/v1/legs/{node}/{stream}", get(legs::join))
        .route(STREAMS, get(streams::list))
        .route("/v1/streams/{stream}", delete(streams::end))
        .fallback(async || Refusal::new(ProblemCode::NoSuchRoute, "see docs/PROTOCOL.md for the addresses of this relay"))
        .method_not_allowed_fallback(async || Refusal::new(ProblemCode::MethodNotAllowed, "this address takes other methods"))
        .with_state(edge)
}
