//! The service that hyper calls for each request of a connection: the form that every request must have, the client's address, the router.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Router;
use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::header::CONNECTION;
use http::{HeaderValue, Request, StatusCode};
use hyper::body::Incoming;
use moorline_proto::problem::ProblemCode;
use tower_service::Service;

use crate::http::head_watch::HeadFaults;
use crate::http::problem::Refusal;
use crate::http::request_form;
use crate::limits::UNAUTHENTICATED_REQUESTS;
use crate::net::admission::Peer;
use crate::net::client_address::TrustedProxies;

/// The router, behind the check of form. Cheap to clone.
#[derive(Clone, Debug)]
pub struct HttpService {
    router: Router,
}

impl HttpService {
    /// Puts the check in front of a router.
    pub fn new(router: Router) -> Self {
        Self { router }
    }

    /// The service of one connection. If its peer is one of `trusted_proxies`, each request names its client.
    pub(super) fn service(&self, peer: Peer, trusted_proxies: TrustedProxies, faults: HeadFaults) -> Requests {
        Requests { router: self.router.clone(), peer, trusted_proxies, faults, requests: AtomicUsize::new(0) }
    }
}

/// Answers the requests of one connection.
#[derive(Debug)]
pub(super) struct Requests {
    router: Router,
    peer: Peer,
    trusted_proxies: TrustedProxies,
    faults: HeadFaults,
    requests: AtomicUsize,
}

impl Requests {
    /// Counts a request. Whether its answer closes the connection.
    fn is_last(&self) -> bool {
        self.requests.fetch_add(1, Ordering::Relaxed) + 1 >= UNAUTHENTICATED_REQUESTS && self.peer.permit.is_unauthenticated()
    }
}

impl hyper::service::Service<Request<Incoming>> for Requests {
    type Response = Response;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response, Infallible>> + Send>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let is_last = self.is_last();
        if let Err(refusal) = request_form::check(&request, self.faults.get()) {
            return Box::pin(std::future::ready(Ok(ending(refusal.into_response(), is_last))));
        }
        let mut request = request.map(Body::new);
        let address = self.trusted_proxies.forwarded(self.peer.address, request.headers());
        if self.trusted_proxies.contains(self.peer.address)
            && let Some(prefix) = self.trusted_proxies.prefix_of(address)
            && let Err(full) = self.peer.permit.set_address(Some(prefix))
        {
            let refusal = Refusal::new(ProblemCode::Overloaded, full.to_string());
            return Box::pin(std::future::ready(Ok(refusal.into_response())));
        }
        request.extensions_mut().insert(Peer { address, ..self.peer.clone() });
        let answer = self.router.clone().call(request);
        if is_last { Box::pin(async { answer.await.map(|answer| ending(answer, true)) }) } else { Box::pin(answer) }
    }
}

fn ending(mut answer: Response, is_last: bool) -> Response {
    if is_last && answer.status() != StatusCode::SWITCHING_PROTOCOLS {
        answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    answer
}
