//! The bearer token of a request: in the `Authorization` header, once, and nowhere else.

use http::HeaderMap;
use http::header::AUTHORIZATION;
use moorline_proto::problem::ProblemCode;
use moorline_proto::secret::Secret;

use crate::http::problem::Refusal;

/// Bytes of an `Authorization` header.
const MOST: usize = 8 * 1024;

/// The token of the request.
///
/// # Errors
/// `token_missing`, `too_large`, or `malformed` for a header that stands twice or is no bearer token.
pub fn bearer(headers: &HeaderMap) -> Result<Secret, Refusal> {
    find(headers)?.ok_or_else(|| Refusal::new(ProblemCode::TokenMissing, "send it as `Authorization: Bearer …`"))
}

/// The token of the request, if it has one.
///
/// # Errors
/// As [`bearer`], without `token_missing`.
pub fn find(headers: &HeaderMap) -> Result<Option<Secret>, Refusal> {
    let mut all = headers.get_all(AUTHORIZATION).iter();
    let Some(value) = all.next() else { return Ok(None) };
    if all.next().is_some() {
        return Err(Refusal::new(ProblemCode::Malformed, "Authorization stands twice"));
    }
    if value.len() > MOST {
        return Err(Refusal::new(ProblemCode::TooLarge, format!("Authorization has {} bytes, at most {MOST} are allowed", value.len())));
    }
    let text = value.to_str().ok().and_then(|text| text.split_once(' '));
    match text {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") && !token.trim().is_empty() => {
            Ok(Some(Secret::new(token.trim()))) // kept as long as the request is decided
        }
        Some(_) | None => Err(Refusal::new(ProblemCode::Malformed, "Authorization is not `Bearer TOKEN`")),
    }
}
