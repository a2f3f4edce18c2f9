//! Messages of the control channel: JSON objects as text, tagged by `type`. [`ToDevice`] and [`FromDevice`] are all there are.

use std::fmt;
use std::num::NonZeroU32;

use data_encoding::BASE64URL_NOPAD;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

use crate::bounds::{
    ANNOUNCED_MS, CONTROL_MESSAGE_BYTES, DESCRIPTION_CHARS, DETAIL_CHARS, EXPIRES_IN_MAX_MS, FEATURES, GROUP_CHARS, GROUPS, INFO_CHARS,
    MAX_STREAMS, PING_MS, PROOF_CHARS, REASON_CHARS, RECONNECT_IN_MS, SERVICES, URL_CHARS,
};
use crate::code::codes;
use crate::id::{CallerId, DeviceId, Feature, Instance, Issuer, NodeId, ServiceName, StreamId, Subject};
use crate::message::messages;
use crate::millis::Millis;
use crate::problem::ProblemCode;
use crate::secret::Secret;
use crate::text::{Data, Text, list_of_at_most};
use crate::timestamp::Timestamp;
use crate::whole::{Whole, between, count};

messages! {
    /// A message from the relay to a device.
    pub enum ToDevice at most CONTROL_MESSAGE_BYTES; {
        /// The first message, right after the 101: the nonce for the proof.
        Challenge(Challenge) = "challenge",
        /// Ends the handshake: the device is online from now on.
        Welcome(Welcome) = "welcome",
        /// A caller wants a stream. Accept it, then join at `url` within `expires_in_ms`.
        Offer(Offer) = "offer",
        /// The offer is withdrawn: drop the target and the leg.
        Cancel(Cancel) = "cancel",
        /// This node is shutting down. Reconnect after `reconnect_in_ms`.
        GoAway(GoAway) = "go_away",
    }
}

messages! {
    /// A message from a device to the relay.
    pub enum FromDevice at most CONTROL_MESSAGE_BYTES; {
        /// The device's identity and the proof of it. Must be sent within 10 s after the 101.
        Hello(Hello) = "hello",
        /// The device takes the stream: it has connected to the target.
        Accept(Accept) = "accept",
        /// The device does not take the stream. Allowed until `opened`, also after `accept`.
        Reject(Reject) = "reject",
        /// The device's services have changed.
        Services(Services) = "services",
        /// The device will ping at another interval.
        Heartbeat(Heartbeat) = "heartbeat",
    }
}

/// 256 random bits that a proof must sign; base64url without padding as text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Nonce(pub [u8; 32]);

impl Nonce {
    /// The form used in `challenge` and in the proof's claims.
    pub fn to_text(self) -> String {
        BASE64URL_NOPAD.encode(&self.0)
    }
}

impl Serialize for Nonce {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.to_text())
    }
}

impl<'de> Deserialize<'de> for Nonce {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let bytes = BASE64URL_NOPAD.decode(text.as_bytes()).ok().and_then(|bytes| bytes.try_into().ok());
        bytes.map(Self).ok_or_else(|| D::Error::custom("a nonce is 32 bytes in base64url without padding"))
    }
}

/// See [`ToDevice::Challenge`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Challenge {
    /// For this connection alone.
    pub nonce: Nonce,
    /// The relay's wall-clock time.
    pub time: Timestamp,
}

/// See [`ToDevice::Welcome`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// Id of this connection in the relay's logs.
    pub session: Text<64>,
    /// The node that serves it.
    pub node: NodeId,
    /// Interval of pings, whoever sends them, in milliseconds; clamped to [`PING_MS`].
    #[serde(deserialize_with = "between::<_, { PING_MS.0 }, { PING_MS.1 }>")]
    pub heartbeat_ms: u64,
    /// The longest interval that the device may announce, in milliseconds; clamped to [`PING_MS`].
    #[serde(deserialize_with = "between::<_, { PING_MS.0 }, { PING_MS.1 }>")]
    pub heartbeat_max_ms: u64,
    /// Open and undecided streams that the device may have at once; the relay enforces it. Clamped to [`MAX_STREAMS`].
    #[serde(deserialize_with = "count::<_, { MAX_STREAMS.0 }, { MAX_STREAMS.1 }>")]
    pub max_streams: u32,
    /// The features of `hello` that the relay supports too.
    #[serde(default, deserialize_with = "list_of_at_most::<_, _, FEATURES>")]
    pub features: Vec<Feature>,
    /// The relay's wall-clock time.
    pub time: Timestamp,
    /// Where and with what token the device opens idle legs, if it knows [`crate::names::REUSE`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warm: Option<Warm>,
}

/// How a device opens idle legs, for as long as its session lasts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Warm {
    /// Where: a path, or an absolute URL, which the device checks.
    pub url: Text<URL_CHARS>,
    /// Authorizes opening idle legs, and nothing else.
    #[serde(with = "leg_token")]
    pub token: Secret,
}

/// The number of an offer among the offers of its stream, from 1. It is left out of messages where it is 1.
///
/// The relay repeats an offer if the control channel is lost while the caller waits. Each answer carries the attempt that it is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Attempt(NonZeroU32);

impl Attempt {
    /// The first offer of a stream.
    pub const FIRST: Self = Self(NonZeroU32::MIN);

    /// The next attempt. Saturates at `u32::MAX`.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }

    /// The attempt as a number.
    pub const fn get(self) -> u32 {
        self.0.get()
    }

    /// Whether this is the first offer of its stream.
    pub fn is_first(&self) -> bool {
        *self == Self::FIRST
    }
}

impl Default for Attempt {
    fn default() -> Self {
        Self::FIRST
    }
}

impl fmt::Display for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl From<NonZeroU32> for Attempt {
    fn from(number: NonZeroU32) -> Self {
        Self(number)
    }
}

impl<'de> Deserialize<'de> for Attempt {
    /// `null` is the same as a field that is left out.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Some(number) = Option::<Whole>::deserialize(deserializer)? else { return Ok(Self::default()) };
        let attempt = u32::try_from(number.get()).ok().and_then(NonZeroU32::new);
        attempt.map(Self).ok_or_else(|| D::Error::custom("not a whole number from 1 to 2^32 - 1"))
    }
}

/// See [`ToDevice::Offer`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    /// Id of the stream.
    pub stream: StreamId,
    /// The attempt. A later one replaces the earlier one.
    #[serde(default, skip_serializing_if = "Attempt::is_first")]
    pub attempt: Attempt,
    /// The service that the caller wants to reach.
    pub service: ServiceName,
    /// Where the device joins its leg: a path, or an absolute URL, which the device checks.
    pub url: Text<URL_CHARS>,
    /// Authorizes joining the device leg, and nothing else.
    #[serde(with = "leg_token")]
    pub token: Secret,
    /// Time left to open the stream, in milliseconds; clamped to [`EXPIRES_IN_MAX_MS`].
    #[serde(deserialize_with = "between::<_, 0, EXPIRES_IN_MAX_MS>")]
    pub expires_in_ms: u64,
    /// Who wants the stream.
    pub caller: CallerInfo,
    /// Opaque to the relay.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<Data>,
    /// Features that the caller would use if the device supports them.
    #[serde(default, deserialize_with = "list_of_at_most::<_, _, FEATURES>")]
    pub features: Vec<Feature>,
}

/// The caller of a stream, as shown to the device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CallerInfo {
    /// The operator's short name of the issuer that authenticated the subject.
    pub issuer: Issuer,
    /// The caller's name at that issuer.
    pub subject: Subject,
    /// Groups of the caller, according to the issuer.
    #[serde(default, deserialize_with = "list_of_at_most::<_, _, GROUPS>")]
    pub groups: Vec<Text<GROUP_CHARS>>,
    /// Its IP address, the one that was used for authorization.
    pub address: std::net::IpAddr,
    /// Why, in the caller's words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Text<REASON_CHARS>>,
}

impl CallerInfo {
    /// Issuer and subject.
    pub fn id(&self) -> CallerId {
        CallerId { issuer: self.issuer.clone(), subject: self.subject.clone() }
    }
}

/// See [`ToDevice::Cancel`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cancel {
    /// The stream that will not be opened.
    pub stream: StreamId,
    /// Why.
    pub code: CancelCode,
}

codes! {
    /// Why an offer was withdrawn.
    pub enum CancelCode {
        /// The deadline passed.
        HandshakeTimeout = "handshake_timeout",
        /// The caller hung up. Unknown codes are read as this one.
        CallerGone = "caller_gone",
        /// An operator ended the stream.
        Killed = "killed",
        /// The caller or the device is no longer authorized.
        Revoked = "revoked",
        /// The node is shutting down.
        Draining = "draining",
    }
    else CallerGone
}

/// See [`ToDevice::GoAway`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GoAway {
    /// When to reconnect, in milliseconds; clamped to [`RECONNECT_IN_MS`]. The relay sends each device another time.
    #[serde(deserialize_with = "between::<_, { RECONNECT_IN_MS.0 }, { RECONNECT_IN_MS.1 }>")]
    pub reconnect_in_ms: u64,
    /// For the device's log.
    pub reason: Text<DETAIL_CHARS>,
}

/// See [`FromDevice::Hello`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The device id that the proof is for.
    pub device: DeviceId,
    /// Random, drawn at each start of the agent.
    pub instance: Instance,
    /// A compact JWS over [`crate::proof::ProofClaims`].
    pub proof: Text<PROOF_CHARS>,
    /// Program and version, shown to operators.
    pub agent: Text<INFO_CHARS>,
    /// The services that the device exposes.
    #[serde(default, deserialize_with = "list_of_at_most::<_, _, SERVICES>")]
    pub services: Vec<Service>,
    /// Features that the device supports beyond version 1.
    #[serde(default, deserialize_with = "list_of_at_most::<_, _, FEATURES>")]
    pub features: Vec<Feature>,
    /// The machine's host name. Not used for authorization.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<Text<INFO_CHARS>>,
    /// Operating system. Not used for authorization.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub os: Option<Text<INFO_CHARS>>,
}

/// A service of a device. Its target is known to the device alone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// The name that callers ask for.
    pub name: ServiceName,
    /// Description for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<Text<DESCRIPTION_CHARS>>,
}

/// See [`FromDevice::Accept`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accept {
    /// The stream of the offer.
    pub stream: StreamId,
    /// The attempt of the offer. An answer to any attempt but the latest is ignored.
    #[serde(default, skip_serializing_if = "Attempt::is_first")]
    pub attempt: Attempt,
    /// Opaque to the relay, which passes it on in the caller's `opened`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<Data>,
    /// The features of the offer that the device will use.
    #[serde(default, deserialize_with = "list_of_at_most::<_, _, FEATURES>")]
    pub features: Vec<Feature>,
    /// How long connecting to the target took.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dial_ms: Option<Millis>,
}

/// See [`FromDevice::Reject`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reject {
    /// The stream of the offer.
    pub stream: StreamId,
    /// The attempt of the offer. An answer to any attempt but the latest is ignored.
    #[serde(default, skip_serializing_if = "Attempt::is_first")]
    pub attempt: Attempt,
    /// Why.
    pub code: RejectCode,
    /// Details in the device's words, shown to the caller.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<Text<DETAIL_CHARS>>,
}

codes! {
    /// Why a device does not take a stream.
    pub enum RejectCode {
        /// The service is not in the device's configuration.
        NotExposed = "not_exposed",
        /// The device's own rules forbid it.
        Policy = "policy",
        /// The device has reached its limit of streams.
        Busy = "busy",
        /// The target refused the connection.
        TargetRefused = "target_refused",
        /// The target did not answer in time.
        TargetTimeout = "target_timeout",
        /// There is no route to the target, or its name does not resolve.
        TargetUnreachable = "target_unreachable",
        /// The device failed. Unknown codes are read as this one.
        Internal = "internal",
    }
    else Internal
}

impl RejectCode {
    /// The problem that the caller gets.
    pub const fn problem(self) -> ProblemCode {
        match self {
            Self::NotExposed => ProblemCode::ServiceNotExposed,
            Self::Policy => ProblemCode::RejectedByDevice,
            Self::Busy => ProblemCode::DeviceBusy,
            Self::TargetRefused => ProblemCode::TargetRefused,
            Self::TargetTimeout => ProblemCode::TargetTimeout,
            Self::TargetUnreachable => ProblemCode::TargetUnreachable,
            Self::Internal => ProblemCode::DeviceFailed,
        }
    }
}

/// See [`FromDevice::Services`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Services {
    /// Replaces the list of `hello`.
    #[serde(default, deserialize_with = "list_of_at_most::<_, _, SERVICES>")]
    pub services: Vec<Service>,
}

/// See [`FromDevice::Heartbeat`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heartbeat {
    /// In milliseconds; clamped to [`ANNOUNCED_MS`] where it is read, and by the relay to its `heartbeat_max_ms`.
    #[serde(deserialize_with = "between::<_, { ANNOUNCED_MS.0 }, { ANNOUNCED_MS.1 }>")]
    pub interval_ms: u64,
}

/// Serializes the tokens of legs, the only secrets in messages.
mod leg_token {
    use super::{Deserialize, Deserializer, Secret, Serializer};

    pub(super) fn serialize<S: Serializer>(token: &Secret, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(token.reveal()) // sent to the device that joins the leg
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Secret, D::Error> {
        String::deserialize(deserializer).map(Secret::new)
    }
}
