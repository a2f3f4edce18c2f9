//! An open stream: bytes in both directions, the relay's `opened`, and why the stream ended.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};

use moorline_proto::id::{Feature, ServiceName, StreamId};
use moorline_proto::leg::Opened;
use moorline_proto::problem::Timeline;
use moorline_proto::secret::Secret;
use moorline_proto::text::Data;
use moorline_transport::bridge::{Bridged, LocalSide, bridge};
use moorline_transport::leg::{EndReason, IdleLeg, Leg};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::pool::Pool;

/// A stream to a service of a device, as good as a TCP connection to it.
///
/// A read returns EOF only when the device's side has finished. A stream that was reset or lost returns an error, so that a truncated
/// transfer never looks like a finished one. `shutdown` ends this side's direction, and the other goes on.
///
/// Dropping a stream before both sides have ended resets it: the device's side sees a reset connection. A stream that both sides have ended
/// leaves its connection to the next one where it is ended by [`Stream::finish`] or [`Stream::bridge`], if the relay grants that.
/// Keep reading it: a stream that is neither read nor finished does not answer the relay's pings and may be considered dead.
#[derive(Debug)]
pub struct Stream {
    leg: Leg,
    opened: Box<Opened>,
    /// Bytes that were sent before `opened`.
    early_bytes: u64,
    /// Where the leg goes behind a clean end, as a leg of this token.
    pool: Weak<Pool>,
    token: Option<Secret>,
}

impl Stream {
    pub(crate) fn new(leg: Leg, opened: Box<Opened>, early_bytes: u64) -> Self {
        Self { leg, opened, early_bytes, pool: Weak::new(), token: None }
    }

    /// The same stream, whose leg is kept for another one if it ends in order.
    pub(crate) fn with_pool(self, pool: &Arc<Pool>, token: Option<Secret>) -> Self {
        Self { pool: Arc::downgrade(pool), token, ..self }
    }

    /// The stream's id in the logs of the relay and the device.
    pub fn id(&self) -> StreamId {
        self.opened.stream
    }

    /// The requested service.
    pub fn service(&self) -> &ServiceName {
        &self.opened.service
    }

    /// The opaque data that the device sent with its `accept`.
    pub fn data(&self) -> Option<&Data> {
        self.opened.data.as_ref()
    }

    /// The features that both ends use.
    pub fn features(&self) -> &[Feature] {
        &self.opened.features
    }

    /// Where the time went until the stream was open.
    pub fn timeline(&self) -> &Timeline {
        &self.opened.timeline
    }

    /// The whole `opened` message.
    pub fn opened(&self) -> &Opened {
        &self.opened
    }

    /// Ends this side and returns how the stream ended, once everything that was written has been delivered. What still arrives is discarded,
    /// so after `shutdown` read to EOF first if the other side has something to send. Takes as long as the far side takes to read.
    ///
    /// # Cancel safety
    /// Dropping the future resets the stream, unless both sides have ended.
    pub async fn finish(self) -> EndReason {
        let (end, idle) = self.leg.finish().await;
        keep(&self.pool, self.token.as_ref(), idle);
        end
    }

    /// Ends the stream at once, in both directions: the device's side sees a reset connection. Waits at most 5 s for the relay's answer.
    pub async fn reset(self) {
        self.leg.reset().await;
    }

    /// Why the stream ended, once that has been read.
    pub fn ended(&self) -> Option<&EndReason> {
        self.leg.end_reason()
    }

    /// Copies between a local connection and the stream until both have ended, with half-closes and resets both ways, or until `stop`
    /// completes, which resets both. Pass [`std::future::pending`] if nothing stops it.
    ///
    /// # Cancel safety
    /// Dropping the future resets the stream and drops the local connection, which sees an ordinary close.
    pub async fn bridge<L: LocalSide>(self, local: L, stop: impl Future<Output = ()>) -> Bridged {
        let Self { leg, opened, early_bytes, pool, token } = self;
        drop(opened);
        let mut bridged = bridge(local, leg, stop).await;
        bridged.to_leg_bytes += early_bytes;
        keep(&pool, token.as_ref(), bridged.idle.take());
        bridged
    }
}

/// Keeps a leg whose stream has ended, if the relay does and the client is still there.
fn keep(pool: &Weak<Pool>, token: Option<&Secret>, idle: Option<IdleLeg>) {
    if let (Some(idle), Some(pool)) = (idle, pool.upgrade()) {
        pool.put(token, idle);
    }
}

impl AsyncRead for Stream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.leg).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.leg).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.leg).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.leg).poll_shutdown(cx)
    }
}
