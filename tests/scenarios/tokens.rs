//! Misused leg tokens: twice, for the other side, after the leg or the stream has ended, forged, in a subprotocol.

use std::time::Duration;

use moorline_proto::api::StreamTicket;
use moorline_proto::control::{Offer, ToDevice};
use moorline_proto::problem::ProblemCode;
use moorline_proto::secret::Secret;
use moorline_tests::memory::{HOST, MemoryWorld};
use moorline_tests::unauthenticated_peer::{send_raw, upgrade_request};
use moorline_tests::wire::{LegEvent, Refusal, WireDevice, WireLeg, bearer};
use serde_json::json;
use tokio::io::DuplexStream;
use tokio::time::Instant;

/// A negotiated stream that the device has accepted: the caller's ticket and the device's offer.
async fn negotiated(world: &MemoryWorld, device: &mut WireDevice<DuplexStream>, key: &str) -> (StreamTicket, Offer) {
    let headers = [("idempotency-key", key)];
    let request = world.request("POST", "/v1/devices/lamp-1/streams", &headers, Some(json!({"service": "ssh"})));
    let (response, offer) = tokio::join!(request, async {
        let offer = device.offer().await;
        device.accept(offer.stream).await;
        offer
    });
    (serde_json::from_value(response.2).expect("a ticket"), offer)
}

fn code(refusal: Refusal) -> ProblemCode {
    refusal.problem.and_then(|problem| problem.known_code()).expect("a problem that the protocol knows")
}

async fn refused(world: &MemoryWorld, url: &str, token: &Secret) -> ProblemCode {
    code(world.join(url, token).await.expect_err("this token joins nothing"))
}

#[tokio::test(start_paused = true)]
async fn one_leg_token_never_joins_both_sides() {
    let world = MemoryWorld::start().await;
    let mut device = world.device("lamp-1").await;
    for callers_token_is_reused in [true, false] {
        let begun = Instant::now();
        let (ticket, offer) = negotiated(&world, &mut device, if callers_token_is_reused { "one" } else { "two" }).await;
        let token = if callers_token_is_reused { &ticket.token } else { &offer.token };
        let mut first = world.join(&ticket.url, token).await.unwrap();
        let mut second = world.join(&ticket.url, token).await.unwrap();
        assert!(matches!(first.next().await, LegEvent::Close(4007, _)), "the second join is the same side's");
        let (event, message) = tokio::join!(second.next(), device.next());
        match event {
            LegEvent::Refused(problem) if callers_token_is_reused => assert_eq!(problem.known_code(), Some(ProblemCode::HandshakeTimeout)),
            LegEvent::Close(4010, _) if !callers_token_is_reused => {}
            other => panic!("{other:?}"),
        }
        assert!(matches!(message, Ok(ToDevice::Cancel(_))), "{message:?}");
        assert_eq!(begun.elapsed(), Duration::from_secs(60));
    }
}

#[tokio::test(start_paused = true)]
async fn a_leg_lost_before_opened_leaves_its_token_valid() {
    let world = MemoryWorld::start().await;
    let mut device = world.device("lamp-1").await;
    let (ticket, offer) = negotiated(&world, &mut device, "k").await;
    for _ in 0..3 {
        drop(world.join(&ticket.url, &ticket.token).await.unwrap());
    }
    let mut closed = world.join(&ticket.url, &ticket.token).await.unwrap();
    closed.close(1000).await;
    closed.closed().await;
    // The last of the caller's legs is gone before the device's first one joins; both at once would open the stream.
    for _ in 0..3 {
        drop(world.join(offer.url.as_str(), &offer.token).await.unwrap());
    }
    tokio::time::advance(Duration::from_secs(1)).await;
    let mut device_leg = world.join(offer.url.as_str(), &offer.token).await.unwrap();
    let mut caller = world.join(&ticket.url, &ticket.token).await.unwrap();
    caller.opened().await;
    device_leg.opened().await;
    drop((caller, device_leg));
    for (url, token) in [(ticket.url.as_str(), &ticket.token), (offer.url.as_str(), &offer.token)] {
        let after = refused(&world, url, token).await;
        assert!(matches!(after, ProblemCode::TokenUsed | ProblemCode::StreamExpired), "an opened stream's token is used: {after:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_leg_token_is_used_then_expired_then_unknown() {
    let world = MemoryWorld::start().await;
    let mut device = world.device("lamp-1").await;
    let (ticket, offer) = negotiated(&world, &mut device, "k").await;
    let mut caller = world.join(&ticket.url, &ticket.token).await.unwrap();
    let mut device_leg = world.join(offer.url.as_str(), &offer.token).await.unwrap();
    caller.opened().await;
    device_leg.opened().await;
    let forged = Secret::new("mrl_leg_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA");
    let each = async |own: ProblemCode| {
        assert_eq!(refused(&world, &ticket.url, &ticket.token).await, own);
        assert_eq!(refused(&world, offer.url.as_str(), &offer.token).await, own);
        assert_eq!(refused(&world, &ticket.url, &forged).await, ProblemCode::StreamUnknown, "a forged token learns nothing");
        assert_eq!(refused(&world, &ticket.url, &world.token()).await, ProblemCode::StreamUnknown, "nor does a caller's token");
    };
    each(ProblemCode::TokenUsed).await;
    caller.close(4001).await;
    assert_eq!(device_leg.closed().await, 4001);
    caller.closed().await;
    drop((caller, device_leg));
    world.until("the stream is over", |relay| relay.streams() == 0).await;
    each(ProblemCode::StreamExpired).await;
    tokio::time::advance(Duration::from_secs(299)).await;
    each(ProblemCode::StreamExpired).await;
    // Forgotten after a further quarter of the retention time at the latest.
    tokio::time::advance(Duration::from_secs(77)).await;
    each(ProblemCode::StreamUnknown).await;
}

#[tokio::test(start_paused = true)]
async fn repeating_a_request_issues_a_new_token_and_voids_the_old_one() {
    let world = MemoryWorld::start().await;
    let mut device = world.device("lamp-1").await;
    let (first, offer) = negotiated(&world, &mut device, "k").await;
    let again = world.request("POST", "/v1/devices/lamp-1/streams", &[("idempotency-key", "k")], Some(json!({"service": "ssh"}))).await;
    let again: StreamTicket = serde_json::from_value(again.2).unwrap();
    assert_eq!(again.stream, first.stream, "the same request names the same stream");
    assert_eq!(refused(&world, &first.url, &first.token).await, ProblemCode::StreamUnknown);
    let mut caller = world.join(&again.url, &again.token).await.unwrap();
    let mut device_leg = world.join(offer.url.as_str(), &offer.token).await.unwrap();
    caller.opened().await;
    device_leg.opened().await;
}

#[tokio::test(start_paused = true)]
async fn what_is_left_out_of_a_question_asks_for_the_default() {
    let world = MemoryWorld::start().await;
    let mut device = world.device("lamp-1").await;
    let (first, _offer) = negotiated(&world, &mut device, "k").await;
    let ask = async |question| {
        world.request("POST", "/v1/devices/lamp-1/streams", &[("idempotency-key", "k"), ("prefer", "wait=0")], Some(question)).await
    };
    for same in [
        json!({"service": "ssh", "deadline_s": 60}),
        json!({"service": "ssh", "wait_s": 0, "features": []}),
        json!({"service": "ssh", "reason": null}),
    ] {
        let (status, _, answer) = ask(same.clone()).await;
        assert_eq!((status / 100, &answer["stream"]), (2, &json!(first.stream)), "{same}: {answer}");
    }
    for other in
        [json!({"service": "ssh", "deadline_s": 61}), json!({"service": "ssh", "wait_s": 1}), json!({"service": "ssh", "data": "aGVsbG8="})]
    {
        let (status, _, answer) = ask(other.clone()).await;
        assert_eq!((status, &answer["code"]), (409, &json!("conflict")), "{other}: {answer}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_subprotocol_carries_a_leg_token_only_and_is_not_echoed() {
    let world = MemoryWorld::start().await;
    let mut device = world.device("lamp-1").await;
    let (ticket, offer) = negotiated(&world, &mut device, "k").await;
    let token = ticket.token.reveal().to_owned(); // as browsers must
    let offering = async |path: &str, offered: &str| {
        send_raw(world.dial(), upgrade_request(HOST, path, offered, "").as_bytes(), Duration::from_secs(1)).await
    };
    let missing =
        offering("/v1/devices/lamp-1/connect/ssh", &format!("moorline.stream.v1, moorline.token.{}", world.token().reveal())).await;
    assert_eq!((missing.status, &*missing.code), (401, "token_missing"), "a caller's token is never there");
    for forged in ["", "mrl_leg_forged", &token[..token.len() - 1], &format!("{token}A")] {
        let answer = offering(&ticket.url, &format!("moorline.stream.v1, moorline.token.{forged}")).await;
        assert_eq!((answer.status, &*answer.code), (404, "stream_unknown"), "{forged:?}");
    }
    let alone = offering(&ticket.url, &format!("moorline.token.{token}")).await;
    assert_eq!((alone.status, &*alone.code), (400, "malformed"), "beside the stream's own subprotocol");
    let url = format!("{}?token={token}", ticket.url);
    assert_eq!(offering(&url, "moorline.stream.v1").await.status, 400, "never in a query");
    let joined = offering(&ticket.url, &format!("moorline.token.{token}, moorline.stream.v1")).await;
    assert_eq!(joined.status, 101);
    let head = joined.text.to_ascii_lowercase();
    assert!(head.contains("sec-websocket-protocol: moorline.stream.v1\r\n") && !head.contains("mrl_leg"), "{head}");
    for second in ["mrl_leg_forged", &token] {
        let subprotocol = format!("moorline.token.{second}");
        let both = [("sec-websocket-protocol", &*subprotocol), ("authorization", &*bearer(&ticket.token))];
        let refusal = WireLeg::join(world.dial(), HOST, &ticket.url, &both).await.expect_err("a token stands once");
        assert_eq!(code(refusal), ProblemCode::Malformed);
    }
    let mut caller = world.join(&ticket.url, &ticket.token).await.unwrap();
    let mut device_leg = world.join(offer.url.as_str(), &offer.token).await.unwrap();
    caller.opened().await;
    device_leg.opened().await;
    let used = offering(&ticket.url, &format!("moorline.stream.v1, moorline.token.{token}")).await;
    assert_eq!((used.status, &*used.code), (409, "token_used"));
}

#[tokio::test(start_paused = true)]
async fn a_leg_token_is_valid_for_its_leg_only() {
    let world = MemoryWorld::start().await;
    let mut device = world.device("lamp-1").await;
    let (ticket, offer) = negotiated(&world, &mut device, "k").await;
    for token in [&ticket.token, &offer.token] {
        let path = "/v1/devices/lamp-1/connect/ssh";
        let refusal = WireLeg::join(world.dial(), HOST, path, &[("authorization", &bearer(token))]).await.expect_err("no caller's token");
        assert_eq!(code(refusal), ProblemCode::TokenInvalid);
    }
}
