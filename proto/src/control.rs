//! What is said on the control channel: JSON text, one object each, tagged by `type`. [`ToDevice`] and [`FromDevice`] are all of it.

use std::fmt;
use std::num::NonZeroU32;

use data_encoding::BASE64URL_NOPAD;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

use crate::bounds::{
    ANNOUNCED_MS, CONTROL_MESSAGE_BYTES, DESCRIPTION_CHARS, DETAIL_CHARS, EXPIRES_IN_MAX_MS, FEATURES, GROUP_CHARS, GROUPS, INFO_CHARS,
    MAX_STREAMS, PING_MS, PROOF_CHARS, REASON_CHARS, RECONNECT_IN_MS, SERVICES, URL_CHARS,
};
use crate::clamp::{between, count};
use crate::code::codes;
use crate::id::{CallerId, DeviceId, Feature, Instance, Issuer, NodeId, ServiceName, StreamId, Subject};
use crate::message::messages;
use crate::millis::Millis;
use crate::problem::ProblemCode;
use crate::secret::Secret;
use crate::text::{Data, Text, list_of_at_most};
use crate::timestamp::Timestamp;

messages! {
    /// What the relay says to a device.
    pub enum ToDevice at most CONTROL_MESSAGE_BYTES; {
        /// The first message, right behind the 101: what the proof must be made for.
        Challenge(Challenge) = "challenge",
        /// Ends the handshake: the device is online from now on.
        Welcome(Welcome) = "welcome",
        /// A caller wants a stream. Accept, then join at `url` before `expires_in_ms` is over.
        Offer(Offer) = "offer",
        /// The offer is void: drop the target and the leg.
        Cancel(Cancel) = "cancel",
        /// This node is leaving. Come back after `reconnect_in_ms`.
        GoAway(GoAway) = "go_away",
    }
}

messages! {
    /// What a device says to the relay.
    pub enum FromDevice at most CONTROL_MESSAGE_BYTES; {
        /// Who I am, with the proof of it. Must come within 10 s of the 101.
        Hello(Hello) = "hello",
        /// I take the stream: its target is dialled.
        Accept(Accept) = "accept",
        /// I do not take it; allowed until `opened`, also after `accept`.
        Reject(Reject) = "reject",
        /// My services from now on, after a reload.
        Services(Services) = "services",
        /// My own pings come this often from now on.
        Heartbeat(Heartbeat) = "heartbeat",
    }
}

/// 256 random bits that a proof is made for; base64url without padding as text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Nonce(pub [u8; 32]);

impl Nonce {
    /// As it stands in `challenge` and in the proof's claims.
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
    /// Used once, for this connection.
    pub nonce: Nonce,
    /// The relay's wall time.
    pub time: Timestamp,
}

/// See [`ToDevice::Welcome`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// Names this connection in the relay's logs.
    pub session: Text<64>,
    /// The node that holds it.
    pub node: NodeId,
    /// How often the device pings, or is pinged, in milliseconds; clamped to [`PING_MS`].
    #[serde(deserialize_with = "between::<_, { PING_MS.0 }, { PING_MS.1 }>")]
    pub heartbeat_ms: u64,
    /// The longest interval that the device may announce, in milliseconds; clamped to [`PING_MS`].
    #[serde(deserialize_with = "between::<_, { PING_MS.0 }, { PING_MS.1 }>")]
    pub heartbeat_max_ms: u64,
    /// Open and undecided streams that the device may have at once; the relay enforces it. Clamped to [`MAX_STREAMS`].
    #[serde(deserialize_with = "count::<_, { MAX_STREAMS.0 }, { MAX_STREAMS.1 }>")]
    pub max_streams: u32,
    /// Those of `hello` that the relay knows too.
    #[serde(default, deserialize_with = "list_of_at_most::<_, _, FEATURES>")]
    pub features: Vec<Feature>,
    /// The relay's wall time.
    pub time: Timestamp,
}

/// Which offer of a stream: 1 for the first, one more for each repetition. Left out of a message where it is 1.
///
/// The relay repeats an offer where the control channel was lost while the caller waits. Each answer names the attempt that it is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Attempt(NonZeroU32);

impl Attempt {
    /// The first offer of a stream.
    pub const FIRST: Self = Self(NonZeroU32::MIN);

    /// The attempt after this one; the last one that there is stays the last.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }

    /// The number, from 1.
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
    /// `null` means the same as a field that is left out.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Option::<NonZeroU32>::deserialize(deserializer)?.map(Self).unwrap_or_default())
    }
}

/// See [`ToDevice::Offer`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    /// Names the stream from here on.
    pub stream: StreamId,
    /// Which offer of the stream this is. It replaces an earlier one.
    #[serde(default, skip_serializing_if = "Attempt::is_first")]
    pub attempt: Attempt,
    /// What the caller wants to reach.
    pub service: ServiceName,
    /// Where the device joins its leg: a path, or an absolute address that the device checks.
    pub url: Text<URL_CHARS>,
    /// Opens the device leg, and nothing else.
    #[serde(with = "leg_token")]
    pub token: Secret,
    /// What is left of the handshake's deadline, in milliseconds; at most [`EXPIRES_IN_MAX_MS`], more is clamped.
    #[serde(deserialize_with = "between::<_, 0, EXPIRES_IN_MAX_MS>")]
    pub expires_in_ms: u64,
    /// Who asks.
    pub caller: CallerInfo,
    /// Opaque to the relay.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<Data>,
    /// What the caller would use if the device knows it too.
    #[serde(default, deserialize_with = "list_of_at_most::<_, _, FEATURES>")]
    pub features: Vec<Feature>,
}

/// The caller of a stream, as the device is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CallerInfo {
    /// The operator's short name for who vouches for the subject.
    pub issuer: Issuer,
    /// Who it is there.
    pub subject: Subject,
    /// Groups that the issuer says it is in.
    #[serde(default, deserialize_with = "list_of_at_most::<_, _, GROUPS>")]
    pub groups: Vec<Text<GROUP_CHARS>>,
    /// Its network address alone, as the decision saw it.
    pub address: std::net::IpAddr,
    /// In the caller's own words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Text<REASON_CHARS>>,
}

impl CallerInfo {
    /// Issuer and subject alone.
    pub fn id(&self) -> CallerId {
        CallerId { issuer: self.issuer.clone(), subject: self.subject.clone() }
    }
}

/// See [`ToDevice::Cancel`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cancel {
    /// The stream that will not come about.
    pub stream: StreamId,
    /// Why.
    pub code: CancelCode,
}

codes! {
    /// Why an offer became void.
    pub enum CancelCode {
        /// The deadline passed.
        HandshakeTimeout = "handshake_timeout",
        /// The caller hung up. Also what an unknown code is taken as.
        CallerGone = "caller_gone",
        /// An operator ended it.
        Killed = "killed",
        /// The caller or the device lost its leave.
        Revoked = "revoked",
        /// The node is leaving.
        Draining = "draining",
    }
    else CallerGone
}

/// See [`ToDevice::GoAway`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GoAway {
    /// When to dial again, in milliseconds; clamped to [`RECONNECT_IN_MS`]. The relay has spread it over its devices.
    #[serde(deserialize_with = "between::<_, { RECONNECT_IN_MS.0 }, { RECONNECT_IN_MS.1 }>")]
    pub reconnect_in_ms: u64,
    /// For the device's log.
    pub reason: Text<DETAIL_CHARS>,
}

/// See [`FromDevice::Hello`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The name that the proof is about.
    pub device: DeviceId,
    /// Random per start of the agent.
    pub instance: Instance,
    /// A compact JWS over [`crate::proof::ProofClaims`].
    pub proof: Text<PROOF_CHARS>,
    /// Program and version, for the registry.
    pub agent: Text<INFO_CHARS>,
    /// What the device exposes.
    #[serde(default, deserialize_with = "list_of_at_most::<_, _, SERVICES>")]
    pub services: Vec<Service>,
    /// What the device knows beyond version 1.
    #[serde(default, deserialize_with = "list_of_at_most::<_, _, FEATURES>")]
    pub features: Vec<Feature>,
    /// What the machine calls itself; grants nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<Text<INFO_CHARS>>,
    /// Operating system; grants nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub os: Option<Text<INFO_CHARS>>,
}

/// One service of a device: a name and words for people. Its target is the device's own matter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// What callers ask for.
    pub name: ServiceName,
    /// For people who list devices.
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
    /// Opaque to the relay; stands in the caller's `opened`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<Data>,
    /// Those of the offer that the device will use.
    #[serde(default, deserialize_with = "list_of_at_most::<_, _, FEATURES>")]
    pub features: Vec<Feature>,
    /// How long the target took to answer.
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
    /// The device's own words, shown to the caller.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<Text<DETAIL_CHARS>>,
}

codes! {
    /// Why a device does not take a stream.
    pub enum RejectCode {
        /// The service is not in its configuration.
        NotExposed = "not_exposed",
        /// Its own rules forbid it.
        Policy = "policy",
        /// It has as many streams as it wants.
        Busy = "busy",
        /// The target refused the connection.
        TargetRefused = "target_refused",
        /// The target did not answer in time.
        TargetTimeout = "target_timeout",
        /// There is no way to the target, or its name does not resolve.
        TargetUnreachable = "target_unreachable",
        /// The device's own trouble. Also what an unknown code is taken as.
        Internal = "internal",
    }
    else Internal
}

impl RejectCode {
    /// What the caller is told.
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
    /// Takes the place of the list in `hello`.
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

/// A leg token inside an offer: the one message that carries a secret.
mod leg_token {
    use super::{Deserialize, Deserializer, Secret, Serializer};

    pub(super) fn serialize<S: Serializer>(token: &Secret, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(token.reveal()) // to the device that the leg is for
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Secret, D::Error> {
        String::deserialize(deserializer).map(Secret::new)
    }
}
