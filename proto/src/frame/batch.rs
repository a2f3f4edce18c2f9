//! Encodes a server's frames, which are not masked, into one buffer for one write.

use super::decoder::Run;
use super::{CONTROL_PAYLOAD_BYTES, bits};

/// Length of the header with a length of two bytes, which is reserved for each binary frame.
const HEADER: usize = 4;
/// Maximum payload with that header.
const FRAME: usize = u16::MAX as usize;
/// Maximum payload with the short header.
const SHORT: usize = 125;

/// A sequence of frames. Successive bytes share a frame, which ends with any other frame and with the batch.
#[derive(Debug, Default)]
pub struct Batch {
    /// May be longer than `len`: memory is reused without zeroing it again.
    buffer: Vec<u8>,
    len: usize,
    /// Position of the header of the binary frame that can still grow.
    open: Option<usize>,
}

impl Batch {
    /// An empty batch, without an allocation.
    pub const fn new() -> Self {
        Self { buffer: Vec::new(), len: 0, open: None }
    }

    /// Size in bytes, headers included.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it is empty.
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
            let capacity = FRAME - (self.len - open - HEADER);
            let (some, rest) = run.split_at(capacity.min(run.len()));
            some.copy_to(self.grow(some.len()));
            run = rest;
        }
    }

    /// Adds a text message.
    pub fn text(&mut self, text: &str) {
        self.frame(bits::TEXT, &[text.as_bytes()]);
    }

    /// Adds a ping. A payload that is too long is truncated.
    pub fn ping(&mut self, payload: &[u8]) {
        self.frame(bits::PING, &[truncated(payload)]);
    }

    /// Adds a pong. A payload that is too long is truncated.
    pub fn pong(&mut self, payload: &[u8]) {
        self.frame(bits::PONG, &[truncated(payload)]);
    }

    /// Adds a Close, with a code and a reason or without. The reason is [truncated](crate::close::truncated_reason).
    pub fn close(&mut self, close: Option<(u16, &str)>) {
        match close {
            Some((code, reason)) => {
                let reason = crate::close::truncated_reason(reason);
                self.frame(bits::CLOSE, &[&code.to_be_bytes(), reason.as_bytes()]);
            }
            None => self.frame(bits::CLOSE, &[]),
        }
    }

    /// Completes the last frame and returns all frames. Bytes that are added later start a new frame.
    pub fn finish(&mut self) -> &[u8] {
        self.close_frame();
        &self.buffer[..self.len]
    }

    /// Completes the last frame and returns the buffer.
    pub fn into_bytes(mut self) -> Vec<u8> {
        self.close_frame();
        self.buffer.truncate(self.len);
        self.buffer
    }

    /// Removes all frames and keeps the memory.
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

    /// Extends the batch by this many bytes, which the caller overwrites.
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

    /// Writes the header of the open frame.
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
                // A frame never exceeds what two bytes can express.
                let size = u16::try_from(size).unwrap_or(u16::MAX);
                self.buffer[open + 2..payload].copy_from_slice(&size.to_be_bytes());
            }
        }
    }
}

fn truncated(payload: &[u8]) -> &[u8] {
    &payload[..payload.len().min(CONTROL_PAYLOAD_BYTES)]
}
