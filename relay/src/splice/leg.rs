//! One side's WebSocket of a stream, as the relay holds it: before `opened`, while bytes are spliced, and until it is closed.

use std::future::poll_fn;
use std::mem::take;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use moorline_proto::bounds::{CLOSE_TIMEOUT, EARLY_DATA_BYTES, LEG_BINARY_BYTES};
use moorline_proto::close::CloseReason;
use moorline_proto::frame::Batch;
use moorline_proto::leg::LegText;
use tokio::time::{Instant, timeout};

use crate::net::admission::ConnectionPermit;
use crate::net::connection::{ReadSize, Socket};
use crate::splice::leg_end::LegEnd;
use crate::splice::leg_keepalive::{Due, LegKeepalive, LegState};
use crate::splice::leg_reader::{LegReader, Taken};
use crate::splice::scratch::{self, Scratch};
use crate::splice::write_buffer::WriteBuffer;

/// What one read takes while bytes are early: little, so that the mark is not passed by much.
const READ_TO_HOLD: usize = 16 * 1024;
/// Beyond this a peer that does not read gets a pong for its last ping alone.
const PONGS_BYTES: usize = 16 * 1024;

/// One side's WebSocket of a stream.
#[derive(Debug)]
pub struct Leg {
    socket: Socket,
    pub(super) reader: LegReader,
    /// What came before `opened`, as the other side will get it.
    early: EarlyData,
    write_buffer: WriteBuffer,
    /// The payload of a ping whose pong has no place yet.
    ping: Option<Vec<u8>>,
    end: Option<LegEnd>,
    /// Our Close was handed over: nothing may follow it.
    closing: bool,
    /// The relay waits for a frame of it: the last look found none.
    pub(super) reading: bool,
    _permit: ConnectionPermit,
}

/// What was read before anybody could take it.
#[derive(Debug, Default)]
pub(super) struct EarlyData {
    /// The frames of it.
    pub(super) batch: Batch,
    /// What it holds.
    pub(super) taken: Taken,
}

impl Leg {
    /// A leg right behind its 101, in its connection's place.
    pub fn new(socket: Socket, ping: Duration, permit: ConnectionPermit) -> Self {
        let now = Instant::now();
        Self {
            socket,
            reader: LegReader::new(LegKeepalive::new(ping, now), now),
            early: EarlyData::default(),
            write_buffer: WriteBuffer::default(),
            ping: None,
            end: None,
            closing: false,
            reading: true,
            _permit: permit,
        }
    }

    /// Reads ahead until the leg comes to its end, and holds what it says. Past 64 KiB nothing more is read, except for the rest of a message.
    ///
    /// # Cancel safety
    /// What was read stays early.
    pub async fn watch(&mut self) -> LegEnd {
        loop {
            if let Some(end) = poll_fn(|cx| self.poll_ahead(cx)).await {
                return end;
            }
            // Nothing is read, so nothing but this is seen of its end: at once where it is reset, else by the next ping.
            self.socket.was_reset().await;
            self.end.get_or_insert(LegEnd::Lost);
        }
    }

    /// Reads ahead: ready with its end, or with nothing once enough is early.
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
                self.poll_read(ReadSize::Buffer, &mut input[..READ_TO_HOLD], &mut all.batch, Instant::now(), cx)
            });
            self.early = all;
            if let Ok(taken) = ready!(read) {
                self.early.taken.bytes += taken.bytes;
                self.early.taken.text += taken.text;
            }
        }
    }

    /// What was early, for the other leg.
    pub(super) fn take_early(&mut self) -> EarlyData {
        take(&mut self.early)
    }

    /// Takes what the other leg had early.
    pub(super) fn push_early(&mut self, batch: Batch) {
        if !self.is_over() && !batch.is_empty() {
            self.reader.keepalive.on_sent(Instant::now());
            self.write_buffer.push(&batch.into_bytes());
        }
    }

    /// Reads once, and adds what the other leg is to get to `batch`.
    ///
    /// # Errors
    /// The leg's [`LegEnd`], again at every further call; what came before it was given out by then.
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
        if self.write_buffer.len() < PONGS_BYTES {
            self.push(|batch| batch.pong(&payload));
        } else {
            self.ping = Some(payload);
        }
    }

    /// Keeps a frame of the relay's own for the next write.
    fn push(&mut self, encode: impl FnOnce(&mut Batch)) {
        let mut batch = Batch::new();
        encode(&mut batch);
        self.write_buffer.push(batch.finish());
    }

    /// Hands frames to the socket, and keeps what it does not take. To a leg that is over, or was said Close, nothing is said.
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

    /// Hands the last frames to the socket, with the Close of a finished stream behind them.
    ///
    /// # Errors
    /// The leg was lost.
    pub(super) fn finish(&mut self, batch: &mut Batch, now: Instant, cx: &mut Context<'_>) -> Result<(), LegEnd> {
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
    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), LegEnd>> {
        // To a leg that is over nothing is said but the answer to its Close, and that in `close`.
        if self.is_over() || self.write_buffer.is_flushed() {
            return Poll::Ready(Ok(()));
        }
        let mut flushed = self.write_buffer.poll_flush(&mut self.socket, cx);
        if flushed.is_ready()
            && let Some(payload) = self.ping.take()
        {
            self.send_pong(payload);
            flushed = self.write_buffer.poll_flush(&mut self.socket, cx);
        }
        flushed.map_err(|_| LegEnd::Lost)
    }

    /// Whether something waits for delivery.
    pub(super) fn is_unflushed(&self) -> bool {
        !self.is_over() && !self.write_buffer.is_flushed()
    }

    /// Whether it has come to its end.
    pub(super) fn is_over(&self) -> bool {
        self.end.is_some()
    }

    /// Looks at the leg's keepalive: pings it, or finds it dead.
    ///
    /// # Errors
    /// [`LegEnd::Lost`] for a dead leg.
    pub fn on_tick(&mut self, orphaned: bool, now: Instant, cx: &mut Context<'_>) -> Result<(), LegEnd> {
        if self.is_over() {
            return Ok(());
        }
        match self.reader.keepalive.due(LegState { reading: self.reading, orphaned }, now) {
            // A leg that is full of bytes needs no ping.
            Due::Ping(payload) if self.write_buffer.is_flushed() && !self.closing => {
                self.push(|batch| batch.ping(&payload));
                match self.poll_flush(cx) {
                    Poll::Ready(Err(end)) => Err(end),
                    Poll::Ready(Ok(())) | Poll::Pending => Ok(()),
                }
            }
            Due::Nothing | Due::Ping(_) => Ok(()),
            Due::Dead => {
                self.end = Some(LegEnd::Lost);
                Err(LegEnd::Lost)
            }
        }
    }

    /// When [`Leg::on_tick`] should be called next.
    pub fn next_tick(&self) -> Instant {
        self.reader.keepalive.next_tick()
    }

    /// Says something of the relay's own, within `within`.
    ///
    /// # Errors
    /// [`LegEnd::Lost`] if the leg is lost or does not take it in time.
    pub async fn send(&mut self, text: &LegText, within: Duration) -> Result<(), LegEnd> {
        self.reader.keepalive.on_sent(Instant::now());
        self.push(|batch| batch.text(&text.encode()));
        let written = poll_fn(|cx| self.write_buffer.poll_flush(&mut self.socket, cx));
        match timeout(within, written).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(LegEnd::Lost),
        }
    }

    /// Closes the leg and waits for the answer: five seconds, then the connection is reset; after 1000, which stands behind all that a
    /// slow reader has not read yet, `patience`, and no reset.
    pub async fn close(mut self, reason: CloseReason, words: &str, patience: Duration) {
        let answered = match &self.end {
            Some(LegEnd::Lost) => false,
            Some(LegEnd::Done | LegEnd::Reset(_)) => {
                if !self.closing {
                    let peer_close = self.reader.peer_close.take();
                    self.push(|batch| batch.close(peer_close.as_ref().map(|close| (close.code, &*close.reason))));
                }
                timeout(CLOSE_TIMEOUT, self.exchange_closes()).await.is_ok()
            }
            Some(LegEnd::Broke(..)) | None => {
                if !self.closing {
                    let text = if words.is_empty() { reason.name().to_owned() } else { format!("{}: {words}", reason.name()) };
                    self.push(|batch| batch.close(Some((reason.code(), &text))));
                }
                let within = if reason == CloseReason::Finished { patience } else { CLOSE_TIMEOUT };
                timeout(within, self.exchange_closes()).await.is_ok()
            }
        };
        if answered || reason == CloseReason::Finished { self.socket.close(CLOSE_TIMEOUT).await } else { self.socket.reset() }
    }

    /// Has the Close written that was handed over, and reads and drops until the other one is there too, or will never be. Reads while it
    /// writes: a peer that is busy writing reads nothing before that.
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
