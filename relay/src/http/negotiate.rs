//! `POST /v1/devices/{device}/streams`: negotiates a stream that another request, perhaps another program's, joins.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use http::header::CACHE_CONTROL;
use http::{HeaderMap, HeaderValue, StatusCode};
use moorline_proto::api::{NegotiationState, OpenStream, StreamTicket};
use moorline_proto::names::leg_path;
use moorline_proto::problem::Problem;
use tokio::time::{Instant, timeout};

use crate::access::permit::StreamPermit;
use crate::access::policy::{Denied, Resource};
use crate::access::principal::Caller;
use crate::core::Core;
use crate::http::body;
use crate::http::operation::{Authorized, Operation, Params};
use crate::http::problem::Refusal;
use crate::http::stream_request::{self, StreamForm};
use crate::stream::status::Status;
use crate::stream::{Via, refusal};

/// A stream that is negotiated first: 201 once the device accepted, 202 while that is not known, the problem once it rejected.
#[derive(Debug)]
pub(super) struct Negotiate {
    form: StreamForm,
    preferred_wait: Option<Duration>,
}

impl Operation for Negotiate {
    type Permit = StreamPermit;

    async fn read(_core: &Core, params: &Params, request: &mut Request) -> Result<Self, Refusal> {
        let since = Instant::now();
        let device = params.parse("device")?;
        let key = stream_request::key(request.headers())?;
        let preferred_wait = preferred_wait(request.headers());
        let open: OpenStream = stream_request::check(body::json(std::mem::take(request.body_mut())).await?)?;
        Ok(Self { form: StreamForm { device, open, key, since }, preferred_wait })
    }

    fn resource(&mut self, _core: &Core) -> Result<Resource<'_>, Refusal> {
        Ok(self.form.resource())
    }

    fn denied(&self, core: &Core, caller: &Caller, address: IpAddr, denied: Denied) -> Refusal {
        self.form.denied(core, caller, address, denied)
    }

    async fn run(self, core: Arc<Core>, Authorized { permit, .. }: Authorized<StreamPermit>) -> Result<Response, Refusal> {
        let mut stream = self.form.open(&core, permit, Via::Negotiation).await?;
        let max = core.times.prefer_wait_max;
        let patience = self.preferred_wait.map_or(max, |wait| wait.min(max));
        let status = match timeout(patience, stream.decided()).await {
            Ok(decided) => decided,
            Err(_) => stream.status(),
        };
        let state = state(&status)?;
        // Between the two it may have been refused, or joined by another request with the same key.
        let Some(token) = core.streams.renew_caller_token(stream.stream) else {
            let problem = match stream.status() {
                Status::Refused(problem) => Problem::clone(&problem),
                _ => refusal::Refusal::Used.problem(),
            };
            return Err(problem.into());
        };
        let url = leg_path(&core.node, &stream.stream);
        let ticket = StreamTicket { stream: stream.stream, state, url, token, expires_at: stream.expires_at };
        let status = if state == NegotiationState::Accepted { StatusCode::CREATED } else { StatusCode::ACCEPTED };
        let mut answer = (status, Json(ticket)).into_response();
        answer.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        Ok(answer)
    }
}

fn state(status: &Status) -> Result<NegotiationState, Refusal> {
    status.negotiation().map_err(|problem| Refusal::from(Problem::clone(&problem)))
}

/// `Prefer: wait=N` (RFC 7240). What is not understood is no preference.
fn preferred_wait(headers: &HeaderMap) -> Option<Duration> {
    let values = headers.get_all("prefer").iter().filter_map(|value| value.to_str().ok());
    let mut preferences = values.flat_map(|text| text.split(',')).map(str::trim);
    let seconds = preferences.find_map(|preference| preference.strip_prefix("wait=")?.parse().ok());
    seconds.map(Duration::from_secs)
}
