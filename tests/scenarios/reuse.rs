//! Legs that are used again, on a paused clock: one stream after the other, idle legs, and how a stream that begins on them is refused.

use std::time::Duration;

use futures_util::StreamExt;
use moorline_proto::claims::CallerClaims;
use moorline_proto::control::{CancelCode, RejectCode};
use moorline_proto::problem::ProblemCode;
use moorline_proto::reuse::ReuseText;
use moorline_tests::memory::{INSTANCE, MemoryWorld};
use moorline_tests::warm::{REUSE_LEG, WarmWorld, ask_for_a_second, end_both, finish, idle_caller, idle_leg, open, open_idle, warm_device};
use moorline_tests::wire::{LegEvent, bearer};
use serde_json::json;
use tokio::time::Instant;
use tokio_tungstenite::tungstenite::Message;

fn known(problem: &moorline_proto::problem::Problem) -> Option<ProblemCode> {
    problem.known_code()
}

#[tokio::test(start_paused = true)]
async fn two_cold_legs_carry_one_stream_after_the_other() {
    let world = MemoryWorld::start().await;
    let mut device = warm_device(&world, INSTANCE).await;
    let mut caller = world.connect("lamp-1", "ssh", &[REUSE_LEG]).await.unwrap();
    let offer = device.offer().await;
    device.accept(offer.stream).await;
    let mut leg = {
        let headers = [("authorization", bearer(&offer.token))];
        moorline_tests::wire::WireLeg::join(
            world.dial(),
            moorline_tests::memory::HOST,
            offer.url.as_str(),
            &[("authorization", headers[0].1.as_str()), REUSE_LEG],
        )
        .await
        .unwrap()
    };
    assert!(caller.is_reusable && leg.is_reusable);
    caller.opened().await;
    leg.opened().await;
    caller.send_bytes("first").await;
    assert_eq!(leg.bytes(5).await, b"first");
    finish(&mut caller, &mut leg).await;

    for round in 0..3 {
        let (question, answer) = (format!("question {round}"), format!("answer {round}"));
        caller.ask("lamp-1", "ssh").await;
        caller.send_bytes(question.clone()).await;
        let offer = leg.offer().await;
        assert_eq!((offer.service.as_str(), offer.caller.subject.as_str(), offer.ping_ms), ("ssh", "alice", 25_000));
        assert_eq!(leg.bytes(question.len()).await, question.as_bytes(), "the bytes come right behind the offer");
        leg.accept(offer.stream).await;
        leg.send_bytes(answer.clone()).await;
        let opened = caller.opened().await;
        assert_eq!(opened.stream, offer.stream);
        let steps = opened.timeline;
        assert!(steps.authorized_ms.is_some() && steps.offered_ms.is_some() && steps.device_joined_ms.is_some(), "{steps:?}");
        assert_eq!(caller.bytes(answer.len()).await, answer.as_bytes());
        finish(&mut caller, &mut leg).await;
    }
    assert_eq!(world.relay.streams(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_side_that_does_not_ask_for_it_sees_none_of_it() {
    let world = MemoryWorld::start().await;
    let mut device = world.device("lamp-1").await;
    assert_eq!(device.welcome.warm, None);
    let mut caller = world.connect("lamp-1", "ssh", &[REUSE_LEG]).await.unwrap();
    let offer = device.offer().await;
    device.accept(offer.stream).await;
    let mut leg = world.join(offer.url.as_str(), &offer.token).await.unwrap();
    assert!(caller.is_reusable && !leg.is_reusable);
    caller.opened().await;
    leg.opened().await;
    end_both(&mut caller, &mut leg).await;
    assert_eq!(leg.closed().await, 1000);
    caller.idle().await;

    // The next stream of that caller goes to the device as ever.
    caller.ask("lamp-1", "http").await;
    let offer = device.offer().await;
    assert_eq!(offer.service.as_str(), "http");
    device.accept(offer.stream).await;
    let mut leg = world.join(offer.url.as_str(), &offer.token).await.unwrap();
    caller.opened().await;
    leg.opened().await;
    end_both(&mut caller, &mut leg).await;
    assert_eq!(leg.closed().await, 1000);
    caller.idle().await;
}

#[tokio::test(start_paused = true)]
async fn a_callers_leg_that_was_joined_by_a_ticket_is_not_used_again() {
    let world = MemoryWorld::start().await;
    let mut device = world.device("lamp-1").await;
    let negotiate = world.request("POST", "/v1/devices/lamp-1/streams", &[], Some(json!({"service": "ssh"})));
    let (answer, ()) = tokio::join!(negotiate, async {
        let offer = device.offer().await;
        device.accept(offer.stream).await;
    });
    let authorization = format!("Bearer {}", answer.2["token"].as_str().unwrap());
    let caller = open_idle(&world, answer.2["url"].as_str().unwrap(), &authorization).await.unwrap();
    assert!(!caller.is_reusable, "nobody's rights stand behind it");
}

#[tokio::test(start_paused = true)]
async fn a_device_that_answers_on_its_leg_is_not_told_that_the_stream_is_open() {
    let mut warm = WarmWorld::start().await;
    let begun = Instant::now();
    warm.open().await;
    assert!(begun.elapsed() < Duration::from_millis(5), "no step waits: {:?}", begun.elapsed());
    warm.caller.send_bytes("x").await;
    assert_eq!(warm.leg.next().await, LegEvent::Bytes("x".into()));
    warm.finish().await;
}

/// The next frame on a leg, which must be a pong with this payload.
async fn pong(leg: &mut moorline_tests::warm::Leg, payload: &str) {
    match leg.socket.next().await {
        Some(Ok(Message::Pong(echoed))) if echoed == payload.as_bytes() => {}
        other => panic!("{other:?} instead of a pong"),
    }
}

#[tokio::test(start_paused = true)]
async fn the_pong_to_an_asks_ping_goes_with_the_answer_and_waits_a_tenth_of_a_second_at_most() {
    for answers_at_once in [true, false] {
        let mut warm = WarmWorld::start().await;
        let begun = Instant::now();
        warm.caller.ask("lamp-1", "ssh").await;
        warm.caller.send(Message::Ping("alive?".into())).await;
        let offer = warm.leg.offer().await;
        if answers_at_once {
            warm.leg.accept(offer.stream).await;
            pong(&mut warm.caller, "alive?").await;
            assert!(begun.elapsed() < Duration::from_millis(5), "{:?}", begun.elapsed());
        } else {
            pong(&mut warm.caller, "alive?").await;
            let waited = begun.elapsed().as_millis();
            assert!((90..=120).contains(&waited), "{waited} ms");
            warm.leg.accept(offer.stream).await;
        }
        warm.caller.opened().await;
        warm.finish().await;
    }
}

#[tokio::test(start_paused = true)]
async fn end_and_bytes_that_come_before_the_answer_reach_the_device_once() {
    let mut warm = WarmWorld::start().await;
    warm.caller.ask("lamp-1", "ssh").await;
    let offer = warm.leg.offer().await;
    for part in ["one ", "two ", "three"] {
        warm.caller.send_bytes(part).await;
        assert_eq!(warm.leg.bytes(part.len()).await, part.as_bytes());
    }
    warm.caller.end().await;
    assert_eq!(warm.leg.next().await, LegEvent::End);
    warm.leg.accept(offer.stream).await;
    warm.leg.delivered().await;
    warm.leg.send_bytes("answer").await;
    warm.leg.end().await;
    warm.caller.opened().await;
    assert_eq!(warm.caller.next().await, LegEvent::Delivered);
    assert_eq!(warm.caller.bytes(6).await, b"answer");
    assert_eq!(warm.caller.next().await, LegEvent::End);
    warm.caller.delivered().await;
    warm.caller.idle().await;
    assert_eq!(warm.leg.next().await, LegEvent::Delivered);
    warm.leg.idle().await;
}

#[tokio::test(start_paused = true)]
async fn a_refused_ask_leaves_the_leg_idle_unless_something_came_behind_it() {
    let mut warm = WarmWorld::start().await;
    let refused = async |warm: &mut WarmWorld| match warm.caller.next().await {
        LegEvent::Refused(problem) => *problem,
        other => panic!("{other:?} instead of refused"),
    };
    warm.caller.ask("lamp-2", "ssh").await;
    assert_eq!(known(&refused(&mut warm).await), Some(ProblemCode::DeviceUnknown));
    warm.caller.idle().await;
    warm.caller.say(&json!({"type": "ask", "device": "lamp-1", "service": "ssh", "deadline_s": 0})).await;
    assert_eq!(known(&refused(&mut warm).await), Some(ProblemCode::Malformed));
    warm.caller.idle().await;

    // The device says no, on its leg, which is idle again, as the caller's is.
    warm.caller.ask("lamp-1", "ssh").await;
    let offer = warm.leg.offer().await;
    warm.leg.reject(offer.stream, RejectCode::Policy).await;
    assert_eq!(known(&refused(&mut warm).await), Some(ProblemCode::RejectedByDevice));
    warm.caller.idle().await;
    warm.leg.idle().await;
    warm.open().await;
    warm.finish().await;

    warm.caller.ask("lamp-1", "ssh").await;
    warm.caller.send_bytes("early").await;
    let offer = warm.leg.offer().await;
    assert_eq!(warm.leg.bytes(5).await, b"early");
    warm.leg.reject(offer.stream, RejectCode::Busy).await;
    assert_eq!(known(&warm.caller.refused().await), Some(ProblemCode::DeviceBusy));
    warm.leg.idle().await;
}

#[tokio::test(start_paused = true)]
async fn the_sixteenth_refusal_in_a_row_closes_the_leg() {
    let mut warm = WarmWorld::start().await;
    for number in 1..=15 {
        warm.caller.ask("lamp-2", "ssh").await;
        assert!(matches!(warm.caller.next().await, LegEvent::Refused(_)), "{number}");
        warm.caller.idle().await;
        if number == 10 {
            warm.open().await;
            warm.finish().await;
        }
    }
    for _ in 11..=15 {
        warm.caller.ask("lamp-2", "ssh").await;
        assert!(matches!(warm.caller.next().await, LegEvent::Refused(_)));
        warm.caller.idle().await;
    }
    for number in 6..=16 {
        warm.caller.ask("lamp-2", "ssh").await;
        assert!(matches!(warm.caller.next().await, LegEvent::Refused(_)), "{number}");
        match warm.caller.next().await {
            LegEvent::Reuse(ReuseText::Idle(_)) => {}
            LegEvent::Close(code, _) => return assert_eq!((code, number), (4008, 11), "ten since the stream, and six more"),
            other => panic!("{other:?}"),
        }
    }
    panic!("the leg is never closed");
}

#[tokio::test(start_paused = true)]
async fn an_ask_is_authorized_as_a_request_of_its_own() {
    let world = MemoryWorld::start().await;
    let _device = warm_device(&world, INSTANCE).await;
    let rule = moorline_proto::claims::AccessRule {
        actions: vec![moorline_proto::claims::Action::StreamOpen],
        devices: vec!["lamp-1".parse().unwrap()],
        services: vec!["http".parse().unwrap()],
    };
    let token = world.token_for("bob", &[rule]);
    let mut caller = open_idle(&world, "/v1/connect", &bearer(&token)).await.unwrap();
    caller.idle().await;
    for (device, code) in [("lamp-1", ProblemCode::Forbidden), ("lamp-2", ProblemCode::DeviceUnknown)] {
        caller.ask(device, "ssh").await;
        let LegEvent::Refused(problem) = caller.next().await else { panic!("not refused") };
        assert_eq!(known(&problem), Some(code));
        caller.idle().await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_offer_that_is_withdrawn_leaves_the_leg_idle_if_the_device_rejects() {
    let mut warm = WarmWorld::start().await;
    ask_for_a_second(&mut warm.caller).await;
    let offer = warm.leg.offer().await;
    assert!(matches!(warm.caller.next().await, LegEvent::Refused(_)));
    warm.caller.idle().await;
    let LegEvent::Reuse(ReuseText::Cancel(cancel)) = warm.leg.next().await else { panic!("no cancel") };
    assert_eq!((cancel.stream, cancel.code), (offer.stream, CancelCode::HandshakeTimeout));
    assert_eq!(warm.world.relay.streams(), 0, "its places are free at once");
    warm.leg.reject(offer.stream, RejectCode::Internal).await;
    warm.leg.idle().await;
    warm.open().await;
    warm.finish().await;

    // Without an answer, and with an `accept` that comes too late, the leg is closed.
    for accepts in [false, true] {
        ask_for_a_second(&mut warm.caller).await;
        let offer = warm.leg.offer().await;
        assert!(matches!(warm.caller.next().await, LegEvent::Refused(_)));
        warm.caller.idle().await;
        assert!(matches!(warm.leg.next().await, LegEvent::Reuse(ReuseText::Cancel(_))));
        let begun = Instant::now();
        if accepts {
            warm.leg.accept(offer.stream).await;
        }
        assert_eq!(warm.leg.closed().await, 4010);
        assert_eq!(begun.elapsed().as_secs(), if accepts { 0 } else { 5 });
        warm.leg = idle_leg(&warm.world, &warm.device).await;
        warm.leg.idle().await;
    }
}

#[tokio::test(start_paused = true)]
async fn the_leg_that_was_used_last_is_taken_first() {
    let mut warm = WarmWorld::start().await;
    let mut second = idle_leg(&warm.world, &warm.device).await;
    second.idle().await;
    open(&mut warm.caller, &mut second).await;
    let mut other = idle_caller(&warm.world).await;
    other.idle().await;
    open(&mut other, &mut warm.leg).await;
    finish(&mut warm.caller, &mut second).await;
    finish(&mut other, &mut warm.leg).await;
    open(&mut other, &mut warm.leg).await;
}

#[tokio::test(start_paused = true)]
async fn idle_legs_are_pinged_and_closed_when_their_time_is_over() {
    let WarmWorld { world: _world, mut device, mut caller, mut leg } = WarmWorld::start().await;
    let begun = Instant::now();
    let closed = async {
        assert_eq!((caller.closed().await, leg.closed().await), (1000, 1000));
        begun.elapsed().as_secs()
    };
    tokio::select! {
        seconds = closed => assert_eq!(seconds, 300),
        message = device.next() => panic!("the relay sends {message:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn the_end_of_a_token_closes_the_callers_idle_legs() {
    let world = MemoryWorld::start().await;
    let _device = warm_device(&world, INSTANCE).await;
    let now = world.now().as_millis() / 1_000;
    let claims = CallerClaims {
        iss: "moorline:relay:relay".to_owned(),
        sub: "alice".parse().unwrap(),
        aud: moorline_proto::claims::Audience::One(moorline_tests::memory::HOST.to_owned()),
        exp: now + 20,
        iat: now,
        nbf: None,
        jti: None,
        access: Vec::new(),
    };
    let mut caller = open_idle(&world, "/v1/connect", &bearer(&world.sign(&claims))).await.unwrap();
    caller.idle().await;
    let begun = Instant::now();
    assert_eq!(caller.closed().await, 4004);
    assert!((20..=90).contains(&begun.elapsed().as_secs()), "with the leeway of the relay: {:?}", begun.elapsed());
}
