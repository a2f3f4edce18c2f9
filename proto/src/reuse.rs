//! Text messages of a leg that is used again: how it becomes idle, and how its next stream begins on it.

use serde::{Deserialize, Deserializer, Serialize, de::Error as _};

use crate::api::OpenStream;
use crate::bounds::{
    DEADLINE_MAX_S, EXPIRES_IN_MAX_MS, FEATURES, IDEMPOTENCY_KEY_CHARS, KEEP_MAX_MS, LEG_REQUEST_BYTES, PING_MS, REASON_CHARS, WAIT_MAX_S,
};
use crate::control::{Accept, Attempt, CallerInfo, Cancel, Reject};
use crate::id::{DeviceId, Feature, ServiceName, StreamId};
use crate::message::messages;
use crate::text::{Data, Text, list_of_at_most};
use crate::whole::{between, between_if_any};

messages! {
    /// A text message by which a leg passes from one stream to the next. Only on legs whose 101 granted it; on others it breaks the protocol.
    pub enum ReuseText at most LEG_REQUEST_BYTES; {
        /// From the relay: the leg belongs to no stream now. It takes the place of close 1000.
        Idle(Idle) = "idle",
        /// From a caller, on an idle leg: it wants a stream.
        Ask(Box<Ask>) = "ask",
        /// From the relay, on an idle device leg: a caller wants a stream, and this is its device leg.
        Offer(Box<LegOffer>) = "offer",
        /// From the relay: the offer on this leg is withdrawn.
        Cancel(Cancel) = "cancel",
        /// From the device: it takes the stream that was offered on this leg.
        Accept(Accept) = "accept",
        /// From the device: it does not take the stream that was offered on this leg.
        Reject(Reject) = "reject",
    }
}

/// See [`ReuseText::Idle`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Idle {
    /// How long the relay keeps the leg, in milliseconds; clamped to [`KEEP_MAX_MS`].
    #[serde(deserialize_with = "between::<_, 0, KEEP_MAX_MS>")]
    pub keep_ms: u64,
    /// As in [`crate::leg::Opened`], while the leg is idle. Clamped to [`PING_MS`].
    #[serde(deserialize_with = "between::<_, { PING_MS.0 }, { PING_MS.1 }>")]
    pub ping_ms: u64,
}

/// See [`ReuseText::Ask`]. The members of [`OpenStream`], the device, and the request's key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ask {
    /// The device.
    pub device: DeviceId,
    /// The service to reach.
    pub service: ServiceName,
    /// As in [`OpenStream`].
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "between_if_any::<_, 0, DEADLINE_MAX_S>")]
    pub deadline_s: Option<u64>,
    /// As in [`OpenStream`].
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "between_if_any::<_, 0, WAIT_MAX_S>")]
    pub wait_s: Option<u64>,
    /// As in [`OpenStream`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Text<REASON_CHARS>>,
    /// As in [`OpenStream`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<Data>,
    /// As in [`OpenStream`].
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "list_of_at_most::<_, _, FEATURES>")]
    pub features: Vec<Feature>,
    /// What an `Idempotency-Key` is to an ordinary request: 1 to [`IDEMPOTENCY_KEY_CHARS`] visible ASCII characters.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "key")]
    pub key: Option<String>,
}

impl Ask {
    /// The request for a stream to this device, under this key.
    pub fn new(device: DeviceId, open: OpenStream, key: Option<String>) -> Self {
        let OpenStream { service, deadline_s, wait_s, reason, data, features } = open;
        Self { device, service, deadline_s, wait_s, reason, data, features, key }
    }

    /// The device, the request, and its key.
    pub fn into_parts(self) -> (DeviceId, OpenStream, Option<String>) {
        let Self { device, service, deadline_s, wait_s, reason, data, features, key } = self;
        (device, OpenStream { service, deadline_s, wait_s, reason, data, features }, key)
    }
}

fn key<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    let key = Option::<String>::deserialize(deserializer)?;
    if key.as_ref().is_none_or(|key| is_key(key)) {
        return Ok(key);
    }
    Err(D::Error::custom(format_args!("not 1 to {IDEMPOTENCY_KEY_CHARS} visible ASCII characters")))
}

/// Whether text is an idempotency key: 1 to [`IDEMPOTENCY_KEY_CHARS`] visible ASCII characters.
pub fn is_key(text: &str) -> bool {
    (1..=IDEMPOTENCY_KEY_CHARS).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic())
}

/// See [`ReuseText::Offer`]. As [`crate::control::Offer`], without an address and a token: the leg is there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LegOffer {
    /// Id of the stream.
    pub stream: StreamId,
    /// The attempt. A later one replaces the earlier one.
    #[serde(default, skip_serializing_if = "Attempt::is_first")]
    pub attempt: Attempt,
    /// The service that the caller wants to reach.
    pub service: ServiceName,
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
    /// As in [`crate::leg::Opened`], which does not follow on this leg. Clamped to [`PING_MS`].
    #[serde(deserialize_with = "between::<_, { PING_MS.0 }, { PING_MS.1 }>")]
    pub ping_ms: u64,
}
