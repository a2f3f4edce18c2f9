//! One control channel from `welcome` to its end: carries out commands, reports answers, notices a device that is dead.

use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use moorline_proto::bounds::{CLOSE_TIMEOUT, RECONNECT_IN_MS};
use moorline_proto::close::CloseReason;
use moorline_proto::control::{Accept, FromDevice, GoAway, Reject, ToDevice};
use moorline_proto::id::Instance;
use moorline_proto::message::Decoded;
use moorline_proto::text::Text;
use rand::RngExt;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::{Error as WsError, Message};
use tracing::debug;

use crate::control::broken;
use crate::control::handle::{ChannelClosed, Command, DeviceHandle, Disconnect, Next};
use crate::control::handshake::{answer_close, close};
use crate::control::keepalive::{Due, Keepalive};
use crate::lifecycle::{Lifecycle, Phase};
use crate::limits::CONTROL_WRITE_TIMEOUT;
use crate::net::connection::Socket;
use crate::ping_limiter::PingLimiter;

/// What a device answered to an offer.
#[derive(Debug)]
pub enum Answer {
    /// It takes the stream.
    Accept(Accept),
    /// It does not.
    Reject(Reject),
}

/// Why a control channel ended.
#[derive(Debug, PartialEq, Eq)]
pub enum CloseCause {
    /// The device closed it, with this code.
    Closed(u16),
    /// The connection ended without a Close.
    Lost,
    /// No frame for too long, or it does not take what it is sent.
    Dead,
    /// The device broke the protocol.
    Protocol(String),
    /// Ended from outside: superseded or revoked.
    Disconnected(Disconnect),
    /// The relay closes.
    Closing,
}

/// A control channel whose device was welcomed.
#[derive(Debug)]
pub struct Session {
    socket: WebSocketStream<Socket>,
    handle: DeviceHandle,
    keepalive: Keepalive,
    offer_ack_timeout: Duration,
    /// Offers that no frame has followed yet. As many as there may be commands, and no older than `offer_ack_timeout`.
    unacknowledged: Vec<oneshot::Sender<()>>,
    pings: PingLimiter,
    /// `go_away` was sent to the device.
    go_away_sent: bool,
}

impl Session {
    /// Joins the socket of a welcomed device with its handle.
    pub fn new(socket: WebSocketStream<Socket>, handle: DeviceHandle, keepalive: Keepalive, offer_ack_timeout: Duration) -> Self {
        let pings = PingLimiter::new(Instant::now());
        Self { socket, handle, keepalive, offer_ack_timeout, unacknowledged: Vec::new(), pings, go_away_sent: false }
    }

    /// Runs until the channel ends, closes it with the code for the cause, and notifies those who wait for the device.
    pub async fn run(mut self, mut on_answer: impl FnMut(Answer), lifecycle: Lifecycle) -> CloseCause {
        let cause = self.serve(&mut on_answer, &lifecycle).await;
        self.handle.set_closed(ChannelClosed::Lost);
        debug!(session = self.handle.about().session, ?cause, "control channel ends");
        match &cause {
            CloseCause::Closed(_) => {
                answer_close(&mut self.socket).await;
                self.socket.into_inner().close(CLOSE_TIMEOUT).await;
            }
            CloseCause::Lost => {}
            CloseCause::Dead => self.socket.into_inner().reset(),
            CloseCause::Protocol(how) => close(self.socket, CloseReason::Protocol, how).await,
            CloseCause::Disconnected(Disconnect::Superseded { by }) => self.close_superseded(by, &mut on_answer).await,
            CloseCause::Disconnected(Disconnect::Revoked) => close(self.socket, CloseReason::Revoked, "").await,
            CloseCause::Closing => {
                if self.go_away(&lifecycle).await.is_ok() {
                    close(self.socket, CloseReason::RelayDraining, "").await;
                }
            }
        }
        cause
    }

    /// Programs read the instance from the reason: `superseded INSTANCE`. Answers that the device had sent by then still count.
    async fn close_superseded(mut self, by: &Instance, on_answer: &mut impl FnMut(Answer)) {
        let frame = CloseFrame { code: CloseReason::Superseded.code().into(), reason: format!("superseded {by}").into() };
        let closing = async {
            self.socket.send(Message::Close(Some(frame))).await?;
            while let Some(message) = self.socket.next().await {
                let Message::Text(text) = message? else { continue };
                match FromDevice::decode(&text) {
                    Ok(Decoded::Known(FromDevice::Accept(accept))) => on_answer(Answer::Accept(accept)),
                    Ok(Decoded::Known(FromDevice::Reject(reject))) => on_answer(Answer::Reject(reject)),
                    Ok(_) | Err(_) => {}
                }
            }
            Ok::<_, WsError>(())
        };
        match timeout(CLOSE_TIMEOUT, closing).await {
            Ok(_) => self.socket.into_inner().close(CLOSE_TIMEOUT).await,
            Err(_) => self.socket.into_inner().reset(),
        }
    }

    /// Each turn waits for a command, a message, the heartbeat or the relay's phases. All can be dropped half-way without loss: commands stay
    /// queued, partial messages stay in the socket, the timer is set anew from the keepalive's own state.
    async fn serve(&mut self, on_answer: &mut impl FnMut(Answer), lifecycle: &Lifecycle) -> CloseCause {
        let (handle, mut phases) = (self.handle.clone(), lifecycle.watch());
        let mut timer = std::pin::pin!(sleep_until(self.keepalive.next()));
        loop {
            let turn = tokio::select! {
                next = handle.next() => self.handle_command(next).await,
                message = self.socket.next() => self.on_message(message, on_answer),
                () = timer.as_mut() => self.on_tick().await,
                phase = phases.next() => match phase {
                    Phase::Running => Ok(()),
                    Phase::Draining { .. } => self.go_away(lifecycle).await,
                    Phase::Closing => Err(CloseCause::Closing),
                },
            };
            if let Err(cause) = turn {
                return cause;
            }
            let next = self.keepalive.next();
            if timer.is_elapsed() || next < timer.deadline() {
                timer.as_mut().reset(next);
            }
        }
    }

    async fn handle_command(&mut self, next: Next) -> Result<(), CloseCause> {
        match next {
            Next::Command(Command::Offer { offer, alive }) => {
                // Any frame will do as a sign of life; the ping asks for one that even a busy device sends.
                let offer = Message::text(ToDevice::Offer(*offer).encode());
                self.send_all([offer, Message::Ping(Vec::new().into())]).await?;
                self.keepalive.expect_frame(Instant::now(), self.offer_ack_timeout);
                self.unacknowledged.push(alive);
                Ok(())
            }
            Next::Command(Command::Cancel(cancel)) => self.send(cancel.into()).await,
            Next::Disconnect(disconnect) => Err(CloseCause::Disconnected(disconnect)),
        }
    }

    async fn on_tick(&mut self) -> Result<(), CloseCause> {
        match self.keepalive.due(Instant::now()) {
            Due::Nothing => Ok(()),
            Due::Ping => self.send_all([Message::Ping(Vec::new().into())]).await,
            Due::Dead => Err(CloseCause::Dead),
        }
    }

    /// Tells the device to dial anew, once.
    async fn go_away(&mut self, lifecycle: &Lifecycle) -> Result<(), CloseCause> {
        if std::mem::replace(&mut self.go_away_sent, true) {
            return Ok(());
        }
        let reconnect_in = lifecycle.reconnect_spread().mul_f64(rand::rng().random());
        let reconnect_in_ms = u64::try_from(reconnect_in.as_millis()).unwrap_or(u64::MAX).clamp(RECONNECT_IN_MS.0, RECONNECT_IN_MS.1);
        self.send(GoAway { reconnect_in_ms, reason: Text::truncated("the relay stops") }.into()).await
    }

    async fn send(&mut self, message: ToDevice) -> Result<(), CloseCause> {
        self.send_all([Message::text(message.encode())]).await
    }

    /// Sends messages in one write.
    async fn send_all<const COUNT: usize>(&mut self, messages: [Message; COUNT]) -> Result<(), CloseCause> {
        let all = async {
            for message in messages {
                self.socket.feed(message).await?;
            }
            self.socket.flush().await
        };
        match timeout(CONTROL_WRITE_TIMEOUT, all).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(CloseCause::Lost),
            Err(_) => Err(CloseCause::Dead),
        }
    }

    fn on_message(&mut self, message: Option<Result<Message, WsError>>, on_answer: &mut impl FnMut(Answer)) -> Result<(), CloseCause> {
        let message = match message {
            Some(Ok(message)) => message,
            Some(Err(error)) => return Err(broken(&error).map_or(CloseCause::Lost, CloseCause::Protocol)),
            None => return Err(CloseCause::Lost),
        };
        self.socket.get_mut().message_received(&message);
        let now = Instant::now();
        self.keepalive.on_frame(now);
        for alive in self.unacknowledged.drain(..) {
            // The stream may be over by now.
            alive.send(()).ok();
        }
        match message {
            Message::Text(text) => match FromDevice::decode(&text) {
                Ok(Decoded::Known(message)) => self.on_text(message, on_answer),
                Ok(Decoded::Unknown(kind)) => {
                    debug!(session = self.handle.about().session, kind, "ignored a message of an unknown type");
                    Ok(())
                }
                Err(error) => Err(CloseCause::Protocol(error.to_string())),
            },
            Message::Binary(_) => Err(CloseCause::Protocol("binary on a control channel".to_owned())),
            Message::Ping(_) => self.pings.count(now).map_err(|error| CloseCause::Protocol(error.to_string())),
            Message::Close(frame) => Err(CloseCause::Closed(frame.map_or(1000, |frame| frame.code.into()))),
            Message::Pong(_) | Message::Frame(_) => Ok(()),
        }
    }

    fn on_text(&mut self, message: FromDevice, on_answer: &mut impl FnMut(Answer)) -> Result<(), CloseCause> {
        match message {
            FromDevice::Hello(_) => return Err(CloseCause::Protocol("a second hello".to_owned())),
            FromDevice::Accept(accept) => on_answer(Answer::Accept(accept)),
            FromDevice::Reject(reject) => on_answer(Answer::Reject(reject)),
            FromDevice::Services(list) => self.handle.set_services(list.services),
            FromDevice::Heartbeat(heartbeat) => self.keepalive.set_interval(Duration::from_millis(heartbeat.interval_ms)),
        }
        Ok(())
    }
}
