//! An open stream: bytes both ways, what was said when it opened, and why it ended.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use moorline_proto::id::{Feature, ServiceName, StreamId};
use moorline_proto::leg::Opened;
use moorline_proto::problem::Timeline;
use moorline_proto::text::Data;
use moorline_transport::bridge::{Bridged, LocalSide, bridge};
use moorline_transport::leg::{EndReason, Leg};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A stream to a service of a device, as good as a TCP connection to it.
///
/// Reading gives the end (0 bytes) only when the device's side has finished; a stream that was reset or lost gives an error instead, so that
/// a truncated transfer never looks like a finished one. `shutdown` ends this side's direction, and the other goes on.
///
/// Dropping a stream that has not ended both ways resets it: the device's side sees a reset connection.
/// Somebody must read it: a stream that nobody reads or finishes does not answer the relay's pings, and may be taken for dead.
#[derive(Debug)]
pub struct Stream {
    leg: Leg,
    opened: Opened,
}

impl Stream {
    pub(crate) fn new(leg: Leg, opened: Opened) -> Self {
        Self { leg, opened }
    }

    /// The stream's name in the logs of relay and device.
    pub fn id(&self) -> StreamId {
        self.opened.stream
    }

    /// The service that was asked for.
    pub fn service(&self) -> &ServiceName {
        &self.opened.service
    }

    /// What the device gave with its yes.
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

    /// All that the relay said when the stream opened.
    pub fn opened(&self) -> &Opened {
        &self.opened
    }

    /// Ends this side and tells how the stream ended, once everything that was written is delivered; what still comes is dropped.
    /// So read to the end first, after `shutdown`, where the other side has something to say. Takes as long as the far side takes to read.
    ///
    /// # Cancel safety
    /// Dropping the future resets the stream, unless both sides had ended.
    pub async fn finish(self) -> EndReason {
        self.leg.finish().await
    }

    /// Ends the stream at once, both ways: the device's side sees a reset connection. Waits up to five seconds for the relay's answer.
    pub async fn reset(self) {
        self.leg.reset().await;
    }

    /// Why the stream ended, as soon as that was read.
    pub fn ended(&self) -> Option<&EndReason> {
        self.leg.end_reason()
    }

    /// Carries a local connection over the stream until both are done, with half-close and resets both ways; or until `stop` is ready, which
    /// resets both. [`std::future::pending`] stops nothing.
    ///
    /// # Cancel safety
    /// Dropping the future resets the stream and drops the local connection, which sees an ordinary close.
    pub async fn bridge<L: LocalSide>(self, local: L, stop: impl Future<Output = ()>) -> Bridged {
        bridge(local, self.leg, stop).await
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
