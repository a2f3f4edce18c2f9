//! A refusal as an HTTP answer: `application/problem+json` with the headers that belong to its status.

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::header::{ALLOW, CONNECTION, CONTENT_TYPE, RETRY_AFTER, SEC_WEBSOCKET_VERSION, UPGRADE, WWW_AUTHENTICATE};
use http::{HeaderName, HeaderValue, StatusCode};
use moorline_proto::names::PROBLEM_MEDIA_TYPE;
use moorline_proto::problem::{Problem, ProblemCode};
use serde::Serialize;

use crate::limits::RETRY_AFTER_S;

/// Why a request is refused, ready to be sent.
#[derive(Clone, Debug)]
pub struct Refusal {
    problem: Box<Problem>,
    supported: Option<&'static str>,
    allow: Option<HeaderValue>,
}

impl Refusal {
    /// A refusal with a detail about this case.
    pub fn new(code: ProblemCode, detail: impl Into<String>) -> Self {
        Problem::new(code, detail).into()
    }

    /// Names the subprotocol that the address supports, as `supported` in the body.
    pub fn supporting(mut self, subprotocol: &'static str) -> Self {
        self.supported = Some(subprotocol);
        self
    }

    /// Names the methods that the address allows, in the `Allow` header.
    pub fn allowing(mut self, methods: String) -> Self {
        self.allow = HeaderValue::try_from(methods).ok();
        self
    }

    /// The problem that becomes the body.
    pub fn problem(&self) -> &Problem {
        &self.problem
    }
}

impl From<Problem> for Refusal {
    fn from(mut problem: Problem) -> Self {
        if problem.status == 429 || problem.status == 503 {
            problem.retry_after_s.get_or_insert(RETRY_AFTER_S);
        }
        Self { problem: Box::new(problem), supported: None, allow: None }
    }
}

#[derive(Serialize)]
struct Written<'a> {
    #[serde(flatten)]
    problem: &'a Problem,
    #[serde(skip_serializing_if = "Option::is_none")]
    supported: Option<[&'a str; 1]>,
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let body = serde_json::to_vec(&Written { problem: &self.problem, supported: self.supported.map(|name| [name]) })
            .expect("a problem has string keys and no values that JSON lacks");
        let mut answer = Response::new(Body::from(body));
        *answer.status_mut() = StatusCode::from_u16(self.problem.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut put = |name: HeaderName, value: &'static str| answer.headers_mut().insert(name, HeaderValue::from_static(value));
        put(CONTENT_TYPE, PROBLEM_MEDIA_TYPE);
        put(CONNECTION, "close");
        match self.problem.status {
            401 => drop(put(WWW_AUTHENTICATE, "Bearer")),
            426 => {
                put(CONNECTION, "close, upgrade");
                put(UPGRADE, "websocket");
                put(SEC_WEBSOCKET_VERSION, "13");
            }
            _ => {}
        }
        if let Some(methods) = self.allow {
            answer.headers_mut().insert(ALLOW, methods);
        }
        if let Some(seconds) = self.problem.retry_after_s {
            answer.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        answer
    }
}
