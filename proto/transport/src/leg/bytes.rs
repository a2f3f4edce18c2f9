//! A leg as `AsyncRead + AsyncWrite`.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use moorline_proto::frame::Kind;
use moorline_proto::leg::END_TEXT;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{Leg, Phase, SendError};

impl AsyncRead for Leg {
    /// EOF at the far side's `end`; [`io::ErrorKind::ConnectionReset`] with the [`EndReason`](super::EndReason) inside if the leg was cut.
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let leg = self.get_mut();
        if leg.stream.phase != Phase::Open {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::NotConnected, "the leg is not open")));
        }
        loop {
            if !leg.stream.incoming.is_empty() {
                let there = leg.stream.incoming.as_slice();
                let some = there.len().min(buf.remaining());
                buf.put_slice(&there[..some]);
                leg.stream.incoming.advance(some);
                return Poll::Ready(Ok(()));
            }
            match leg.stream.end.clone() {
                Some(end) => {
                    leg.try_flush(cx);
                    return Poll::Ready(if end.is_clean() { Ok(()) } else { Err(end.to_error()) });
                }
                None if leg.stream.far_ended => {
                    // Whoever reads the EOF has read everything before it.
                    leg.push_delivered();
                    leg.try_flush(cx);
                    return Poll::Ready(Ok(()));
                }
                None => {}
            }
            if leg.poll_event(cx).is_pending() {
                // A caller that waits for an answer has sent its question: it must not stay in a buffer.
                drop(leg.poll_flushed(cx));
                return Poll::Pending;
            }
        }
    }
}

impl AsyncWrite for Leg {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let leg = self.get_mut();
        if buf.is_empty() {
            return Poll::Ready(Ok(0));
        }
        ready!(leg.poll_writable(cx))?;
        let mut source = buf;
        let some = match ready!(leg.poll_send_from(&mut source, cx)) {
            Ok(some) => some,
            Err(SendError::Source(error)) => return Poll::Ready(Err(error)),
            Err(SendError::Connection) => return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
        };
        // As with a socket, written bytes are sent without a flush, as far as there is room.
        drop(leg.poll_flushed(cx));
        Poll::Ready(Ok(some))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().poll_flushed(cx)
    }

    /// Sends `end`: this side sends no more bytes. The other direction goes on.
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let leg = self.get_mut();
        if !leg.stream.own_ended {
            ready!(leg.poll_writable(cx))?;
            leg.stream.own_ended = true;
            leg.frames.push(Kind::Text, END_TEXT.as_bytes());
        }
        leg.poll_flushed(cx)
    }
}
