//! One side's WebSocket of a stream, as the relay holds it: before `opened`, while bytes are spliced, and until it is closed.

use std::future::poll_fn;
use std::mem::take;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use moorline_proto::bounds::{CLOSE_WITHIN, HELD_BEFORE_OPENED_BYTES, LEG_BINARY_BYTES};
use moorline_proto::close::CloseReason;
use moorline_proto::frame::Batch;
use moorline_proto::leg::LegText;
use tokio::time::{Instant, timeout};

use crate::slots::Slot;
use crate::socket::{Amount, Socket};
use crate::splice::ear::{Ear, Taken};
use crate::splice::fate::Fate;
use crate::splice::outbox::Outbox;
use crate::splice::pulse::{Due, Pulse, Standing};
use crate::splice::scratch::{self, Scratch};

/// What one read takes while bytes are held: little, so that the mark is not passed by much.
const READ_TO_HOLD: usize = 16 * 1024;
/// Beyond this a peer that does not read gets a pong for its last ping alone.
const PONGS_BYTES: usize = 16 * 1024;

/// One side's WebSocket of a stream.
#[derive(Debug)]
pub struct Leg {
    socket: Socket,
    pub(super) ear: Ear,
    /// What came before `opened`, as the other side will get it.
    held: Held,
    outbox: Outbox,
    /// The payload of a ping whose pong has no place yet.
    ping: Option<Vec<u8>>,
    fate: Option<Fate>,
    /// Our Close was handed over: nothing may follow it.
    closing: bool,
    /// The relay waits for a frame of it: the last look found none.
    pub(super) reading: bool,
    _slot: Slot,
}

/// What was read before anybody could take it.
#[derive(Debug, Default)]
pub(super) struct Held {
    /// The frames of it.
    pub(super) batch: Batch,
    /// What it holds.
    pub(super) taken: Taken,
}

impl Leg {
    /// A leg right behind its 101, in its connection's place.
    pub fn new(socket: Socket, ping: Duration, slot: Slot) -> Self {
        Self {
            socket,
            ear: Ear::new(Pulse::new(ping, Instant::now())),
            held: Held::default(),
            outbox: Outbox::default(),
            ping: None,
            fate: None,
            closing: false,
            reading: true,
            _slot: slot,
        }
    }

    /// Reads ahead until the leg comes to its end, and holds what it says. Past 64 KiB nothing more is read, except for the rest of a message.
    ///
    /// # Cancel safety
    /// What was read stays held.
    pub async fn watch(&mut self) -> Fate {
        loop {
            if let Some(fate) = poll_fn(|cx| self.poll_ahead(cx)).await {
                return fate;
            }
            // Nothing is read, so nothing but this is seen of its end: at once where it is reset, else by the next ping.
            self.socket.was_reset().await;
            self.fate.get_or_insert(Fate::Lost);
        }
    }

    /// Reads ahead: ready with its fate, or with nothing once enough is held.
    fn poll_ahead(&mut self, cx: &mut Context<'_>) -> Poll<Option<Fate>> {
        loop {
            if let Poll::Ready(Err(fate)) = self.poll_flush(cx) {
                self.fate.get_or_insert(fate);
            }
            if let Some(fate) = &self.fate {
                return Poll::Ready(Some(fate.clone()));
            }
            let held = self.held.taken.bytes + self.held.taken.text;
            let crosses = self.ear.is_inside_message() && held < HELD_BEFORE_OPENED_BYTES + LEG_BINARY_BYTES;
            if held >= HELD_BEFORE_OPENED_BYTES && !crosses {
                self.reading = false;
                return Poll::Ready(None);
            }
            let mut all = take(&mut self.held);
            let read = scratch::with(|Scratch { input, .. }| {
                self.poll_read(Amount::Little, &mut input[..READ_TO_HOLD], &mut all.batch, Instant::now(), cx)
            });
            self.held = all;
            if let Ok(taken) = ready!(read) {
                self.held.taken.bytes += taken.bytes;
                self.held.taken.text += taken.text;
            }
        }
    }

    /// What was held, for the other leg.
    pub(super) fn release(&mut self) -> Held {
        take(&mut self.held)
    }

    /// Takes what the other leg had held.
    pub(super) fn hand_over(&mut self, batch: Batch) {
        if !self.is_over() && !batch.is_empty() {
            self.ear.pulse.sent(Instant::now());
            self.outbox.push(&batch.into_bytes());
        }
    }

    /// Reads once, and adds what the other leg is to get to `batch`.
    ///
    /// # Errors
    /// The leg's [`Fate`], again at every further call; what came before it was given out by then.
    pub(super) fn poll_read(
        &mut self,
        amount: Amount,
        input: &mut [u8],
        batch: &mut Batch,
        now: Instant,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Taken, Fate>> {
        if let Some(fate) = &self.fate {
            return Poll::Ready(Err(fate.clone()));
        }
        self.reading = true;
        let (mut taken, mut heard, ear) = (Taken::default(), Ok(()), &mut self.ear);
        let read = self.socket.poll_take(amount, input, cx, &mut |bytes| {
            if heard.is_ok() {
                heard = ear.hear(bytes, batch, &mut taken, now);
            }
        });
        let ended = !matches!(ready!(read), Ok(1..));
        for payload in take(&mut self.ear.pings) {
            self.answer(payload);
        }
        self.fate = heard.err().or(ended.then_some(Fate::Lost));
        Poll::Ready(Ok(taken))
    }

    fn answer(&mut self, payload: Vec<u8>) {
        if self.closing {
            return;
        }
        if self.outbox.len() < PONGS_BYTES {
            self.push(|batch| batch.pong(&payload));
        } else {
            self.ping = Some(payload);
        }
    }

    /// Keeps a frame of the relay's own for the next write.
    fn push(&mut self, say: impl FnOnce(&mut Batch)) {
        let mut batch = Batch::new();
        say(&mut batch);
        self.outbox.push(batch.finish());
    }

    /// Hands frames to the socket, and keeps what it does not take. To a leg that is over, or was said Close, nothing is said.
    ///
    /// # Errors
    /// The leg was lost.
    pub(super) fn write(&mut self, frames: &[u8], now: Instant, cx: &mut Context<'_>) -> Result<(), Fate> {
        if frames.is_empty() || self.closing || self.is_over() {
            return Ok(());
        }
        self.ear.pulse.sent(now);
        self.outbox.write(frames, &mut self.socket, cx).map_err(|_| Fate::Lost)
    }

    /// Hands the last frames to the socket, with the Close of a finished stream behind them.
    ///
    /// # Errors
    /// The leg was lost.
    pub(super) fn finish(&mut self, batch: &mut Batch, now: Instant, cx: &mut Context<'_>) -> Result<(), Fate> {
        if self.closing || self.is_over() {
            return Ok(());
        }
        let reason = CloseReason::Finished;
        batch.close(Some((reason.code(), reason.name())));
        let written = self.write(batch.finish(), now, cx);
        self.closing = true;
        written
    }

    /// Has everything written that was handed over.
    ///
    /// # Errors
    /// The leg was lost.
    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Fate>> {
        // To a leg that is over nothing is said but the answer to its Close, and that in `close`.
        if self.is_over() || self.outbox.is_flushed() {
            return Poll::Ready(Ok(()));
        }
        let mut flushed = self.outbox.poll_flush(&mut self.socket, cx);
        if flushed.is_ready()
            && let Some(payload) = self.ping.take()
        {
            self.answer(payload);
            flushed = self.outbox.poll_flush(&mut self.socket, cx);
        }
        flushed.map_err(|_| Fate::Lost)
    }

    /// Whether something waits for delivery.
    pub(super) fn is_unflushed(&self) -> bool {
        !self.is_over() && !self.outbox.is_flushed()
    }

    /// Whether it has come to its end.
    pub(super) fn is_over(&self) -> bool {
        self.fate.is_some()
    }

    /// Looks at the leg's pulse: pings it, or finds it dead.
    ///
    /// # Errors
    /// [`Fate::Lost`] for a dead leg.
    pub fn beat(&mut self, orphaned: bool, now: Instant, cx: &mut Context<'_>) -> Result<(), Fate> {
        if self.is_over() {
            return Ok(());
        }
        match self.ear.pulse.due(Standing { reading: self.reading, orphaned }, now) {
            // A leg that is full of bytes needs no ping.
            Due::Ping(payload) if self.outbox.is_flushed() && !self.closing => {
                self.push(|batch| batch.ping(&payload));
                match self.poll_flush(cx) {
                    Poll::Ready(Err(fate)) => Err(fate),
                    Poll::Ready(Ok(())) | Poll::Pending => Ok(()),
                }
            }
            Due::Nothing | Due::Ping(_) => Ok(()),
            Due::Dead => {
                self.fate = Some(Fate::Lost);
                Err(Fate::Lost)
            }
        }
    }

    /// When [`Leg::beat`] should be called next.
    pub fn next_beat(&self) -> Instant {
        self.ear.pulse.next()
    }

    /// Says something of the relay's own, within `within`.
    ///
    /// # Errors
    /// [`Fate::Lost`] if the leg is lost or does not take it in time.
    pub async fn say(&mut self, text: &LegText, within: Duration) -> Result<(), Fate> {
        self.ear.pulse.sent(Instant::now());
        self.push(|batch| batch.text(&text.encode()));
        let written = poll_fn(|cx| self.outbox.poll_flush(&mut self.socket, cx));
        match timeout(within, written).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(Fate::Lost),
        }
    }

    /// Closes the leg and waits for the answer: five seconds, then the connection is reset; after 1000, which stands behind all that a
    /// slow reader has not read yet, `patience`, and no reset.
    pub async fn close(mut self, reason: CloseReason, words: &str, patience: Duration) {
        let answered = match &self.fate {
            Some(Fate::Lost) => false,
            Some(Fate::Done | Fate::Reset(_)) => {
                if !self.closing {
                    let farewell = self.ear.farewell.take();
                    self.push(|batch| batch.close(farewell.as_ref().map(|close| (close.code, &*close.reason))));
                }
                timeout(CLOSE_WITHIN, self.goodbye()).await.is_ok()
            }
            Some(Fate::Broke(..)) | None => {
                if !self.closing {
                    let text = if words.is_empty() { reason.name().to_owned() } else { format!("{}: {words}", reason.name()) };
                    self.push(|batch| batch.close(Some((reason.code(), &text))));
                }
                let within = if reason == CloseReason::Finished { patience } else { CLOSE_WITHIN };
                timeout(within, self.goodbye()).await.is_ok()
            }
        };
        if answered || reason == CloseReason::Finished { self.socket.close(CLOSE_WITHIN).await } else { self.socket.reset() }
    }

    /// Has the Close written that was handed over, and reads and drops until the other one is there too, or will never be. Reads while it
    /// writes: a peer that is busy writing reads nothing before that.
    async fn goodbye(&mut self) {
        let mut over = matches!(self.fate, Some(Fate::Done | Fate::Reset(_)));
        poll_fn(|cx| {
            let written = match self.outbox.poll_flush(&mut self.socket, cx) {
                Poll::Ready(Ok(())) => true,
                Poll::Ready(Err(_)) => return Poll::Ready(()),
                Poll::Pending => false,
            };
            loop {
                if over || (written && self.ear.is_broken()) {
                    return if written { Poll::Ready(()) } else { Poll::Pending };
                }
                let (socket, ear, mut closed) = (&mut self.socket, &mut self.ear, false);
                let read = scratch::with(|Scratch { input, .. }| {
                    socket.poll_take(Amount::Much, input, cx, &mut |bytes| closed = closed || ear.hears_close(bytes))
                });
                over = !matches!(ready!(read), Ok(1..)) || closed;
            }
        })
        .await;
    }
}

#[cfg(test)]
#[path = "leg_tests.rs"]
mod tests;
