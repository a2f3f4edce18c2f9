//! A caller's leg that is used again, with the relay's end of it scripted and a paused clock.

use std::time::Duration;

use moorline_proto::leg::{DELIVERED_TEXT, END_TEXT, LegText, Refused};
use moorline_proto::problem::{Problem, ProblemCode};
use moorline_proto::reuse::{Ask, ReuseText};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, sleep, timeout};
use tokio_tungstenite::tungstenite::Message;

use crate::bridge::{BridgeEnd, bridge};
use crate::leg::{EndReason, IdleLeg, Leg, OpenError};
use crate::scripted_relay::{IDLE_TEXT, PING, Received, Relay, idle, joined, local_side, offer, opened, pattern, reusable};

const PIPE: usize = 1021;
const LARGE_PIPE: usize = 1 << 21;

fn ask(key: &str) -> Ask {
    let open = serde_json::from_str(r#"{"service":"ssh"}"#).unwrap();
    Ask::new("lamp-1".parse().unwrap(), open, Some(key.to_owned()))
}

fn ask_text(key: &str) -> Received {
    Received::Text(ReuseText::from(Box::new(ask(key))).encode())
}

fn opened_text() -> Message {
    Message::text(LegText::Opened(Box::new(opened())).encode())
}

fn refused() -> (Problem, Message) {
    let problem = Problem::new(ProblemCode::TargetRefused, "nobody listens");
    (problem.clone(), Message::text(LegText::Refused(Box::new(Refused { problem })).encode()))
}

/// Carries one stream to its end in order, and gives the leg back.
async fn carry(mut leg: Leg, relay: &mut Relay, up: &[u8], down: &[u8]) -> IdleLeg {
    let remote = async {
        relay.send(opened_text()).await;
        relay.send_bytes(down).await;
        relay.end().await;
        assert_eq!(relay.bytes(up.len()).await, up);
        while relay.next().await != Received::Text(END_TEXT.to_owned()) {}
        relay.text(DELIVERED_TEXT).await;
        relay.idle().await;
    };
    let local = async {
        leg.opened().await.unwrap();
        leg.write_all(up).await.unwrap();
        let mut received = Vec::new();
        leg.read_to_end(&mut received).await.unwrap();
        assert_eq!(received, down);
        leg.shutdown().await.unwrap();
        leg.finish().await
    };
    let ((end, idle), ()) = tokio::join!(local, remote);
    assert_eq!(end, EndReason::Finished);
    idle.unwrap()
}

#[tokio::test(start_paused = true)]
async fn one_leg_carries_one_stream_after_another_and_nothing_is_left_of_the_one_before() {
    for pipe in [PIPE, LARGE_PIPE] {
        let (leg, mut relay) = reusable(pipe).await;
        let mut idle = carry(leg, &mut relay, &pattern(70_000), b"first").await;
        for (turn, key) in ["k1", "k2", "k3"].into_iter().enumerate() {
            assert_eq!(idle.keep_until(), Instant::now() + Duration::from_secs(60));
            let mut leg = idle.ask(ask(key));
            let (flushed, said) = tokio::join!(leg.flush(), relay.next());
            flushed.unwrap();
            assert_eq!(said, ask_text(key));
            idle = carry(leg, &mut relay, format!("up {turn}").as_bytes(), &pattern(60_000 + turn)).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn bytes_may_follow_an_ask_before_it_is_answered() {
    let (idle, mut relay) = idle(LARGE_PIPE).await;
    let mut leg = idle.ask(ask("k"));
    leg.write_all(b"early").await.unwrap();
    assert_eq!(relay.next().await, ask_text("k"));
    assert_eq!(relay.bytes(5).await, b"early");
    relay.send(opened_text()).await;
    assert_eq!(leg.opened().await, Ok(Box::new(opened())));
}

#[tokio::test(start_paused = true)]
async fn a_bridged_stream_gives_its_leg_back() {
    let (mut leg, mut relay) = reusable(LARGE_PIPE).await;
    relay.open().await;
    leg.opened().await.unwrap();
    let (local, mut program) = local_side(LARGE_PIPE);
    let remote = async {
        relay.send_bytes(b"down").await;
        relay.end().await;
        assert_eq!(relay.next().await, Received::Text(DELIVERED_TEXT.to_owned()));
        assert_eq!(relay.bytes(2).await, b"up");
        relay.expect_end().await;
        relay.text(DELIVERED_TEXT).await;
        relay.idle().await;
    };
    let program = async {
        let mut received = Vec::new();
        program.stream.read_to_end(&mut received).await.unwrap();
        assert_eq!(received, b"down");
        program.stream.write_all(b"up").await.unwrap();
        program.stream.shutdown().await.unwrap();
        program
    };
    let (bridged, (), program) = tokio::join!(bridge(local, leg, std::future::pending()), remote, program);
    assert!(matches!(bridged.ended, BridgeEnd::Finished), "{bridged:?}");
    assert!(!program.was_reset());
    let mut leg = bridged.idle.unwrap().ask(ask("k"));
    leg.flush().await.unwrap();
    assert_eq!(relay.next().await, ask_text("k"));
    drop(leg);
}

#[tokio::test(start_paused = true)]
async fn an_end_in_any_other_way_ends_the_leg() {
    for code in [1000, 4001, 1012] {
        let (mut leg, mut relay) = reusable(LARGE_PIPE).await;
        relay.open().await;
        leg.opened().await.unwrap();
        relay.end().await;
        assert_eq!(leg.read(&mut [0; 8]).await.unwrap(), 0);
        leg.shutdown().await.unwrap();
        relay.text(DELIVERED_TEXT).await;
        relay.close(code).await;
        let (end, idle) = leg.finish().await;
        assert_eq!(end.is_clean(), code == 1000);
        assert!(idle.is_none(), "{code}");
    }
    // This side's own Close.
    let (mut leg, mut relay) = reusable(LARGE_PIPE).await;
    relay.open().await;
    leg.opened().await.unwrap();
    let ((end, idle), code) = tokio::join!(leg.finish(), async {
        let code = relay.closed().await;
        assert_eq!(relay.next().await, Received::Gone);
        code
    });
    assert_eq!((end, code), (EndReason::Finished, Some(1000)));
    assert!(idle.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_refusal_is_followed_by_idle_unless_something_was_sent() {
    let (mut idle, mut relay) = idle(LARGE_PIPE).await;
    let (problem, refused) = refused();
    for _ in 0..3 {
        let mut leg = idle.ask(ask("k"));
        relay.send(refused.clone()).await;
        assert_eq!(leg.opened().await, Err(OpenError::Refused(Box::new(problem.clone()))));
        assert!(leg.is_idle_after_refusal());
        relay.idle().await;
        idle = leg.idle().await.unwrap();
    }
    let mut leg = idle.ask(ask("k"));
    leg.write_all(b"early").await.unwrap();
    relay.send(refused).await;
    relay.close(4010).await;
    assert!(leg.opened().await.is_err());
    assert!(!leg.is_idle_after_refusal());
    assert!(matches!(leg.idle().await, Err(EndReason::Closed { code: 4010, .. })));

    let (mut leg, mut relay) = joined(LARGE_PIPE).await;
    relay.send(self::refused().1).await;
    assert!(leg.opened().await.is_err());
    assert!(!leg.is_idle_after_refusal(), "the relay did not grant it");
}

#[tokio::test(start_paused = true)]
async fn an_idle_leg_answers_pings_and_notices_its_end() {
    let (mut idle, mut relay) = idle(LARGE_PIPE).await;
    let remote = async {
        for turn in 0..20u8 {
            sleep(PING).await;
            relay.send(Message::Ping(vec![turn].into())).await;
            assert_eq!(relay.next().await, Received::Pong(vec![turn].into()));
        }
        relay.text(r#"{"type":"later"}"#).await;
        relay.close(4004).await;
        relay.closed().await
    };
    let (end, answer) = tokio::join!(idle.ended(), remote);
    assert_eq!((end, answer), (EndReason::Closed { code: 4004, reason: String::new() }, Some(4004)));

    let (mut idle, relay) = self::idle(LARGE_PIPE).await;
    drop(relay);
    assert!(matches!(idle.ended().await, EndReason::Lost(_)));
}

#[tokio::test(start_paused = true)]
async fn a_silent_relay_is_dead_by_the_last_known_interval_of_pings() {
    let (leg, mut relay) = reusable(LARGE_PIPE).await;
    let mut idle = carry(leg, &mut relay, b"up", b"down").await;
    let begun = Instant::now();
    assert_eq!(idle.ended().await, EndReason::Silent(PING * 5 / 2));
    assert_eq!(begun.elapsed(), PING * 5 / 2);

    let (mut idle, _relay) = self::idle(LARGE_PIPE).await;
    let begun = Instant::now();
    assert_eq!(idle.ended().await, EndReason::Silent(PING * 5 / 2), "opened idle, it knows the interval from `idle`");
    assert_eq!(begun.elapsed(), PING * 5 / 2);
}

#[tokio::test(start_paused = true)]
async fn a_leg_that_died_without_a_word_is_noticed_two_seconds_after_an_ask() {
    let (idle, relay) = idle(LARGE_PIPE).await;
    let (begun, mut leg) = (Instant::now(), idle.ask(ask("k")));
    assert_eq!(leg.opened().await, Err(OpenError::Ended(EndReason::Silent(Duration::from_secs(2)))));
    assert_eq!(begun.elapsed(), Duration::from_secs(2));
    drop(relay);

    // One that lives may take its time.
    let (idle, mut relay) = self::idle(LARGE_PIPE).await;
    let mut leg = idle.ask(ask("k"));
    let remote = async {
        assert_eq!(relay.next().await, ask_text("k"));
        drop(timeout(Duration::from_secs(30), relay.next()).await); // answers the ping
        relay.open().await;
    };
    let (opened, ()) = tokio::join!(leg.opened(), remote);
    opened.unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_idle_leg_that_is_dropped_or_closed_is_closed_in_order() {
    let (idle, mut relay) = idle(LARGE_PIPE).await;
    drop(idle);
    assert_eq!(relay.closed().await, Some(1000));
    let (idle, mut relay) = self::idle(LARGE_PIPE).await;
    let ((), code) = tokio::join!(idle.close(), async {
        let code = relay.closed().await;
        relay.next().await;
        code
    });
    assert_eq!(code, Some(1000));
}

/// What an idle leg must not receive. `offer` is for devices.
#[tokio::test(start_paused = true)]
async fn everything_but_control_frames_on_an_idle_leg_breaks_the_protocol() {
    let offer = ReuseText::from(Box::new(offer())).encode();
    let cancel = r#"{"type":"cancel","stream":"00112233445566778899aabbccddeeff","code":"caller_gone"}"#;
    for message in [
        Message::binary(vec![1]),
        Message::text(END_TEXT),
        Message::text(DELIVERED_TEXT),
        Message::text(IDLE_TEXT),
        Message::text(cancel),
        Message::text(offer),
        opened_text(),
        refused().1,
        Message::text("[]"),
    ] {
        let (mut idle, mut relay) = idle(LARGE_PIPE).await;
        relay.send(message.clone()).await;
        assert!(matches!(idle.ended().await, EndReason::ProtocolError { .. }), "{message}");
        assert_eq!(relay.closed().await, Some(4400), "{message}");
    }
}

#[tokio::test(start_paused = true)]
async fn idle_in_the_wrong_place_breaks_the_protocol() {
    // Before `opened`, and on a leg that is not used again.
    let (mut leg, mut relay) = reusable(LARGE_PIPE).await;
    relay.idle().await;
    assert!(leg.opened().await.is_err());
    assert_eq!(relay.closed().await, Some(4400));
    // While something is missing of: the far side's `end`, this side's `end`, the far side's `delivered`.
    for (is_reusable, ends, shuts_down, delivers) in
        [(true, false, true, true), (true, true, false, false), (true, true, true, false), (false, true, true, true)]
    {
        let (mut leg, mut relay) = if is_reusable { reusable(LARGE_PIPE).await } else { joined(LARGE_PIPE).await };
        relay.open().await;
        leg.opened().await.unwrap();
        if ends {
            relay.end().await;
            assert_eq!(leg.read(&mut [0; 8]).await.unwrap(), 0);
        }
        if shuts_down {
            leg.shutdown().await.unwrap();
        }
        if delivers {
            relay.text(DELIVERED_TEXT).await;
        }
        relay.idle().await;
        let (closed, read) = tokio::join!(relay.closed(), async {
            drop(leg.read(&mut [0; 8]).await);
            let ended = timeout(Duration::from_secs(1), leg.finish()).await;
            ended.is_ok_and(|(_, idle)| idle.is_some())
        });
        assert_eq!((closed, read), (Some(4400), false), "{is_reusable} {ends} {shuts_down} {delivers}");
    }
}
