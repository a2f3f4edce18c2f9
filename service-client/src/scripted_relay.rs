//! For tests: an in-process relay whose responses the test scripts, one connection after another.

use std::collections::HashMap;

use futures_util::{SinkExt, StreamExt};
use moorline_proto::leg::{DELIVERED_TEXT, END_TEXT, LegText, Refused};
use moorline_proto::message::Decoded;
use moorline_proto::problem::{Problem, ProblemCode};
use moorline_proto::reuse::{Ask, ReuseText};
use moorline_proto::secret::Secret;
use moorline_transport::dial::Dialer;
use moorline_transport::leg::EndReason;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role};

use crate::client::Client;
use crate::stream::Stream;

/// The `opened` of every scripted stream.
pub(crate) const OPENED: &str = r#"{"type":"opened","stream":"000102030405060708090a0b0c0d0e0f","service":"ssh","peer":{"device":"lamp-1"},
    "features":["f1"],"data":"AAE=","ping_ms":25000,"timeline":{"opened_ms":7}}"#;

/// The relay keeps a leg for one minute.
pub(crate) const IDLE: &str = r#"{"type":"idle","keep_ms":60000,"ping_ms":25000}"#;

/// A ticket for the scripted stream, as the relay answers a negotiation, with this `url`.
pub(crate) fn ticket(url: &str) -> Value {
    serde_json::json!({
        "stream": "000102030405060708090a0b0c0d0e0f", "state": "accepted", "url": url, "token": "mrl_leg_x",
        "expires_at": "2026-11-21T09:30:00Z"
    })
}

/// The path of a leg of the scripted stream.
pub(crate) const LEG_PATH: &str = "/v1/legs/n1/000102030405060708090a0b0c0d0e0f";

pub(crate) struct Relay {
    dials: mpsc::Receiver<DuplexStream>,
}

/// A received request.
pub(crate) struct Request {
    pub(crate) line: String,
    headers: HashMap<String, String>,
    pub(crate) body: Value,
    pipe: DuplexStream,
}

pub(crate) type Leg = WebSocketStream<DuplexStream>;

/// A relay, and a client for it whose token is `caller-token`.
pub(crate) fn relay() -> (Relay, Client) {
    let (dialled, dials) = mpsc::channel(8);
    let dialer = Dialer::over("https://relay.example".parse().unwrap(), move |_| {
        let (local, remote) = duplex(64 * 1024);
        let sent = dialled.try_send(remote);
        async move { sent.map(|()| local).map_err(std::io::Error::other) }
    });
    (Relay { dials }, Client::with_dialer(dialer, Some(Secret::new("caller-token"))))
}

impl Relay {
    /// The next request.
    pub(crate) async fn request(&mut self) -> Request {
        let mut pipe = self.dials.recv().await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(pipe.read_u8().await.unwrap());
        }
        let head = String::from_utf8(head).unwrap();
        let (line, rest) = head.split_once("\r\n").unwrap();
        let headers: HashMap<String, String> = rest
            .lines()
            .filter_map(|line| line.split_once(": "))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
            .collect();
        let mut body = vec![0; headers.get("content-length").map_or(0, |length| length.parse().unwrap())];
        pipe.read_exact(&mut body).await.unwrap();
        let body = if body.is_empty() { Value::Null } else { serde_json::from_slice(&body).unwrap() };
        Request { line: line.to_owned(), headers, body, pipe }
    }

    /// Whether every request has been received.
    pub(crate) fn is_idle(&self) -> bool {
        self.dials.is_empty()
    }
}

impl Request {
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }

    pub(crate) async fn respond(mut self, status: u16, body: &impl serde::Serialize) {
        let body = serde_json::to_string(body).unwrap();
        let head = format!("HTTP/1.1 {status} x\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
        self.pipe.write_all((head + &body).as_bytes()).await.unwrap();
    }

    pub(crate) async fn refuse(self, problem: &Problem) {
        self.respond(problem.status, problem).await;
    }

    /// 101.
    pub(crate) async fn upgrade(self) -> Leg {
        self.switch("").await
    }

    /// 101, which grants that the leg is used again.
    pub(crate) async fn grant(self) -> Leg {
        assert_eq!(self.header("moorline-leg"), "reuse");
        self.switch("Moorline-Leg: reuse\r\n").await
    }

    async fn switch(mut self, more: &str) -> Leg {
        let accept = derive_accept_key(self.header("sec-websocket-key").as_bytes());
        let head = format!(
            "HTTP/1.1 101 x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: {accept}\r\n\
             Sec-WebSocket-Protocol: {}\r\n{more}\r\n",
            self.header("sec-websocket-protocol")
        );
        self.pipe.write_all(head.as_bytes()).await.unwrap();
        WebSocketStream::from_raw_socket(self.pipe, Role::Server, None).await
    }

    /// 101, and `opened`.
    pub(crate) async fn open(self) -> Leg {
        let mut leg = self.upgrade().await;
        send_text(&mut leg, OPENED).await;
        leg
    }
}

pub(crate) async fn send_text(leg: &mut Leg, text: &str) {
    leg.send(Message::text(text)).await.unwrap();
}

pub(crate) async fn close(leg: &mut Leg, code: u16) {
    leg.send(Message::Close(Some(CloseFrame { code: code.into(), reason: "".into() }))).await.unwrap();
}

/// A refusal on a leg.
pub(crate) fn refused(code: ProblemCode) -> String {
    LegText::from(Box::new(Refused { problem: Problem::new(code, "not now") })).encode()
}

/// The `ask` that comes next.
pub(crate) async fn asked(leg: &mut Leg) -> Ask {
    let Message::Text(text) = receive(leg).await else { panic!("an ask") };
    match ReuseText::decode(&text) {
        Ok(Decoded::Known(ReuseText::Ask(ask))) => *ask,
        other => panic!("{other:?} of {text}"),
    }
}

/// The code that the client closes with, or `None` if the connection is lost. What comes before is discarded.
pub(crate) async fn closed(leg: &mut Leg) -> Option<u16> {
    loop {
        match leg.next().await {
            Some(Ok(Message::Close(close))) => return close.map(|close| close.code.into()),
            Some(Ok(_)) => {}
            Some(Err(_)) | None => return None,
        }
    }
}

/// The relay's part of a stream that ends in order: says `down`, hears `up`, and keeps the leg.
pub(crate) async fn carry(leg: &mut Leg, up: &str, down: &str) {
    carry_until(leg, up, down, IDLE).await;
}

/// The same with another `idle`.
pub(crate) async fn carry_until(leg: &mut Leg, up: &str, down: &str, idle: &str) {
    assert_eq!(receive(leg).await, Message::binary(up.to_owned()));
    assert_eq!(receive(leg).await, Message::text(END_TEXT));
    leg.send(Message::binary(down.to_owned())).await.unwrap();
    send_text(leg, END_TEXT).await;
    assert_eq!(receive(leg).await, Message::text(DELIVERED_TEXT));
    send_text(leg, DELIVERED_TEXT).await;
    send_text(leg, idle).await;
}

/// The caller's part of it.
pub(crate) async fn use_up(mut stream: Stream, up: &str, down: &str) {
    stream.write_all(up.as_bytes()).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut received = String::new();
    stream.read_to_string(&mut received).await.unwrap();
    assert_eq!(received, down);
    assert_eq!(stream.finish().await, EndReason::Finished);
}

/// The next message that is not a ping or pong.
pub(crate) async fn receive(leg: &mut Leg) -> Message {
    loop {
        match leg.next().await.unwrap().unwrap() {
            Message::Ping(_) | Message::Pong(_) => {}
            other => return other,
        }
    }
}
