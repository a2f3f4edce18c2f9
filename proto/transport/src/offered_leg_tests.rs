//! Streams that are offered on a device's idle leg, with the relay's end of it scripted and a paused clock.

use std::future::{pending, poll_fn};
use std::task::Poll;
use std::time::Duration;

use moorline_proto::control::{Accept, CancelCode, Reject, RejectCode};
use moorline_proto::leg::{DELIVERED_TEXT, END_TEXT, LegText};
use moorline_proto::reuse::ReuseText;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, sleep};
use tokio_tungstenite::tungstenite::Message;

use crate::bridge::{BridgeEnd, bridge};
use crate::leg::{EndReason, IdleLeg, OfferedLeg, Withdrawn};
use crate::scripted_relay::{IDLE_TEXT, PING, Received, Relay, idle, local_side, offer, opened, pattern};

const PIPE: usize = 1021;
const LARGE_PIPE: usize = 1 << 21;
const CANCEL_TEXT: &str = r#"{"type":"cancel","stream":"00112233445566778899aabbccddeeff","code":"caller_gone"}"#;

fn offer_text() -> Message {
    Message::text(ReuseText::from(Box::new(offer())).encode())
}

fn accept() -> Accept {
    Accept { stream: offer().stream, attempt: offer().attempt, data: None, features: Vec::new(), dial_ms: None }
}

fn reject() -> Reject {
    Reject { stream: offer().stream, attempt: offer().attempt, code: RejectCode::Internal, detail: None }
}

/// A leg with an offer, and what the relay sends behind it.
async fn offered(behind: &[Message]) -> (OfferedLeg, Relay) {
    let (idle, mut relay) = idle(LARGE_PIPE).await;
    relay.send(offer_text()).await;
    for message in behind {
        relay.send(message.clone()).await;
    }
    let leg = idle.next_offer().await.unwrap();
    assert_eq!(leg.offer(), &offer());
    (leg, relay)
}

/// Reads what has come while the offer is undecided.
async fn read_ahead(leg: &mut OfferedLeg) {
    let mut withdrawn = Box::pin(leg.withdrawn());
    let polled = poll_fn(|cx| Poll::Ready(withdrawn.as_mut().poll(cx))).await;
    assert!(polled.is_pending(), "{polled:?}");
}

#[tokio::test(start_paused = true)]
async fn one_leg_carries_one_stream_after_another_each_with_its_own_early_bytes() {
    for pipe in [PIPE, LARGE_PIPE] {
        let (mut idle, mut relay) = idle(pipe).await;
        for turn in 0..3 {
            idle = carry(idle, &mut relay, &pattern(60_000 + turn), format!("answer {turn}").as_bytes()).await;
        }
    }
}

/// Carries one stream whose caller sends everything at once.
async fn carry(idle: IdleLeg, relay: &mut Relay, early: &[u8], answer: &[u8]) -> IdleLeg {
    let remote = async {
        relay.send(offer_text()).await;
        relay.send(Message::Ping(vec![7].into())).await;
        relay.send_bytes(early).await;
        relay.end().await;
        assert_eq!(relay.next().await, Received::Pong(vec![7].into()));
        assert_eq!(relay.next().await, Received::Text(ReuseText::from(accept()).encode()));
        assert_eq!(relay.bytes(answer.len()).await, answer);
        relay.expect_end().await;
        relay.text(DELIVERED_TEXT).await;
        relay.idle().await;
    };
    let local = async {
        let mut leg = idle.next_offer().await.unwrap();
        read_ahead(&mut leg).await;
        let mut leg = leg.accept(accept());
        let mut received = Vec::new();
        leg.read_to_end(&mut received).await.unwrap();
        assert!(received == early, "{} of {} bytes", received.len(), early.len());
        leg.write_all(answer).await.unwrap();
        leg.shutdown().await.unwrap();
        leg.finish().await
    };
    let ((end, idle), ()) = tokio::join!(local, remote);
    assert_eq!(end, EndReason::Finished);
    idle.unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_bridge_passes_on_the_bytes_and_the_end_that_came_before_the_answer() {
    let (mut leg, mut relay) = offered(&[Message::binary("question"), Message::text(END_TEXT)]).await;
    read_ahead(&mut leg).await;
    let (local, mut program) = local_side(LARGE_PIPE);
    let program = async {
        let mut received = Vec::new();
        program.stream.read_to_end(&mut received).await.unwrap();
        assert_eq!(received, b"question");
        program.stream.write_all(b"answer").await.unwrap();
        program.stream.shutdown().await.unwrap();
    };
    let remote = async {
        assert_eq!(relay.next().await, Received::Text(ReuseText::from(accept()).encode()));
        assert_eq!(relay.bytes(6).await, b"answer");
        relay.expect_end().await;
        relay.text(DELIVERED_TEXT).await;
        relay.idle().await;
    };
    let (bridged, (), ()) = tokio::join!(bridge(local, leg.accept(accept()), pending()), program, remote);
    assert!(matches!(bridged.ended, BridgeEnd::Finished), "{bridged:?}");
    assert!(bridged.idle.is_some());
}

#[tokio::test(start_paused = true)]
async fn what_a_rejected_stream_sent_is_not_seen_by_the_next_one() {
    let (mut leg, mut relay) = offered(&[Message::binary("of the first"), Message::text(END_TEXT)]).await;
    read_ahead(&mut leg).await;
    let remote = async {
        assert_eq!(relay.next().await, Received::Text(ReuseText::from(reject()).encode()));
        relay.idle().await;
        relay.send(offer_text()).await;
        relay.send_bytes(b"of the second").await;
    };
    let (idle, ()) = tokio::join!(leg.reject(reject()), remote);
    let mut leg = idle.unwrap().next_offer().await.unwrap();
    read_ahead(&mut leg).await;
    let mut received = [0; 13];
    leg.accept(accept()).read_exact(&mut received).await.unwrap();
    assert_eq!(&received, b"of the second");

    // Bytes, an end and a cancel that cross the answer.
    let (leg, mut relay) = offered(&[Message::binary("late"), Message::text(CANCEL_TEXT), Message::text(END_TEXT)]).await;
    relay.idle().await;
    leg.reject(reject()).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn the_pong_to_an_offers_ping_goes_with_the_answer_and_waits_a_tenth_of_a_second_at_most() {
    let ping = [Message::Ping("alive?".into())];
    let (mut leg, mut relay) = offered(&ping).await;
    read_ahead(&mut leg).await;
    let begun = Instant::now();
    let _open = leg.accept(accept());
    assert_eq!(relay.next().await, Received::Pong("alive?".into()));
    assert_eq!(relay.next().await, Received::Text(ReuseText::from(accept()).encode()));
    assert_eq!(begun.elapsed(), Duration::ZERO);

    let (mut leg, mut relay) = offered(&ping).await;
    let begun = Instant::now();
    tokio::select! {
        withdrawn = leg.withdrawn() => panic!("{withdrawn:?}"),
        pong = relay.next() => assert_eq!(pong, Received::Pong("alive?".into())),
    }
    assert!(begun.elapsed() >= Duration::from_millis(90) && begun.elapsed() <= Duration::from_millis(110), "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn an_undecided_offer_can_be_cancelled_and_the_leg_is_idle_after_the_rejection() {
    let (mut leg, mut relay) = offered(&[Message::binary("early")]).await;
    let (withdrawn, ()) = tokio::join!(leg.withdrawn(), async {
        sleep(Duration::from_secs(3)).await;
        relay.text(CANCEL_TEXT).await;
    });
    assert_eq!(withdrawn, Withdrawn::Cancelled(CancelCode::CallerGone));
    relay.idle().await;
    leg.reject(reject()).await.unwrap();

    // It crossed the `accept`.
    let (leg, mut relay) = offered(&[Message::text(CANCEL_TEXT)]).await;
    let mut leg = leg.accept(accept());
    relay.close(4010).await;
    assert!(leg.read(&mut [0; 8]).await.is_err());
    assert!(matches!(leg.end_reason(), Some(EndReason::Closed { code: 4010, .. })));
}

#[tokio::test(start_paused = true)]
async fn an_undecided_offers_leg_answers_pings_and_notices_its_end() {
    let (mut leg, mut relay) = offered(&[]).await;
    let remote = async {
        for turn in 0..5u8 {
            sleep(PING).await;
            relay.send(Message::Ping(vec![turn].into())).await;
            assert_eq!(relay.next().await, Received::Pong(vec![turn].into()));
        }
        relay.close(1012).await;
    };
    let (withdrawn, ()) = tokio::join!(leg.withdrawn(), remote);
    assert_eq!(withdrawn, Withdrawn::Ended(EndReason::Closed { code: 1012, reason: String::new() }));
    assert_eq!(leg.reject(reject()).await.unwrap_err(), EndReason::Closed { code: 1012, reason: String::new() });

    let (mut leg, relay) = offered(&[]).await;
    drop(relay);
    assert!(matches!(leg.withdrawn().await, Withdrawn::Ended(EndReason::Lost(_))));
    assert!(leg.accept(accept()).read(&mut [0; 8]).await.is_err());

    let (mut leg, mut relay) = offered(&[]).await;
    read_ahead(&mut leg).await;
    drop(leg);
    assert_eq!(relay.closed().await, Some(4001));
}

#[tokio::test(start_paused = true)]
async fn an_idle_device_leg_notices_its_end_while_it_waits_for_an_offer() {
    for code in [1000, 4006, 1012] {
        let (idle, mut relay) = idle(LARGE_PIPE).await;
        relay.close(code).await;
        assert_eq!(idle.next_offer().await.unwrap_err(), EndReason::Closed { code, reason: String::new() });
    }
    let (idle, mut relay) = idle(LARGE_PIPE).await;
    assert!(tokio::time::timeout(Duration::from_secs(5), idle.next_offer()).await.is_err());
    assert_eq!(relay.closed().await, Some(1000), "whoever waits no more closes it");
}

#[tokio::test(start_paused = true)]
async fn a_silent_relay_is_dead_by_the_interval_of_the_offer() {
    let (leg, _relay) = offered(&[]).await;
    let (begun, mut leg) = (Instant::now(), leg.accept(accept()));
    assert!(leg.read(&mut [0; 8]).await.is_err());
    assert_eq!((leg.end_reason(), begun.elapsed()), (Some(&EndReason::Silent(PING * 5 / 2)), PING * 5 / 2));
}

#[tokio::test(start_paused = true)]
async fn at_most_64_kib_and_one_message_are_held_for_an_undecided_offer() {
    let message = || Message::binary(vec![7; 65_536]);
    let (mut leg, _relay) = offered(&[message(), message()]).await;
    read_ahead(&mut leg).await;
    let (mut leg, mut relay) = offered(&[message(), message(), Message::binary("x")]).await;
    assert!(matches!(leg.withdrawn().await, Withdrawn::Ended(EndReason::ProtocolError { .. })));
    assert_eq!(relay.closed().await, Some(4400));
}

#[tokio::test(start_paused = true)]
async fn whatever_an_offer_is_not_followed_by_breaks_the_protocol() {
    let opened = Message::text(LegText::Opened(Box::new(opened())).encode());
    let of_another = CANCEL_TEXT.replace("0011", "ff11");
    for messages in [
        vec![opened.clone()],
        vec![offer_text()],
        vec![Message::text(IDLE_TEXT)],
        vec![Message::text(DELIVERED_TEXT)],
        vec![Message::text(of_another)],
        vec![Message::text(END_TEXT), Message::binary("x")],
    ] {
        let (mut leg, mut relay) = offered(&messages).await;
        assert!(matches!(leg.withdrawn().await, Withdrawn::Ended(EndReason::ProtocolError { .. })), "{messages:?}");
        assert_eq!(relay.closed().await, Some(4400), "{messages:?}");
    }
    for messages in [vec![opened], vec![offer_text()], vec![Message::text(CANCEL_TEXT), Message::text(CANCEL_TEXT)]] {
        let (leg, mut relay) = offered(&messages).await;
        let mut leg = leg.accept(accept());
        assert!(leg.read(&mut [0; 8]).await.is_err(), "{messages:?}");
        assert_eq!(relay.closed().await, Some(4400), "{messages:?}");
    }
}
