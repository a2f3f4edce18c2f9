//! Logging to a real pipe that is not read, and the rate limit of lines.

use std::io::{BufRead as _, BufReader, pipe};
use std::sync::mpsc;

use super::*;

/// Logs `count` lines of a kilobyte as the relay does, and fails if one of them blocks.
fn log_lines(queue: &LogQueue, count: usize) {
    let queue = queue.clone();
    let subscriber = tracing_subscriber::fmt().with_writer(move || queue.clone()).with_ansi(false).finish();
    let (done, is_done) = mpsc::channel();
    thread::spawn(move || {
        tracing::subscriber::with_default(subscriber, || {
            for _ in 0..count {
                tracing::info!("{}", "x".repeat(1_000));
            }
        });
        done.send(()).unwrap();
    });
    is_done.recv_timeout(Duration::from_secs(60)).expect("logging blocks");
}

#[test]
fn unread_log_lines_are_dropped_and_counted_and_block_nothing() {
    const LINES: usize = 10_000;
    let (reader, writer) = pipe().unwrap();
    let (mut queue, guard) = LogQueue::start(writer, 100_000).unwrap();
    log_lines(&queue, LINES);
    let dropped = lock(&queue.0.queue).dropped;
    assert!(dropped > 9_000, "the pipe holds 64 KiB, the queue and the write 100 KB each: {dropped} lines were dropped");

    // The shutdown does not wait for the reader either.
    drop(guard);

    let (done, is_done) = mpsc::channel();
    thread::spawn(move || {
        let lines = BufReader::new(reader).lines().map(Result::unwrap).take_while(|line| line != "last").count();
        done.send(lines).unwrap();
    });
    // Once the pipe is read, lines are accepted again.
    queue.0.wait_until_written(Duration::from_secs(60));
    queue.write_all(b"last\n").unwrap();
    let read = is_done.recv_timeout(Duration::from_secs(60)).expect("the lines that were kept are written");
    assert_eq!(read as u64 + dropped, LINES as u64, "each line is written whole or counted");
}

#[test]
fn the_end_waits_for_the_last_line() {
    let (reader, writer) = pipe().unwrap();
    let (queue, guard) = LogQueue::start(writer, 1 << 20).unwrap();
    log_lines(&queue, 10);
    drop(guard);
    let queue = lock(&queue.0.queue);
    assert_eq!(queue.writer, Writer::Idle);
    drop(reader);
}

#[tokio::test(start_paused = true)]
async fn each_log_site_has_a_burst_then_a_rate_and_counts_suppressed_lines() {
    let (limiter, start) = (LogLimiter::new(), Instant::now());
    let admitted = (0..1_000).filter(|_| limiter.admit(start).is_some()).count();
    assert_eq!(admitted, LOG_LINES_BURST as usize);
    let second = start + Duration::from_secs(1);
    assert_eq!(limiter.admit(second), Some(1_000 - u64::from(LOG_LINES_BURST)));
    let admitted = 1 + (0..1_000).filter(|_| limiter.admit(second).is_some()).count();
    assert_eq!(admitted, LOG_LINES_PER_SECOND as usize);
    assert_eq!(limiter.admit(start + Duration::from_secs(1_000)), Some(1_001 - u64::from(LOG_LINES_PER_SECOND)));
    assert_eq!(limiter.admit(start + Duration::from_secs(1_000)), Some(0));
}
