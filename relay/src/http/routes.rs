//! The one table of method, path, form, action and handler of the public listeners. Form and action are checked before a handler is reached.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;

use axum::Router;
use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use http::Method;
use moorline_proto::claims::Action;
use moorline_proto::names::{self, ABOUT, CONTROL, CONTROL_SUBPROTOCOL, DEVICES, STREAM_SUBPROTOCOL, STREAMS};
use moorline_proto::problem::ProblemCode;

use crate::core::Core;
use crate::http::operation::{self, Operation};
use crate::http::problem::Refusal;
use crate::http::request_form::Form;
use crate::http::{about, connect, control, devices, idle_legs, legs, negotiate, streams};

const DEVICE: &str = "/v1/devices/{device}";
const DEVICE_STREAMS: &str = "/v1/devices/{device}/streams";
const CONNECT: &str = "/v1/devices/{device}/connect/{service}";
const LEG: &str = "/v1/legs/{node}/{stream}";
const IDLE_LEG: &str = "/v1/legs/{node}/idle";
const STREAM: &str = "/v1/streams/{stream}";

/// One thing that a peer can ask for.
#[derive(Debug)]
pub struct Route {
    /// The method.
    pub method: Method,
    /// The path; names in braces stand for one segment each.
    pub path: &'static str,
    /// The form of its requests.
    pub form: Form,
    handler: Handler,
}

type Answering = Pin<Box<dyn Future<Output = Response> + Send>>;

/// What answers a request whose form is good.
#[derive(Clone, Copy)]
enum Handler {
    /// Needs no caller's token.
    Open(fn(Arc<Core>, Request) -> Answering),
    /// What a caller needs an action for.
    Permitted(Action, fn(Arc<Core>, Action, Request) -> Answering),
}

macro_rules! open {
    ($handler:path) => {
        Handler::Open(|core, request| Box::pin(async move { $handler(core, request).await.into_response() }))
    };
}

const fn permitted<O: Operation + 'static>(action: Action) -> Handler {
    Handler::Permitted(action, |core, action, request| {
        Box::pin(async move { operation::run::<O>(core, action, request).await.into_response() })
    })
}

const fn route(method: Method, path: &'static str, form: Form, handler: Handler) -> Route {
    Route { method, path, form, handler }
}

/// Everything that a peer can ask for.
pub static ROUTES: [Route; 13] = [
    // Anyone; a device that proves who it is on the channel; whoever has a leg's token.
    route(Method::GET, ABOUT, Form::OPEN, open!(about::about)),
    route(Method::GET, CONTROL, Form::OPEN.upgraded_to(CONTROL_SUBPROTOCOL), open!(control::control)),
    route(Method::GET, LEG, Form::LEG.upgraded_to(STREAM_SUBPROTOCOL), open!(legs::join)),
    route(Method::GET, IDLE_LEG, Form::LEG.of_idle_leg(), open!(idle_legs::open_device)),
    // Callers.
    route(Method::GET, names::CONNECT, Form::CALLER.of_idle_leg(), open!(idle_legs::open_caller)),
    route(Method::POST, DEVICE_STREAMS, Form::CALLER.with_body(), permitted::<negotiate::Negotiate>(Action::StreamOpen)),
    route(Method::GET, CONNECT, Form::CALLER.upgraded_to(STREAM_SUBPROTOCOL), permitted::<connect::Connect>(Action::StreamOpen)),
    // Operators.
    route(Method::GET, DEVICES, Form::CALLER.with_query(&["max", "after"]), permitted::<devices::List>(Action::DeviceRead)),
    route(Method::GET, DEVICE, Form::CALLER, permitted::<devices::Show>(Action::DeviceRead)),
    route(Method::PUT, DEVICE, Form::CALLER.with_body(), permitted::<devices::Put>(Action::DeviceWrite)),
    route(Method::DELETE, DEVICE, Form::CALLER, permitted::<devices::Remove>(Action::DeviceWrite)),
    route(Method::GET, STREAMS, Form::CALLER, permitted::<streams::List>(Action::StreamList)),
    route(Method::DELETE, STREAM, Form::CALLER, permitted::<streams::End>(Action::StreamEnd)),
];

/// A router of the table.
pub fn routes(core: &Arc<Core>) -> Router {
    let mut router = Router::new();
    for (at, Route { path, .. }) in ROUTES.iter().enumerate() {
        if ROUTES[..at].iter().any(|earlier| earlier.path == *path) {
            continue;
        }
        let core = Arc::clone(core);
        router = router.route(path, any(move |request: Request| answer(core, path, request)));
    }
    router.fallback(async || Refusal::new(ProblemCode::NoSuchRoute, "see docs/PROTOCOL.md for the addresses of this relay"))
}

/// Answers a request for one of the table's paths. A HEAD is no GET.
async fn answer(core: Arc<Core>, path: &'static str, request: Request) -> Result<Response, Refusal> {
    let routes = ROUTES.iter().filter(|route| route.path == path);
    let Some(Route { form, handler, .. }) = routes.clone().find(|route| route.method == *request.method()) else {
        let methods: Vec<&str> = routes.map(|route| route.method.as_str()).collect();
        let methods = methods.join(", ");
        return Err(Refusal::new(ProblemCode::MethodNotAllowed, format!("this address takes {methods}")).allowing(methods));
    };
    form.check(&request, &core.origins)?;
    Ok(match *handler {
        Handler::Open(handler) => handler(core, request).await,
        Handler::Permitted(action, handler) => handler(core, action, request).await,
    })
}

impl fmt::Debug for Handler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Open(_) => f.write_str("Open"),
            Self::Permitted(action, _) => f.debug_tuple("Permitted").field(action).finish(),
        }
    }
}
