//! A local socket and a leg, joined until both are done. Half-close and resets pass in both directions.
//!
//! Goes on reading the leg when the local side is silent or has ended, so that pings are answered and a Close is seen; stops reading it
//! only while the local side takes no bytes, and says so by a pong that nobody asked for.

use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use moorline_proto::bounds::{LEG_BINARY_BYTES, UNASKED_PONG_EVERY};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{Instant, Sleep, sleep_until};
use tokio_tungstenite::tungstenite::Message;

use crate::leg::{Incoming, Leg, LegEnd};

/// A connection on this machine.
pub trait Local: AsyncRead + AsyncWrite + Unpin + Send {
    /// Drops it so that whoever has its other end sees that it was cut, where such a connection can show that.
    fn reset(self);
}

impl Local for TcpStream {
    fn reset(self) {
        if let Err(error) = self.set_zero_linger() {
            tracing::debug!(%error, "a local connection could not be reset and is closed instead");
        }
    }
}

impl Local for UnixStream {
    /// A Unix socket can only be closed.
    fn reset(self) {
        tracing::debug!("a Unix socket cannot be reset and is closed instead");
    }
}

/// Any other pair of streams, which can only be dropped.
#[derive(Debug)]
pub struct Other<S>(pub S);

impl<S: AsyncRead + Unpin> AsyncRead for Other<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut tokio::io::ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Other<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Local for Other<S> {
    fn reset(self) {}
}

/// What a bridge carried, and how it ended.
#[derive(Debug)]
pub struct Bridged {
    /// Bytes from the local side to the leg.
    pub to_leg: u64,
    /// Bytes from the leg to the local side.
    pub from_leg: u64,
    /// How it ended.
    pub ended: Ended,
}

/// How a bridge ended.
#[derive(Debug, thiserror::Error)]
pub enum Ended {
    /// By the leg: finished, or whatever cut it.
    #[error(transparent)]
    Leg(LegEnd),
    /// The local side was reset, or takes no more bytes.
    #[error("the local connection was reset")]
    Local(#[source] io::Error),
}

impl Ended {
    /// Whether everything was delivered both ways.
    pub fn is_finished(&self) -> bool {
        matches!(self, Self::Leg(LegEnd::Finished))
    }
}

/// Carries bytes both ways until both sides are done.
///
/// `ping` is what `opened` said: a relay that is read and silent for two and a half times as long is dead. When the leg is reset, so is the
/// local side; when the local side is reset, so is the leg.
///
/// # Cancel safety
/// Dropping the future drops both connections: the far side sees a reset, the local side an end.
pub async fn bridge<L: Local>(local: L, leg: Leg, ping: Duration) -> Bridged {
    let mut run = Run::new(local, leg, ping);
    let mut timer = pin!(sleep_until(run.next_look()));
    let ended = poll_fn(|cx| run.poll(timer.as_mut(), cx)).await;
    let Run { local, mut leg, waiting, to_leg, from_leg, .. } = run;
    match &ended {
        Ended::Leg(LegEnd::Finished) => {
            drop(local);
            leg.say_goodbye().await;
        }
        Ended::Leg(LegEnd::CutShort) => {
            // Bytes that the kernel still holds unread make it a reset by themselves.
            if waiting.is_some() {
                local.reset()
            } else {
                drop(local)
            }
            leg.say_goodbye().await;
        }
        Ended::Leg(LegEnd::Closed { .. }) => {
            local.reset();
            leg.say_goodbye().await;
        }
        Ended::Leg(LegEnd::Lost | LegEnd::Silent) => local.reset(),
        Ended::Leg(LegEnd::Broke(how)) => {
            local.reset();
            leg.close(moorline_proto::close::CloseReason::Protocol, how).await;
        }
        Ended::Local(_) => {
            drop(local);
            leg.reset().await;
        }
    }
    Bridged { to_leg, from_leg, ended }
}

struct Run<L> {
    local: L,
    leg: Leg,
    patience: Duration,
    /// Read from the local side, to be taken by the leg.
    waiting: Option<Message>,
    buffer: BytesMut,
    local_ended: bool,
    unflushed_leg: bool,
    /// Read from the leg, to be taken by the local side.
    inbox: Bytes,
    local_shut: bool,
    unflushed_local: bool,
    last_frame: Instant,
    last_pong: Instant,
    to_leg: u64,
    from_leg: u64,
}

impl<L: Local> Run<L> {
    fn new(local: L, leg: Leg, ping: Duration) -> Self {
        let now = Instant::now();
        Self {
            local,
            leg,
            patience: ping * 5 / 2,
            waiting: None,
            buffer: BytesMut::new(),
            local_ended: false,
            unflushed_leg: false,
            inbox: Bytes::new(),
            local_shut: false,
            unflushed_local: false,
            last_frame: now,
            last_pong: now,
            to_leg: 0,
            from_leg: 0,
        }
    }

    fn poll(&mut self, mut timer: Pin<&mut Sleep>, cx: &mut Context<'_>) -> Poll<Ended> {
        // Down first: a leg that has ended needs no more bytes.
        if let Some(ended) = self.down(cx) {
            return Poll::Ready(ended);
        }
        if let Some(ended) = self.up(cx) {
            return Poll::Ready(ended);
        }
        while timer.as_mut().poll(cx).is_ready() {
            if let Some(ended) = self.look(cx) {
                return Poll::Ready(ended);
            }
            timer.as_mut().reset(self.next_look());
        }
        Poll::Pending
    }

    fn is_reading_leg(&self) -> bool {
        self.inbox.is_empty()
    }

    fn next_look(&self) -> Instant {
        let pong = self.last_pong + UNASKED_PONG_EVERY.min(self.patience);
        if self.is_reading_leg() { pong.min(self.last_frame + self.patience) } else { pong }
    }

    fn look(&mut self, cx: &mut Context<'_>) -> Option<Ended> {
        let now = Instant::now();
        self.last_pong = now;
        if self.is_reading_leg() {
            return (now.duration_since(self.last_frame) >= self.patience).then_some(Ended::Leg(LegEnd::Silent));
        }
        self.last_frame = now;
        // A leg that takes nothing now is full of bytes, which are signs of life too.
        if self.leg.poll_unasked_pong(cx).is_pending() {
            self.unflushed_leg = true;
        }
        None
    }

    fn up(&mut self, cx: &mut Context<'_>) -> Option<Ended> {
        loop {
            match self.leg.poll_send(&mut self.waiting, cx) {
                Poll::Ready(Ok(())) => {}
                // How the leg ended is what it says itself, where it still does.
                Poll::Ready(Err(end)) => return Some(Ended::Leg(self.leg.end_reason().cloned().unwrap_or(end))),
                Poll::Pending => return None,
            }
            if self.local_ended {
                return self.flush_leg(cx);
            }
            self.buffer.reserve(LEG_BINARY_BYTES);
            let mut room = (&mut self.buffer).limit(LEG_BINARY_BYTES);
            let read = pin!(self.local.read_buf(&mut room)).poll(cx);
            match read {
                Poll::Ready(Ok(0)) => {
                    self.local_ended = true;
                    self.leg.said_end = true;
                    self.waiting = Some(Leg::end_message());
                    self.buffer = BytesMut::new();
                }
                Poll::Ready(Ok(count)) => {
                    self.to_leg += count as u64;
                    self.waiting = Some(Message::Binary(self.buffer.split().freeze()));
                }
                Poll::Ready(Err(error)) => return Some(Ended::Local(error)),
                Poll::Pending => return self.flush_leg(cx),
            }
            self.unflushed_leg = true;
        }
    }

    fn flush_leg(&mut self, cx: &mut Context<'_>) -> Option<Ended> {
        if self.unflushed_leg {
            match self.leg.poll_flushed(cx) {
                Poll::Ready(Ok(())) => self.unflushed_leg = false,
                Poll::Ready(Err(end)) => return Some(Ended::Leg(self.leg.end_reason().cloned().unwrap_or(end))),
                Poll::Pending => {}
            }
        }
        None
    }

    fn down(&mut self, cx: &mut Context<'_>) -> Option<Ended> {
        loop {
            while !self.inbox.is_empty() {
                match Pin::new(&mut self.local).poll_write(cx, &self.inbox) {
                    Poll::Ready(Ok(0)) => return Some(Ended::Local(io::ErrorKind::WriteZero.into())),
                    Poll::Ready(Ok(count)) => {
                        self.inbox.advance(count);
                        self.from_leg += count as u64;
                        self.unflushed_local = true;
                    }
                    Poll::Ready(Err(error)) => return Some(Ended::Local(error)),
                    Poll::Pending => return None,
                }
            }
            if self.leg.got_end && !self.local_shut {
                match Pin::new(&mut self.local).poll_shutdown(cx) {
                    // A local side that is gone already has heard enough.
                    Poll::Ready(Ok(()) | Err(_)) => self.local_shut = true,
                    Poll::Pending => return None,
                }
            }
            match self.leg.poll_incoming(cx) {
                Poll::Ready(Ok(incoming)) => {
                    self.last_frame = Instant::now();
                    if let Incoming::Bytes(bytes) = incoming {
                        self.inbox = bytes;
                    }
                }
                Poll::Ready(Err(())) => return Some(Ended::Leg(self.leg.end_reason().cloned().unwrap_or(LegEnd::Lost))),
                Poll::Pending => return self.flush_local(cx),
            }
        }
    }

    fn flush_local(&mut self, cx: &mut Context<'_>) -> Option<Ended> {
        if self.unflushed_local {
            match Pin::new(&mut self.local).poll_flush(cx) {
                Poll::Ready(Ok(())) => self.unflushed_local = false,
                Poll::Ready(Err(error)) => return Some(Ended::Local(error)),
                Poll::Pending => {}
            }
        }
        None
    }
}
