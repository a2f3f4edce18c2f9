//! The WebSocket of a control channel: reads whole messages, writes text. It owns no buffer while nothing is in flight: most devices are idle
//! most of the day.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::task::{Context, Poll, ready};

use moorline_proto::bounds::{CLOSE_TIMEOUT, CONTROL_MESSAGE_BYTES, LEG_MESSAGE_FRAME_BYTES};
use moorline_proto::close::CloseReason;
use moorline_proto::frame::{Batch, Close, Decoder, Event, FrameError};
use tokio::time::timeout;

use crate::limits::{CHANNEL_PONG_BYTES, CHANNEL_READ_BYTES, UNAUTHENTICATED_MESSAGE_FRAME_BYTES};
use crate::net::connection::{ReadSize, Socket};
use crate::splice::scratch::{self, Scratch};
use crate::splice::write_buffer::WriteBuffer;

/// A control channel right behind its 101.
#[derive(Debug)]
pub struct Channel {
    socket: Socket,
    decoder: Decoder,
    /// Decoded, and not taken yet.
    received: VecDeque<Received>,
    out: WriteBuffer,
    /// Why nothing more can be read.
    end: Option<ChannelEnd>,
}

/// What a device sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Received {
    /// A text message.
    Text(String),
    /// A part of a binary message, which has no meaning here.
    Binary,
    /// A ping, which is answered.
    Ping,
    /// A pong.
    Pong,
    /// A Close. Nothing follows.
    Close(Option<Close>),
}

/// Why nothing more can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChannelEnd {
    /// The connection ended.
    #[error("the connection ended")]
    Lost,
    /// The device broke WebSocket, or sent a message that is too large.
    #[error(transparent)]
    Broken(#[from] FrameError),
}

/// The code with which a channel is closed whose device broke WebSocket.
pub(super) fn close_reason(error: FrameError) -> CloseReason {
    // On a control channel it is 4400 whatever it is, but for the answer that RFC 6455 (7.4.2) leaves to a code that none may send.
    if let FrameError::CloseCode(_) = error { CloseReason::Framing } else { CloseReason::Protocol }
}

impl Channel {
    /// A channel of a device that has not authenticated.
    pub fn new(socket: Socket) -> Self {
        let mut decoder = Decoder::from_side();
        decoder.set_text_max(CONTROL_MESSAGE_BYTES);
        decoder.set_frames_max(UNAUTHENTICATED_MESSAGE_FRAME_BYTES);
        Self { socket, decoder, received: VecDeque::new(), out: WriteBuffer::default(), end: None }
    }

    /// The device has authenticated: its messages may have more frames.
    pub fn authenticated(&mut self) {
        self.decoder.set_frames_max(LEG_MESSAGE_FRAME_BYTES);
    }

    /// What the device sends next. Writes what is queued meanwhile; pings are answered by the next call.
    ///
    /// # Errors
    /// [`ChannelEnd`], at every later call too.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn receive(&mut self) -> Result<Received, ChannelEnd> {
        poll_fn(|cx| self.poll_receive(cx)).await
    }

    /// Queues messages, which [`Channel::receive`] writes, in one write if the device takes it.
    pub fn push(&mut self, encode: impl FnOnce(&mut Batch)) {
        let mut batch = Batch::new();
        encode(&mut batch);
        self.out.push(batch.finish());
    }

    /// Whether everything is written.
    pub fn is_flushed(&self) -> bool {
        self.out.is_flushed()
    }

    /// Sends messages in one write.
    ///
    /// # Errors
    /// The connection's own.
    ///
    /// # Cancel safety
    /// What is not written yet goes with the next write.
    pub async fn send(&mut self, encode: impl FnOnce(&mut Batch)) -> io::Result<()> {
        self.push(encode);
        poll_fn(|cx| self.out.poll_flush(&mut self.socket, cx)).await
    }

    /// As [`Channel::receive`].
    pub fn poll_receive(&mut self, cx: &mut Context<'_>) -> Poll<Result<Received, ChannelEnd>> {
        loop {
            if let Poll::Ready(Err(_)) = self.out.poll_flush(&mut self.socket, cx) {
                self.end.get_or_insert(ChannelEnd::Lost);
            }
            if let Some(received) = self.received.pop_front() {
                if self.received.is_empty() {
                    self.received = VecDeque::new();
                }
                return Poll::Ready(Ok(received));
            }
            if let Some(end) = self.end {
                return Poll::Ready(Err(end));
            }
            ready!(self.poll_read(cx));
        }
    }

    /// Reads once, and decodes what came.
    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Self { socket, decoder, received, out, end } = self;
        let mut decode = |mut bytes: &[u8]| {
            while end.is_none() {
                match decoder.next(&mut bytes) {
                    Ok(Some(event)) => *end = on_event(event, received, out),
                    Ok(None) => return,
                    Err(error) => *end = Some(error.into()),
                }
            }
        };
        let read = scratch::with(|Scratch { input, .. }| {
            socket.poll_read_pieces(ReadSize::Buffer, &mut input[..CHANNEL_READ_BYTES], cx, &mut decode)
        });
        if !matches!(ready!(read), Ok(1..)) {
            self.end.get_or_insert(ChannelEnd::Lost);
        }
        Poll::Ready(())
    }

    /// Answers the device's Close, within five seconds, and closes the connection.
    pub async fn answer_close(mut self, close: Option<&Close>) {
        let answered = self.send(|batch| batch.close(close.map(|close| (close.code, close.reason.as_str()))));
        // A peer that does not read the answer does without it.
        timeout(CLOSE_TIMEOUT, answered).await.ok();
        self.socket.close(CLOSE_TIMEOUT).await;
    }

    /// Closes the channel with a code and a detail. Without an answer within five seconds the connection is reset.
    pub async fn close(self, reason: CloseReason, detail: &str) {
        self.close_with((reason.code(), &reason.text(detail)), |_| {}).await;
    }

    /// As [`Channel::close`], with the text of the Close as it is. What the device had sent by then is still passed on.
    pub async fn close_with(mut self, (code, text): (u16, &str), mut on_received: impl FnMut(Received)) {
        let answered = async {
            self.send(|batch| batch.close(Some((code, text)))).await?;
            while let Ok(received) = self.receive().await {
                if matches!(received, Received::Close(_)) {
                    break;
                }
                on_received(received);
            }
            Ok::<_, io::Error>(())
        };
        match timeout(CLOSE_TIMEOUT, answered).await {
            Ok(_) => self.socket.close(CLOSE_TIMEOUT).await,
            Err(_) => self.socket.reset(),
        }
    }

    /// Resets the connection.
    pub fn reset(self) {
        self.socket.reset();
    }
}

/// Takes one event. Returns why nothing more can be read behind it.
fn on_event(event: Event<'_>, received: &mut VecDeque<Received>, out: &mut WriteBuffer) -> Option<ChannelEnd> {
    received.push_back(match event {
        Event::Text(text) => Received::Text(text),
        Event::Bytes(_) => Received::Binary,
        Event::Ping(payload) => {
            // A peer that does not read its pongs gets no more of them.
            if out.len() < CHANNEL_PONG_BYTES {
                let mut batch = Batch::new();
                batch.pong(&payload);
                out.push(batch.finish());
            }
            Received::Ping
        }
        Event::Pong(_) => Received::Pong,
        Event::Close(close) => {
            received.push_back(Received::Close(close));
            return Some(ChannelEnd::Lost);
        }
    });
    None
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    use super::*;
    use crate::net::connection::Carrier;

    const MASK: [u8; 4] = [0; 4];

    fn channel() -> (Channel, DuplexStream) {
        let (local, peer) = duplex(1 << 20);
        (Channel::new(Socket::new(Carrier::Memory(local))), peer)
    }

    fn masked(head: [u8; 2], payload: &[u8]) -> Vec<u8> {
        [&head[..], &MASK, payload].concat()
    }

    async fn end_after(frames: &[u8]) -> ChannelEnd {
        let (mut channel, mut device) = channel();
        device.write_all(frames).await.unwrap();
        drop(device);
        loop {
            if let Err(end) = channel.receive().await {
                return end;
            }
        }
    }

    #[tokio::test]
    async fn framing_errors_are_those_of_legs() {
        for (frames, error) in [
            (b"\x81\x00".to_vec(), FrameError::Unmasked),
            (masked([0xc1, 0x80], b""), FrameError::ReservedBit),
            (masked([0x8b, 0x80], b""), FrameError::ReservedOpcode(11)),
            (masked([0x80, 0x80], b""), FrameError::UnexpectedContinuation),
            ([masked([0x01, 0x80], b""), masked([0x81, 0x80], b"")].concat(), FrameError::InterleavedMessage),
            (masked([0x09, 0x80], b""), FrameError::FragmentedControl),
            (masked([0x88, 0x81], b"x"), FrameError::TruncatedCode),
            (masked([0x81, 0x81], b"\xff"), FrameError::TextUtf8),
            ([&[0x81, 0xff][..], &1_000_000_u64.to_be_bytes(), &MASK].concat(), FrameError::TooBig { size: 1_000_000, max: 65_536 }),
        ] {
            assert_eq!(end_after(&frames).await, ChannelEnd::Broken(error), "{frames:?}");
        }
        assert_eq!(end_after(b"\x81").await, ChannelEnd::Lost, "a lost connection is no fault of the protocol");
    }

    #[tokio::test]
    async fn an_endless_message_of_empty_frames_is_too_long_sooner_before_welcome() {
        for (is_authenticated, max) in [(false, UNAUTHENTICATED_MESSAGE_FRAME_BYTES), (true, LEG_MESSAGE_FRAME_BYTES)] {
            let (mut channel, mut device) = channel();
            if is_authenticated {
                channel.authenticated();
            }
            let frames = [masked([0x01, 0x80], b""), masked([0x00, 0x80], b"").repeat(max / 6 + 1)].concat();
            let (_, end) = tokio::join!(device.write_all(&frames), channel.receive());
            assert_eq!(end, Err(ChannelEnd::Broken(FrameError::TooManyFragments(max))));
        }
    }

    #[tokio::test]
    async fn messages_come_whole_and_in_order_and_nothing_is_held_behind_them() {
        let (mut channel, mut device) = channel();
        let frames = [masked([0x01, 0x81], b"a"), masked([0x89, 0x81], b"p"), masked([0x80, 0x81], b"b"), masked([0x82, 0x81], b"x")];
        device.write_all(&frames.concat()).await.unwrap();
        for expected in [Received::Ping, Received::Text("ab".to_owned()), Received::Binary] {
            assert_eq!(channel.receive().await, Ok(expected));
        }
        channel.send(|batch| batch.text("hello")).await.unwrap();
        let mut sent = [0; 10];
        device.read_exact(&mut sent).await.unwrap();
        assert_eq!(&sent, b"\x8a\x01p\x81\x05hello");
        assert!(!channel.decoder.owns_memory() && !channel.out.owns_memory() && channel.received.capacity() == 0);
    }

    #[tokio::test]
    async fn pongs_that_are_not_read_are_bounded() {
        let (local, mut device) = duplex(64 << 10);
        let mut channel = Channel::new(Socket::new(Carrier::Memory(local)));
        let ping = masked([0x89, 0xfd], &[7; 125]);
        for _ in 0..2_000 {
            device.write_all(&ping).await.unwrap();
            assert_eq!(channel.receive().await, Ok(Received::Ping));
        }
        assert!(channel.out.len() < CHANNEL_PONG_BYTES + 200, "{} bytes are held", channel.out.len());
    }
}
