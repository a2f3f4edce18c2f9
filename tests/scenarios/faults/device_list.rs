//! The list of devices: who may read it, and what its cursor contains.

use moorline_proto::claims::{AccessRule, Action, Pattern};
use moorline_tests::memory::MemoryWorld;
use serde_json::Value;

fn rule(actions: &[Action], devices: &str) -> AccessRule {
    AccessRule { actions: actions.to_vec(), devices: vec![devices.parse().unwrap()], services: vec![Pattern::any()] }
}

#[tokio::test(start_paused = true)]
async fn listing_devices_needs_device_read() {
    let world = MemoryWorld::start().await;
    world.key(&"lamp-1".parse().unwrap()).await;
    let others: Vec<Action> = Action::ALL.iter().copied().filter(|action| *action != Action::DeviceRead).collect();
    let (without, with) = (world.token_for("bob", &[rule(&others, "*")]), world.token_for("bob", &[rule(&[Action::DeviceRead], "*")]));
    let (status, _, problem) = world.request_as(&without, "GET", "/v1/devices", &[], None).await;
    assert_eq!((status, problem["code"].as_str()), (403, Some("forbidden")), "{problem}");
    assert_eq!(world.request_as(&with, "GET", "/v1/devices", &[], None).await.0, 200);
}

/// Devices that the caller may not see are sorted between those that it may, and appear neither in a page nor in a cursor.
#[tokio::test(start_paused = true)]
async fn pages_and_cursors_say_nothing_about_devices_that_the_caller_may_not_see() {
    let world = MemoryWorld::start().await;
    for id in ["a-secret", "lamp-1", "lamp-1-secret", "lamp-2", "m-secret", "n-secret", "z-secret"] {
        world.key(&id.parse().unwrap()).await;
    }
    let rules = ["lamp-1", "lamp-2"].map(|id| rule(&[Action::DeviceRead], id));
    let token = world.token_for("bob", &rules);
    let (mut seen, mut after) = (Vec::new(), String::new());
    for _ in 0..10 {
        let (status, _, page) = world.request_as(&token, "GET", &format!("/v1/devices?max=1{after}"), &[], None).await;
        assert_eq!(status, 200, "{page}");
        let rows = page["devices"].as_array().expect("a list");
        assert_eq!(rows.len(), 1, "a page has its maximum length: {page}");
        seen.push(rows[0]["device"].as_str().expect("an id").to_owned());
        let Value::String(next) = &page["next"] else { break };
        let decoded = data_encoding::BASE64URL_NOPAD.decode(next.as_bytes()).unwrap_or_default();
        let cursor = format!("{next} {}", String::from_utf8_lossy(&decoded));
        assert!(!cursor.contains("secret"), "the cursor names a device that the caller may not see: {cursor}");
        after = format!("&after={next}");
    }
    assert_eq!(seen, ["lamp-1", "lamp-2"]);
}
