//! One direction of a stream: from the leg that is read to the leg that is written to.

use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use moorline_proto::frame::Batch;
use moorline_proto::leg::END_TEXT;
use tokio::time::Instant;

use crate::net::connection::ReadSize;
use crate::splice::leg::{EarlyData, Leg};
use crate::splice::leg_end::LegEnd;
use crate::splice::scratch::{self, Scratch};

/// Batches moved one way before the other way has its turn.
const TURN: usize = 8;
/// A batch that has come to this is written: with what one read adds to it, it is what TLS encrypts for one system call.
const BATCH: usize = 96 * 1024;

/// One direction of a stream.
pub(super) struct Direction<'a> {
    count: &'a AtomicU64,
    /// The leg that is written to takes nothing for now, so the other one is not read.
    pub(super) is_blocked: bool,
}

/// What one way has to say for itself.
pub(super) enum Progress {
    /// Something was moved, and there is no more for now.
    Moved,
    /// The leg that is read closed with 1000, and all that came before was handed over and flushed.
    Done,
    /// The leg that is read ended otherwise.
    FromEnded(LegEnd),
    /// The leg that is written to was lost.
    ToLost(LegEnd),
}

/// Why a batch is not longer.
enum Stop {
    /// It is long enough.
    Full,
    /// There is no more for now.
    Empty,
    /// The leg that is read came to its end.
    Ended(LegEnd),
}

impl<'a> Direction<'a> {
    /// Begins with what was held before `opened`.
    pub(super) fn new(from: &mut Leg, to: &mut Leg, count: &'a AtomicU64) -> Self {
        let EarlyData { batch, taken } = from.take_early();
        count.fetch_add(taken.bytes as u64, Ordering::Relaxed);
        to.push_early(batch);
        Self { count, is_blocked: false }
    }

    /// Moves batches until there is nothing to be read, or the other leg takes no more.
    pub(super) fn poll(&mut self, from: &mut Leg, to: &mut Leg, now: Instant, cx: &mut Context<'_>) -> Poll<Progress> {
        scratch::with(|scratch| {
            let mut moved = false;
            for _ in 0..TURN {
                // All that was handed over is written before more is read.
                match self.poll_flush(to, cx) {
                    Poll::Ready(Ok(())) => {}
                    Poll::Ready(Err(end)) => return Poll::Ready(Progress::ToLost(end)),
                    Poll::Pending => return if moved { Poll::Ready(Progress::Moved) } else { Poll::Pending },
                }
                let stop = self.read_batch(from, scratch, now, cx);
                moved |= !scratch.batch.is_empty();
                if let Err(end) = forward(&mut scratch.batch, matches!(stop, Stop::Ended(LegEnd::Done)), from, to, now, cx) {
                    return Poll::Ready(Progress::ToLost(end));
                }
                let idle = match stop {
                    Stop::Full => continue,
                    Stop::Empty | Stop::Ended(LegEnd::Done) => self.poll_flush(to, cx),
                    Stop::Ended(end) => return Poll::Ready(Progress::FromEnded(end)),
                };
                return match idle {
                    Poll::Ready(Err(end)) => Poll::Ready(Progress::ToLost(end)),
                    Poll::Ready(Ok(())) if from.is_over() => Poll::Ready(Progress::Done),
                    Poll::Ready(Ok(())) | Poll::Pending if moved => Poll::Ready(Progress::Moved),
                    Poll::Ready(Ok(())) | Poll::Pending => Poll::Pending,
                };
            }
            // Enough for one turn: the other way is next, and then this one again.
            cx.waker().wake_by_ref();
            Poll::Ready(Progress::Moved)
        })
    }

    fn poll_flush(&mut self, to: &mut Leg, cx: &mut Context<'_>) -> Poll<Result<(), LegEnd>> {
        let written = to.poll_flush(cx);
        self.is_blocked = written.is_pending();
        written
    }

    /// Reads until there is no more, or enough.
    fn read_batch(&self, from: &mut Leg, Scratch { input, batch }: &mut Scratch, now: Instant, cx: &mut Context<'_>) -> Stop {
        batch.clear();
        let mut bytes = 0;
        let stop = loop {
            if batch.len() >= BATCH {
                break Stop::Full;
            }
            match from.poll_read(ReadSize::Available, input, batch, now, cx) {
                Poll::Ready(Ok(taken)) => bytes += taken.bytes,
                Poll::Ready(Err(end)) => break Stop::Ended(end),
                Poll::Pending => break Stop::Empty,
            }
        };
        if bytes > 0 {
            self.count.fetch_add(bytes as u64, Ordering::Relaxed);
        }
        stop
    }
}

/// Hands a batch to the leg that it is for. Where it is the last one and nothing waits the other way, the Close goes with it.
fn forward(batch: &mut Batch, done: bool, from: &mut Leg, to: &mut Leg, now: Instant, cx: &mut Context<'_>) -> Result<(), LegEnd> {
    if done && !from.reader.ended {
        from.reader.ended = true;
        batch.text(END_TEXT);
    }
    if done || (from.reader.ended && to.reader.ended && !from.is_unflushed()) {
        to.finish(batch, now, cx)
    } else {
        to.write(batch.finish(), now, cx)
    }
}
