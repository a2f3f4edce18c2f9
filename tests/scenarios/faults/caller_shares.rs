//! Shares of one caller: it cannot use all waiting slots or all undecided slots of a device, and other callers are served.

use moorline_proto::claims::{AccessRule, Action, Pattern};
use moorline_proto::secret::Secret;
use moorline_tests::memory::MemoryWorld;
use moorline_tests::wire::WireLeg;
use tokio::io::DuplexStream;

const CAPACITY: usize = 16;

fn token(world: &MemoryWorld, subject: &str) -> Secret {
    world.token_for(subject, &[AccessRule { actions: Action::ALL.to_vec(), devices: vec![Pattern::any()], services: vec![Pattern::any()] }])
}

/// Requests twice the capacity of streams as one caller, and returns the legs that were opened.
async fn request_many(world: &MemoryWorld, headers: &[(&str, &str)]) -> Vec<WireLeg<DuplexStream>> {
    let (alice, mut held) = (token(world, "alice"), Vec::new());
    for _ in 0..2 * CAPACITY {
        match world.connect_as(&alice, "lamp-1", "ssh", headers).await {
            Ok(leg) => held.push(leg),
            Err(refusal) => {
                assert!(matches!(refusal.status, 429 | 503), "{refusal:?}");
                assert!(refusal.headers.contains_key("retry-after"), "{refusal:?}");
            }
        }
    }
    held
}

#[tokio::test(start_paused = true)]
async fn one_caller_cannot_use_every_waiting_slot() {
    let world = MemoryWorld::start_from("", "", &format!("waiting_callers = {CAPACITY}")).await;
    world.key(&"lamp-1".parse().unwrap()).await;
    let wait = [("moorline-wait", "3600")];
    let held = request_many(&world, &wait).await;
    assert!(!held.is_empty() && held.len() < CAPACITY, "one caller has {} of {CAPACITY} slots", held.len());
    world.connect_as(&token(&world, "bob"), "lamp-1", "ssh", &wait).await.expect("another caller may wait");
    drop(held);
}

#[tokio::test(start_paused = true)]
async fn one_caller_cannot_use_every_undecided_slot_of_a_device() {
    let world = MemoryWorld::start_from("", "", &format!("streams_per_device = {CAPACITY}")).await;
    let mut device = world.device("lamp-1").await;
    let held = request_many(&world, &[]).await;
    assert!(!held.is_empty() && held.len() < CAPACITY, "one caller has {} of {CAPACITY} slots", held.len());
    for _ in &held {
        assert_eq!(device.offer().await.caller.subject.as_str(), "alice");
    }
    world.connect_as(&token(&world, "bob"), "lamp-1", "ssh", &[]).await.expect("another caller may ask");
    assert_eq!(device.offer().await.caller.subject.as_str(), "bob");
}
