//! Every code of the protocol is reached by a scenario, or belongs to a feature that does not exist yet.
//!
//! The table below names a scenario for each code, by a path that the compiler checks; a code without a line does not compile. The check runs
//! each scenario of the table once more, in a process of its own, in which the harness reports every code that crosses the wire
//! ([`moorline_tests::observed`]). So a scenario that mentions a code and never reaches it fails here.

use std::collections::{BTreeMap, BTreeSet};

use moorline_proto::close::CloseReason;
use moorline_proto::control::{CancelCode, RejectCode};
use moorline_proto::problem::ProblemCode;
use moorline_tests::observed;

use crate::{error_messages, handshake, refusals, splicing};

/// Codes that cannot occur yet, and the feature that will use them. Implementing the feature removes its codes here.
const WAITING: &[(&str, &str)] = &[
    ("ProblemCode::RateLimited", "rates of callers and addresses: today only concurrent use is limited"),
    ("ProblemCode::DirectoryUnavailable", "a directory outside of the process, for more than one node"),
    ("CloseReason::Expired", "grants for a time, and streams that end with them"),
    ("CloseReason::Limit", "budgets of bytes and time"),
    ("CloseReason::Forbidden", "devices that are disabled or pending: today a device is registered or it is not"),
    ("CancelCode::Revoked", "callers that lose their permission: today only a device can, and its channel ends with 4006"),
    ("CancelCode::Draining", "the drain: today a relay that stops closes its control channels at once"),
];

/// The name of a scenario in this binary, or none for a code without a feature.
type Scenario = Option<&'static str>;

/// The name by which the test binary knows a scenario.
macro_rules! scenario {
    ($module:ident::$name:ident) => {{
        const _: fn() = $module::$name;
        Some(concat!(stringify!($module), "::", stringify!($name)))
    }};
}

fn problem(code: ProblemCode) -> Scenario {
    match code {
        ProblemCode::Malformed
        | ProblemCode::TokenMissing
        | ProblemCode::OriginNotAllowed
        | ProblemCode::NoSuchRoute
        | ProblemCode::MethodNotAllowed
        | ProblemCode::UpgradeRequired
        | ProblemCode::TooLarge
        | ProblemCode::StreamUnknown => scenario!(error_messages::a_request_that_a_middlebox_changed_is_refused),
        ProblemCode::TokenInvalid | ProblemCode::TokenExpired | ProblemCode::TokenNotYetValid | ProblemCode::Forbidden => {
            scenario!(error_messages::a_token_is_refused_for_what_it_does_not_allow)
        }
        ProblemCode::RejectedByDevice
        | ProblemCode::DeviceBusy
        | ProblemCode::TargetRefused
        | ProblemCode::TargetTimeout
        | ProblemCode::TargetUnreachable
        | ProblemCode::DeviceFailed => scenario!(error_messages::each_reject_code_of_a_device_is_explained),
        ProblemCode::DeviceUnknown
        | ProblemCode::DeviceOffline
        | ProblemCode::ServiceNotExposed
        | ProblemCode::TooManyStreams
        | ProblemCode::Overloaded
        | ProblemCode::Internal => scenario!(error_messages::a_stream_is_refused_before_it_is_offered),
        ProblemCode::HandshakeTimeout
        | ProblemCode::Killed
        | ProblemCode::DeviceUnresponsive
        | ProblemCode::Revoked
        | ProblemCode::Draining => scenario!(error_messages::a_stream_is_refused_between_offer_and_opened),
        ProblemCode::Conflict | ProblemCode::TokenUsed | ProblemCode::StreamExpired => {
            scenario!(error_messages::a_request_or_token_that_was_used_is_refused)
        }
        ProblemCode::RateLimited | ProblemCode::DirectoryUnavailable => None,
    }
}

fn close(reason: CloseReason) -> Scenario {
    match reason {
        CloseReason::Finished => scenario!(splicing::each_direction_ends_by_itself_and_both_ends_are_1000),
        CloseReason::Framing | CloseReason::BadUtf8 => scenario!(splicing::invalid_frames_and_invalid_utf8_have_different_codes),
        CloseReason::TooBig | CloseReason::Protocol | CloseReason::Reset => {
            scenario!(splicing::a_protocol_violation_closes_with_its_code_and_resets_the_far_side)
        }
        CloseReason::PeerLost => scenario!(splicing::a_lost_leg_is_peer_lost_for_the_far_side),
        CloseReason::RelayDraining | CloseReason::IdleTimeout | CloseReason::Killed | CloseReason::Revoked => {
            scenario!(error_messages::an_open_stream_that_is_cut_reports_the_cause)
        }
        CloseReason::Superseded => scenario!(handshake::a_leg_lost_before_opened_may_rejoin_and_a_second_join_replaces_the_first),
        CloseReason::Refused => scenario!(handshake::a_caller_that_negotiates_and_never_joins_costs_the_deadline),
        CloseReason::Unauthenticated => scenario!(refusals::a_proof_is_valid_for_this_device_this_relay_and_this_connection_only),
        CloseReason::Expired | CloseReason::Limit | CloseReason::Forbidden => None,
    }
}

fn reject(code: RejectCode) -> Scenario {
    match code {
        RejectCode::NotExposed
        | RejectCode::Policy
        | RejectCode::Busy
        | RejectCode::TargetRefused
        | RejectCode::TargetTimeout
        | RejectCode::TargetUnreachable
        | RejectCode::Internal => scenario!(error_messages::each_reject_code_of_a_device_is_explained),
    }
}

fn cancel(code: CancelCode) -> Scenario {
    match code {
        CancelCode::HandshakeTimeout | CancelCode::Killed => scenario!(error_messages::a_stream_is_refused_between_offer_and_opened),
        CancelCode::CallerGone => scenario!(handshake::a_caller_that_disconnects_cancels_the_offer_at_once),
        CancelCode::Revoked | CancelCode::Draining => None,
    }
}

/// Every code with its scenario, by the code's name in reports.
fn all() -> BTreeMap<String, Scenario> {
    let problems = ProblemCode::ALL.iter().map(|&code| (format!("ProblemCode::{code:?}"), problem(code)));
    let closes = CloseReason::ALL.iter().map(|&reason| (format!("CloseReason::{reason:?}"), close(reason)));
    let rejects = RejectCode::ALL.iter().map(|&code| (format!("RejectCode::{code:?}"), reject(code)));
    let cancels = CancelCode::ALL.iter().map(|&code| (format!("CancelCode::{code:?}"), cancel(code)));
    problems.chain(closes).chain(rejects).chain(cancels).collect()
}

#[test]
fn every_code_is_observed_by_a_scenario_or_waits_for_a_feature() {
    let all = all();
    let scenarios: BTreeSet<&str> = all.values().filter_map(|scenario| *scenario).collect();
    let observed: BTreeMap<&str, BTreeSet<String>> = scenarios.into_iter().map(|scenario| (scenario, observed::by(scenario))).collect();
    for (code, scenario) in &all {
        let waits = WAITING.iter().filter(|(waiting, feature)| waiting == code && !feature.is_empty()).count();
        match scenario {
            Some(scenario) => {
                assert!(observed[scenario].contains(code), "{scenario} does not reach {code}, only {:?}", observed[scenario]);
                assert_eq!(waits, 0, "{code} has a scenario and is not listed as unused");
            }
            None => assert_eq!(waits, 1, "{code} has no scenario and must be listed once as unused"),
        }
    }
    for (code, _) in WAITING {
        assert!(all.contains_key(*code), "{code} is listed as unused and does not exist");
        let reached = observed.iter().find(|(_, codes)| codes.contains(*code));
        assert!(reached.is_none(), "{code} is reached and listed as unused: {reached:?}");
    }
}
