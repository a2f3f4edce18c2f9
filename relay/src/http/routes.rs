//! The one table of method, path, action and handler of the public listeners. The action is checked here, before a handler is reached.

use std::sync::Arc;

use axum::Router;
use axum::extract::Request;
use axum::response::IntoResponse;
use axum::routing::{MethodFilter, MethodRouter, on};
use moorline_proto::claims::Action;
use moorline_proto::names::{ABOUT, CONTROL, DEVICES, STREAMS};
use moorline_proto::problem::ProblemCode;

use crate::core::Core;
use crate::http::operation::{self, Operation};
use crate::http::problem::Refusal;
use crate::http::{about, connect, control, devices, legs, negotiate, streams};

const DEVICE: &str = "/v1/devices/{device}";
const DEVICE_STREAMS: &str = "/v1/devices/{device}/streams";
const CONNECT: &str = "/v1/devices/{device}/connect/{service}";
const LEG: &str = "/v1/legs/{node}/{stream}";
const STREAM: &str = "/v1/streams/{stream}";

/// Everything that a peer can ask for.
pub fn routes(core: &Arc<Core>) -> Router {
    const GET: MethodFilter = MethodFilter::GET;
    Router::new()
        // Anyone; a device that proves who it is on the channel; whoever has a leg's token.
        .route(ABOUT, open(core, GET, about::about))
        .route(CONTROL, open(core, GET, control::control))
        .route(LEG, open(core, GET, legs::join))
        // Callers.
        .route(DEVICE_STREAMS, permitted::<negotiate::Negotiate>(core, MethodFilter::POST, Action::StreamOpen))
        .route(CONNECT, permitted::<connect::Connect>(core, GET, Action::StreamOpen))
        // Operators.
        .route(DEVICES, permitted::<devices::List>(core, GET, Action::DeviceRead))
        .route(DEVICE, permitted::<devices::Show>(core, GET, Action::DeviceRead))
        .route(DEVICE, permitted::<devices::Put>(core, MethodFilter::PUT, Action::DeviceWrite))
        .route(DEVICE, permitted::<devices::Remove>(core, MethodFilter::DELETE, Action::DeviceWrite))
        .route(STREAMS, permitted::<streams::List>(core, GET, Action::StreamList))
        .route(STREAM, permitted::<streams::End>(core, MethodFilter::DELETE, Action::StreamEnd))
        .fallback(async || Refusal::new(ProblemCode::NoSuchRoute, "see docs/PROTOCOL.md for the addresses of this relay"))
        .method_not_allowed_fallback(async || Refusal::new(ProblemCode::MethodNotAllowed, "this address takes other methods"))
}

/// What a caller needs an action for.
fn permitted<O: Operation + 'static>(core: &Arc<Core>, method: MethodFilter, action: Action) -> MethodRouter {
    let core = Arc::clone(core);
    on(method, move |request: Request| operation::run::<O>(core, action, request))
}

/// What needs no caller's token.
fn open<F, A>(core: &Arc<Core>, method: MethodFilter, handler: fn(Arc<Core>, Request) -> F) -> MethodRouter
where
    F: Future<Output = A> + Send + 'static,
    A: IntoResponse + 'static,
{
    let core = Arc::clone(core);
    on(method, move |request: Request| handler(core, request))
}
