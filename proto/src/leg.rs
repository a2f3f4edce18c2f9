//! What flows on a leg beside the bytes: `opened` or `refused` from the relay, `end` between the sides.

use serde::{Deserialize, Serialize};

use crate::bounds::{FEATURES, LEG_TEXT_FROM_RELAY_BYTES, PING_MS};
use crate::clamp::between;
use crate::control::CallerInfo;
use crate::id::{DeviceId, Feature, ServiceName, StreamId};
use crate::message::messages;
use crate::problem::{Problem, Timeline};
use crate::text::{Data, list_of_at_most};

messages! {
    /// A text message on a leg.
    pub enum LegText at most LEG_TEXT_FROM_RELAY_BYTES; {
        /// From the relay, once and first: both legs have joined, bytes flow from here on.
        Opened(Box<Opened>) = "opened",
        /// From the relay to the caller, once and first: there will be no stream. Close 4010 follows.
        Refused(Box<Refused>) = "refused",
        /// Between the sides: this side will send no more bytes; the other direction goes on.
        End(End) = "end",
    }
}

/// See [`LegText::Opened`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Opened {
    /// The stream's name.
    pub stream: StreamId,
    /// What was asked for.
    pub service: ServiceName,
    /// Who is at the other end.
    pub peer: Peer,
    /// What both ends will use.
    #[serde(default, deserialize_with = "list_of_at_most::<_, _, FEATURES>")]
    pub features: Vec<Feature>,
    /// From the other end, opaque to the relay.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<Data>,
    /// How often the relay pings an idle leg, in milliseconds; clamped to [`PING_MS`]. Silence for 2.5 times as long means that the relay
    /// is dead.
    #[serde(deserialize_with = "between::<_, { PING_MS.0 }, { PING_MS.1 }>")]
    pub ping_ms: u64,
    /// Where the time went until now.
    pub timeline: Timeline,
}

/// The other end of a stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Peer {
    /// What the caller is told.
    Device {
        /// The device's name.
        device: DeviceId,
    },
    /// What the device is told: the offer's `caller`.
    Caller(CallerInfo),
}

/// See [`LegText::Refused`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// What would have been the answer to an ordinary request.
    pub problem: Problem,
}

/// See [`LegText::End`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {}

/// `end` as text, ready to send.
pub const END_TEXT: &str = r#"{"type":"end"}"#;
