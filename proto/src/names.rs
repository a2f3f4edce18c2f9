//! Paths, headers, subprotocols and prefixes, each defined once.

use crate::id::{DeviceId, NodeId, ServiceName, StreamId};

/// `GET`: versions, features, limits and the time. Needs no authentication.
pub const ABOUT: &str = "/v1/about";
/// `GET` + upgrade: opens a device's control channel.
pub const CONTROL: &str = "/v1/control";
/// `GET` + upgrade: opens a caller's leg that is idle from the start.
pub const CONNECT: &str = "/v1/connect";
/// `GET`: the registry's devices.
pub const DEVICES: &str = "/v1/devices";
/// `GET`: live streams.
pub const STREAMS: &str = "/v1/streams";

/// Subprotocol of a control channel.
pub const CONTROL_SUBPROTOCOL: &str = "moorline.control.v1";
/// Subprotocol of a leg.
pub const STREAM_SUBPROTOCOL: &str = "moorline.stream.v1";
/// Prefix of a second subprotocol that carries a leg token, for browsers, which cannot set headers on a WebSocket.
pub const TOKEN_SUBPROTOCOL_PREFIX: &str = "moorline.token.";
/// Prefix of a leg token; 256 random bits in base64url follow.
pub const LEG_TOKEN_PREFIX: &str = "mrl_leg_";
/// Prefix of a token that opens idle device legs; 256 random bits in base64url follow.
pub const WARM_TOKEN_PREFIX: &str = "mrl_warm_";

/// Deadline for opening the stream in seconds, on `connect`.
pub const DEADLINE_HEADER: &str = "moorline-deadline";
/// How long to wait for an offline device in seconds, on `connect`.
pub const WAIT_HEADER: &str = "moorline-wait";
/// Why the caller asks, percent-encoded UTF-8, on `connect`.
pub const REASON_HEADER: &str = "moorline-reason";
/// Opaque data for the device, standard padded base64, on `connect`.
pub const DATA_HEADER: &str = "moorline-data";
/// Requested features, separated by commas, on `connect`.
pub const FEATURES_HEADER: &str = "moorline-features";
/// Key of a request, so that a retry does not open a second stream.
pub const IDEMPOTENCY_KEY_HEADER: &str = "idempotency-key";
/// What a side asks for its leg in the upgrade, and what the 101 grants: a list of words, of which [`REUSE`] is the only one so far.
pub const LEG_HEADER: &str = "moorline-leg";
/// The word in [`LEG_HEADER`] for a leg that is used again, and the feature of `about`, `hello` and `welcome`.
pub const REUSE: &str = "reuse";
/// Headers of a request that stand once at most, by name. Others that the protocol names are lists, or not allowed at all.
pub const SINGLE_HEADERS: [&str; 15] = [
    "host",
    "authorization",
    "content-length",
    "content-type",
    "transfer-encoding",
    "expect",
    "origin",
    "sec-websocket-key",
    "sec-websocket-version",
    DEADLINE_HEADER,
    WAIT_HEADER,
    REASON_HEADER,
    DATA_HEADER,
    FEATURES_HEADER,
    IDEMPOTENCY_KEY_HEADER,
];
/// Media type of the body of a request.
pub const BODY_MEDIA_TYPE: &str = "application/json";
/// Media type of a problem (RFC 9457).
pub const PROBLEM_MEDIA_TYPE: &str = "application/problem+json";
/// `typ` in the header of a device's proof.
pub const PROOF_TYP: &str = "moorline-proof+jwt";
/// `typ` in the header of a caller's token that a relay minted.
pub const CALLER_TOKEN_TYP: &str = "JWT";
/// Feature of `hello` and `welcome`: the device sends the pings of the control channel itself.
pub const HEARTBEAT_FEATURE: &str = "heartbeat";

/// `GET`, `PUT`, `DELETE`: a device of the registry.
pub fn device_path(device: &DeviceId) -> String {
    format!("{DEVICES}/{device}")
}

/// `POST`: negotiates a stream to the device.
pub fn device_streams_path(device: &DeviceId) -> String {
    format!("{DEVICES}/{device}/streams")
}

/// `GET` + upgrade: negotiates and joins in one request.
pub fn connect_path(device: &DeviceId, service: &ServiceName) -> String {
    format!("{DEVICES}/{device}/connect/{service}")
}

/// `GET` + upgrade: joins one leg, with that leg's token.
pub fn leg_path(node: &NodeId, stream: &StreamId) -> String {
    format!("/v1/legs/{node}/{stream}")
}

/// `GET` + upgrade: opens a device's leg that is idle from the start, with the token of `welcome`.
pub fn idle_legs_path(node: &NodeId) -> String {
    format!("/v1/legs/{node}/idle")
}

/// `DELETE`: ends a stream.
pub fn stream_path(stream: &StreamId) -> String {
    format!("{STREAMS}/{stream}")
}
