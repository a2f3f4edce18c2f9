//! One leg of a stream, the relay's end of it: before `opened`, while bytes are spliced, and until it is closed.

use std::future::poll_fn;
use std::mem::take;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use moorline_proto::bounds::{EARLY_DATA_BYTES, LEG_BINARY_BYTES};
use moorline_proto::close::CloseReason;
use moorline_proto::frame::Batch;
use moorline_proto::leg::LegText;
use tokio::time::{Instant, timeout};

use crate::limits::{LEG_EARLY_READ_BYTES, LEG_PONG_BYTES, PONG_WAIT};
use crate::net::admission::ConnectionPermit;
use crate::net::connection::{ReadSize, Socket};
use crate::splice::leg_end::LegEnd;
use crate::splice::leg_keepalive::{Due, LegKeepalive, LegState};
use crate::splice::leg_reader::{LegReader, Taken};
use crate::splice::reuse::{Reuse, Said};
use crate::splice::scratch::{self, Scratch};
use crate::splice::write_buffer::WriteBuffer;

mod closing;
mod idle;

/// One leg: a WebSocket that carries one side of a stream.
#[derive(Debug)]
pub struct Leg {
    socket: Socket,
    pub(super) reader: LegReader,
    /// What came before `opened`, encoded for the other leg.
    early: EarlyData,
    write_buffer: WriteBuffer,
    /// The payload of the last ping, if its pong did not fit into the write buffer.
    deferred_pong: Option<Vec<u8>>,
    end: Option<LegEnd>,
    /// Our Close is in the write buffer or sent: nothing may follow it.
    closing: bool,
    /// The last words of its stream wait for what follows: `idle`, or the Close.
    holds_last_words: bool,
    /// Until when pongs wait for what is said next: while an `ask` is being answered.
    pongs_wait_until: Option<Instant>,
    /// The relay would read a frame of this leg now.
    pub(super) reading: bool,
    /// On whose authority it may be used again; nothing where it may not.
    reuse: Option<Reuse>,
    /// `Watched::Early` is returned for each part of what comes before `opened`.
    pub(super) announces_early: bool,
    permit: ConnectionPermit,
}

/// What was read before the stream opened.
#[derive(Debug, Default)]
pub(super) struct EarlyData {
    /// Its frames.
    pub(super) batch: Batch,
    /// Its size.
    pub(super) taken: Taken,
    /// How much of it was announced.
    announced: usize,
    /// How much of its frames the other leg has already.
    pub(super) passed: usize,
}

/// What came on a leg that is watched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Watched {
    /// It ended. Returned by every later watch, too.
    Ended(LegEnd),
    /// Its side passes to another stream, or from it.
    Said(Said),
    /// More for the other leg, where that is announced.
    Early,
}

impl EarlyData {
    fn size(&self) -> usize {
        self.taken.bytes + self.taken.text
    }
}

impl Leg {
    /// A leg right behind its 101. It keeps its connection's permit, and sends a ping after `ping` without a frame. `reuse` says on whose
    /// authority it may be used again, where the 101 granted that.
    pub fn new(socket: Socket, ping: Duration, permit: ConnectionPermit, reuse: Option<Reuse>) -> Self {
        let now = Instant::now();
        Self {
            socket,
            reader: LegReader::new(LegKeepalive::new(ping, now), reuse.is_some(), now),
            early: EarlyData::default(),
            write_buffer: WriteBuffer::default(),
            deferred_pong: None,
            end: None,
            closing: false,
            holds_last_words: false,
            pongs_wait_until: None,
            reading: true,
            reuse,
            announces_early: false,
            permit,
        }
    }

    /// Reads ahead until the leg ends, or its side says something about another stream. Keeps what it reads for the other leg: up to 64 KiB,
    /// and the rest of a message that crosses this bound.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn watch(&mut self) -> Watched {
        loop {
            if let Some(watched) = poll_fn(|cx| self.poll_ahead(cx)).await {
                return watched;
            }
            // Nothing is read any more: the connection's end is seen by itself, a Close behind the unread bytes is not.
            self.socket.was_closed().await;
            self.end.get_or_insert(LegEnd::Lost);
        }
    }

    /// Reads ahead. Ready with what came, or with `None` once enough is kept.
    pub(super) fn poll_ahead(&mut self, cx: &mut Context<'_>) -> Poll<Option<Watched>> {
        loop {
            if self.pongs_wait_until.is_none()
                && let Poll::Ready(Err(end)) = self.poll_flush(cx)
            {
                self.end.get_or_insert(end);
            }
            if let Some(said) = self.reader.said.take() {
                return Poll::Ready(Some(Watched::Said(said)));
            }
            let early = self.early.size();
            if self.announces_early && early > self.early.announced {
                self.early.announced = early;
                return Poll::Ready(Some(Watched::Early));
            }
            if let Some(end) = &self.end {
                return Poll::Ready(Some(Watched::Ended(end.clone())));
            }
            let crosses = self.reader.is_inside_message() && early < EARLY_DATA_BYTES + LEG_BINARY_BYTES;
            if early >= EARLY_DATA_BYTES && !crosses {
                self.reading = false;
                return Poll::Ready(None);
            }
            let mut all = take(&mut self.early);
            let read = scratch::with(|Scratch { input, .. }| {
                self.poll_read(ReadSize::Buffer, &mut input[..LEG_EARLY_READ_BYTES], &mut all.batch, Instant::now(), cx)
            });
            self.early = all;
            if let Ok(taken) = ready!(read) {
                self.early.taken.bytes += taken.bytes;
                self.early.taken.text += taken.text;
            }
        }
    }

    /// Takes what came before `opened`, for the other leg.
    pub(super) fn take_early(&mut self) -> EarlyData {
        self.announces_early = false;
        take(&mut self.early)
    }

    /// Queues frames that came from the other leg before `opened`.
    pub(super) fn push_early(&mut self, frames: &[u8]) {
        if !self.is_over() && !frames.is_empty() {
            self.reader.keepalive.on_sent(Instant::now());
            self.write_buffer.push(frames);
        }
    }

    /// On whose authority it may be used again.
    pub fn reuse(&self) -> Option<&Reuse> {
        self.reuse.as_ref()
    }

    /// Its connection's permit.
    pub fn permit(&self) -> &ConnectionPermit {
        &self.permit
    }

    /// Reads once, and appends to `batch` what the other leg is to get.
    ///
    /// # Errors
    /// The leg's [`LegEnd`], at this and every later call. Everything before it was appended by then.
    pub(super) fn poll_read(
        &mut self,
        size: ReadSize,
        input: &mut [u8],
        batch: &mut Batch,
        now: Instant,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Taken, LegEnd>> {
        if let Some(end) = &self.end {
            return Poll::Ready(Err(end.clone()));
        }
        self.reading = true;
        let (mut taken, mut result, reader) = (Taken::default(), Ok(()), &mut self.reader);
        let read = self.socket.poll_read_pieces(size, input, cx, &mut |bytes| {
            if result.is_ok() {
                result = reader.on_bytes(bytes, batch, &mut taken, now);
            }
        });
        let ended = !matches!(ready!(read), Ok(1..));
        if matches!(self.reader.said, Some(Said::Ask(_))) {
            self.pongs_wait_until = Some(now + PONG_WAIT);
        }
        for payload in take(&mut self.reader.pings) {
            self.send_pong(payload);
        }
        self.end = result.err().or(ended.then_some(LegEnd::Lost));
        Poll::Ready(Ok(taken))
    }

    fn send_pong(&mut self, payload: Vec<u8>) {
        if self.closing {
            return;
        }
        if self.write_buffer.len() < LEG_PONG_BYTES {
            self.push(|batch| batch.pong(&payload));
        } else {
            self.deferred_pong = Some(payload);
        }
    }

    /// Queues a frame of the relay itself.
    pub(super) fn push(&mut self, encode: impl FnOnce(&mut Batch)) {
        let mut batch = Batch::new();
        encode(&mut batch);
        self.write_buffer.push(batch.finish());
    }

    /// Writes frames, and queues what the socket does not take. Does nothing on a leg that ended or is closing.
    ///
    /// # Errors
    /// The leg was lost.
    pub(super) fn write(&mut self, frames: &[u8], now: Instant, cx: &mut Context<'_>) -> Result<(), LegEnd> {
        if frames.is_empty() || self.closing || self.is_over() {
            return Ok(());
        }
        self.reader.keepalive.on_sent(now);
        self.write_buffer.write(frames, &mut self.socket, cx).map_err(|_| LegEnd::Lost)
    }

    /// Writes the last frames, and behind them the Close of a finished stream.
    ///
    /// # Errors
    /// The leg was lost.
    pub(super) fn finish(&mut self, batch: &mut Batch, now: Instant, cx: &mut Context<'_>) -> Result<(), LegEnd> {
        if self.closing || self.is_over() {
            return Ok(());
        }
        let reason = CloseReason::Finished;
        batch.close(Some((reason.code(), &reason.text(""))));
        let written = self.write(batch.finish(), now, cx);
        self.closing = true;
        written
    }

    /// Queues the last frames of a stream on a leg that may be used again: `idle` or the Close, which follows at once, shares their write.
    pub(super) fn push_last(&mut self, frames: &[u8], now: Instant) {
        if !self.closing && !self.is_over() {
            self.reader.keepalive.on_sent(now);
            self.write_buffer.push(frames);
            self.holds_last_words = true;
        }
    }

    /// Writes everything that is queued.
    ///
    /// # Errors
    /// The leg was lost.
    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), LegEnd>> {
        // A leg that ended gets nothing but the answer to its Close, which `close` writes.
        if self.is_over() || self.holds_last_words || self.write_buffer.is_flushed() {
            return Poll::Ready(Ok(()));
        }
        let mut flushed = self.write_buffer.poll_flush(&mut self.socket, cx);
        if flushed.is_ready()
            && let Some(payload) = self.deferred_pong.take()
        {
            self.send_pong(payload);
            flushed = self.write_buffer.poll_flush(&mut self.socket, cx);
        }
        flushed.map_err(|_| LegEnd::Lost)
    }

    /// Whether the leg has ended.
    pub(super) fn is_over(&self) -> bool {
        self.end.is_some()
    }

    /// Whether its side closed with 1000.
    pub(super) fn is_done(&self) -> bool {
        self.end == Some(LegEnd::Done)
    }

    /// Ends the leg, if it has not ended: nothing more is written to it.
    pub(super) fn end_with(&mut self, end: LegEnd) {
        self.end.get_or_insert(end);
    }

    /// Since when its side owes something for the end of the stream and has not shown that it is at work: `end` or `delivered`, once the
    /// `end` of `other` was passed on to it. None where it owes nothing.
    pub(super) fn owes_since(&self, other: &Self) -> Option<Instant> {
        let owes = !self.reader.delivered || !(self.reader.ended || other.is_done());
        self.reader.end_passed_at.filter(|_| owes && !self.is_over()).map(|passed| passed.max(self.reader.last_active))
    }

    /// Whether nothing more is expected of its side: it has sent and received everything, it closed with 1000, or the other side did and
    /// this one has received everything.
    pub(super) fn is_through(&self, other: &Self) -> bool {
        self.is_done() || (self.reader.delivered && (self.reader.ended || other.is_done()))
    }

    /// Runs the keepalive: sends a ping if one is due, or finds the leg dead. `orphaned`: its device has no control channel.
    ///
    /// # Errors
    /// [`LegEnd::Lost`] for a dead leg, unless it has sent and received everything.
    pub fn on_tick(&mut self, orphaned: bool, now: Instant, cx: &mut Context<'_>) -> Result<(), LegEnd> {
        if self.is_over() {
            return Ok(());
        }
        if self.pongs_wait_until.take_if(|until| *until <= now).is_some()
            && let Poll::Ready(Err(end)) = self.poll_flush(cx)
        {
            return Err(end);
        }
        match self.reader.keepalive.due(LegState { reading: self.reading, orphaned }, now) {
            // A leg with unsent bytes needs no ping.
            Due::Ping(payload) if self.write_buffer.is_flushed() && !self.closing => {
                self.push(|batch| batch.ping(&payload));
                match self.poll_flush(cx) {
                    Poll::Ready(Err(end)) => Err(end),
                    Poll::Ready(Ok(())) | Poll::Pending => Ok(()),
                }
            }
            Due::Nothing | Due::Ping(_) => Ok(()),
            Due::Dead => {
                self.end_with(LegEnd::Lost);
                if self.reader.has_finished() { Ok(()) } else { Err(LegEnd::Lost) }
            }
        }
    }

    /// When [`Leg::on_tick`] should be called next.
    pub fn next_tick(&self) -> Instant {
        let next = self.reader.keepalive.next_tick();
        self.pongs_wait_until.map_or(next, |until| next.min(until))
    }

    /// Queues a text of the relay itself, for the next write.
    pub fn push_text(&mut self, text: &LegText) {
        self.pongs_wait_until = None;
        self.reader.keepalive.on_sent(Instant::now());
        self.push(|batch| batch.text(&text.encode()));
    }

    /// Sends a text of the relay itself, at most `within`.
    ///
    /// # Errors
    /// [`LegEnd::Lost`], if the leg is lost or does not take it in time.
    pub async fn send(&mut self, text: &LegText, within: Duration) -> Result<(), LegEnd> {
        self.send_text(&text.encode(), within).await
    }

    pub(super) async fn send_text(&mut self, text: &str, within: Duration) -> Result<(), LegEnd> {
        self.pongs_wait_until = None;
        self.reader.keepalive.on_sent(Instant::now());
        self.push(|batch| batch.text(text));
        let written = poll_fn(|cx| self.write_buffer.poll_flush(&mut self.socket, cx));
        match timeout(within, written).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(LegEnd::Lost),
        }
    }
}

#[cfg(test)]
#[path = "leg_tests.rs"]
mod tests;
