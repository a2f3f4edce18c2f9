//! Compares docs/PROTOCOL.md with the protocol's constants and with `vectors/`, in both directions: what only one of them lists is a failure.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may panic")]

mod support;

use std::collections::BTreeSet;
use std::fmt::Display;
use std::time::Duration;

use moorline_proto::api::{About, Device, NegotiationState, OpenStream};
use moorline_proto::claims::{Action, CallerClaims};
use moorline_proto::close::{CloseReason, ReconnectPolicy};
use moorline_proto::control::{CancelCode, FromDevice, RejectCode, ToDevice};
use moorline_proto::id::StreamId;
use moorline_proto::leg::LegText;
use moorline_proto::message::{Decoded, MessageError};
use moorline_proto::millis::Millis;
use moorline_proto::names;
use moorline_proto::problem::{Problem, ProblemCode, Timeline};
use moorline_proto::reuse::ReuseText;
use serde::de::DeserializeOwned;
use serde_json::Value;
use support::{Bodies, Messages, file, pairs, table, vectors};

fn column(rows: &[Vec<String>], index: usize) -> Vec<String> {
    rows.iter().map(|row| row[index].clone()).collect()
}

fn words<T: Display>(list: &[T]) -> Vec<String> {
    list.iter().map(ToString::to_string).collect()
}

#[test]
fn message_types() {
    assert_eq!(column(&table("### 6.1 Opening the control channel", "relay to device"), 0), ToDevice::TYPES);
    assert_eq!(column(&table("### 6.1 Opening the control channel", "device to relay"), 0), FromDevice::TYPES);
    assert_eq!(column(&table("### 8.2 The first message", "text message"), 0), LegText::TYPES);
    assert_eq!(column(&table("### 8.6 Legs that are used again", "text message"), 0), ReuseText::TYPES);
}

/// Every field of a message, with its path: `caller.reason`, `services[].name`. Objects with a table of their own are not descended into.
fn paths(value: &Value, front: &str, into: &mut BTreeSet<String>) {
    let Value::Object(object) = value else { return };
    for (name, value) in object.iter().filter(|(name, _)| !front.is_empty() || name.as_str() != "type") {
        let path = format!("{front}{name}");
        match value {
            Value::Array(items) => items.iter().for_each(|item| paths(item, &format!("{path}[]."), into)),
            _ if ["timeline", "problem", "peer", "online", "limits"].contains(&name.as_str()) => {}
            _ => paths(value, &format!("{path}."), into),
        }
        into.insert(path);
    }
}

/// The message without the field of that path (of the first item, if the path goes through a list).
fn without(message: &Value, path: &str) -> Value {
    let mut message = message.clone();
    let (parent, field) = path.rsplit_once('.').unwrap_or(("", path));
    let parent = parent.replace("[]", "/0").replace('.', "/");
    let pointer = if parent.is_empty() { String::new() } else { format!("/{parent}") };
    message.pointer_mut(&pointer).and_then(Value::as_object_mut).unwrap().remove(field).unwrap();
    message
}

/// The table has a row for each field of the fullest message, and states correctly whether it may be omitted.
fn check_fields(rows: &[Vec<String>], fullest: &Value, tagged: bool, is_valid: impl Fn(&str) -> bool) {
    let mut fields = BTreeSet::new();
    paths(fullest, if tagged { "" } else { "." }, &mut fields);
    let fields: BTreeSet<String> = fields.iter().map(|field| field.trim_start_matches('.').to_owned()).collect();
    let needed = pairs(rows);
    assert_eq!(needed.keys().cloned().collect::<BTreeSet<_>>(), fields, "the fields of {fullest}");
    for (field, needed) in needed {
        let is_optional = is_valid(&without(fullest, &field).to_string());
        assert_eq!(needed, if is_optional { "no" } else { "yes" }, "{field} of {fullest}");
    }
}

/// The text of a vector as JSON. Prefers a vector with every field where the plain example omits some.
fn example(file: &Messages, name: &str) -> Value {
    let fuller = ["repeated", "with idle legs"].map(|more| format!("{name}: {more}"));
    let named = |name: &str| file.valid.iter().find(|vector| vector.name == name);
    let vector = fuller.iter().find_map(|name| named(name)).or_else(|| named(name)).unwrap_or_else(|| panic!("no vector {name:?}"));
    serde_json::from_str(&vector.text.to_string()).unwrap()
}

/// Compares the table under a heading with the vector of that name.
fn check_message<T>(file: &str, decode: fn(&str) -> Result<Decoded<T>, MessageError>, heading: &str, vector: &str) {
    let rows = table(&format!("#### {heading}"), "field");
    check_fields(&rows, &example(&vectors(file), vector), true, |text| decode(text).is_ok());
}

#[test]
fn fields_of_messages() {
    for (kind, vector) in [("opened", "opened, to the caller"), ("refused", "refused")] {
        check_message("leg.json", LegText::decode, &format!("`{kind}`"), vector);
    }
    ToDevice::TYPES.iter().for_each(|kind| check_message("control_to_device.json", ToDevice::decode, &format!("`{kind}`"), kind));
    FromDevice::TYPES.iter().for_each(|kind| check_message("control_from_device.json", FromDevice::decode, &format!("`{kind}`"), kind));
    for (heading, kind) in [("`idle`", "idle"), ("`ask`", "ask"), ("`offer` on a leg", "offer")] {
        check_message("reuse.json", ReuseText::decode, heading, kind);
    }
}

#[test]
fn members_of_bodies() {
    fn reads<T: DeserializeOwned>(text: &str) -> bool {
        serde_json::from_str::<T>(text).is_ok()
    }
    let bodies: Bodies = vectors("bodies.json");
    let body = |name: &str| -> Value {
        let vector = bodies.valid.iter().find(|vector| vector.name == name).unwrap();
        serde_json::from_str(&vector.text.to_string()).unwrap()
    };
    let open = table("### 7.3 `POST`: negotiate here, join elsewhere", "member");
    check_fields(&open, &body("a question"), false, reads::<OpenStream>);

    let mut claims = body("the claims of a caller");
    claims["nbf"] = claims["iat"].clone();
    let claims_without_rules = without(&claims, "access");
    let mut rows = table("### 7.1 Tokens", "claim");
    rows.retain(|row| row[0] != "access");
    check_fields(&rows, &claims_without_rules, false, reads::<CallerClaims>);

    let mut problem = body("a problem");
    let last_seen = body("a device that is offline")["last_seen"].clone();
    problem.as_object_mut().unwrap().extend([("retry_after_s".to_owned(), 5.into()), ("last_seen".to_owned(), last_seen)]);
    check_fields(&table("### 9.1 The problem", "member"), &problem, false, reads::<Problem>);

    let top_level = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<BTreeSet<_>>();
    let members = |heading: &str| column(&table(heading, "member"), 0).into_iter().collect::<BTreeSet<_>>();
    assert_eq!(members("### 11.1 About"), top_level(&body("what a relay says about itself")));
    assert!(reads::<About>(&body("what a relay says about itself").to_string()));
    assert_eq!(members("### 11.2 Devices"), top_level(&body("a device that is online")));
    for row in table("### 11.2 Devices", "member") {
        let is_optional = reads::<Device>(&without(&body("a device that is online"), &row[0]).to_string());
        assert_eq!(row[1], if is_optional { "no" } else { "yes" }, "{}", row[0]);
    }
}

#[test]
fn codes() {
    let rejects = table("##### Reject codes", "code");
    let known: Vec<_> = RejectCode::ALL.iter().map(|code| (code.to_string(), code.problem().to_string())).collect();
    assert_eq!(rejects.iter().map(|row| (row[0].clone(), row[2].clone())).collect::<Vec<_>>(), known);
    assert_eq!(column(&table("##### Cancel codes", "code"), 0), words(CancelCode::ALL));

    let problems = table("#### Problem codes", "status");
    let known: Vec<_> = ProblemCode::ALL.iter().map(|code| (code.status().to_string(), code.to_string())).collect();
    assert_eq!(problems.iter().map(|row| (row[0].clone(), row[1].clone())).collect::<Vec<_>>(), known);

    let come_back = |reason: &CloseReason| match reason.reconnect_policy() {
        ReconnectPolicy::Backoff => "backoff".to_owned(),
        ReconnectPolicy::After(wait) => format!("after {} s", wait.as_secs()),
        ReconnectPolicy::Rarely(wait) => {
            assert_eq!(wait, Duration::from_secs(300));
            "seldom".to_owned()
        }
        ReconnectPolicy::UnlessSuperseded => "superseded".to_owned(),
    };
    let known: Vec<_> =
        CloseReason::ALL.iter().map(|code| vec![code.code().to_string(), code.name().to_owned(), come_back(code)]).collect();
    let written: Vec<_> = table("## 10 Close codes", "code").into_iter().map(|row| row[..3].to_vec()).collect();
    assert_eq!(written, known);

    assert_eq!(column(&table("### 7.1 Tokens", "action"), 0), words(Action::ALL));
    let states: BTreeSet<_> = column(&table("### 7.3 `POST`: negotiate here, join elsewhere", "status"), 1).into_iter().collect();
    let known: BTreeSet<_> = words(NegotiationState::ALL).into_iter().chain([String::new()]).collect();
    assert_eq!(states, known);
}

#[test]
fn steps_of_the_timeline() {
    let full = Timeline {
        authorized_ms: Some(Millis::from_millis(1)),
        found_ms: Some(Millis::from_millis(2)),
        offered_ms: Some(Millis::from_millis(3)),
        device_alive_ms: Some(Millis::from_millis(4)),
        accepted_ms: Some(Millis::from_millis(5)),
        dial_ms: Some(Millis::from_millis(6)),
        device_joined_ms: Some(Millis::from_millis(7)),
        caller_joined_ms: Some(Millis::from_millis(8)),
        opened_ms: Some(Millis::from_millis(9)),
    };
    let text = serde_json::to_string(&full).unwrap();
    let steps: Vec<&str> = text.split('"').skip(1).step_by(2).collect();
    assert_eq!(column(&table("### 9.2 The timeline", "member"), 0), steps);
}

#[test]
fn addresses_headers_and_subprotocols() {
    let (device, service, node) = ("lamp-1".parse().unwrap(), "ssh".parse().unwrap(), "n1".parse().unwrap());
    let stream = StreamId::from_bytes([7; 16]);
    let placed = |path: String, name: &dyn Display, place: &str| path.replace(&name.to_string(), place);
    let device_path = placed(names::device_path(&device), &device, "{device}");
    let known = [
        format!("GET {}", names::ABOUT),
        format!("GET {} + upgrade", names::CONTROL),
        format!("POST {}", placed(names::device_streams_path(&device), &device, "{device}")),
        format!("GET {} + upgrade", placed(placed(names::connect_path(&device, &service), &device, "{device}"), &service, "{service}")),
        format!("GET {} + upgrade", placed(placed(names::leg_path(&node, &stream), &node, "{node}"), &stream, "{stream}")),
        format!("GET {} + upgrade", names::CONNECT),
        format!("GET {} + upgrade", placed(names::idle_legs_path(&node), &node, "{node}")),
        format!("GET {}", names::DEVICES),
        format!("GET {device_path}"),
        format!("PUT {device_path}"),
        format!("DELETE {device_path}"),
        format!("GET {}", names::STREAMS),
        format!("DELETE {}", placed(names::stream_path(&stream), &stream, "{stream}")),
    ];
    assert_eq!(column(&table("### 5.1 Addresses", "request"), 0), known);

    let headers = column(&table("### 7.2 `connect`: ask and join in one request", "header"), 0);
    let known = [
        names::DEADLINE_HEADER,
        names::WAIT_HEADER,
        names::REASON_HEADER,
        names::DATA_HEADER,
        names::FEATURES_HEADER,
        names::IDEMPOTENCY_KEY_HEADER,
    ];
    assert_eq!(headers.iter().map(|name| name.to_ascii_lowercase()).collect::<Vec<_>>(), known);
    assert_eq!(column(&table("### 5.3 Upgrades", "subprotocol"), 0), [names::CONTROL_SUBPROTOCOL, names::STREAM_SUBPROTOCOL]);

    let document = file("../docs/PROTOCOL.md");
    for word in [
        names::TOKEN_SUBPROTOCOL_PREFIX,
        names::LEG_TOKEN_PREFIX,
        names::WARM_TOKEN_PREFIX,
        names::REUSE,
        names::PROBLEM_MEDIA_TYPE,
        names::PROOF_TYP,
        names::CALLER_TOKEN_TYP,
        names::HEARTBEAT_FEATURE,
    ] {
        assert!(document.contains(&format!("`{word}`")), "{word}");
    }
}

#[test]
fn every_example_is_a_vector() {
    let mut known = Vec::new();
    for name in ["control_to_device.json", "control_from_device.json", "leg.json", "reuse.json"] {
        known.extend(vectors::<Messages>(name).valid.into_iter().map(|vector| vector.text.to_string()));
    }
    known.extend(vectors::<Bodies>("bodies.json").valid.into_iter().map(|vector| vector.text.to_string()));
    let known: Vec<Value> = known.iter().map(|text| serde_json::from_str(text).unwrap()).collect();
    let document = file("../docs/PROTOCOL.md");
    let examples: Vec<&str> = document.split("```json\n").skip(1).map(|rest| rest.split("```").next().unwrap()).collect();
    assert!(examples.len() > 20, "{} examples", examples.len());
    for example in examples {
        let value: Value = serde_json::from_str(example).unwrap_or_else(|error| panic!("{error}: {example}"));
        assert!(known.contains(&value), "this example is not in the vectors: {example}");
    }
}

#[test]
fn the_worked_proof_is_a_vector() {
    let document = file("../docs/PROTOCOL.md");
    let proofs: Value = vectors("proofs.json");
    let proof = &proofs["proofs"][0];
    let has = |text: &str| assert!(document.lines().any(|line| line.ends_with(&format!(" {text}"))), "{text}");
    has(proof["jws"].as_str().unwrap());
    has(proof["public_key"]["x"].as_str().unwrap());
    has(proof["header"]["kid"].as_str().unwrap());
    // The signed text, with the members in their order.
    for part in proof["signing_input"].as_str().unwrap().split('.') {
        has(std::str::from_utf8(&data_encoding::BASE64URL_NOPAD.decode(part.as_bytes()).unwrap()).unwrap());
    }
}

#[test]
fn links_resolve() {
    let document = file("../docs/PROTOCOL.md");
    let slug = |heading: &str| {
        let kept = heading.trim_start_matches('#').trim().to_lowercase();
        kept.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c)).map(|c| if c == ' ' { '-' } else { c }).collect::<String>()
    };
    let slugs: Vec<String> = document.lines().filter(|line| line.starts_with('#')).map(slug).collect();
    assert_eq!(slugs.len(), slugs.iter().collect::<BTreeSet<_>>().len(), "two headings are equal");
    for link in document.split("](").skip(1).map(|rest| rest.split(')').next().unwrap()) {
        match link.strip_prefix('#') {
            Some(anchor) => assert!(slugs.iter().any(|slug| slug == anchor), "{link}"),
            None => assert!(std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs").join(link).exists(), "{link}"),
        }
    }
}
