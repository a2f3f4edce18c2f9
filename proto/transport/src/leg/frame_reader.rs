//! Decodes what a leg's connection brings: stream bytes, messages, pings and their answers.
//!
//! Does not own: the connection, and the pongs that are sent ([`super::frames`]).

use std::cell::Cell;
use std::io;
use std::mem::take;

use bytes::{Buf, Bytes, BytesMut};
use moorline_proto::frame::{Close, Decoder, Event, FrameError};

/// Pings of one read that are remembered. The relay sends one at a time.
const MAX_PINGS: usize = 128;

thread_local! {
    /// What the next read goes into: grown anew for each, it would be copied several times.
    static SPARE: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// The read side of a leg's frames.
#[derive(Debug)]
pub(super) struct FrameReader {
    decoder: Decoder,
    /// Bytes that were read and not decoded: behind the 101, or behind a text message.
    undecoded: BytesMut,
    /// Payloads of pings that are to be answered.
    pings: Vec<Vec<u8>>,
    /// A ping was sent and not answered.
    pub(super) awaits_pong: bool,
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

/// Stream bytes that were received and not consumed.
#[derive(Debug, Default)]
pub(crate) struct ReceiveBuffer {
    bytes: Vec<u8>,
    taken: usize,
}

impl FrameReader {
    pub(super) fn new(undecoded: Bytes) -> Self {
        Self { decoder: Decoder::from_relay(), undecoded: undecoded.into(), pings: Vec::new(), awaits_pong: false }
    }

    /// Decodes what is left of earlier reads, up to the next message.
    pub(super) fn decode_rest(&mut self, incoming: &mut ReceiveBuffer) -> Option<Received> {
        if self.undecoded.is_empty() {
            return None;
        }
        let mut undecoded = take(&mut self.undecoded);
        let mut rest = &undecoded[..];
        let received = self.decode(&mut rest, incoming);
        let left = rest.len();
        if left > 0 {
            undecoded.advance(undecoded.len() - left);
            self.undecoded = undecoded;
        }
        received
    }

    /// Decodes up to the next message, and advances `input` beyond it.
    fn decode(&mut self, input: &mut &[u8], incoming: &mut ReceiveBuffer) -> Option<Received> {
        loop {
            match self.decoder.next(input) {
                Ok(None) => return None,
                Ok(Some(Event::Bytes(run))) => run.append_to(&mut incoming.bytes),
                Ok(Some(Event::Ping(payload))) => {
                    if self.pings.len() < MAX_PINGS {
                        self.pings.push(payload);
                    }
                }
                Ok(Some(Event::Pong(_))) => self.awaits_pong = false,
                Ok(Some(Event::Text(text))) => return Some(Received::Text(text)),
                Ok(Some(Event::Close(close))) => return Some(Received::Close(close)),
                Err(error) => return Some(Received::Invalid(error)),
            }
        }
    }

    /// Takes a piece of what was read. What is behind a message is kept undecoded.
    pub(super) fn on_piece(&mut self, mut piece: &[u8], received: &mut Option<Received>, incoming: &mut ReceiveBuffer) {
        if received.is_none() {
            *received = self.decode(&mut piece, incoming);
        }
        self.undecoded.extend_from_slice(piece);
    }

    /// The payloads of pings that came since the last call.
    pub(super) fn take_pings(&mut self) -> Vec<Vec<u8>> {
        take(&mut self.pings)
    }

    /// Whether it owns a buffer.
    #[cfg(test)]
    pub(super) fn owns_memory(&self) -> bool {
        self.decoder.owns_memory() || self.undecoded.capacity() + self.pings.capacity() > 0
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

    /// Takes the thread's buffer, if there is none yet: something is about to be read.
    pub(super) fn prepare(&mut self) {
        if self.bytes.capacity() == 0 {
            self.bytes = SPARE.take();
        }
    }

    /// Gives the buffer, which is empty, to the thread.
    pub(super) fn release(&mut self) {
        if self.bytes.capacity() > 0 {
            SPARE.set(take(&mut self.bytes));
        }
    }

    /// Whether it owns a buffer.
    #[cfg(test)]
    pub(super) fn owns_memory(&self) -> bool {
        self.bytes.capacity() > 0
    }
}
