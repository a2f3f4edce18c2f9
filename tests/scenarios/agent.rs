//! The real agent against the real relay, in memory: concurrent offers, reconnecting, stopping, two machines with one key.

use std::time::Duration;

use moorline_agent::{Accepted, Decision, OfferInfo, RejectCode};
use moorline_proto::problem::ProblemCode;
use moorline_tests::memory::{INSTANCE, MemoryWorld};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::Instant;

/// A handler whose streams return everything twice, the second time in upper case.
async fn echo_twice(_offer: OfferInfo) -> Decision {
    let (local, mut remote) = tokio::io::duplex(997);
    tokio::spawn(async move {
        let mut received = Vec::new();
        remote.read_to_end(&mut received).await.expect("a pipe does not fail");
        remote.write_all(&received).await.expect("a pipe does not fail");
        remote.write_all(&received.to_ascii_uppercase()).await.expect("a pipe does not fail");
    });
    Decision::Accept(Accepted::stream(local))
}

/// Runs `scenario` while the agents run.
async fn alongside(agents: impl Future<Output = ()>, scenario: impl Future<Output = ()>) {
    tokio::select! {
        () = agents => panic!("an agent stopped"),
        () = scenario => {}
    }
}

#[tokio::test(start_paused = true)]
async fn fifty_concurrent_offers_are_all_carried() {
    let world = MemoryWorld::start().await;
    let agent = world.agent("lamp-1", &["ssh"], echo_twice).await;
    alongside(agent.run(std::future::pending()), async {
        world.until("online", |relay| relay.devices() == 1).await;
        let mut legs = Vec::new();
        for _ in 0..50 {
            let mut leg = world.connect("lamp-1", "ssh", &[]).await.unwrap();
            leg.opened().await;
            legs.push(leg);
        }
        for (number, leg) in legs.iter_mut().enumerate() {
            leg.send_bytes(format!("stream {number}")).await;
            leg.end().await;
        }
        for (number, leg) in legs.iter_mut().enumerate() {
            let expected = format!("stream {number}STREAM {number}");
            assert_eq!(leg.bytes(expected.len()).await, expected.as_bytes());
            leg.ended().await;
            assert_eq!(leg.closed().await, 1000);
        }
        drop(legs);
        world.until("nothing is left", |relay| relay.streams() == 0).await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_handler_sees_the_whole_offer_and_its_detail_reaches_the_caller() {
    let world = MemoryWorld::start().await;
    let agent = world
        .agent("lamp-1", &["ssh"], async |offer: OfferInfo| {
            let reason = offer.caller.reason.as_ref().map(ToString::to_string).unwrap_or_default();
            Decision::reject(RejectCode::Policy, format!("{} may not: {reason}", offer.caller.id()))
        })
        .await;
    alongside(agent.run(std::future::pending()), async {
        world.until("online", |relay| relay.devices() == 1).await;
        let mut leg = world.connect("lamp-1", "ssh", &[("moorline-reason", "just%20so")]).await.unwrap();
        let problem = leg.refused().await;
        assert_eq!(problem.known_code(), Some(ProblemCode::RejectedByDevice));
        assert_eq!(problem.device_detail.as_deref(), Some("relay:alice may not: just so"));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_is_idle_for_a_day_stays_online_on_one_channel() {
    let world = MemoryWorld::start().await;
    let agent = world.agent("lamp-1", &["ssh"], echo_twice).await;
    alongside(agent.run(std::future::pending()), async {
        world.until("online", |relay| relay.devices() == 1).await;
        let session = world.request("GET", "/v1/devices/lamp-1", &[], None).await.2["online"]["session"].clone();
        assert!(!session.is_null(), "the device has a session");
        tokio::time::sleep(Duration::from_secs(86_400)).await;
        let now = world.request("GET", "/v1/devices/lamp-1", &[], None).await.2;
        assert_eq!(now["online"]["session"], session);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn two_machines_with_one_key_stop_superseding_each_other() {
    let world = MemoryWorld::start().await;
    let (first, second) = (world.agent("lamp-1", &["ssh"], echo_twice).await, world.agent("lamp-1", &["ssh"], echo_twice).await);
    let both = async {
        tokio::join!(first.run(std::future::pending()), second.run(std::future::pending()));
    };
    alongside(both, async {
        world.until("online", |relay| relay.devices() == 1).await;
        tokio::time::sleep(Duration::from_secs(3_600)).await;
        // Two to begin with, and at least one that reconnected once before the pauses began.
        let dialled = world.dialled();
        assert!((3..30).contains(&dialled), "{dialled} connections in an hour");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn an_agent_superseded_by_another_instance_reconnects_once() {
    let world = MemoryWorld::start().await;
    let agent = world.agent("lamp-1", &["ssh"], echo_twice).await;
    alongside(agent.run(std::future::pending()), async {
        world.until("online", |relay| relay.devices() == 1).await;
        let mut other = world.device_as("lamp-1", INSTANCE, &["ssh"]).await.unwrap();
        let begun = Instant::now();
        assert_eq!(other.closed().await.0, 4007, "the agent reconnected and took over");
        assert!(begun.elapsed() <= Duration::from_secs(2));
        let mut other = world.device_as("lamp-1", INSTANCE, &["ssh"]).await.unwrap();
        let begun = Instant::now();
        assert_eq!(other.closed().await.0, 4007);
        assert!(begun.elapsed() >= Duration::from_secs(60), "the second time it reconnects after a minute");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn an_unregistered_device_retries_rarely() {
    let world = MemoryWorld::start().await;
    let agent = world.agent("lamp-1", &["ssh"], echo_twice).await;
    assert_eq!(world.request("DELETE", "/v1/devices/lamp-1", &[], None).await.0, 204);
    alongside(agent.run(std::future::pending()), async {
        tokio::time::sleep(Duration::from_secs(100)).await;
        assert_eq!((world.relay.devices(), world.dialled()), (0, 1), "it tried once");
        world.register_again("lamp-1").await;
        let begun = Instant::now();
        world.until("online", |relay| relay.devices() == 1).await;
        assert!(begun.elapsed() <= Duration::from_secs(350), "after {:?}", begun.elapsed());
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_stops_goes_offline_and_resets_its_streams() {
    let world = MemoryWorld::start().await;
    let agent = world.agent("lamp-1", &["ssh"], echo_twice).await;
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let scenario = async {
        world.until("online", |relay| relay.devices() == 1).await;
        let mut leg = world.connect("lamp-1", "ssh", &[]).await.unwrap();
        leg.opened().await;
        stop.send(()).unwrap();
        assert_eq!(leg.closed().await, 4001);
    };
    tokio::join!(agent.run(async { drop(stopped.await) }), scenario);
    world.until("offline", |relay| relay.devices() == 0).await;
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_panics_refuses_the_offer_at_once() {
    let world = MemoryWorld::start().await;
    let agent = world.agent("lamp-1", &["ssh"], async |_: OfferInfo| -> Decision { panic!("a fault of the embedding program") }).await;
    alongside(agent.run(std::future::pending()), async {
        world.until("online", |relay| relay.devices() == 1).await;
        let begun = Instant::now();
        let mut leg = world.connect("lamp-1", "ssh", &[]).await.unwrap();
        assert_eq!(leg.refused().await.known_code(), Some(ProblemCode::DeviceFailed));
        assert_eq!(begun.elapsed(), Duration::ZERO);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn offers_beyond_the_device_limit_are_refused_at_once() {
    let world = MemoryWorld::start_with(|config| config.limits.streams_per_device = 3.try_into().unwrap()).await;
    let agent = world.agent("lamp-1", &["ssh"], echo_twice).await;
    alongside(agent.run(std::future::pending()), async {
        world.until("online", |relay| relay.devices() == 1).await;
        let mut legs = Vec::new();
        for _ in 0..3 {
            let mut leg = world.connect("lamp-1", "ssh", &[]).await.unwrap();
            leg.opened().await;
            legs.push(leg);
        }
        let refusal = world.connect("lamp-1", "ssh", &[]).await.unwrap_err();
        assert_eq!((refusal.status, refusal.headers["retry-after"].to_str().unwrap()), (429, "5"));
        assert_eq!(refusal.problem.unwrap().known_code(), Some(ProblemCode::TooManyStreams));
        drop(legs.pop());
        world.until("a slot is free", |relay| relay.streams() == 2).await;
        world.connect("lamp-1", "ssh", &[]).await.unwrap().opened().await;
    })
    .await;
}
