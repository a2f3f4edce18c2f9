//! The form that every request must have, checked before anything else; and the service that hyper calls for each request.

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
use crate::limits::{HTTP_HEADER_BYTES, HTTP_HEADER_LINES, HTTP_TARGET_BYTES, UNAUTHENTICATED_REQUESTS};
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
        if let Err(refusal) = check(&request) {
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

fn check(request: &Request<Incoming>) -> Result<(), Refusal> {
    let malformed = |detail: &str| Err(Refusal::new(ProblemCode::Malformed, detail));
    if request.version() != Version::HTTP_11 {
        return malformed("the relay speaks HTTP/1.1");
    }
    check_sizes(request.uri().path_and_query().map_or(0, |target| target.as_str().len()), request.headers())?;
    if request.headers().get_all(HOST).iter().count() != 1 {
        return malformed("exactly one Host is required");
    }
    if !has_known_coding(request.headers()) {
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
    let over = |what: &str, count: usize, max: usize| {
        Err(Refusal::new(ProblemCode::TooLarge, format!("{what}: {count}, at most {max} are allowed")))
    };
    match () {
        () if target > HTTP_TARGET_BYTES => over("bytes of the request's target", target, HTTP_TARGET_BYTES),
        () if bytes > HTTP_HEADER_BYTES => over("bytes of headers", bytes, HTTP_HEADER_BYTES),
        () if headers.len() > HTTP_HEADER_LINES => over("header lines", headers.len(), HTTP_HEADER_LINES),
        () => Ok(()),
    }
}

fn takes_query(method: &Method, path: &str) -> bool {
    method == Method::GET && path == moorline_proto::names::DEVICES
}

/// Whether the body has no transfer coding but `chunked`. hyper itself refuses lengths that differ and codings behind `chunked`; if there
/// are both a length and `chunked`, it ignores the length and closes the connection.
fn has_known_coding(headers: &HeaderMap) -> bool {
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    let is_chunked = |coding: &HeaderValue| coding.as_bytes().eq_ignore_ascii_case(b"chunked");
    codings.next().is_none_or(is_chunked) && codings.next().is_none()
}

/// Whether a request announces a body.
pub(crate) fn announces_body(headers: &HeaderMap) -> bool {
    let length = headers.get(CONTENT_LENGTH);
    headers.contains_key(TRANSFER_ENCODING) || length.is_some_and(|length| length.as_bytes() != b"0")
}
