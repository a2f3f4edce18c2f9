//! The body of a request as JSON, within its size and time.

use axum::body::{Body, HttpBody as _};
use bytes::Bytes;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use moorline_proto::bounds::REQUEST_BODY_BYTES;
use moorline_proto::message::decode_body;
use moorline_proto::problem::ProblemCode;
use serde::de::DeserializeOwned;
use tokio::time::timeout;

use crate::http::problem::Refusal;
use crate::limits::HTTP_BODY_TIMEOUT;

/// Reads a body as JSON.
///
/// # Errors
/// `too_large`, or `malformed` with the field that is wrong.
pub async fn json<T: DeserializeOwned>(body: Body) -> Result<T, Refusal> {
    let bytes = read(body).await?;
    let malformed = |detail: String| Refusal::new(ProblemCode::Malformed, format!("the body: {detail}"));
    decode_body(&bytes).map_err(|error| malformed(error.to_string()))
}

async fn read(body: Body) -> Result<Bytes, Refusal> {
    let malformed = |detail: &str| Refusal::new(ProblemCode::Malformed, detail);
    let too_large = || Refusal::new(ProblemCode::TooLarge, format!("the body: at most {REQUEST_BODY_BYTES} bytes are allowed"));
    // What the head announces is refused before it is sent, and not asked for with a 100.
    if body.size_hint().lower() > REQUEST_BODY_BYTES as u64 {
        return Err(too_large());
    }
    match timeout(HTTP_BODY_TIMEOUT, Limited::new(body, REQUEST_BODY_BYTES).collect()).await {
        Ok(Ok(whole)) => Ok(whole.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(too_large()),
        Ok(Err(_)) => Err(malformed("the body did not come whole")),
        Err(_) => Err(malformed("the body did not come in time")),
    }
}
