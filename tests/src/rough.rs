//! A pipe within the process that turns bad when it is told to: nothing passes, nothing is read, or a byte at a time. To cut it, drop it.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};

/// How a pipe behaves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Road {
    /// As a pipe should.
    #[default]
    Good,
    /// Nothing passes, either way.
    Stalled,
    /// What comes is never read; what is sent passes.
    Deaf,
    /// A byte passes, each way, and the next one this much later.
    Crumbs(Duration),
    /// What comes passes; what is sent goes a byte at a time.
    CrumbsSent(Duration),
}

/// Changes how a pipe behaves, from now on.
#[derive(Clone, Debug, Default)]
pub struct Turn(Arc<Mutex<Road>>);

impl Turn {
    /// From now on.
    ///
    /// # Panics
    /// If somebody panicked with it.
    pub fn to(&self, road: Road) {
        *self.0.lock().expect("nobody panics with it") = road;
    }

    fn road(&self) -> Road {
        *self.0.lock().expect("nobody panics with it")
    }
}

/// The pipe.
#[derive(Debug)]
pub struct Rough {
    pipe: DuplexStream,
    turn: Turn,
    next_read: Pin<Box<Sleep>>,
    next_write: Pin<Box<Sleep>>,
}

impl Rough {
    /// A good pipe, and what turns it.
    pub fn new(pipe: DuplexStream) -> (Self, Turn) {
        let turn = Turn::default();
        let now = || Box::pin(sleep(Duration::ZERO));
        (Self { pipe, turn: turn.clone(), next_read: now(), next_write: now() }, turn)
    }
}

impl AsyncRead for Rough {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.turn.road() {
            Road::Good | Road::CrumbsSent(_) => Pin::new(&mut self.pipe).poll_read(cx, buf),
            Road::Stalled | Road::Deaf => Poll::Pending,
            Road::Crumbs(pause) => {
                ready!(self.next_read.as_mut().poll(cx));
                let mut crumb = [0];
                let mut crumb = ReadBuf::new(&mut crumb);
                ready!(Pin::new(&mut self.pipe).poll_read(cx, &mut crumb))?;
                buf.put_slice(crumb.filled());
                self.next_read.as_mut().reset(Instant::now() + pause);
                Poll::Ready(Ok(()))
            }
        }
    }
}

impl AsyncWrite for Rough {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.turn.road() {
            Road::Good | Road::Deaf => Pin::new(&mut self.pipe).poll_write(cx, buf),
            Road::Stalled => Poll::Pending,
            Road::Crumbs(pause) | Road::CrumbsSent(pause) => {
                ready!(self.next_write.as_mut().poll(cx));
                let written = ready!(Pin::new(&mut self.pipe).poll_write(cx, &buf[..buf.len().min(1)]))?;
                self.next_write.as_mut().reset(Instant::now() + pause);
                Poll::Ready(Ok(written))
            }
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.turn.road() {
            Road::Stalled => Poll::Pending,
            Road::Good | Road::Deaf | Road::Crumbs(_) | Road::CrumbsSent(_) => Pin::new(&mut self.pipe).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.turn.road() {
            Road::Stalled => Poll::Pending,
            Road::Good | Road::Deaf | Road::Crumbs(_) | Road::CrumbsSent(_) => Pin::new(&mut self.pipe).poll_shutdown(cx),
        }
    }
}
