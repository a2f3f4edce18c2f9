//! For tests: the relay's side of control channels and legs, message by message, over in-memory pipes.

use std::io;

use futures_util::{SinkExt, StreamExt};
use moorline_proto::control::{
    Attempt, CallerInfo, Challenge, FromDevice, Hello, Nonce, Offer, Reject, RejectCode, ToDevice, Warm, Welcome,
};
use moorline_proto::join::RelayUrl;
use moorline_proto::leg::{LegText, Opened, Peer};
use moorline_proto::message::Decoded;
use moorline_proto::names::{LEG_HEADER, REUSE};
use moorline_proto::problem::Timeline;
use moorline_proto::reuse::{Idle, LegOffer, ReuseText};
use moorline_proto::secret::Secret;
use moorline_proto::text::Text;
use moorline_proto::timestamp::Timestamp;
use moorline_transport::dial::Dialer;
use tokio::io::{DuplexStream, duplex};
use tokio::sync::{mpsc, oneshot};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::server::{ErrorResponse, Request, Response};
use tokio_tungstenite::tungstenite::http::HeaderValue;
use tokio_tungstenite::tungstenite::http::header::SEC_WEBSOCKET_PROTOCOL;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::{WebSocketStream, accept_hdr_async};

use crate::agent::Agent;
use crate::handler::{Accepted, Decision, DecisionFuture, Handler, OfferInfo};
use crate::identity::Identity;
use crate::settings::Settings;

/// The address of the scripted relay.
pub(crate) const URL: &str = "https://relay.test";

/// The connections that the agent has dialled.
#[derive(Debug)]
pub(crate) struct ScriptedRelay(mpsc::Receiver<DuplexStream>);

/// The relay's end of a WebSocket.
#[derive(Debug)]
pub(crate) struct Socket(WebSocketStream<DuplexStream>);

/// Settings of a device with a new key.
pub(crate) fn settings() -> Settings {
    let folder = tempfile::tempdir().unwrap();
    let identity = Identity::create(&folder.path().join("device.key")).unwrap();
    Settings::new(URL.parse().unwrap(), "lamp-1".parse().unwrap(), identity)
}

/// An agent, and the relay that it connects to.
pub(crate) fn agent(settings: Settings, handler: impl Handler) -> (Agent, ScriptedRelay) {
    let (dialer, relay) = dialer();
    (Agent::with_dialer(settings, handler, dialer), relay)
}

/// A dialer, and the relay that it connects to.
pub(crate) fn dialer() -> (Dialer, ScriptedRelay) {
    let (sender, connections) = mpsc::channel(64);
    let connect = move |_: RelayUrl| {
        let (local, remote) = duplex(1 << 20);
        let sent = sender.try_send(remote);
        async move { sent.map(|()| local).map_err(|_| io::Error::other("nobody accepts")) }
    };
    (Dialer::over(URL.parse().unwrap(), connect), ScriptedRelay(connections))
}

/// A `welcome` without features: the relay pings.
pub(crate) fn welcome() -> Welcome {
    Welcome {
        warm: None,
        session: Text::truncated("session"),
        node: "n1".parse().unwrap(),
        heartbeat_ms: 3_600_000,
        heartbeat_max_ms: 3_600_000,
        max_streams: 512,
        features: Vec::new(),
        time: Timestamp::from_millis(0),
    }
}

/// The first offer of a stream of the service `ssh`.
pub(crate) fn offer(stream: u32) -> Offer {
    let stream = format!("{stream:032x}");
    Offer {
        stream: stream.parse().unwrap(),
        attempt: Attempt::FIRST,
        service: "ssh".parse().unwrap(),
        url: Text::truncated(&format!("/v1/legs/n1/{stream}")),
        token: Secret::new("mrl_leg_x"),
        expires_in_ms: 60_000,
        caller: caller(),
        data: None,
        features: Vec::new(),
    }
}

/// A call of the handler, as the test sees it.
#[derive(Debug)]
pub(crate) struct Call {
    /// Sends the decision.
    pub(crate) decide: oneshot::Sender<Decision>,
    /// Resolves when the call was dropped.
    pub(crate) dropped: oneshot::Receiver<()>,
}

impl Call {
    /// Accepts, and returns the program behind the target.
    pub(crate) fn accept(self) -> DuplexStream {
        let (local, program) = duplex(1 << 16);
        self.decide.send(Decision::Accept(Accepted::stream(local))).unwrap();
        program
    }

    /// Rejects.
    pub(crate) fn reject(self, code: RejectCode) {
        self.decide.send(Decision::reject(code, "no")).unwrap();
    }
}

/// A handler that passes each call to the test.
pub(crate) fn handler() -> (impl Fn(OfferInfo) -> DecisionFuture<'static> + Send + Sync, mpsc::Receiver<Call>) {
    let (calls, receiver) = mpsc::channel(64);
    let handler = move |_: OfferInfo| -> DecisionFuture<'static> {
        let ((decide, decided), (alive, dropped)) = (oneshot::channel(), oneshot::channel());
        let sent = calls.try_send(Call { decide, dropped });
        Box::pin(async move {
            let _alive: oneshot::Sender<()> = alive;
            sent.unwrap();
            decided.await.unwrap()
        })
    };
    (handler, receiver)
}

/// Runs `scenario` while the agent runs.
pub(crate) async fn alongside(agent: Agent, scenario: impl Future<Output = ()>) {
    tokio::select! {
        () = agent.run(std::future::pending()) => panic!("the agent stopped"),
        () = scenario => {}
    }
}

/// The next rejection on a control channel.
pub(crate) async fn rejected(control: &mut Socket) -> Reject {
    match control.next().await {
        FromDevice::Reject(reject) => reject,
        other => panic!("{other:?} instead of reject"),
    }
}

/// A `welcome` of a relay that knows idle legs.
pub(crate) fn reuse_welcome() -> Welcome {
    let warm = Warm { url: Text::truncated("/v1/legs/n1/idle"), token: Secret::new("mrl_warm_x") };
    Welcome { features: vec![REUSE.parse().unwrap()], warm: Some(warm), ..welcome() }
}

/// The first offer of a stream, on a leg.
pub(crate) fn leg_offer(stream: u32) -> LegOffer {
    let Offer { stream, attempt, service, expires_in_ms, caller, data, features, .. } = offer(stream);
    LegOffer { stream, attempt, service, expires_in_ms, caller, data, features, ping_ms: 3_600_000 }
}

fn caller() -> CallerInfo {
    CallerInfo {
        issuer: "relay".parse().unwrap(),
        subject: "alice".parse().unwrap(),
        groups: Vec::new(),
        address: [192, 0, 2, 1].into(),
        reason: None,
    }
}

impl ScriptedRelay {
    /// Accepts a connection without waiting for a request: the connection of a leg is opened in advance.
    pub(crate) async fn accept_connection(&mut self) -> DuplexStream {
        self.0.recv().await.unwrap()
    }

    /// Accepts the next connection and its upgrade, as a relay that knows nothing of idle legs.
    pub(crate) async fn accept(&mut self) -> Socket {
        self.upgrade(false).await.0
    }

    /// Accepts the next leg, which may be used again, and returns the path of its request.
    pub(crate) async fn accept_reusable(&mut self) -> (Socket, String) {
        let (leg, path, asks_reuse) = self.upgrade(true).await;
        assert!(asks_reuse, "the leg asks to be used again");
        (leg, path)
    }

    /// Accepts a leg that is opened idle, and says so.
    pub(crate) async fn accept_idle(&mut self) -> Socket {
        let (mut leg, path) = self.accept_reusable().await;
        assert_eq!(path, "/v1/legs/n1/idle");
        leg.idle().await;
        leg
    }

    /// Accepts the next upgrade. Returns its path, and whether it asks for a leg that is used again.
    pub(crate) async fn upgrade(&mut self, grants_reuse: bool) -> (Socket, String, bool) {
        let connection = self.accept_connection().await;
        let (mut path, mut asks_reuse) = (String::new(), false);
        #[expect(clippy::result_large_err, reason = "the signature of tungstenite's callback")]
        let with_subprotocol = |request: &Request, mut response: Response| -> Result<Response, ErrorResponse> {
            let subprotocol = request.headers()[SEC_WEBSOCKET_PROTOCOL].clone();
            response.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, subprotocol);
            path = request.uri().path().to_owned();
            asks_reuse = request.headers().get(LEG_HEADER).is_some_and(|value| value == REUSE);
            if asks_reuse && grants_reuse {
                response.headers_mut().insert(LEG_HEADER, HeaderValue::from_static(REUSE));
            }
            Ok(response)
        };
        let socket = accept_hdr_async(connection, with_subprotocol).await.unwrap();
        (Socket(socket), path, asks_reuse)
    }

    /// Accepts a control channel and admits the device.
    pub(crate) async fn admit(&mut self, welcome: Welcome) -> (Socket, Hello) {
        let mut control = self.accept().await;
        control.send(Challenge { nonce: Nonce([7; 32]), time: Timestamp::from_millis(0) }).await;
        let FromDevice::Hello(hello) = control.next().await else { panic!("hello is the first message") };
        control.send(welcome).await;
        (control, hello)
    }

    /// Accepts a leg and opens its stream.
    pub(crate) async fn open_leg(&mut self, offer: &Offer) -> Socket {
        let mut leg = self.accept().await;
        leg.open(offer).await;
        leg
    }

    /// Whether the agent has dialled again.
    pub(crate) fn has_connections(&self) -> bool {
        !self.0.is_empty()
    }
}

impl Socket {
    /// Says that the stream of an offer is open.
    pub(crate) async fn open(&mut self, offer: &Offer) {
        let opened = Opened {
            stream: offer.stream,
            service: offer.service.clone(),
            peer: Peer::Caller(caller()),
            features: Vec::new(),
            data: None,
            ping_ms: 3_600_000,
            timeline: Timeline::default(),
        };
        self.text(LegText::Opened(Box::new(opened)).encode()).await;
    }

    /// Says that the leg is idle.
    pub(crate) async fn idle(&mut self) {
        self.text(ReuseText::from(Idle { keep_ms: 300_000, ping_ms: 300_000 }).encode()).await;
    }

    /// Offers a stream on the leg.
    pub(crate) async fn offer(&mut self, offer: LegOffer) {
        self.text(ReuseText::from(Box::new(offer)).encode()).await;
    }

    /// The device's answer on a leg.
    pub(crate) async fn answer(&mut self) -> ReuseText {
        match self.next_message().await {
            Some(Message::Text(text)) => match ReuseText::decode(&text).unwrap() {
                Decoded::Known(message) => message,
                Decoded::Unknown(kind) => panic!("unknown message {kind}"),
            },
            other => panic!("{other:?} instead of an answer"),
        }
    }

    /// The device's rejection on a leg.
    pub(crate) async fn rejected(&mut self) -> Reject {
        match self.answer().await {
            ReuseText::Reject(reject) => reject,
            other => panic!("{other:?} instead of reject"),
        }
    }

    /// Sends a ping, and waits for its answer: the agent has handled what was sent before.
    pub(crate) async fn ping(&mut self) {
        self.send_message(Message::Ping(Vec::new().into())).await;
        let message = self.0.next().await;
        assert!(matches!(message, Some(Ok(Message::Pong(_)))), "{message:?} instead of a pong");
    }

    pub(crate) async fn text(&mut self, text: impl Into<String>) {
        self.send_message(Message::text(text.into())).await;
    }

    pub(crate) async fn send(&mut self, message: impl Into<ToDevice>) {
        self.send_message(Message::text(message.into().encode())).await;
    }

    pub(crate) async fn send_message(&mut self, message: Message) {
        self.0.send(message).await.unwrap();
    }

    /// The next message, without pings and pongs. None after the end.
    pub(crate) async fn next_message(&mut self) -> Option<Message> {
        loop {
            match self.0.next().await {
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                Some(Ok(message)) => return Some(message),
                Some(Err(_)) | None => return None,
            }
        }
    }

    /// The next message of the control channel.
    pub(crate) async fn next(&mut self) -> FromDevice {
        match self.next_message().await {
            Some(Message::Text(text)) => match FromDevice::decode(&text).unwrap() {
                Decoded::Known(message) => message,
                Decoded::Unknown(kind) => panic!("unknown message {kind}"),
            },
            other => panic!("{other:?} instead of a message"),
        }
    }

    /// The code that the socket is closed with. None for a connection that is lost without a Close.
    pub(crate) async fn closed(&mut self) -> Option<u16> {
        loop {
            if let Message::Close(frame) = self.next_message().await? {
                while self.next_message().await.is_some() {} // sends the answer
                return Some(frame.map_or(1005, |frame| frame.code.into()));
            }
        }
    }

    pub(crate) async fn close(&mut self, code: u16, reason: &str) {
        let frame = CloseFrame { code: code.into(), reason: reason.into() };
        self.send_message(Message::Close(Some(frame))).await;
    }
}
