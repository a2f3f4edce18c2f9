//! The heartbeat of a control channel: when to ping, and when the device is dead. Pure: the time is an argument.

use std::time::Duration;

use moorline_proto::bounds::HEARTBEAT_MIN;
use tokio::time::Instant;

/// Who sends the pings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pinger {
    /// The device, which has the feature `heartbeat`.
    Device,
    /// The relay, for every other device.
    Relay,
}

/// What to do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// Nothing yet.
    Nothing,
    /// Send a ping.
    Ping,
    /// The device is dead.
    Dead,
}

/// The heartbeat of one control channel.
#[derive(Debug)]
pub struct Keepalive {
    pinger: Pinger,
    interval: Duration,
    longest: Duration,
    last_frame: Instant,
    last_ping: Instant,
    answer_by: Option<Instant>,
}

impl Keepalive {
    /// Starts at `now` with `interval`. A device may announce another interval, of at most `longest`.
    pub fn new(pinger: Pinger, interval: Duration, longest: Duration, now: Instant) -> Self {
        Self { pinger, interval, longest, last_frame: now, last_ping: now, answer_by: None }
    }

    /// The device announced another interval, which is clamped to the bounds.
    pub fn set_interval(&mut self, interval: Duration) {
        self.interval = interval.clamp(HEARTBEAT_MIN.min(self.longest), self.longest);
    }

    /// A frame of any kind was received.
    pub fn on_frame(&mut self, now: Instant) {
        self.last_frame = now;
        self.answer_by = None;
    }

    /// Something was sent that a frame must follow within `within`. The deadline of an earlier one stands.
    pub fn expect_frame(&mut self, now: Instant, within: Duration) {
        self.answer_by.get_or_insert(now + within);
    }

    /// When to call [`Keepalive::due`] at the latest.
    pub fn next(&self) -> Instant {
        let dead = self.last_frame + self.patience();
        let dead = self.answer_by.map_or(dead, |answer_by| dead.min(answer_by));
        match self.pinger {
            Pinger::Device => dead,
            Pinger::Relay => dead.min(self.last_ping + self.interval),
        }
    }

    /// What is due at `now`. A ping counts as sent.
    pub fn due(&mut self, now: Instant) -> Due {
        let unanswered = self.answer_by.is_some_and(|answer_by| now >= answer_by);
        if unanswered || now >= self.last_frame + self.patience() {
            return Due::Dead;
        }
        if self.pinger == Pinger::Relay && now >= self.last_ping + self.interval {
            self.last_ping = now;
            return Due::Ping;
        }
        Due::Nothing
    }

    fn patience(&self) -> Duration {
        self.interval * 5 / 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn a_device_without_the_feature_is_pinged_every_interval_and_dead_after_two_and_a_half() {
        let start = Instant::now();
        let mut keepalive = Keepalive::new(Pinger::Relay, 10 * S, 150 * S, start);
        assert_eq!(keepalive.next(), start + 10 * S);
        assert_eq!(keepalive.due(start + 9 * S), Due::Nothing);
        assert_eq!(keepalive.due(start + 10 * S), Due::Ping);
        assert_eq!(keepalive.due(start + 20 * S), Due::Ping);
        assert_eq!(keepalive.next(), start + 25 * S);
        assert_eq!(keepalive.due(start + 25 * S), Due::Dead);
    }

    #[tokio::test(start_paused = true)]
    async fn any_frame_counts_as_a_sign_of_life() {
        let start = Instant::now();
        let mut keepalive = Keepalive::new(Pinger::Device, 10 * S, 150 * S, start);
        keepalive.on_frame(start + 24 * S);
        assert_eq!(keepalive.due(start + 25 * S), Due::Nothing);
        assert_eq!(keepalive.due(start + 49 * S), Due::Dead);
    }

    #[tokio::test(start_paused = true)]
    async fn an_expected_frame_that_does_not_arrive_ends_the_channel_before_the_heartbeat() {
        let start = Instant::now();
        let mut keepalive = Keepalive::new(Pinger::Device, 100 * S, 150 * S, start);
        keepalive.expect_frame(start, 10 * S);
        keepalive.expect_frame(start + 5 * S, 10 * S);
        assert_eq!(keepalive.due(start + 10 * S), Due::Dead);
        keepalive.on_frame(start + 10 * S);
        assert_eq!(keepalive.due(start + 11 * S), Due::Nothing);
    }

    #[tokio::test(start_paused = true)]
    async fn an_announced_interval_is_clamped() {
        let start = Instant::now();
        let mut keepalive = Keepalive::new(Pinger::Device, 25 * S, 150 * S, start);
        keepalive.set_interval(S);
        assert_eq!(keepalive.next(), start + 5 * S * 5 / 2);
        keepalive.set_interval(1000 * S);
        assert_eq!(keepalive.next(), start + 150 * S * 5 / 2);
    }
}
