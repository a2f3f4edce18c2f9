//! Error messages of decoders: they quote little of what the peer sent, and no control characters that a log or a terminal would interpret.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may panic")]

mod support;

use std::fmt::Display;

use moorline_proto::api::{About, Device, DeviceList, OpenStream, PutDevice, StreamList, StreamTicket};
use moorline_proto::claims::{Action, CallerClaims, Pattern};
use moorline_proto::close::CloseReason;
use moorline_proto::control::{FromDevice, ToDevice};
use moorline_proto::id::{DeviceId, Feature, Instance, ServiceName, StreamId, Subject};
use moorline_proto::join::{Join, RelayUrl};
use moorline_proto::leg::LegText;
use moorline_proto::message::{Decoded, MessageError, decode_body};
use moorline_proto::problem::{Problem, ProblemCode};
use moorline_proto::proof::{ProofClaims, PublicKey, Thumbprint};
use moorline_proto::reuse::ReuseText;
use moorline_proto::text::{Data, QUOTED_CHARS, is_replaced};
use moorline_proto::timestamp::Timestamp;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use support::{Bodies, Messages, vectors};

/// Occurs only in hostile text.
const FOX: char = '🦊';
const LONGEST: usize = 400;

fn check(error: impl Display) {
    let shown = error.to_string();
    assert!(shown.chars().count() <= LONGEST, "{} characters: {shown}", shown.chars().count());
    assert!(!shown.contains(is_replaced), "{shown:?}");
    let hostile = shown.chars().filter(|&character| character == FOX || character == char::REPLACEMENT_CHARACTER).count();
    assert!(hostile <= QUOTED_CHARS, "{hostile} characters from the peer: {shown}");
}

fn check_parse<T: std::str::FromStr<Err: Display>>(text: &str) {
    text.parse::<T>().err().into_iter().for_each(check);
}

fn check_body<T: DeserializeOwned>(text: &str) {
    decode_body::<T>(text.as_bytes()).err().into_iter().for_each(check);
}

fn check_message<T>(decoded: Result<Decoded<T>, impl Display>) {
    match decoded {
        Ok(Decoded::Known(_)) => {}
        Ok(Decoded::Unknown(kind)) => check(kind),
        Err(error) => check(error),
    }
}

/// Every parser of text.
fn check_all(text: &str) {
    check_message(ToDevice::decode(text));
    check_message(FromDevice::decode(text));
    check_message(LegText::decode(text));
    check_message(ReuseText::decode(text));
    check_body::<About>(text);
    check_body::<OpenStream>(text);
    check_body::<StreamTicket>(text);
    check_body::<PutDevice>(text);
    check_body::<Device>(text);
    check_body::<DeviceList>(text);
    check_body::<StreamList>(text);
    check_body::<Problem>(text);
    check_body::<CallerClaims>(text);
    check_body::<ProofClaims>(text);
    check_parse::<DeviceId>(text);
    check_parse::<ServiceName>(text);
    check_parse::<Subject>(text);
    check_parse::<Instance>(text);
    check_parse::<Feature>(text);
    check_parse::<StreamId>(text);
    check_parse::<Timestamp>(text);
    check_parse::<Thumbprint>(text);
    check_parse::<Pattern>(text);
    check_parse::<Action>(text);
    check_parse::<ProblemCode>(text);
    check_parse::<Join>(text);
    check_parse::<RelayUrl>(text);
    Data::from_base64(text).err().into_iter().for_each(check);
    PublicKey::from_pem(text).err().into_iter().for_each(check);
    let relay: RelayUrl = "https://relay.example.com".parse().unwrap();
    relay.resolve(text, None).err().into_iter().for_each(check);
    check(Problem::new(ProblemCode::Internal, text).title);
}

/// Up to 64 KiB of foxes and characters that must not be shown, with the punctuation of serde's own messages.
fn hostile() -> impl Strategy<Value = String> {
    let piece = select(vec![
        "🦊",
        "🦊🦊🦊",
        "\n",
        "\u{1b}[2J",
        "\u{202e}",
        "\u{2028}",
        "\0",
        "\"",
        "`",
        "', expected 🦊",
        "`, expected `",
        "a",
        "\\",
    ]);
    (prop::collection::vec(piece, 1..20), select(vec![1_usize, 10, 100, 2_000])).prop_map(|(pieces, times)| {
        let text = pieces.concat().repeat(times);
        let end = (0..=text.len().min(60_000)).rev().find(|&end| text.is_char_boundary(end)).unwrap();
        text[..end].to_owned()
    })
}

fn valid() -> Vec<Value> {
    let messages = ["control_to_device.json", "control_from_device.json", "leg.json"].map(vectors::<Messages>);
    let messages = messages.into_iter().flat_map(|file| file.valid).map(|vector| vector.text.to_string());
    let bodies = vectors::<Bodies>("bodies.json").valid.into_iter().map(|vector| vector.text.to_string());
    messages.chain(bodies).map(|text| serde_json::from_str(&text).unwrap()).collect()
}

/// The pointers of all values inside, including the value itself.
fn pointers(value: &Value, at: &str, into: &mut Vec<String>) {
    into.push(at.to_owned());
    match value {
        Value::Object(members) => members.iter().for_each(|(name, value)| pointers(value, &format!("{at}/{name}"), into)),
        Value::Array(items) => items.iter().enumerate().for_each(|(index, value)| pointers(value, &format!("{at}/{index}"), into)),
        _ => {}
    }
}

/// A valid text with something hostile in one place: as a value, as the name of a member, as a member of an unexpected object.
fn corrupted(mut value: Value, place: &Index, how: u8, hostile: &str) -> String {
    let mut places = Vec::new();
    pointers(&value, "", &mut places);
    let target = value.pointer_mut(&places[place.index(places.len())]).unwrap();
    match (how, &mut *target) {
        (0, Value::Object(members)) => drop(members.insert(hostile.to_owned(), Value::Null)),
        (1, _) => *target = Value::Object(Map::from_iter([(hostile.to_owned(), Value::String(hostile.to_owned()))])),
        (2, _) => *target = Value::Array(vec![Value::String(hostile.to_owned()); 70]),
        _ => *target = Value::String(hostile.to_owned()),
    }
    value.to_string()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn errors_quote_little_of_what_was_sent(value in select(valid()), place in any::<Index>(), how in 0..4_u8, hostile in hostile()) {
        check_all(&corrupted(value, &place, how, &hostile));
    }

    #[test]
    fn errors_quote_little_of_any_text(hostile in hostile(), prefix in select(vec!["", "https://", "https://[", "https://a:", "#ca=", "{", "-----BEGIN PUBLIC KEY-----"])) {
        check_all(&format!("{prefix}{hostile}"));
    }
}

#[test]
fn errors_describe_what_is_wrong() {
    let error = |text: &str| FromDevice::decode(text).unwrap_err().to_string();
    assert_eq!(error(r#"{"type":"heartbeat"}"#), "heartbeat: interval_ms: is missing");
    let not_whole = "heartbeat: interval_ms: not a whole number from 0 to 2^53 - 1";
    for value in [r#""often""#, "1.5", "-1", "9007199254740992", "1e9", "null", "{}"] {
        assert_eq!(error(&format!(r#"{{"type":"heartbeat","interval_ms":{value}}}"#)), not_whole);
    }
    assert_eq!(error(&format!(r#"{{"type":"heartbeat","interval_ms":"{}"}}"#, "x".repeat(60_000))), not_whole);
    assert_eq!(error(r#"{"type":"heartbeat","interval_ms":9,"interval_ms":9}"#), "heartbeat: interval_ms: stands twice");
    assert_eq!(error(r#"{"type":"accept","stream":7}"#), "accept: stream: not a text");
    assert_eq!(error(r#"{"type":"services","services":["ssh"]}"#), "services: services[0]: not an object");
    assert_eq!(error(r#"{"type":"services","services":"ssh"}"#), "services: services: not a list of at most 64 items");
    let body = |text: &[u8]| decode_body::<PutDevice>(text).unwrap_err().to_string();
    assert_eq!(body(br#"{"keys":[],"tags":[]}"#), "tags: is not known");
    assert_eq!(body(b"[[]]"), "not a JSON object");
    assert_eq!(body(br#"{"keys":["#), "not a JSON object");
    assert_eq!(body(br#"{"keys":[]} {}"#), "more than one JSON object");
}

/// Words of the parser and of this program's types, which mean nothing to whoever reads the reason of a Close.
const INTERNAL_WORDS: [&str; 15] = [
    "invalid type",
    "invalid value",
    "invalid length",
    "expected",
    "struct",
    "enum",
    "variant",
    "missing field",
    "duplicate field",
    "line ",
    "column",
    "EOF",
    "u64",
    "u32",
    "`",
];

/// The reason of a Close says what is wrong in the words of the protocol, and names the field within its 123 bytes.
#[test]
fn reasons_of_a_close_are_in_the_words_of_the_protocol() {
    fn check_reasons<T: std::fmt::Debug>(file: &str, decode: fn(&str) -> Result<Decoded<T>, MessageError>) {
        let file: Messages = vectors(file);
        assert!(file.invalid.len() > 20);
        for vector in file.invalid {
            let error = decode(&vector.text.to_string()).unwrap_err().to_string();
            let reason = CloseReason::Protocol.text(&error);
            let field = vector.error.strip_prefix("field ").unwrap_or_default();
            assert!(reason.len() <= 123 && reason.contains(field), "{}: {reason}", vector.name);
            for word in INTERNAL_WORDS {
                assert!(!error.contains(word), "{}: {word:?} in {error:?}", vector.name);
            }
        }
    }
    check_reasons("control_from_device.json", FromDevice::decode);
    check_reasons("control_to_device.json", ToDevice::decode);
    check_reasons("leg.json", LegText::decode);
    check_reasons("reuse.json", ReuseText::decode);
    for vector in vectors::<Bodies>("bodies.json").invalid {
        let error = read_error(&vector.body, &vector.text.to_string());
        for word in INTERNAL_WORDS {
            assert!(!error.contains(word), "{}: {word:?} in {error:?}", vector.name);
        }
    }
}

fn read_error(body: &str, text: &str) -> String {
    fn error<T: DeserializeOwned + std::fmt::Debug>(text: &str) -> String {
        decode_body::<T>(text.as_bytes()).unwrap_err().to_string()
    }
    match body {
        "about" => error::<About>(text),
        "open_stream" => error::<OpenStream>(text),
        "put_device" => error::<PutDevice>(text),
        "device_list" => error::<DeviceList>(text),
        "problem" => error::<Problem>(text),
        "caller_claims" => error::<CallerClaims>(text),
        other => panic!("there is no body {other:?}"),
    }
}
