//! A device that is removed, or loses its key, between the moment when the relay reads the registry and the moment when it acts by what it read.

use moorline_proto::close::CloseReason;
use moorline_proto::problem::ProblemCode;
use moorline_tests::memory::{INSTANCE, MemoryWorld};
use serde_json::json;

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
    let closed = match connected {
        Ok(mut device) => device.closed().await,
        Err(closed) => closed,
    };
    assert_eq!(closed.0, CloseReason::Revoked.code());
    world.until("the device is offline", |relay| relay.devices() == 0).await;
}

#[tokio::test(start_paused = true)]
async fn a_device_whose_key_is_replaced_while_its_proof_is_checked_does_not_stay_online() {
    let world = MemoryWorld::start().await;
    let device = "lamp-1".parse().unwrap();
    world.key(&device).await;
    let other = moorline_relay::access::mint::SigningKey::generate().unwrap();
    let keys = json!({ "keys": [other.public().to_jwk()] });
    let mut answer = world.held.hold_next();
    let replaced = async {
        answer.is_read().await;
        assert_eq!(world.request("PUT", "/v1/devices/lamp-1", &[], Some(keys)).await.0, 200);
        answer.release();
    };
    let (connected, ()) = tokio::join!(world.device_as("lamp-1", INSTANCE, &["ssh"]), replaced);
    let closed = match connected {
        Ok(mut device) => device.closed().await,
        Err(closed) => closed,
    };
    assert_eq!(closed.0, CloseReason::Revoked.code());
}

#[tokio::test(start_paused = true)]
async fn nobody_waits_for_a_device_that_is_removed_while_the_request_is_set_up() {
    let world = MemoryWorld::start().await;
    world.key(&"lamp-1".parse().unwrap()).await;
    let mut answer = world.held.hold_next();
    let removed = async {
        answer.is_read().await;
        assert_eq!(world.request("DELETE", "/v1/devices/lamp-1", &[], None).await.0, 204);
        answer.release();
    };
    let (asked, ()) = tokio::join!(world.connect("lamp-1", "ssh", &[("moorline-wait", "3600")]), removed);
    let problem = asked.unwrap_err().problem.unwrap();
    assert_eq!(problem.known_code(), Some(ProblemCode::DeviceUnknown));
    world.until("no stream is left", |relay| relay.streams() == 0).await;
}
