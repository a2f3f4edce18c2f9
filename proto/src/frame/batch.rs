//! What goes to one end in one write: frames of a server, which are not masked.

use super::decoder::Run;
use super::{CONTROL_PAYLOAD_BYTES, bits};

/// The header of a frame of bytes, in the form that takes 126 bytes and more.
const HEADER: usize = 4;
/// What that form can say at most.
const FRAME: usize = u16::MAX as usize;
/// What the short form can say at most.
const SHORT: usize = 125;

/// Frames in a row. Bytes that follow one another share a frame, which ends where anything else follows, and with the batch.
#[derive(Debug, Default)]
pub struct Batch {
    /// Longer than what is in it: what was used once is used again, and not zeroed.
    buffer: Vec<u8>,
    len: usize,
    /// Where the header of the frame stands that still takes bytes.
    open: Option<usize>,
}

impl Batch {
    /// One that owns no memory yet.
    pub const fn new() -> Self {
        Self { buffer: Vec::new(), len: 0, open: None }
    }

    /// Bytes in it, headers included.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Adds bytes of the stream.
    pub fn bytes(&mut self, mut run: Run<'_>) {
        while !run.is_empty() {
            let open = match self.open {
                Some(open) if self.len - open - HEADER < FRAME => open,
                _ => self.open_frame(),
            };
            let room = FRAME - (self.len - open - HEADER);
            let (some, rest) = run.split_at(room.min(run.len()));
            some.copy_to(self.grow(some.len()));
            run = rest;
        }
    }

    /// Adds a text message.
    pub fn text(&mut self, text: &str) {
        self.frame(bits::TEXT, &[text.as_bytes()]);
    }

    /// Adds a ping; of a payload that is too long, what fits.
    pub fn ping(&mut self, payload: &[u8]) {
        self.frame(bits::PING, &[fitting(payload)]);
    }

    /// Adds a pong; of a payload that is too long, what fits.
    pub fn pong(&mut self, payload: &[u8]) {
        self.frame(bits::PONG, &[fitting(payload)]);
    }

    /// Adds a Close with a code and words, which [`fit`](crate::close::truncated_reason); or without.
    pub fn close(&mut self, close: Option<(u16, &str)>) {
        match close {
            Some((code, reason)) => {
                let reason = crate::close::truncated_reason(reason);
                self.frame(bits::CLOSE, &[&code.to_be_bytes(), reason.as_bytes()]);
            }
            None => self.frame(bits::CLOSE, &[]),
        }
    }

    /// All of it, ready to be written. What is added after that begins a frame of its own.
    pub fn finish(&mut self) -> &[u8] {
        self.close_frame();
        &self.buffer[..self.len]
    }

    /// All of it, to be kept.
    pub fn into_bytes(mut self) -> Vec<u8> {
        self.close_frame();
        self.buffer.truncate(self.len);
        self.buffer
    }

    /// Forgets what is in it, and keeps its memory.
    pub fn clear(&mut self) {
        (self.len, self.open) = (0, None);
    }

    fn frame(&mut self, opcode: u8, parts: &[&[u8]]) {
        self.close_frame();
        let size: usize = parts.iter().map(|part| part.len()).sum();
        self.add(&[bits::FIN | opcode]);
        match (u8::try_from(size), u16::try_from(size)) {
            (Ok(short @ ..bits::TWO), _) => self.add(&[short]),
            (_, Ok(middle)) => {
                self.add(&[bits::TWO]);
                self.add(&middle.to_be_bytes());
            }
            _ => {
                self.add(&[bits::EIGHT]);
                self.add(&(size as u64).to_be_bytes());
            }
        }
        for part in parts {
            self.add(part);
        }
    }

    fn add(&mut self, bytes: &[u8]) {
        self.grow(bytes.len()).copy_from_slice(bytes);
    }

    /// So many bytes more, to be written over.
    fn grow(&mut self, by: usize) -> &mut [u8] {
        let at = self.len;
        self.len += by;
        if self.buffer.len() < self.len {
            self.buffer.resize(self.len.max(2 * at), 0);
        }
        &mut self.buffer[at..self.len]
    }

    fn open_frame(&mut self) -> usize {
        self.close_frame();
        let open = self.len;
        self.grow(HEADER);
        self.open = Some(open);
        open
    }

    /// Says in the open frame's header how long it became.
    fn close_frame(&mut self) {
        let Some(open) = self.open.take() else { return };
        let payload = open + HEADER;
        let size = self.len - payload;
        self.buffer[open] = bits::FIN | bits::BINARY;
        match u8::try_from(size) {
            Ok(short) if size <= SHORT => {
                self.buffer[open + 1] = short;
                self.buffer.copy_within(payload..self.len, open + 2);
                self.len -= HEADER - 2;
            }
            _ => {
                self.buffer[open + 1] = bits::TWO;
                // A frame is full at what two bytes say.
                let size = u16::try_from(size).unwrap_or(u16::MAX);
                self.buffer[open + 2..payload].copy_from_slice(&size.to_be_bytes());
            }
        }
    }
}

fn fitting(payload: &[u8]) -> &[u8] {
    &payload[..payload.len().min(CONTROL_PAYLOAD_BYTES)]
}
