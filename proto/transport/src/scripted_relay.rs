//! For tests: the relay's end of a leg over a pipe, driven frame by frame, and local sides that can be reset.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use moorline_proto::control::{Attempt, CallerInfo};
use moorline_proto::leg::{DELIVERED_TEXT, END_TEXT, LegText, Opened, Peer};
use moorline_proto::problem::Timeline;
use moorline_proto::reuse::LegOffer;
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf, duplex};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};

use crate::bridge::LocalSide;
use crate::connection::Connection;
use crate::leg::{IdleLeg, Leg};

/// The ping interval that the scripted relay announces.
pub(crate) const PING: Duration = Duration::from_secs(25);

/// The relay keeps a leg for one minute.
pub(crate) const IDLE_TEXT: &str = r#"{"type":"idle","keep_ms":60000,"ping_ms":25000}"#;

/// What the relay received on a leg.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Received {
    Bytes(Bytes),
    Text(String),
    Pong(Bytes),
    Close(u16),
    Gone,
}

#[derive(Debug)]
pub(crate) struct Relay<S = DuplexStream>(pub(crate) WebSocketStream<S>);

/// A leg before `opened`, over a pipe of this capacity.
pub(crate) async fn joined(pipe: usize) -> (Leg, Relay) {
    let (connection, relay) = connected(pipe).await;
    (Leg::new(connection, Bytes::new()), relay)
}

/// A leg that is used again, before its first message.
pub(crate) async fn reusable(pipe: usize) -> (Leg, Relay) {
    let (connection, relay) = connected(pipe).await;
    (Leg::reusable(connection, Bytes::new()), relay)
}

/// A leg that was opened idle.
pub(crate) async fn idle(pipe: usize) -> (IdleLeg, Relay) {
    let (leg, mut relay) = reusable(pipe).await;
    let (idle, ()) = tokio::join!(leg.idle(), relay.idle());
    (idle.unwrap(), relay)
}

async fn connected(pipe: usize) -> (Connection, Relay) {
    let (local, remote) = duplex(pipe);
    let config = Some(WebSocketConfig::default().read_buffer_size(4096).write_buffer_size(0));
    (Connection::over(local), Relay(WebSocketStream::from_raw_socket(remote, Role::Server, config).await))
}

/// An open leg.
pub(crate) async fn open(pipe: usize) -> (Leg, Relay) {
    let (mut leg, mut relay) = joined(pipe).await;
    let (opened, ()) = tokio::join!(leg.opened(), relay.open());
    opened.unwrap();
    (leg, relay)
}

pub(crate) fn opened() -> Opened {
    let caller = CallerInfo {
        issuer: "relay".parse().unwrap(),
        subject: "alice".parse().unwrap(),
        groups: Vec::new(),
        address: [192, 0, 2, 1].into(),
        reason: None,
    };
    Opened {
        stream: "00112233445566778899aabbccddeeff".parse().unwrap(),
        service: "ssh".parse().unwrap(),
        peer: Peer::Caller(caller),
        features: Vec::new(),
        data: None,
        ping_ms: 25_000,
        timeline: Timeline::default(),
    }
}

/// An offer on a leg, of the scripted stream.
pub(crate) fn offer() -> LegOffer {
    let Opened { stream, service, peer, features, ping_ms, .. } = opened();
    let Peer::Caller(caller) = peer else { panic!("a device leg") };
    LegOffer { stream, attempt: Attempt::FIRST, service, expires_in_ms: 60_000, caller, data: None, features, ping_ms }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Relay<S> {
    pub(crate) async fn open(&mut self) {
        self.open_with(opened()).await;
    }

    pub(crate) async fn open_with(&mut self, opened: Opened) {
        self.text(LegText::Opened(Box::new(opened)).encode()).await;
    }

    pub(crate) async fn send(&mut self, message: Message) {
        self.0.send(message).await.unwrap();
    }

    pub(crate) async fn text(&mut self, text: impl Into<String>) {
        self.send(Message::text(text.into())).await;
    }

    pub(crate) async fn send_bytes(&mut self, bytes: &[u8]) {
        self.send(Message::binary(bytes.to_vec())).await;
    }

    pub(crate) async fn end(&mut self) {
        self.text(END_TEXT).await;
    }

    /// Passes on the far side's `delivered`, and closes with 1000 behind it.
    pub(crate) async fn finish(&mut self) {
        self.text(DELIVERED_TEXT).await;
        self.close(1000).await;
    }

    /// The leg belongs to no stream, and is kept for one minute.
    pub(crate) async fn idle(&mut self) {
        self.text(IDLE_TEXT).await;
    }

    pub(crate) async fn close(&mut self, code: u16) {
        self.send(Message::Close(Some(CloseFrame { code: code.into(), reason: "".into() }))).await;
    }

    /// The next message; pings are skipped.
    pub(crate) async fn next(&mut self) -> Received {
        loop {
            return match self.0.next().await {
                Some(Ok(Message::Binary(bytes))) => Received::Bytes(bytes),
                Some(Ok(Message::Text(text))) => Received::Text(text.to_string()),
                Some(Ok(Message::Pong(payload))) => Received::Pong(payload),
                Some(Ok(Message::Close(frame))) => Received::Close(frame.map_or(1005, |frame| frame.code.into())),
                Some(Ok(_)) => continue,
                Some(Err(_)) | None => Received::Gone,
            };
        }
    }

    /// Receives exactly this many bytes.
    pub(crate) async fn bytes(&mut self, count: usize) -> Vec<u8> {
        let mut all = Vec::new();
        while all.len() < count {
            match self.next().await {
                Received::Bytes(bytes) => all.extend_from_slice(&bytes),
                Received::Text(text) if text == DELIVERED_TEXT => {}
                other => panic!("{other:?} after {} of {count} bytes", all.len()),
            }
        }
        assert_eq!(all.len(), count);
        all
    }

    pub(crate) async fn expect_end(&mut self) {
        assert_eq!(self.next().await, Received::Text(END_TEXT.to_owned()));
    }

    /// The code that the leg is closed with. Everything before it is discarded.
    pub(crate) async fn closed(&mut self) -> Option<u16> {
        loop {
            match self.next().await {
                Received::Close(code) => return Some(code),
                Received::Gone => return None,
                Received::Bytes(_) | Received::Text(_) | Received::Pong(_) => {}
            }
        }
    }
}

/// Bytes that depend on their position.
pub(crate) fn pattern(count: usize) -> Vec<u8> {
    (0..count).map(|at| u8::try_from(at % 251).unwrap()).collect()
}

/// A local side that records whether it was reset.
#[derive(Debug)]
pub(crate) struct Local {
    pub(crate) stream: DuplexStream,
    pub(crate) was_reset: Arc<AtomicBool>,
    pub(crate) broken: Arc<AtomicBool>,
}

/// The test's end of a local side.
#[derive(Debug)]
pub(crate) struct Program {
    pub(crate) stream: DuplexStream,
    was_reset: Arc<AtomicBool>,
    broken: Arc<AtomicBool>,
}

/// A local side and the program behind it.
pub(crate) fn local_side(pipe: usize) -> (Local, Program) {
    let (bridge_end, program_end) = duplex(pipe);
    let (was_reset, broken) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let local = Local { stream: bridge_end, was_reset: Arc::clone(&was_reset), broken: Arc::clone(&broken) };
    (local, Program { stream: program_end, was_reset, broken })
}

impl Program {
    pub(crate) fn was_reset(&self) -> bool {
        self.was_reset.load(Ordering::SeqCst)
    }

    /// Resets the connection, as when the program is killed.
    pub(crate) fn reset(self) {
        self.broken.store(true, Ordering::SeqCst);
    }
}

impl LocalSide for Local {
    fn reset_on_drop(&self) {
        self.was_reset.store(true, Ordering::SeqCst);
    }

    fn end_on_drop(&self) {
        self.was_reset.store(false, Ordering::SeqCst);
    }
}

impl AsyncRead for Local {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_read(cx, buf);
        if self.broken.load(Ordering::SeqCst) { Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())) } else { polled }
    }
}

impl AsyncWrite for Local {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
