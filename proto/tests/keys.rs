//! Compares public keys, thumbprints, proofs and callers' tokens with `vectors/`.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may panic")]

mod support;

use data_encoding::BASE64URL_NOPAD;
use moorline_proto::claims::CallerClaims;
use moorline_proto::proof::{Jwk, ProofClaims, PublicKey, PublicKeyError};
use serde::Deserialize;
use serde_json::Value;
use support::{read, vectors};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Keys {
    valid: Vec<KeyVector>,
    same_key: Vec<KeyVector>,
    invalid: Vec<KeyVector>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct KeyVector {
    name: String,
    pem: Option<String>,
    jwk: Option<Value>,
    #[serde(default)]
    algorithm: String,
    #[serde(default)]
    thumbprint: String,
    #[serde(default)]
    error: String,
}

fn jwk(value: &Value) -> Result<PublicKey, PublicKeyError> {
    PublicKey::from_jwk(&serde_json::from_value::<Jwk>(value.clone()).unwrap())
}

impl KeyVector {
    fn keys(&self) -> Vec<Result<PublicKey, PublicKeyError>> {
        let pem = self.pem.as_deref().map(PublicKey::from_pem);
        pem.into_iter().chain(self.jwk.as_ref().map(jwk)).collect()
    }
}

#[test]
fn public_keys_and_their_thumbprints() {
    let file: Keys = vectors("public_keys.json");
    for vector in &file.valid {
        for key in vector.keys() {
            let key = key.unwrap();
            assert_eq!(key.thumbprint().to_string(), vector.thumbprint, "{}", vector.name);
            assert_eq!(key.algorithm().as_str(), vector.algorithm, "{}", vector.name);
            assert_eq!(Some(key.to_pem()), vector.pem, "{}", vector.name);
            assert_eq!(serde_json::to_value(key.to_jwk()).ok(), vector.jwk, "{}", vector.name);
        }
    }
    for vector in &file.same_key {
        for key in vector.keys() {
            assert_eq!(key.unwrap().thumbprint().to_string(), vector.thumbprint, "{}", vector.name);
        }
    }
    for vector in &file.invalid {
        for key in vector.keys() {
            let error = match key {
                Err(PublicKeyError::Private) => "private",
                Err(PublicKeyError::NotPem) => "not_pem",
                Err(PublicKeyError::Algorithm) => "algorithm",
                Err(PublicKeyError::Jwk(_)) => "jwk",
                Err(PublicKeyError::SmallOrder) => "small_order",
                Err(PublicKeyError::NotCanonical) => "not_canonical",
                Ok(key) => panic!("{}: {key:?}", vector.name),
            };
            assert_eq!(error, vector.error, "{}", vector.name);
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Proofs {
    #[serde(rename = "note")]
    _note: String,
    proofs: Vec<Signed>,
    tokens: Vec<Signed>,
    invalid_claims: Vec<ClaimsVector>,
    more_claims: Vec<ClaimsVector>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Signed {
    name: String,
    public_key: Value,
    header: Value,
    claims: Value,
    signing_input: String,
    jws: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ClaimsVector {
    name: String,
    claims: Value,
    #[serde(default)]
    error: String,
}

impl Signed {
    /// Asserts that the JWS consists of its parts and that its signature is valid.
    fn check(&self, typ: &str) {
        let key = jwk(&self.public_key).unwrap();
        let part = |text: &str| serde_json::from_slice::<Value>(&BASE64URL_NOPAD.decode(text.as_bytes()).unwrap()).unwrap();
        let (input, signature) = self.jws.rsplit_once('.').unwrap();
        let (header, claims) = input.split_once('.').unwrap();
        assert_eq!((input, part(header), part(claims)), (self.signing_input.as_str(), self.header.clone(), self.claims.clone()));
        assert_eq!(self.header["typ"], typ, "{}", self.name);
        assert_eq!(self.header["kid"], key.thumbprint().to_string(), "{}", self.name);
        assert_eq!(self.header["alg"], key.algorithm().as_str(), "{}", self.name);
        let signature = BASE64URL_NOPAD.decode(signature.as_bytes()).unwrap();
        let verified = match &key {
            PublicKey::Ed25519(raw) => verify(&aws_lc_rs::signature::ED25519, raw, input, &signature),
            PublicKey::P256(point) => {
                let uncompressed = [&[4], point.as_slice()].concat();
                verify(&aws_lc_rs::signature::ECDSA_P256_SHA256_FIXED, &uncompressed, input, &signature)
            }
        };
        assert!(verified, "{}: the signature", self.name);
    }
}

fn verify(how: &'static dyn aws_lc_rs::signature::VerificationAlgorithm, key: &[u8], message: &str, signature: &[u8]) -> bool {
    aws_lc_rs::signature::UnparsedPublicKey::new(how, key).verify(message.as_bytes(), signature).is_ok()
}

#[test]
fn proofs_and_callers_tokens() {
    let file: Proofs = vectors("proofs.json");
    for vector in &file.proofs {
        vector.check(moorline_proto::names::PROOF_TYP);
        let claims: ProofClaims = serde_json::from_value(vector.claims.clone()).unwrap();
        assert_eq!(serde_json::to_value(claims).unwrap(), vector.claims, "{}", vector.name);
    }
    for vector in &file.tokens {
        vector.check(moorline_proto::names::CALLER_TOKEN_TYP);
        let claims: CallerClaims = serde_json::from_value(vector.claims.clone()).unwrap();
        assert_eq!(serde_json::to_value(claims).unwrap(), vector.claims, "{}", vector.name);
    }
    for vector in &file.invalid_claims {
        assert_eq!(read::<ProofClaims>(&vector.claims.to_string()).unwrap_err(), vector.error, "{}", vector.name);
    }
    for vector in &file.more_claims {
        assert!(read::<ProofClaims>(&vector.claims.to_string()).is_ok(), "{}", vector.name);
    }
}
