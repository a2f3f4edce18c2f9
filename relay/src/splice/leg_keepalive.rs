//! When to ping a leg, and when it is dead. Pure: the time is an argument.
//!
//! A ping is queued behind everything that a slow peer has not read yet, for minutes or hours, so a missing pong proves nothing. A silent
//! leg is dead only if its last ping was answered and nothing but pings was sent since, and if the relay reads it.

use std::time::Duration;

use tokio::time::Instant;

/// The keepalive of one leg.
#[derive(Debug)]
pub struct LegKeepalive {
    interval: Duration,
    last_in: Instant,
    last_out: Instant,
    pings: u64,
    /// When the last ping was sent.
    pinged: Option<Instant>,
    /// How long the last ping took that was answered.
    round_trip: Option<Duration>,
    /// A frame came after the last ping.
    has_frame_since_ping: bool,
    /// Nothing was sent since the last ping.
    ping_is_last: bool,
    /// A ping was answered, and nothing but pings was sent since.
    is_answered: bool,
}

/// What is due for a leg.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// Nothing.
    Nothing,
    /// A ping with this payload.
    Ping([u8; 8]),
    /// The leg is dead.
    Dead,
}

/// The state of a leg when its keepalive runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LegState {
    /// The relay would read a frame now.
    pub reading: bool,
    /// It is a device leg, and the device has no control channel.
    pub orphaned: bool,
}

impl LegKeepalive {
    /// Starts at `now`. `interval` should include jitter already.
    pub fn new(interval: Duration, now: Instant) -> Self {
        Self {
            interval,
            last_in: now,
            last_out: now,
            pings: 0,
            pinged: None,
            round_trip: None,
            has_frame_since_ping: false,
            ping_is_last: false,
            is_answered: false,
        }
    }

    /// A frame of any kind was received.
    pub fn on_frame(&mut self, now: Instant) {
        self.has_frame_since_ping = true;
        self.last_in = now;
    }

    /// A pong was received. Returns whether it answers a ping; otherwise the peer sent it unasked, to show that it is at work.
    pub fn on_pong(&mut self, payload: &[u8]) -> bool {
        let ping = payload.try_into().map(u64::from_be_bytes).ok().filter(|ping| (1..=self.pings).contains(ping));
        let answers_last = ping == Some(self.pings);
        self.is_answered |= self.ping_is_last && answers_last;
        if answers_last && let Some(pinged) = self.pinged {
            self.round_trip = Some(self.last_in.duration_since(pinged));
        }
        ping.is_some()
    }

    /// How long the last ping took, if it was answered.
    pub fn round_trip(&self) -> Option<Duration> {
        self.round_trip
    }

    /// Whether a frame came after the last ping.
    pub fn has_frame_since_ping(&self) -> bool {
        self.has_frame_since_ping
    }

    /// The payload of a ping that is sent at once, whether it is due or not.
    pub fn ping(&mut self, now: Instant) -> [u8; 8] {
        self.has_frame_since_ping = false;
        (self.last_out, self.pinged) = (now, Some(now));
        self.pings += 1;
        self.ping_is_last = true;
        self.pings.to_be_bytes()
    }

    /// Something other than a ping was sent.
    pub fn on_sent(&mut self, now: Instant) {
        self.last_out = now;
        self.ping_is_last = false;
        self.is_answered = false;
    }

    /// When to run next.
    pub fn next_tick(&self) -> Instant {
        (self.last_out + self.interval).min(self.last_in + 2 * self.interval + Duration::from_millis(1))
    }

    /// What is due at `now`. A ping counts as sent.
    pub fn due(&mut self, leg: LegState, now: Instant) -> Due {
        if !leg.reading {
            self.last_in = now;
        }
        let silent = now.duration_since(self.last_in) > 2 * self.interval;
        if silent && (self.is_answered || leg.orphaned) {
            return Due::Dead;
        }
        if silent {
            // No evidence: look again an interval later.
            self.last_in = now - self.interval;
        }
        if now.duration_since(self.last_out) < self.interval {
            return Due::Nothing;
        }
        Due::Ping(self.ping(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);
    const READ: LegState = LegState { reading: true, orphaned: false };

    #[tokio::test(start_paused = true)]
    async fn a_leg_that_answered_the_last_ping_is_dead_after_two_silent_intervals() {
        let start = Instant::now();
        let mut keepalive = LegKeepalive::new(10 * S, start);
        let Due::Ping(payload) = keepalive.due(READ, start + 10 * S) else { panic!("a ping is due") };
        keepalive.on_frame(start + 10 * S);
        keepalive.on_pong(&payload);
        assert!(matches!(keepalive.due(READ, start + 20 * S), Due::Ping(_)));
        assert!(matches!(keepalive.due(READ, start + 30 * S), Due::Ping(_)));
        assert_eq!(keepalive.due(READ, start + 31 * S), Due::Dead);
    }

    #[tokio::test(start_paused = true)]
    async fn silence_behind_unread_bytes_proves_nothing() {
        let start = Instant::now();
        let mut keepalive = LegKeepalive::new(10 * S, start);
        keepalive.on_sent(start);
        for second in 1..10_000 {
            assert_ne!(keepalive.due(READ, start + second * S), Due::Dead);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_pong_to_an_older_ping_proves_nothing() {
        let start = Instant::now();
        let mut keepalive = LegKeepalive::new(10 * S, start);
        let Due::Ping(first) = keepalive.due(READ, start + 10 * S) else { panic!("a ping is due") };
        keepalive.on_sent(start + 11 * S);
        keepalive.on_pong(&first);
        for second in 12..200 {
            assert_ne!(keepalive.due(READ, start + second * S), Due::Dead);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_leg_that_the_relay_does_not_read_is_never_dead() {
        let start = Instant::now();
        let mut keepalive = LegKeepalive::new(10 * S, start);
        let Due::Ping(payload) = keepalive.due(READ, start + 10 * S) else { panic!("a ping is due") };
        keepalive.on_pong(&payload);
        for second in 11..200 {
            assert_ne!(keepalive.due(LegState { reading: false, orphaned: false }, start + second * S), Due::Dead);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_device_leg_without_a_control_channel_is_dead_in_any_case() {
        let start = Instant::now();
        let mut keepalive = LegKeepalive::new(10 * S, start);
        keepalive.on_sent(start);
        assert_eq!(keepalive.due(LegState { reading: true, orphaned: true }, start + 21 * S), Due::Dead);
    }
}
