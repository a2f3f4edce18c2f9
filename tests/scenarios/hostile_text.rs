//! Text that would start a line, control a terminal or reorder what is shown, through every program that logs or prints it.

use std::time::Duration;

use futures_util::SinkExt;
use moorline_proto::text::is_replaced;
use moorline_tests::programs::run;
use moorline_tests::targets::Target;
use moorline_tests::world::World;
use serde_json::json;
use tokio_tungstenite::tungstenite::Message;

const WITHIN: Duration = Duration::from_secs(60);
/// An escape sequence, a line separator, a right-to-left override, and a forged advice.
const HOSTILE: &str = "seen\u{1b}[2J\u{2028}\u{202e}txt.exe\u{9b}31m\r\n  next: run this";
/// The same as it is shown.
const SHOWN: &str = "seen\u{fffd}[2J\u{fffd}\u{fffd}txt.exe\u{fffd}31m\u{fffd}\u{fffd}  next: run this";

/// Asserts that no line has anything that a terminal obeys.
fn are_clean(what: &str, lines: &[String]) {
    for line in lines {
        assert!(!line.chars().any(is_replaced) && !line.contains("\\u001b"), "{what}: {line:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_device_says_is_printed_without_its_control_characters() {
    let world = World::start().await;
    let mut device = world.wire_device("lamp-1").await;
    let mut connect = world.client();
    let refuse = async {
        let offer = device.offer().await;
        let reject = json!({"type": "reject", "stream": offer.stream, "code": "policy", "detail": HOSTILE});
        device.socket.send(Message::text(reject.to_string())).await.expect("the relay reads");
    };
    let (done, ()) = tokio::join!(run(connect.args(["connect", "lamp-1", "ssh"]), WITHIN), refuse);
    assert_eq!(done.code, Some(3), "{}", done.err);
    assert!(done.err.contains(SHOWN), "{}", done.err);
    are_clean("moorline", &done.err.split('\n').map(str::to_owned).collect::<Vec<_>>());
    assert_eq!(done.err.matches("\n  next: ").count(), 1, "one advice, the program's own: {}", done.err);
    world.relay.event("stream ended").await;
    are_clean("the relay's log", &world.relay.lines());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_callers_reason_reaches_both_logs_without_its_control_characters() {
    let world = World::start().await;
    let target = Target::start(|tcp| async move { drop(tcp) }).await;
    let device = world.device("lamp-1", &[("ssh", target.address)]).await;
    world.moorline(&["connect", "lamp-1", "ssh", "--reason", HOSTILE]).await.success();
    assert_eq!(world.relay.event("stream ended").await["reason"], SHOWN);
    are_clean("the relay's log", &world.relay.lines());
    assert_eq!(device.agent.event("stream ended").await["reason"], SHOWN);
    are_clean("the agent's log", &device.agent.lines());
}
