//! Temporary refusals, against a scripted relay with a paused clock: one retry, after the pause that the relay asked for.

use std::time::Duration;

use moorline_proto::leg::{LegText, Refused};
use moorline_proto::problem::{Problem, ProblemCode};
use tokio::join;
use tokio::time::{Instant, timeout};

use crate::client::Client;
use crate::devices::DeviceError;
use crate::open::Open;
use crate::open_error::OpenError;
use crate::scripted_relay::{LEG_PATH, close, relay, send_text, ticket};

fn lamp(client: &Client) -> Open {
    client.open(&"lamp-1".parse().unwrap(), &"ssh".parse().unwrap())
}

fn refusal(code: ProblemCode, retry_after_s: u64) -> Problem {
    Problem { retry_after_s: Some(retry_after_s), ..Problem::new(code, "not now") }
}

fn refused(problem: &Problem) -> String {
    LegText::from(Box::new(Refused { problem: problem.clone() })).encode()
}

#[tokio::test(start_paused = true)]
async fn a_draining_node_is_tried_again_with_the_same_key_after_its_pause() {
    let (mut relay, client) = relay();
    let begun = Instant::now();
    let (stream, _leg) = join!(lamp(&client), async {
        let first = relay.request().await;
        let key = first.header("idempotency-key").to_owned();
        first.refuse(&refusal(ProblemCode::Draining, 8)).await;
        let second = relay.request().await;
        assert!((8.0..=10.001).contains(&begun.elapsed().as_secs_f64()), "{:?}", begun.elapsed());
        assert_eq!(second.header("idempotency-key"), key);
        second.open().await
    });
    stream.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_refusal_on_the_leg_is_retried_like_one_before_it() {
    let (mut relay, client) = relay();
    let (stream, _legs) = join!(lamp(&client), async {
        let mut leg = relay.request().await.upgrade().await;
        send_text(&mut leg, &refused(&refusal(ProblemCode::Overloaded, 2))).await;
        close(&mut leg, 4010).await;
        (leg, relay.request().await.open().await)
    });
    stream.unwrap();
}

#[tokio::test(start_paused = true)]
async fn the_second_refusal_is_final() {
    for code in [ProblemCode::RateLimited, ProblemCode::Draining, ProblemCode::Overloaded, ProblemCode::DirectoryUnavailable] {
        let (mut relay, client) = relay();
        let (stream, ()) = join!(lamp(&client), async {
            relay.request().await.refuse(&refusal(code, 1)).await;
            relay.request().await.refuse(&refusal(code, 2)).await;
        });
        assert_eq!(stream.unwrap_err().problem(), Some(&refusal(code, 2)));
        assert!(relay.is_idle());
    }
}

#[tokio::test(start_paused = true)]
async fn other_refusals_and_pauses_beyond_the_deadline_are_returned_at_once() {
    let begun = Instant::now();
    for problem in [
        refusal(ProblemCode::DeviceOffline, 1),
        refusal(ProblemCode::DeviceBusy, 1),
        refusal(ProblemCode::Overloaded, 15), // 5 s of deadline and 10 s of margin
        refusal(ProblemCode::Draining, 3_600),
    ] {
        let (mut relay, client) = relay();
        let opening = lamp(&client).deadline(Duration::from_secs(5)).into_future();
        let (stream, ()) = join!(opening, async { relay.request().await.refuse(&problem).await });
        assert_eq!(stream.unwrap_err().problem(), Some(&problem));
        assert!(relay.is_idle());
    }
    assert_eq!(begun.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn an_intermediary_without_a_relay_is_tried_again_too() {
    let (mut relay, client) = relay();
    let (stream, _leg) = join!(lamp(&client), async {
        relay.request().await.respond(503, &"no server is available").await;
        relay.request().await.open().await
    });
    stream.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_hangs_up_during_the_pause_sends_no_retry() {
    let (mut relay, client) = relay();
    let (opened, ()) = join!(timeout(Duration::from_secs(3), lamp(&client).into_future()), async {
        relay.request().await.refuse(&refusal(ProblemCode::Draining, 8)).await;
    });
    assert!(opened.is_err());
    tokio::time::advance(Duration::from_secs(60)).await;
    assert!(relay.is_idle());
}

#[tokio::test(start_paused = true)]
async fn a_negotiation_is_retried_with_its_key_and_a_device_request_too() {
    let (mut relay, client) = relay();
    let ticket = ticket(LEG_PATH);
    let (negotiated, ()) = join!(lamp(&client).negotiate(), async {
        let first = relay.request().await;
        let key = first.header("idempotency-key").to_owned();
        first.refuse(&refusal(ProblemCode::DirectoryUnavailable, 3)).await;
        let second = relay.request().await;
        assert_eq!((second.line.as_str(), second.header("idempotency-key")), ("POST /v1/devices/lamp-1/streams HTTP/1.1", key.as_str()));
        second.respond(201, &ticket).await;
    });
    negotiated.unwrap();

    let (devices, ()) = join!(client.devices(), async {
        relay.request().await.refuse(&refusal(ProblemCode::RateLimited, 3)).await;
        relay.request().await.refuse(&refusal(ProblemCode::RateLimited, 3)).await;
    });
    assert!(matches!(devices, Err(DeviceError::Refused(_))), "{devices:?}");
}

#[tokio::test(start_paused = true)]
async fn a_tickets_stream_that_was_refused_is_not_joined_again() {
    let (mut relay, client) = relay();
    let ticket = ticket(LEG_PATH);
    let problem = refusal(ProblemCode::Draining, 1);
    let (stream, _leg) = join!(client.join(&serde_json::from_value(ticket).unwrap()).into_future(), async {
        let mut leg = relay.request().await.upgrade().await;
        send_text(&mut leg, &refused(&problem)).await;
        close(&mut leg, 4010).await;
        leg
    });
    assert!(matches!(stream, Err(OpenError::Refused(refused)) if *refused == problem));
    assert!(relay.is_idle());
}
