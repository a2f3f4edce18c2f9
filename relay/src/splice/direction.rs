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

/// A leg that ended before it had sent and received everything.
pub(super) enum Broken {
    /// The source.
    From(LegEnd),
    /// The destination.
    To(LegEnd),
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
        let EarlyData { mut batch, taken, passed, .. } = from.take_early();
        count.fetch_add(taken.bytes as u64, Ordering::Relaxed);
        to.push_early(&batch.finish()[passed..]);
        note_end(from, to, Instant::now());
        Self { count, is_blocked: false }
    }

    /// Moves batches until the source has no more for now, or the destination takes no more.
    ///
    /// # Errors
    /// [`Broken`].
    pub(super) fn poll(&mut self, from: &mut Leg, to: &mut Leg, now: Instant, cx: &mut Context<'_>) -> Result<(), Broken> {
        scratch::with(|scratch| {
            for _ in 0..SPLICE_BATCHES_PER_TURN {
                // Everything is written before more is read: this is the backpressure.
                if self.poll_flush(to, cx)?.is_pending() {
                    return Ok(());
                }
                let stop = self.read_batch(from, scratch, now, cx);
                forward(&mut scratch.batch, matches!(stop, Stop::Ended(LegEnd::Done)), from, to, now, cx).or_else(|end| lost(to, end))?;
                match stop {
                    Stop::Full => {}
                    Stop::Ended(end) if end != LegEnd::Done && !from.reader.has_finished() => return Err(Broken::From(end)),
                    Stop::Empty | Stop::Ended(_) => return self.poll_flush(to, cx).map(drop),
                }
            }
            // Enough for one turn: the other direction is next, then this one again.
            cx.waker().wake_by_ref();
            Ok(())
        })
    }

    fn poll_flush(&mut self, to: &mut Leg, cx: &mut Context<'_>) -> Result<Poll<()>, Broken> {
        let flushed = match to.poll_flush(cx) {
            Poll::Ready(flushed) => Poll::Ready(flushed.or_else(|end| lost(to, end))?),
            Poll::Pending => Poll::Pending,
        };
        self.is_blocked = flushed.is_pending();
        Ok(flushed)
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

/// Writes a batch to its destination. The last one of the stream goes in one write with the Close, or waits for the `idle` that shares its write.
fn forward(batch: &mut Batch, done: bool, from: &mut Leg, to: &mut Leg, now: Instant, cx: &mut Context<'_>) -> Result<(), LegEnd> {
    if done && !from.reader.ended {
        from.reader.ended = true;
        batch.text(END_TEXT);
    }
    note_end(from, to, now);
    if !(from.reader.has_finished() && to.reader.has_finished()) {
        return to.write(batch.finish(), now, cx);
    }
    match to.reuse() {
        None => to.finish(batch, now, cx),
        Some(_) => {
            to.push_last(batch.finish(), now);
            Ok(())
        }
    }
}

/// Notes that the end of `from` is passed on to `to`, from which moment `to` owes `delivered`.
fn note_end(from: &Leg, to: &mut Leg, now: Instant) {
    if from.reader.ended && !to.is_over() {
        to.reader.end_passed_at.get_or_insert(now);
    }
}

/// The loss of a leg that has sent and received everything is no loss: what is still sent to it is dropped.
fn lost(leg: &mut Leg, end: LegEnd) -> Result<(), Broken> {
    if !leg.reader.has_finished() {
        return Err(Broken::To(end));
    }
    leg.end_with(end);
    Ok(())
}
