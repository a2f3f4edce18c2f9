//! A leg as `AsyncRead + AsyncWrite`.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use ::bytes::{Buf, Bytes};
use futures_util::Sink;
use moorline_proto::bounds::LEG_BINARY_BYTES;
use moorline_proto::leg::END_TEXT;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_tungstenite::tungstenite::Message;

use super::{Leg, lost};

impl AsyncRead for Leg {
    /// EOF at the far side's `end`; [`io::ErrorKind::ConnectionReset`] with the [`EndReason`](super::EndReason) inside where the leg was cut.
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let leg = self.get_mut();
        if !leg.is_opened {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::NotConnected, "the leg is not opened")));
        }
        loop {
            if !leg.incoming.is_empty() {
                let some = leg.incoming.len().min(buf.remaining());
                buf.put_slice(&leg.incoming[..some]);
                leg.incoming.advance(some);
                return Poll::Ready(Ok(()));
            }
            match leg.end.clone() {
                Some(end) => {
                    leg.say_last(cx);
                    return Poll::Ready(if end.is_clean() { Ok(()) } else { Err(end.to_error()) });
                }
                None if leg.far_ended => return Poll::Ready(Ok(())),
                None => {}
            }
            if leg.poll_event(cx).is_pending() {
                // Whoever waits for an answer has asked: the question must not lie in a buffer.
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
        ready!(leg.poll_room(cx))?;
        let some = buf.len().min(LEG_BINARY_BYTES);
        leg.send(Bytes::copy_from_slice(&buf[..some]))?;
        // As with a socket, what was written is on its way without a flush, as far as there is room.
        drop(leg.poll_flushed(cx));
        Poll::Ready(Ok(some))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().poll_flushed(cx)
    }

    /// Says `end`: this side will send no more bytes. The other direction goes on.
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let leg = self.get_mut();
        if !leg.own_ended {
            ready!(leg.poll_room(cx))?;
            leg.unflushed = true;
            leg.own_ended = true;
            Pin::new(&mut leg.socket).start_send(Message::text(END_TEXT)).map_err(lost)?;
        }
        leg.poll_flushed(cx)
    }
}
