//! Every bound and timeout of the relay: what happens there, and where the number comes from. [`Times`] and [`Limits`] can be set by the
//! operator, the constants cannot. Sizes on the wire are `moorline_proto::bounds`.

use std::num::{NonZeroU32, NonZeroUsize};
use std::time::Duration;

use moorline_proto::bounds;

/// Deadlines and intervals.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Times {
    /// From offer to `opened`, if the caller names no deadline. Beyond: the caller gets `handshake_timeout`, the device `cancel`.
    /// 60 s: a satellite link, a login prompt on the device and one retry fit into it.
    pub deadline: Duration,
    /// The longest deadline that a caller may name; a longer one is cut to it. 5 min: an offer holds memory, and counts for its device.
    pub deadline_max: Duration,
    /// The longest that a caller may wait for an offline device; a longer wait is cut to it, and 0 forbids waiting. 1 h.
    pub wait_max: Duration,
    /// A leg on which nothing was sent for this long is pinged. 25 s: load balancers cut silent connections after 30 to 60 s.
    pub ping: Duration,
    /// How often a device pings its control channel, or is pinged. 25 s, for the same reason. 2.5 intervals without a frame: dead.
    pub heartbeat: Duration,
    /// The longest interval that a device may announce. 150 s: less than half of what the most patient common load balancers allow (350 s).
    pub heartbeat_max: Duration,
    /// How long a half-closed stream may carry no byte. Beyond: closed with `idle_timeout`. 10 min: long enough for a server that computes
    /// before it answers; most that take longer have forgotten to close.
    pub half_closed_idle: Duration,
    /// How long a leg is kept that belongs to no stream; then it is closed with 1000. 5 min, the protocol's most: whoever has opened a stream
    /// opens the next one within minutes, or not for hours.
    pub idle_leg: Duration,
    /// How long the tokens of a closed stream are remembered, and answered with `stream_expired`. 5 min: longer than any client retries.
    pub closed_stream_retention: Duration,
    /// From TCP accept to TLS established, a PROXY protocol header included. Beyond: closed. 10 s: the slowest mobile links need 3.
    pub tls_handshake_timeout: Duration,
    /// How long an HTTP answer may make no progress towards the client. Beyond: the connection is dropped, and the answers to pipelined
    /// requests with it. 10 s: a client that reads takes something in every round trip.
    pub http_write_timeout: Duration,
    /// From the 101 of a control channel to its `hello`. Beyond: closed with 4400. 10 s, as the protocol specifies.
    pub hello_timeout: Duration,
    /// From an offer to any frame of the device. Beyond: its control channel is closed and the caller gets `device_unresponsive`.
    /// 10 s, as the protocol specifies.
    pub offer_ack_timeout: Duration,
    /// How long `POST …/streams` may wait for the device's answer; a longer `Prefer: wait` is cut to it. 20 s: load balancers give up on
    /// silent requests after 30 to 60 s.
    pub prefer_wait_max: Duration,
}

/// Bounds on what the relay holds. Whoever reaches one is refused; others are not affected.
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
    /// Connections that have not authenticated. Beyond: one of the address that holds most is evicted, or the next one waits until the
    /// oldest is 2 s old. 512: each costs about 30 KB until it authenticates.
    pub unauthenticated_connections: NonZeroUsize,
    /// The share of them that one address may hold: an IPv4 address, or an IPv6 /64. Beyond: the oldest of them is evicted once it is 2 s
    /// old, otherwise the new one is reset. 128, a quarter: one address leaves room for all others, and a site with hundreds of devices
    /// behind one NAT address still gets in within seconds.
    pub unauthenticated_per_address: NonZeroUsize,
    /// Connections of any kind. Beyond: a new one is closed. 15,000: what 20,000 file descriptors leave when the rest has its share.
    pub connections: NonZeroUsize,
    /// Connections that one caller may hold, legs of `connect` among them. Beyond: `overloaded` (503). 2,048: a browser or a test that
    /// opens everything at once stays far below it, and seven such callers fit into `connections`.
    pub connections_per_caller: NonZeroUsize,
}

// Accepting.

/// How long an unauthenticated connection is safe from eviction by age. An honest client needs a few round trips; in a storm of them, those
/// that came first can finish.
pub(crate) const EVICTABLE_AFTER: Duration = Duration::from_secs(2);
/// The pause after a failed accept. Without file descriptors, trying at once would only burn CPU.
pub(crate) const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Accepting counts as recovered once it has not failed for this long. While descriptors are short, one in ten tries may succeed.
pub(crate) const ACCEPT_RECOVERED_AFTER: Duration = Duration::from_secs(1);

/// The part of `connections` that is kept free of idle legs: one in so many. While fewer are left, each new connection evicts the leg that
/// has been idle for the longest.
pub(crate) const IDLE_LEG_RESERVE: usize = 100;

// HTTP connections.

/// From TLS established to the first byte of a request. Beyond: closed. 60 s: an agent may connect a leg early, while it dials the target.
pub(crate) const FIRST_BYTE_TIMEOUT: Duration = Duration::from_secs(60);
/// From the first byte of a request's head to its end; also how long a connection may be idle between requests. Beyond: closed.
pub(crate) const HTTP_HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// From the end of a request's head to the end of its body. Beyond: `malformed`.
pub(crate) const HTTP_BODY_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of a request's head, of bytes read ahead, and of answers not yet written that hyper buffers for a connection. More than
/// [`HTTP_HEADER_BYTES`] and [`HTTP_TARGET_BYTES`] together, so that the client gets our refusal rather than hyper's.
pub(crate) const HTTP_BUFFER_BYTES: usize = 64 * 1024;
/// Header lines that hyper parses; more than [`HTTP_HEADER_LINES`], for the same reason.
pub(crate) const HTTP_PARSED_HEADER_LINES: usize = 128;
/// Bytes of the target of a request. Beyond: `too_large`. 8 KiB is the common limit of servers.
pub(crate) const HTTP_TARGET_BYTES: usize = 8 * 1024;
/// Bytes of all header lines together. Beyond: `too_large`. 32 KiB: a token and `Moorline-Data` at their longest take 19.
pub(crate) const HTTP_HEADER_BYTES: usize = 32 * 1024;
/// Header lines. Beyond: `too_large`. 100 is the common limit of servers.
pub(crate) const HTTP_HEADER_LINES: usize = 100;
/// Bytes of an `Authorization` header. Beyond: `too_large`. 8 KiB is what load balancers take in one header line.
pub(crate) const AUTHORIZATION_BYTES: usize = 8 * 1024;
/// Requests on a connection that has not authenticated; the last answer closes it. 16: a client that only asks `/v1/about` needs one, and
/// pipelining thousands would cost the relay thousands of answers.
pub(crate) const UNAUTHENTICATED_REQUESTS: usize = 16;
/// The `Retry-After` of 429 and 503 where nothing better is known, in seconds.
pub(crate) const RETRY_AFTER_S: u64 = 5;

// WebSockets.

/// Bytes that a peer may still send after we closed, before the connection is dropped.
pub(crate) const LINGER_BYTES: u64 = 1 << 20;
/// Bytes of frames that one message on a control channel may take before the peer has authenticated. Beyond: 4400. Its one message, `hello`, has
/// at most 64 KiB, and no device fragments it.
pub(crate) const UNAUTHENTICATED_MESSAGE_FRAME_BYTES: usize = 128 << 10;
/// A message behind the head of a 101 goes in one write with it if it is not longer.
pub(crate) const HELD_HEAD_JOIN_BYTES: usize = 4 * 1024;
/// Pings that a peer may send within a second. One more: 4400. The number is part of the protocol.
pub(crate) const PINGS_PER_SECOND: u32 = 100;

/// What one read of a control channel takes: its messages are short, and what is decoded waits for its turn.
pub(crate) const CHANNEL_READ_BYTES: usize = 4 * 1024;
/// Bytes of unsent messages on a control channel, beyond which pings are not answered: the device does not read.
pub(crate) const CHANNEL_PONG_BYTES: usize = 16 * 1024;

// Legs.

/// Bytes of unsent pongs. Beyond: a peer that does not read gets a pong for its last ping alone.
pub(crate) const LEG_PONG_BYTES: usize = 16 * 1024;
/// How long the pong to the ping behind an `ask` waits for `opened`, to share its segment: a fraction of the two seconds after which a caller
/// takes the leg for dead.
pub(crate) const PONG_WAIT: Duration = Duration::from_millis(100);
/// What one read takes before `opened`: little, so that the bound of early data is exceeded by little.
pub(crate) const LEG_EARLY_READ_BYTES: usize = 16 * 1024;
/// Batches that one direction of a stream moves before the other has its turn.
pub(crate) const SPLICE_BATCHES_PER_TURN: usize = 8;
/// A batch of this size is written. With what one read may add, it is what TLS encrypts for one system call.
pub(crate) const SPLICE_BATCH_BYTES: usize = 96 * 1024;
/// The shortest time between two looks at the keepalives of a stream.
pub(crate) const SPLICE_TICK_MIN: Duration = Duration::from_millis(10);

// Streams.

/// Events that wait for a stream's actor: a few joins, an answer. Beyond, the request that joins a leg waits, and a device's answer is dropped.
pub(crate) const STREAM_EVENTS: usize = 8;
/// Refusals that are remembered for callers that join late. The oldest are forgotten first.
pub(crate) const REMEMBERED_REFUSALS: usize = 1_000;
/// Bytes of such a refusal. Beyond: without the device's own words.
pub(crate) const REMEMBERED_REFUSAL_BYTES: usize = 1024;
/// How long the end of a stream waits for the registry to say when the device was last seen, which only informs.
pub(crate) const LAST_SEEN_TIMEOUT: Duration = Duration::from_secs(2);
/// A caller's token that lives longer than this is looked at again then.
pub(crate) const WATCHED_EXPIRY: Duration = Duration::from_secs(30 * 24 * 60 * 60);

// Callers.

/// How long a verified signature is remembered. 60 s: a token's time and audience are checked at each use anyhow.
pub(crate) const TOKEN_CACHE_TTL: Duration = Duration::from_secs(60);
/// So many of them, of a kilobyte each. The oldest are forgotten first.
pub(crate) const TOKEN_CACHE_MAX: usize = 1_000;
/// Rows of a page of devices, unless the caller asks for another number.
pub(crate) const DEVICE_PAGE: usize = 100;
/// Rows of a page of devices at most. More is `malformed`.
pub(crate) const DEVICE_PAGE_MAX: usize = 500;

// Control channels and the directory.

/// A device that does not take a message within this is dead.
pub(crate) const CONTROL_WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// Messages before `hello` that are ignored, pings among them. Beyond: 4400.
pub(crate) const MESSAGES_BEFORE_HELLO: usize = 16;
/// Devices of a relay that leaves dial anew over such a time that so many come back in a second: a fifth of what one core authenticates.
pub(crate) const RECONNECTS_PER_SECOND: f64 = 500.0;
/// That time at least: a restart takes as long.
pub(crate) const RECONNECT_SPREAD_MIN: Duration = Duration::from_secs(2);
/// That time at most, as the protocol has it.
pub(crate) const RECONNECT_SPREAD_MAX: Duration = Duration::from_secs(300);
/// How often the registration of every connected device is looked up again, for changes that another process made.
pub(crate) const RECHECK_INTERVAL: Duration = Duration::from_secs(60);
/// How long a start of an agent that was superseded is remembered, to notice two machines with one identity.
pub(crate) const SUPERSEDED_RETENTION: Duration = Duration::from_secs(600);
/// So many of them. The oldest are forgotten first.
pub(crate) const SUPERSEDED_MAX: usize = 20_000;

// Starting and stopping.

/// Connections that the kernel holds until they are accepted.
pub(crate) const LISTEN_BACKLOG: u32 = 4096;
/// How long tasks have to close their connections when the relay stops. Beyond: aborted.
pub(crate) const STOP_TIMEOUT: Duration = Duration::from_secs(10);
/// How long what is written behind has after that.
pub(crate) const FLUSH_TIMEOUT: Duration = Duration::from_secs(6);

// Logging.

/// Bytes of log lines that wait for standard error. Beyond: lines are dropped and counted. 1 MiB: some 4,000 lines.
pub(crate) const LOG_QUEUE_BYTES: usize = 1 << 20;
/// Pause between two writes of log lines: lines that come meanwhile are written together. 5 ms: at most 200 writes a second, and nobody who
/// reads along notices.
pub(crate) const LOG_WRITE_PAUSE: Duration = Duration::from_millis(5);
/// Bytes that the log's buffers keep when they are empty. 16 KiB: a pause's lines at a thousand streams a second fit.
pub(crate) const LOG_BUFFER_KEPT_BYTES: usize = 16 * 1_024;
/// How long the end of the program waits for log lines to be written.
pub(crate) const LOG_FLUSH_TIMEOUT: Duration = Duration::from_secs(1);
/// Log lines a second at each place that unauthenticated peers can reach. Beyond: suppressed and counted. 2: enough to see that it goes on.
pub(crate) const LOG_LINES_PER_SECOND: u32 = 2;
/// Log lines that such a place may write at once. 20: a rack of devices with a wrong key is seen whole.
pub(crate) const LOG_LINES_BURST: u32 = 20;

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
            idle_leg: Duration::from_millis(bounds::KEEP_MAX_MS),
            closed_stream_retention: Duration::from_secs(5 * 60),
            tls_handshake_timeout: Duration::from_secs(10),
            http_write_timeout: Duration::from_secs(10),
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
            unauthenticated_per_address: several(128),
            connections: several(15_000),
            connections_per_caller: several(2_048),
        }
    }
}
