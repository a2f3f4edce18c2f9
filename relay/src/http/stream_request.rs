//! What a caller may say when it asks for a stream: as headers of `connect`, as a body of `POST`.

use std::net::IpAddr;
use std::sync::Arc;

use http::{HeaderMap, HeaderValue};
use moorline_proto::api::OpenStream;
use moorline_proto::bounds::{FEATURES, IDEMPOTENCY_KEY_CHARS};
use moorline_proto::id::{DeviceId, Feature, ServiceName};
use moorline_proto::names::{DATA_HEADER, DEADLINE_HEADER, FEATURES_HEADER, IDEMPOTENCY_KEY_HEADER, REASON_HEADER, WAIT_HEADER};
use moorline_proto::problem::ProblemCode;
use moorline_proto::reuse::is_key;
use moorline_proto::text::{Data, Text};
use moorline_proto::whole::Whole;
use percent_encoding::percent_decode_str;
use tokio::time::Instant;

use crate::access::permit::StreamPermit;
use crate::access::policy::{Denied, Resource};
use crate::access::principal::Caller;
use crate::core::Core;
use crate::http::problem::Refusal;
use crate::stream::{StreamHandle, StreamRequest, Via, open, record_denied};

fn malformed(name: &'static str, detail: impl std::fmt::Display) -> Refusal {
    Refusal::new(ProblemCode::Malformed, format!("{name}: {detail}"))
}

/// A header, which stands once.
fn header<'a>(headers: &'a HeaderMap, name: &'static str) -> Result<Option<&'a str>, Refusal> {
    let value = headers.get(name).map(HeaderValue::to_str).transpose();
    value.map_err(|_| malformed(name, "visible ASCII characters only"))
}

fn seconds(headers: &HeaderMap, name: &'static str) -> Result<Option<u64>, Refusal> {
    let text = header(headers, name)?;
    let seconds = text.map(str::parse::<Whole>).transpose().map_err(|error| malformed(name, format_args!("{error} of seconds")))?;
    Ok(seconds.map(Whole::get))
}

/// Whether every `%` has two hexadecimal digits behind it.
fn is_percent_encoded(text: &str) -> bool {
    let digits = |rest: &str| rest.as_bytes().get(..2).is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit));
    text.split('%').skip(1).all(digits)
}

fn reason(headers: &HeaderMap) -> Result<Option<Text<{ moorline_proto::bounds::REASON_CHARS }>>, Refusal> {
    let Some(text) = header(headers, REASON_HEADER)? else { return Ok(None) };
    let decoded = percent_decode_str(text).decode_utf8().ok().filter(|_| is_percent_encoded(text));
    let text = decoded.ok_or_else(|| malformed(REASON_HEADER, "percent-encoded UTF-8"))?;
    Text::new(text).map(Some).map_err(|error| malformed(REASON_HEADER, error))
}

fn features(headers: &HeaderMap) -> Result<Vec<Feature>, Refusal> {
    let Some(text) = header(headers, FEATURES_HEADER)? else { return Ok(Vec::new()) };
    let names = text.split(',').map(str::trim).filter(|name| !name.is_empty());
    let features: Vec<Feature> = names
        .map(str::parse)
        .collect::<Result<_, _>>()
        .map_err(|error: moorline_proto::id::NameError| malformed(FEATURES_HEADER, error))?;
    if features.len() > FEATURES {
        return Err(malformed(FEATURES_HEADER, format_args!("{} features, at most {FEATURES} are allowed", features.len())));
    }
    Ok(features)
}

/// The request in the headers of a `connect`.
///
/// # Errors
/// `malformed`, with the header that is wrong.
pub(super) fn from_headers(headers: &HeaderMap, service: ServiceName) -> Result<OpenStream, Refusal> {
    let data = header(headers, DATA_HEADER)?.map(Data::from_base64).transpose().map_err(|error| malformed(DATA_HEADER, error))?;
    let open = OpenStream {
        service,
        deadline_s: seconds(headers, DEADLINE_HEADER)?,
        wait_s: seconds(headers, WAIT_HEADER)?,
        reason: reason(headers)?,
        data,
        features: features(headers)?,
    };
    check(open)
}

/// What the types of a request do not rule out.
///
/// # Errors
/// `malformed`.
pub(super) fn check(open: OpenStream) -> Result<OpenStream, Refusal> {
    if open.deadline_s == Some(0) {
        return Err(malformed("deadline", "at least 1 second"));
    }
    Ok(open)
}

/// The key of the request, if it has one.
///
/// # Errors
/// `malformed`.
pub(super) fn key(headers: &HeaderMap) -> Result<Option<String>, Refusal> {
    let Some(text) = header(headers, IDEMPOTENCY_KEY_HEADER)? else { return Ok(None) };
    if !is_key(text) {
        return Err(malformed(IDEMPOTENCY_KEY_HEADER, format_args!("1 to {IDEMPOTENCY_KEY_CHARS} visible ASCII characters")));
    }
    Ok(Some(text.to_owned()))
}

/// A request for a stream whose form is good.
#[derive(Debug)]
pub(super) struct StreamForm {
    pub(super) device: DeviceId,
    pub(super) open: OpenStream,
    pub(super) key: Option<String>,
    pub(super) since: Instant,
}

impl StreamForm {
    /// What it asks for.
    pub(super) fn resource(&self) -> Resource<'_> {
        Resource::service(&self.device, &self.open.service)
    }

    /// The answer to a caller that may not have the stream, which leaves an end record as every refusal does.
    pub(super) fn denied(&self, core: &Core, caller: &Caller, address: IpAddr, denied: Denied) -> Refusal {
        record_denied(core, (caller, address), &self.device, &self.open, self.since, denied);
        Refusal::new(denied.problem(), denied.to_string())
    }

    /// Sets the stream up, or finds the one that the same key set up.
    pub(super) async fn open(self, core: &Arc<Core>, permit: StreamPermit, via: Via) -> Result<StreamHandle, Refusal> {
        let Self { open: wanted, key, since, .. } = self;
        let stream = open(core, StreamRequest { open: wanted, permit, key, via, since }).await;
        stream.map_err(|refusal| refusal.problem().into())
    }
}
