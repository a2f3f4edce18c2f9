//! One side's WebSocket of a stream, as the relay holds it: before `opened`, while bytes are spliced, and until it is closed.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_util::{Sink, SinkExt, Stream};
use moorline_proto::bounds::{CLOSE_WITHIN, HELD_BEFORE_OPENED_BYTES, LEG_BINARY_BYTES};
use moorline_proto::close::{CloseReason, fitting_reason};
use moorline_proto::leg::LegText;
use tokio::time::{Instant, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error as WsError, Message};

use crate::slots::Slot;
use crate::socket::Socket;
use crate::splice::piece::{Fate, Piece, classify};
use crate::splice::pulse::{Due, Pulse, Standing};

/// Buffers of a leg. The read buffer takes a whole message of the usual size; what is written waits for a flush or for this much.
pub(crate) fn websocket_config() -> WebSocketConfig {
    WebSocketConfig::default()
        .read_buffer_size(16 * 1024)
        .write_buffer_size(LEG_BINARY_BYTES)
        .max_write_buffer_size(8 * LEG_BINARY_BYTES)
        .max_message_size(Some(LEG_BINARY_BYTES))
        .max_frame_size(Some(LEG_BINARY_BYTES))
}

/// One side's WebSocket of a stream.
#[derive(Debug)]
pub struct Leg {
    socket: WebSocketStream<Socket>,
    held: VecDeque<Piece>,
    held_bytes: usize,
    fate: Option<Fate>,
    pub(super) pulse: Pulse,
    /// The side said `end`, or closed in a way that means it.
    pub(super) ended: bool,
    /// Something was handed to the socket that it may not have written yet.
    pub(super) unflushed: bool,
    /// The relay waits for a frame of it: the last look found none.
    pub(super) reading: bool,
    _slot: Slot,
}

impl Leg {
    /// A leg right behind its 101, in its connection's place.
    pub fn new(socket: WebSocketStream<Socket>, ping: Duration, slot: Slot) -> Self {
        Self {
            socket,
            held: VecDeque::new(),
            held_bytes: 0,
            fate: None,
            pulse: Pulse::new(ping, Instant::now()),
            ended: false,
            unflushed: false,
            reading: true,
            _slot: slot,
        }
    }

    /// Reads ahead until the leg comes to its end, and holds what it says. Past 64 KiB nothing more is read.
    ///
    /// # Cancel safety
    /// What was read stays held.
    pub async fn watch(&mut self) -> Fate {
        poll_fn(|cx| {
            while self.held_bytes < HELD_BEFORE_OPENED_BYTES {
                match ready!(self.poll_socket(cx)) {
                    Ok(piece) => {
                        self.held_bytes += piece.size();
                        self.held.push_back(piece);
                    }
                    Err(fate) => return Poll::Ready(fate),
                }
            }
            self.reading = false;
            Poll::Pending
        })
        .await
    }

    /// The next piece: first what was held, then what comes.
    ///
    /// # Errors
    /// The leg's [`Fate`], again at every further call.
    pub(super) fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Result<Piece, Fate>> {
        match self.held.pop_front() {
            Some(piece) => {
                self.held_bytes -= piece.size();
                Poll::Ready(Ok(piece))
            }
            None => self.poll_socket(cx),
        }
    }

    fn poll_socket(&mut self, cx: &mut Context<'_>) -> Poll<Result<Piece, Fate>> {
        loop {
            if let Some(fate) = &self.fate {
                return Poll::Ready(Err(fate.clone()));
            }
            self.reading = true;
            let message = ready!(Pin::new(&mut self.socket).poll_next(cx));
            match self.understand(message) {
                Ok(Some(piece)) => return Poll::Ready(Ok(piece)),
                Ok(None) => {}
                Err(fate) => self.fate = Some(fate),
            }
        }
    }

    fn understand(&mut self, message: Option<Result<Message, WsError>>) -> Result<Option<Piece>, Fate> {
        let message = match message {
            Some(Ok(message)) => message,
            Some(Err(error)) => return Err(Fate::of(Some(error))),
            None => return Err(Fate::of(None)),
        };
        self.socket.get_mut().finished(&message);
        let now = Instant::now();
        self.pulse.heard(now);
        match &message {
            Message::Ping(_) if !self.pulse.pinged(now) => {
                return Err(Fate::Broke(CloseReason::Protocol, "more than 100 pings a second".to_owned()));
            }
            Message::Pong(payload) => self.pulse.answered(payload),
            Message::Close(None) => return Err(Fate::Done),
            Message::Close(Some(frame)) => match u16::from(frame.code) {
                1000 | 1005 => return Err(Fate::Done),
                code => return Err(Fate::Reset(code)),
            },
            Message::Text(_) | Message::Binary(_) | Message::Ping(_) | Message::Frame(_) => {}
        }
        let piece = classify(message, self.ended)?;
        self.ended |= matches!(piece, Some(Piece::End));
        Ok(piece)
    }

    /// Hands a message to the socket once it takes one.
    ///
    /// # Errors
    /// The leg was lost.
    pub(super) fn poll_send(&mut self, message: &mut Option<Message>, now: Instant, cx: &mut Context<'_>) -> Poll<Result<(), Fate>> {
        if self.is_over() {
            *message = None;
        }
        if message.is_none() {
            return Poll::Ready(Ok(()));
        }
        ready!(Pin::new(&mut self.socket).poll_ready(cx)).map_err(|_| Fate::Lost)?;
        if let Some(message) = message.take() {
            Pin::new(&mut self.socket).start_send(message).map_err(|_| Fate::Lost)?;
            self.unflushed = true;
            self.pulse.sent(now);
        }
        Poll::Ready(Ok(()))
    }

    /// Has everything written that was handed over.
    ///
    /// # Errors
    /// The leg was lost.
    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Fate>> {
        // To a leg that is over nothing is said but the answer to its Close, and that in `close`.
        self.unflushed &= !self.is_over();
        if self.unflushed {
            ready!(Pin::new(&mut self.socket).poll_flush(cx)).map_err(|_| Fate::Lost)?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }

    /// Whether it has come to its end.
    pub(super) fn is_over(&self) -> bool {
        self.fate.is_some()
    }

    /// Looks at the leg's pulse: pings it, or finds it dead.
    ///
    /// # Errors
    /// [`Fate::Lost`] for a dead leg.
    pub fn beat(&mut self, orphaned: bool, now: Instant, cx: &mut Context<'_>) -> Result<(), Fate> {
        if self.is_over() {
            return Ok(());
        }
        match self.pulse.due(Standing { reading: self.reading, orphaned }, now) {
            Due::Nothing => Ok(()),
            Due::Ping(payload) => self.ping(payload, cx),
            Due::Dead => {
                self.fate = Some(Fate::Lost);
                Err(Fate::Lost)
            }
        }
    }

    fn ping(&mut self, payload: [u8; 8], cx: &mut Context<'_>) -> Result<(), Fate> {
        // A leg that is full of bytes needs no ping.
        if self.unflushed {
            return Ok(());
        }
        Pin::new(&mut self.socket).start_send(Message::Ping(payload.to_vec().into())).map_err(|_| Fate::Lost)?;
        self.unflushed = true;
        match self.poll_flush(cx) {
            Poll::Ready(Err(fate)) => Err(fate),
            Poll::Ready(Ok(())) | Poll::Pending => Ok(()),
        }
    }

    /// When [`Leg::beat`] should be called next.
    pub fn next_beat(&self) -> Instant {
        self.pulse.next()
    }

    /// Says something of the relay's own, within `within`.
    ///
    /// # Errors
    /// [`Fate::Lost`] if the leg is lost or does not take it in time.
    pub async fn say(&mut self, text: &LegText, within: Duration) -> Result<(), Fate> {
        self.pulse.sent(Instant::now());
        match timeout(within, self.socket.send(Message::text(text.encode()))).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(Fate::Lost),
        }
    }

    /// Closes the leg and waits for the answer: five seconds, then the connection is reset; after 1000, which stands behind all that a
    /// slow reader has not read yet, `patience`, and no reset.
    pub async fn close(mut self, reason: CloseReason, words: &str, patience: Duration) {
        let within = if reason == CloseReason::Finished { patience } else { CLOSE_WITHIN };
        let answered = match &self.fate {
            Some(Fate::Lost) => false,
            // Its own Close is answered by reading on.
            Some(Fate::Done | Fate::Reset(_)) => timeout(CLOSE_WITHIN, goodbye(&mut self.socket, None)).await.is_ok(),
            Some(Fate::Broke(..)) | None => {
                let text = if words.is_empty() { reason.name().to_owned() } else { format!("{}: {words}", reason.name()) };
                let frame = CloseFrame { code: reason.code().into(), reason: fitting_reason(&text).into() };
                timeout(within, goodbye(&mut self.socket, Some(frame))).await.is_ok()
            }
        };
        let socket = self.socket.into_inner();
        if answered || reason == CloseReason::Finished { socket.close(CLOSE_WITHIN).await } else { socket.reset() }
    }
}

/// Says Close, where there is one to be said, and reads and drops until the WebSocket is over. Reads while it writes: a peer that is busy
/// writing reads nothing before that.
async fn goodbye(socket: &mut WebSocketStream<Socket>, mut frame: Option<CloseFrame>) {
    let mut unsaid = frame.is_some();
    poll_fn(|cx| {
        if frame.is_some() {
            match Pin::new(&mut *socket).poll_ready(cx) {
                Poll::Ready(Ok(())) if Pin::new(&mut *socket).start_send(Message::Close(frame.take())).is_ok() => {}
                Poll::Ready(_) => return Poll::Ready(()),
                Poll::Pending => {}
            }
        }
        if frame.is_none() && unsaid {
            match Pin::new(&mut *socket).poll_flush(cx) {
                Poll::Ready(Ok(())) => unsaid = false,
                Poll::Ready(Err(_)) => return Poll::Ready(()),
                Poll::Pending => {}
            }
        }
        loop {
            match Pin::new(&mut *socket).poll_next(cx) {
                Poll::Ready(Some(Ok(message))) => socket.get_mut().finished(&message),
                Poll::Ready(Some(Err(_)) | None) if unsaid => return Poll::Pending,
                Poll::Ready(Some(Err(_)) | None) => return Poll::Ready(()),
                Poll::Pending => return Poll::Pending,
            }
        }
    })
    .await;
}
