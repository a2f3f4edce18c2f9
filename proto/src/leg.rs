//! Text messages of a leg: `opened` or `refused` from the relay, `end` and `delivered` from either side.

use serde::{Deserialize, Serialize};

use crate::bounds::{FEATURES, LEG_TEXT_FROM_RELAY_BYTES, PING_MS};
use crate::control::CallerInfo;
use crate::id::{DeviceId, Feature, ServiceName, StreamId};
use crate::message::messages;
use crate::problem::{Problem, Timeline};
use crate::text::{Data, list_of_at_most};
use crate::whole::between;

messages! {
    /// A text message on a leg.
    pub enum LegText at most LEG_TEXT_FROM_RELAY_BYTES; {
        /// From the relay, once, as the first message: both legs have joined and bytes may flow.
        Opened(Box<Opened>) = "opened",
        /// From the relay to the caller, once, as the first message: the stream is refused. Close 4010 follows.
        Refused(Box<Refused>) = "refused",
        /// From either side: it sends no more bytes. The other direction goes on.
        End(End) = "end",
        /// From either side, once, after the other side's `end`: everything before it was written to the local side, and that direction of the
        /// local side was ended.
        Delivered(Delivered) = "delivered",
    }
}

/// See [`LegText::Opened`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Opened {
    /// Id of the stream.
    pub stream: StreamId,
    /// The requested service.
    pub service: ServiceName,
    /// The other end.
    pub peer: Peer,
    /// The features that both ends will use.
    #[serde(default, deserialize_with = "list_of_at_most::<_, _, FEATURES>")]
    pub features: Vec<Feature>,
    /// Opaque data from the other end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<Data>,
    /// Interval of the relay's pings on an idle leg, in milliseconds; clamped to [`PING_MS`]. After 2.5 intervals without a frame the relay
    /// is considered dead.
    #[serde(deserialize_with = "between::<_, { PING_MS.0 }, { PING_MS.1 }>")]
    pub ping_ms: u64,
    /// The steps so far.
    pub timeline: Timeline,
}

/// The other end of a stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged, expecting = "neither a device nor a caller")]
pub enum Peer {
    /// As shown to the caller.
    Device {
        /// Its device id.
        device: DeviceId,
    },
    /// As shown to the device: the offer's `caller`.
    Caller(CallerInfo),
}

/// See [`LegText::Refused`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// The body that an ordinary response would have had.
    pub problem: Problem,
}

/// See [`LegText::End`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {}

/// See [`LegText::Delivered`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delivered {}

/// The `delivered` message as text.
pub const DELIVERED_TEXT: &str = r#"{"type":"delivered"}"#;

/// The `end` message as text.
pub const END_TEXT: &str = r#"{"type":"end"}"#;
