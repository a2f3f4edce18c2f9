//! Compares messages, bodies and codes with `vectors/`, which fix their encoding byte by byte.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may panic")]

mod support;

use std::collections::{BTreeMap, BTreeSet};

use moorline_proto::api::{About, Device, DeviceList, OpenStream, PutDevice, StreamList, StreamTicket};
use moorline_proto::claims::CallerClaims;
use moorline_proto::close::{CloseReason, ReconnectPolicy, truncated_reason};
use moorline_proto::control::{CancelCode, FromDevice, RejectCode, ToDevice};
use moorline_proto::leg::LegText;
use moorline_proto::message::Decoded;
use moorline_proto::problem::{Problem, ProblemCode};
use moorline_proto::reuse::ReuseText;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use support::{Bodies, Messages, Valid, Written, read, vectors};

macro_rules! messages_match_vectors {
    ($test:ident, $file:literal, $messages:ty) => {
        #[test]
        fn $test() {
            let file: Messages = vectors($file);
            let mut seen = BTreeSet::new();
            for Valid { name, text, .. } in &file.valid {
                let decoded = <$messages>::decode(&text.to_string()).unwrap_or_else(|error| panic!("{name}: {error}"));
                let Decoded::Known(message) = decoded else { panic!("{name}: of unknown type") };
                seen.insert(message.kind());
            }
            for vector in &file.valid {
                let Ok(Decoded::Known(message)) = <$messages>::decode(&vector.text.to_string()) else { panic!("{}", vector.name) };
                assert_eq!(message.encode(), vector.canonical(), "{}", vector.name);
                let again = <$messages>::decode(&message.encode());
                assert_eq!(again, Ok(Decoded::Known(message)), "{}: read again", vector.name);
            }
            assert!(seen.iter().eq(&BTreeSet::from_iter(<$messages>::TYPES.iter().copied())), "every type has a vector: {seen:?}");
            for vector in &file.unknown {
                let expected = Ok(Decoded::Unknown(vector.r#type.clone()));
                assert_eq!(<$messages>::decode(&vector.text.to_string()), expected, "{}", vector.name);
            }
            for vector in &file.invalid {
                let error = <$messages>::decode(&vector.text.to_string()).expect_err(&vector.name);
                assert_eq!(error.kind(), vector.error, "{}: {error}", vector.name);
            }
        }
    };
}

messages_match_vectors!(messages_from_relay_to_device, "control_to_device.json", ToDevice);
messages_match_vectors!(messages_from_device_to_relay, "control_from_device.json", FromDevice);
messages_match_vectors!(text_messages_on_a_leg, "leg.json", LegText);
messages_match_vectors!(text_messages_on_a_leg_that_is_used_again, "reuse.json", ReuseText);

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
    let come_back = |reason: CloseReason| match reason.reconnect_policy() {
        ReconnectPolicy::Backoff => "backoff".to_owned(),
        ReconnectPolicy::After(wait) => format!("after {} s", wait.as_secs()),
        ReconnectPolicy::Rarely(_) => "seldom".to_owned(),
        ReconnectPolicy::UnlessSuperseded => "superseded".to_owned(),
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
        assert_eq!(truncated_reason(&vector.text.to_string()), vector.fits.to_string(), "{}", vector.name);
    }
}
