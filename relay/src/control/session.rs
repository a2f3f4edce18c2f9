//! One control channel from `welcome` to its end: obeys orders, reports answers, notices death.

use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use moorline_proto::bounds::CLOSE_TIMEOUT;
use moorline_proto::close::CloseReason;
use moorline_proto::control::{Accept, FromDevice, GoAway, Reject, ToDevice};
use moorline_proto::id::Instance;
use moorline_proto::message::Decoded;
use moorline_proto::text::Text;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::{Error as WsError, Message};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::control::broken;
use crate::control::handle::{ChannelClosed, Command, DeviceHandle, DisconnectCommand, Next};
use crate::control::handshake::{answer, close};
use crate::control::keepalive::{Due, Keepalive};
use crate::net::connection::Socket;

/// A device that does not take a message in this time is dead.
const WRITE_WITHIN: Duration = Duration::from_secs(10);
/// Pings a second beyond which a device breaks the protocol.
const PINGS_A_SECOND: u32 = 100;

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
pub enum Ended {
    /// The device closed it, with this code.
    Closed(u16),
    /// The connection ended without a Close.
    Lost,
    /// No frame for too long, or it does not take what it is sent.
    Dead,
    /// The device broke the protocol.
    Protocol(String),
    /// Ended from outside.
    Parted(DisconnectCommand),
    /// The relay stops.
    Leaving,
}

/// A control channel whose device was welcomed.
#[derive(Debug)]
pub struct Session {
    socket: WebSocketStream<Socket>,
    handle: DeviceHandle,
    keepalive: Keepalive,
    heard_within: Duration,
    unheard: Vec<oneshot::Sender<()>>,
    pings: (Instant, u32),
    /// Where a stopping relay sends its devices: how long to wait before they dial anew.
    reconnect_in: Duration,
}

impl Session {
    /// Joins the socket of a welcomed device with its handle.
    pub fn new(
        socket: WebSocketStream<Socket>,
        handle: DeviceHandle,
        keepalive: Keepalive,
        heard_within: Duration,
        reconnect_in: Duration,
    ) -> Self {
        let pings = (Instant::now(), 0);
        Self { socket, handle, keepalive, heard_within, unheard: Vec::new(), pings, reconnect_in }
    }

    /// Runs until the channel ends, closes it with the code that says why, and says so to those who wait for the device.
    pub async fn run(mut self, mut hear: impl FnMut(Answer), stop: CancellationToken) -> Ended {
        let ended = self.turns(&mut hear, &stop).await;
        self.handle.set_gone(ChannelClosed::Lost);
        debug!(session = self.handle.about().session, ?ended, "control channel ends");
        match &ended {
            Ended::Closed(_) => {
                answer(&mut self.socket).await;
                self.socket.into_inner().close(CLOSE_TIMEOUT).await;
            }
            Ended::Lost => {}
            Ended::Dead => self.socket.into_inner().reset(),
            Ended::Protocol(how) => close(self.socket, CloseReason::Protocol, how).await,
            Ended::Parted(DisconnectCommand::Superseded { by }) => self.give_way(by, &mut hear).await,
            Ended::Parted(DisconnectCommand::Revoked) => close(self.socket, CloseReason::Revoked, "").await,
            Ended::Leaving => {
                let away = GoAway {
                    reconnect_in_ms: u64::try_from(self.reconnect_in.as_millis()).unwrap_or(u64::MAX),
                    reason: Text::truncated("the relay stops"),
                };
                if self.say(away.into()).await.is_ok() {
                    close(self.socket, CloseReason::RelayDraining, "").await;
                }
            }
        }
        ended
    }

    /// Programs read the instance from the reason: `superseded INSTANCE`. Answers that the device had sent by then still count.
    async fn give_way(mut self, by: &Instance, hear: &mut impl FnMut(Answer)) {
        let frame = CloseFrame { code: CloseReason::Superseded.code().into(), reason: format!("superseded {by}").into() };
        let goodbye = async {
            self.socket.send(Message::Close(Some(frame))).await?;
            while let Some(message) = self.socket.next().await {
                let Message::Text(text) = message? else { continue };
                match FromDevice::decode(&text) {
                    Ok(Decoded::Known(FromDevice::Accept(accept))) => hear(Answer::Accept(accept)),
                    Ok(Decoded::Known(FromDevice::Reject(reject))) => hear(Answer::Reject(reject)),
                    Ok(_) | Err(_) => {}
                }
            }
            Ok::<_, WsError>(())
        };
        match timeout(CLOSE_TIMEOUT, goodbye).await {
            Ok(_) => self.socket.into_inner().close(CLOSE_TIMEOUT).await,
            Err(_) => self.socket.into_inner().reset(),
        }
    }

    /// Each turn waits for an order, a message, the heartbeat or the stop; all four can be dropped half-way without loss:
    /// orders stay queued, partial messages stay in the socket, the timer is set anew from the keepalive's own state.
    async fn turns(&mut self, hear: &mut impl FnMut(Answer), stop: &CancellationToken) -> Ended {
        let handle = self.handle.clone();
        let mut timer = std::pin::pin!(sleep_until(self.keepalive.next()));
        loop {
            let turn = tokio::select! {
                next = handle.next() => self.obey(next).await,
                message = self.socket.next() => self.hear(message, hear),
                () = timer.as_mut() => self.beat().await,
                () = stop.cancelled() => Err(Ended::Leaving),
            };
            if let Err(ended) = turn {
                return ended;
            }
            let next = self.keepalive.next();
            if timer.is_elapsed() || next < timer.deadline() {
                timer.as_mut().reset(next);
            }
        }
    }

    async fn obey(&mut self, next: Next) -> Result<(), Ended> {
        match next {
            Next::Obey(Command::Offer { offer, heard }) => {
                // Any frame will do as a sign of life; the ping asks for one that even a busy device sends.
                let offer = Message::text(ToDevice::Offer(*offer).encode());
                self.send_all([offer, Message::Ping(Vec::new().into())]).await?;
                self.keepalive.asked(Instant::now(), self.heard_within);
                self.unheard.push(heard);
                Ok(())
            }
            Next::Obey(Command::Cancel(cancel)) => self.say(cancel.into()).await,
            Next::Part(parting) => Err(Ended::Parted(parting)),
        }
    }

    async fn beat(&mut self) -> Result<(), Ended> {
        match self.keepalive.due(Instant::now()) {
            Due::Nothing => Ok(()),
            Due::Ping => self.send(Message::Ping(Vec::new().into())).await,
            Due::Dead => Err(Ended::Dead),
        }
    }

    async fn say(&mut self, message: ToDevice) -> Result<(), Ended> {
        self.send(Message::text(message.encode())).await
    }

    async fn send(&mut self, message: Message) -> Result<(), Ended> {
        self.send_all([message]).await
    }

    /// Sends messages in one write.
    async fn send_all<const MANY: usize>(&mut self, messages: [Message; MANY]) -> Result<(), Ended> {
        let all = async {
            for message in messages {
                self.socket.feed(message).await?;
            }
            self.socket.flush().await
        };
        match timeout(WRITE_WITHIN, all).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(Ended::Lost),
            Err(_) => Err(Ended::Dead),
        }
    }

    fn hear(&mut self, message: Option<Result<Message, WsError>>, hear: &mut impl FnMut(Answer)) -> Result<(), Ended> {
        let message = match message {
            Some(Ok(message)) => message,
            Some(Err(error)) => return Err(broken(&error).map_or(Ended::Lost, Ended::Protocol)),
            None => return Err(Ended::Lost),
        };
        self.socket.get_mut().message_received(&message);
        let now = Instant::now();
        self.keepalive.heard(now);
        for heard in self.unheard.drain(..) {
            // The stream may be over by now.
            heard.send(()).ok();
        }
        match message {
            Message::Text(text) => match FromDevice::decode(&text) {
                Ok(Decoded::Known(message)) => self.understand(message, hear),
                Ok(Decoded::Unknown(kind)) => {
                    debug!(session = self.handle.about().session, kind, "a message of an unknown type was passed over");
                    Ok(())
                }
                Err(error) => Err(Ended::Protocol(error.to_string())),
            },
            Message::Binary(_) => Err(Ended::Protocol("binary on a control channel".to_owned())),
            Message::Ping(_) => self.count_ping(now),
            Message::Close(frame) => Err(Ended::Closed(frame.map_or(1000, |frame| frame.code.into()))),
            Message::Pong(_) | Message::Frame(_) => Ok(()),
        }
    }

    fn understand(&mut self, message: FromDevice, hear: &mut impl FnMut(Answer)) -> Result<(), Ended> {
        match message {
            FromDevice::Hello(_) => return Err(Ended::Protocol("a second hello".to_owned())),
            FromDevice::Accept(accept) => hear(Answer::Accept(accept)),
            FromDevice::Reject(reject) => hear(Answer::Reject(reject)),
            FromDevice::Services(list) => self.handle.set_services(list.services),
            FromDevice::Heartbeat(heartbeat) => self.keepalive.announced(Duration::from_millis(heartbeat.interval_ms)),
        }
        Ok(())
    }

    fn count_ping(&mut self, now: Instant) -> Result<(), Ended> {
        let (since, count) = &mut self.pings;
        if now.duration_since(*since) >= Duration::from_secs(1) {
            (*since, *count) = (now, 0);
        }
        *count += 1;
        if *count > PINGS_A_SECOND { Err(Ended::Protocol("more than 100 pings a second".to_owned())) } else { Ok(()) }
    }
}
