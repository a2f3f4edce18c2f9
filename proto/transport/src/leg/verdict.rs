//! The relay's first message on a leg: the stream is open, or refused.

use std::future::poll_fn;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use moorline_proto::close::CloseReason;
use moorline_proto::leg::{LegText, Opened};
use moorline_proto::message::Decoded;
use moorline_proto::problem::Problem;
use tokio::time::{Instant, sleep_until};

use super::frames::Received;
use super::{EndReason, Leg, OpenError, Silence};

enum Verdict {
    Opened(Box<Opened>),
    Refused(Box<Problem>),
}

impl Leg {
    /// Waits for the relay's verdict. Call it once, before reading; writing before it is allowed, see the protocol.
    /// It has no timeout of its own: the caller enforces the handshake's deadline.
    ///
    /// # Errors
    /// [`OpenError`].
    ///
    /// # Cancel safety
    /// Nothing is lost; it can be called again.
    pub async fn opened(&mut self) -> Result<Opened, OpenError> {
        let first = poll_fn(|cx| self.poll_verdict(cx)).await?;
        match first {
            Verdict::Opened(opened) => {
                let limit = Duration::from_millis(opened.ping_ms) * 5 / 2;
                self.is_opened = true;
                self.silence = Some(Silence { limit, timer: Box::pin(sleep_until(Instant::now() + limit)) });
                Ok(*opened)
            }
            Verdict::Refused(problem) => Err(OpenError::Refused(problem)),
        }
    }

    fn poll_verdict(&mut self, cx: &mut Context<'_>) -> Poll<Result<Verdict, EndReason>> {
        loop {
            if let Some(end) = self.end.clone() {
                self.try_flush(cx);
                return Poll::Ready(Err(end));
            }
            match ready!(self.poll_received(cx)) {
                Received::Bytes => self.protocol_error(CloseReason::Protocol, "bytes before opened", cx),
                Received::Text(text) => match LegText::decode(&text) {
                    Ok(Decoded::Known(LegText::Opened(opened))) => return Poll::Ready(Ok(Verdict::Opened(opened))),
                    Ok(Decoded::Known(LegText::Refused(refused))) => return Poll::Ready(Ok(Verdict::Refused(Box::new(refused.problem)))),
                    Ok(Decoded::Known(LegText::End(_) | LegText::Delivered(_))) => {
                        self.protocol_error(CloseReason::Protocol, "end before opened", cx);
                    }
                    Ok(Decoded::Unknown(_)) => {}
                    Err(error) => self.invalid_text(&error, cx),
                },
                end @ (Received::Close(_) | Received::Invalid(_) | Received::Disconnected(_)) => self.on_end(end, cx),
            }
        }
    }
}
