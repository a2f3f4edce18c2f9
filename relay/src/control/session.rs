//! One control channel from `welcome` to its end: carries out commands, reports answers, notices a device that is dead.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;

use moorline_proto::bounds::RECONNECT_IN_MS;
use moorline_proto::close::CloseReason;
use moorline_proto::control::{Accept, FromDevice, GoAway, Reject, ToDevice};
use moorline_proto::frame::{Batch, Close};
use moorline_proto::id::Instance;
use moorline_proto::message::Decoded;
use moorline_proto::text::Text;
use rand::RngExt;
use tokio::sync::oneshot;
use tokio::time::{Instant, Sleep, sleep_until};
use tracing::debug;

use crate::control::channel::{self, Channel, ChannelEnd, Received};
use crate::control::handle::{ChannelClosed, Command, DeviceHandle, Next};
use crate::control::keepalive::{Due, Keepalive};
use crate::lifecycle::{Lifecycle, Phase};
use crate::limits::CONTROL_WRITE_TIMEOUT;
use crate::ping_limiter::PingLimiter;

/// What a device answered to an offer.
#[derive(Debug)]
pub enum Answer {
    /// It takes the stream.
    Accept(Box<Accept>),
    /// It does not.
    Reject(Box<Reject>),
}

/// Why a control channel ended.
#[derive(Debug, PartialEq, Eq)]
pub enum CloseCause {
    /// The device closed it.
    Closed(Option<Close>),
    /// The connection ended without a Close.
    Lost,
    /// No frame for too long, or it does not take what it is sent.
    Dead,
    /// The device broke the protocol: the code to close with, and how.
    Broken(CloseReason, String),
    /// Ended from outside: superseded or revoked.
    Ended(ChannelClosed),
    /// The relay closes.
    Closing,
}

impl CloseCause {
    fn protocol(how: impl std::fmt::Display) -> Self {
        Self::Broken(CloseReason::Protocol, how.to_string())
    }
}

/// A control channel whose device was welcomed.
#[derive(Debug)]
pub struct Session {
    socket: Channel,
    handle: DeviceHandle,
    keepalive: Keepalive,
    offer_ack_timeout: Duration,
    /// Offers that no frame has followed yet. As many as there may be commands, and no older than `offer_ack_timeout`.
    unacknowledged: Vec<oneshot::Sender<()>>,
    pings: PingLimiter,
    /// Until when the device must have taken what it was sent.
    write_by: Option<Instant>,
    /// `go_away` was sent to the device.
    go_away_sent: bool,
}

impl Session {
    /// Joins the socket of a welcomed device with its handle.
    pub fn new(socket: Channel, handle: DeviceHandle, keepalive: Keepalive, offer_ack_timeout: Duration) -> Self {
        let (pings, unacknowledged) = (PingLimiter::new(Instant::now()), Vec::new());
        Self { socket, handle, keepalive, offer_ack_timeout, unacknowledged, pings, write_by: None, go_away_sent: false }
    }

    /// Its device.
    pub fn handle(&self) -> &DeviceHandle {
        &self.handle
    }

    /// Runs until the channel ends, and notifies those who wait for the device. The channel is still to be closed: [`Session::close`].
    ///
    /// Its future is what an idle device costs: nothing but the loop itself waits in it.
    ///
    /// # Cancel safety
    /// Cancel safe: commands stay queued, partial messages stay in the socket, the timer is set anew from the keepalive's own state.
    pub async fn run(&mut self, on_answer: &mut impl FnMut(Answer), lifecycle: &Lifecycle) -> CloseCause {
        let mut timer = pin!(sleep_until(self.next_tick()));
        let ended = poll_fn(|cx| match self.poll(timer.as_mut(), on_answer, lifecycle, cx) {
            Ok(()) => Poll::Pending,
            Err(cause) => Poll::Ready(cause),
        });
        let cause = ended.await;
        self.handle.set_closed(ChannelClosed::Lost);
        debug!(session = self.handle.about().session, ?cause, "control channel ends");
        cause
    }

    /// Closes the channel with the code for the cause.
    pub async fn close(mut self, cause: &CloseCause, on_answer: impl FnMut(Answer), lifecycle: &Lifecycle) {
        match cause {
            CloseCause::Closed(close) => self.socket.answer_close(close.as_ref()).await,
            CloseCause::Lost | CloseCause::Ended(ChannelClosed::Lost) => {}
            CloseCause::Dead => self.socket.reset(),
            CloseCause::Broken(reason, how) => self.socket.close(*reason, how).await,
            CloseCause::Ended(ChannelClosed::Superseded { by }) => self.close_superseded(by, on_answer).await,
            CloseCause::Ended(ChannelClosed::Revoked) => self.socket.close(CloseReason::Revoked, "").await,
            CloseCause::Closing => {
                self.go_away(lifecycle);
                self.socket.close(CloseReason::RelayDraining, "").await;
            }
        }
    }

    /// Programs read the instance from the reason: `superseded INSTANCE`. Answers that the device had sent by then still count.
    async fn close_superseded(self, by: &Instance, mut on_answer: impl FnMut(Answer)) {
        let (code, text) = (CloseReason::Superseded.code(), format!("superseded {by}"));
        let closing = self.socket.close_with((code, &text), |received| {
            let Received::Text(text) = received else { return };
            match FromDevice::decode(&text) {
                Ok(Decoded::Known(FromDevice::Accept(accept))) => on_answer(Answer::Accept(Box::new(accept))),
                Ok(Decoded::Known(FromDevice::Reject(reject))) => on_answer(Answer::Reject(Box::new(reject))),
                Ok(_) | Err(_) => {}
            }
        });
        closing.await;
    }

    /// Does what there is to do, until nothing is left. Then the waker is registered for a command, a phase of the relay, a message, and the
    /// heartbeat.
    fn poll(
        &mut self,
        mut timer: Pin<&mut Sleep>,
        on_answer: &mut impl FnMut(Answer),
        lifecycle: &Lifecycle,
        cx: &mut Context<'_>,
    ) -> Result<(), CloseCause> {
        loop {
            // A command is written before the next one is taken.
            let was_flushed = self.socket.is_flushed();
            let next = self.handle.poll_next(was_flushed, cx);
            let mut is_at_rest = next.is_pending();
            if let Poll::Ready(next) = next {
                self.on_command(next)?;
            }
            match lifecycle.phase() {
                Phase::Running => {}
                Phase::Draining { .. } => self.go_away(lifecycle),
                Phase::Closing => return Err(CloseCause::Closing),
            }
            if let Poll::Ready(received) = self.socket.poll_receive(cx) {
                self.on_received(received, on_answer)?;
                is_at_rest = false;
            }
            let next = self.next_tick();
            if timer.is_elapsed() || next < timer.deadline() {
                timer.as_mut().reset(next);
            }
            if timer.as_mut().poll(cx).is_ready() {
                self.on_tick()?;
                is_at_rest = false;
            }
            if is_at_rest && was_flushed == self.socket.is_flushed() {
                return Ok(());
            }
        }
    }

    fn next_tick(&self) -> Instant {
        let next = self.keepalive.next();
        self.write_by.map_or(next, |write_by| next.min(write_by))
    }

    fn on_command(&mut self, next: Next) -> Result<(), CloseCause> {
        match next {
            Next::Command(Command::Offer { offer, alive }) => {
                // Any frame will do as a sign of life; the ping asks for one that even a busy device sends.
                let offer = ToDevice::Offer(*offer).encode();
                self.push(|batch| {
                    batch.text(&offer);
                    batch.ping(&[]);
                });
                self.keepalive.expect_frame(Instant::now(), self.offer_ack_timeout);
                self.unacknowledged.push(alive);
            }
            Next::Command(Command::Cancel(cancel)) => self.push_message(cancel.into()),
            Next::End(closed) => return Err(CloseCause::Ended(closed)),
        }
        Ok(())
    }

    fn on_tick(&mut self) -> Result<(), CloseCause> {
        let now = Instant::now();
        if self.socket.is_flushed() {
            self.write_by = None;
        } else if self.write_by.is_some_and(|write_by| write_by <= now) {
            return Err(CloseCause::Dead);
        }
        match self.keepalive.due(now) {
            Due::Nothing => {}
            Due::Ping => self.push(|batch| batch.ping(&[])),
            Due::Dead => return Err(CloseCause::Dead),
        }
        Ok(())
    }

    /// Tells the device to dial anew, once.
    fn go_away(&mut self, lifecycle: &Lifecycle) {
        if std::mem::replace(&mut self.go_away_sent, true) {
            return;
        }
        let reconnect_in = lifecycle.reconnect_spread().mul_f64(rand::rng().random());
        let reconnect_in_ms = u64::try_from(reconnect_in.as_millis()).unwrap_or(u64::MAX).clamp(RECONNECT_IN_MS.0, RECONNECT_IN_MS.1);
        self.push_message(GoAway { reconnect_in_ms, reason: Text::truncated("the relay stops") }.into());
    }

    fn push_message(&mut self, message: ToDevice) {
        self.push(|batch| batch.text(&message.encode()));
    }

    /// Queues messages for one write, which is the loop's next.
    fn push(&mut self, messages: impl FnOnce(&mut Batch)) {
        if self.socket.is_flushed() {
            self.write_by = Some(Instant::now() + CONTROL_WRITE_TIMEOUT);
        }
        self.socket.push(messages);
    }

    fn on_received(&mut self, received: Result<Received, ChannelEnd>, on_answer: &mut impl FnMut(Answer)) -> Result<(), CloseCause> {
        let received = received.map_err(|end| match end {
            ChannelEnd::Broken(error) => CloseCause::Broken(channel::close_reason(error), error.to_string()),
            ChannelEnd::Lost => CloseCause::Lost,
        })?;
        let now = Instant::now();
        self.keepalive.on_frame(now);
        for alive in self.unacknowledged.drain(..) {
            // The stream may be over by now.
            alive.send(()).ok();
        }
        match received {
            Received::Text(text) => match FromDevice::decode(&text) {
                Ok(Decoded::Known(message)) => self.on_text(message, on_answer),
                Ok(Decoded::Unknown(kind)) => {
                    debug!(session = self.handle.about().session, kind, "ignored a message of an unknown type");
                    Ok(())
                }
                Err(error) => Err(CloseCause::protocol(error)),
            },
            Received::Binary => Err(CloseCause::protocol("binary on a control channel")),
            Received::Ping => self.pings.count(now).map_err(CloseCause::protocol),
            Received::Close(close) => Err(CloseCause::Closed(close)),
            Received::Pong => Ok(()),
        }
    }

    fn on_text(&mut self, message: FromDevice, on_answer: &mut impl FnMut(Answer)) -> Result<(), CloseCause> {
        match message {
            FromDevice::Hello(_) => return Err(CloseCause::protocol("a second hello")),
            FromDevice::Accept(accept) => on_answer(Answer::Accept(Box::new(accept))),
            FromDevice::Reject(reject) => on_answer(Answer::Reject(Box::new(reject))),
            FromDevice::Services(list) => self.handle.set_services(list.services),
            FromDevice::Heartbeat(heartbeat) => self.keepalive.set_interval(Duration::from_millis(heartbeat.interval_ms)),
        }
        Ok(())
    }
}
