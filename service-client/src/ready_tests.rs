//! One leg that is kept ready, against a scripted relay with a paused clock.

use std::time::Duration;

use moorline_proto::problem::{Problem, ProblemCode};
use moorline_proto::secret::Secret;
use tokio::time::{Instant, sleep};

use crate::client::Client;
use crate::scripted_relay::{IDLE, Leg, OPENED, Relay, asked, carry, close, relay, send_text, use_up};
use crate::stream::Stream;

/// Runs a scene while the client keeps a leg ready.
async fn while_ready(client: &Client, scene: impl Future<Output = ()>) {
    tokio::select! {
        never = client.keep_leg_ready() => match never {},
        () = scene => {}
    }
}

/// Opens the leg that the client wants to keep ready.
async fn ready(relay: &mut Relay, client: &Client) -> Leg {
    let request = relay.request().await;
    assert_eq!(request.line, "GET /v1/connect HTTP/1.1");
    let mut leg = request.grant().await;
    send_text(&mut leg, IDLE).await;
    client.inner.pool.count().wait_for(|count| *count >= 1).await.unwrap();
    leg
}

/// A stream on the leg that is ready.
async fn open_on(leg: &mut Leg, client: &Client) -> Stream {
    let opening = client.open(&"lamp-1".parse().unwrap(), &"ssh".parse().unwrap()).into_future();
    let (stream, ()) = tokio::join!(opening, async {
        asked(leg).await;
        send_text(leg, OPENED).await;
    });
    stream.unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_leg_is_ready_from_the_start_and_replaced_at_once_when_it_is_used_or_its_time_is_over() {
    let (mut relay, client) = relay();
    while_ready(&client, async {
        let begun = Instant::now();
        let mut leg = ready(&mut relay, &client).await;
        let stream = open_on(&mut leg, &client).await;
        let _other = ready(&mut relay, &client).await;
        tokio::join!(use_up(stream, "up", "down"), carry(&mut leg, "up", "down"));
        assert_eq!(begun.elapsed(), Duration::ZERO);
        // Two are idle now. Both leave two seconds before the relay closes them, and one comes.
        ready(&mut relay, &client).await;
        assert_eq!(begun.elapsed(), Duration::from_secs(58));
        assert!(relay.is_idle());
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_leg_that_is_lost_at_once_or_refused_is_replaced_after_pauses_that_grow() {
    let (mut relay, client) = relay();
    while_ready(&client, async {
        let begun = Instant::now();
        for turn in 0..10 {
            if turn % 2 == 0 {
                close(&mut ready(&mut relay, &client).await, 1000).await;
            } else {
                relay.request().await.refuse(&Problem::new(ProblemCode::Overloaded, "not now")).await;
            }
        }
        let waited = begun.elapsed();
        assert!((Duration::from_secs(5)..Duration::from_secs(600)).contains(&waited), "{waited:?}");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_relay_without_idle_legs_is_asked_again_after_minutes() {
    let (mut relay, client) = relay();
    while_ready(&client, async {
        let begun = Instant::now();
        relay.request().await.respond(404, &Problem::new(ProblemCode::DeviceUnknown, "no such path")).await;
        // Streams are opened as ever.
        let opening = client.open(&"lamp-1".parse().unwrap(), &"ssh".parse().unwrap()).into_future();
        let (stream, _leg) = tokio::join!(opening, async { relay.request().await.open().await });
        stream.unwrap();
        drop(relay.request().await.upgrade().await);
        assert_eq!(begun.elapsed(), Duration::from_secs(300));
        relay.request().await.respond(404, &"nothing here").await;
        assert_eq!(begun.elapsed(), Duration::from_secs(600), "a 101 that does not grant it counts as no");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn an_expired_token_is_renewed_for_a_ready_leg() {
    let (mut relay, client) = relay();
    let client = client.with_token_source(|| Ok(Secret::new("renewed")));
    while_ready(&client, async {
        relay.request().await.refuse(&Problem::new(ProblemCode::TokenExpired, "its time is over")).await;
        let request = relay.request().await;
        assert_eq!(request.header("authorization"), "Bearer renewed");
        let mut leg = request.grant().await;
        send_text(&mut leg, IDLE).await;
        client.inner.pool.count().wait_for(|count| *count == 1).await.unwrap();
        let _stream = open_on(&mut leg, &client).await;
        ready(&mut relay, &client).await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_client_that_keeps_no_idle_legs_opens_none() {
    let (relay, client) = relay();
    let client = client.with_idle_legs(0);
    while_ready(&client, sleep(Duration::from_secs(3_600))).await;
    assert!(relay.is_idle());
}
