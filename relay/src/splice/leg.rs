//! One leg of a stream, the relay's end of it: before `opened`, while bytes are spliced, and until it is closed.

use std::future::poll_fn;
use std::mem::take;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use moorline_proto::bounds::{CLOSE_TIMEOUT, EARLY_DATA_BYTES, LEG_BINARY_BYTES};
use moorline_proto::close::CloseReason;
use moorline_proto::frame::Batch;
use moorline_proto::leg::LegText;
use tokio::time::{Instant, timeout};

use crate::limits::{LEG_EARLY_READ_BYTES, LEG_PONG_BYTES};
use crate::net::admission::ConnectionPermit;
use crate::net::connection::{ReadSize, Socket};
use crate::splice::leg_end::LegEnd;
use crate::splice::leg_keepalive::{Due, LegKeepalive, LegState};
use crate::splice::leg_reader::{LegReader, Taken};
use crate::splice::scratch::{self, Scratch};
use crate::splice::write_buffer::WriteBuffer;

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
    /// The relay would read a frame of this leg now.
    pub(super) reading: bool,
    _permit: ConnectionPermit,
}

/// What was read before the stream opened.
#[derive(Debug, Default)]
pub(super) struct EarlyData {
    /// Its frames.
    pub(super) batch: Batch,
    /// Its size.
    pub(super) taken: Taken,
}

impl Leg {
    /// A leg right behind its 101. It keeps its connection's permit, and sends a ping after `ping` without a frame.
    pub fn new(socket: Socket, ping: Duration, permit: ConnectionPermit) -> Self {
        let now = Instant::now();
        Self {
            socket,
            reader: LegReader::new(LegKeepalive::new(ping, now), now),
            early: EarlyData::default(),
            write_buffer: WriteBuffer::default(),
            deferred_pong: None,
            end: None,
            closing: false,
            reading: true,
            _permit: permit,
        }
    }

    /// Reads ahead until the leg ends, and returns how. Keeps what it reads for the other leg: up to 64 KiB, and the rest of a message that
    /// crosses this bound.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn watch(&mut self) -> LegEnd {
        loop {
            if let Some(end) = poll_fn(|cx| self.poll_ahead(cx)).await {
                return end;
            }
            // Nothing is read any more: the connection's end is seen by itself, a Close behind the unread bytes is not.
            self.socket.was_closed().await;
            self.end.get_or_insert(LegEnd::Lost);
        }
    }

    /// Reads ahead. Ready with the leg's end, or with `None` once enough is kept.
    fn poll_ahead(&mut self, cx: &mut Context<'_>) -> Poll<Option<LegEnd>> {
        loop {
            if let Poll::Ready(Err(end)) = self.poll_flush(cx) {
                self.end.get_or_insert(end);
            }
            if let Some(end) = &self.end {
                return Poll::Ready(Some(end.clone()));
            }
            let early = self.early.taken.bytes + self.early.taken.text;
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
        take(&mut self.early)
    }

    /// Queues what came from the other leg before `opened`.
    pub(super) fn push_early(&mut self, batch: Batch) {
        if !self.is_over() && !batch.is_empty() {
            self.reader.keepalive.on_sent(Instant::now());
            self.write_buffer.push(&batch.into_bytes());
        }
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
    fn push(&mut self, encode: impl FnOnce(&mut Batch)) {
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

    /// Writes everything that is queued.
    ///
    /// # Errors
    /// The leg was lost.
    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), LegEnd>> {
        // A leg that ended gets nothing but the answer to its Close, which `close` writes.
        if self.is_over() || self.write_buffer.is_flushed() {
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
        self.reader.keepalive.next_tick()
    }

    /// Sends a text of the relay itself, at most `within`.
    ///
    /// # Errors
    /// [`LegEnd::Lost`], if the leg is lost or does not take it in time.
    pub async fn send(&mut self, text: &LegText, within: Duration) -> Result<(), LegEnd> {
        self.reader.keepalive.on_sent(Instant::now());
        self.push(|batch| batch.text(&text.encode()));
        let written = poll_fn(|cx| self.write_buffer.poll_flush(&mut self.socket, cx));
        match timeout(within, written).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(LegEnd::Lost),
        }
    }

    /// Closes the leg and waits five seconds for the peer's Close; then the connection is reset. After 1000, which is sent behind
    /// everything that a slow reader has not read yet, waits for `patience` instead, and does not reset.
    pub async fn close(mut self, reason: CloseReason, detail: &str, patience: Duration) {
        let answered = match &self.end {
            Some(LegEnd::Lost) => false,
            Some(LegEnd::Done) => {
                self.push(|batch| batch.close(Some((reason.code(), &reason.text(detail)))));
                timeout(CLOSE_TIMEOUT, self.exchange_closes()).await.is_ok()
            }
            Some(LegEnd::Reset(_)) => {
                if !self.closing {
                    let peer_close = self.reader.peer_close.take();
                    self.push(|batch| batch.close(peer_close.as_ref().map(|close| (close.code, &*close.reason))));
                }
                timeout(CLOSE_TIMEOUT, self.exchange_closes()).await.is_ok()
            }
            Some(LegEnd::Broke(..)) | None => {
                if !self.closing {
                    self.push(|batch| batch.close(Some((reason.code(), &reason.text(detail)))));
                }
                let within = if reason == CloseReason::Finished { patience } else { CLOSE_TIMEOUT };
                timeout(within, self.exchange_closes()).await.is_ok()
            }
        };
        if answered || reason == CloseReason::Finished { self.socket.close(CLOSE_TIMEOUT).await } else { self.socket.reset() }
    }

    /// Writes our Close, and reads and discards until the peer's Close or its end. Reads while it writes: a peer that is busy writing may
    /// not read before that.
    async fn exchange_closes(&mut self) {
        let mut over = matches!(self.end, Some(LegEnd::Done | LegEnd::Reset(_)));
        poll_fn(|cx| {
            let written = match self.write_buffer.poll_flush(&mut self.socket, cx) {
                Poll::Ready(Ok(())) => true,
                Poll::Ready(Err(_)) => return Poll::Ready(()),
                Poll::Pending => false,
            };
            loop {
                if over || (written && self.reader.is_broken()) {
                    return if written { Poll::Ready(()) } else { Poll::Pending };
                }
                let (socket, reader, mut closed) = (&mut self.socket, &mut self.reader, false);
                let read = scratch::with(|Scratch { input, .. }| {
                    socket.poll_read_pieces(ReadSize::Available, input, cx, &mut |bytes| closed = closed || reader.contains_close(bytes))
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
