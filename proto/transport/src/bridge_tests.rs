//! A leg bridged with a local side, with a paused clock; resets also over real sockets.

use std::future::{pending, ready};
use std::io::ErrorKind;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, sleep};
use tokio_tungstenite::tungstenite::Message;

use moorline_proto::bounds::LAST_WORDS_TIMEOUT;
use moorline_proto::leg::{DELIVERED_TEXT, END_TEXT};

use crate::bridge::{BridgeEnd, bridge};
use crate::leg::EndReason;
use crate::scripted_relay::{PING, Received, Relay, local_side, open, pattern};

const PIPE: usize = 1021;
const LARGE_PIPE: usize = 1 << 22;

#[tokio::test(start_paused = true)]
async fn the_local_side_ends_first_and_still_receives_everything() {
    let ((leg, mut relay), (local, mut program)) = (open(PIPE).await, local_side(PIPE));
    let remote = async {
        assert_eq!(relay.bytes(100_000).await, pattern(100_000));
        relay.expect_end().await;
        for chunk in pattern(150_000).chunks(65_536) {
            relay.send_bytes(chunk).await;
        }
        relay.end().await;
        relay.finish().await;
        assert_eq!(relay.closed().await, Some(1000));
    };
    let local_program = async {
        program.stream.write_all(&pattern(100_000)).await.unwrap();
        program.stream.shutdown().await.unwrap();
        let mut received = Vec::new();
        program.stream.read_to_end(&mut received).await.unwrap();
        assert!(received == pattern(150_000));
    };
    let (bridged, (), ()) = tokio::join!(bridge(local, leg, pending()), remote, local_program);
    assert!(matches!(bridged.ended, BridgeEnd::Finished), "{bridged:?}");
    assert_eq!((bridged.to_leg_bytes, bridged.from_leg_bytes), (100_000, 150_000));
    assert!(!program.was_reset());
}

#[tokio::test(start_paused = true)]
async fn the_far_side_ends_first_and_its_leg_is_still_read() {
    let ((leg, mut relay), (local, mut program)) = (open(PIPE).await, local_side(PIPE));
    let remote = async {
        relay.end().await;
        assert_eq!(relay.next().await, Received::Text(DELIVERED_TEXT.to_owned()));
        for turn in 0..20u8 {
            sleep(PING).await;
            relay.send(Message::Ping(vec![turn].into())).await;
            assert_eq!(relay.next().await, Received::Pong(vec![turn].into()), "pings are answered after the far side has ended");
        }
        assert_eq!(relay.bytes(4).await, b"late");
        relay.expect_end().await;
        relay.finish().await;
    };
    let local_program = async {
        let mut received = Vec::new();
        program.stream.read_to_end(&mut received).await.unwrap();
        sleep(20 * PING).await;
        program.stream.write_all(b"late").await.unwrap();
        drop(program.stream);
    };
    let (bridged, (), ()) = tokio::join!(bridge(local, leg, pending()), remote, local_program);
    assert!(matches!(bridged.ended, BridgeEnd::Finished), "{bridged:?}");
}

#[tokio::test(start_paused = true)]
async fn the_last_bytes_arrive_without_anything_behind_them_at_any_size() {
    let ((leg, mut relay), (local, mut program)) = (open(PIPE).await, local_side(PIPE));
    let both = async {
        for size in [1, 2, 125, 126, 1_000, 16_384, 65_535, 65_536, 65_537, 1 << 20] {
            let bytes = pattern(size);
            let (written, received) = tokio::join!(program.stream.write_all(&bytes), relay.bytes(size));
            written.unwrap();
            assert!(received == bytes, "{size} up");
            let mut back = vec![0; size];
            let down = async {
                for chunk in bytes.chunks(65_536) {
                    relay.send_bytes(chunk).await;
                }
            };
            let (read, ()) = tokio::join!(program.stream.read_exact(&mut back), down);
            read.unwrap();
            assert!(back == bytes, "{size} down");
        }
    };
    tokio::select! {
        bridged = bridge(local, leg, pending()) => panic!("{bridged:?}"),
        () = both => {}
    }
}

#[tokio::test(start_paused = true)]
async fn a_slow_reader_gets_everything_and_pongs_are_sent_meanwhile() {
    let ((leg, mut relay), (local, mut program)) = (open(1 << 20).await, local_side(1_000));
    let remote = async {
        for chunk in pattern(400_000).chunks(50_000) {
            relay.send_bytes(chunk).await;
        }
        relay.end().await;
        let mut pongs = 0;
        loop {
            match relay.next().await {
                Received::Pong(payload) if payload.is_empty() => pongs += 1,
                Received::Text(text) if text == DELIVERED_TEXT => relay.finish().await,
                Received::Text(_) => {}
                Received::Close(1000) => return pongs,
                other => panic!("{other:?}"),
            }
        }
    };
    let local_program = async {
        sleep(Duration::from_secs(181)).await; // paused for three minutes
        program.stream.shutdown().await.unwrap();
        let mut received = Vec::new();
        program.stream.read_to_end(&mut received).await.unwrap();
        assert!(received == pattern(400_000));
    };
    let (bridged, pongs, ()) = tokio::join!(bridge(local, leg, pending()), remote, local_program);
    assert!(matches!(bridged.ended, BridgeEnd::Finished), "{bridged:?}");
    assert_eq!((pongs, bridged.from_leg_bytes), (9, 400_000));
}

#[tokio::test(start_paused = true)]
async fn a_dead_relay_resets_the_local_side() {
    let ((leg, _relay), (local, program)) = (open(PIPE).await, local_side(PIPE));
    let begun = Instant::now();
    let bridged = bridge(local, leg, pending()).await;
    assert!(matches!(bridged.ended, BridgeEnd::Leg(EndReason::Silent(_))), "{bridged:?}");
    assert_eq!(begun.elapsed(), Duration::from_millis(62_500 + 5_000), "the relay had 5 s to answer the Close");
    assert!(program.was_reset());
}

#[tokio::test(start_paused = true)]
async fn a_leg_that_is_cut_resets_the_local_side_at_once() {
    for code in [4001, 4002, 4005, 1011] {
        let ((leg, mut relay), (local, mut program)) = (open(PIPE).await, local_side(PIPE));
        let remote = async {
            relay.send_bytes(b"half of it").await;
            relay.close(code).await;
            assert_eq!(relay.closed().await, Some(code));
        };
        let (bridged, ()) = tokio::join!(bridge(local, leg, pending()), remote);
        assert!(matches!(&bridged.ended, BridgeEnd::Leg(EndReason::Closed { code: closed, .. }) if *closed == code), "{bridged:?}");
        assert!(program.was_reset());
        let mut received = Vec::new();
        program.stream.read_to_end(&mut received).await.unwrap();
        assert_eq!(received, b"half of it");
    }
    let ((leg, relay), (local, program)) = (open(PIPE).await, local_side(PIPE));
    drop(relay);
    let bridged = bridge(local, leg, pending()).await;
    assert!(matches!(bridged.ended, BridgeEnd::Leg(EndReason::Lost(_))) && program.was_reset());
}

#[tokio::test(start_paused = true)]
async fn a_local_side_that_is_reset_resets_the_leg() {
    let ((leg, mut relay), (local, program)) = (open(PIPE).await, local_side(PIPE));
    program.reset();
    let (bridged, code) = tokio::join!(bridge(local, leg, pending()), relay.closed());
    assert!(matches!(&bridged.ended, BridgeEnd::Local(error) if error.kind() == ErrorKind::ConnectionReset));
    assert_eq!(code, Some(4001));

    let ((leg, mut relay), (local, program)) = (open(PIPE).await, local_side(PIPE));
    drop(program); // reads return EOF and writes fail
    let remote = async {
        relay.expect_end().await;
        relay.send_bytes(b"to nobody").await;
        relay.closed().await
    };
    let (bridged, code) = tokio::join!(bridge(local, leg, pending()), remote);
    assert!(matches!(&bridged.ended, BridgeEnd::Local(error) if error.kind() == ErrorKind::BrokenPipe));
    assert_eq!(code, Some(4001));
}

#[tokio::test(start_paused = true)]
async fn a_far_side_that_finished_closes_the_local_side_and_resets_it_only_if_bytes_were_left() {
    let ((leg, mut relay), (local, mut program)) = (open(PIPE).await, local_side(PIPE));
    relay.send_bytes(b"bye").await;
    relay.close(1000).await;
    let bridged = bridge(local, leg, pending()).await;
    assert!(matches!(bridged.ended, BridgeEnd::CutShort) && !program.was_reset());
    let mut received = Vec::new();
    program.stream.read_to_end(&mut received).await.unwrap();
    assert_eq!(received, b"bye");

    let ((leg, mut relay), (local, mut program)) = (open(PIPE).await, local_side(LARGE_PIPE));
    program.stream.write_all(&pattern(LARGE_PIPE)).await.unwrap(); // far more than the leg accepts
    let remote = async {
        sleep(PING).await;
        relay.close(1000).await;
        relay.closed().await
    };
    let (bridged, _) = tokio::join!(bridge(local, leg, pending()), remote);
    assert!(matches!(bridged.ended, BridgeEnd::CutShort) && program.was_reset());
}

#[tokio::test(start_paused = true)]
async fn a_stop_cuts_both_sides() {
    let ((leg, mut relay), (local, program)) = (open(PIPE).await, local_side(PIPE));
    let (bridged, code) = tokio::join!(bridge(local, leg, sleep(Duration::from_secs(7))), relay.closed());
    assert!(matches!(bridged.ended, BridgeEnd::Stopped) && program.was_reset());
    assert_eq!(code, Some(4001));
}

#[tokio::test]
async fn a_program_on_tcp_sees_a_reset() {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let mut program = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (local, _) = listener.accept().await.unwrap();
    let (leg, mut relay) = open(PIPE).await;
    relay.close(4001).await;
    let (bridged, _) = tokio::join!(bridge(local, leg, pending()), relay.closed());
    assert!(matches!(bridged.ended, BridgeEnd::Leg(_)));
    assert_eq!(program.read(&mut [0; 8]).await.unwrap_err().kind(), ErrorKind::ConnectionReset);
}

/// A local program on TCP, the bridge that serves it, and the relay's end of its leg.
async fn on_tcp() -> (TcpStream, impl Future<Output = BridgeEnd>, Relay) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let program = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (local, _) = listener.accept().await.unwrap();
    let (leg, relay) = open(LARGE_PIPE).await;
    (program, async move { bridge(local, leg, pending()).await.ended }, relay)
}

/// The program answers without having read everything, and closes, which resets its connection. The far side goes on sending.
async fn early_answer(ends_first: bool) -> (Vec<Received>, BridgeEnd) {
    let (mut program, bridged, mut relay) = on_tcp().await;
    let remote = async {
        relay.send_bytes(&pattern(60_000)).await;
        program.write_all(b"413").await.unwrap();
        if ends_first {
            program.shutdown().await.unwrap();
        }
        program.readable().await.unwrap();
        drop(program);
        let mut received = Vec::new();
        loop {
            tokio::select! {
                biased;
                next = relay.next() => {
                    let is_over = matches!(next, Received::Close(_) | Received::Gone);
                    if next == Received::Text(END_TEXT.to_owned()) {
                        relay.text(DELIVERED_TEXT).await;
                    }
                    received.push(next);
                    if is_over {
                        assert_eq!(relay.next().await, Received::Gone, "the Close is answered");
                        return received;
                    }
                }
                () = ready(()) => relay.send_bytes(&pattern(1_000)).await,
            }
        }
    };
    let (ended, received) = tokio::join!(bridged, remote);
    (received, ended)
}

#[tokio::test]
async fn an_answer_before_the_question_was_read_is_passed_on_and_then_the_leg_is_reset() {
    let (received, ended) = early_answer(false).await;
    assert_eq!(received, [Received::Bytes(b"413".as_slice().into()), Received::Close(4001)], "a part never looks like the whole");
    assert!(matches!(ended, BridgeEnd::Local(_)), "{ended:?}");

    let (received, ended) = early_answer(true).await;
    let end = Received::Text(END_TEXT.to_owned());
    assert_eq!(received, [Received::Bytes(b"413".as_slice().into()), end, Received::Close(4001)], "it ended in order");
    assert!(matches!(ended, BridgeEnd::Local(_)), "{ended:?}");
}

#[tokio::test]
async fn delivered_is_not_said_for_bytes_that_a_closed_program_never_got() {
    let (mut program, bridged, mut relay) = on_tcp().await;
    let remote = async {
        program.shutdown().await.unwrap();
        relay.expect_end().await;
        relay.send_bytes(b"some").await;
        program.read_exact(&mut [0; 4]).await.unwrap();
        drop(program); // everything was read, so its kernel resets the connection only when more comes
        relay.send_bytes(b"more").await;
        relay.end().await;
        relay.text(DELIVERED_TEXT).await;
        loop {
            match relay.next().await {
                Received::Close(code) => {
                    assert_eq!(relay.next().await, Received::Gone);
                    return code;
                }
                other => assert_ne!(other, Received::Text(DELIVERED_TEXT.to_owned())),
            }
        }
    };
    let (ended, code) = tokio::join!(bridged, remote);
    assert!(matches!(ended, BridgeEnd::Local(_)), "{ended:?}");
    assert_eq!(code, 4001);
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_makes_no_progress_holds_the_leg_for_ten_seconds() {
    let (leg, mut relay) = open(LARGE_PIPE).await;
    let (local, mut remote) = tokio::net::UnixStream::pair().unwrap();
    let begun = Instant::now();
    let remote = async {
        remote.write_all(b"an answer").await.unwrap();
        remote.shutdown().await.unwrap();
        assert_eq!(relay.bytes(9).await, b"an answer");
        relay.expect_end().await;
        drop(remote);
        relay.send_bytes(b"to nobody").await;
        (relay.closed().await, begun.elapsed())
    };
    let (bridged, closed) = tokio::join!(bridge(local, leg, pending()), remote);
    assert!(matches!(bridged.ended, BridgeEnd::Local(_)), "{bridged:?}");
    assert_eq!(closed, (Some(4001), LAST_WORDS_TIMEOUT));
}
