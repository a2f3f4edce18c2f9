//! The bearer token of a request: in one `Authorization` header, and nowhere else.

use http::HeaderMap;
use http::header::AUTHORIZATION;
use moorline_proto::problem::ProblemCode;
use moorline_proto::secret::Secret;

use crate::http::problem::Refusal;
use crate::limits::AUTHORIZATION_BYTES;

/// The token of the request.
///
/// # Errors
/// `token_missing`, `too_large`, or `malformed` for a repeated header or another scheme.
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
    if value.len() > AUTHORIZATION_BYTES {
        return Err(Refusal::new(
            ProblemCode::TooLarge,
            format!("Authorization has {} bytes, at most {AUTHORIZATION_BYTES} are allowed", value.len()),
        ));
    }
    let text = value.to_str().ok().and_then(|text| text.split_once(' '));
    match text {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") && !token.trim().is_empty() => {
            Ok(Some(Secret::new(token.trim()))) // kept as long as the request is decided
        }
        Some(_) | None => Err(Refusal::new(ProblemCode::Malformed, "Authorization is not `Bearer TOKEN`")),
    }
}
