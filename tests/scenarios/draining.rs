//! A relay that drains: devices get `go_away`, new streams are refused, open ones run on until they end or the grace period is over.

use std::time::Duration;

use moorline_proto::close::CloseReason;
use moorline_proto::control::{CancelCode, ToDevice};
use moorline_proto::names::{CONTROL, CONTROL_SUBPROTOCOL};
use moorline_proto::problem::ProblemCode;
use moorline_tests::memory::{HOST, MemoryWorld};
use moorline_tests::wire::upgrade;
use tokio::time::Instant;

#[tokio::test(start_paused = true)]
async fn open_streams_run_on_while_a_relay_drains_and_new_ones_are_refused() {
    let world = MemoryWorld::start().await;
    let mut device = world.device("lamp-1").await;
    let (mut caller, mut device_leg) = world.stream(&mut device, "lamp-1").await;
    let mut undecided = world.connect("lamp-1", "ssh", &[]).await.unwrap();
    let offer = device.offer().await;
    let (begun, world) = (Instant::now(), &world);
    let scenario = async move {
        assert_eq!(undecided.refused().await.known_code(), Some(ProblemCode::Draining));
        let mut messages = [device.next().await.unwrap(), device.next().await.unwrap()];
        messages.sort_by_key(|message| message.kind());
        let [ToDevice::Cancel(cancel), ToDevice::GoAway(away)] = &messages else { panic!("{messages:?}") };
        assert_eq!((cancel.stream, cancel.code), (offer.stream, CancelCode::Draining));
        assert!((100..=2_000).contains(&away.reconnect_in_ms), "{away:?}");
        let refusal = world.connect("lamp-1", "ssh", &[]).await.unwrap_err();
        assert_eq!((refusal.status, refusal.problem.unwrap().known_code()), (503, Some(ProblemCode::Draining)));
        assert!(refusal.headers.contains_key("retry-after"));
        let refusal = upgrade(world.dial(), HOST, CONTROL, CONTROL_SUBPROTOCOL, &[]).await.unwrap_err();
        assert_eq!((refusal.status, refusal.problem.unwrap().known_code()), (503, Some(ProblemCode::Draining)), "devices are refused too");
        caller.send_bytes("still").await;
        assert_eq!(device_leg.bytes(5).await, b"still");
        caller.end().await;
        device_leg.end().await;
        assert_eq!(tokio::join!(caller.closed(), device_leg.closed()), (1000, 1000));
    };
    tokio::join!(world.relay.drain(Duration::from_secs(600)), scenario);
    assert!(begun.elapsed() < Duration::from_secs(600), "the relay does not wait longer than its streams");
}

#[tokio::test(start_paused = true)]
async fn streams_still_open_after_the_grace_period_are_cut() {
    let world = MemoryWorld::start().await;
    let mut device = world.device("lamp-1").await;
    let (mut caller, mut device_leg) = world.stream(&mut device, "lamp-1").await;
    let begun = Instant::now();
    world.relay.drain(Duration::from_secs(30)).await;
    assert_eq!(begun.elapsed(), Duration::from_secs(30));
    let draining = CloseReason::RelayDraining.code();
    let ends = async {
        assert!(matches!(device.next().await, Ok(ToDevice::GoAway(_))));
        assert_eq!(device.closed().await.0, draining);
        assert_eq!((caller.closed().await, device_leg.closed().await), (draining, draining));
    };
    tokio::join!(world.relay.stop(), ends);
}
