//! Copies between a leg and a local socket: bytes, half-closes and resets, in both directions.
//!
//! ```text
//!   local  ── read ─▶ messages ───▶ leg      EOF ─▶ end
//!   local  ◀─ write ─ messages ◀─── leg      end ─▶ shutdown, delivered; the leg is still read, for pings and for its Close
//! ```
//!
//! The sockets provide the backpressure: nothing is read that cannot be written, so each direction holds at most what one read brought.
//!
//! A local program that stopped reading may have answered first: after a failed write, what it still says is passed on before the leg is
//! reset. If it had ended its direction in order, so is the far side's, and the reset waits until the far side has all of it.
//!
//! `tokio::io::copy_bidirectional` does not fit: it would stop reading the leg at its `end` and never see its Close.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use moorline_proto::bounds::{ACKNOWLEDGED_TIMEOUT, LAST_WORDS_TIMEOUT, UNSOLICITED_PONG_INTERVAL};
use tokio::io::AsyncWrite;
use tokio::select;
use tokio::time::{Instant, Sleep, sleep};

use crate::leg::{EndReason, IdleLeg, Leg, LegEvent, SendError};
pub use crate::local_side::{Failure, LocalSide, Plain};

/// The first pause before the kernel is asked again whether the local program's has everything. It doubles with each further one; there is
/// no event for it.
const FIRST_PROBE_PAUSE: Duration = Duration::from_millis(1);
/// The longest pause.
const LONGEST_PROBE_PAUSE: Duration = Duration::from_millis(50);

/// What a bridge carried, and how it ended.
#[derive(Debug)]
pub struct Bridged {
    /// Bytes copied from the local side to the leg.
    pub to_leg_bytes: u64,
    /// Bytes copied from the leg to the local side.
    pub from_leg_bytes: u64,
    /// How it ended.
    pub ended: BridgeEnd,
    /// The leg, if the stream finished and the relay keeps the leg for another one.
    pub idle: Option<IdleLeg>,
}

/// How a bridge ended. Except for `Finished` and `CutShort`, the local side was reset and the far side learns that the stream was cut.
#[derive(Debug, thiserror::Error)]
pub enum BridgeEnd {
    /// Both directions ended, and both sides have everything.
    #[error("finished")]
    Finished,
    /// The far side finished without having received everything that the local side sent.
    #[error("the far side finished without having received everything")]
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

/// Copies both ways until both directions have ended and the relay has closed the leg or says that it is idle, or one side is reset, or
/// `stop` completes.
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
    } else if matches!(ended, BridgeEnd::Leg(_)) {
        // What came before the cut is the local program's, as with TCP; a reset drops what its kernel does not have yet.
        let mut confirmation = Confirmation::new();
        poll_fn(|cx| confirmation.poll(&mut local, cx)).await.ok();
    }
    copier.failure = None; // it holds a descriptor of the local side
    drop(local); // the local program does not wait for the relay
    let idle = match &ended {
        BridgeEnd::Leg(EndReason::Silent(_)) | BridgeEnd::Local(_) | BridgeEnd::Stopped => {
            leg.reset().await;
            None
        }
        BridgeEnd::Finished | BridgeEnd::CutShort | BridgeEnd::Leg(_) => leg.retire().await,
    };
    Bridged { to_leg_bytes: copier.to_leg_bytes, from_leg_bytes: copier.from_leg_bytes, ended, idle }
}

/// The direction from the local side to the leg.
enum ToLeg {
    Copying,
    /// The local side has ended: `end` is being sent.
    Ending,
    Ended,
    /// The leg takes no more bytes, and the reason is still to be read from it; or the local side was reset.
    Cut,
}

/// The direction from the leg to the local side.
enum ToLocal {
    Copying,
    /// The far side has ended: the local side is being shut down.
    Ending,
    /// It was shut down, and its program may not have everything yet.
    Confirming(Confirmation),
    /// `delivered` was sent.
    Ended,
    /// A write failed: what the leg brings is dropped.
    Failed(FailedWrite),
}

/// Waits until the local program's kernel has acknowledged everything.
struct Confirmation {
    until: Instant,
    pause: Duration,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Confirmation {
    fn new() -> Self {
        Self { until: Instant::now() + ACKNOWLEDGED_TIMEOUT, pause: FIRST_PROBE_PAUSE, timer: None }
    }

    /// # Errors
    /// The local side's error.
    fn poll<L: LocalSide>(&mut self, local: &mut L, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while local.unacknowledged()? > 0 && Instant::now() < self.until {
            let next = Instant::now() + self.pause;
            let timer = self.timer.get_or_insert_with(|| Box::pin(sleep(self.pause)));
            if timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            timer.as_mut().reset(next);
            self.pause = (self.pause * 2).min(LONGEST_PROBE_PAUSE);
        }
        Poll::Ready(Ok(()))
    }
}

/// A local side that takes no more bytes. What it still says is passed on, for as long as that makes progress.
struct FailedWrite {
    /// Linux reports a reset behind a FIN as [`io::ErrorKind::BrokenPipe`] (`net/ipv4/tcp_input.c`, `tcp_reset`). After any other error what
    /// is read last may be a part, which must not look like the whole.
    error: io::Error,
    to_leg_bytes: u64,
    timer: Pin<Box<Sleep>>,
}

struct Copier {
    to_leg: ToLeg,
    to_local: ToLocal,
    local_unflushed: bool,
    /// Watches the local side once it has ended, since nothing is read from it any more.
    failure: Option<Failure>,
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
            failure: None,
            pong_timer: None,
            to_leg_bytes: 0,
            from_leg_bytes: 0,
        }
    }
}

impl Copier {
    fn poll<L: LocalSide>(&mut self, local: &mut L, leg: &mut Leg, cx: &mut Context<'_>) -> Poll<BridgeEnd> {
        let mut written = self.poll_to_local(local, leg, cx);
        if let Err(error) = written.as_mut()
            && local.is_socket()
        {
            let error = std::mem::replace(error, io::ErrorKind::Other.into());
            self.fail(error);
            written = self.poll_to_local(local, leg, cx);
        }
        let mut moved = written.and_then(|()| self.poll_to_leg(local, leg, cx));
        if let Some(Poll::Ready(error)) = self.failure.as_mut().map(|failure| failure.as_mut().poll(cx)) {
            self.fail(error);
            moved = moved.and_then(|()| self.poll_to_local(local, leg, cx));
        }
        if let Poll::Ready(error) = self.poll_failed(leg, cx) {
            moved = Err(error);
        }
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
                        Poll::Ready(Ok(0)) => self.to_leg = if self.is_cut() { ToLeg::Cut } else { ToLeg::Ending },
                        Poll::Ready(Ok(count)) => self.to_leg_bytes += count as u64,
                        Poll::Ready(Err(SendError::Connection)) => self.to_leg = ToLeg::Cut,
                        Poll::Ready(Err(SendError::Source(_))) if matches!(self.to_local, ToLocal::Failed(_)) => {
                            self.to_leg = ToLeg::Cut;
                        }
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
                    Poll::Ready(Ok(())) => {
                        self.to_leg = ToLeg::Ended;
                        if matches!(self.to_local, ToLocal::Copying) {
                            self.failure = local.failure();
                        }
                    }
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
            match &mut self.to_local {
                ToLocal::Copying if !leg.incoming().is_empty() => match Pin::new(&mut *local).poll_write(cx, leg.incoming().as_slice()) {
                    Poll::Ready(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
                    Poll::Ready(Ok(count)) => {
                        leg.incoming().advance(count);
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
                    Poll::Ready(LegEvent::End | LegEvent::Over) => {
                        self.failure = None; // what follows shows it
                        self.to_local = ToLocal::Ending;
                    }
                    Poll::Pending => return self.poll_local_flush(local, cx),
                },
                ToLocal::Ending if leg.end_reason().is_some_and(|end| !end.is_clean()) => return Ok(()),
                ToLocal::Ending => match Pin::new(&mut *local).poll_shutdown(cx) {
                    Poll::Ready(Ok(())) => self.to_local = ToLocal::Confirming(Confirmation::new()),
                    Poll::Ready(Err(error)) => return Err(error),
                    Poll::Pending => {
                        drop(leg.poll_drain(cx));
                        return Ok(());
                    }
                },
                ToLocal::Confirming(confirmation) => match confirmation.poll(local, cx) {
                    Poll::Ready(confirmed) => {
                        confirmed?;
                        leg.push_delivered();
                        leg.try_flush(cx);
                        self.to_local = ToLocal::Ended;
                    }
                    Poll::Pending => {
                        drop(leg.poll_drain(cx));
                        return Ok(());
                    }
                },
                ToLocal::Ended | ToLocal::Failed(_) => {
                    leg.incoming().clear();
                    drop(leg.poll_drain(cx));
                    return Ok(());
                }
            }
        }
    }

    /// The local side takes no more bytes.
    fn fail(&mut self, error: io::Error) {
        self.failure = None;
        let timer = Box::pin(sleep(LAST_WORDS_TIMEOUT));
        self.to_local = ToLocal::Failed(FailedWrite { error, to_leg_bytes: self.to_leg_bytes, timer });
    }

    /// Whether the local side was reset before it had ended its direction.
    fn is_cut(&self) -> bool {
        matches!(&self.to_local, ToLocal::Failed(failed) if failed.error.kind() != io::ErrorKind::BrokenPipe)
    }

    /// After a failed write: ready with its error once the far side has what the local side still said, or if that makes no progress.
    fn poll_failed(&mut self, leg: &Leg, cx: &mut Context<'_>) -> Poll<io::Error> {
        let ToLocal::Failed(failed) = &mut self.to_local else { return Poll::Pending };
        if failed.to_leg_bytes != self.to_leg_bytes {
            failed.to_leg_bytes = self.to_leg_bytes;
            failed.timer.as_mut().reset(Instant::now() + LAST_WORDS_TIMEOUT);
        }
        let is_over = leg.is_delivered() || leg.end_reason().is_some() || matches!(self.to_leg, ToLeg::Cut);
        if is_over || failed.timer.as_mut().poll(cx).is_ready() {
            return Poll::Ready(std::mem::replace(&mut failed.error, io::ErrorKind::Other.into()));
        }
        Poll::Pending
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
