//! Copies between a leg and a local socket: bytes, half-closes and resets, in both directions.
//!
//! ```text
//!   local  ── read ─▶ messages ───▶ leg      EOF ─▶ end
//!   local  ◀─ write ─ messages ◀─── leg      end ─▶ shutdown; the leg is still read, for pings and for its Close
//! ```
//!
//! The sockets provide the backpressure: nothing is read that cannot be written, so each direction holds at most one message.
//!
//! `tokio::io::copy_bidirectional` does not fit: it would stop reading the leg at its `end` and never see its Close.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use moorline_proto::bounds::UNSOLICITED_PONG_INTERVAL;
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, Join};
use tokio::net::{TcpStream, UnixStream};
use tokio::select;
use tokio::time::{Instant, Sleep, sleep};

use crate::leg::{EndReason, Leg, LegEvent, SendError};

/// The local end of a bridge.
pub trait LocalSide: AsyncRead + AsyncWrite + Unpin + Send {
    /// Makes the next drop a reset, if this kind of connection has one, so that the reader sees that the stream was cut.
    fn reset_on_drop(&self) {}

    /// Makes the next drop an ordinary close again.
    fn end_on_drop(&self) {}
}

impl LocalSide for TcpStream {
    fn reset_on_drop(&self) {
        if let Err(error) = self.set_zero_linger() {
            tracing::debug!(%error, "cannot reset a local connection, closing it instead");
        }
    }

    fn end_on_drop(&self) {
        if let Err(error) = socket2::SockRef::from(self).set_linger(None) {
            tracing::debug!(%error, "cannot close a local connection, resetting it instead");
        }
    }
}

/// Unix sockets have no reset: they are closed.
impl LocalSide for UnixStream {}
impl LocalSide for DuplexStream {}
impl<R: AsyncRead + Unpin + Send, W: AsyncWrite + Unpin + Send> LocalSide for Join<R, W> {}

impl<L: LocalSide + ?Sized> LocalSide for Box<L> {
    fn reset_on_drop(&self) {
        (**self).reset_on_drop();
    }

    fn end_on_drop(&self) {
        (**self).end_on_drop();
    }
}

/// Any byte stream as a local side, without resets.
#[derive(Debug)]
pub struct Plain<S>(
    /// The stream.
    pub S,
);

impl<S: AsyncRead + AsyncWrite + Unpin + Send> LocalSide for Plain<S> {}

impl<S: AsyncRead + Unpin> AsyncRead for Plain<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut tokio::io::ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Plain<S> {
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

/// What a bridge carried, and how it ended.
#[derive(Debug)]
pub struct Bridged {
    /// Bytes copied from the local side to the leg.
    pub to_leg_bytes: u64,
    /// Bytes copied from the leg to the local side.
    pub from_leg_bytes: u64,
    /// How it ended.
    pub ended: BridgeEnd,
}

/// How a bridge ended. Except for `Finished` and `CutShort`, the local side was reset and the far side learns that the stream was cut.
#[derive(Debug, thiserror::Error)]
pub enum BridgeEnd {
    /// Both directions ended.
    #[error("finished")]
    Finished,
    /// The far side stopped reading before the local side ended: what the local side had not sent is lost.
    #[error("the far side finished before the local side did")]
    CutShort,
    /// The leg was closed with a code other than 1000, was lost, or the relay is dead.
    #[error(transparent)]
    Leg(EndReason),
    /// The local side was reset or failed.
    #[error("the local connection failed: {0}")]
    Local(#[source] io::Error),
    /// The `stop` future completed.
    #[error("stopped by this program")]
    Stopped,
}

impl BridgeEnd {
    /// One word, for logs.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Finished => "finished",
            Self::CutShort => "cut_short",
            Self::Leg(reason) => match reason {
                EndReason::Lost(_) => "lost",
                EndReason::Silent(_) => "silent",
                EndReason::Finished | EndReason::CutShort | EndReason::Closed { .. } | EndReason::ProtocolError { .. } => {
                    reason.close_reason().map_or("closed", moorline_proto::close::CloseReason::name)
                }
            },
            Self::Local(_) => "local_reset",
            Self::Stopped => "stopped",
        }
    }
}

/// Copies both ways until both directions have ended and the relay has closed the leg, or one side is reset, or `stop` completes.
///
/// The leg must be open. There is no timeout: the relay ends idle streams, and a Close 1000 comes behind everything that a slow far side
/// has not read yet. Pass [`std::future::pending`] if nothing stops the bridge.
///
/// # Cancel safety
/// Dropping the future drops both sides, and both see that the stream was cut. So they do if the process is killed.
pub async fn bridge<L: LocalSide>(mut local: L, mut leg: Leg, stop: impl Future<Output = ()>) -> Bridged {
    // Until the stream has finished: a process that is killed must not leave something that looks like an ordinary end.
    local.reset_on_drop();
    let mut copier = Copier::default();
    let ended = select! {
        biased; // a stream that has ended was not stopped
        ended = poll_fn(|cx| copier.poll(&mut local, &mut leg, cx)) => ended,
        () = stop => BridgeEnd::Stopped,
    };
    let is_whole = match &ended {
        BridgeEnd::Finished => true,
        BridgeEnd::CutShort => !leg.has_unsent_data(),
        BridgeEnd::Leg(_) | BridgeEnd::Local(_) | BridgeEnd::Stopped => false,
    };
    if is_whole {
        local.end_on_drop();
    }
    drop(local); // the local program does not wait for the relay
    match &ended {
        BridgeEnd::Leg(EndReason::Silent(_)) | BridgeEnd::Local(_) | BridgeEnd::Stopped => leg.reset().await,
        BridgeEnd::Finished | BridgeEnd::CutShort | BridgeEnd::Leg(_) => leg.complete_close().await,
    }
    Bridged { to_leg_bytes: copier.to_leg_bytes, from_leg_bytes: copier.from_leg_bytes, ended }
}

/// The direction from the local side to the leg.
enum ToLeg {
    Copying,
    /// The local side has ended: `end` is being sent.
    Ending,
    Ended,
    /// The leg takes no more bytes; the reason is still to be read from it.
    Cut,
}

/// The direction from the leg to the local side.
enum ToLocal {
    Copying,
    /// The far side has ended: the local side is being shut down.
    Ending,
    Ended,
}

struct Copier {
    to_leg: ToLeg,
    to_local: ToLocal,
    local_unflushed: bool,
    /// Runs while the local side takes nothing, because the leg is not read then.
    pong_timer: Option<Pin<Box<Sleep>>>,
    to_leg_bytes: u64,
    from_leg_bytes: u64,
}

impl Default for Copier {
    fn default() -> Self {
        Self {
            to_leg: ToLeg::Copying,
            to_local: ToLocal::Copying,
            local_unflushed: false,
            pong_timer: None,
            to_leg_bytes: 0,
            from_leg_bytes: 0,
        }
    }
}

impl Copier {
    fn poll<L: LocalSide>(&mut self, local: &mut L, leg: &mut Leg, cx: &mut Context<'_>) -> Poll<BridgeEnd> {
        let moved = self.poll_to_local(local, leg, cx).and_then(|()| self.poll_to_leg(local, leg, cx));
        match (leg.end_reason(), moved) {
            // The reason that the leg was cut explains what happened here.
            (Some(reason), _) if !reason.is_clean() => Poll::Ready(BridgeEnd::Leg(reason.clone())),
            (_, Err(error)) => Poll::Ready(BridgeEnd::Local(error)),
            (Some(EndReason::CutShort), Ok(())) if matches!(self.to_local, ToLocal::Ended) => Poll::Ready(BridgeEnd::CutShort),
            (Some(_), Ok(())) if matches!(self.to_local, ToLocal::Ended) => Poll::Ready(BridgeEnd::Finished),
            (end, Ok(())) => {
                // The local side is slow, and the relay does not wait for it.
                if end.is_some() {
                    leg.try_flush(cx);
                }
                Poll::Pending
            }
        }
    }

    /// # Errors
    /// The local side's errors. `poll_to_local` reads the leg's.
    fn poll_to_leg<L: LocalSide>(&mut self, local: &mut L, leg: &mut Leg, cx: &mut Context<'_>) -> io::Result<()> {
        loop {
            match self.to_leg {
                ToLeg::Copying => {
                    match leg.poll_writable(cx) {
                        Poll::Ready(Ok(())) => {}
                        Poll::Ready(Err(_)) => {
                            self.to_leg = ToLeg::Cut;
                            return Ok(());
                        }
                        Poll::Pending => return Ok(()),
                    }
                    match leg.poll_send_from(local, cx) {
                        Poll::Ready(Ok(0)) => self.to_leg = ToLeg::Ending,
                        Poll::Ready(Ok(count)) => self.to_leg_bytes += count as u64,
                        Poll::Ready(Err(SendError::Connection)) => self.to_leg = ToLeg::Cut,
                        Poll::Ready(Err(SendError::Source(error))) => return Err(error),
                        Poll::Pending => {
                            if let Poll::Ready(Err(_)) = leg.poll_flushed(cx) {
                                self.to_leg = ToLeg::Cut;
                            }
                            return Ok(());
                        }
                    }
                }
                ToLeg::Ending => match Pin::new(&mut *leg).poll_shutdown(cx) {
                    Poll::Ready(Ok(())) => self.to_leg = ToLeg::Ended,
                    Poll::Ready(Err(_)) => self.to_leg = ToLeg::Cut,
                    Poll::Pending => return Ok(()),
                },
                ToLeg::Ended | ToLeg::Cut => return Ok(()),
            }
        }
    }

    /// # Errors
    /// The local side's errors.
    fn poll_to_local<L: LocalSide>(&mut self, local: &mut L, leg: &mut Leg, cx: &mut Context<'_>) -> io::Result<()> {
        loop {
            match self.to_local {
                ToLocal::Copying if !leg.incoming.is_empty() => match Pin::new(&mut *local).poll_write(cx, leg.incoming.as_slice()) {
                    Poll::Ready(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
                    Poll::Ready(Ok(count)) => {
                        leg.incoming.advance(count);
                        self.from_leg_bytes += count as u64;
                        self.local_unflushed = true;
                        self.pong_timer = None;
                    }
                    Poll::Ready(Err(error)) => return Err(error),
                    Poll::Pending => {
                        self.poll_pong(leg, cx);
                        return Ok(());
                    }
                },
                ToLocal::Copying => match leg.poll_event(cx) {
                    Poll::Ready(LegEvent::Bytes) => {}
                    Poll::Ready(LegEvent::End | LegEvent::Over) => self.to_local = ToLocal::Ending,
                    Poll::Pending => return self.poll_local_flush(local, cx),
                },
                ToLocal::Ending if leg.end_reason().is_some_and(|end| !end.is_clean()) => return Ok(()),
                ToLocal::Ending => match Pin::new(&mut *local).poll_shutdown(cx) {
                    Poll::Ready(Ok(())) => self.to_local = ToLocal::Ended,
                    Poll::Ready(Err(error)) => return Err(error),
                    Poll::Pending => {
                        drop(leg.poll_drain(cx));
                        return Ok(());
                    }
                },
                ToLocal::Ended => {
                    drop(leg.poll_drain(cx));
                    return Ok(());
                }
            }
        }
    }

    fn poll_local_flush<L: LocalSide>(&mut self, local: &mut L, cx: &mut Context<'_>) -> io::Result<()> {
        if self.local_unflushed
            && let Poll::Ready(flushed) = Pin::new(local).poll_flush(cx)
        {
            flushed?;
            self.local_unflushed = false;
        }
        Ok(())
    }

    /// While the leg is not read its pings are not answered: an unsolicited pong shows that this end is alive.
    fn poll_pong(&mut self, leg: &mut Leg, cx: &mut Context<'_>) {
        let timer = self.pong_timer.get_or_insert_with(|| Box::pin(sleep(UNSOLICITED_PONG_INTERVAL)));
        while timer.as_mut().poll(cx).is_ready() {
            timer.as_mut().reset(Instant::now() + UNSOLICITED_PONG_INTERVAL);
            leg.poll_pong(cx);
        }
        drop(leg.poll_flushed(cx)); // an error is seen when the leg is read again
    }
}
