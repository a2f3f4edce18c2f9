//! One direction of a stream: reads frames from one leg and writes them to the other, a batch at a time.

use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use moorline_proto::frame::Batch;
use moorline_proto::leg::END_TEXT;
use tokio::time::Instant;

use crate::limits::{SPLICE_BATCH_BYTES, SPLICE_BATCHES_PER_TURN};
use crate::net::connection::ReadSize;
use crate::splice::leg::{EarlyData, Leg};
use crate::splice::leg_end::LegEnd;
use crate::splice::scratch::{self, Scratch};

/// One direction of a stream.
pub(super) struct Direction<'a> {
    count: &'a AtomicU64,
    /// The destination takes no more bytes for now, so the source is not read.
    pub(super) is_blocked: bool,
}

/// What one poll of a direction achieved.
pub(super) enum Progress {
    /// Bytes were moved, and there are no more for now.
    Moved,
    /// The source closed with 1000, and everything before its Close was written and flushed.
    Done,
    /// The source ended otherwise.
    FromEnded(LegEnd),
    /// The destination was lost.
    ToLost(LegEnd),
}

/// Why reading a batch stopped.
enum Stop {
    /// The batch is full.
    Full,
    /// The source has no more for now.
    Empty,
    /// The source ended.
    Ended(LegEnd),
}

impl<'a> Direction<'a> {
    /// Begins with the bytes that came before `opened`.
    pub(super) fn new(from: &mut Leg, to: &mut Leg, count: &'a AtomicU64) -> Self {
        let EarlyData { batch, taken } = from.take_early();
        count.fetch_add(taken.bytes as u64, Ordering::Relaxed);
        to.push_early(batch);
        Self { count, is_blocked: false }
    }

    /// Moves batches until the source has no more, or the destination takes no more.
    pub(super) fn poll(&mut self, from: &mut Leg, to: &mut Leg, now: Instant, cx: &mut Context<'_>) -> Poll<Progress> {
        scratch::with(|scratch| {
            let mut moved = false;
            for _ in 0..SPLICE_BATCHES_PER_TURN {
                // Everything is written before more is read: this is the backpressure.
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
            // Enough for one turn: the other direction is next, then this one again.
            cx.waker().wake_by_ref();
            Poll::Ready(Progress::Moved)
        })
    }

    fn poll_flush(&mut self, to: &mut Leg, cx: &mut Context<'_>) -> Poll<Result<(), LegEnd>> {
        let written = to.poll_flush(cx);
        self.is_blocked = written.is_pending();
        written
    }

    /// Reads until the batch is full or the source has no more.
    fn read_batch(&self, from: &mut Leg, Scratch { input, batch }: &mut Scratch, now: Instant, cx: &mut Context<'_>) -> Stop {
        batch.clear();
        let mut bytes = 0;
        let stop = loop {
            if batch.len() >= SPLICE_BATCH_BYTES {
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

/// Writes a batch to its destination. If it is the last one and the other direction has delivered everything, the Close goes with it.
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
