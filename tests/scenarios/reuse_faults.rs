//! Legs that are used again, when something is wrong: bad input on them, legs that die, devices that go, a relay that leaves.

use std::time::Duration;

use moorline_proto::control::{CancelCode, RejectCode};
use moorline_proto::problem::ProblemCode;
use moorline_proto::reuse::ReuseText;
use moorline_tests::memory::{INSTANCE, MemoryWorld};
use moorline_tests::warm::{Leg, WarmWorld, ask_for_a_second, idle_caller, idle_leg, open_idle, warm_device};
use moorline_tests::wire::{LegEvent, bearer};
use serde_json::{Value, json};
use tokio::time::Instant;
use tokio_tungstenite::tungstenite::Message;

const STREAM: &str = "7f1a3c5e9b2d4f608192a3b4c5d6e7f8";

async fn closed_with(leg: &mut Leg) -> (u16, String) {
    loop {
        match leg.next().await {
            LegEvent::Close(code, reason) => return (code, reason),
            LegEvent::Lost => return (1006, String::new()),
            _ => {}
        }
    }
}

/// Every message by which a leg passes between streams, and those of a stream.
fn messages() -> [Value; 8] {
    [
        json!({"type": "ask", "device": "lamp-1", "service": "ssh"}),
        json!({"type": "accept", "stream": STREAM}),
        json!({"type": "reject", "stream": STREAM, "code": "busy"}),
        json!({"type": "idle", "keep_ms": 1, "ping_ms": 1_000}),
        json!({"type": "cancel", "stream": STREAM, "code": "killed"}),
        json!({"type": "end"}),
        json!({"type": "delivered"}),
        json!({"type": "opened"}),
    ]
}

#[tokio::test(start_paused = true)]
async fn what_must_not_come_on_an_idle_leg_breaks_the_protocol() {
    let world = MemoryWorld::start().await;
    let device = warm_device(&world, INSTANCE).await;
    for message in messages() {
        for is_caller in [true, false] {
            if is_caller && message["type"] == "ask" {
                continue;
            }
            let mut leg = if is_caller { idle_caller(&world).await } else { idle_leg(&world, &device).await };
            leg.idle().await;
            leg.say(&message).await;
            let (code, reason) = closed_with(&mut leg).await;
            assert!(code == 4400 && reason.starts_with("protocol: "), "{message} of {is_caller}: {code} {reason}");
        }
    }
    for text in ["hello", "[]", r#"{"type":"ask","device":"Lamp 1","service":"ssh"}"#] {
        let mut caller = idle_caller(&world).await;
        caller.idle().await;
        caller.send(Message::text(text)).await;
        assert_eq!(closed_with(&mut caller).await.0, 4400, "{text}");
    }
    for is_caller in [true, false] {
        let mut leg = if is_caller { idle_caller(&world).await } else { idle_leg(&world, &device).await };
        leg.idle().await;
        leg.say(&json!({"type": "from_the_future"})).await;
        leg.send_bytes("x").await;
        assert_eq!(closed_with(&mut leg).await, (4400, "protocol: bytes on an idle leg".to_owned()));
    }
    assert_eq!(world.relay.streams(), 0);
}

#[tokio::test(start_paused = true)]
async fn what_must_not_come_on_an_open_stream_breaks_the_protocol() {
    for message in &messages()[..5] {
        for is_caller in [true, false] {
            let mut warm = WarmWorld::start().await;
            warm.open().await;
            let (own, far) = if is_caller { (&mut warm.caller, &mut warm.leg) } else { (&mut warm.leg, &mut warm.caller) };
            own.say(message).await;
            assert_eq!(closed_with(own).await.0, 4400, "{message} of {is_caller}");
            assert_eq!(closed_with(far).await.0, 4001, "{message} of {is_caller}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_leg_that_is_used_again_says_nothing_after_its_end_but_delivered() {
    for message in [json!({"type": "end"}), json!({"type": "x"})] {
        let mut warm = WarmWorld::start().await;
        warm.open().await;
        warm.caller.end().await;
        warm.caller.say(&message).await;
        assert_eq!(closed_with(&mut warm.caller).await.0, 4400, "{message}");
        assert_eq!(closed_with(&mut warm.leg).await.0, 4001, "{message}");
    }
}

#[tokio::test(start_paused = true)]
async fn before_its_answer_a_device_says_nothing_else_on_its_leg() {
    for message in messages().into_iter().filter(|message| message["type"] != "ask").chain([Value::Null]) {
        let mut warm = WarmWorld::start().await;
        warm.caller.ask("lamp-1", "ssh").await;
        let first = warm.leg.offer().await;
        if message.is_null() {
            warm.leg.send_bytes("too early").await;
        } else {
            warm.leg.say(&message).await;
        }
        let (code, reason) = closed_with(&mut warm.leg).await;
        assert_eq!(code, 4400, "{message}: {reason}");
        // The stream is offered again, on the control channel.
        let again = warm.device.offer().await;
        assert_eq!((again.stream, again.attempt.get()), (first.stream, 2), "{message}");
        warm.device.reject(again.stream, RejectCode::Busy, "").await;
        assert!(matches!(warm.caller.next().await, LegEvent::Refused(_)));
    }
}

#[tokio::test(start_paused = true)]
async fn a_second_answer_breaks_the_protocol() {
    for answer in ["accept", "reject"] {
        let mut warm = WarmWorld::start().await;
        let offer = warm.open().await;
        warm.leg.say(&json!({"type": answer, "stream": offer.stream, "code": "busy"})).await;
        assert_eq!(closed_with(&mut warm.leg).await.0, 4400);
        assert_eq!(closed_with(&mut warm.caller).await.0, 4001);
    }
    let mut warm = WarmWorld::start().await;
    warm.caller.ask("lamp-1", "ssh").await;
    let offer = warm.leg.offer().await;
    warm.leg.reject(offer.stream, RejectCode::Busy).await;
    warm.leg.reject(offer.stream, RejectCode::Busy).await;
    assert_eq!(closed_with(&mut warm.leg).await.0, 4400);
    assert!(matches!(warm.caller.next().await, LegEvent::Refused(_)));
}

#[tokio::test(start_paused = true)]
async fn an_offer_on_a_dead_leg_is_made_again_on_the_control_channel() {
    let mut warm = WarmWorld::start().await;
    warm.caller.ask("lamp-1", "ssh").await;
    warm.caller.send_bytes("held until accept").await;
    let begun = Instant::now();
    // The leg is not read: no pong.
    let offer = warm.device.offer().await;
    assert_eq!((offer.attempt.get(), begun.elapsed().as_secs()), (2, 2));
    warm.device.accept(offer.stream).await;
    let mut leg = warm.world.join(offer.url.as_str(), &offer.token).await.unwrap();
    warm.caller.opened().await;
    leg.opened().await;
    assert_eq!(leg.bytes(17).await, b"held until accept", "all of it, once");
    assert_eq!(closed_with(&mut warm.leg).await.0, 4007);
}

#[tokio::test(start_paused = true)]
async fn a_slow_device_that_answers_pings_has_until_the_deadline() {
    let mut warm = WarmWorld::start().await;
    warm.caller.ask("lamp-1", "ssh").await;
    let offer = warm.leg.offer().await;
    let begun = Instant::now();
    // Reading the leg answers the ping behind the offer.
    let silence = tokio::time::timeout(Duration::from_secs(40), async { tokio::join!(warm.leg.next(), warm.device.next()) });
    assert!(silence.await.is_err(), "nothing more comes, on neither of them");
    warm.leg.accept(offer.stream).await;
    warm.caller.opened().await;
    assert!(begun.elapsed() >= Duration::from_secs(40));
}

#[tokio::test(start_paused = true)]
async fn bytes_that_went_out_on_a_leg_do_not_go_to_another_session() {
    for early in [false, true] {
        let mut warm = WarmWorld::start().await;
        warm.caller.say(&json!({"type": "ask", "device": "lamp-1", "service": "ssh", "wait_s": 30})).await;
        if early {
            warm.caller.send_bytes("once only").await;
        }
        let first = warm.leg.offer().await;
        if early {
            assert_eq!(warm.leg.bytes(9).await, b"once only");
        }
        // The agent was restarted.
        let mut newer = warm_device(&warm.world, "ffeeddccbbaa99887766554433221100").await;
        assert_eq!(closed_with(&mut warm.leg).await.0, 4007);
        if early {
            assert_eq!(warm.caller.refused().await.known_code(), Some(ProblemCode::DeviceUnresponsive));
        } else {
            let offer = newer.offer().await;
            assert_eq!((offer.stream, offer.attempt.get()), (first.stream, 2));
            newer.reject(offer.stream, RejectCode::Busy, "").await;
            assert!(matches!(warm.caller.next().await, LegEvent::Refused(_)));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_goes_before_the_answer_cancels_on_the_leg() {
    let mut warm = WarmWorld::start().await;
    warm.caller.ask("lamp-1", "ssh").await;
    let offer = warm.leg.offer().await;
    warm.caller.close(4001).await;
    let LegEvent::Reuse(ReuseText::Cancel(cancel)) = warm.leg.next().await else { panic!("no cancel") };
    assert_eq!((cancel.stream, cancel.code), (offer.stream, CancelCode::CallerGone));
    warm.leg.reject(offer.stream, RejectCode::Internal).await;
    warm.leg.idle().await;
}

#[tokio::test(start_paused = true)]
async fn a_device_that_goes_loses_its_idle_legs() {
    // Removed.
    let mut warm = WarmWorld::start().await;
    assert_eq!(warm.world.request("DELETE", "/v1/devices/lamp-1", &[], None).await.0, 204);
    assert_eq!(closed_with(&mut warm.leg).await.0, 4006);
    // Superseded by another start of its agent.
    let mut warm = WarmWorld::start().await;
    let newer = warm_device(&warm.world, "ffeeddccbbaa99887766554433221100").await;
    assert_eq!(closed_with(&mut warm.leg).await.0, 4007);
    let old = warm.device.welcome.warm.as_ref().unwrap();
    drop(newer);
    // Lost.
    let mut warm_again = WarmWorld::start().await;
    drop(warm_again.device);
    assert_eq!(closed_with(&mut warm_again.leg).await.0, 1000);
    // The token of a session that is over opens nothing.
    let refused = open_idle(&warm.world, old.url.as_str(), &bearer(&old.token)).await.unwrap_err();
    assert_eq!((refused.status, refused.problem.unwrap().known_code()), (401, Some(ProblemCode::TokenInvalid)));
}

#[tokio::test(start_paused = true)]
async fn a_relay_that_leaves_closes_idle_legs_and_makes_no_new_ones() {
    let mut warm = WarmWorld::start().await;
    let mut busy =
        WarmWorld { caller: idle_caller(&warm.world).await, leg: idle_leg(&warm.world, &warm.device).await, ..WarmWorld::start().await };
    busy.caller.idle().await;
    busy.leg.idle().await;
    busy.open().await;
    let mut asking = idle_caller(&warm.world).await;
    asking.idle().await;
    asking.ask("lamp-1", "ssh").await;
    let offer = warm.leg.offer().await;
    let mut drained = std::pin::pin!(warm.world.relay.drain(Duration::from_secs(60)));
    assert!(tokio::time::timeout(Duration::from_millis(1), drained.as_mut()).await.is_err(), "a stream is open");
    let LegEvent::Reuse(ReuseText::Cancel(cancel)) = warm.leg.next().await else { panic!("no cancel") };
    assert_eq!((cancel.stream, cancel.code), (offer.stream, CancelCode::Draining));
    assert_eq!(closed_with(&mut warm.leg).await.0, 1012);
    let LegEvent::Refused(problem) = asking.next().await else { panic!("not refused") };
    assert_eq!(problem.known_code(), Some(ProblemCode::Draining));
    assert_eq!(closed_with(&mut asking).await.0, 1012);
    assert_eq!(closed_with(&mut warm.caller).await.0, 1012);
    // What is open finishes as ever.
    moorline_tests::warm::end_both(&mut busy.caller, &mut busy.leg).await;
    assert_eq!((busy.caller.closed().await, busy.leg.closed().await), (1000, 1000));
    let refused = open_idle(&warm.world, "/v1/connect", &bearer(&warm.world.token())).await.unwrap_err();
    assert_eq!(refused.problem.unwrap().known_code(), Some(ProblemCode::Draining));
}

#[tokio::test(start_paused = true)]
async fn each_side_has_sixty_four_idle_legs_at_most() {
    let world = MemoryWorld::start().await;
    let device = warm_device(&world, INSTANCE).await;
    let mut legs = Vec::new();
    for number in 0..64 {
        let (mut caller, mut leg) = (idle_caller(&world).await, idle_leg(&world, &device).await);
        assert_eq!((caller.idle().await, leg.idle().await), (300_000, 300_000), "{number}");
        legs.push((caller, leg));
    }
    assert_eq!(idle_caller(&world).await.closed().await, 1000);
    assert_eq!(idle_leg(&world, &device).await.closed().await, 1000);
    let (mut caller, mut leg) = legs.pop().unwrap();
    ask_for_a_second(&mut caller).await;
    let offer = leg.offer().await;
    leg.accept(offer.stream).await;
    caller.opened().await;
    idle_caller(&world).await.idle().await;
    idle_leg(&world, &device).await.idle().await;
}

#[tokio::test(start_paused = true)]
async fn near_the_limit_of_connections_the_leg_that_is_idle_for_longest_is_closed() {
    let world = MemoryWorld::start_from("", "", "connections = 8\n").await;
    let mut warm = WarmWorld::of(world).await; // three connections
    let mut later = idle_caller(&warm.world).await;
    later.idle().await;
    let mut others = Vec::new();
    for _ in 0..3 {
        others.push(warm.world.device(&format!("door-{}", others.len())).await);
    }
    assert_eq!(closed_with(&mut warm.caller).await.0, 1000, "the first that was idle");
    drop((later, others));
}

#[tokio::test(start_paused = true)]
async fn a_leg_that_takes_the_place_of_another_brings_its_own_rights() {
    let world = MemoryWorld::start().await;
    let mut device = warm_device(&world, INSTANCE).await;
    let rule = |service: &str| moorline_proto::claims::AccessRule {
        actions: vec![moorline_proto::claims::Action::StreamOpen],
        devices: vec!["lamp-1".parse().unwrap()],
        services: vec![service.parse().unwrap()],
    };
    let (wide, narrow) = (world.token_for("bob", &[rule("ssh"), rule("http")]), world.token_for("bob", &[rule("ssh")]));
    let mut first = open_idle(&world, "/v1/connect", &bearer(&wide)).await.unwrap();
    first.idle().await;
    let ask =
        |service: &str| json!({"type": "ask", "device": "lamp-1", "service": service, "key": format!("of {service}").replace(' ', "-")});
    first.say(&ask("ssh")).await;
    let offer = device.offer().await;
    // The same stream by the same key, on a leg of a token that allows less.
    let mut second = open_idle(&world, "/v1/connect", &bearer(&narrow)).await.unwrap();
    second.idle().await;
    second.say(&ask("ssh")).await;
    assert_eq!(closed_with(&mut first).await.0, 4007);
    device.accept(offer.stream).await;
    let mut leg = world.join(offer.url.as_str(), &offer.token).await.unwrap();
    second.opened().await;
    leg.opened().await;
    moorline_tests::warm::end_both(&mut second, &mut leg).await;
    second.idle().await;
    second.say(&ask("http")).await;
    let LegEvent::Refused(problem) = second.next().await else { panic!("not refused") };
    assert_eq!(problem.known_code(), Some(ProblemCode::Forbidden), "its own token does not allow it");
}

#[tokio::test(start_paused = true)]
async fn a_device_that_is_removed_while_it_is_asked_on_a_leg_loses_that_with_4006() {
    let mut warm = WarmWorld::start().await;
    warm.caller.ask("lamp-1", "ssh").await;
    let offer = warm.leg.offer().await;
    assert_eq!(warm.world.request("DELETE", "/v1/devices/lamp-1", &[], None).await.0, 204);
    let LegEvent::Reuse(ReuseText::Cancel(cancel)) = warm.leg.next().await else { panic!("no cancel") };
    assert_eq!((cancel.stream, cancel.code), (offer.stream, CancelCode::Revoked));
    let LegEvent::Refused(problem) = warm.caller.next().await else { panic!("not refused") };
    assert_eq!(problem.known_code(), Some(ProblemCode::Revoked));
    warm.leg.reject(offer.stream, RejectCode::Internal).await;
    assert_eq!(closed_with(&mut warm.leg).await.0, 4006);
}

#[tokio::test(start_paused = true)]
async fn what_a_lost_caller_had_sent_reaches_no_target_beside_what_it_sends_again() {
    let mut warm = WarmWorld::start().await;
    let ask = json!({"type": "ask", "device": "lamp-1", "service": "ssh", "key": "once"});
    warm.caller.say(&ask).await;
    warm.caller.send_bytes("from the ").await;
    let first = warm.leg.offer().await;
    assert_eq!(warm.leg.bytes(9).await, b"from the ");
    drop(warm.caller);
    // Its bytes are with the device, undecided: that leg is of no use any more.
    assert_eq!(closed_with(&mut warm.leg).await.0, 4007);
    let again = warm.device.offer().await;
    assert_eq!((again.stream, again.attempt.get()), (first.stream, 2));
    let mut caller = idle_caller(&warm.world).await;
    caller.idle().await;
    caller.say(&ask).await;
    caller.send_bytes("from the beginning").await;
    warm.device.accept(again.stream).await;
    let mut leg = warm.world.join(again.url.as_str(), &again.token).await.unwrap();
    caller.opened().await;
    leg.opened().await;
    assert_eq!(leg.bytes(18).await, b"from the beginning");
}

#[tokio::test(start_paused = true)]
async fn a_key_is_spent_where_the_target_may_have_what_came_with_it() {
    for (has_bytes, answers_on_leg) in [(true, false), (true, true), (false, true)] {
        let mut warm = WarmWorld::start().await;
        let ask = json!({"type": "ask", "device": "lamp-1", "service": "ssh", "key": "once"});
        warm.caller.say(&ask).await;
        if has_bytes {
            warm.caller.send_bytes("only once").await;
        }
        let offer = warm.leg.offer().await;
        warm.leg.bytes(if has_bytes { 9 } else { 0 }).await;
        let is_spent = if answers_on_leg {
            warm.leg.reject(offer.stream, RejectCode::Busy).await;
            assert!(matches!(warm.caller.next().await, LegEvent::Refused(_)));
            false
        } else {
            // The caller is lost while the device accepts: it has written the bytes when it is asked once more.
            drop(warm.caller);
            let again = warm.device.offer().await;
            warm.device.reject(again.stream, RejectCode::Internal, "an earlier attempt was opened").await;
            warm.world.until("the stream is refused", |relay| relay.streams() == 0).await;
            true
        };
        let mut caller = idle_caller(&warm.world).await;
        caller.idle().await;
        caller.say(&ask).await;
        if is_spent {
            let LegEvent::Refused(problem) = caller.next().await else { panic!("not refused") };
            assert_eq!(problem.known_code(), Some(ProblemCode::TokenUsed));
        } else {
            let anew = tokio::select! { on_leg = warm.leg.next() => on_leg, offer = warm.device.offer() => panic!("{offer:?}") };
            assert!(matches!(anew, LegEvent::Reuse(ReuseText::Idle(_))), "{anew:?}");
            assert_ne!(warm.leg.offer().await.stream, offer.stream, "it asks anew");
        }
    }
}
