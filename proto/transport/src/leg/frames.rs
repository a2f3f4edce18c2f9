//! The WebSocket frames of a leg on its connection.
//!
//! Buffers belong to the thread, so an idle leg has none. A leg keeps only what its connection has not taken and what was read and not
//! consumed yet.
//!
//! Does not own: the meaning of text messages, and what follows from an end ([`super`]).

use std::cell::Cell;
use std::io;
use std::mem::take;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use moorline_proto::bounds::LEG_BINARY_BYTES;
use moorline_proto::frame::{Close, Decoder, Event, FrameError, HEADER_ROOM, Kind, client_frame, close_payload};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::connection::Connection;

/// The size of one read.
const READ_SIZE: usize = 64 * 1024;
/// Received bytes that are handed out before more is read.
const BATCH: usize = 64 * 1024;
/// With more than this pending, a ping needs no pong: the pending bytes show that this side is alive.
const MAX_PENDING_FOR_PONG: usize = 16 * 1024;

thread_local! {
    static INPUT: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
    static ROOM: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// Reads and writes frames.
#[derive(Debug)]
pub(super) struct FrameStream {
    connection: Connection,
    decoder: Decoder,
    /// Bytes that were read and not decoded: behind the 101, or behind a text message.
    undecoded: Bytes,
    /// Whole frames that the connection has not taken, and how much of them was sent.
    pending: Vec<u8>,
    sent: usize,
    unflushed: bool,
    /// The pending bytes include stream data or the `end`.
    has_data: bool,
    /// A ping was sent and not answered.
    awaits_pong: bool,
    /// Pongs wait for the next write.
    holds_pongs: bool,
}

/// What was received, behind the bytes that were handed out with it.
#[derive(Debug)]
pub(super) enum Received {
    /// Only bytes for now.
    Bytes,
    /// A text message.
    Text(String),
    /// The relay's Close.
    Close(Option<Close>),
    /// An invalid frame.
    Invalid(FrameError),
    /// The connection was lost.
    Disconnected(Option<io::Error>),
}

/// Why bytes were not sent.
#[derive(Debug)]
pub(crate) enum SendError {
    /// The source failed.
    Source(io::Error),
    /// The connection failed.
    Connection,
}

/// Stream bytes that were received and not consumed.
#[derive(Debug, Default)]
pub(crate) struct ReceiveBuffer {
    bytes: Vec<u8>,
    taken: usize,
}

impl FrameStream {
    pub(super) fn new(connection: Connection, undecoded: Bytes) -> Self {
        Self {
            connection,
            decoder: Decoder::from_relay(),
            undecoded,
            pending: Vec::new(),
            sent: 0,
            unflushed: false,
            has_data: false,
            awaits_pong: false,
            holds_pongs: false,
        }
    }

    pub(super) fn connection(&mut self) -> &mut Connection {
        &mut self.connection
    }

    /// Reads what is available: up to one batch of bytes into the empty `incoming`, and the message behind them if it has arrived.
    pub(super) fn poll_receive(&mut self, incoming: &mut ReceiveBuffer, cx: &mut Context<'_>) -> Poll<Received> {
        loop {
            let undecoded = take(&mut self.undecoded);
            if let Some(received) = self.decode(&undecoded, incoming) {
                return Poll::Ready(received);
            }
            if incoming.bytes.len() >= BATCH {
                return Poll::Ready(Received::Bytes);
            }
            match self.poll_input(incoming, cx) {
                Poll::Ready(Some(received)) => return Poll::Ready(received),
                Poll::Ready(None) => {}
                Poll::Pending if incoming.is_empty() => {
                    incoming.release();
                    if !self.holds_pongs {
                        drop(self.poll_flush(cx));
                    }
                    return Poll::Pending;
                }
                Poll::Pending => return Poll::Ready(Received::Bytes),
            }
        }
    }

    fn poll_input(&mut self, incoming: &mut ReceiveBuffer, cx: &mut Context<'_>) -> Poll<Option<Received>> {
        let mut input = INPUT.take();
        input.resize(READ_SIZE, 0);
        let mut read = ReadBuf::new(&mut input);
        let received = match Pin::new(&mut self.connection).poll_read(cx, &mut read) {
            Poll::Ready(Ok(())) if read.filled().is_empty() => Poll::Ready(Some(Received::Disconnected(None))),
            Poll::Ready(Ok(())) => Poll::Ready(self.decode(read.filled(), incoming)),
            Poll::Ready(Err(error)) => Poll::Ready(Some(Received::Disconnected(Some(error)))),
            Poll::Pending => Poll::Pending,
        };
        INPUT.set(input);
        received
    }

    fn decode(&mut self, mut input: &[u8], incoming: &mut ReceiveBuffer) -> Option<Received> {
        loop {
            match self.decoder.next(&mut input) {
                Ok(None) => return None,
                Ok(Some(Event::Bytes(run))) => run.append_to(&mut incoming.bytes),
                Ok(Some(Event::Ping(payload))) => {
                    if self.pending.len() < MAX_PENDING_FOR_PONG {
                        self.push(Kind::Pong, &payload);
                    }
                }
                Ok(Some(Event::Pong(_))) => self.awaits_pong = false,
                Ok(Some(Event::Text(text))) => {
                    self.undecoded = Bytes::copy_from_slice(input);
                    return Some(Received::Text(text));
                }
                Ok(Some(Event::Close(close))) => return Some(Received::Close(close)),
                Err(error) => return Some(Received::Invalid(error)),
            }
        }
    }

    /// Sends what `fill` reads as one frame. Call it only when nothing is pending.
    ///
    /// # Errors
    /// [`SendError`].
    pub(super) fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        fill: impl FnOnce(&mut Context<'_>, &mut ReadBuf<'_>) -> Poll<io::Result<()>>,
    ) -> Poll<Result<usize, SendError>> {
        let mut room = ROOM.take();
        room.resize(HEADER_ROOM + LEG_BINARY_BYTES, 0);
        let mut payload = ReadBuf::new(&mut room[HEADER_ROOM..]);
        let filled = fill(cx, &mut payload);
        let size = payload.filled().len();
        let sent = match filled {
            Poll::Ready(Ok(())) if size == 0 => Poll::Ready(Ok(0)),
            Poll::Ready(Ok(())) => {
                let frame = &mut room[..HEADER_ROOM + size];
                let begins = client_frame(Kind::Bytes, frame, rand::random());
                self.has_data = true;
                Poll::Ready(self.write(&frame[begins..], cx).map(|()| size).map_err(|_| SendError::Connection))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(SendError::Source(error))),
            Poll::Pending => Poll::Pending,
        };
        ROOM.set(room);
        sent
    }

    /// Writes a frame and keeps what the connection does not take.
    fn write(&mut self, frame: &[u8], cx: &mut Context<'_>) -> io::Result<()> {
        self.unflushed = true;
        let mut sent = 0;
        while self.pending.is_empty() && sent < frame.len() {
            match Pin::new(&mut self.connection).poll_write(cx, &frame[sent..]) {
                Poll::Ready(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
                Poll::Ready(Ok(count)) => sent += count,
                Poll::Ready(Err(error)) => return Err(error),
                Poll::Pending => break,
            }
        }
        self.pending.extend_from_slice(&frame[sent..]);
        Ok(())
    }

    /// Queues a short frame for the next write.
    pub(super) fn push(&mut self, kind: Kind, payload: &[u8]) {
        let mut frame = [&[0; HEADER_ROOM], payload].concat();
        let begins = client_frame(kind, &mut frame, rand::random());
        self.pending.extend_from_slice(&frame[begins..]);
        self.unflushed = true;
        self.has_data |= matches!(kind, Kind::Text | Kind::Bytes);
    }

    /// Queues a Close for the next write.
    pub(super) fn push_close(&mut self, code: u16, words: &str) {
        self.push(Kind::Close, &close_payload(code, words));
    }

    /// Queues a ping for the next write.
    pub(super) fn push_ping(&mut self) {
        self.push(Kind::Ping, &[]);
        self.awaits_pong = true;
    }

    /// Whether pongs wait for the next write, from here on.
    pub(super) fn hold_pongs(&mut self, hold: bool) {
        self.holds_pongs = hold;
    }

    /// Whether a ping was not answered yet.
    pub(super) fn awaits_pong(&self) -> bool {
        self.awaits_pong
    }

    /// The stream whose data was sent is over: the next one has sent none.
    pub(super) fn begin_stream(&mut self) {
        (self.has_data, self.awaits_pong) = (false, false);
    }

    /// Waits until nothing is pending.
    pub(super) fn poll_writable(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.sent < self.pending.len() {
            match ready!(Pin::new(&mut self.connection).poll_write(cx, &self.pending[self.sent..]))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                count => self.sent += count,
            }
        }
        (self.pending, self.sent) = (Vec::new(), 0);
        Poll::Ready(Ok(()))
    }

    /// Flushes everything.
    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_writable(cx))?;
        if self.unflushed {
            ready!(Pin::new(&mut self.connection).poll_flush(cx))?;
            (self.unflushed, self.has_data) = (false, false);
        }
        Poll::Ready(Ok(()))
    }

    /// Whether stream data may not have been written yet.
    pub(super) fn has_unsent_data(&self) -> bool {
        self.has_data
    }
}

impl ReceiveBuffer {
    pub(super) fn len(&self) -> usize {
        self.bytes.len() - self.taken
    }

    /// Moves everything out of `other`, behind what is there.
    pub(super) fn append(&mut self, other: &mut Self) {
        self.bytes.extend_from_slice(other.as_slice());
        other.clear();
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    pub(crate) fn as_slice(&self) -> &[u8] {
        &self.bytes[self.taken..]
    }

    /// Consumes this many bytes from the front.
    pub(crate) fn advance(&mut self, by: usize) {
        self.taken += by;
        if self.taken >= self.bytes.len() {
            self.clear();
        }
    }

    pub(crate) fn clear(&mut self) {
        self.bytes.clear();
        self.taken = 0;
    }

    fn release(&mut self) {
        *self = Self::default();
    }
}
