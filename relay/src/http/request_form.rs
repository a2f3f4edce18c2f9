//! The form of requests: that of all of them, and [`Form`], that of one route's. Checked here, before a handler is reached.

use axum::body::HttpBody;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE, HOST, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderValue, Request, Uri, Version};
use moorline_proto::join::RelayUrl;
use moorline_proto::names::{BODY_MEDIA_TYPE, LEG_HEADER, REUSE, SINGLE_HEADERS, STREAM_SUBPROTOCOL};
use moorline_proto::problem::ProblemCode;
use moorline_proto::text::{QUOTED_CHARS, printable};

use crate::http::bearer;
use crate::http::head_watch::HeadFault;
use crate::http::problem::Refusal;
use crate::http::upgrade;
use crate::limits::{HTTP_HEADER_BYTES, HTTP_HEADER_LINES, HTTP_TARGET_BYTES};

/// The form of one route's requests.
#[derive(Clone, Copy, Debug)]
pub struct Form {
    /// Its body.
    pub body: BodyForm,
    /// The parameters that its query may have, each of them once.
    pub query: &'static [&'static str],
    /// The subprotocol of the WebSocket to which it is upgraded.
    pub subprotocol: Option<&'static str>,
    /// It asks for a leg that is used again: no other one can be idle.
    pub asks_for_reuse: bool,
    /// Its token.
    pub token: TokenForm,
}

/// The body of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyForm {
    /// There is none.
    Empty,
    /// One JSON object.
    Json,
}

/// The token of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenForm {
    /// It needs none, and one that is there is not looked at.
    Open,
    /// A caller's, in `Authorization`.
    Caller,
    /// A leg's, in `Authorization` or, for browsers, in a subprotocol.
    Leg,
}

impl Form {
    /// A request without body and query that needs no token.
    pub(super) const OPEN: Self =
        Self { body: BodyForm::Empty, query: &[], subprotocol: None, asks_for_reuse: false, token: TokenForm::Open };
    /// The same with a caller's token.
    pub(super) const CALLER: Self = Self { token: TokenForm::Caller, ..Self::OPEN };
    /// The same with a leg's token.
    pub(super) const LEG: Self = Self { token: TokenForm::Leg, ..Self::OPEN };

    /// With one JSON object as its body.
    pub(super) const fn with_body(self) -> Self {
        Self { body: BodyForm::Json, ..self }
    }

    /// With a query that may have these parameters.
    pub(super) const fn with_query(self, query: &'static [&'static str]) -> Self {
        Self { query, ..self }
    }

    /// An upgrade to this subprotocol.
    pub(super) const fn upgraded_to(self, subprotocol: &'static str) -> Self {
        Self { subprotocol: Some(subprotocol), ..self }
    }

    /// An upgrade to a leg that is idle.
    pub(super) const fn of_idle_leg(self) -> Self {
        Self { asks_for_reuse: true, ..self.upgraded_to(STREAM_SUBPROTOCOL) }
    }

    /// Checks a request of the route.
    ///
    /// # Errors
    /// `malformed`, `too_large`, `upgrade_required`, `origin_not_allowed`.
    pub(super) fn check<B: HttpBody>(&self, request: &Request<B>, origins: &[String]) -> Result<(), Refusal> {
        check_query(request.uri().query(), self.query)?;
        let headers = request.headers();
        match self.body {
            BodyForm::Empty if !request.body().is_end_stream() => return Err(malformed("this request has no body; send none")),
            BodyForm::Empty => {}
            BodyForm::Json => check_json(headers, request.body().is_end_stream())?,
        }
        if let Some(subprotocol) = self.subprotocol {
            upgrade::check(headers, subprotocol, origins)?;
        }
        if self.asks_for_reuse && !upgrade::wants_reuse(headers) {
            return Err(malformed(format!("this leg is idle from the start; send {LEG_HEADER}: {REUSE}")));
        }
        match self.token {
            TokenForm::Open => Ok(()),
            TokenForm::Caller => bearer::find(headers).map(drop),
            TokenForm::Leg => bearer::find_leg_token(headers).map(drop),
        }
    }
}

fn malformed(detail: impl Into<String>) -> Refusal {
    Refusal::new(ProblemCode::Malformed, detail)
}

/// Checks what holds for every request. `fault` is what hyper has left out of its head.
///
/// # Errors
/// `malformed`, `too_large`.
pub(super) fn check<B>(request: &Request<B>, fault: Option<HeadFault>) -> Result<(), Refusal> {
    let headers = request.headers();
    if request.version() != Version::HTTP_11 {
        return Err(malformed("the relay speaks HTTP/1.1"));
    }
    check_sizes(request.uri().path_and_query().map_or(0, |target| target.as_str().len()), headers)?;
    match fault {
        None => {}
        Some(HeadFault::Fragment) => return Err(malformed("a request's target has no #; leave the fragment out")),
        Some(HeadFault::RepeatedLength) => return Err(stands_twice("Content-Length")),
    }
    if let Some(repeated) = SINGLE_HEADERS.iter().find(|name| headers.get_all(**name).iter().nth(1).is_some()) {
        return Err(stands_twice(repeated));
    }
    check_host(request.uri(), headers.get(HOST))?;
    if !headers.get(TRANSFER_ENCODING).is_none_or(|coding| coding.as_bytes().eq_ignore_ascii_case(b"chunked")) {
        return Err(malformed("Transfer-Encoding is chunked, once, and nothing else"));
    }
    let path = request.uri().path();
    if !path.starts_with('/') || path.contains(['%', '\\']) || path.contains("//") || path.contains("..") {
        return Err(malformed("a path has no %, no \\, no // and no .. in it"));
    }
    Ok(())
}

fn stands_twice(header: &str) -> Refusal {
    malformed(format!("{header} stands twice; send it once"))
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

/// `Host` is a host and perhaps a port, and the same as in the target where that is absolute.
fn check_host(target: &Uri, header: Option<&HeaderValue>) -> Result<(), Refusal> {
    let header = header.ok_or_else(|| malformed("Host is missing; send the relay's name"))?;
    let host = header.to_str().ok().and_then(authority);
    let host = host.ok_or_else(|| malformed("Host is a name or an address and, if any, a port: relay.example.com:8443"))?;
    match target.authority() {
        Some(named) if authority(named.as_str()).is_none_or(|named| named != host) => {
            Err(malformed("the request's target names another host than Host does"))
        }
        Some(_) | None => Ok(()),
    }
}

fn authority(text: &str) -> Option<RelayUrl> {
    if text.ends_with('/') { None } else { format!("https://{text}").parse().ok() }
}

fn check_query(query: Option<&str>, known: &[&str]) -> Result<(), Refusal> {
    let Some(query) = query else { return Ok(()) };
    if known.is_empty() {
        return Err(malformed("this address takes no query"));
    }
    let mut seen = Vec::new();
    for name in query.split('&').filter(|part| !part.is_empty()).map(|part| part.split_once('=').map_or(part, |(name, _)| name)) {
        if !known.contains(&name) {
            return Err(malformed(format!("there is no query parameter \"{}\" here", printable(name, QUOTED_CHARS))));
        }
        if seen.contains(&name) {
            return Err(malformed(format!("{name}: stands twice")));
        }
        seen.push(name);
    }
    Ok(())
}

fn check_json(headers: &HeaderMap, is_empty: bool) -> Result<(), Refusal> {
    if is_empty {
        return Err(malformed("the body: not a JSON object; there is none"));
    }
    if headers.contains_key(CONTENT_ENCODING) {
        return Err(malformed("a body has no Content-Encoding; send it as it is"));
    }
    let media_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    // What follows a semicolon are parameters, such as `charset=utf-8`.
    let media_type = media_type.map(|value| value.split(';').next().unwrap_or_default().trim());
    if !media_type.is_some_and(|name| name.eq_ignore_ascii_case(BODY_MEDIA_TYPE)) {
        return Err(malformed(format!("Content-Type of a body is {BODY_MEDIA_TYPE}")));
    }
    Ok(())
}
