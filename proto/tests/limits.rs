//! Compares the sizes, ranges and times in docs/PROTOCOL.md with the constants in `bounds`.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may panic")]

mod support;

use std::collections::BTreeMap;
use std::fmt::Display;

use moorline_proto::bounds;
use moorline_proto::id::StreamId;
use support::{pairs, table};

/// 65536 as `65,536`.
fn grouped(number: impl Display) -> String {
    let digits = number.to_string();
    let groups: Vec<&str> = digits.as_bytes().rchunks(3).rev().map(|group| std::str::from_utf8(group).unwrap()).collect();
    groups.join(",")
}

#[test]
fn sizes() {
    let known = [
        ("message on a control channel", bounds::CONTROL_MESSAGE_BYTES, "bytes"),
        ("binary message on a leg, and one frame of it", bounds::LEG_BINARY_BYTES, "bytes"),
        ("text message from a side on a leg", bounds::LEG_TEXT_BYTES, "bytes"),
        ("text message from the relay on a leg", bounds::LEG_TEXT_FROM_RELAY_BYTES, "bytes"),
        ("ask, accept, reject on a leg", bounds::LEG_REQUEST_BYTES, "bytes"),
        ("idle legs of a device, and of a caller", usize::try_from(bounds::IDLE_LEGS).unwrap(), "legs"),
        ("refusals in a row on one leg", usize::try_from(bounds::REFUSALS_IN_A_ROW).unwrap(), "refusals"),
        ("held for a leg before opened; the message that crosses the mark is still taken", bounds::EARLY_DATA_BYTES, "bytes"),
        ("body of a request", bounds::REQUEST_BODY_BYTES, "bytes"),
        ("opaque data, decoded", bounds::DATA_BYTES, "bytes"),
        ("proof", bounds::PROOF_CHARS, "characters"),
        ("url", bounds::URL_CHARS, "characters"),
        ("reason of a caller", bounds::REASON_CHARS, "characters"),
        ("detail of a reject, reason of a go_away", bounds::DETAIL_CHARS, "characters"),
        ("agent, hostname, os", bounds::INFO_CHARS, "characters"),
        ("description of a service", bounds::DESCRIPTION_CHARS, "characters"),
        ("name of a group", bounds::GROUP_CHARS, "characters"),
        ("Idempotency-Key", bounds::IDEMPOTENCY_KEY_CHARS, "characters"),
        ("cursor of a page of devices", bounds::CURSOR_CHARS, "characters"),
        ("type, code of a problem; longer ones are cut", bounds::PROBLEM_WORD_CHARS, "characters"),
        ("texts of a problem; longer ones are cut", bounds::PROBLEM_TEXT_CHARS, "characters"),
        ("iss of a token", bounds::ISS_CHARS, "characters"),
        ("jti of a token", bounds::JTI_CHARS, "characters"),
        ("each list in about", bounds::ABOUT_ENTRIES, "entries"),
        ("devices on a page", bounds::DEVICES_PER_PAGE, "entries"),
        ("services of a device", bounds::SERVICES, "entries"),
        ("features in a list", bounds::FEATURES, "entries"),
        ("groups of a caller", bounds::GROUPS, "entries"),
        ("keys of a device", bounds::DEVICE_KEYS, "entries"),
    ];
    let known = known.map(|(what, most, unit)| (what.to_owned(), format!("{} {unit}", grouped(most))));
    assert_eq!(pairs(&table("## 12 Sizes and times", "size")), BTreeMap::from(known));
}

/// The form of each number that is clamped, in the tables of fields and members.
#[test]
fn ranges() {
    let range = |(from, to): (u64, u64)| format!("whole number, {} to {}", grouped(from), grouped(to));
    let up_to = |to: u64| format!("whole number, to {}", grouped(to));
    let max_streams = (u64::from(bounds::MAX_STREAMS.0), u64::from(bounds::MAX_STREAMS.1));
    for (heading, first, name, form) in [
        ("#### `welcome`", "field", "heartbeat_ms", range(bounds::PING_MS)),
        ("#### `welcome`", "field", "heartbeat_max_ms", range(bounds::PING_MS)),
        ("#### `welcome`", "field", "max_streams", range(max_streams)),
        ("#### `offer`", "field", "expires_in_ms", range((0, bounds::EXPIRES_IN_MAX_MS))),
        ("#### `go_away`", "field", "reconnect_in_ms", range(bounds::RECONNECT_IN_MS)),
        ("#### `heartbeat`", "field", "interval_ms", range(bounds::ANNOUNCED_MS)),
        ("#### `opened`", "field", "ping_ms", range(bounds::PING_MS)),
        ("#### `idle`", "field", "keep_ms", up_to(bounds::KEEP_MAX_MS)),
        ("#### `idle`", "field", "ping_ms", range(bounds::PING_MS)),
        ("#### `ask`", "field", "deadline_s", up_to(bounds::DEADLINE_MAX_S)),
        ("#### `ask`", "field", "wait_s", up_to(bounds::WAIT_MAX_S)),
        ("#### `offer` on a leg", "field", "ping_ms", range(bounds::PING_MS)),
        ("#### `offer` on a leg", "field", "expires_in_ms", range((0, bounds::EXPIRES_IN_MAX_MS))),
        ("### 7.3 `POST`: negotiate here, join elsewhere", "member", "deadline_s", up_to(bounds::DEADLINE_MAX_S)),
        ("### 7.3 `POST`: negotiate here, join elsewhere", "member", "wait_s", up_to(bounds::WAIT_MAX_S)),
        ("### 9.1 The problem", "member", "retry_after_s", up_to(bounds::RETRY_AFTER_MAX_S)),
    ] {
        let rows = table(heading, first);
        let row = rows.iter().find(|row| row[0] == name).unwrap_or_else(|| panic!("no row {name}"));
        assert_eq!(row[2], form, "{name} under {heading}");
    }
}

#[test]
fn times() {
    let known = [
        ("from the 101 of a control channel to hello", bounds::HELLO_TIMEOUT),
        ("a device waits for challenge, and then for welcome", bounds::WELCOME_TIMEOUT),
        ("for any frame of the device after an offer", bounds::OFFER_ACK_TIMEOUT),
        ("for any frame on an idle device leg after an offer, at least", bounds::LEG_ALIVE_MIN),
        ("the same, at most", bounds::LEG_ALIVE_MAX),
        ("deadline, where the caller names none", bounds::DEFAULT_DEADLINE),
        ("a device gives its target, at most", bounds::TARGET_TIMEOUT),
        ("a POST is held for the device's answer, at most", bounds::PREFER_WAIT_MAX),
        ("shortest heartbeat interval", bounds::HEARTBEAT_MIN),
        ("unasked Pong of an end that does not read", bounds::UNSOLICITED_PONG_INTERVAL),
        ("for the local kernel's acknowledgement, before delivered or a reset", bounds::ACKNOWLEDGED_TIMEOUT),
        ("without progress, for what a local side says that takes no more bytes", bounds::LAST_WORDS_TIMEOUT),
        ("answer to a Close other than 1000", bounds::CLOSE_TIMEOUT),
    ];
    let known = known.map(|(what, time)| (what.to_owned(), format!("{} s", time.as_secs())));
    assert_eq!(pairs(&table("## 12 Sizes and times", "time")), BTreeMap::from(known));
}

#[test]
fn names_of_things() {
    let known = [
        ("device id", 1, bounds::DEVICE_ID_CHARS),
        ("service name", 1, bounds::SERVICE_NAME_CHARS),
        ("node id", 1, bounds::SHORT_NAME_CHARS),
        ("issuer", 1, bounds::SHORT_NAME_CHARS),
        ("subject", 1, bounds::SUBJECT_CHARS),
        ("instance", bounds::INSTANCE_MIN_CHARS, bounds::INSTANCE_MAX_CHARS),
        ("feature", 1, bounds::FEATURE_CHARS),
    ];
    let stream_id = StreamId::from_bytes([0; 16]).to_string().len();
    let known = known.map(|(kind, least, most)| (kind.to_owned(), format!("{least} to {most}")));
    let known: BTreeMap<_, _> = known.into_iter().chain([("stream id".to_owned(), stream_id.to_string())]).collect();
    let rows = table("## 3 Names", "name");
    let written: BTreeMap<_, _> = rows.iter().map(|row| (row[0].clone(), row[2].clone())).collect();
    assert_eq!(written, known);
}
