//! Error messages of decoders: they quote little of what the peer sent, and no control characters that a log or a terminal would interpret.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::fmt::Display;

use moorline_proto::api::{About, Device, DeviceList, OpenStream, PutDevice, StreamList, StreamTicket};
use moorline_proto::claims::{Action, CallerClaims, Pattern};
use moorline_proto::control::{FromDevice, ToDevice};
use moorline_proto::id::{DeviceId, Feature, Instance, ServiceName, StreamId, Subject};
use moorline_proto::join::{Join, RelayUrl};
use moorline_proto::leg::LegText;
use moorline_proto::message::{Decoded, decode_body};
use moorline_proto::problem::{Problem, ProblemCode};
use moorline_proto::proof::{ProofClaims, PublicKey, Thumbprint};
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
    assert_eq!(error(r#"{"type":"heartbeat"}"#), "heartbeat: interval_ms: missing field `interval_ms`");
    assert_eq!(
        error(r#"{"type":"heartbeat","interval_ms":"often"}"#),
        r#"heartbeat: interval_ms: invalid type: string "often", expected u64"#
    );
    let long = format!(r#"{{"type":"heartbeat","interval_ms":"{}"}}"#, "x".repeat(60_000));
    let cut = format!("heartbeat: interval_ms: invalid type: string \"{}…\", expected u64", "x".repeat(QUOTED_CHARS));
    assert_eq!(error(&long), cut);
    let unknown = decode_body::<PutDevice>(br#"{"keys":[],"tags":[]}"#).unwrap_err();
    assert_eq!(unknown.to_string(), "tags: unknown field, expected `keys`");
    assert_eq!(decode_body::<PutDevice>(b"[[]]").unwrap_err().to_string(), "not a JSON object");
    assert_eq!(decode_body::<PutDevice>(br#"{"keys":[]} {}"#).unwrap_err().to_string(), "more than one JSON object");
}
