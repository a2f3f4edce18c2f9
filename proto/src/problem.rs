//! Refusals: stable codes with their HTTP status, the problem body (RFC 9457), and the timeline of a stream.

use serde::{Deserialize, Serialize};

use crate::bounds::{PROBLEM_TEXT_CHARS, PROBLEM_WORD_CHARS, RETRY_AFTER_MAX_S};
use crate::code::codes;
use crate::id::StreamId;
use crate::millis::Millis;
use crate::text::{printable, printable_text, printable_text_if_any};
use crate::timestamp::Timestamp;
use crate::whole::between_if_any;

codes! {
    /// Why a request was refused, or a stream was not opened.
    pub enum ProblemCode {
        /// The request is malformed; `detail` says how.
        Malformed = "malformed",
        /// No bearer token.
        TokenMissing = "token_missing",
        /// The token is not signed by a trusted key, or not meant for this relay.
        TokenInvalid = "token_invalid",
        /// The token has expired.
        TokenExpired = "token_expired",
        /// The token is not valid yet.
        TokenNotYetValid = "token_not_yet_valid",
        /// The caller may see the device, but not do this.
        Forbidden = "forbidden",
        /// The device's own rules forbid it.
        RejectedByDevice = "rejected_by_device",
        /// A web page of an origin that the operator did not list.
        OriginNotAllowed = "origin_not_allowed",
        /// An operator ended the stream before it was opened.
        Killed = "killed",
        /// The caller or the device is no longer authorized.
        Revoked = "revoked",
        /// There is no such device, or the caller may not see it.
        DeviceUnknown = "device_unknown",
        /// The device does not expose a service of that name.
        ServiceNotExposed = "service_not_exposed",
        /// There is no such stream, or the token is not for it.
        StreamUnknown = "stream_unknown",
        /// There is no such path.
        NoSuchRoute = "no_such_route",
        /// The path does not support the method.
        MethodNotAllowed = "method_not_allowed",
        /// The device is not connected.
        DeviceOffline = "device_offline",
        /// The leg token was used already.
        TokenUsed = "token_used",
        /// The request conflicts with an earlier one or with the registry.
        Conflict = "conflict",
        /// The stream has ended.
        StreamExpired = "stream_expired",
        /// A part of the request is too large.
        TooLarge = "too_large",
        /// The path requires a WebSocket upgrade.
        UpgradeRequired = "upgrade_required",
        /// Too many requests.
        RateLimited = "rate_limited",
        /// The relay's limit of streams to the device is reached.
        TooManyStreams = "too_many_streams",
        /// The device has reached its limit of streams.
        DeviceBusy = "device_busy",
        /// The relay failed.
        Internal = "internal",
        /// The target refused the device's connection.
        TargetRefused = "target_refused",
        /// The device's connection to the target timed out.
        TargetTimeout = "target_timeout",
        /// The device has no route to the target.
        TargetUnreachable = "target_unreachable",
        /// The device failed.
        DeviceFailed = "device_failed",
        /// The node is shutting down.
        Draining = "draining",
        /// The node has reached a limit.
        Overloaded = "overloaded",
        /// The node cannot look up devices.
        DirectoryUnavailable = "directory_unavailable",
        /// The stream was not opened within its deadline.
        HandshakeTimeout = "handshake_timeout",
        /// The device is connected, but does not respond.
        DeviceUnresponsive = "device_unresponsive",
    }
}

impl ProblemCode {
    /// The HTTP status of the code.
    pub const fn status(self) -> u16 {
        match self {
            Self::Malformed => 400,
            Self::TokenMissing | Self::TokenInvalid | Self::TokenExpired | Self::TokenNotYetValid => 401,
            Self::Forbidden | Self::RejectedByDevice | Self::OriginNotAllowed | Self::Killed | Self::Revoked => 403,
            Self::DeviceUnknown | Self::ServiceNotExposed | Self::StreamUnknown | Self::NoSuchRoute => 404,
            Self::MethodNotAllowed => 405,
            Self::DeviceOffline | Self::TokenUsed | Self::Conflict => 409,
            Self::StreamExpired => 410,
            Self::TooLarge => 413,
            Self::UpgradeRequired => 426,
            Self::RateLimited | Self::TooManyStreams | Self::DeviceBusy => 429,
            Self::Internal => 500,
            Self::TargetRefused | Self::TargetTimeout | Self::TargetUnreachable | Self::DeviceFailed => 502,
            Self::Draining | Self::Overloaded | Self::DirectoryUnavailable => 503,
            Self::HandshakeTimeout | Self::DeviceUnresponsive => 504,
        }
    }

    /// A short sentence about the code, the same in every problem with it.
    pub const fn title(self) -> &'static str {
        match self {
            Self::Malformed => "the request is malformed",
            Self::TokenMissing => "a bearer token is required",
            Self::TokenInvalid => "the token is not valid here",
            Self::TokenExpired => "the token has expired",
            Self::TokenNotYetValid => "the token is not valid yet",
            Self::Forbidden => "this is not allowed",
            Self::RejectedByDevice => "the device's own rules refused the stream",
            Self::OriginNotAllowed => "web pages of this origin may not connect",
            Self::Killed => "an operator ended the stream",
            Self::Revoked => "the permission for the stream was revoked",
            Self::DeviceUnknown => "there is no such device",
            Self::ServiceNotExposed => "the device does not expose this service",
            Self::StreamUnknown => "there is no such stream",
            Self::NoSuchRoute => "there is no such path",
            Self::MethodNotAllowed => "this path does not support the method",
            Self::DeviceOffline => "the device is not connected",
            Self::TokenUsed => "the token was used already",
            Self::Conflict => "the request conflicts with an earlier one",
            Self::StreamExpired => "the stream has ended",
            Self::TooLarge => "a part of the request is too large",
            Self::UpgradeRequired => "a WebSocket upgrade is required",
            Self::RateLimited => "too many requests",
            Self::TooManyStreams => "too many streams at once",
            Self::DeviceBusy => "the device takes no more streams now",
            Self::Internal => "the relay failed",
            Self::TargetRefused => "the target refused the connection",
            Self::TargetTimeout => "the target did not answer in time",
            Self::TargetUnreachable => "the device cannot reach the target",
            Self::DeviceFailed => "the device failed",
            Self::Draining => "the node is shutting down",
            Self::Overloaded => "the node is overloaded",
            Self::DirectoryUnavailable => "the node cannot look up devices",
            Self::HandshakeTimeout => "the stream was not opened in time",
            Self::DeviceUnresponsive => "the device does not respond",
        }
    }

    /// `type` of the problem: a URN, since there is no page that every deployment could link to.
    pub fn urn(self) -> String {
        format!("urn:moorline:problem:{self}")
    }
}

/// The body of a refusal, `application/problem+json`. `refused` carries the same object.
///
/// Its texts are decoded in any case: they are truncated to their limits and made printable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// `urn:moorline:problem:` and the code.
    #[serde(deserialize_with = "printable_text::<_, PROBLEM_WORD_CHARS>")]
    pub r#type: String,
    /// For people, the same in every problem with the code.
    #[serde(deserialize_with = "printable_text::<_, PROBLEM_TEXT_CHARS>")]
    pub title: String,
    /// The HTTP status, also in `refused`.
    pub status: u16,
    /// The code, for programs. Kept as text, since it may be one of a later version: see [`Problem::known_code`].
    #[serde(deserialize_with = "printable_text::<_, PROBLEM_WORD_CHARS>")]
    pub code: String,
    /// For people, about this case.
    #[serde(deserialize_with = "printable_text::<_, PROBLEM_TEXT_CHARS>")]
    pub detail: String,
    /// The stream, if there is one already.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stream: Option<StreamId>,
    /// Details in the device's words.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "printable_text_if_any::<_, PROBLEM_TEXT_CHARS>")]
    pub device_detail: Option<String>,
    /// When to try again, in seconds; clamped to [`RETRY_AFTER_MAX_S`]. Equal to the Retry-After header.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "between_if_any::<_, 0, RETRY_AFTER_MAX_S>")]
    pub retry_after_s: Option<u64>,
    /// When the device was last online.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_seen: Option<Timestamp>,
    /// The steps that the stream reached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeline: Option<Timeline>,
}

impl Problem {
    /// A problem with a code and details. The details are truncated to their limit and made printable.
    pub fn new(code: ProblemCode, detail: impl Into<String>) -> Self {
        Self {
            r#type: code.urn(),
            title: code.title().to_owned(),
            status: code.status(),
            code: code.as_str().to_owned(),
            detail: printable(&detail.into(), PROBLEM_TEXT_CHARS),
            stream: None,
            device_detail: None,
            retry_after_s: None,
            last_seen: None,
            timeline: None,
        }
    }

    /// The code, if it is one of this version.
    pub fn known_code(&self) -> Option<ProblemCode> {
        self.code.parse().ok()
    }
}

/// When a stream reached each step, from the request on. A step that was not reached is left out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timeline {
    /// The caller was authorized.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub authorized_ms: Option<Millis>,
    /// The device was found online.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub found_ms: Option<Millis>,
    /// The offer was written to its control channel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offered_ms: Option<Millis>,
    /// The first frame of any kind came from the device after the offer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device_alive_ms: Option<Millis>,
    /// The device accepted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accepted_ms: Option<Millis>,
    /// How long the device took to connect to its target, as it reports: a duration, not a point in time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dial_ms: Option<Millis>,
    /// The device leg joined.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device_joined_ms: Option<Millis>,
    /// The caller leg joined.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub caller_joined_ms: Option<Millis>,
    /// The stream was opened: both legs had joined and the device had accepted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub opened_ms: Option<Millis>,
}
