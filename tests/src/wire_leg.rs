//! A scripted leg: sends and receives the messages of one side of a stream, well-formed or not.

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use moorline_proto::control::RejectCode;
use moorline_proto::id::StreamId;
use moorline_proto::leg::{DELIVERED_TEXT, END_TEXT, LegText, Opened};
use moorline_proto::message::Decoded;
use moorline_proto::names::{LEG_HEADER, REUSE, STREAM_SUBPROTOCOL};
use moorline_proto::problem::Problem;
use moorline_proto::reuse::{LegOffer, ReuseText};
use serde_json::{Value, json};
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;

use crate::observed;
use crate::wire::{PATIENCE, Pipe, Refusal, parts, upgrade};

/// An event on a leg.
#[derive(Debug, PartialEq, Eq)]
pub enum LegEvent {
    /// Bytes of the stream.
    Bytes(Bytes),
    /// `opened`.
    Opened(Box<Opened>),
    /// `refused`.
    Refused(Box<Problem>),
    /// `end`.
    End,
    /// `delivered`.
    Delivered,
    /// A message by which the leg passes from one stream to the next.
    Reuse(ReuseText),
    /// Any other text.
    Text(String),
    /// A Close with this code and reason.
    Close(u16, String),
    /// The connection ended without a Close.
    Lost,
}

/// A scripted leg.
#[derive(Debug)]
pub struct WireLeg<S> {
    /// The WebSocket.
    pub socket: WebSocketStream<S>,
    /// Whether the scenario has sent a Close: the relay's is then an answer.
    has_closed: bool,
    /// The 101 granted that the leg is used again.
    pub is_reusable: bool,
}

impl<S: Pipe> WireLeg<S> {
    /// Joins a leg by its token, or opens one by `connect`.
    ///
    /// # Errors
    /// The relay's refusal.
    pub async fn join(pipe: S, host: &str, path: &str, headers: &[(&str, &str)]) -> Result<Self, Refusal> {
        let (socket, answer) = upgrade(pipe, host, path, STREAM_SUBPROTOCOL, headers).await?;
        Ok(Self { socket, has_closed: false, is_reusable: answer.get(LEG_HEADER).is_some_and(|granted| granted == REUSE) })
    }

    /// Receives the next event. Pings are answered meanwhile.
    pub async fn next(&mut self) -> LegEvent {
        let read = async {
            loop {
                match self.socket.next().await {
                    Some(Ok(Message::Binary(bytes))) => return LegEvent::Bytes(bytes),
                    Some(Ok(Message::Text(text))) => return text_of(&text),
                    Some(Ok(Message::Close(frame))) => {
                        let (code, reason) = parts(frame);
                        if !self.has_closed {
                            observed::close(code);
                        }
                        return LegEvent::Close(code, reason);
                    }
                    Some(Ok(_)) => {}
                    Some(Err(_)) | None => return LegEvent::Lost,
                }
            }
        };
        timeout(PATIENCE, read).await.expect("the leg gets something in time")
    }

    /// Receives the next event, which must be `opened`.
    pub async fn opened(&mut self) -> Opened {
        match self.next().await {
            LegEvent::Opened(opened) => *opened,
            other => panic!("{other:?} instead of opened"),
        }
    }

    /// Receives `refused` and the Close 4010 after it.
    pub async fn refused(&mut self) -> Problem {
        let LegEvent::Refused(problem) = self.next().await else { panic!("not refused") };
        assert!(matches!(self.next().await, LegEvent::Close(4010, _)), "refused is followed by 4010");
        *problem
    }

    /// Receives `idle`, and returns how long the relay keeps the leg.
    pub async fn idle(&mut self) -> u64 {
        match self.next().await {
            LegEvent::Reuse(ReuseText::Idle(idle)) => idle.keep_ms,
            other => panic!("{other:?} instead of idle"),
        }
    }

    /// Receives an `offer`.
    pub async fn offer(&mut self) -> LegOffer {
        match self.next().await {
            LegEvent::Reuse(ReuseText::Offer(offer)) => *offer,
            other => panic!("{other:?} instead of an offer"),
        }
    }

    /// Asks for a stream.
    pub async fn ask(&mut self, device: &str, service: &str) {
        self.say(&json!({"type": "ask", "device": device, "service": service})).await;
    }

    /// Accepts the offer on the leg.
    pub async fn accept(&mut self, stream: StreamId) {
        self.say(&json!({"type": "accept", "stream": stream})).await;
    }

    /// Rejects the offer on the leg.
    pub async fn reject(&mut self, stream: StreamId, code: RejectCode) {
        self.say(&json!({"type": "reject", "stream": stream, "code": code})).await;
    }

    /// Sends a text message.
    pub async fn say(&mut self, message: &Value) {
        self.send(Message::text(message.to_string())).await;
    }

    /// Waits until the leg is closed and returns the code, 1006 if there is none. Answers `end` with `delivered`, and drops other events.
    pub async fn closed(&mut self) -> u16 {
        loop {
            match self.next().await {
                LegEvent::Close(code, _) => return code,
                LegEvent::Lost => return 1006,
                LegEvent::End if !self.has_closed => self.socket.send(Message::text(DELIVERED_TEXT)).await.unwrap_or_default(),
                _ => {}
            }
        }
    }

    /// Receives `end`, maybe behind `delivered`, and answers it with `delivered`.
    pub async fn ended(&mut self) {
        let event = self.next().await;
        assert!(event == LegEvent::End || event == LegEvent::Delivered && self.next().await == LegEvent::End, "{event:?} instead of end");
        self.delivered().await;
    }

    /// Receives exactly `count` bytes, in any number of messages, maybe with `delivered` between.
    pub async fn bytes(&mut self, count: usize) -> Vec<u8> {
        let mut all = Vec::with_capacity(count);
        while all.len() < count {
            match self.next().await {
                LegEvent::Bytes(bytes) => all.extend_from_slice(&bytes),
                LegEvent::Delivered => {}
                other => panic!("{other:?} after {} of {count} bytes", all.len()),
            }
        }
        assert_eq!(all.len(), count);
        all
    }

    /// Sends bytes in one binary message.
    pub async fn send_bytes(&mut self, bytes: impl Into<Bytes>) {
        self.send(Message::Binary(bytes.into())).await;
    }

    /// Sends a WebSocket message.
    pub async fn send(&mut self, message: Message) {
        self.has_closed |= message.is_close();
        self.socket.send(message).await.expect("the leg is open");
    }

    /// Sends `end`.
    pub async fn end(&mut self) {
        self.send(Message::text(END_TEXT)).await;
    }

    /// Sends `delivered`.
    pub async fn delivered(&mut self) {
        self.send(Message::text(DELIVERED_TEXT)).await;
    }

    /// Sends a Close with this code.
    pub async fn close(&mut self, code: u16) {
        self.send(Message::Close(Some(CloseFrame { code: code.into(), reason: "".into() }))).await;
    }
}

fn text_of(text: &str) -> LegEvent {
    let decoded = LegText::decode(text);
    if let Ok(Decoded::Known(LegText::Refused(refused))) = &decoded {
        observed::problem(&refused.problem);
    }
    match decoded {
        Ok(Decoded::Known(LegText::Opened(opened))) => LegEvent::Opened(opened),
        Ok(Decoded::Known(LegText::Refused(refused))) => LegEvent::Refused(Box::new(refused.problem)),
        Ok(Decoded::Known(LegText::End(_))) => LegEvent::End,
        Ok(Decoded::Known(LegText::Delivered(_))) => LegEvent::Delivered,
        Ok(Decoded::Unknown(_)) | Err(_) => match ReuseText::decode(text) {
            Ok(Decoded::Known(message)) => LegEvent::Reuse(message),
            Ok(Decoded::Unknown(_)) | Err(_) => LegEvent::Text(text.to_owned()),
        },
    }
}
