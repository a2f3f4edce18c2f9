//! The end records of streams, also of refused ones.

use moorline_tests::world::World;
use serde_json::Value;

#[tokio::test]
async fn a_record_names_token_keys_rule_and_reason_and_a_refusal_leaves_one_too() {
    let world = World::start().await;
    let mut device = world.wire_device("lamp-1").await;
    let (mut caller, mut leg) = world.stream(&mut device, "lamp-1", &[("moorline-reason", "ticket%204711")]).await;
    caller.close(1000).await;
    leg.ended().await;
    let record = world.relay.event("stream ended").await;
    assert_eq!((&record["result"], &record["reason"], &record["rule"]), (&"finished".into(), &"ticket 4711".into(), &"access[0]".into()));
    assert_eq!((&record["device"], &record["service"]), (&"lamp-1".into(), &"ssh".into()));
    for field in ["token_id", "caller_key", "device_key", "caller", "address", "timeline"] {
        assert!(record[field].as_str().is_some_and(|text| !text.is_empty()), "{field}: {record}");
    }

    // Of a service that the device does not expose: no offer was sent.
    let (status, _) = world.request("POST", "/v1/devices/lamp-1/streams", r#"{"service":"none","reason":"why not"}"#).await;
    assert_eq!(status, 404);
    let refused = |line: &str| serde_json::from_str::<Value>(line).ok().filter(|line| line["result"] == "service_not_exposed");
    let record = world.relay.line("the record of a refusal", refused).await;
    assert_eq!((&record["message"], &record["reason"]), (&"stream ended".into(), &"why not".into()));
    assert!(record["token_id"].is_string() && record["caller_key"].is_string(), "{record}");
}
