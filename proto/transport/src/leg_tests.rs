//! A leg with the relay's end of it scripted, with a paused clock.

use std::io::ErrorKind;
use std::time::Duration;

use futures_util::SinkExt;
use moorline_proto::close::CloseReason;
use moorline_proto::leg::{DELIVERED_TEXT, END_TEXT, LegText, Opened, Refused};
use moorline_proto::problem::{Problem, ProblemCode};
use moorline_proto::whole::Whole;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::select;
use tokio::time::{Instant, advance, sleep};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;

use crate::leg::{EndReason, OpenError};
use crate::scripted_relay::{PING, Received, joined, open, opened, pattern};

const PIPE: usize = 1021;
const LARGE_PIPE: usize = 1 << 21;

#[tokio::test(start_paused = true)]
async fn opened_names_the_peer_and_bytes_may_follow_it() {
    let (mut leg, mut relay) = joined(LARGE_PIPE).await;
    relay.open().await;
    relay.send_bytes(b"hello").await;
    assert_eq!(leg.opened().await, Ok(Box::new(opened())));
    let mut received = [0; 5];
    leg.read_exact(&mut received).await.unwrap();
    assert_eq!(&received, b"hello");
}

#[tokio::test(start_paused = true)]
async fn a_refusal_carries_its_problem() {
    let (mut leg, mut relay) = joined(LARGE_PIPE).await;
    let problem = Problem::new(ProblemCode::TargetRefused, "nobody listens");
    relay.text(LegText::Refused(Box::new(Refused { problem: problem.clone() })).encode()).await;
    relay.close(4010).await;
    assert_eq!(leg.opened().await, Err(OpenError::Refused(Box::new(problem))));
}

#[tokio::test(start_paused = true)]
async fn a_leg_may_end_without_a_verdict() {
    for code in [1000, 4007, 4010] {
        let (mut leg, mut relay) = joined(LARGE_PIPE).await;
        relay.close(code).await;
        let Err(OpenError::Ended(EndReason::Closed { code: closed, .. })) = leg.opened().await else { panic!("closed") };
        assert_eq!(closed, code);
        assert_eq!(relay.closed().await, Some(code), "the Close is answered");
    }
    let (mut leg, relay) = joined(LARGE_PIPE).await;
    drop(relay);
    assert!(matches!(leg.opened().await, Err(OpenError::Ended(EndReason::Lost(_)))));
}

#[tokio::test(start_paused = true)]
async fn a_leg_that_is_dropped_before_it_is_opened_is_closed_with_a_reset() {
    let (leg, mut relay) = joined(LARGE_PIPE).await;
    drop(leg);
    assert_eq!(relay.closed().await, Some(CloseReason::Reset.code()));
    let (leg, mut relay) = open(LARGE_PIPE).await;
    drop(leg);
    assert_eq!(relay.closed().await, None, "an open leg that is dropped sends no Close");
}

#[tokio::test(start_paused = true)]
async fn the_far_side_ends_first_and_this_side_goes_on() {
    let (mut leg, mut relay) = open(PIPE).await;
    let remote = async {
        relay.send_bytes(b"all I have").await;
        relay.end().await;
        assert_eq!(relay.bytes(100_000).await, pattern(100_000));
        relay.expect_end().await;
        relay.finish().await;
        assert_eq!(relay.closed().await, Some(1000));
    };
    let local = async {
        let mut received = Vec::new();
        leg.read_to_end(&mut received).await.unwrap();
        assert_eq!(received, b"all I have");
        leg.write_all(&pattern(100_000)).await.unwrap();
        leg.shutdown().await.unwrap();
        assert_eq!(leg.finish().await.0, EndReason::Finished);
    };
    tokio::join!(remote, local);
}

#[tokio::test(start_paused = true)]
async fn this_side_ends_first_and_the_far_side_goes_on() {
    let (mut leg, mut relay) = open(PIPE).await;
    let remote = async {
        relay.expect_end().await;
        relay.send_bytes(&pattern(60_000)).await;
        relay.end().await;
        relay.end().await; // a second `end` is ignored
        assert_eq!(relay.next().await, Received::Text(DELIVERED_TEXT.to_owned()), "the EOF was read");
        relay.finish().await;
        assert_eq!(relay.closed().await, Some(1000));
    };
    let local = async {
        leg.shutdown().await.unwrap();
        leg.shutdown().await.unwrap();
        assert_eq!(leg.write(b"more").await.unwrap_err().kind(), ErrorKind::BrokenPipe);
        let mut received = Vec::new();
        leg.read_to_end(&mut received).await.unwrap();
        assert_eq!(received, pattern(60_000));
        assert_eq!(leg.finish().await.0, EndReason::Finished);
    };
    tokio::join!(remote, local);
}

#[tokio::test(start_paused = true)]
async fn a_simple_far_side_that_finished_cuts_this_side_short() {
    let (mut leg, mut relay) = open(LARGE_PIPE).await;
    relay.send_bytes(b"bye").await;
    relay.close(1000).await;
    let mut received = Vec::new();
    leg.read_to_end(&mut received).await.unwrap();
    assert_eq!(received, b"bye");
    assert_eq!(leg.end_reason(), Some(&EndReason::CutShort));
    assert_eq!(leg.write(b"more").await.unwrap_err().kind(), ErrorKind::BrokenPipe);
    assert!(leg.shutdown().await.is_err());
    assert_eq!(leg.finish().await.0, EndReason::CutShort);
}

#[tokio::test(start_paused = true)]
async fn a_close_1000_is_a_clean_end_behind_delivered_or_as_an_answer_and_cut_short_otherwise() {
    let (mut leg, mut relay) = open(LARGE_PIPE).await;
    leg.shutdown().await.unwrap();
    relay.finish().await;
    assert_eq!(leg.read(&mut [0; 8]).await.unwrap(), 0);
    assert_eq!(leg.end_reason(), Some(&EndReason::Finished));

    let (leg, mut relay) = open(LARGE_PIPE).await;
    let ((end, _), code) = tokio::join!(leg.finish(), async {
        let code = relay.closed().await;
        assert_eq!(relay.next().await, Received::Gone, "the Close is answered");
        code
    });
    assert_eq!((end, code), (EndReason::Finished, Some(1000)), "the relay answers once the far side has everything");

    let (mut leg, mut relay) = open(LARGE_PIPE).await;
    leg.shutdown().await.unwrap();
    relay.close(1000).await;
    assert_eq!(leg.read(&mut [0; 8]).await.unwrap(), 0);
    assert_eq!(leg.finish().await.0, EndReason::CutShort);

    let (mut leg, mut relay) = open(LARGE_PIPE).await;
    leg.shutdown().await.unwrap();
    relay.text(DELIVERED_TEXT).await;
    relay.send(Message::Close(None)).await;
    assert_eq!(leg.read(&mut [0; 8]).await.unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert!(matches!(leg.end_reason(), Some(EndReason::Closed { code: 1005, .. })), "without a code it is no end");
}

#[tokio::test(start_paused = true)]
async fn delivered_is_said_once_and_only_when_the_eof_was_read() {
    let (mut leg, mut relay) = open(LARGE_PIPE).await;
    relay.send_bytes(b"two reads").await;
    relay.end().await;
    assert_eq!(leg.read(&mut [0; 4]).await.unwrap(), 4);
    relay.send(Message::Ping(vec![1].into())).await;
    let mut rest = Vec::new();
    leg.read_to_end(&mut rest).await.unwrap();
    assert_eq!(leg.read(&mut [0; 4]).await.unwrap(), 0);
    assert_eq!(relay.next().await, Received::Text(DELIVERED_TEXT.to_owned()));
    leg.shutdown().await.unwrap();
    relay.expect_end().await;

    let (mut leg, mut relay) = open(LARGE_PIPE).await;
    relay.text(DELIVERED_TEXT).await;
    assert!(leg.read(&mut [0; 4]).await.is_err());
    assert!(matches!(leg.end_reason(), Some(EndReason::ProtocolError { close: CloseReason::Protocol, .. })), "delivered before end");
}

#[tokio::test(start_paused = true)]
async fn every_other_close_and_a_lost_connection_are_a_reset() {
    for code in [4001, 4002, 4005, 1012, 1011] {
        let (mut leg, mut relay) = open(LARGE_PIPE).await;
        relay.end().await; // even after `end`: the stream was not finished
        leg.shutdown().await.unwrap();
        assert_eq!(leg.read(&mut [0; 8]).await.unwrap(), 0);
        relay.close(code).await;
        let (end, _) = leg.finish().await;
        assert_eq!(end, EndReason::Closed { code, reason: String::new() });
        assert_eq!(end.close_reason(), CloseReason::from_code(code));
    }
    let (mut leg, mut relay) = open(LARGE_PIPE).await;
    relay.close(4002).await;
    let error = leg.read(&mut [0; 8]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    assert_eq!(error.into_inner().unwrap().downcast::<EndReason>().unwrap().close_reason(), Some(CloseReason::PeerLost));
    assert_eq!(leg.write(b"more").await.unwrap_err().kind(), ErrorKind::ConnectionReset);

    let (mut leg, relay) = open(LARGE_PIPE).await;
    drop(relay);
    assert_eq!(leg.read(&mut [0; 8]).await.unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert!(matches!(leg.end_reason(), Some(EndReason::Lost(_))));
}

#[tokio::test(start_paused = true)]
async fn writes_are_cut_into_messages_of_64_kib_and_need_no_flush() {
    let (mut leg, mut relay) = open(LARGE_PIPE).await;
    leg.write_all(&pattern(200_000)).await.unwrap();
    let mut sizes = Vec::new();
    while sizes.iter().sum::<usize>() < 200_000 {
        let Received::Bytes(bytes) = relay.next().await else { panic!("bytes") };
        sizes.push(bytes.len());
    }
    assert_eq!(sizes, [65_536, 65_536, 65_536, 3_392]);
}

#[tokio::test(start_paused = true)]
async fn unknown_texts_and_empty_messages_are_ignored() {
    let (mut leg, mut relay) = open(LARGE_PIPE).await;
    relay.text(r#"{"type":"later","x":1}"#).await;
    relay.send_bytes(b"").await;
    relay.send_bytes(b"x").await;
    assert_eq!(leg.read_u8().await.unwrap(), b'x');
}

#[tokio::test(start_paused = true)]
async fn a_relay_that_breaks_the_protocol_is_closed_with_the_reason() {
    let large = format!(r#"{{"type":"x","y":"{}"}}"#, "y".repeat(17_000));
    let cases: [(&[Message], u16); 6] = [
        (&[Message::text(END_TEXT), Message::binary(vec![1])], 4400),
        (&[Message::text(large)], 1009),
        (&[Message::binary(vec![0; 65_537])], 1009),
        (&[Message::text("[]")], 4400),
        (&[Message::text(LegText::Opened(Box::new(opened())).encode())], 4400),
        (&[Message::binary(vec![0; 65_536]), Message::text("no")], 4400),
    ];
    for (messages, code) in cases {
        let (mut leg, mut relay) = open(LARGE_PIPE).await;
        for message in messages {
            relay.send(message.clone()).await;
        }
        let local = async {
            let mut received = Vec::new();
            drop(leg.read_to_end(&mut received).await);
            leg.shutdown().await.ok();
            assert!(matches!(leg.finish().await.0, EndReason::ProtocolError { .. }), "{code}");
        };
        let remote = async {
            assert_eq!(relay.closed().await, Some(code));
            drop(relay);
        };
        tokio::join!(local, remote);
    }
    let (mut leg, mut relay) = joined(LARGE_PIPE).await;
    relay.send_bytes(b"early").await;
    assert!(matches!(leg.opened().await, Err(OpenError::Ended(EndReason::ProtocolError { .. }))));
    assert_eq!(relay.closed().await, Some(4400));
}

#[tokio::test(start_paused = true)]
async fn a_silent_relay_is_dead_after_two_and_a_half_pings() {
    let (mut leg, _relay) = open(LARGE_PIPE).await;
    let begun = Instant::now();
    assert_eq!(leg.read(&mut [0; 8]).await.unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert_eq!(begun.elapsed(), Duration::from_millis(62_500));
    assert_eq!(leg.end_reason(), Some(&EndReason::Silent(Duration::from_millis(62_500))));
}

#[tokio::test(start_paused = true)]
async fn the_reason_of_a_close_is_made_printable() {
    let (mut leg, mut relay) = open(LARGE_PIPE).await;
    let reason = "killed: \u{1b}[2J\u{202e}\nmoorline: all is well".into();
    relay.send(Message::Close(Some(CloseFrame { code: 4005.into(), reason }))).await;
    leg.read(&mut [0; 8]).await.unwrap_err();
    let Some(EndReason::Closed { code: 4005, reason }) = leg.end_reason() else { panic!("{leg:?}") };
    assert_eq!(reason, "killed: \u{fffd}[2J\u{fffd}\u{fffd}moorline: all is well");
}

#[tokio::test(start_paused = true)]
async fn absurd_ping_intervals_are_clamped() {
    for (ping_ms, dead_after) in [(0, Duration::from_millis(125)), (Whole::MAX.get(), Duration::from_secs(9_000))] {
        let (mut leg, mut relay) = joined(LARGE_PIPE).await;
        let (verdict, ()) = tokio::join!(leg.opened(), relay.open_with(Opened { ping_ms, ..opened() }));
        verdict.unwrap();
        let begun = Instant::now();
        leg.read(&mut [0; 8]).await.unwrap_err();
        assert_eq!((leg.end_reason(), begun.elapsed()), (Some(&EndReason::Silent(dead_after)), dead_after), "{ping_ms}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_relay_that_pings_stays_connected_and_is_answered() {
    let (mut leg, mut relay) = open(LARGE_PIPE).await;
    let remote = async {
        for turn in 0..100u8 {
            sleep(PING).await;
            relay.send(Message::Ping(vec![turn].into())).await;
            assert_eq!(relay.next().await, Received::Pong(vec![turn].into()));
        }
        relay.send_bytes(b"x").await;
    };
    let (received, ()) = tokio::join!(leg.read_u8(), remote);
    assert_eq!(received.unwrap(), b'x');
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_paused_for_long_does_not_consider_the_relay_dead() {
    let (mut leg, mut relay) = open(LARGE_PIPE).await;
    drop(tokio::time::timeout(Duration::from_secs(1), leg.read_u8()).await);
    relay.send_bytes(b"x").await;
    advance(Duration::from_secs(3600)).await;
    assert_eq!(leg.read_u8().await.unwrap(), b'x');
    let begun = Instant::now();
    assert!(leg.read_u8().await.is_err());
    assert_eq!(begun.elapsed(), Duration::from_millis(62_500));
}

#[tokio::test(start_paused = true)]
async fn finish_discards_what_still_arrives_and_waits_without_a_timeout() {
    let (mut leg, mut relay) = open(PIPE).await;
    leg.write_all(b"hello").await.unwrap();
    let late = async {
        assert_eq!(relay.bytes(5).await, b"hello");
        relay.send_bytes(&pattern(50_000)).await;
        assert_eq!(relay.next().await, Received::Close(1000));
        sleep(Duration::from_secs(7_200)).await; // a slow far side
        relay.0.flush().await.ok(); // the answer to the Close
    };
    let ((end, _), ()) = tokio::join!(leg.finish(), late);
    assert_eq!(end, EndReason::Finished);
}

#[tokio::test(start_paused = true)]
async fn a_reset_is_sent_and_waits_at_most_five_seconds() {
    let (leg, mut relay) = open(LARGE_PIPE).await;
    let ((), code) = tokio::join!(leg.reset(), relay.closed());
    assert_eq!(code, Some(4001));

    let (leg, _relay) = open(LARGE_PIPE).await;
    let begun = Instant::now();
    leg.reset().await;
    assert_eq!(begun.elapsed(), Duration::from_secs(5));
}

#[tokio::test(start_paused = true)]
async fn cancelled_reads_and_writes_lose_nothing() {
    let (mut leg, mut relay) = open(7).await;
    let remote = async {
        relay.send_bytes(&pattern(20_000)).await;
        relay.end().await;
        relay.bytes(20_000).await
    };
    let local = async {
        let (mut received, mut written) = (Vec::new(), 0);
        let everything = pattern(20_000);
        loop {
            let mut some = [0; 777];
            select! {
                () = tokio::task::yield_now() => {}
                count = leg.read(&mut some) => match count.unwrap() {
                    0 => break,
                    count => received.extend_from_slice(&some[..count]),
                },
            }
            if written < everything.len() {
                select! {
                    () = tokio::task::yield_now() => {}
                    count = leg.write(&everything[written..everything.len().min(written + 999)]) => written += count.unwrap(),
                }
            }
        }
        leg.write_all(&everything[written..]).await.unwrap();
        leg.flush().await.unwrap();
        received
    };
    let (from_leg, to_leg) = tokio::join!(remote, local);
    assert!(from_leg == pattern(20_000) && to_leg == pattern(20_000));
}
