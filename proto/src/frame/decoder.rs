//! The incremental decoder. It buffers incomplete headers, text messages and control frames, and nothing else.

use std::mem::take;

use super::{CONTROL_PAYLOAD_BYTES, Close, FrameError, bits};
use crate::bounds::{LEG_BINARY_BYTES, LEG_MESSAGE_FRAME_BYTES, LEG_TEXT_BYTES, LEG_TEXT_FROM_RELAY_BYTES};

/// The longest header: two bytes, eight of length, four of the mask.
const HEADER: usize = 14;

/// Decodes the frames that one end sends.
#[derive(Debug)]
pub struct Decoder {
    /// Whether frames must be masked: they come from a client.
    masked: bool,
    /// Limit for text messages, in bytes.
    text_max: usize,
    /// Limit for the bytes of all frames of one message.
    frames_max: usize,
    /// An incomplete header, and how many bytes of it are there.
    header: [u8; HEADER],
    have: usize,
    /// The frame whose payload is being read.
    frame: Option<Frame>,
    /// The message that has not ended. Control frames may come between its fragments.
    message: Option<Kind>,
    /// Its payload so far, as announced by headers.
    message_bytes: usize,
    /// Bytes of its frames so far.
    frame_bytes: usize,
    text: Vec<u8>,
    control: Vec<u8>,
    broken: Option<FrameError>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Binary,
    Text,
    Ping,
    Pong,
    Close,
}

#[derive(Clone, Copy, Debug)]
struct Frame {
    kind: Kind,
    is_last: bool,
    left: usize,
    mask: [u8; 4],
}

/// A decoded part of the input.
#[derive(Debug)]
pub enum Event<'a> {
    /// Payload of a binary message, at least one byte. Boundaries of messages have no meaning.
    Bytes(Run<'a>),
    /// A whole text message.
    Text(String),
    /// A ping with its payload.
    Ping(Vec<u8>),
    /// A pong with its payload.
    Pong(Vec<u8>),
    /// A Close. No frame may follow it.
    Close(Option<Close>),
}

/// A run of payload, still masked. Copying and unmasking is one pass.
#[derive(Clone, Copy, Debug)]
pub struct Run<'a> {
    bytes: &'a [u8],
    mask: [u8; 4],
}

impl Decoder {
    /// Decodes frames from a side: a device or a caller.
    pub fn from_side() -> Self {
        Self::new(true, LEG_TEXT_BYTES)
    }

    /// Decodes frames from the relay.
    pub fn from_relay() -> Self {
        Self::new(false, LEG_TEXT_FROM_RELAY_BYTES)
    }

    fn new(masked: bool, text_max: usize) -> Self {
        Self {
            masked,
            text_max,
            frames_max: LEG_MESSAGE_FRAME_BYTES,
            header: [0; HEADER],
            have: 0,
            frame: None,
            message: None,
            message_bytes: 0,
            frame_bytes: 0,
            text: Vec::new(),
            control: Vec::new(),
            broken: None,
        }
    }

    /// Sets the limit for text messages that begin from here on, in bytes.
    pub fn set_text_max(&mut self, max: usize) {
        self.text_max = max;
    }

    /// Sets the limit for the bytes of all frames of one message, headers included. [`LEG_MESSAGE_FRAME_BYTES`] unless it is set.
    pub fn set_frames_max(&mut self, max: usize) {
        self.frames_max = max;
    }

    /// Whether a message has begun and not ended.
    pub fn is_inside_message(&self) -> bool {
        self.message.is_some()
    }

    /// Whether there was an error. The decoder cannot continue.
    pub fn is_broken(&self) -> bool {
        self.broken.is_some()
    }

    /// Whether it holds buffers, as it does while a text message or control frame is incomplete.
    pub fn owns_memory(&self) -> bool {
        self.text.capacity() + self.control.capacity() > 0
    }

    /// Decodes the next event and advances `input` beyond it. `None` once all input is consumed.
    ///
    /// # Errors
    /// [`FrameError`]; every further call returns it again.
    pub fn next<'a>(&mut self, input: &mut &'a [u8]) -> Result<Option<Event<'a>>, FrameError> {
        if let Some(error) = self.broken {
            return Err(error);
        }
        self.advance(input).inspect_err(|&error| {
            (self.text, self.control) = (Vec::new(), Vec::new());
            self.broken = Some(error);
        })
    }

    fn advance<'a>(&mut self, input: &mut &'a [u8]) -> Result<Option<Event<'a>>, FrameError> {
        loop {
            let mut frame = match self.frame.take() {
                Some(frame) => frame,
                None => match self.header(input)? {
                    Some(frame) => frame,
                    None => return Ok(None),
                },
            };
            let (bytes, rest) = input.split_at(frame.left.min(input.len()));
            *input = rest;
            let run = Run { bytes, mask: frame.mask };
            frame.mask.rotate_left(bytes.len() % 4);
            frame.left -= bytes.len();
            let is_whole = frame.left == 0;
            if !is_whole {
                self.frame = Some(frame);
            } else if frame.is_last && matches!(frame.kind, Kind::Binary | Kind::Text) {
                self.message = None;
            }
            match frame.kind {
                Kind::Binary if bytes.is_empty() => {}
                Kind::Binary => return Ok(Some(Event::Bytes(run))),
                Kind::Text => {
                    run.append_to(&mut self.text);
                    if is_whole && frame.is_last {
                        let text = String::from_utf8(take(&mut self.text)).map_err(|_| FrameError::TextUtf8)?;
                        return Ok(Some(Event::Text(text)));
                    }
                }
                Kind::Ping | Kind::Pong | Kind::Close => {
                    run.append_to(&mut self.control);
                    if is_whole {
                        return control(frame.kind, take(&mut self.control)).map(Some);
                    }
                }
            }
            if !is_whole {
                return Ok(None);
            }
        }
    }

    /// Reads the next frame's header, once it is complete.
    fn header(&mut self, input: &mut &[u8]) -> Result<Option<Frame>, FrameError> {
        if self.have == 0
            && let Some(size) = header_size(input)
            && let Some((header, rest)) = input.split_at_checked(size)
        {
            *input = rest;
            return self.begin(header).map(Some);
        }
        loop {
            let wants = header_size(&self.header[..self.have]).unwrap_or(2);
            if self.have == wants {
                break;
            }
            let Some((&byte, rest)) = input.split_first() else { return Ok(None) };
            (self.header[self.have], *input) = (byte, rest);
            self.have += 1;
        }
        let (header, have) = (self.header, take(&mut self.have));
        self.begin(&header[..have]).map(Some)
    }

    /// Checks a complete header.
    fn begin(&mut self, header: &[u8]) -> Result<Frame, FrameError> {
        let (first, second) = (header[0], header[1]);
        let is_masked = second & bits::MASKED != 0;
        if first & bits::RESERVED != 0 {
            return Err(FrameError::ReservedBit);
        }
        if is_masked != self.masked {
            return Err(if is_masked { FrameError::Masked } else { FrameError::Unmasked });
        }
        let (length, mask) = header[2..].split_at(header.len() - 2 - if is_masked { 4 } else { 0 });
        let claims = match length {
            [] => u64::from(second & bits::LENGTH),
            _ => length.iter().fold(0, |claims, &byte| claims << 8 | u64::from(byte)),
        };
        let mask = mask.try_into().unwrap_or_default();
        let too_big = |max| FrameError::TooBig { size: claims, max };
        let left = usize::try_from(claims).ok().filter(|&claims| claims <= LEG_BINARY_BYTES).ok_or(too_big(LEG_BINARY_BYTES))?;
        let is_last = first & bits::FIN != 0;
        let kind = match first & bits::OPCODE {
            bits::MORE => self.message.ok_or(FrameError::UnexpectedContinuation)?,
            bits::TEXT => self.first_of(Kind::Text)?,
            bits::BINARY => self.first_of(Kind::Binary)?,
            bits::CLOSE => Kind::Close,
            bits::PING => Kind::Ping,
            bits::PONG => Kind::Pong,
            other => return Err(FrameError::ReservedOpcode(other)),
        };
        match kind {
            Kind::Binary => self.add(header.len(), left, LEG_BINARY_BYTES)?,
            Kind::Text => self.add(header.len(), left, self.text_max)?,
            Kind::Ping | Kind::Pong | Kind::Close if !is_last => return Err(FrameError::FragmentedControl),
            Kind::Ping | Kind::Pong | Kind::Close if left > CONTROL_PAYLOAD_BYTES => return Err(FrameError::ControlTooLong(left)),
            Kind::Ping | Kind::Pong | Kind::Close => {}
        }
        Ok(Frame { kind, is_last, left, mask })
    }

    fn first_of(&mut self, kind: Kind) -> Result<Kind, FrameError> {
        if self.message.is_some() {
            return Err(FrameError::InterleavedMessage);
        }
        (self.message, self.message_bytes, self.frame_bytes) = (Some(kind), 0, 0);
        Ok(kind)
    }

    /// Adds a frame to the size of its message.
    fn add(&mut self, header: usize, payload: usize, max: usize) -> Result<(), FrameError> {
        self.message_bytes += payload;
        self.frame_bytes += header + payload;
        if self.message_bytes > max {
            return Err(FrameError::TooBig { size: self.message_bytes as u64, max });
        }
        if self.frame_bytes > self.frames_max {
            return Err(FrameError::TooManyFragments(self.frames_max));
        }
        Ok(())
    }
}

/// The length of a header, from its first two bytes.
fn header_size(begins: &[u8]) -> Option<usize> {
    let second = begins.get(1)?;
    let length = match second & bits::LENGTH {
        bits::TWO => 2,
        bits::EIGHT => 8,
        _ => 0,
    };
    Some(2 + length + if second & bits::MASKED == 0 { 0 } else { 4 })
}

fn control(kind: Kind, payload: Vec<u8>) -> Result<Event<'static>, FrameError> {
    match kind {
        Kind::Ping => return Ok(Event::Ping(payload)),
        Kind::Pong => return Ok(Event::Pong(payload)),
        Kind::Close | Kind::Binary | Kind::Text => {}
    }
    let (code, words) = match payload[..] {
        [] => return Ok(Event::Close(None)),
        [_] => return Err(FrameError::TruncatedCode),
        [high, low, ref words @ ..] => (u16::from_be_bytes([high, low]), words),
    };
    let reason = std::str::from_utf8(words).map_err(|_| FrameError::CloseUtf8)?.to_owned();
    if !matches!(code, 1000..=1003 | 1007..=1013 | 3000..=4999) {
        return Err(FrameError::CloseCode(code));
    }
    Ok(Event::Close(Some(Close { code, reason })))
}

impl Run<'_> {
    /// Number of bytes.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Splits it at a position.
    pub(super) fn split_at(self, at: usize) -> (Self, Self) {
        let (bytes, rest) = self.bytes.split_at(at);
        let mut mask = self.mask;
        mask.rotate_left(at % 4);
        (Self { bytes, mask: self.mask }, Self { bytes: rest, mask })
    }

    /// Unmasks into `to`, which must have the same length.
    pub(super) fn copy_to(self, to: &mut [u8]) {
        if self.mask == [0; 4] {
            return to.copy_from_slice(self.bytes);
        }
        let [a, b, c, d] = self.mask;
        let wide = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
        let (words, rest) = self.bytes.as_chunks::<8>();
        let (to_words, to_rest) = to.as_chunks_mut::<8>();
        for (to, word) in to_words.iter_mut().zip(words) {
            *to = (u64::from_ne_bytes(*word) ^ wide).to_ne_bytes();
        }
        for ((to, byte), mask) in to_rest.iter_mut().zip(rest).zip(self.mask.iter().cycle()) {
            *to = byte ^ mask;
        }
    }

    /// Unmasks and appends to `to`.
    pub fn append_to(self, to: &mut Vec<u8>) {
        if self.mask == [0; 4] {
            return to.extend_from_slice(self.bytes);
        }
        let at = to.len();
        to.resize(at + self.len(), 0);
        self.copy_to(&mut to[at..]);
    }
}
