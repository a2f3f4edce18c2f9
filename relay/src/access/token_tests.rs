//! The requirements of a caller's token: each one is removed or changed in turn. And the tokens that the relay mints.

use moorline_proto::claims::Action;
use moorline_proto::names::PROOF_TYP;
use serde_json::{Value, json};

use super::*;
use crate::access::mint::{SigningKey, SigningKeyError};
use crate::access::test_keys::{ED25519, OTHER_ED25519, P256, Pair, hmac_signed, unsigned, with};

/// Now, in seconds since 1970.
const NOW: u64 = 1_800_000_000;

/// Ed25519 is the relay's own key, P-256 is an external issuer's.
fn auth() -> TokenVerifier {
    let own = CallerKey::new("moorline:relay:relay", "relay".parse().unwrap(), ED25519.public());
    let corp = CallerKey::new("https://id.corp.example", "corp".parse().unwrap(), P256.public());
    let names = vec!["relay.example.com".to_owned(), "127.0.0.1".to_owned()];
    TokenVerifier::new(vec![own, corp], names, Clock::at(Timestamp::from_millis(NOW * 1_000)))
}

fn header(pair: &Pair) -> Value {
    let key = pair.public();
    json!({ "typ": "JWT", "alg": key.algorithm(), "kid": key.thumbprint() })
}

fn claims() -> Value {
    json!({
        "iss": "moorline:relay:relay", "sub": "alice", "aud": "relay.example.com", "iat": NOW - 10, "exp": NOW + 3_600, "jti": "7",
        "access": [{ "actions": ["stream.open"], "devices": ["lamp-*"], "services": ["ssh"] }],
    })
}

fn judge(token: &str) -> Result<Caller, InvalidToken> {
    auth().authenticate(&Secret::new(token))
}

/// The result for a token of the relay's own key with these changes.
fn changed(header_changes: Value, claim_changes: Value) -> Result<Caller, InvalidToken> {
    judge(&ED25519.sign(&with(&header(&ED25519), header_changes), &with(&claims(), claim_changes)))
}

fn is(error: &InvalidToken, variant: &str) -> bool {
    format!("{error:?}").starts_with(variant)
}

#[test]
fn a_valid_token_names_the_caller_and_its_access() {
    let caller = changed(json!({}), json!({})).unwrap();
    assert_eq!((caller.id.to_string(), caller.token_id.as_deref()), ("relay:alice".to_owned(), Some("7")));
    assert_eq!(caller.expires_at, Timestamp::from_millis((NOW + 3_630) * 1_000), "exp and the leeway");
    assert_eq!(caller.access[0].actions, [Action::StreamOpen]);
    let without_rules = changed(json!({}), json!({ "access": null, "jti": null })).unwrap();
    assert!(without_rules.access.is_empty());
}

#[test]
fn a_token_of_another_issuer_has_its_short_name() {
    let token = P256.sign(&header(&P256), &with(&claims(), json!({ "iss": "https://id.corp.example", "aud": ["x", "127.0.0.1"] })));
    assert_eq!(judge(&token).unwrap().id.to_string(), "corp:alice");
    let in_anothers_name = P256.sign(&header(&P256), &claims());
    assert!(matches!(judge(&in_anothers_name), Err(InvalidToken::Issuer)));
}

#[test]
fn every_required_claim_is_required() {
    for claim in ["iss", "sub", "aud", "exp", "iat"] {
        let error = changed(json!({}), json!({ claim: null })).unwrap_err();
        assert!(matches!(&error, InvalidToken::Claims(text) if text.contains(claim)), "{error:?}");
    }
}

#[test]
fn claims_for_something_else_are_refused() {
    for (change, variant) in [
        (json!({ "aud": "evil.example.com" }), "Audience"),
        (json!({ "aud": [] }), "Audience"),
        (json!({ "aud": "RELAY.example.com" }), "Audience"),
        (json!({ "iss": "moorline:relay:other" }), "Issuer"),
        (json!({ "sub": "" }), "Claims"),
        (json!({ "sub": "a b" }), "Claims"),
        (json!({ "exp": "soon" }), "Claims"),
        (json!({ "exp": -1 }), "Claims"),
        (json!({ "access": [{ "actions": ["stream.open"], "devices": ["*"], "networks": ["10.0.0.0/8"] }] }), "Claims"),
        (json!({ "access": [{ "actions": ["everything"], "devices": ["*"] }] }), "Claims"),
        (json!({ "access": [{ "actions": ["stream.open"], "devices": ["LAMP"] }] }), "Claims"),
    ] {
        let error = changed(json!({}), change.clone()).unwrap_err();
        assert!(is(&error, variant), "{change}: {error:?}");
        assert_eq!(error.problem(), ProblemCode::TokenInvalid);
    }
}

#[test]
fn headers_for_something_else_are_refused() {
    for (change, variant) in [
        (json!({ "typ": PROOF_TYP }), "Purpose"),
        (json!({ "typ": "dpop+jwt" }), "Purpose"),
        (json!({ "crit": ["b64"], "b64": false }), "Critical"),
        (json!({ "kid": null }), "UnknownKey"),
        (json!({ "kid": "../../etc/passwd" }), "UnknownKey"),
        (json!({ "kid": OTHER_ED25519.public().thumbprint() }), "UnknownKey"),
        (json!({ "kid": null, "jwk": ED25519.public().to_jwk() }), "UnknownKey"),
        (json!({ "alg": "ES256" }), "Algorithm"),
        (json!({ "alg": "HS256" }), "Algorithm"),
        (json!({ "alg": "none" }), "NoJwt"),
        (json!({ "alg": null }), "NoJwt"),
        (json!({ "kid": P256.public().thumbprint() }), "Algorithm"),
        (json!({ "kid": P256.public().thumbprint(), "alg": "ES256" }), "Signature"),
    ] {
        let error = changed(change.clone(), json!({})).unwrap_err();
        assert!(is(&error, variant), "{change}: {error:?}");
        assert_eq!(error.problem(), ProblemCode::TokenInvalid);
    }
    for typ in [json!("at+jwt"), json!("jwt"), json!(null)] {
        assert!(changed(json!({ "typ": typ }), json!({})).is_ok(), "{typ}");
    }
}

#[test]
fn only_the_private_key_makes_a_signature_that_holds() {
    let refused = |token: &str, variant: &str| {
        let error = judge(token).unwrap_err();
        assert!(is(&error, variant), "{token}: {error:?}");
        assert_eq!(error.problem(), ProblemCode::TokenInvalid);
    };
    refused(&OTHER_ED25519.sign(&header(&ED25519), &claims()), "Signature");
    let good = ED25519.sign(&header(&ED25519), &claims());
    let (_, signature) = good.rsplit_once('.').unwrap();
    refused(&format!("{}.{signature}", unsigned(&header(&ED25519), &with(&claims(), json!({ "sub": "mallory" })))), "Signature");
    refused(&format!("{}.", unsigned(&header(&ED25519), &claims())), "Signature");
    let hmac = with(&header(&ED25519), json!({ "alg": "HS256" }));
    refused(&hmac_signed(&hmac, &claims(), &ED25519.public().to_spki()), "Algorithm");
    for text in ["", "..", "a.b.c", "mrl_leg_x", &unsigned(&header(&ED25519), &claims()), &format!("{good}.x")] {
        refused(text, "NoJwt");
    }
}

#[test]
fn a_token_is_valid_from_start_to_expiry_with_thirty_seconds_of_leeway() {
    let code = |change: Value| changed(json!({}), change).map(|_| ()).map_err(|error| error.problem());
    assert_eq!(code(json!({ "exp": NOW - 29 })), Ok(()));
    assert_eq!(code(json!({ "exp": NOW - 30 })), Err(ProblemCode::TokenExpired));
    assert_eq!(code(json!({ "exp": 0 })), Err(ProblemCode::TokenExpired));
    assert_eq!(code(json!({ "exp": (1_u64 << 53) - 1 })), Ok(()), "an unlimited lifetime does not overflow");
    assert_eq!(code(json!({ "nbf": NOW + 30 })), Ok(()));
    assert_eq!(code(json!({ "nbf": NOW + 31 })), Err(ProblemCode::TokenNotYetValid));
    assert_eq!(code(json!({ "iat": NOW + 31 })), Err(ProblemCode::TokenNotYetValid));
    assert_eq!(code(json!({ "iat": NOW + 31, "nbf": 0 })), Err(ProblemCode::TokenNotYetValid));
    assert_eq!(code(json!({ "iat": NOW + 30 })), Ok(()));
    assert_eq!(code(json!({ "exp": 1_u64 << 53 })), Err(ProblemCode::TokenInvalid));
    let error = changed(json!({}), json!({ "exp": 0 })).unwrap_err();
    assert_eq!(error.to_string(), "the token expired at 1970-01-01T00:00:00.000Z; get a new one");
}

#[tokio::test(start_paused = true)]
async fn a_cached_token_is_checked_again_except_for_its_signature() {
    let auth = auth();
    let shown = |token: &str| auth.authenticate(&Secret::new(token)).map(|caller| caller.id.to_string());
    let good = ED25519.sign(&header(&ED25519), &with(&claims(), json!({ "exp": NOW + 10 })));
    assert_eq!((shown(&good).unwrap(), shown(&good).unwrap()), ("relay:alice".to_owned(), "relay:alice".to_owned()));
    let (signed, signature) = good.rsplit_once('.').unwrap();
    let flipped = if signature.starts_with('A') { "B" } else { "A" };
    assert!(is(&shown(&format!("{signed}.{flipped}{}", &signature[1..])).unwrap_err(), "Signature"), "only the identical token is cached");
    let for_another = ED25519.sign(&header(&ED25519), &with(&claims(), json!({ "aud": "elsewhere" })));
    for _ in 0..2 {
        assert!(is(&shown(&for_another).unwrap_err(), "Audience"));
    }
    tokio::time::advance(Duration::from_secs(41)).await;
    assert!(is(&shown(&good).unwrap_err(), "Expired"), "the time is checked at each use");
}

#[test]
fn no_refusal_shows_the_token() {
    let token = OTHER_ED25519.sign(&header(&ED25519), &claims());
    let shown = format!("{0} {0:?}", judge(&token).unwrap_err());
    assert!(token.split('.').all(|part| !shown.contains(part)), "{shown}");
}

#[test]
fn the_relay_accepts_the_tokens_it_mints() {
    let claims: CallerClaims = serde_json::from_value(claims()).unwrap();
    let key = SigningKey::from_pem(&Secret::new(ED25519.private_pem())).unwrap();
    assert_eq!(*key.public(), ED25519.public(), "a key of openssl genpkey, without the public half");
    let caller = auth().authenticate(&key.mint(&claims).unwrap()).unwrap();
    assert_eq!((caller.id.subject, &*caller.access), (claims.sub.clone(), &claims.access[..]));

    let again = SigningKey::from_pem(&key.to_pem().unwrap()).unwrap();
    assert_eq!(again.public(), key.public());
    let unregistered = SigningKey::generate().unwrap();
    assert!(matches!(auth().authenticate(&unregistered.mint(&claims).unwrap()), Err(InvalidToken::UnknownKey)));
}

#[test]
fn text_that_is_not_a_signing_key_is_refused() {
    for (text, error) in [("", SigningKeyError::NotPem), (P256.private_pem(), SigningKeyError::Algorithm)] {
        assert_eq!(SigningKey::from_pem(&Secret::new(text)).map(|_| ()), Err(error));
    }
}
