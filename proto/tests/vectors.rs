//! Holds the messages, bodies and names of the protocol to `vectors/`: what they mean is pinned by bytes.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may panic")]

mod support;

use std::collections::{BTreeMap, BTreeSet};

use data_encoding::{BASE64URL_NOPAD, HEXLOWER};
use moorline_proto::api::{About, Device, DeviceList, OpenStream, PutDevice, StreamList, StreamTicket};
use moorline_proto::claims::{CallerClaims, Pattern};
use moorline_proto::close::{CloseReason, ComeBack, fitting_reason};
use moorline_proto::control::{CancelCode, FromDevice, RejectCode, ToDevice};
use moorline_proto::id::{DeviceId, Feature, Instance, Issuer, NameError, NodeId, ServiceName, StreamId, Subject};
use moorline_proto::join::{Join, RelayUrl, RelayUrlError};
use moorline_proto::leg::LegText;
use moorline_proto::message::Heard;
use moorline_proto::problem::{Problem, ProblemCode};
use moorline_proto::proof::{Jwk, ProofClaims, PublicKey, PublicKeyError};
use moorline_proto::text::{Data, DataError};
use moorline_proto::timestamp::Timestamp;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use support::{Bodies, Invalid, Messages, Valid, Written, vectors};

macro_rules! messages_keep_their_meaning {
    ($test:ident, $file:literal, $messages:ty) => {
        #[test]
        fn $test() {
            let file: Messages = vectors($file);
            let mut seen = BTreeSet::new();
            for Valid { name, text, .. } in &file.valid {
                let heard = <$messages>::decode(&text.to_string()).unwrap_or_else(|error| panic!("{name}: {error}"));
                let Heard::Known(message) = heard else { panic!("{name}: of unknown type") };
                seen.insert(message.kind());
            }
            for vector in &file.valid {
                let Ok(Heard::Known(message)) = <$messages>::decode(&vector.text.to_string()) else { panic!("{}", vector.name) };
                assert_eq!(message.encode(), vector.canonical(), "{}", vector.name);
                let again = <$messages>::decode(&message.encode());
                assert_eq!(again, Ok(Heard::Known(message)), "{}: read again", vector.name);
            }
            assert!(seen.iter().eq(&BTreeSet::from_iter(<$messages>::TYPES.iter().copied())), "every type has a vector: {seen:?}");
            for vector in &file.unknown {
                let expected = Ok(Heard::Unknown(vector.r#type.clone()));
                assert_eq!(<$messages>::decode(&vector.text.to_string()), expected, "{}", vector.name);
            }
            for vector in &file.invalid {
                let error = <$messages>::decode(&vector.text.to_string()).expect_err(&vector.name);
                assert_eq!(error.kind(), vector.error, "{}: {error}", vector.name);
            }
        }
    };
}

messages_keep_their_meaning!(what_the_relay_says_to_a_device, "control_to_device.json", ToDevice);
messages_keep_their_meaning!(what_a_device_says_to_the_relay, "control_from_device.json", FromDevice);
messages_keep_their_meaning!(what_is_said_on_a_leg, "leg.json", LegText);

fn read<T: DeserializeOwned>(text: &str) -> Result<T, String> {
    let mut json = serde_json::Deserializer::from_str(text);
    serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let (path, detail) = (error.path().to_string(), error.inner().to_string());
        let missing = detail.strip_prefix("missing field `").and_then(|rest| rest.split_once('`')).map(|(field, _)| field);
        match (path.as_str(), missing) {
            (_, None) => format!("field {path}"),
            (".", Some(missing)) => format!("field {missing}"),
            (_, Some(missing)) => format!("field {path}.{missing}"),
        }
    })
}

fn rewrite<T: DeserializeOwned + Serialize>(text: &str) -> Result<String, String> {
    read::<T>(text).map(|body| serde_json::to_string(&body).unwrap())
}

fn rewrite_body(body: &str, text: &str) -> Result<String, String> {
    match body {
        "about" => rewrite::<About>(text),
        "open_stream" => rewrite::<OpenStream>(text),
        "stream_ticket" => rewrite::<StreamTicket>(text),
        "put_device" => rewrite::<PutDevice>(text),
        "device" => rewrite::<Device>(text),
        "device_list" => rewrite::<DeviceList>(text),
        "stream_list" => rewrite::<StreamList>(text),
        "problem" => rewrite::<Problem>(text),
        "caller_claims" => rewrite::<CallerClaims>(text),
        other => panic!("there is no body {other:?}"),
    }
}

#[test]
fn bodies_and_claims() {
    let file: Bodies = vectors("bodies.json");
    for vector in file.valid {
        assert_eq!(rewrite_body(&vector.body, &vector.text.to_string()), Ok(vector.canonical()), "{}", vector.name);
    }
    for vector in file.invalid {
        assert_eq!(rewrite_body(&vector.body, &vector.text.to_string()), Err(vector.error), "{}", vector.name);
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Problems {
    problems: Vec<ProblemVector>,
    of_rejects: BTreeMap<String, String>,
    cancels: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ProblemVector {
    code: String,
    status: u16,
    r#type: String,
}

#[test]
fn problems_rejects_and_cancels() {
    let file: Problems = vectors("problems.json");
    let known: Vec<_> = ProblemCode::ALL.iter().map(|code| (code.as_str(), code.status(), code.urn())).collect();
    let pinned: Vec<_> = file.problems.iter().map(|problem| (problem.code.as_str(), problem.status, problem.r#type.clone())).collect();
    assert_eq!(known, pinned);
    for code in ProblemCode::ALL {
        let problem = Problem::new(*code, "words");
        assert_eq!((problem.known_code(), problem.status), (Some(*code), code.status()));
    }
    let rejects: BTreeMap<_, _> = RejectCode::ALL.iter().map(|code| (code.to_string(), code.problem().to_string())).collect();
    assert_eq!(rejects, file.of_rejects);
    assert!(CancelCode::ALL.iter().map(|code| code.as_str()).eq(file.cancels.iter()), "{:?}", file.cancels);
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CloseCodes {
    codes: Vec<CloseVector>,
    not_of_the_protocol: Vec<u16>,
    reasons: Vec<ReasonVector>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CloseVector {
    code: u16,
    name: String,
    come_back: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ReasonVector {
    name: String,
    text: Written,
    fits: Written,
}

#[test]
fn close_codes() {
    let come_back = |reason: CloseReason| match reason.come_back() {
        ComeBack::WithBackoff => "backoff".to_owned(),
        ComeBack::After(wait) => format!("after {} s", wait.as_secs()),
        ComeBack::Seldom(_) => "seldom".to_owned(),
        ComeBack::NotWhileSuperseded => "superseded".to_owned(),
    };
    let file: CloseCodes = vectors("close_codes.json");
    let known: Vec<_> = CloseReason::ALL.iter().map(|reason| (reason.code(), reason.name().to_owned(), come_back(*reason))).collect();
    let pinned: Vec<_> = file.codes.into_iter().map(|vector| (vector.code, vector.name, vector.come_back)).collect();
    assert_eq!(known, pinned);
    for reason in CloseReason::ALL {
        assert_eq!(CloseReason::from_code(reason.code()), Some(*reason));
    }
    for code in file.not_of_the_protocol {
        assert_eq!(CloseReason::from_code(code), None, "{code}");
    }
    for vector in file.reasons {
        assert_eq!(fitting_reason(&vector.text.to_string()), vector.fits.to_string(), "{}", vector.name);
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Names {
    kinds: BTreeMap<String, Kind>,
    patterns: Vec<PatternVector>,
    data: DataVectors,
    timestamps: TimestampVectors,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Kind {
    valid: Vec<Written>,
    invalid: Vec<Invalid>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PatternVector {
    pattern: Pattern,
    matches: Vec<Written>,
    not: Vec<Written>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DataVectors {
    valid: Vec<DataVector>,
    invalid: Vec<Invalid>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DataVector {
    base64: Written,
    hex: Written,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TimestampVectors {
    valid: Vec<TimestampVector>,
    invalid: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TimestampVector {
    text: String,
    millis: u64,
    canonical: String,
}

fn name_error(error: &NameError) -> &'static str {
    match error {
        NameError::Length { .. } => "length",
        NameError::UpperCase { .. } => "upper_case",
        NameError::Character { .. } => "character",
        NameError::Edge { .. } => "edge",
        NameError::DoubleDot { .. } => "double_dot",
    }
}

/// The text as its kind prints it, or the word for its error.
fn reprint(kind: &str, text: &str) -> Result<String, &'static str> {
    macro_rules! name {
        ($name:ty) => {
            text.parse::<$name>().map(|name| name.to_string()).map_err(|error| name_error(&error))
        };
    }
    match kind {
        "device_id" => name!(DeviceId),
        "service_name" => name!(ServiceName),
        "node_id" => name!(NodeId),
        "issuer" => name!(Issuer),
        "subject" => name!(Subject),
        "instance" => name!(Instance),
        "feature" => name!(Feature),
        "stream_id" => text.parse::<StreamId>().map(|stream| stream.to_string()).map_err(|_| "none"),
        "pattern" => text.parse::<Pattern>().map(|pattern| pattern.to_string()).map_err(|_| "none"),
        other => panic!("there is no kind {other:?}"),
    }
}

#[test]
fn names() {
    let file: Names = vectors("names.json");
    for (kind, Kind { valid, invalid }) in &file.kinds {
        for text in valid.iter().map(Written::to_string) {
            assert_eq!(reprint(kind, &text), Ok(text.clone()), "{kind}");
        }
        for vector in invalid {
            assert_eq!(reprint(kind, &vector.text.to_string()), Err(vector.error.as_str()), "{kind} {:?}", vector.text.to_string());
        }
    }
    for PatternVector { pattern, matches, not } in &file.patterns {
        for name in matches {
            assert!(pattern.matches(&name.to_string()), "{pattern} matches {name}");
        }
        for name in not {
            assert!(!pattern.matches(&name.to_string()), "{pattern} does not match {name}");
        }
    }
}

#[test]
fn opaque_data_and_moments() {
    let file: Names = vectors("names.json");
    for vector in file.data.valid {
        let data = Data::from_base64(&vector.base64.to_string()).unwrap();
        assert_eq!(HEXLOWER.encode(data.as_bytes()), vector.hex.to_string());
        assert_eq!(data.to_base64(), vector.base64.to_string());
    }
    for vector in file.data.invalid {
        let error = match Data::from_base64(&vector.text.to_string()) {
            Err(DataError::NotBase64) => "not_base64",
            Err(DataError::TooLong { .. }) => "too_long",
            Ok(data) => panic!("{data:?}"),
        };
        assert_eq!(error, vector.error, "{}", vector.text);
    }
    for vector in file.timestamps.valid {
        let moment: Timestamp = vector.text.parse().unwrap();
        assert_eq!((moment.as_millis(), moment.to_string()), (vector.millis, vector.canonical), "{}", vector.text);
    }
    for text in file.timestamps.invalid {
        assert!(text.parse::<Timestamp>().is_err(), "{text}");
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Joins {
    valid: Vec<JoinVector>,
    invalid: Vec<Invalid>,
    resolve: Vec<Resolve>,
    foreign: Vec<Resolve>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct JoinVector {
    text: String,
    host: String,
    port: u16,
    authority: String,
    canonical: String,
    ca: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Resolve {
    relay: RelayUrl,
    handed_out: String,
    suffix: Option<String>,
    #[serde(default)]
    url: String,
    #[serde(default)]
    path: String,
}

#[test]
fn join_strings_and_what_a_relay_hands_out() {
    let file: Joins = vectors("join.json");
    for vector in file.valid {
        let join: Join = vector.text.parse().unwrap_or_else(|error| panic!("{}: {error}", vector.text));
        assert_eq!((join.url.host(), join.url.port()), (vector.host.as_str(), vector.port), "{}", vector.text);
        assert_eq!((join.url.authority(), join.to_string()), (vector.authority, vector.canonical));
        assert_eq!(join.ca.as_ref().map(|der| BASE64URL_NOPAD.encode(der)), vector.ca);
    }
    for vector in file.invalid {
        let error = match vector.text.to_string().parse::<Join>() {
            Err(RelayUrlError::Scheme) => "scheme",
            Err(RelayUrlError::Extra) => "extra",
            Err(RelayUrlError::Host(_)) => "host",
            Err(RelayUrlError::Port(_)) => "port",
            Err(RelayUrlError::Ca) => "ca",
            Ok(join) => panic!("{}: {join:?}", vector.text),
        };
        assert_eq!(error, vector.error, "{}", vector.text);
    }
    for vector in file.resolve {
        let (url, path) = vector.relay.resolve(&vector.handed_out, vector.suffix.as_deref()).unwrap();
        assert_eq!((url.to_string(), path), (vector.url, vector.path), "{}", vector.handed_out);
    }
    for vector in file.foreign {
        assert!(vector.relay.resolve(&vector.handed_out, vector.suffix.as_deref()).is_err(), "{}", vector.handed_out);
    }
}

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
    /// That the JWS is what its parts say, and that its signature holds.
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
