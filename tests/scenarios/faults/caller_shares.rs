//! One caller: it uses a share of what waits and of what is undecided at a device, and other callers are served.

use moorline_proto::claims::{AccessRule, Action, Pattern};
use moorline_proto::secret::Secret;
use moorline_tests::memory::MemoryWorld;
use moorline_tests::wire::WireLeg;
use tokio::io::DuplexStream;

const CAPACITY: usize = 16;

fn token(world: &MemoryWorld, subject: &str) -> Secret {
    world.token_for(subject, &[AccessRule { actions: Action::ALL.to_vec(), devices: vec![Pattern::any()], services: vec![Pattern::any()] }])
}

/// Asks again and again as one caller, and holds what it gets: how often it was served before it was refused.
async fn greedy(world: &MemoryWorld, headers: &[(&str, &str)]) -> Vec<WireLeg<DuplexStream>> {
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
async fn one_caller_does_not_take_every_place_of_those_who_wait() {
    let world = MemoryWorld::start_from("", "", &format!("waiting_callers = {CAPACITY}")).await;
    world.key(&"lamp-1".parse().unwrap()).await;
    let wait = [("moorline-wait", "3600")];
    let held = greedy(&world, &wait).await;
    assert!(!held.is_empty() && held.len() < CAPACITY, "one caller has {} of {CAPACITY} places", held.len());
    world.connect_as(&token(&world, "bob"), "lamp-1", "ssh", &wait).await.expect("another caller may wait");
    drop(held);
}

#[tokio::test(start_paused = true)]
async fn one_caller_does_not_take_every_undecided_place_of_a_device() {
    let world = MemoryWorld::start_from("", "", &format!("streams_per_device = {CAPACITY}")).await;
    let mut device = world.device("lamp-1").await;
    let held = greedy(&world, &[]).await;
    assert!(!held.is_empty() && held.len() < CAPACITY, "one caller has {} of {CAPACITY} places", held.len());
    for _ in &held {
        assert_eq!(device.offer().await.caller.subject.as_str(), "alice");
    }
    world.connect_as(&token(&world, "bob"), "lamp-1", "ssh", &[]).await.expect("another caller may ask");
    assert_eq!(device.offer().await.caller.subject.as_str(), "bob");
}
