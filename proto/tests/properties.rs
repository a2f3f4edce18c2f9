//! Properties of every message, name and text: encoding and decoding gives the same value, and no input panics.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::net::IpAddr;
use std::time::Duration;

use data_encoding::BASE64URL_NOPAD;
use moorline_proto::bounds::{DATA_BYTES, FEATURES, INFO_CHARS, REASON_CHARS, SERVICES};
use moorline_proto::claims::{CallerClaims, Pattern};
use moorline_proto::close::truncated_reason;
use moorline_proto::control::{
    Accept, Attempt, CallerInfo, Cancel, CancelCode, Challenge, FromDevice, GoAway, Heartbeat, Hello, Nonce, Offer, Reject, RejectCode,
    Service, Services, ToDevice, Welcome,
};
use moorline_proto::id::{DeviceId, Feature, Instance, Issuer, NodeId, ServiceName, StreamId, Subject};
use moorline_proto::join::{Join, RelayUrl};
use moorline_proto::leg::{End, LegText, Opened, Peer, Refused};
use moorline_proto::message::Decoded;
use moorline_proto::millis::Millis;
use moorline_proto::problem::{Problem, ProblemCode, Timeline};
use moorline_proto::proof::{PublicKey, Thumbprint};
use moorline_proto::secret::Secret;
use moorline_proto::text::{Data, Text, printable};
use moorline_proto::timestamp::Timestamp;
use proptest::prelude::*;
use proptest::sample::select;
use serde_json::Value;

fn parsed<T: std::str::FromStr<Err: std::fmt::Debug>>(text: impl AsRef<str>) -> T {
    text.as_ref().parse().unwrap()
}

fn device_id() -> impl Strategy<Value = DeviceId> {
    "[a-z0-9]([a-z0-9_-]|[a-z0-9]\\.[a-z0-9]){0,40}[a-z0-9]".prop_map(parsed)
}

fn service_name() -> impl Strategy<Value = ServiceName> {
    "[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?".prop_map(parsed)
}

fn node_id() -> impl Strategy<Value = NodeId> {
    "[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?".prop_map(parsed)
}

fn features() -> impl Strategy<Value = Vec<Feature>> {
    prop::collection::vec("[a-z0-9]([a-z0-9_-]{0,30}[a-z0-9])?".prop_map(parsed), 0..=FEATURES)
}

fn stream_id() -> impl Strategy<Value = StreamId> {
    any::<[u8; 16]>().prop_map(StreamId::from_bytes)
}

fn instance() -> impl Strategy<Value = Instance> {
    "[0-9a-f]{16,64}".prop_map(parsed)
}

fn text<const MAX: usize>() -> impl Strategy<Value = Text<MAX>> {
    any::<String>().prop_map(|text| Text::truncated(&text))
}

fn data() -> impl Strategy<Value = Data> {
    prop::collection::vec(any::<u8>(), 0..=DATA_BYTES).prop_map(|bytes| Data::new(bytes).unwrap())
}

fn moment() -> impl Strategy<Value = Timestamp> {
    any::<u64>().prop_map(Timestamp::from_millis)
}

fn services() -> impl Strategy<Value = Vec<Service>> {
    let service = (service_name(), prop::option::of(text())).prop_map(|(name, description)| Service { name, description });
    prop::collection::vec(service, 0..=SERVICES)
}

fn caller() -> impl Strategy<Value = CallerInfo> {
    let groups = prop::collection::vec(text(), 0..4);
    let parts = ("[a-z0-9]{1,32}", "[!-~]{1,256}", groups, any::<IpAddr>(), prop::option::of(text::<REASON_CHARS>()));
    parts.prop_map(|(issuer, subject, groups, address, reason)| CallerInfo {
        issuer: parsed::<Issuer>(issuer),
        subject: parsed::<Subject>(subject),
        groups,
        address,
        reason,
    })
}

fn attempt() -> impl Strategy<Value = Attempt> {
    prop_oneof![Just(Attempt::FIRST), any::<std::num::NonZeroU32>().prop_map(Attempt::from)]
}

fn millis() -> impl Strategy<Value = Millis> {
    any::<u64>().prop_map(|micros| Millis::from_duration(Duration::from_micros(micros >> (micros & 63))))
}

fn to_device() -> impl Strategy<Value = ToDevice> {
    let challenge = (any::<[u8; 32]>(), moment()).prop_map(|(nonce, time)| Challenge { nonce: Nonce(nonce), time }.into());
    let welcome = (text(), node_id(), (50..=3_600_000_u64, 50..=3_600_000_u64), 1..=100_000_u32, features(), moment());
    let welcome = welcome.prop_map(|(session, node, (heartbeat_ms, heartbeat_max_ms), max_streams, features, time)| {
        Welcome { session, node, heartbeat_ms, heartbeat_max_ms, max_streams, features, time, warm: None }.into()
    });
    let offer = (
        (stream_id(), attempt()),
        service_name(),
        text(),
        any::<String>(),
        0..=86_400_000_u64,
        caller(),
        prop::option::of(data()),
        features(),
    );
    let offer = offer.prop_map(|((stream, attempt), service, url, token, expires_in_ms, caller, data, features)| {
        Offer { stream, attempt, service, url, token: Secret::new(token), expires_in_ms, caller, data, features }.into()
    });
    let cancel = (stream_id(), select(CancelCode::ALL)).prop_map(|(stream, code)| Cancel { stream, code }.into());
    let go_away = (100..=300_000_u64, text()).prop_map(|(reconnect_in_ms, reason)| GoAway { reconnect_in_ms, reason }.into());
    prop_oneof![challenge, welcome, offer, cancel, go_away]
}

fn from_device() -> impl Strategy<Value = FromDevice> {
    let info = || prop::option::of(text::<INFO_CHARS>());
    let hello = (device_id(), instance(), text(), text(), services(), features(), info(), info());
    let hello = hello.prop_map(|(device, instance, proof, agent, services, features, hostname, os)| {
        Hello { device, instance, proof, agent, services, features, hostname, os }.into()
    });
    let accept = (stream_id(), attempt(), prop::option::of(data()), features(), prop::option::of(millis()));
    let accept = accept.prop_map(|(stream, attempt, data, features, dial_ms)| Accept { stream, attempt, data, features, dial_ms }.into());
    let reject = (stream_id(), attempt(), select(RejectCode::ALL), prop::option::of(text()));
    let reject = reject.prop_map(|(stream, attempt, code, detail)| Reject { stream, attempt, code, detail }.into());
    let list = services().prop_map(|services| Services { services }.into());
    let heartbeat = (5_000..=3_600_000_u64).prop_map(|interval_ms| Heartbeat { interval_ms }.into());
    prop_oneof![hello, accept, reject, list, heartbeat]
}

fn timeline() -> impl Strategy<Value = Timeline> {
    prop::array::uniform9(prop::option::of(millis())).prop_map(|steps| {
        let [authorized_ms, found_ms, offered_ms, device_alive_ms, accepted_ms, dial_ms, device_joined_ms, caller_joined_ms, opened_ms] =
            steps;
        Timeline {
            authorized_ms,
            found_ms,
            offered_ms,
            device_alive_ms,
            accepted_ms,
            dial_ms,
            device_joined_ms,
            caller_joined_ms,
            opened_ms,
        }
    })
}

fn problem() -> impl Strategy<Value = Problem> {
    let words = any::<String>().prop_map(|text| printable(&text, 1_024));
    let more = (prop::option::of(words), prop::option::of(0..=86_400_u64), prop::option::of(moment()), prop::option::of(timeline()));
    let parts = (select(ProblemCode::ALL), any::<String>(), prop::option::of(stream_id()), more);
    parts.prop_map(|(code, detail, stream, (device_detail, retry_after_s, last_seen, timeline))| Problem {
        stream,
        device_detail,
        retry_after_s,
        last_seen,
        timeline,
        ..Problem::new(code, detail)
    })
}

fn leg_text() -> impl Strategy<Value = LegText> {
    let peer = prop_oneof![device_id().prop_map(|device| Peer::Device { device }), caller().prop_map(Peer::Caller)];
    let opened = (stream_id(), service_name(), peer, features(), prop::option::of(data()), 50..=3_600_000_u64, timeline());
    let opened = opened.prop_map(|(stream, service, peer, features, data, ping_ms, timeline)| {
        LegText::Opened(Box::new(Opened { stream, service, peer, features, data, ping_ms, timeline }))
    });
    let refused = problem().prop_map(|problem| LegText::Refused(Box::new(Refused { problem })));
    prop_oneof![opened, refused, Just(LegText::End(End {}))]
}

/// The certificate of a join string that is a vector.
fn a_certificate() -> Vec<u8> {
    let joins: Value = support::vectors("join.json");
    let join = joins["valid"].as_array().unwrap().iter().find_map(|vector| vector["ca"].as_str()).unwrap();
    BASE64URL_NOPAD.decode(join.as_bytes()).unwrap()
}

/// JSON that is close to a message: a valid one with a part removed, inserted or replaced.
fn nearly(message: impl Strategy<Value = String>) -> impl Strategy<Value = String> {
    let insert = prop_oneof![Just("null"), Just("{}"), Just("[]"), Just("-1"), Just("1e999"), Just("\""), Just("\\ud800"), Just("💡")];
    (message, any::<prop::sample::Index>(), any::<prop::sample::Index>(), insert).prop_map(|(text, from, to, insert)| {
        let at: Vec<usize> = text.char_indices().map(|(at, _)| at).chain([text.len()]).collect();
        let (from, to) = (from.index(at.len()), to.index(at.len()));
        format!("{}{insert}{}", &text[..at[from.min(to)]], &text[at[from.max(to)]..])
    })
}

/// Calls every parser with this text. They need only return.
fn parse_with_all(text: &str) {
    drop((ToDevice::decode(text), FromDevice::decode(text), LegText::decode(text)));
    drop((text.parse::<DeviceId>(), text.parse::<ServiceName>(), text.parse::<Subject>(), text.parse::<Instance>()));
    drop((text.parse::<StreamId>(), text.parse::<Feature>(), text.parse::<Timestamp>(), text.parse::<Thumbprint>()));
    drop((text.parse::<Join>(), text.parse::<RelayUrl>(), Data::from_base64(text), PublicKey::from_pem(text)));
    drop((serde_json::from_str::<CallerClaims>(text), serde_json::from_str::<Problem>(text)));
    assert!(truncated_reason(text).len() <= 123 && text.starts_with(truncated_reason(text)));
    if let Ok(pattern) = text.parse::<Pattern>() {
        pattern.matches(text);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn messages_to_a_device_decode_to_what_was_encoded(message in to_device()) {
        prop_assert_eq!(ToDevice::decode(&message.encode()), Ok(Decoded::Known(message)));
    }

    #[test]
    fn messages_from_a_device_decode_to_what_was_encoded(message in from_device()) {
        let text = message.encode();
        // Sixty-four long descriptions in wide characters are the only message that does not fit.
        prop_assume!(text.len() <= moorline_proto::bounds::CONTROL_MESSAGE_BYTES);
        prop_assert_eq!(FromDevice::decode(&text), Ok(Decoded::Known(message)));
    }

    #[test]
    fn messages_on_a_leg_decode_to_what_was_encoded(message in leg_text()) {
        let text = message.encode();
        prop_assume!(text.len() <= moorline_proto::bounds::LEG_TEXT_FROM_RELAY_BYTES);
        prop_assert_eq!(LegText::decode(&text), Ok(Decoded::Known(message)));
    }

    #[test]
    fn names_parse_as_they_are_printed(device in device_id(), service in service_name(), stream in stream_id(), at in moment()) {
        prop_assert_eq!(&parsed::<DeviceId>(device.to_string()), &device);
        prop_assert_eq!(&parsed::<ServiceName>(service.to_string()), &service);
        prop_assert_eq!(parsed::<StreamId>(stream.to_string()), stream);
        prop_assert_eq!(parsed::<Timestamp>(at.to_string()), at);
        prop_assert!(parsed::<Pattern>("*").matches(device.as_str()) && parsed::<Pattern>(device.as_str()).matches(device.as_str()));
    }

    #[test]
    fn keys_parse_as_they_are_written(x in any::<[u8; 32]>(), y in any::<[u8; 32]>()) {
        let point: [u8; 64] = [x, y].concat().try_into().unwrap();
        for key in [PublicKey::Ed25519(x), PublicKey::P256(point)] {
            prop_assert_eq!(&PublicKey::from_pem(&key.to_pem()).unwrap(), &key);
            prop_assert_eq!(&PublicKey::from_jwk(&key.to_jwk()).unwrap(), &key);
            prop_assert_eq!(parsed::<Thumbprint>(key.thumbprint().to_string()), key.thumbprint());
        }
    }

    #[test]
    fn a_join_string_parses_as_it_is_printed(host in "[a-z0-9]{1,12}(\\.[a-z0-9]{1,12}){0,3}", port in 1_u16.., with_ca in any::<bool>()) {
        let join = Join { url: parsed(format!("https://{host}:{port}")), ca: with_ca.then(a_certificate) };
        prop_assert_eq!(parsed::<Join>(join.to_string()), join);
    }

    #[test]
    fn no_input_panics(text in any::<String>()) {
        parse_with_all(&text);
    }

    #[test]
    fn no_near_message_panics(
        text in nearly(prop_oneof![
            to_device().prop_map(|message| message.encode()),
            from_device().prop_map(|message| message.encode()),
            leg_text().prop_map(|message| message.encode()),
        ])
    ) {
        parse_with_all(&text);
    }

    #[test]
    fn keys_of_any_bytes_do_not_panic(bytes in prop::collection::vec(any::<u8>(), 0..128)) {
        drop(PublicKey::from_spki(&bytes));
        drop(String::from_utf8(bytes).map(|text| PublicKey::from_pem(&text)));
    }

    #[test]
    fn addresses_from_a_relay_never_lead_to_another_host(
        handed_out in prop_oneof![
            any::<String>(),
            "[/\\\\]{0,3}[ -~]{0,30}",
            "(https|wss|http|HTTPS)://([a-z.@:%\\\\#?]|relay|example|net|\\[|\\]|443){0,8}(/[ -~]{0,10})?",
        ],
        suffix in prop::option::of(select(vec!["", ".", "example.com", "com"])),
    ) {
        let relay: RelayUrl = parsed("https://relay.example.com");
        if let Ok((url, path)) = relay.resolve(&handed_out, suffix) {
            let below = suffix.is_some_and(|suffix| !suffix.is_empty() && url.host().ends_with(&format!(".{suffix}")));
            prop_assert!(url.host() == relay.host() || below || Some(url.host()) == suffix, "{:?} leads to {}", handed_out, url);
            prop_assert!(path.starts_with('/') && path.bytes().all(|byte| byte.is_ascii_graphic()), "{:?}", path);
            prop_assert_eq!(parsed::<RelayUrl>(url.to_string()), url);
        }
    }
}
