//! The form that every request must have, checked before anything else is requests; and the way from hyper to the router.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Router;
use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::header::{CONNECTION, CONTENT_LENGTH, HOST, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Version};
use hyper::body::Incoming;
use moorline_proto::problem::ProblemCode;
use tower_service::Service;

use crate::http::problem::Refusal;
use crate::net::admission::Peer;
use crate::net::client_address::TrustedProxies;

/// Bytes of a request line's target.
const TARGET_BYTES: usize = 8 * 1024;
/// Bytes of all header lines together.
const HEADER_BYTES: usize = 32 * 1024;
/// Header lines.
const HEADER_LINES: usize = 100;

/// Requests on one connection that nobody had to be known for: the last one's answer ends it. Who asks in bulk and reads nothing costs the
/// relay thousands of answers otherwise, before the connection is full.
const UNAUTHENTICATED_REQUESTS: usize = 16;

/// The router with the check of form before it. Cheap to clone.
#[derive(Clone, Debug)]
pub struct HttpService {
    router: Router,
}

impl HttpService {
    /// Puts the check before a router.
    pub fn new(router: Router) -> Self {
        Self { router }
    }

    /// What hyper calls for each request of a peer's connection. If the peer is one of `trusted_proxies`, each request says whose it is.
    pub(crate) fn service(&self, peer: Peer, trusted_proxies: TrustedProxies) -> Requests {
        Requests { router: self.router.clone(), peer, trusted_proxies, requests: AtomicUsize::new(0) }
    }
}

/// Answers the requests of one connection.
#[derive(Debug)]
pub(crate) struct Requests {
    router: Router,
    peer: Peer,
    trusted_proxies: TrustedProxies,
    requests: AtomicUsize,
}

impl Requests {
    /// Whether the connection ends behind the answer to this request.
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
        if let Err(refusal) = check(&request) {
            return Box::pin(std::future::ready(Ok(ending(refusal.into_response(), is_last))));
        }
        let mut request = request.map(Body::new);
        let address = self.trusted_proxies.forwarded(self.peer.address, request.headers());
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

fn check(request: &Request<Incoming>) -> Result<(), Refusal> {
    let malformed = |detail: &str| Err(Refusal::new(ProblemCode::Malformed, detail));
    if request.version() != Version::HTTP_11 {
        return malformed("the relay speaks HTTP/1.1");
    }
    check_sizes(request.uri().path_and_query().map_or(0, |target| target.as_str().len()), request.headers())?;
    if request.headers().get_all(HOST).iter().count() != 1 {
        return malformed("exactly one Host is required");
    }
    if !is_coded_as_known(request.headers()) {
        return malformed("Transfer-Encoding is chunked, once, and nothing else");
    }
    let path = request.uri().path();
    if !path.starts_with('/') || path.contains(['%', '\\']) || path.contains("//") || path.contains("..") {
        return malformed("a path has no %, no \\, no // and no .. in it");
    }
    let has_query = request.uri().query().is_some();
    if has_query && !takes_query(request.method(), path) {
        return malformed("this address takes no query");
    }
    Ok(())
}

fn check_sizes(target: usize, headers: &HeaderMap) -> Result<(), Refusal> {
    let bytes: usize = headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum();
    let over = |what: &str, got: usize, most: usize| {
        Err(Refusal::new(ProblemCode::TooLarge, format!("{what}: {got}, at most {most} are allowed")))
    };
    match () {
        () if target > TARGET_BYTES => over("bytes of the request's target", target, TARGET_BYTES),
        () if bytes > HEADER_BYTES => over("bytes of headers", bytes, HEADER_BYTES),
        () if headers.len() > HEADER_LINES => over("header lines", headers.len(), HEADER_LINES),
        () => Ok(()),
    }
}

fn takes_query(method: &Method, path: &str) -> bool {
    method == Method::GET && path == moorline_proto::names::DEVICES
}

/// Whether the body comes as it is or in chunks, and in no further coding, which nobody here would undo. What hyper sees by itself (lengths
/// that differ, chunks that are not last) never comes here; where chunks and a length are there, it drops the length and ends the connection.
fn is_coded_as_known(headers: &HeaderMap) -> bool {
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    let is_chunked = |coding: &HeaderValue| coding.as_bytes().eq_ignore_ascii_case(b"chunked");
    codings.next().is_none_or(is_chunked) && codings.next().is_none()
}

/// Whether a request announces a body.
pub(crate) fn announces_body(headers: &HeaderMap) -> bool {
    let length = headers.get(CONTENT_LENGTH);
    headers.contains_key(TRANSFER_ENCODING) || length.is_some_and(|length| length.as_bytes() != b"0")
}
