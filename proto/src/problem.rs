//! How a request is refused: a stable code, its HTTP status, and the body (RFC 9457) that says why. The timeline says where the time went.

use serde::{Deserialize, Serialize};

use crate::bounds::{PROBLEM_TEXT_CHARS, PROBLEM_WORD_CHARS, RETRY_AFTER_MAX_S};
use crate::clamp::between_if_any;
use crate::code::codes;
use crate::id::StreamId;
use crate::millis::Millis;
use crate::text::{printable, shown, shown_if_any};
use crate::timestamp::Timestamp;

codes! {
    /// Why a request was refused, or a stream did not come about.
    pub enum ProblemCode {
        /// The request breaks a rule of form; `detail` names it.
        Malformed = "malformed",
        /// No bearer token.
        TokenMissing = "token_missing",
        /// A token that no trusted key signed, or that is not meant for this relay.
        TokenInvalid = "token_invalid",
        /// A token whose time is over.
        TokenExpired = "token_expired",
        /// A token whose time has not come.
        TokenNotYetValid = "token_not_yet_valid",
        /// The caller may see the device but not do this.
        Forbidden = "forbidden",
        /// The device's own rules refused it.
        RejectedByDevice = "rejected_by_device",
        /// A browser's page of an origin that the operator did not list.
        OriginNotAllowed = "origin_not_allowed",
        /// An operator ended the stream before it was opened.
        Killed = "killed",
        /// The caller or the device lost its leave before the stream was opened.
        Revoked = "revoked",
        /// No such device, or none that the caller may see.
        DeviceUnknown = "device_unknown",
        /// The device does not expose a service of that name.
        ServiceNotExposed = "service_not_exposed",
        /// No such stream, or not this token's.
        StreamUnknown = "stream_unknown",
        /// No such address.
        NoSuchRoute = "no_such_route",
        /// The address is there, the method is not.
        MethodNotAllowed = "method_not_allowed",
        /// The device is not connected.
        DeviceOffline = "device_offline",
        /// The leg token did its work already.
        TokenUsed = "token_used",
        /// The request contradicts what is there.
        Conflict = "conflict",
        /// The stream is over.
        StreamExpired = "stream_expired",
        /// A part of the request is larger than it may be.
        TooLarge = "too_large",
        /// The address wants a WebSocket upgrade.
        UpgradeRequired = "upgrade_required",
        /// Too many requests.
        RateLimited = "rate_limited",
        /// The relay's limit of streams is reached.
        TooManyStreams = "too_many_streams",
        /// The device has as many streams as it wants.
        DeviceBusy = "device_busy",
        /// The relay's own fault.
        Internal = "internal",
        /// The target refused the device's connection.
        TargetRefused = "target_refused",
        /// The target did not answer the device in time.
        TargetTimeout = "target_timeout",
        /// The device has no way to the target.
        TargetUnreachable = "target_unreachable",
        /// The device had trouble of its own.
        DeviceFailed = "device_failed",
        /// The node is leaving.
        Draining = "draining",
        /// The node has as much to do as it can.
        Overloaded = "overloaded",
        /// The node cannot find out where devices are.
        DirectoryUnavailable = "directory_unavailable",
        /// The stream was not opened within its deadline.
        HandshakeTimeout = "handshake_timeout",
        /// The device is connected and says nothing.
        DeviceUnresponsive = "device_unresponsive",
    }
}

impl ProblemCode {
    /// The HTTP status that it comes with.
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

    /// One short sentence about the code, the same in every problem of it.
    pub const fn title(self) -> &'static str {
        match self {
            Self::Malformed => "the request breaks a rule of the protocol",
            Self::TokenMissing => "a bearer token is required",
            Self::TokenInvalid => "the token is not valid here",
            Self::TokenExpired => "the token has expired",
            Self::TokenNotYetValid => "the token is not valid yet",
            Self::Forbidden => "this is not allowed",
            Self::RejectedByDevice => "the device's own rules refused the stream",
            Self::OriginNotAllowed => "pages of this origin may not connect",
            Self::Killed => "an operator ended the stream",
            Self::Revoked => "the leave for the stream was taken back",
            Self::DeviceUnknown => "there is no such device",
            Self::ServiceNotExposed => "the device does not expose this service",
            Self::StreamUnknown => "there is no such stream",
            Self::NoSuchRoute => "there is no such address",
            Self::MethodNotAllowed => "this address does not take this method",
            Self::DeviceOffline => "the device is not connected",
            Self::TokenUsed => "the token was used already",
            Self::Conflict => "the request contradicts what is there",
            Self::StreamExpired => "the stream is over",
            Self::TooLarge => "a part of the request is too large",
            Self::UpgradeRequired => "a WebSocket upgrade is required",
            Self::RateLimited => "too many requests",
            Self::TooManyStreams => "too many streams at once",
            Self::DeviceBusy => "the device takes no more streams now",
            Self::Internal => "the relay failed",
            Self::TargetRefused => "the target refused the connection",
            Self::TargetTimeout => "the target did not answer in time",
            Self::TargetUnreachable => "the device cannot reach the target",
            Self::DeviceFailed => "the device had trouble of its own",
            Self::Draining => "the node is leaving",
            Self::Overloaded => "the node is overloaded",
            Self::DirectoryUnavailable => "the node cannot find out where devices are",
            Self::HandshakeTimeout => "the stream was not opened in time",
            Self::DeviceUnresponsive => "the device does not answer",
        }
    }

    /// `type` of the problem: a URN, since there is no page to point to that every operator has.
    pub fn urn(self) -> String {
        format!("urn:moorline:problem:{self}")
    }
}

/// The body of a refusal, `application/problem+json`; the same object stands in `refused`.
///
/// Its texts are for people and are shown in any case: where they are read, they are cut to their bounds and made printable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// `urn:moorline:problem:` and the code.
    #[serde(deserialize_with = "shown::<_, PROBLEM_WORD_CHARS>")]
    pub r#type: String,
    /// For people, the same for every problem of the code.
    #[serde(deserialize_with = "shown::<_, PROBLEM_TEXT_CHARS>")]
    pub title: String,
    /// The HTTP status, also where the problem did not come by HTTP.
    pub status: u16,
    /// What programs decide by. A code of a later version is kept as text, see [`Problem::known_code`].
    #[serde(deserialize_with = "shown::<_, PROBLEM_WORD_CHARS>")]
    pub code: String,
    /// For people, about this one case.
    #[serde(deserialize_with = "shown::<_, PROBLEM_TEXT_CHARS>")]
    pub detail: String,
    /// The stream, if it came to have a name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stream: Option<StreamId>,
    /// The device's own words.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "shown_if_any::<_, PROBLEM_TEXT_CHARS>")]
    pub device_detail: Option<String>,
    /// Asking again makes sense after this many seconds, at most [`RETRY_AFTER_MAX_S`]; equal to the Retry-After header.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "between_if_any::<_, 0, RETRY_AFTER_MAX_S>")]
    pub retry_after_s: Option<u64>,
    /// When the device was last online.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_seen: Option<Timestamp>,
    /// Where the time went.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeline: Option<Timeline>,
}

impl Problem {
    /// A problem with nothing but its code and the words about this case, which are cut to their bound and made printable.
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

    /// The code, if this version knows it.
    pub fn known_code(&self) -> Option<ProblemCode> {
        self.code.parse().ok()
    }
}

/// When a stream reached each step, counted from the request; a step that was not reached is left out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timeline {
    /// The token is valid and allows the stream.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub authorized_ms: Option<Millis>,
    /// The device was found online.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub found_ms: Option<Millis>,
    /// The offer was handed to its control channel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offered_ms: Option<Millis>,
    /// The first frame of any kind that came from the device after that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device_alive_ms: Option<Millis>,
    /// The device accepted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accepted_ms: Option<Millis>,
    /// How long the device dialled its target, as the device says: a span, not a moment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dial_ms: Option<Millis>,
    /// The device leg joined.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device_joined_ms: Option<Millis>,
    /// The caller leg joined.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub caller_joined_ms: Option<Millis>,
    /// Both had joined and the device had accepted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub opened_ms: Option<Millis>,
}
