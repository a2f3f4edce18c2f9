//! A device that is removed, or loses its key, between the moment when the relay reads the registry and the moment when it acts on what it read.

use std::time::Duration;

use moorline_proto::close::CloseReason;
use moorline_proto::problem::ProblemCode;
use moorline_relay::access::mint::SigningKey;
use moorline_relay::store::Registry;
use moorline_tests::memory::{INSTANCE, MemoryWorld};
use moorline_tests::wire::{ChannelClosed, WireDevice};
use serde_json::json;
use tokio::io::DuplexStream;
use tokio::time::Instant;

/// The close code of a channel that is closed at once, not at the next periodic check of all registrations.
async fn closed(connected: Result<WireDevice<DuplexStream>, ChannelClosed>) -> u16 {
    let begun = Instant::now();
    let closed = match connected {
        Ok(mut device) => device.closed().await,
        Err(closed) => closed,
    };
    assert!(begun.elapsed() < Duration::from_secs(1), "closed after {:?}", begun.elapsed());
    closed.0
}

#[tokio::test(start_paused = true)]
async fn a_device_that_is_removed_while_its_proof_is_checked_does_not_stay_online() {
    let world = MemoryWorld::start().await;
    let device = "lamp-1".parse().unwrap();
    world.key(&device).await;
    let mut answer = world.held.hold_next();
    let removed = async {
        answer.is_read().await;
        assert_eq!(world.request("DELETE", "/v1/devices/lamp-1", &[], None).await.0, 204);
        answer.release();
    };
    let (connected, ()) = tokio::join!(world.device_as("lamp-1", INSTANCE, &["ssh"]), removed);
    assert_eq!(closed(connected).await, CloseReason::Revoked.code());
    world.until("the device is offline", |relay| relay.devices() == 0).await;
}

#[tokio::test(start_paused = true)]
async fn a_device_whose_key_is_replaced_while_its_proof_is_checked_does_not_stay_online() {
    let world = MemoryWorld::start().await;
    let device = "lamp-1".parse().unwrap();
    world.key(&device).await;
    let other = SigningKey::generate().unwrap();
    let keys = json!({ "keys": [other.public().to_jwk()] });
    let mut answer = world.held.hold_next();
    let replaced = async {
        answer.is_read().await;
        assert_eq!(world.request("PUT", "/v1/devices/lamp-1", &[], Some(keys)).await.0, 200);
        answer.release();
    };
    let (connected, ()) = tokio::join!(world.device_as("lamp-1", INSTANCE, &["ssh"]), replaced);
    assert_eq!(closed(connected).await, CloseReason::Revoked.code());
}

#[tokio::test(start_paused = true)]
async fn callers_do_not_wait_for_a_device_removed_during_request_setup() {
    let world = MemoryWorld::start().await;
    world.key(&"lamp-1".parse().unwrap()).await;
    let mut answer = world.held.hold_next();
    let removed = async {
        answer.is_read().await;
        assert_eq!(world.request("DELETE", "/v1/devices/lamp-1", &[], None).await.0, 204);
        answer.release();
    };
    let (result, ()) = tokio::join!(world.connect("lamp-1", "ssh", &[("moorline-wait", "3600")]), removed);
    let problem = result.unwrap_err().problem.unwrap();
    assert_eq!(problem.known_code(), Some(ProblemCode::DeviceUnknown));
    world.until("no stream is left", |relay| relay.streams() == 0).await;
}

#[tokio::test(start_paused = true)]
async fn a_registration_that_another_process_removed_is_noticed_within_a_minute() {
    let world = MemoryWorld::start().await;
    let mut device = world.device("lamp-1").await;
    let (mut caller, mut device_leg) = world.stream(&mut device, "lamp-1").await;
    let begun = Instant::now();
    world.registry.remove_device(&"lamp-1".parse().unwrap()).await.unwrap();
    let revoked = CloseReason::Revoked.code();
    assert_eq!((device.closed().await.0, caller.closed().await, device_leg.closed().await), (revoked, revoked, revoked));
    assert!(begun.elapsed() <= Duration::from_secs(61), "after {:?}", begun.elapsed());
}
