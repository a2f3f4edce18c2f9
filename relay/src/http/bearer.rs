//! The bearer token of a request: in one `Authorization` header, or, for legs and browsers, in a subprotocol; and nowhere else.

use http::HeaderMap;
use http::header::AUTHORIZATION;
use moorline_proto::names::TOKEN_SUBPROTOCOL_PREFIX;
use moorline_proto::problem::ProblemCode;
use moorline_proto::secret::Secret;

use crate::http::problem::Refusal;
use crate::http::upgrade::subprotocols;
use crate::limits::AUTHORIZATION_BYTES;

/// The caller's token of the request.
///
/// # Errors
/// `token_missing`; `too_large`, or `malformed` for another scheme or no token behind it.
pub fn bearer(headers: &HeaderMap) -> Result<Secret, Refusal> {
    find(headers)?.ok_or_else(|| Refusal::new(ProblemCode::TokenMissing, "send it as `Authorization: Bearer …`"))
}

/// The leg's token of the request.
///
/// # Errors
/// `token_missing`; `too_large`, or `malformed` for another scheme, no token behind it, or two tokens.
pub fn leg_token(headers: &HeaderMap) -> Result<Secret, Refusal> {
    find_leg_token(headers)?.ok_or_else(|| Refusal::new(ProblemCode::TokenMissing, "send the leg's token as `Authorization: Bearer …`"))
}

/// The token in `Authorization`, if there is one. The header stands once.
///
/// # Errors
/// `too_large`, or `malformed` for another scheme or no token behind it.
pub(super) fn find(headers: &HeaderMap) -> Result<Option<Secret>, Refusal> {
    let Some(value) = headers.get(AUTHORIZATION) else { return Ok(None) };
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

/// The token in `Authorization`, or in a second subprotocol, if there is one.
///
/// # Errors
/// As [`find`]; and `malformed` where there are two.
pub(super) fn find_leg_token(headers: &HeaderMap) -> Result<Option<Secret>, Refusal> {
    let offered = subprotocols(headers).filter_map(|offered| offered.strip_prefix(TOKEN_SUBPROTOCOL_PREFIX));
    let mut tokens = find(headers)?.into_iter().chain(offered.map(Secret::new)); // kept as long as the request is decided
    let token = tokens.next();
    if tokens.next().is_some() {
        return Err(Refusal::new(ProblemCode::Malformed, "there are two tokens; send one, in Authorization or as a subprotocol"));
    }
    Ok(token)
}
