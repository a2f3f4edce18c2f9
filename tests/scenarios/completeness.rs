//! No code without a scenario: each that the protocol names is reached on the wire by a scenario that names it, or stands in the one list
//! of those that wait for something to be built.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use moorline_proto::close::CloseReason;
use moorline_proto::control::{CancelCode, RejectCode};
use moorline_proto::problem::ProblemCode;

/// Codes that nothing can bring about yet, and what they wait for. Whoever builds that takes the code from this list.
const WAITING: &[(&str, &str)] = &[
    ("ProblemCode::RateLimited", "rates of callers and addresses: today there are bounds on what is open at once"),
    ("ProblemCode::DirectoryUnavailable", "a directory outside of the process, as soon as there is more than one node"),
    ("CloseReason::Expired", "grants for a time, and streams that end with them"),
    ("CloseReason::Limit", "budgets of bytes and time"),
    ("CloseReason::Forbidden", "devices that are disabled or pending: today a device is registered or it is not"),
    ("CancelCode::Revoked", "callers that lose their leave: today only a device does, and its channel ends with 4006"),
    ("CancelCode::Draining", "the drain: today a relay that stops closes its control channels at once"),
];

/// The scenario that reaches a code; none for one that waits. A new code does not compile before it has its line here.
fn problem(code: ProblemCode) -> Option<&'static str> {
    Some(match code {
        ProblemCode::Malformed
        | ProblemCode::TokenMissing
        | ProblemCode::OriginNotAllowed
        | ProblemCode::NoSuchRoute
        | ProblemCode::MethodNotAllowed
        | ProblemCode::UpgradeRequired
        | ProblemCode::TooLarge
        | ProblemCode::StreamUnknown => "a_request_that_a_middlebox_changed_is_refused",
        ProblemCode::TokenInvalid | ProblemCode::TokenExpired | ProblemCode::TokenNotYetValid | ProblemCode::Forbidden => {
            "a_token_is_refused_for_what_it_does_not_allow"
        }
        ProblemCode::RejectedByDevice
        | ProblemCode::DeviceBusy
        | ProblemCode::TargetRefused
        | ProblemCode::TargetTimeout
        | ProblemCode::TargetUnreachable
        | ProblemCode::DeviceFailed => "each_reject_code_of_a_device_is_explained",
        ProblemCode::DeviceUnknown
        | ProblemCode::DeviceOffline
        | ProblemCode::ServiceNotExposed
        | ProblemCode::TooManyStreams
        | ProblemCode::Overloaded
        | ProblemCode::Internal => "a_stream_is_refused_before_the_device_is_asked",
        ProblemCode::HandshakeTimeout
        | ProblemCode::Killed
        | ProblemCode::DeviceUnresponsive
        | ProblemCode::Revoked
        | ProblemCode::Draining => "a_stream_is_refused_between_offer_and_opened",
        ProblemCode::Conflict | ProblemCode::TokenUsed | ProblemCode::StreamExpired => "a_request_or_token_that_was_used_is_refused",
        ProblemCode::RateLimited | ProblemCode::DirectoryUnavailable => return None,
    })
}

fn close(reason: CloseReason) -> Option<&'static str> {
    Some(match reason {
        CloseReason::Finished => "each_direction_ends_by_itself_and_both_ends_are_1000",
        CloseReason::Framing | CloseReason::BadUtf8 => "invalid_frames_and_invalid_utf8_have_different_codes",
        CloseReason::TooBig | CloseReason::Protocol => "a_protocol_violation_closes_with_its_code_and_resets_the_far_side",
        CloseReason::RelayDraining
        | CloseReason::Reset
        | CloseReason::PeerLost
        | CloseReason::IdleTimeout
        | CloseReason::Killed
        | CloseReason::Revoked => "an_open_stream_that_is_cut_says_why",
        CloseReason::Superseded => "a_leg_lost_before_opened_may_rejoin_and_a_second_join_replaces_the_first",
        CloseReason::Refused => "a_caller_that_negotiates_and_never_joins_costs_the_deadline",
        CloseReason::Unauthenticated => "a_proof_is_valid_for_this_device_this_relay_and_this_connection_only",
        CloseReason::Expired | CloseReason::Limit | CloseReason::Forbidden => return None,
    })
}

fn reject(code: RejectCode) -> Option<&'static str> {
    Some(match code {
        RejectCode::NotExposed
        | RejectCode::Policy
        | RejectCode::Busy
        | RejectCode::TargetRefused
        | RejectCode::TargetTimeout
        | RejectCode::TargetUnreachable
        | RejectCode::Internal => "each_reject_code_of_a_device_is_explained",
    })
}

fn cancel(code: CancelCode) -> Option<&'static str> {
    Some(match code {
        CancelCode::HandshakeTimeout | CancelCode::Killed => "a_stream_is_refused_between_offer_and_opened",
        CancelCode::CallerGone => "a_caller_that_disconnects_cancels_the_offer_at_once",
        CancelCode::Revoked | CancelCode::Draining => return None,
    })
}

/// A code: its name in the sources, the scenario that reaches it, and the words by which a scenario may name it.
struct Code {
    name: String,
    scenario: Option<&'static str>,
    words: Vec<String>,
}

fn all() -> Vec<Code> {
    let code = |of: &str, variant: String, scenario, word: &str| {
        let name = format!("{of}::{variant}");
        let words = vec![name.clone(), format!("{of}::ALL"), format!("{word:?}")];
        Code { name, scenario, words }
    };
    let mut all: Vec<Code> = Vec::new();
    all.extend(ProblemCode::ALL.iter().map(|&it| {
        let mut code = code("ProblemCode", format!("{it:?}"), problem(it), it.as_str());
        // A device's no is named by its own codes.
        if RejectCode::ALL.iter().any(|reject| reject.problem() == it) {
            code.words.push("RejectCode::ALL".to_owned());
        }
        code
    }));
    all.extend(CloseReason::ALL.iter().map(|&it| {
        let mut code = code("CloseReason", format!("{it:?}"), close(it), it.name());
        code.words.push(it.code().to_string());
        code
    }));
    all.extend(RejectCode::ALL.iter().map(|&it| code("RejectCode", format!("{it:?}"), reject(it), it.as_str())));
    all.extend(CancelCode::ALL.iter().map(|&it| code("CancelCode", format!("{it:?}"), cancel(it), it.as_str())));
    all
}

/// The scenarios' sources, without this file: the list must not find itself.
fn sources() -> Vec<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios");
    let files = fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path());
    let scenarios = files.filter(|path| path.extension().is_some_and(|extension| extension == "rs") && !path.ends_with("completeness.rs"));
    scenarios.map(|path| fs::read_to_string(path).expect("a source")).collect()
}

/// The text of a scenario: from its attribute's line to the brace that closes it.
fn scenario<'a>(sources: &'a [String], name: &str) -> Option<&'a str> {
    sources.iter().find_map(|source| {
        let (before, at) = source.split_once(&format!("\nasync fn {name}()"))?;
        let body = at.split("\n}\n").next()?;
        before.ends_with(']').then_some(body)
    })
}

#[test]
fn every_code_is_observed_by_a_scenario_or_waits_for_a_feature() {
    let (sources, mut waiting) = (sources(), BTreeSet::new());
    for Code { name, scenario: by, words } in all() {
        let waits = WAITING.iter().any(|(code, for_what)| *code == name && !for_what.is_empty());
        match by {
            Some(by) => {
                let body = scenario(&sources, by).unwrap_or_else(|| panic!("{name}: there is no scenario {by}"));
                assert!(!waits, "{name} has a scenario and waits for nothing");
                assert!(words.iter().any(|word| body.contains(word)), "{by} does not name {name}: none of {words:?}");
            }
            None => assert!(waits && waiting.insert(name.clone()), "{name} has no scenario and waits for nothing"),
        }
    }
    assert_eq!(waiting.len(), WAITING.len(), "each that waits is a code, and stands there once");
}
