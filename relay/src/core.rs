//! What a relay is made of, in one value: handlers and stream actors are handed it, and there is no other such bag.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use moorline_proto::id::NodeId;
use rand::RngExt;
use tokio::time::Instant;

use crate::access::token::TokenVerifier;
use crate::clock::Clock;
use crate::directory::Directory;
use crate::lifecycle::Lifecycle;
use crate::limits::{Limits, Times};
use crate::store::{LastSeen, Registry};
use crate::stream::registry::Streams;
use crate::tasks::Tasks;

/// One relay.
#[derive(Debug)]
pub struct Core {
    /// This node.
    pub node: NodeId,
    /// The relay's names, lower case.
    pub names: Vec<String>,
    /// The ports that are dialled.
    pub ports: Vec<u16>,
    /// Pages of these may open WebSockets.
    pub origins: Vec<String>,
    /// Deadlines and intervals.
    pub times: Times,
    /// Bounds.
    pub limits: Limits,
    /// Whether a stream that is open goes on when its caller's token ends.
    pub streams_outlive_tokens: bool,
    /// Wall time.
    pub clock: Clock,
    /// Owner of tasks.
    pub tasks: Tasks,
    /// How far the relay is on its way to the end.
    pub lifecycle: Lifecycle,
    /// Callers' tokens.
    pub tokens: TokenVerifier,
    /// Devices and their keys.
    pub registry: Arc<dyn Registry>,
    /// When devices were last online: noted at once, written behind.
    pub last_seen: Arc<LastSeen>,
    /// Counts changes of the registry.
    pub revision: Revision,
    /// Where devices are.
    pub directory: Directory,
    /// Every stream.
    pub streams: Streams,
}

impl Core {
    /// The ping interval of one leg: a tenth less at most, so that legs do not ping in step.
    pub fn ping_interval(&self) -> Duration {
        self.times.ping.mul_f64(rand::rng().random_range(0.9..=1.0))
    }

    /// Begins to drain, and tells every session. Does nothing in a later phase than running.
    pub fn drain(&self, until: Instant) {
        self.lifecycle.drain(until, self.directory.len());
        self.directory.wake();
    }

    /// Begins to close, and tells every session.
    pub fn close(&self) {
        self.lifecycle.close();
        self.directory.wake();
    }
}

/// Counts the changes of the registry that this process made: raised behind each change and before it is enforced. Whoever decides by the
/// registry reads it first, is listed, and decides again if it was raised meanwhile; so no change falls between the two.
#[derive(Debug, Default)]
pub struct Revision(AtomicU64);

impl Revision {
    /// The number of changes so far.
    pub fn current(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }

    /// Something was changed.
    pub fn raise(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}
