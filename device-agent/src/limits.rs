//! Every bound of the agent. Durations and sizes that the protocol fixes are in `moorline_proto::bounds`, pauses before a retry in
//! `moorline_transport::backoff`.

use std::ops::RangeInclusive;
use std::time::Duration;

use moorline_proto::bounds;

/// Streams at once, open and undecided, where the configuration does not say. Further offers are rejected as `busy`. The default of
/// the relay, so that neither side rejects what the other one would take.
pub const MAX_STREAMS: u32 = 512;
/// What `max_streams` may be set to. Each stream takes two file descriptors and two buffers.
pub const MAX_STREAMS_RANGE: RangeInclusive<u32> = 1..=10_000;

/// Legs that are kept for later streams, where the configuration does not say: as many as the relay keeps.
pub const IDLE_LEGS: u32 = bounds::IDLE_LEGS;
/// What `idle_legs` may be set to.
pub const IDLE_LEGS_RANGE: RangeInclusive<u32> = 0..=bounds::IDLE_LEGS;
/// Idle legs that are kept ready, where the configuration does not say: each is a connection.
pub const WARM_LEGS: u32 = 0;

/// File descriptors that streams leave free: standard streams, the runtime, two control channels, connections that are being
/// replaced, the resolver, the log.
pub(crate) const RESERVED_DESCRIPTORS: u64 = 24;
/// File descriptors of a stream: its leg and its target.
pub(crate) const DESCRIPTORS_PER_STREAM: u64 = 2;

/// Bytes of a join string that are read.
pub(crate) const JOIN_BYTES: u64 = 64 * 1024;
/// Bytes of a private key's file. An Ed25519 key takes about 120.
pub(crate) const KEY_FILE_BYTES: usize = 16 * 1024;

/// Streams that were opened and did not end in order, whose ids are remembered until their deadline.
pub(crate) const REMEMBERED_STREAMS: usize = 4_096;

/// Messages that wait to be sent on the control channel. Beyond: answers wait for a place, rejections of excess offers are dropped.
pub(crate) const OUTGOING_QUEUE: usize = 256;
/// Places of that queue that rejections of excess offers leave free, so that a flood of offers does not delay other answers.
pub(crate) const OUTGOING_QUEUE_RESERVED: usize = 64;
/// At most one log line in this time reports that rejections were dropped.
pub(crate) const DROPPED_LOG_INTERVAL: Duration = Duration::from_secs(60);

/// Characters of a text that may come from the relay, in errors and log lines.
pub(crate) const PEER_TEXT_CHARS: usize = 256;
/// Log lines that wait to be written. Beyond: lines are dropped and counted. About 2 MB of long lines.
pub(crate) const LOG_QUEUE_LINES: usize = 1_024;
/// How often dropped log lines are reported.
pub(crate) const LOG_DROPS_INTERVAL: Duration = Duration::from_secs(60);
/// For the queue of log lines to be written when the program ends.
pub(crate) const LOG_FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

/// DNS, TCP, TLS and the upgrade of a control channel together.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);
/// An idle leg that ends earlier, and carried no stream, was opened for nothing: there is a pause before the next one.
pub(crate) const IDLE_LEG_STABLE_AFTER: Duration = Duration::from_secs(10);
/// A relay that does not take a message within this time is unresponsive.
pub(crate) const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// An answer that waits this long for its place in the queue is dropped: the relay has a deadline of its own.
pub(crate) const SEND_TIMEOUT: Duration = Duration::from_secs(10);
/// A control channel that was replaced, or whose agent is retired, is closed after this time unless the relay closes it first.
pub(crate) const RETIRED_SESSION_TIMEOUT: Duration = Duration::from_secs(10);
/// From the stop signal until the agent gives up waiting for Close frames. More than the 5 s that a Close may take.
pub(crate) const STOP_TIMEOUT: Duration = Duration::from_secs(6);
/// The relay closes a leg at the offer's deadline. The device stops waiting for that Close after this time.
pub(crate) const OPENED_GRACE: Duration = Duration::from_secs(5);

/// Streams for which there are file descriptors, if the process may have `descriptors` of them, and keeps this many legs ready. At least one.
/// A leg that became idle holds one descriptor, which its stream had.
pub(crate) fn streams_for_descriptors(descriptors: u64, warm_legs: u32) -> u32 {
    let streams = descriptors.saturating_sub(RESERVED_DESCRIPTORS + u64::from(warm_legs)) / DESCRIPTORS_PER_STREAM;
    u32::try_from(streams).unwrap_or(u32::MAX).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_leave_descriptors_free() {
        assert_eq!(streams_for_descriptors(1_024, 0), 500);
        assert_eq!(streams_for_descriptors(1_024, 64), 468);
        assert_eq!(streams_for_descriptors(48, 0), 12);
        assert_eq!(streams_for_descriptors(0, 64), 1);
        assert_eq!(streams_for_descriptors(u64::MAX, 0), u32::MAX);
    }
}
