//! The WebSocket frames of a leg on its connection: what is sent, and reading.
//!
//! What is read goes straight into the decoder, and what is sent is read into a buffer of the thread's, so a silent leg owns none. A leg
//! keeps only what its connection has not taken and what was read and not consumed yet.
//!
//! Does not own: the meaning of text messages, and what follows from an end ([`super`]).

use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use moorline_proto::bounds::LEG_BINARY_BYTES;
use moorline_proto::frame::{HEADER_ROOM, Kind, client_frame, close_payload};
use tokio::io::{AsyncWrite, ReadBuf};

use super::frame_reader::{FrameReader, ReceiveBuffer, Received};
use crate::connection::Connection;

/// With more than this pending, a ping needs no pong: the pending bytes show that this side is alive.
const MAX_PENDING_FOR_PONG: usize = 16 * 1024;

thread_local! {
    /// What a send reads its frame's payload into.
    static ROOM: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// Reads and writes frames.
#[derive(Debug)]
pub(super) struct FrameStream {
    connection: Connection,
    reader: FrameReader,
    /// Whole frames that the connection has not taken, and how much of them was sent.
    pending: Vec<u8>,
    sent: usize,
    unflushed: bool,
    /// The pending bytes include stream data or the `end`.
    has_data: bool,
    /// Pongs wait for the next write.
    holds_pongs: bool,
}

/// Why bytes were not sent.
#[derive(Debug)]
pub(crate) enum SendError {
    /// The source failed.
    Source(io::Error),
    /// The connection failed.
    Connection,
}

impl FrameStream {
    pub(super) fn new(connection: Connection, undecoded: Bytes) -> Self {
        Self {
            connection,
            reader: FrameReader::new(undecoded),
            pending: Vec::new(),
            sent: 0,
            unflushed: false,
            has_data: false,
            holds_pongs: false,
        }
    }

    pub(super) fn connection(&mut self) -> &mut Connection {
        &mut self.connection
    }

    /// Reads what is available: bytes into `incoming`, and the message behind them if it has arrived.
    pub(super) fn poll_receive(&mut self, incoming: &mut ReceiveBuffer, cx: &mut Context<'_>) -> Poll<Received> {
        let mut received = self.reader.decode_rest(incoming);
        loop {
            self.push_pongs();
            if let Some(received) = received {
                return Poll::Ready(received);
            }
            if !incoming.is_empty() {
                return Poll::Ready(Received::Bytes);
            }
            incoming.prepare();
            let read = self.connection.poll_read_pieces(cx, &mut |piece| self.reader.on_piece(piece, &mut received, incoming));
            match read {
                Poll::Ready(Ok(1..)) => {}
                Poll::Ready(Ok(0)) => received = Some(Received::Disconnected(None)),
                // What came before the error goes first; the next read fails again.
                Poll::Ready(Err(error)) => received = received.or(Some(Received::Disconnected(Some(error)))),
                Poll::Pending => {
                    incoming.release();
                    if !self.holds_pongs {
                        drop(self.poll_flush(cx));
                    }
                    return Poll::Pending;
                }
            }
        }
    }

    fn push_pongs(&mut self) {
        for payload in self.reader.take_pings() {
            if self.pending.len() < MAX_PENDING_FOR_PONG {
                self.push(Kind::Pong, &payload);
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
        self.reader.awaits_pong = true;
    }

    /// Whether pongs wait for the next write, from here on.
    pub(super) fn hold_pongs(&mut self, hold: bool) {
        self.holds_pongs = hold;
    }

    /// Whether a ping was not answered yet.
    pub(super) fn awaits_pong(&self) -> bool {
        self.reader.awaits_pong
    }

    /// The stream whose data was sent is over: the next one has sent none.
    pub(super) fn begin_stream(&mut self) {
        (self.has_data, self.reader.awaits_pong) = (false, false);
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

    /// Whether it owns a buffer, or its connection does.
    #[cfg(test)]
    pub(super) fn owns_memory(&self) -> bool {
        self.connection.owns_memory() || self.reader.owns_memory() || self.pending.capacity() > 0
    }

    /// Whether stream data may not have been written yet.
    pub(super) fn has_unsent_data(&self) -> bool {
        self.has_data
    }
}
