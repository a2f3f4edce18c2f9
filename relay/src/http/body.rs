//! Reading the body of a request as JSON, within a size and a time.

use axum::body::{Body, HttpBody as _};
use bytes::Bytes;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use moorline_proto::bounds::REQUEST_BODY_BYTES;
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
    // serde would accept `["ssh"]` for a struct, field by field.
    if !bytes.trim_ascii_start().starts_with(b"{") {
        return Err(malformed("not a JSON object".to_owned()));
    }
    let mut json = serde_json::Deserializer::from_slice(&bytes);
    let value = serde_path_to_error::deserialize(&mut json).map_err(|error| match (error.path().to_string(), error.inner()) {
        (path, inner) if path == "." => malformed(inner.to_string()),
        (path, inner) => malformed(format!("{path}: {inner}")),
    })?;
    json.end().map_err(|error| malformed(error.to_string()))?;
    Ok(value)
}

async fn read(body: Body) -> Result<Bytes, Refusal> {
    let malformed = |detail: &str| Refusal::new(ProblemCode::Malformed, detail);
    let too_large = || Refusal::new(ProblemCode::TooLarge, format!("the body: at most {REQUEST_BODY_BYTES} bytes are allowed"));
    // Refused by the announced length alone: reading would invite the client to send it, with 100 Continue.
    if body.size_hint().lower() > REQUEST_BODY_BYTES as u64 {
        return Err(too_large());
    }
    match timeout(HTTP_BODY_TIMEOUT, Limited::new(body, REQUEST_BODY_BYTES).collect()).await {
        Ok(Ok(whole)) => Ok(whole.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(too_large()),
        Ok(Err(_)) => Err(malformed("the body is incomplete")),
        Err(_) => Err(malformed("the body took too long")),
    }
}
