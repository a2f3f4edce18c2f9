//! A device's key that is replaced: neither its channel nor its streams survive.

use moorline_proto::close::CloseReason;
use moorline_relay::access::mint::SigningKey;
use moorline_tests::memory::MemoryWorld;
use serde_json::json;

#[tokio::test(start_paused = true)]
async fn replacing_the_key_of_a_device_closes_its_channel_and_its_streams() {
    let world = MemoryWorld::start().await;
    let mut device = world.device("lamp-1").await;
    let (mut caller, mut leg) = world.stream(&mut device, "lamp-1").await;
    let mut undecided = world.connect("lamp-1", "ssh", &[]).await.unwrap();
    device.offer().await;
    let new = SigningKey::generate().unwrap();
    let put = world.request("PUT", "/v1/devices/lamp-1", &[], Some(json!({"keys": [new.public().to_pem()]}))).await;
    assert!((200..300).contains(&put.0), "{}", put.2);
    let revoked = CloseReason::Revoked.code();
    assert_eq!(device.closed().await.0, revoked);
    assert_eq!((caller.closed().await, leg.closed().await), (revoked, revoked), "a stream that was opened under the old key");
    undecided.refused().await;
    world.until("nothing of the old key is left", |relay| relay.streams() == 0 && relay.devices() == 0).await;
}

#[tokio::test(start_paused = true)]
async fn a_key_that_stays_registered_keeps_its_channel_and_its_streams() {
    let world = MemoryWorld::start().await;
    let mut device = world.device("lamp-1").await;
    let (mut caller, mut leg) = world.stream(&mut device, "lamp-1").await;
    let (own, new) = (world.key(&"lamp-1".parse().unwrap()).await, SigningKey::generate().unwrap());
    let keys = json!({"keys": [new.public().to_pem(), own.public().to_pem()]});
    let put = world.request("PUT", "/v1/devices/lamp-1", &[], Some(keys)).await;
    assert!((200..300).contains(&put.0), "{}", put.2);
    caller.send_bytes("still here").await;
    assert_eq!(leg.bytes(10).await, b"still here");
    assert_eq!(world.relay.devices(), 1);
}
