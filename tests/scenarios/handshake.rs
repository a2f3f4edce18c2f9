//! From request to `opened` or `refused`, on a paused clock, with exact times.

use std::time::Duration;

use moorline_proto::api::StreamTicket;
use moorline_proto::control::{Cancel, CancelCode, RejectCode, ToDevice};
use moorline_proto::millis::Millis;
use moorline_proto::problem::ProblemCode;
use moorline_tests::memory::{INSTANCE, MemoryWorld};
use moorline_tests::wire::{ChannelClosed, LegEvent, WireDevice};
use serde_json::json;
use tokio::time::{Instant, timeout};

const OTHER_INSTANCE: &str = "ffeeddccbbaa99887766554433221100";

fn cancelled(message: Result<ToDevice, ChannelClosed>) -> CancelCode {
    match message {
        Ok(ToDevice::Cancel(Cancel { code, .. })) => code,
        other => panic!("{other:?} instead of a cancel"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_opens_and_both_sides_get_its_details() {
    let world = MemoryWorld::start().await;
    let mut device = world.device("lamp-1").await;
    let mut caller = world.connect("lamp-1", "ssh", &[("moorline-reason", "look%20%C3%BC"), ("moorline-data", "aGk=")]).await.unwrap();
    let offer = device.offer().await;
    assert_eq!((offer.service.as_str(), offer.caller.subject.as_str(), offer.expires_in_ms), ("ssh", "alice", 60_000));
    assert_eq!(offer.caller.reason.as_ref().map(|reason| reason.as_str()), Some("look ü"));
    assert_eq!(offer.data.as_ref().map(|data| data.as_bytes()), Some(&b"hi"[..]));
    device.accept(offer.stream).await;
    let mut leg = world.join(offer.url.as_str(), &offer.token).await.unwrap();
    let (told_caller, told_device) = (caller.opened().await, leg.opened().await);
    assert_eq!((told_caller.stream, told_device.stream), (offer.stream, offer.stream));
    assert_eq!(told_caller.timeline.dial_ms, Some(Millis::from_millis(1)));
    caller.send_bytes("ping").await;
    assert_eq!(leg.bytes(4).await, b"ping");
    leg.send_bytes("pong").await;
    assert_eq!(caller.bytes(4).await, b"pong");
}

#[tokio::test(start_paused = true)]
async fn an_offline_device_is_reported_at_once_with_last_seen() {
    let world = MemoryWorld::start().await;
    drop(world.device("lamp-1").await);
    world.until("the device is offline", |relay| relay.devices() == 0).await;
    let begun = Instant::now();
    let refusal = world.connect("lamp-1", "ssh", &[]).await.unwrap_err();
    assert_eq!(begun.elapsed(), Duration::ZERO);
    let problem = refusal.problem.unwrap();
    assert_eq!((refusal.status, problem.known_code()), (409, Some(ProblemCode::DeviceOffline)));
    assert!(problem.last_seen.is_some());
}

#[tokio::test(start_paused = true)]
async fn a_device_that_ignores_an_offer_is_unresponsive_after_ten_seconds() {
    let world = MemoryWorld::start().await;
    let mut device = world.device("lamp-1").await;
    let begun = Instant::now();
    let mut caller = world.connect("lamp-1", "ssh", &[]).await.unwrap();
    let problem = caller.refused().await;
    assert_eq!(problem.known_code(), Some(ProblemCode::DeviceUnresponsive));
    assert_eq!(begun.elapsed(), Duration::from_secs(10));
    device.offer().await;
    assert_eq!(device.closed().await.0, 1006, "a dead device's channel is reset");
}

#[tokio::test(start_paused = true)]
async fn a_device_that_never_answers_an_offer_costs_the_deadline() {
    let world = MemoryWorld::start().await;
    let mut device = world.device("lamp-1").await;
    let begun = Instant::now();
    let mut caller = world.connect("lamp-1", "ssh", &[]).await.unwrap();
    device.offer().await;
    let (problem, message) = tokio::join!(caller.refused(), device.next());
    assert_eq!(problem.known_code(), Some(ProblemCode::HandshakeTimeout));
    assert!(problem.timeline.unwrap().device_alive_ms.is_some() && problem.timeline.unwrap().accepted_ms.is_none());
    assert_eq!(cancelled(message), CancelCode::HandshakeTimeout);
    assert_eq!(begun.elapsed(), Duration::from_secs(60));
}

#[tokio::test(start_paused = true)]
async fn a_device_that_accepts_and_never_joins_costs_the_requested_deadline() {
    let world = MemoryWorld::start().await;
    let mut device = world.device("lamp-1").await;
    let begun = Instant::now();
    let mut caller = world.connect("lamp-1", "ssh", &[("moorline-deadline", "7")]).await.unwrap();
    let offer = device.offer().await;
    device.accept(offer.stream).await;
    let (problem, message) = tokio::join!(caller.refused(), device.next());
    assert_eq!(problem.known_code(), Some(ProblemCode::HandshakeTimeout));
    assert_eq!(cancelled(message), CancelCode::HandshakeTimeout);
    assert_eq!(begun.elapsed(), Duration::from_secs(7));
    let late = world.join(offer.url.as_str(), &offer.token).await.unwrap_err();
    assert_eq!((late.status, late.problem.unwrap().known_code()), (410, Some(ProblemCode::StreamExpired)));
}

#[tokio::test(start_paused = true)]
pub(crate) async fn a_caller_that_negotiates_and_never_joins_costs_the_deadline() {
    let world = MemoryWorld::start().await;
    let mut device = world.device("lamp-1").await;
    let begun = Instant::now();
    let (answer, offer) = tokio::join!(world.request("POST", "/v1/devices/lamp-1/streams", &[], Some(json!({"service": "ssh"}))), async {
        let offer = device.offer().await;
        device.accept(offer.stream).await;
        offer
    });
    assert_eq!((answer.0, answer.1["cache-control"].to_str().unwrap()), (201, "no-store"));
    let ticket: StreamTicket = serde_json::from_value(answer.2).unwrap();
    let mut leg = world.join(offer.url.as_str(), &offer.token).await.unwrap();
    let (code, message) = tokio::join!(leg.closed(), device.next());
    assert_eq!((code, cancelled(message)), (4010, CancelCode::HandshakeTimeout));
    assert_eq!(begun.elapsed(), Duration::from_secs(60));
    assert_eq!(world.join(&ticket.url, &ticket.token).await.unwrap_err().status, 410);
    assert_eq!(world.join(offer.url.as_str(), &offer.token).await.unwrap_err().status, 410);
}

#[tokio::test(start_paused = true)]
async fn a_negotiated_stream_is_joined_over_other_connections() {
    let world = MemoryWorld::start().await;
    let mut device = world.device("lamp-1").await;
    let (answer, offer) = tokio::join!(world.request("POST", "/v1/devices/lamp-1/streams", &[], Some(json!({"service": "ssh"}))), async {
        let offer = device.offer().await;
        device.accept(offer.stream).await;
        offer
    });
    let ticket: StreamTicket = serde_json::from_value(answer.2).unwrap();
    assert_eq!(ticket.state.as_str(), "accepted");
    let mut caller = world.join(&ticket.url, &ticket.token).await.unwrap();
    let mut leg = world.join(offer.url.as_str(), &offer.token).await.unwrap();
    caller.opened().await;
    leg.opened().await;
    for (url, token) in [(ticket.url.as_str(), &ticket.token), (offer.url.as_str(), &offer.token)] {
        let again = world.join(url, token).await.unwrap_err();
        assert_eq!((again.status, again.problem.unwrap().known_code()), (409, Some(ProblemCode::TokenUsed)));
    }
}

#[tokio::test(start_paused = true)]
async fn an_undecided_negotiation_is_answered_after_prefer_wait() {
    let world = MemoryWorld::start().await;
    let mut device = world.device("lamp-1").await;
    let negotiate = async |device: &mut WireDevice<_>, headers: &[(&str, &str)]| {
        let begun = Instant::now();
        let mut offered = None;
        let answer = tokio::select! {
            answer = world.request("POST", "/v1/devices/lamp-1/streams", headers, Some(json!({"service": "ssh"}))) => answer,
            () = async { loop { offered = Some(device.offer().await); } } => unreachable!("a device serves for ever"),
        };
        assert_eq!(answer.0, 202, "{headers:?}: {}", answer.2);
        let offer = offered.expect("the device was asked");
        (begun.elapsed().as_secs(), answer, offer)
    };
    for (headers, seconds) in [
        (&[][..], 20),
        (&[("prefer", "wait=21")], 20),
        (&[("prefer", "wait=soon")], 20),
        (&[("prefer", "respond-async, wait=2")], 2),
        (&[("prefer", "wait=0")], 0),
    ] {
        let (waited, _, offer) = negotiate(&mut device, headers).await;
        assert_eq!(waited, seconds, "{headers:?}");
        device.reject(offer.stream, RejectCode::Policy, "").await;
    }
    let (waited, answer, offer) = negotiate(&mut device, &[("prefer", "wait=3")]).await;
    assert_eq!(waited, 3);
    let ticket: StreamTicket = serde_json::from_value(answer.2).unwrap();
    assert_eq!(ticket.state.as_str(), "offered");
    device.reject(offer.stream, RejectCode::Policy, "not today").await;
    let mut caller = world.join(&ticket.url, &ticket.token).await.unwrap();
    let problem = caller.refused().await;
    assert_eq!(problem.known_code(), Some(ProblemCode::RejectedByDevice));
    assert_eq!(problem.device_detail.as_deref(), Some("not today"));
}

#[tokio::test(start_paused = true)]
pub(crate) async fn a_caller_that_disconnects_cancels_the_offer_at_once() {
    let world = MemoryWorld::start().await;
    let mut device = world.device("lamp-1").await;
    let begun = Instant::now();
    let caller = world.connect("lamp-1", "ssh", &[]).await.unwrap();
    device.offer().await;
    drop(caller);
    assert_eq!(cancelled(device.next().await), CancelCode::CallerGone);
    assert_eq!(begun.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn a_waiting_stream_is_offered_when_the_device_connects() {
    let world = MemoryWorld::start().await;
    world.key(&"lamp-1".parse().unwrap()).await;
    let mut caller = world.connect("lamp-1", "ssh", &[("moorline-wait", "300")]).await.unwrap();
    tokio::time::advance(Duration::from_secs(100)).await;
    let mut device = world.device("lamp-1").await;
    let offer = device.offer().await;
    assert_eq!(offer.expires_in_ms, 60_000, "the deadline runs from the offer");
    device.accept(offer.stream).await;
    let mut leg = world.join(offer.url.as_str(), &offer.token).await.unwrap();
    leg.opened().await;
    caller.opened().await;
}

#[tokio::test(start_paused = true)]
async fn a_wait_that_expires_is_refused_with_device_offline() {
    let world = MemoryWorld::start().await;
    world.key(&"lamp-1".parse().unwrap()).await;
    let begun = Instant::now();
    let mut caller = world.connect("lamp-1", "ssh", &[("moorline-wait", "300")]).await.unwrap();
    assert_eq!(caller.refused().await.known_code(), Some(ProblemCode::DeviceOffline));
    assert_eq!(begun.elapsed(), Duration::from_secs(300));
}

#[tokio::test(start_paused = true)]
async fn each_reject_code_reaches_the_caller_as_its_problem() {
    let world = MemoryWorld::start().await;
    let mut device = world.device("lamp-1").await;
    for &code in RejectCode::ALL {
        let mut caller = world.connect("lamp-1", "ssh", &[]).await.unwrap();
        let offer = device.offer().await;
        device.reject(offer.stream, code, "so it is").await;
        let problem = caller.refused().await;
        assert_eq!(problem.known_code(), Some(code.problem()));
        assert_eq!((problem.stream, problem.device_detail.as_deref()), (Some(offer.stream), Some("so it is")));
    }
}

#[tokio::test(start_paused = true)]
async fn an_unexposed_service_is_refused_without_an_offer() {
    let world = MemoryWorld::start().await;
    let _device = world.device("lamp-1").await;
    let refusal = world.connect("lamp-1", "vnc", &[]).await.unwrap_err();
    assert_eq!((refusal.status, refusal.problem.unwrap().known_code()), (404, Some(ProblemCode::ServiceNotExposed)));
}

#[tokio::test(start_paused = true)]
async fn a_reconnecting_device_supersedes_itself_and_its_streams_live() {
    let world = MemoryWorld::start().await;
    let mut first = world.device("lamp-1").await;
    let (mut caller, mut leg) = world.stream(&mut first, "lamp-1").await;
    let begun = Instant::now();
    // The first connection hangs: it is not read.
    let mut second = world.device_as("lamp-1", OTHER_INSTANCE, &["ssh"]).await.unwrap();
    let (_caller2, _leg2) = world.stream(&mut second, "lamp-1").await;
    assert_eq!(begun.elapsed(), Duration::ZERO);
    caller.send_bytes("still here").await;
    assert_eq!(leg.bytes(10).await, b"still here");
    assert_eq!(first.closed().await, ChannelClosed(4007, format!("superseded {OTHER_INSTANCE}")));
}

#[tokio::test(start_paused = true)]
async fn an_offer_whose_control_channel_is_lost_fails_at_once() {
    let world = MemoryWorld::start().await;
    let mut device = world.device("lamp-1").await;
    let begun = Instant::now();
    let mut caller = world.connect("lamp-1", "ssh", &[]).await.unwrap();
    device.offer().await;
    drop(device);
    assert_eq!(caller.refused().await.known_code(), Some(ProblemCode::DeviceUnresponsive));
    assert_eq!(begun.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn an_offer_may_be_answered_on_a_newer_channel_of_the_same_instance_only() {
    let world = MemoryWorld::start().await;
    let mut first = world.device("lamp-1").await;
    let mut caller = world.connect("lamp-1", "ssh", &[]).await.unwrap();
    let offer = first.offer().await;
    assert!(timeout(Duration::from_millis(1), first.next()).await.is_err(), "it only answers the ping behind the offer");
    let mut second = world.device_as("lamp-1", INSTANCE, &["ssh"]).await.unwrap();
    second.accept(offer.stream).await;
    let mut leg = world.join(offer.url.as_str(), &offer.token).await.unwrap();
    leg.opened().await;
    caller.opened().await;

    let mut caller = world.connect("lamp-1", "ssh", &[]).await.unwrap();
    second.offer().await;
    let _third = world.device_as("lamp-1", OTHER_INSTANCE, &["ssh"]).await.unwrap();
    assert_eq!(caller.refused().await.known_code(), Some(ProblemCode::DeviceUnresponsive));
}

#[tokio::test(start_paused = true)]
pub(crate) async fn a_leg_lost_before_opened_may_rejoin_and_a_second_join_replaces_the_first() {
    let world = MemoryWorld::start().await;
    let mut device = world.device("lamp-1").await;
    let mut caller = world.connect("lamp-1", "ssh", &[]).await.unwrap();
    let offer = device.offer().await;
    drop(world.join(offer.url.as_str(), &offer.token).await.unwrap());
    let mut replaced = world.join(offer.url.as_str(), &offer.token).await.unwrap();
    replaced.send_bytes("of the first try").await;
    let mut leg = world.join(offer.url.as_str(), &offer.token).await.unwrap();
    assert!(matches!(replaced.next().await, LegEvent::Close(4007, _)));
    leg.send_bytes("of the last try").await;
    device.accept(offer.stream).await;
    leg.opened().await;
    caller.opened().await;
    assert_eq!(caller.bytes(15).await, b"of the last try");
}

#[tokio::test(start_paused = true)]
async fn an_idempotency_key_names_one_stream_until_it_opens() {
    let world = MemoryWorld::start().await;
    let mut device = world.device("lamp-1").await;
    let key = [("idempotency-key", "k-1")];
    let first = world.connect("lamp-1", "ssh", &key).await.unwrap();
    let offer = device.offer().await;
    drop(first);
    let mut second = world.connect("lamp-1", "ssh", &key).await.unwrap();
    let mut third = world.connect("lamp-1", "ssh", &key).await.unwrap();
    assert!(matches!(second.next().await, LegEvent::Close(4007, _)), "the newer request replaces the older one");
    let other = world.connect("lamp-1", "ssh", &[key[0], ("moorline-deadline", "9")]).await.unwrap_err();
    assert_eq!((other.status, other.problem.unwrap().known_code()), (409, Some(ProblemCode::Conflict)));
    device.accept(offer.stream).await;
    let mut leg = world.join(offer.url.as_str(), &offer.token).await.unwrap();
    leg.opened().await;
    assert_eq!(third.opened().await.stream, offer.stream);
    let late = world.connect("lamp-1", "ssh", &key).await.unwrap_err();
    assert_eq!((late.status, late.problem.unwrap().known_code()), (409, Some(ProblemCode::TokenUsed)));
}

#[tokio::test(start_paused = true)]
async fn a_device_leg_that_closes_before_opened_is_gone_or_has_rejected_by_its_code() {
    for code in [1000, 1001, 4001, 4006, 4999] {
        let world = MemoryWorld::start().await;
        let mut device = world.device("lamp-1").await;
        let mut caller = world.connect("lamp-1", "ssh", &[]).await.unwrap();
        let offer = device.offer().await;
        let mut leg = world.join(offer.url.as_str(), &offer.token).await.unwrap();
        leg.close(code).await;
        leg.closed().await;
        if code == 1000 {
            let mut again = world.join(offer.url.as_str(), &offer.token).await.unwrap();
            device.accept(offer.stream).await;
            again.opened().await;
            caller.opened().await;
        } else {
            assert_eq!(caller.refused().await.code, "device_failed", "{code}");
        }
    }
}
