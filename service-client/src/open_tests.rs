//! Opening a stream against a scripted relay.

use std::time::Duration;

use futures_util::SinkExt;
use moorline_proto::leg::{DELIVERED_TEXT, END_TEXT, LegText, Refused};
use moorline_proto::millis::Millis;
use moorline_proto::problem::{Problem, ProblemCode};
use moorline_proto::text::{Data, Text};
use moorline_transport::leg::EndReason;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::join;
use tokio_tungstenite::tungstenite::Message;

use crate::client::Client;
use crate::open::Open;
use crate::open_error::OpenError;
use crate::scripted_relay::{LEG_PATH, close, receive, relay, send_text, ticket};
use crate::stream_options::Key;

fn lamp(client: &Client) -> Open {
    client.open(&"lamp-1".parse().unwrap(), &"ssh".parse().unwrap())
}

#[tokio::test(start_paused = true)]
async fn an_open_stream_carries_bytes_and_the_details_of_opened() {
    let (mut relay, client) = relay();
    let (stream, leg) = join!(lamp(&client), async {
        let request = relay.request().await;
        assert_eq!(request.line, "GET /v1/devices/lamp-1/connect/ssh HTTP/1.1");
        assert_eq!(request.header("authorization"), "Bearer caller-token");
        assert_eq!(request.header("idempotency-key").len(), 32);
        request.open().await
    });
    let (mut stream, mut leg) = (stream.unwrap(), leg);
    assert_eq!(stream.id().to_string(), "000102030405060708090a0b0c0d0e0f");
    assert_eq!(stream.data().map(Data::as_bytes), Some([0, 1].as_slice()));
    assert_eq!((stream.features()[0].as_str(), stream.timeline().opened_ms), ("f1", Some(Millis::from_millis(7))));

    stream.write_all(b"ping").await.unwrap();
    stream.shutdown().await.unwrap();
    assert_eq!(receive(&mut leg).await, Message::binary("ping"));
    assert_eq!(receive(&mut leg).await, Message::text(END_TEXT));

    let mut received = String::new();
    let (read, ()) = join!(stream.read_to_string(&mut received), async {
        leg.send(Message::binary("pong")).await.unwrap();
        send_text(&mut leg, END_TEXT).await;
    });
    assert_eq!((read.unwrap(), received.as_str()), (4, "pong"));
    let (ended, ()) = join!(stream.finish(), async {
        send_text(&mut leg, DELIVERED_TEXT).await;
        close(&mut leg, 1000).await;
    });
    assert_eq!(ended, EndReason::Finished);
}

#[tokio::test(start_paused = true)]
async fn a_request_lost_before_its_response_or_before_opened_is_sent_again_with_the_same_key() {
    let (mut relay, client) = relay();
    let (stream, keys) = join!(lamp(&client), async {
        let mut keys = Vec::new();
        let request = relay.request().await;
        keys.push(request.header("idempotency-key").to_owned());
        drop(request);
        for _ in 0..2 {
            let request = relay.request().await;
            keys.push(request.header("idempotency-key").to_owned());
            drop(request.upgrade().await);
        }
        let request = relay.request().await;
        keys.push(request.header("idempotency-key").to_owned());
        drop(request.open().await);
        keys
    });
    stream.unwrap();
    assert_eq!(keys, vec![keys[0].clone(); 4]);
}

#[tokio::test(start_paused = true)]
async fn a_superseded_leg_is_not_requested_again() {
    let (mut relay, client) = relay();
    let (stream, _leg) = join!(lamp(&client), async {
        let mut leg = relay.request().await.upgrade().await;
        close(&mut leg, 4007).await;
        leg
    });
    assert!(matches!(stream, Err(OpenError::Ended(EndReason::Closed { code: 4007, .. }))), "{stream:?}");
    assert!(relay.is_idle());
}

#[tokio::test(start_paused = true)]
async fn a_refusal_before_the_101_carries_the_problem() {
    let (mut relay, client) = relay();
    let problem = Problem { retry_after_s: Some(4), ..Problem::new(ProblemCode::DeviceOffline, "lamp-1 is off") };
    let (stream, ()) = join!(lamp(&client), async { relay.request().await.refuse(&problem).await });
    assert_eq!(stream.unwrap_err().problem(), Some(&problem));
}

#[tokio::test(start_paused = true)]
async fn a_refusal_after_the_101_carries_the_same_problem() {
    let (mut relay, client) = relay();
    let problem = Problem::new(ProblemCode::TargetRefused, "nothing listens");
    let refused = LegText::from(Box::new(Refused { problem: problem.clone() })).encode();
    let (stream, _leg) = join!(lamp(&client), async {
        let mut leg = relay.request().await.upgrade().await;
        send_text(&mut leg, &refused).await;
        close(&mut leg, 4010).await;
        leg
    });
    assert_eq!(stream.unwrap_err().problem(), Some(&problem));
}

#[tokio::test(start_paused = true)]
async fn a_response_without_a_problem_is_not_from_the_relay() {
    let (mut relay, client) = relay();
    let (stream, ()) = join!(lamp(&client), async { relay.request().await.respond(502, &"bad gateway").await });
    assert!(matches!(stream, Err(OpenError::Unreachable(_))), "{stream:?}");
}

#[tokio::test(start_paused = true)]
async fn a_silent_relay_is_given_up_after_the_deadline() {
    let (mut relay, client) = relay();
    let begun = tokio::time::Instant::now();
    let (stream, _leg) = join!(lamp(&client).deadline(Duration::from_secs(5)).wait(Duration::from_secs(100)), async {
        let request = relay.request().await;
        assert_eq!((request.header("moorline-deadline"), request.header("moorline-wait")), ("5", "100"));
        request.upgrade().await
    });
    assert!(matches!(stream, Err(OpenError::TimedOut { .. })), "{stream:?}");
    assert_eq!(begun.elapsed(), Duration::from_secs(5 + 100 + 10));
}

#[tokio::test(start_paused = true)]
async fn no_span_of_the_caller_overflows() {
    let (mut relay, client) = relay();
    let (stream, _leg) = join!(lamp(&client).wait(Duration::MAX).deadline(Duration::MAX), async {
        let request = relay.request().await;
        assert_eq!((request.header("moorline-deadline"), request.header("moorline-wait")), ("86400", "604800"));
        request.open().await
    });
    stream.unwrap();
    let (ticket, ()) = join!(lamp(&client).wait(Duration::MAX).deadline(Duration::ZERO).prefer_wait(Duration::MAX).negotiate(), async {
        let request = relay.request().await;
        assert_eq!((request.header("prefer"), &request.body["deadline_s"]), ("wait=20", &json!(1)));
        request.refuse(&Problem::new(ProblemCode::DeviceUnknown, "no lamp-1")).await;
    });
    assert!(ticket.unwrap_err().problem().is_some());
}

#[tokio::test(start_paused = true)]
async fn negotiated_here_and_joined_elsewhere() {
    let (mut relay, client) = relay();
    let open = lamp(&client).reason(Text::new("why not").unwrap()).key(Key::new("k7").unwrap()).prefer_wait(Duration::from_secs(3));
    let ticket = ticket(LEG_PATH);
    let (ticket, ()) = join!(open.negotiate(), async {
        let request = relay.request().await;
        assert_eq!(request.line, "POST /v1/devices/lamp-1/streams HTTP/1.1");
        assert_eq!((request.header("idempotency-key"), request.header("prefer")), ("k7", "wait=3"));
        assert_eq!(request.body, json!({"service": "ssh", "reason": "why not"}));
        request.respond(201, &ticket).await;
    });
    let ticket = serde_json::to_string(&ticket.unwrap()).unwrap(); // another program may have received it
    let ticket = serde_json::from_str(&ticket).unwrap();

    let (stream, _leg) = join!(client.join(&ticket), async {
        let request = relay.request().await;
        assert_eq!(request.line, "GET /v1/legs/n1/000102030405060708090a0b0c0d0e0f HTTP/1.1");
        assert_eq!(request.header("authorization"), "Bearer mrl_leg_x");
        request.open().await
    });
    stream.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_ticket_to_another_host_is_not_followed() {
    let (relay, client) = relay();
    let ticket = ticket("wss://elsewhere.example/v1/legs/n1/x");
    let stream = client.join(&serde_json::from_value(ticket).unwrap()).await;
    assert!(matches!(stream, Err(OpenError::ForeignUrl(_))), "{stream:?}");
    assert!(relay.is_idle());
}
