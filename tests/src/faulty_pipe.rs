//! An in-memory pipe that fails on command: it stalls, is never read, or passes one byte at a time. To cut it, drop it.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

/// How a pipe fails.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fault {
    /// It does not.
    #[default]
    None,
    /// Nothing passes in either direction.
    Stalled,
    /// This end reads nothing; its writes pass.
    NeverReads,
    /// One byte passes in each direction, and the next one this much later.
    Trickle(Duration),
    /// Reads are unaffected; writes pass one byte at a time, with this pause between bytes.
    TrickleSent(Duration),
}

/// Sets the fault of a pipe. Clones control the same pipe.
#[derive(Clone, Debug, Default)]
pub struct FaultSwitch(Arc<Mutex<Fault>>);

impl FaultSwitch {
    /// The pipe fails this way from now on.
    ///
    /// # Panics
    /// If the lock is poisoned.
    pub fn set(&self, fault: Fault) {
        *self.0.lock().expect("the lock is not poisoned") = fault;
    }

    fn current(&self) -> Fault {
        *self.0.lock().expect("the lock is not poisoned")
    }
}

/// One end of a pipe that fails on command.
#[derive(Debug)]
pub struct FaultyPipe {
    pipe: DuplexStream,
    switch: FaultSwitch,
    next_read: Pin<Box<Sleep>>,
    next_write: Pin<Box<Sleep>>,
}

impl FaultyPipe {
    /// A pipe without a fault, and its switch.
    pub fn new(pipe: DuplexStream) -> (Self, FaultSwitch) {
        let switch = FaultSwitch::default();
        let elapsed = || Box::pin(sleep_until(Instant::now())); // real time: a timer that has elapsed, no wait
        (Self { pipe, switch: switch.clone(), next_read: elapsed(), next_write: elapsed() }, switch)
    }
}

impl AsyncRead for FaultyPipe {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.switch.current() {
            Fault::None | Fault::TrickleSent(_) => Pin::new(&mut self.pipe).poll_read(cx, buf),
            Fault::Stalled | Fault::NeverReads => Poll::Pending,
            Fault::Trickle(pause) => {
                ready!(self.next_read.as_mut().poll(cx));
                let mut byte = [0];
                let mut byte = ReadBuf::new(&mut byte);
                ready!(Pin::new(&mut self.pipe).poll_read(cx, &mut byte))?;
                buf.put_slice(byte.filled());
                self.next_read.as_mut().reset(Instant::now() + pause);
                Poll::Ready(Ok(()))
            }
        }
    }
}

impl AsyncWrite for FaultyPipe {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.switch.current() {
            Fault::None | Fault::NeverReads => Pin::new(&mut self.pipe).poll_write(cx, buf),
            Fault::Stalled => Poll::Pending,
            Fault::Trickle(pause) | Fault::TrickleSent(pause) => {
                ready!(self.next_write.as_mut().poll(cx));
                let written = ready!(Pin::new(&mut self.pipe).poll_write(cx, &buf[..buf.len().min(1)]))?;
                self.next_write.as_mut().reset(Instant::now() + pause);
                Poll::Ready(Ok(written))
            }
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.switch.current() {
            Fault::Stalled => Poll::Pending,
            Fault::None | Fault::NeverReads | Fault::Trickle(_) | Fault::TrickleSent(_) => Pin::new(&mut self.pipe).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.switch.current() {
            Fault::Stalled => Poll::Pending,
            Fault::None | Fault::NeverReads | Fault::Trickle(_) | Fault::TrickleSent(_) => Pin::new(&mut self.pipe).poll_shutdown(cx),
        }
    }
}
