//! Negotiations that were refused: they hold no capacity, and callers that join late are still answered.

use std::time::Duration;

use moorline_proto::api::StreamTicket;
use moorline_proto::control::RejectCode;
use moorline_proto::problem::ProblemCode;
use moorline_tests::memory::MemoryWorld;
use serde_json::json;
use tokio::time::timeout;

/// On the paused clock.
const AT_ONCE: Duration = Duration::from_secs(1);

/// More negotiations than there is capacity, each rejected by the device before its caller joined, though it was ready to wait for an hour.
#[tokio::test(start_paused = true)]
async fn refused_negotiations_hold_no_capacity_and_late_comers_are_answered() {
    let world = MemoryWorld::start_from("", "", "streams = 4\nstreams_per_device = 4\nwaiting_callers = 4").await;
    let mut device = world.device("lamp-1").await;
    let mut last = None;
    for number in 0..50 {
        let body = json!({"service": "ssh", "wait_s": 3_600, "deadline_s": 300});
        let (status, _, answer) = world.request("POST", "/v1/devices/lamp-1/streams", &[("prefer", "wait=0")], Some(body)).await;
        assert_eq!(status, 202, "negotiation {number}: {answer}");
        let offer = device.offer().await;
        device.reject(offer.stream, RejectCode::Policy, "not today").await;
        let gone = timeout(AT_ONCE, world.until("the refused stream is gone", |relay| relay.streams() == 0)).await;
        assert!(gone.is_ok(), "negotiation {number} holds its slot after its refusal");
        last = Some(serde_json::from_value::<StreamTicket>(answer).expect("a ticket"));
    }

    let ticket = last.expect("fifty negotiations");
    let path = format!("/v1/streams/{}", ticket.stream);
    assert_eq!(world.request("DELETE", &path, &[], None).await.0, 404, "there is nothing left to end");
    let code = match world.join(&ticket.url, &ticket.token).await {
        Ok(mut late) => late.refused().await.known_code(),
        Err(refusal) => refusal.problem.and_then(|problem| problem.known_code()),
    };
    assert_eq!(code, Some(ProblemCode::RejectedByDevice), "a caller that joins late gets the refusal");
    world.stream(&mut device, "lamp-1").await;
}

/// A caller that waits for an offline device, and is ended by an operator: 204 only for what ended, and its slot is free at once.
#[tokio::test(start_paused = true)]
async fn a_waiting_negotiation_that_an_operator_ends_is_over_at_once() {
    let world = MemoryWorld::start_from("", "", "waiting_callers = 1").await;
    world.key(&"lamp-1".parse().unwrap()).await;
    for number in 0..3 {
        let body = json!({"service": "ssh", "wait_s": 3_600});
        let (status, _, answer) = world.request("POST", "/v1/devices/lamp-1/streams", &[("prefer", "wait=0")], Some(body)).await;
        assert_eq!(status, 202, "negotiation {number}: {answer}");
        let path = format!("/v1/streams/{}", answer["stream"].as_str().expect("a stream"));
        assert_eq!(world.request("DELETE", &path, &[], None).await.0, 204);
        let gone = timeout(AT_ONCE, world.until("the ended stream is gone", |relay| relay.streams() == 0)).await;
        assert!(gone.is_ok(), "negotiation {number} holds its slot after its end");
        assert_eq!(world.request("DELETE", &path, &[], None).await.0, 404, "it cannot be ended twice");
    }
}
