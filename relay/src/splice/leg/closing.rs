//! The end of a leg: its Close, the peer's, and the connection behind them.

use std::future::poll_fn;
use std::task::{Poll, ready};
use std::time::Duration;

use moorline_proto::bounds::CLOSE_TIMEOUT;
use moorline_proto::close::CloseReason;
use tokio::time::timeout;

use super::Leg;
use crate::net::connection::ReadSize;
use crate::splice::leg_end::LegEnd;
use crate::splice::scratch::{self, Scratch};

impl Leg {
    /// Closes the leg and waits five seconds for the peer's Close; then the connection is reset. After 1000, which is sent behind
    /// everything that a slow reader has not read yet, waits for `patience` instead, and does not reset.
    pub async fn close(self: Box<Self>, reason: CloseReason, detail: &str, patience: Duration) {
        // Boxed: whoever keeps a leg may close it, and would hold the room for that for as long.
        Box::pin(self.exchange_and_close(reason, detail, patience)).await;
    }

    async fn exchange_and_close(mut self: Box<Self>, reason: CloseReason, detail: &str, patience: Duration) {
        let answered = match &self.end {
            Some(LegEnd::Lost) => false,
            Some(LegEnd::Done) => {
                self.push(|batch| batch.close(Some((reason.code(), &reason.text(detail)))));
                timeout(CLOSE_TIMEOUT, self.exchange_closes()).await.is_ok()
            }
            Some(LegEnd::Reset(_)) => {
                if !self.closing {
                    let peer_close = self.reader.peer_close.take();
                    self.push(|batch| batch.close(peer_close.as_ref().map(|close| (close.code, &*close.reason))));
                }
                timeout(CLOSE_TIMEOUT, self.exchange_closes()).await.is_ok()
            }
            Some(LegEnd::Broke(..)) | None => {
                if !self.closing {
                    self.push(|batch| batch.close(Some((reason.code(), &reason.text(detail)))));
                }
                let within = if reason == CloseReason::Finished { patience } else { CLOSE_TIMEOUT };
                timeout(within, self.exchange_closes()).await.is_ok()
            }
        };
        if answered || reason == CloseReason::Finished { self.socket.close(CLOSE_TIMEOUT).await } else { self.socket.reset() }
    }

    /// Writes our Close, and reads and discards until the peer's Close or its end. Reads while it writes: a peer that is busy writing may
    /// not read before that.
    async fn exchange_closes(&mut self) {
        let mut over = matches!(self.end, Some(LegEnd::Done | LegEnd::Reset(_)));
        poll_fn(|cx| {
            let written = match self.write_buffer.poll_flush(&mut self.socket, cx) {
                Poll::Ready(Ok(())) => true,
                Poll::Ready(Err(_)) => return Poll::Ready(()),
                Poll::Pending => false,
            };
            loop {
                if over || (written && self.reader.is_broken()) {
                    return if written { Poll::Ready(()) } else { Poll::Pending };
                }
                let (socket, reader, mut closed) = (&mut self.socket, &mut self.reader, false);
                let read = scratch::with(|Scratch { input, .. }| {
                    socket.poll_read_pieces(ReadSize::Available, input, cx, &mut |bytes| closed = closed || reader.contains_close(bytes))
                });
                over = !matches!(ready!(read), Ok(1..)) || closed;
            }
        })
        .await;
    }
}
