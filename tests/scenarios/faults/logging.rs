//! Text from peers in the log, and a log that is not read.

use std::time::Duration;

use moorline_relay::access::mint::SigningKey;
use moorline_tests::wire::{WireDevice, invalid_hello};
use moorline_tests::world::World;
use serde_json::json;
use tokio::time::timeout;

const WITHIN: Duration = Duration::from_secs(60);
/// The longest line that a peer's text may make.
const LINE: usize = 2_048;

/// Opens a control channel and answers its challenge with a large invalid `hello`.
async fn send_invalid_hello(world: &World) {
    let closed = WireDevice::connect_with(world.dial().await, "localhost", invalid_hello(65_000)).await;
    assert_eq!(closed.0, 4400, "{}", closed.1);
    assert!(!closed.1.chars().any(|letter| letter.is_control() || letter == '\u{202e}' || letter == '\u{2028}'), "{:?}", closed.1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_invalid_hello_makes_one_short_clean_line() {
    let world = World::start().await;
    let before = world.relay.lines().len();
    send_invalid_hello(&world).await;
    let _device = world.wire_device("lamp-1").await;
    world.relay.event("device online").await; // what was logged before is read by now
    for line in world.relay.lines().split_off(before) {
        assert!(line.len() <= LINE, "a line of {} bytes: {}…", line.len(), line.chars().take(200).collect::<String>());
        let escaped = ["\\u001b", "\\n", "\u{202e}", "\u{2028}", "\u{1b}"].into_iter().find(|text| line.contains(text));
        assert_eq!(escaped, None, "control characters of a peer in the log: {line}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn lines_that_unauthenticated_peers_cause_are_rate_limited() {
    let world = World::start().await;
    let before = world.relay.lines().len();
    for _ in 0..200 {
        send_invalid_hello(&world).await;
    }
    let _device = world.wire_device("lamp-1").await;
    world.relay.event("device online").await;
    let logged = world.relay.lines().len() - before;
    assert!(logged < 100, "{logged} lines for 200 peers");
}

/// More lines than a pipe and its writer can buffer, while the pipe is not read.
#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_nobody_reads_does_not_stop_the_relay() {
    let world = World::start().await;
    world.relay.stop_reading();
    let requests = async {
        for number in 0..400 {
            let key = SigningKey::generate().expect("a key is generated").public().to_pem();
            let body = json!({"keys": [key]}).to_string();
            let put = world.request("PUT", &format!("/v1/devices/{}-{number}", "long-id".repeat(16)), &body).await;
            assert!((200..300).contains(&put.0), "device {number}: {}", put.1);
        }
        send_invalid_hello(&world).await;
        world.wire_device("lamp-online").await
    };
    let _device = timeout(WITHIN, requests).await.expect("the relay answers, though its log is full");
    world.relay.resume_reading();
    assert_eq!(world.request("GET", "/v1/about", "").await.0, 200);
}
