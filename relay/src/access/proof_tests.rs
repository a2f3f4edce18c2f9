//! The requirements of a proof: each one is removed or changed in turn.

use moorline_proto::timestamp::Timestamp;
use serde_json::{Value, json};

use super::*;
use crate::access::test_keys::{ED25519, OTHER_ED25519, P256, Pair, hmac_signed, unsigned, with};

const NONCE: Nonce = Nonce([7; 32]);

/// The expectations that a proof is verified against.
struct Scene {
    names: Vec<String>,
    device: DeviceId,
    instance: Instance,
    keys: Vec<KeyRecord>,
}

impl Scene {
    /// The device has an Ed25519 and a P-256 key.
    fn new() -> Self {
        let record = |pair: &Pair| {
            let key = pair.public();
            KeyRecord { kid: key.thumbprint(), key, created: Timestamp::from_millis(0), last_used: None }
        };
        Self {
            names: vec!["relay.example.com".to_owned(), "::1".to_owned()],
            device: "lamp-1".parse().unwrap(),
            instance: "0123456789abcdef".parse().unwrap(),
            keys: vec![record(&ED25519), record(&P256)],
        }
    }

    fn judge(&self, proof: &str) -> Result<Thumbprint, ProofError> {
        let expected = Expected { nonce: NONCE, names: &self.names, device: &self.device, instance: &self.instance };
        verify_proof(proof, &expected, &self.keys)
    }
}

fn header(pair: &Pair) -> Value {
    let key = pair.public();
    json!({ "typ": PROOF_TYP, "alg": key.algorithm(), "kid": key.thumbprint() })
}

fn claims() -> Value {
    json!({ "nonce": NONCE, "aud": "relay.example.com", "sub": "lamp-1", "instance": "0123456789abcdef" })
}

#[test]
fn each_key_of_the_device_proves_it() {
    let scene = Scene::new();
    for pair in [ED25519, P256] {
        let proof = pair.sign(&header(&pair), &claims());
        assert_eq!(scene.judge(&proof), Ok(pair.public().thumbprint()));
        let by_address = pair.sign(&header(&pair), &with(&claims(), json!({ "aud": "::1", "later": true })));
        assert_eq!(scene.judge(&by_address), Ok(pair.public().thumbprint()), "another name of the relay, and a claim of a later version");
    }
}

#[test]
fn a_proof_for_something_else_proves_nothing() {
    let scene = Scene::new();
    for (change, error) in [
        (json!({ "nonce": Nonce([8; 32]) }), ProofError::Nonce),
        (json!({ "aud": "evil.example.com" }), ProofError::Audience),
        (json!({ "aud": "RELAY.example.com" }), ProofError::Audience),
        (json!({ "aud": "relay.example.com:443" }), ProofError::Audience),
        (json!({ "sub": "lamp-2" }), ProofError::Device),
        (json!({ "instance": "fedcba9876543210" }), ProofError::Instance),
        (json!({ "nonce": null }), ProofError::NoProof),
        (json!({ "nonce": "short" }), ProofError::NoProof),
        (json!({ "aud": ["relay.example.com"] }), ProofError::NoProof),
        (json!({ "sub": "LAMP" }), ProofError::NoProof),
        (json!({ "instance": null }), ProofError::NoProof),
    ] {
        let proof = ED25519.sign(&header(&ED25519), &with(&claims(), change.clone()));
        assert_eq!(scene.judge(&proof), Err(error), "{change}");
    }
}

#[test]
fn a_header_for_something_else_proves_nothing() {
    let scene = Scene::new();
    for (change, error) in [
        (json!({ "typ": "JWT" }), ProofError::Purpose),
        (json!({ "typ": null }), ProofError::Purpose),
        (json!({ "crit": ["exp"] }), ProofError::Critical),
        (json!({ "crit": [] }), ProofError::Critical),
        (json!({ "kid": null }), ProofError::UnknownKey),
        (json!({ "kid": "lamp-key" }), ProofError::UnknownKey),
        (json!({ "kid": OTHER_ED25519.public().thumbprint() }), ProofError::UnknownKey),
        (json!({ "kid": null, "jwk": ED25519.public().to_jwk() }), ProofError::UnknownKey),
        (json!({ "kid": null, "x5c": ["MIIB"] }), ProofError::Certificate),
        (json!({ "x5c": ["MIIB"] }), ProofError::Certificate),
        (json!({ "alg": "ES256" }), ProofError::Algorithm),
        (json!({ "alg": "HS256" }), ProofError::Algorithm),
        (json!({ "alg": "none" }), ProofError::NoProof),
        (json!({ "alg": null }), ProofError::NoProof),
        (json!({ "kid": P256.public().thumbprint() }), ProofError::Algorithm),
        (json!({ "kid": P256.public().thumbprint(), "alg": "ES256" }), ProofError::Signature),
    ] {
        let proof = ED25519.sign(&with(&header(&ED25519), change.clone()), &claims());
        assert_eq!(scene.judge(&proof), Err(error), "{change}");
    }
}

#[test]
fn only_the_private_key_makes_a_signature_that_holds() {
    let scene = Scene::new();
    let forged = OTHER_ED25519.sign(&header(&ED25519), &claims());
    assert_eq!(scene.judge(&forged), Err(ProofError::Signature), "another key");

    let good = ED25519.sign(&header(&ED25519), &claims());
    let (_, signature) = good.rsplit_once('.').unwrap();
    let elsewhere = format!("{}.{signature}", unsigned(&header(&ED25519), &with(&claims(), json!({ "sub": "lamp-1", "x": 1 }))));
    assert_eq!(scene.judge(&elsewhere), Err(ProofError::Signature), "the signature of other claims");

    let hmac = with(&header(&ED25519), json!({ "alg": "HS256" }));
    for secret in [ED25519.public().to_spki(), ED25519.public().to_pem().into_bytes()] {
        assert_eq!(
            scene.judge(&hmac_signed(&hmac, &claims(), &secret)),
            Err(ProofError::Algorithm),
            "the public key used as a shared secret"
        );
    }
    for text in ["", "..", "a.b.c", &unsigned(&header(&ED25519), &claims()), &format!("{good}.x")] {
        assert_eq!(scene.judge(text), Err(ProofError::NoProof), "{text:?}");
    }
    let bare = format!("{}.", unsigned(&header(&ED25519), &claims()));
    assert_eq!(scene.judge(&bare), Err(ProofError::Signature), "no signature");
}

#[test]
fn a_device_without_keys_cannot_be_proven() {
    let scene = Scene { keys: Vec::new(), ..Scene::new() };
    assert_eq!(scene.judge(&ED25519.sign(&header(&ED25519), &claims())), Err(ProofError::UnknownKey));
}
