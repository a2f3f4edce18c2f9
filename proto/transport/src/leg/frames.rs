//! The WebSocket of a leg: frames over its connection.
//!
//! The buffers are the thread's, so that a silent leg has none. What the connection did not take, and what was read and nobody has taken yet,
//! is all that is kept.
//!
//! Does not own: what a text means, and what follows from an end ([`super`]).

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

/// What one read takes.
const READ: usize = 64 * 1024;
/// Bytes that are enough to be given out before more is read.
const ENOUGH: usize = 64 * 1024;
/// While more than this waits to be sent, a ping is answered by that.
const PONGS: usize = 16 * 1024;

thread_local! {
    static INPUT: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
    static ROOM: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// Frames in and out.
#[derive(Debug)]
pub(super) struct Frames {
    connection: Connection,
    decoder: Decoder,
    /// What was read and not taken apart: behind the 101, or behind a text.
    unread: Bytes,
    /// Frames that the connection has not taken, always whole ones, and how far they got.
    kept: Vec<u8>,
    sent: usize,
    unflushed: bool,
    /// Among that is something of the stream: bytes, or its end.
    unsaid: bool,
}

/// What comes next, behind the bytes that were given out with it.
#[derive(Debug)]
pub(super) enum Found {
    /// Nothing but bytes for now.
    Bytes,
    /// A text message.
    Text(String),
    /// The relay's Close.
    Close(Option<Close>),
    /// The relay broke WebSocket.
    Broken(FrameError),
    /// The connection is gone.
    Gone(Option<io::Error>),
}

/// Why bytes were not sent.
#[derive(Debug)]
pub(crate) enum Unsent {
    /// There were none: whoever should give them failed.
    Source(io::Error),
    /// The connection failed.
    Leg,
}

/// Bytes of the stream that came and were not taken yet.
#[derive(Debug, Default)]
pub(crate) struct Incoming {
    bytes: Vec<u8>,
    taken: usize,
}

impl Frames {
    pub(super) fn new(connection: Connection, unread: Bytes) -> Self {
        Self { connection, decoder: Decoder::from_relay(), unread, kept: Vec::new(), sent: 0, unflushed: false, unsaid: false }
    }

    pub(super) fn connection(&mut self) -> &mut Connection {
        &mut self.connection
    }

    /// Takes in what is there: bytes to `incoming`, which is empty, as many as are enough; and what comes next, if it is there too.
    pub(super) fn poll_take(&mut self, incoming: &mut Incoming, cx: &mut Context<'_>) -> Poll<Found> {
        loop {
            let unread = take(&mut self.unread);
            if let Some(found) = self.understand(&unread, incoming) {
                return Poll::Ready(found);
            }
            if incoming.bytes.len() >= ENOUGH {
                return Poll::Ready(Found::Bytes);
            }
            match self.poll_input(incoming, cx) {
                Poll::Ready(Some(found)) => return Poll::Ready(found),
                Poll::Ready(None) => {}
                Poll::Pending if incoming.is_empty() => {
                    incoming.give_up();
                    drop(self.poll_flush(cx)); // pongs
                    return Poll::Pending;
                }
                Poll::Pending => return Poll::Ready(Found::Bytes),
            }
        }
    }

    fn poll_input(&mut self, incoming: &mut Incoming, cx: &mut Context<'_>) -> Poll<Option<Found>> {
        let mut input = INPUT.take();
        input.resize(READ, 0);
        let mut read = ReadBuf::new(&mut input);
        let found = match Pin::new(&mut self.connection).poll_read(cx, &mut read) {
            Poll::Ready(Ok(())) if read.filled().is_empty() => Poll::Ready(Some(Found::Gone(None))),
            Poll::Ready(Ok(())) => Poll::Ready(self.understand(read.filled(), incoming)),
            Poll::Ready(Err(error)) => Poll::Ready(Some(Found::Gone(Some(error)))),
            Poll::Pending => Poll::Pending,
        };
        INPUT.set(input);
        found
    }

    fn understand(&mut self, mut input: &[u8], incoming: &mut Incoming) -> Option<Found> {
        loop {
            match self.decoder.next(&mut input) {
                Ok(None) => return None,
                Ok(Some(Event::Bytes(run))) => run.append_to(&mut incoming.bytes),
                Ok(Some(Event::Ping(payload))) => {
                    if self.kept.len() < PONGS {
                        self.push(Kind::Pong, &payload);
                    }
                }
                Ok(Some(Event::Pong(_))) => {}
                Ok(Some(Event::Text(text))) => {
                    self.unread = Bytes::copy_from_slice(input);
                    return Some(Found::Text(text));
                }
                Ok(Some(Event::Close(close))) => return Some(Found::Close(close)),
                Err(error) => return Some(Found::Broken(error)),
            }
        }
    }

    /// Sends what `fill` reads, if it is anything, in one frame. To be called when nothing is kept.
    ///
    /// # Errors
    /// [`Unsent`].
    pub(super) fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        fill: impl FnOnce(&mut Context<'_>, &mut ReadBuf<'_>) -> Poll<io::Result<()>>,
    ) -> Poll<Result<usize, Unsent>> {
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
                self.unsaid = true;
                Poll::Ready(self.write(&frame[begins..], cx).map(|()| size).map_err(|_| Unsent::Leg))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(Unsent::Source(error))),
            Poll::Pending => Poll::Pending,
        };
        ROOM.set(room);
        sent
    }

    /// Writes a frame, and keeps what the connection does not take.
    fn write(&mut self, frame: &[u8], cx: &mut Context<'_>) -> io::Result<()> {
        self.unflushed = true;
        let mut sent = 0;
        while self.kept.is_empty() && sent < frame.len() {
            match Pin::new(&mut self.connection).poll_write(cx, &frame[sent..]) {
                Poll::Ready(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
                Poll::Ready(Ok(count)) => sent += count,
                Poll::Ready(Err(error)) => return Err(error),
                Poll::Pending => break,
            }
        }
        self.kept.extend_from_slice(&frame[sent..]);
        Ok(())
    }

    /// Keeps a short frame for the next write.
    pub(super) fn push(&mut self, kind: Kind, payload: &[u8]) {
        let mut frame = [&[0; HEADER_ROOM], payload].concat();
        let begins = client_frame(kind, &mut frame, rand::random());
        self.kept.extend_from_slice(&frame[begins..]);
        self.unflushed = true;
        self.unsaid |= kind == Kind::Text;
    }

    /// Keeps a Close for the next write.
    pub(super) fn push_close(&mut self, code: u16, words: &str) {
        self.push(Kind::Close, &close_payload(code, words));
    }

    /// Waits until nothing is kept.
    pub(super) fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.sent < self.kept.len() {
            match ready!(Pin::new(&mut self.connection).poll_write(cx, &self.kept[self.sent..]))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                count => self.sent += count,
            }
        }
        (self.kept, self.sent) = (Vec::new(), 0);
        Poll::Ready(Ok(()))
    }

    /// Writes out all that was sent.
    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_room(cx))?;
        if self.unflushed {
            ready!(Pin::new(&mut self.connection).poll_flush(cx))?;
            (self.unflushed, self.unsaid) = (false, false);
        }
        Poll::Ready(Ok(()))
    }

    /// Whether something of the stream may not be on its way yet.
    pub(super) fn is_unsaid(&self) -> bool {
        self.unsaid
    }
}

impl Incoming {
    pub(crate) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    pub(crate) fn as_slice(&self) -> &[u8] {
        &self.bytes[self.taken..]
    }

    /// So many bytes of the front were taken.
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

    fn give_up(&mut self) {
        *self = Self::default();
    }
}
