//! A stream's WebSocket as bytes: half-close both ways, and the reason of its end.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use futures_util::{Sink, Stream};
use moorline_proto::bounds::{CLOSE_WITHIN, LEG_BINARY_BYTES, LEG_TEXT_FROM_RELAY_BYTES};
use moorline_proto::close::{CloseReason, fitting_reason};
use moorline_proto::leg::{END_TEXT, LegText, Opened};
use moorline_proto::message::Heard;
use moorline_proto::problem::Problem;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::error::ProtocolError;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error as WsError, Message, Utf8Bytes};

use crate::dial::WebSocket;

/// Buffers and bounds of a leg.
pub fn websocket_config() -> WebSocketConfig {
    WebSocketConfig::default()
        .read_buffer_size(LEG_BINARY_BYTES)
        .write_buffer_size(0)
        .max_write_buffer_size(8 * LEG_BINARY_BYTES)
        .max_message_size(Some(LEG_BINARY_BYTES))
        .max_frame_size(Some(LEG_BINARY_BYTES))
}

/// How a leg ended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LegEnd {
    /// Both directions ended, and everything was delivered.
    #[error("finished")]
    Finished,
    /// The far side was done before this side had ended: what this side still had to say was cut short.
    #[error("the far side was done before this side had ended")]
    CutShort,
    /// The relay closed the leg with another code than 1000.
    #[error("{}", describe(*.code, .reason))]
    Closed {
        /// The close code.
        code: u16,
        /// The reason, for people.
        reason: String,
    },
    /// The connection ended without a Close.
    #[error("the connection to the relay was lost")]
    Lost,
    /// The relay was silent for too long.
    #[error("the relay has said nothing for too long")]
    Silent,
    /// What came is against the protocol.
    #[error("the relay broke the protocol: {0}")]
    Broke(String),
}

fn describe(code: u16, reason: &str) -> String {
    let name = CloseReason::from_code(code).map_or("closed", CloseReason::name);
    if reason.is_empty() || reason == name { format!("{name} ({code})") } else { format!("{name} ({code}): {reason}") }
}

/// Why a leg did not open.
#[derive(Clone, Debug, thiserror::Error)]
pub enum OpeningError {
    /// The relay or the device refused the stream.
    #[error("{} ({})", .0.detail, .0.code)]
    Refused(Box<Problem>),
    /// The leg ended before it was said whether it opens.
    #[error("the leg ended before it was opened")]
    Ended(#[source] LegEnd),
}

/// One thing that came.
#[derive(Debug)]
pub(crate) enum Incoming {
    Bytes(Bytes),
    End,
    /// Pings, pongs, and text for which there is no use here.
    Other,
}

/// A stream's WebSocket, from its 101 on.
#[derive(Debug)]
pub struct Leg {
    socket: WebSocket,
    inbox: Bytes,
    opened: bool,
    pub(crate) got_end: bool,
    pub(crate) said_end: bool,
    end: Option<LegEnd>,
}

impl Leg {
    /// A leg right behind its 101. Wait for [`Leg::opened`] before anything else.
    pub fn new(socket: WebSocket) -> Self {
        Self { socket, inbox: Bytes::new(), opened: false, got_end: false, said_end: false, end: None }
    }

    /// Waits until the relay says that the stream is open.
    ///
    /// # Errors
    /// [`OpeningError::Refused`] with the problem; [`OpeningError::Ended`] if the leg ended instead.
    ///
    /// # Cancel safety
    /// Can be called again; nothing is lost.
    pub async fn opened(&mut self) -> Result<Opened, OpeningError> {
        poll_fn(|cx| {
            loop {
                if let Some(end) = &self.end {
                    return Poll::Ready(Err(OpeningError::Ended(end.clone())));
                }
                match ready!(self.poll_message(cx)) {
                    Ok(Message::Text(text)) => match self.verdict(&text) {
                        Some(verdict) => return Poll::Ready(verdict),
                        None => self.broke("something before opened"),
                    },
                    Ok(Message::Binary(_)) => self.broke("bytes before opened"),
                    Ok(_) | Err(()) => {}
                }
            }
        })
        .await
    }

    fn verdict(&mut self, text: &str) -> Option<Result<Opened, OpeningError>> {
        match LegText::decode(text) {
            Ok(Heard::Known(LegText::Opened(opened))) => {
                self.opened = true;
                Some(Ok(*opened))
            }
            Ok(Heard::Known(LegText::Refused(refused))) => Some(Err(OpeningError::Refused(Box::new(refused.problem)))),
            Ok(Heard::Known(LegText::End(_)) | Heard::Unknown(_)) | Err(_) => None,
        }
    }

    /// Why the leg ended, once it has.
    pub fn end_reason(&self) -> Option<&LegEnd> {
        self.end.as_ref()
    }

    /// After both directions have ended: waits for the relay's Close and answers it. There is no limit of its own, since the Close stands
    /// behind all that the far side has not read yet. Bytes that still come are dropped.
    ///
    /// # Cancel safety
    /// Can be called again.
    pub async fn finish(&mut self) -> LegEnd {
        let end = poll_fn(|cx| {
            loop {
                if let Some(end) = &self.end {
                    return Poll::Ready(end.clone());
                }
                // What came is dropped; how it ended is in `end`.
                drop(ready!(self.poll_incoming(cx)));
            }
        })
        .await;
        self.say_goodbye().await;
        end
    }

    /// Answers the relay's Close and waits, five seconds at most, until it has ended the connection.
    pub(crate) async fn say_goodbye(&mut self) {
        let answered = poll_fn(|cx| {
            loop {
                match ready!(Pin::new(&mut self.socket).poll_next(cx)) {
                    Some(Ok(_)) => {}
                    Some(Err(_)) | None => return Poll::Ready(()),
                }
            }
        });
        // Too late is no loss: everything was delivered, or the leg was reset anyhow.
        timeout(CLOSE_WITHIN, answered).await.ok();
    }

    /// Gives the stream up: the far side sees a reset. Five seconds for the Close, then the connection is reset.
    ///
    /// # Cancel safety
    /// Dropping the future drops the connection, which is a reset too.
    pub async fn reset(self) {
        self.close(CloseReason::Reset, "").await;
    }

    /// Closes the leg with a code other than 1000.
    pub(crate) async fn close(mut self, reason: CloseReason, words: &str) {
        let text = if words.is_empty() { reason.name().to_owned() } else { format!("{}: {words}", reason.name()) };
        let mut frame = Some(CloseFrame { code: reason.code().into(), reason: fitting_reason(&text).into() });
        let said = poll_fn(|cx| {
            if frame.is_some() {
                match ready!(Pin::new(&mut self.socket).poll_ready(cx)) {
                    Ok(()) => Pin::new(&mut self.socket).start_send(Message::Close(frame.take())).ok(),
                    Err(_) => return Poll::Ready(false),
                };
            }
            Pin::new(&mut self.socket).poll_flush(cx).map(|flushed| flushed.is_ok())
        });
        match timeout(CLOSE_WITHIN, said).await {
            Ok(true) => self.say_goodbye().await,
            Ok(false) | Err(_) => self.socket.into_inner().reset(),
        }
    }

    /// Sends a pong that nobody asked for: this end lives, though it does not read.
    pub(crate) fn poll_unasked_pong(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if ready!(Pin::new(&mut self.socket).poll_ready(cx)).is_ok() {
            Pin::new(&mut self.socket).start_send(Message::Pong(Bytes::new())).ok();
            // What cannot be flushed now is flushed with what comes next.
            return Pin::new(&mut self.socket).poll_flush(cx).map(drop);
        }
        Poll::Ready(())
    }

    /// Hands a message over, once the socket takes one.
    pub(crate) fn poll_send(&mut self, message: &mut Option<Message>, cx: &mut Context<'_>) -> Poll<Result<(), LegEnd>> {
        if message.is_none() {
            return Poll::Ready(Ok(()));
        }
        let handed = match ready!(Pin::new(&mut self.socket).poll_ready(cx)) {
            Ok(()) => message.take().map_or(Ok(()), |message| Pin::new(&mut self.socket).start_send(message)),
            Err(error) => Err(error),
        };
        Poll::Ready(handed.map_err(|_| LegEnd::Lost))
    }

    /// Has everything written that was handed over.
    pub(crate) fn poll_flushed(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), LegEnd>> {
        Pin::new(&mut self.socket).poll_flush(cx).map_err(|_| LegEnd::Lost)
    }

    /// The next thing that comes. After the end: pending for ever is never returned, `Err` is, each time.
    pub(crate) fn poll_incoming(&mut self, cx: &mut Context<'_>) -> Poll<Result<Incoming, ()>> {
        if self.end.is_some() {
            return Poll::Ready(Err(()));
        }
        Poll::Ready(match ready!(self.poll_message(cx)) {
            Ok(Message::Binary(bytes)) if bytes.is_empty() => Ok(Incoming::Other),
            Ok(Message::Binary(_)) if self.got_end => {
                self.broke("bytes after end");
                Err(())
            }
            Ok(Message::Binary(bytes)) => Ok(Incoming::Bytes(bytes)),
            Ok(Message::Text(text)) => Ok(self.text(&text)),
            Ok(_) => Ok(Incoming::Other),
            Err(()) => Err(()),
        })
    }

    fn text(&mut self, text: &str) -> Incoming {
        match LegText::decode(text) {
            Ok(Heard::Known(LegText::End(_))) if !self.got_end => {
                self.got_end = true;
                Incoming::End
            }
            // Text of a later version is for ends that know it.
            Ok(Heard::Known(_) | Heard::Unknown(_)) | Err(_) => Incoming::Other,
        }
    }

    fn poll_message(&mut self, cx: &mut Context<'_>) -> Poll<Result<Message, ()>> {
        let message = ready!(Pin::new(&mut self.socket).poll_next(cx));
        let end = match message {
            Some(Ok(Message::Text(text))) if text.len() > LEG_TEXT_FROM_RELAY_BYTES => LegEnd::Broke("text that is too large".to_owned()),
            Some(Ok(Message::Close(frame))) => self.closed(frame),
            Some(Ok(message)) => return Poll::Ready(Ok(message)),
            Some(Err(WsError::Protocol(ProtocolError::ResetWithoutClosingHandshake))) | None => LegEnd::Lost,
            Some(Err(error @ (WsError::Protocol(_) | WsError::Capacity(_) | WsError::Utf8(_)))) => LegEnd::Broke(error.to_string()),
            Some(Err(_)) => LegEnd::Lost,
        };
        self.end = Some(end);
        Poll::Ready(Err(()))
    }

    fn closed(&mut self, frame: Option<CloseFrame>) -> LegEnd {
        let (code, reason) = frame.map_or((1000, String::new()), |frame| (frame.code.into(), frame.reason.to_string()));
        match code {
            1000 if self.said_end => LegEnd::Finished,
            1000 => LegEnd::CutShort,
            code => LegEnd::Closed { code, reason },
        }
    }

    fn broke(&mut self, how: &str) {
        self.end = Some(LegEnd::Broke(how.to_owned()));
    }

    /// `end`, ready to be sent.
    pub(crate) fn end_message() -> Message {
        Message::Text(Utf8Bytes::from_static(END_TEXT))
    }

    fn reset_error(&self) -> io::Error {
        io::Error::new(io::ErrorKind::ConnectionReset, self.end.clone().unwrap_or(LegEnd::Lost))
    }
}

impl AsyncRead for Leg {
    /// Nothing more comes after the far side's `end`, or its 1000; any other end of the leg is [`io::ErrorKind::ConnectionReset`].
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        while self.inbox.is_empty() {
            if self.got_end || matches!(self.end, Some(LegEnd::Finished | LegEnd::CutShort)) {
                return Poll::Ready(Ok(()));
            }
            match ready!(self.poll_incoming(cx)) {
                Ok(Incoming::Bytes(bytes)) => self.inbox = bytes,
                Ok(Incoming::End | Incoming::Other) => {}
                Err(()) if matches!(self.end, Some(LegEnd::Finished | LegEnd::CutShort)) => {}
                Err(()) => return Poll::Ready(Err(self.reset_error())),
            }
        }
        let some = self.inbox.len().min(buf.remaining());
        buf.put_slice(&self.inbox[..some]);
        self.inbox.advance(some);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Leg {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.end.is_some() || self.said_end {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::BrokenPipe, "the leg takes no more bytes")));
        }
        let some = buf.len().min(LEG_BINARY_BYTES);
        if some == 0 {
            return Poll::Ready(Ok(0));
        }
        ready!(Pin::new(&mut self.socket).poll_ready(cx)).map_err(|_| self.reset_error())?;
        let message = Message::Binary(Bytes::copy_from_slice(&buf[..some]));
        Pin::new(&mut self.socket).start_send(message).map_err(|_| self.reset_error())?;
        Poll::Ready(Ok(some))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx).map_err(|_| self.reset_error())
    }

    /// Says `end`: this side sends no more bytes, the other direction goes on.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.said_end && self.end.is_none() {
            ready!(Pin::new(&mut self.socket).poll_ready(cx)).map_err(|_| self.reset_error())?;
            Pin::new(&mut self.socket).start_send(Self::end_message()).map_err(|_| self.reset_error())?;
            self.said_end = true;
        }
        match &self.end {
            Some(_) => Poll::Ready(Ok(())),
            None => self.poll_flush(cx),
        }
    }
}
