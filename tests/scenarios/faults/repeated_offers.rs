//! A stream that is offered again after its device's channel was lost: what belongs to the first attempt is ignored in the second.

use std::time::Duration;

use moorline_proto::close::CloseReason;
use moorline_proto::control::{Accept, Attempt, Reject, RejectCode};
use moorline_proto::problem::ProblemCode;
use moorline_tests::memory::MemoryWorld;
use tokio::time::timeout;

#[tokio::test(start_paused = true)]
async fn answers_and_legs_of_an_earlier_attempt_are_ignored() {
    let world = MemoryWorld::start().await;
    let mut device = world.device("lamp-1").await;
    let mut caller = world.connect("lamp-1", "ssh", &[("moorline-wait", "600")]).await.unwrap();
    let first = device.offer().await;
    assert_eq!(first.attempt, Attempt::FIRST);
    let mut early = world.join(first.url.as_str(), &first.token).await.unwrap();
    drop(device);
    assert_eq!(early.closed().await, CloseReason::Superseded.code(), "the leg belongs to the attempt that is lost");

    let mut device = world.device("lamp-1").await;
    let second = device.offer().await;
    assert_eq!((second.stream, second.attempt.get()), (first.stream, 2));
    let stale = world.join(first.url.as_str(), &first.token).await.unwrap_err();
    assert_eq!(stale.status, 404, "the first attempt's token joins nothing");
    // The first attempt's target is refused only now, and its accept is late as well.
    let detail = None;
    device.send(Reject { stream: first.stream, attempt: first.attempt, code: RejectCode::TargetRefused, detail }).await;
    device.send(Accept { stream: first.stream, attempt: first.attempt, data: None, features: Vec::new(), dial_ms: None }).await;
    let mut leg = world.join(second.url.as_str(), &second.token).await.unwrap();
    timeout(Duration::from_secs(30), caller.opened()).await.expect_err("nothing is accepted yet");
    device.accept(second.stream).await;
    let opened = caller.opened().await;
    assert_eq!(opened.stream, first.stream);
    leg.opened().await;
    caller.send_bytes("bytes").await;
    assert_eq!(leg.bytes(5).await, b"bytes", "the second attempt's leg gets the caller's bytes");
}

#[tokio::test(start_paused = true)]
async fn a_stream_whose_device_is_lost_waits_within_the_limit_of_waiting_callers() {
    let limits = "waiting_callers = 1\nwaiting_per_caller = 1";
    let world = MemoryWorld::start_from("", "", limits).await;
    world.key(&"away-1".parse().unwrap()).await;
    let waiting = world.connect("away-1", "ssh", &[("moorline-wait", "600")]).await.unwrap();
    let mut device = world.device("lamp-1").await;
    let mut caller = world.connect("lamp-1", "ssh", &[("moorline-wait", "600")]).await.unwrap();
    device.offer().await;
    drop(device);
    assert_eq!(caller.refused().await.known_code(), Some(ProblemCode::TooManyStreams), "a caller waits already");
    drop(waiting);
}
