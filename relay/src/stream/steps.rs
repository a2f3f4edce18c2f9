//! The timeline of one stream as it is written: each step at the moment when it is reached.

use std::time::Duration;

use moorline_proto::millis::Millis;
use moorline_proto::problem::Timeline;
use tokio::time::Instant;

/// When the request came, and what happened since.
#[derive(Clone, Copy, Debug)]
pub(super) struct Steps {
    since: Instant,
    timeline: Timeline,
}

impl Steps {
    /// Of a request that was authorized just now.
    pub(super) fn authorized(since: Instant) -> Self {
        let mut steps = Self { since, timeline: Timeline::default() };
        steps.timeline.authorized_ms = steps.now();
        steps
    }

    /// From the request until now.
    pub(super) fn elapsed(&self) -> Duration {
        self.since.elapsed()
    }

    /// What happened so far.
    pub(super) fn timeline(&self) -> &Timeline {
        &self.timeline
    }

    /// A step was reached, or is undone.
    pub(super) fn set(&mut self, step: impl FnOnce(&mut Timeline, Option<Millis>)) {
        let now = self.now();
        step(&mut self.timeline, now);
    }

    fn now(&self) -> Option<Millis> {
        Some(Millis::from_duration(self.since.elapsed()))
    }
}
