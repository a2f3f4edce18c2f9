//! The real agent's legs against the real relay, in memory: a caller's leg that asks several times, and the device's one leg that carries all of it.

use moorline_agent::{Accepted, Decision, OfferInfo, RejectCode};
use moorline_proto::problem::ProblemCode;
use moorline_tests::memory::MemoryWorld;
use moorline_tests::warm::{Leg, REUSE_LEG, idle_caller};
use moorline_tests::wire::LegEvent;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// A handler whose streams answer with what they received, in upper case, once the caller has ended. `http` is refused.
async fn shout(offer: OfferInfo) -> Decision {
    if offer.service.as_str() == "http" {
        return Decision::reject(RejectCode::TargetRefused, "nobody listens");
    }
    let (local, mut remote) = tokio::io::duplex(997);
    tokio::spawn(async move {
        let mut received = Vec::new();
        if remote.read_to_end(&mut received).await.is_ok() {
            remote.write_all(&received.to_ascii_uppercase()).await.unwrap_or_default();
        }
    });
    Decision::Accept(Accepted::stream(local))
}

/// Idle legs of devices and callers that the relay keeps.
fn idle_legs(world: &MemoryWorld) -> usize {
    world.relay.tasks().get("idle").copied().unwrap_or_default()
}

/// Runs `scenario` while an agent is online, whose legs that are kept ready are there.
async fn with_agent(warm_legs: u32, scenario: impl AsyncFnOnce(&MemoryWorld)) {
    let world = MemoryWorld::start().await;
    let agent = world.agent_keeping(warm_legs, "lamp-1", &["ssh", "http"], shout).await;
    let ready = usize::try_from(warm_legs).unwrap();
    tokio::select! {
        () = agent.run(std::future::pending()) => panic!("the agent stopped"),
        () = async {
            world.until("online", |relay| relay.devices() == 1 && idle_legs(&world) == ready).await;
            scenario(&world).await;
        } => {}
    }
}

/// Asks for a stream, sends all of it at once, and receives the answer and `idle`.
async fn ask_and_receive(caller: &mut Leg, question: &str) {
    caller.ask("lamp-1", "ssh").await;
    caller.send_bytes(question.to_owned()).await;
    caller.end().await;
    caller.opened().await;
    assert_eq!(caller.bytes(question.len()).await, question.to_ascii_uppercase().as_bytes());
    caller.ended().await;
    caller.idle().await;
}

#[tokio::test(start_paused = true)]
async fn one_leg_of_the_device_carries_many_streams_one_after_the_other() {
    with_agent(0, async |world| {
        let mut caller = idle_caller(world).await;
        caller.idle().await;
        for number in 0..20 {
            ask_and_receive(&mut caller, &format!("question {number}")).await;
            world.until("both legs are idle", |_| idle_legs(world) == 2).await;
        }
        assert_eq!(world.dialled(), 2, "the control channel, and one leg");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_leg_that_is_kept_ready_carries_the_first_stream_in_one_round_trip() {
    with_agent(1, async |world| {
        assert_eq!(world.dialled(), 2, "the control channel, and the leg");
        let mut caller = idle_caller(world).await;
        caller.idle().await;
        caller.ask("lamp-1", "ssh").await;
        caller.send_bytes("a").await;
        caller.opened().await;
        // The device says `end` only once this side has: each direction ends by itself.
        caller.send_bytes("b").await;
        caller.end().await;
        assert_eq!(caller.bytes(2).await, b"AB");
        caller.ended().await;
        caller.idle().await;
        world.until("the leg was replaced and came back", |_| world.dialled() == 3 && idle_legs(world) == 3).await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_leg_is_used_again_behind_a_target_that_refuses() {
    with_agent(1, async |world| {
        let mut caller = idle_caller(world).await;
        caller.idle().await;
        for number in 0..5 {
            caller.ask("lamp-1", "http").await;
            let LegEvent::Refused(problem) = caller.next().await else { panic!("it is refused") };
            assert_eq!(problem.known_code(), Some(ProblemCode::TargetRefused));
            assert_eq!(problem.device_detail.as_deref(), Some("nobody listens"));
            caller.idle().await;
            ask_and_receive(&mut caller, &format!("question {number}")).await;
            world.until("the legs are idle", |_| idle_legs(world) == 3).await;
        }
        assert_eq!(world.dialled(), 3, "the control channel, the leg, and the one that replaced it once");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_is_cut_costs_its_leg_and_nothing_of_it_is_seen_by_the_next() {
    with_agent(0, async |world| {
        for number in 0..3 {
            let mut caller = idle_caller(world).await;
            caller.idle().await;
            ask_and_receive(&mut caller, "whole").await;
            world.until("both legs are idle", |_| idle_legs(world) == 2).await;
            let dialled = world.dialled();
            caller.ask("lamp-1", "ssh").await;
            caller.send_bytes(format!("a part {number}")).await;
            caller.opened().await;
            caller.close(4001).await;
            caller.closed().await;
            world.until("nothing is left", |relay| relay.streams() == 0 && idle_legs(world) == 0).await;
            assert_eq!(world.dialled(), dialled, "the stream was on the idle leg");
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_knows_nothing_of_it_is_served_on_the_devices_idle_leg() {
    with_agent(1, async |world| {
        for headers in [&[][..], &[REUSE_LEG]] {
            let mut caller = world.connect("lamp-1", "ssh", headers).await.unwrap();
            caller.opened().await;
            caller.send_bytes("question").await;
            caller.end().await;
            assert_eq!(caller.bytes(8).await, b"QUESTION");
            caller.ended().await;
            if headers.is_empty() {
                assert_eq!(caller.closed().await, 1000);
            } else {
                caller.idle().await;
            }
            drop(caller);
            world.until("the device's legs are idle", |_| idle_legs(world) == 2).await;
        }
        assert_eq!(world.dialled(), 3);
    })
    .await;
}
