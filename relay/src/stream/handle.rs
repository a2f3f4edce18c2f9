//! A stream as those see it who are not its actor: what can be handed in for it, and how far it has come.

use moorline_proto::control::{Accept, Reject};
use moorline_proto::id::StreamId;
use moorline_proto::timestamp::Timestamp;
use tokio::sync::{mpsc, watch};

use crate::splice::Leg;
use crate::stream::join::LegOf;
use crate::stream::status::Status;

/// What comes for a stream.
#[derive(Debug)]
pub enum Event {
    /// A leg joined.
    Joined(LegOf, Box<Leg>),
    /// The caller's connection ended between the 101 and its leg.
    CallerLost,
    /// The device accepted.
    Accepted(Box<Accept>),
    /// The device rejected.
    Rejected(Box<Reject>),
}

/// A stream that is being set up, for the request that asked for it.
#[derive(Clone, Debug)]
pub struct StreamHandle {
    /// Its name.
    pub stream: StreamId,
    /// When it must be open: the deadline, and the wait before it.
    pub expires_at: Timestamp,
    events: mpsc::Sender<Event>,
    status: watch::Receiver<Status>,
}

impl StreamHandle {
    pub(super) fn new(stream: StreamId, expires_at: Timestamp, events: mpsc::Sender<Event>, status: watch::Receiver<Status>) -> Self {
        Self { stream, expires_at, events, status }
    }

    /// How far it has come.
    pub fn status(&self) -> Status {
        self.status.borrow().clone()
    }

    /// Waits until the device has decided, or the stream is over. Cancel safe.
    pub async fn decided(&mut self) -> Status {
        // An error means that the stream is over: what was published last counts.
        drop(self.status.wait_for(Status::is_decided).await);
        self.status()
    }

    /// Where its legs are handed in.
    pub fn events(&self) -> mpsc::Sender<Event> {
        self.events.clone()
    }
}
