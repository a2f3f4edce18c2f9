//! Reading a leg: decodes its frames, applies the rules of the stream subprotocol, of legs between two streams too, and feeds the keepalive.

use moorline_proto::bounds::{LEG_REQUEST_BYTES, LEG_TEXT_BYTES};
use moorline_proto::frame::{Batch, Close, Decoder, Event};
use tokio::time::Instant;

use crate::ping_limiter::PingLimiter;
use crate::splice::leg_end::{self, LegEnd, TextMeaning};
use crate::splice::leg_keepalive::LegKeepalive;
use crate::splice::reuse::{self, LegUse, Said};

/// The read side of one leg.
#[derive(Debug)]
pub(super) struct LegReader {
    decoder: Decoder,
    ping_limiter: PingLimiter,
    pub(super) keepalive: LegKeepalive,
    /// The side sent `end`, or a Close that implies it.
    pub(super) ended: bool,
    /// The side sent `delivered`.
    pub(super) delivered: bool,
    /// When the other side's `end` was passed on to this side, which owes `delivered` from then on.
    pub(super) end_passed_at: Option<Instant>,
    /// When the last frame came that is no answer to a ping.
    pub(super) last_active: Instant,
    /// The peer's Close, to be echoed.
    pub(super) peer_close: Option<Close>,
    /// Payloads of pings that are to be answered.
    pub(super) pings: Vec<Vec<u8>>,
    /// Where the leg stands.
    now: LegUse,
    /// Whether it may be used again: no word may be left of a stream that is over then.
    is_reusable: bool,
    /// What the side said to pass to another stream or from it, and nobody has taken yet.
    pub(super) said: Option<Said>,
}

/// How much was read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Taken {
    /// Bytes of the stream.
    pub(super) bytes: usize,
    /// Bytes of text.
    pub(super) text: usize,
}

impl LegReader {
    pub(super) fn new(keepalive: LegKeepalive, is_reusable: bool, now: Instant) -> Self {
        Self {
            decoder: Decoder::from_side(),
            ping_limiter: PingLimiter::new(now),
            keepalive,
            ended: false,
            delivered: false,
            end_passed_at: None,
            last_active: now,
            peer_close: None,
            pings: Vec::new(),
            now: LegUse::Stream,
            is_reusable,
            said: None,
        }
    }

    /// Leaves the stream before: nothing of it counts any more.
    ///
    /// # Errors
    /// [`LegEnd::Broke`] inside a message, which would belong to two streams.
    pub(super) fn pass_to(&mut self, next: LegUse, now: Instant) -> Result<(), LegEnd> {
        if self.decoder.is_inside_message() {
            return Err(LegEnd::protocol("a message that goes on behind the end of its stream"));
        }
        (self.ended, self.delivered, self.end_passed_at, self.last_active) = (false, false, None, now);
        self.set_use(next);
        Ok(())
    }

    fn set_use(&mut self, next: LegUse) {
        self.now = next;
        self.decoder.set_text_max(match next {
            LegUse::IdleCaller | LegUse::Offered => LEG_REQUEST_BYTES,
            LegUse::Stream | LegUse::IdleDevice => LEG_TEXT_BYTES,
        });
    }

    /// Whether it is a device's leg that belongs to no stream.
    pub(super) fn is_idle_device(&self) -> bool {
        self.now == LegUse::IdleDevice
    }

    /// Whether an offer on the leg is unanswered.
    pub(super) fn is_offered(&self) -> bool {
        self.now == LegUse::Offered
    }

    /// Decodes what was read, and appends to `batch` what the other leg is to get.
    ///
    /// # Errors
    /// The leg's [`LegEnd`]. Everything before it was appended by then.
    pub(super) fn on_bytes(&mut self, mut input: &[u8], batch: &mut Batch, taken: &mut Taken, now: Instant) -> Result<(), LegEnd> {
        self.keepalive.on_frame(now);
        while let Some(event) = self.decoder.next(&mut input)? {
            if !matches!(event, Event::Pong(_)) {
                self.last_active = now;
            }
            match event {
                Event::Bytes(_) if self.ended => return Err(LegEnd::protocol("bytes after end")),
                Event::Bytes(_) if self.now != LegUse::Stream => {
                    return Err(LegEnd::protocol(&format!("bytes {}", self.now.place())));
                }
                Event::Bytes(run) => {
                    taken.bytes += run.len();
                    batch.bytes(run);
                }
                Event::Text(text) if self.on_text(&text)? => {
                    taken.text += text.len();
                    batch.text(&text);
                }
                Event::Text(_) => {}
                Event::Ping(payload) => {
                    self.ping_limiter.count(now).map_err(|error| LegEnd::protocol(&error.to_string()))?;
                    self.pings.push(payload);
                }
                Event::Pong(payload) => {
                    if !self.keepalive.on_pong(&payload) {
                        self.last_active = now;
                    }
                }
                Event::Close(close) => {
                    self.peer_close = close;
                    return Err(match self.peer_close.as_ref().map(|close| close.code) {
                        None | Some(1000) => LegEnd::Done,
                        Some(code) => LegEnd::Reset(code),
                    });
                }
            }
        }
        Ok(())
    }

    /// Notes what a text message says. Returns whether the other side is to get it.
    fn on_text(&mut self, text: &str) -> Result<bool, LegEnd> {
        if self.now != LegUse::Stream {
            if let Some((said, next)) = reuse::read(text, self.now)? {
                self.said = Some(said);
                self.set_use(next);
            }
            return Ok(false);
        }
        match leg_end::read(text)? {
            TextMeaning::Delivered if self.end_passed_at.is_none() => return Err(LegEnd::protocol("delivered before the far side's end")),
            TextMeaning::Delivered if self.delivered => return Ok(false),
            TextMeaning::Delivered => self.delivered = true,
            TextMeaning::End | TextMeaning::Forward if self.ended && self.is_reusable => {
                return Err(LegEnd::protocol("text after end on a leg that is used again"));
            }
            // After its `end`, a side has nothing to say but `delivered`.
            TextMeaning::End | TextMeaning::Forward if self.ended => return Ok(false),
            TextMeaning::End => self.ended = true,
            TextMeaning::Forward => {}
        }
        Ok(true)
    }

    /// Whether the side has sent everything and received everything.
    pub(super) fn has_finished(&self) -> bool {
        self.ended && self.delivered
    }

    /// Discards what was read, and returns whether it contains the peer's Close.
    pub(super) fn contains_close(&mut self, mut input: &[u8]) -> bool {
        while let Ok(Some(event)) = self.decoder.next(&mut input) {
            if matches!(event, Event::Close(_)) {
                return true;
            }
        }
        false
    }

    /// Whether a message is incomplete.
    pub(super) fn is_inside_message(&self) -> bool {
        self.decoder.is_inside_message()
    }

    /// Whether the frames broke WebSocket, so that nothing behind can be decoded.
    pub(super) fn is_broken(&self) -> bool {
        self.decoder.is_broken()
    }

    /// Whether it owns a buffer, as it does while a text or a control frame is incomplete.
    #[cfg(test)]
    pub(super) fn owns_memory(&self) -> bool {
        self.decoder.owns_memory() || self.pings.capacity() > 0
    }
}
