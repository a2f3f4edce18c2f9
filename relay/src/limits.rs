//! Every bound that an operator can set: what happens there, and where the number comes from. Sizes on the wire are `moorline_proto::bounds`.

use std::num::{NonZeroU32, NonZeroUsize};
use std::time::Duration;

use moorline_proto::bounds;

/// How long the relay waits for things.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Times {
    /// From offer to `opened` where the caller names no deadline. Beyond: the caller gets `handshake_timeout`, the device `cancel`.
    /// 60 s: a satellite link, a login prompt on the device and one retry fit into it.
    pub deadline: Duration,
    /// The longest deadline that a caller may name; more is taken as this. 5 min: an offer holds memory and a place of its device.
    pub deadline_max: Duration,
    /// The longest that a caller may wait for an offline device; more is taken as this, and zero forbids waiting. 1 h.
    pub wait_max: Duration,
    /// A leg on which nothing was sent for this long is pinged. 25 s: load balancers cut silent connections after 30 to 60 s.
    pub ping: Duration,
    /// How often a device pings its control channel, or is pinged. 25 s, for the same reason. 2.5 intervals without a frame: dead.
    pub heartbeat: Duration,
    /// The longest interval that a device may announce. 150 s: half of what the most patient common balancers allow (350 s).
    pub heartbeat_max: Duration,
    /// Half-closed and no byte for this long: closed with `idle_timeout`. 10 min: a far end that computes before it answers is common,
    /// one that forgot to close is commoner.
    pub half_closed_idle: Duration,
    /// How long a stream that is over still answers its own tokens with `stream_expired`. 5 min: longer than any client retries.
    pub closed_stream_retention: Duration,
    /// From TCP accept to TLS established. Beyond: closed. 10 s: the slowest mobile links need 3.
    pub tls_handshake_timeout: Duration,
    /// From the 101 of a control channel to its `hello`. Beyond: closed with 4400. 10 s, as the protocol says.
    pub hello_timeout: Duration,
    /// For any frame of the device after an offer. Beyond: its control channel is closed and the caller gets `device_unresponsive`.
    /// 10 s, as the protocol says.
    pub offer_ack_timeout: Duration,
    /// The longest that `POST …/streams` is held for the device's answer; more is taken as this. 20 s: load balancers give up on
    /// silent requests at 30 to 60 s.
    pub prefer_wait_max: Duration,
}

/// How much there may be of things. Reaching a bound costs the one who reached it, nobody else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Streams of one device, open and undecided. Beyond: the caller gets `too_many_streams` (429). 512: what an agent on a small
    /// board carries, and a third of the descriptors that Linux gives a process by default.
    pub streams_per_device: NonZeroU32,
    /// Streams of this node, open and undecided. Beyond: `overloaded` (503). 10,000: two legs each, with room for descriptors.
    pub streams: NonZeroUsize,
    /// Streams of one caller, open and undecided. Beyond: `too_many_streams` (429). 2,500: a quarter of the node's, so that no caller has all.
    pub streams_per_caller: NonZeroU32,
    /// Streams that one caller has asked for and that are not opened yet. Beyond: `too_many_streams` (429). 256: half of what a device takes, so
    /// that no caller keeps a device from all others by asking alone.
    pub undecided_per_caller: NonZeroU32,
    /// Streams with which one caller waits for offline devices. Beyond: `too_many_streams` (429). 100: a tenth of the node's.
    pub waiting_per_caller: NonZeroU32,
    /// Callers that wait for an offline device. Beyond: `overloaded` (503). 1,000: a fleet that comes back must not find a crowd.
    pub waiting_callers: NonZeroUsize,
    /// Connections that were not admitted yet. Beyond: the next one waits until one leaves, or the oldest is 2 s old and is closed. 512:
    /// each costs about 30 KB until it is admitted.
    pub unauthenticated_connections: NonZeroUsize,
    /// Connections of any kind. Beyond: a new one is closed. 15,000: what 20,000 file descriptors leave when the rest has its share.
    pub connections: NonZeroUsize,
}

impl Default for Times {
    fn default() -> Self {
        Self {
            deadline: bounds::DEFAULT_DEADLINE,
            deadline_max: Duration::from_secs(5 * 60),
            wait_max: Duration::from_secs(60 * 60),
            ping: Duration::from_secs(25),
            heartbeat: Duration::from_secs(25),
            heartbeat_max: Duration::from_secs(150),
            half_closed_idle: Duration::from_secs(10 * 60),
            closed_stream_retention: Duration::from_secs(5 * 60),
            tls_handshake_timeout: Duration::from_secs(10),
            hello_timeout: bounds::HELLO_TIMEOUT,
            offer_ack_timeout: bounds::OFFER_ACK_TIMEOUT,
            prefer_wait_max: bounds::PREFER_WAIT_MAX,
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        const fn several(count: usize) -> NonZeroUsize {
            NonZeroUsize::new(count).expect("the numbers below are not zero")
        }
        Self {
            streams_per_device: NonZeroU32::new(512).expect("512 is not zero"),
            streams: several(10_000),
            streams_per_caller: NonZeroU32::new(2_500).expect("2,500 is not zero"),
            undecided_per_caller: NonZeroU32::new(256).expect("256 is not zero"),
            waiting_per_caller: NonZeroU32::new(100).expect("100 is not zero"),
            waiting_callers: several(1_000),
            unauthenticated_connections: several(512),
            connections: several(15_000),
        }
    }
}
