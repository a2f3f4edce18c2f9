//! The first bytes of a stream, sent before it is open, against a scripted relay with a paused clock.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::SinkExt;
use moorline_proto::bounds::EARLY_DATA_BYTES;
use moorline_proto::leg::END_TEXT;
use moorline_proto::problem::{Problem, ProblemCode};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, ReadBuf, duplex};
use tokio::join;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;

use crate::client::Client;
use crate::open::Open;
use crate::open_error::OpenError;
use crate::scripted_relay::{IDLE, Leg, OPENED, asked, closed, receive, refused, relay, send_text};

fn lamp(client: &Client) -> Open {
    client.open(&"lamp-1".parse().unwrap(), &"ssh".parse().unwrap())
}

/// A local side that was reset.
struct Failing;

impl AsyncRead for Failing {
    fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, _: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()))
    }
}

/// Receives exactly this many bytes.
async fn bytes(leg: &mut Leg, count: usize) -> Vec<u8> {
    let mut all = Vec::new();
    while all.len() < count {
        let Message::Binary(some) = receive(leg).await else { panic!("bytes") };
        all.extend_from_slice(&some);
    }
    assert_eq!(all.len(), count);
    all
}

#[tokio::test(start_paused = true)]
async fn what_the_local_side_says_is_sent_before_the_stream_is_open_and_once() {
    let (mut relay, client) = relay();
    let (mut local, mut program) = duplex(1 << 20);
    program.write_all(b"first").await.unwrap();
    let (stream, mut leg) = join!(lamp(&client).send_from(&mut local), async {
        let mut leg = relay.request().await.grant().await;
        assert_eq!(bytes(&mut leg, 5).await, b"first");
        program.write_all(b"second").await.unwrap();
        assert_eq!(bytes(&mut leg, 6).await, b"second", "what comes later, too");
        send_text(&mut leg, OPENED).await;
        leg
    });
    program.write_all(b"third").await.unwrap();
    program.shutdown().await.unwrap();
    let (bridged, ()) = join!(stream.unwrap().bridge(local, std::future::pending()), async {
        assert_eq!(bytes(&mut leg, 5).await, b"third");
        assert_eq!(receive(&mut leg).await, Message::text(END_TEXT));
        drop(leg);
    });
    assert_eq!(bridged.to_leg_bytes, 16);
}

#[tokio::test(start_paused = true)]
async fn early_bytes_are_sent_again_on_the_leg_that_takes_the_place_of_a_lost_one() {
    let (mut relay, client) = relay();
    let (mut local, mut program) = duplex(1 << 20);
    program.write_all(b"first").await.unwrap();
    let (stream, mut leg) = join!(lamp(&client).send_from(&mut local), async {
        let mut leg = relay.request().await.upgrade().await;
        assert_eq!(bytes(&mut leg, 5).await, b"first");
        drop(leg);
        program.write_all(b"second").await.unwrap();
        let mut leg = relay.request().await.upgrade().await;
        assert_eq!(bytes(&mut leg, 11).await, b"firstsecond");
        send_text(&mut leg, OPENED).await;
        leg
    });
    drop(stream.unwrap());
    assert_eq!(closed(&mut leg).await, None, "nothing was sent twice");
}

#[tokio::test(start_paused = true)]
async fn early_bytes_follow_an_ask_and_a_new_leg_if_the_idle_one_has_died() {
    let (mut relay, client) = relay();
    let ready = client.keep_leg_ready();
    let (mut local, mut program) = duplex(1 << 20);
    program.write_all(b"first").await.unwrap();
    let scene = async {
        let mut idle = relay.request().await.grant().await;
        send_text(&mut idle, IDLE).await;
        client.inner.pool.count().wait_for(|count| *count == 1).await.unwrap();
        let (stream, leg) = join!(lamp(&client).send_from(&mut local), async {
            let key = asked(&mut idle).await.key.unwrap();
            assert_eq!(bytes(&mut idle, 5).await, b"first");
            drop(idle);
            loop {
                let request = relay.request().await;
                if request.line.starts_with("GET /v1/connect ") {
                    continue; // for the next stream
                }
                assert_eq!(request.header("idempotency-key"), key);
                let mut leg = request.upgrade().await;
                assert_eq!(bytes(&mut leg, 5).await, b"first");
                send_text(&mut leg, OPENED).await;
                return leg;
            }
        });
        stream.unwrap();
        drop(leg);
    };
    tokio::select! {
        never = ready => match never {},
        () = scene => {}
    }
}

#[tokio::test(start_paused = true)]
async fn at_most_64_kib_are_read_before_the_stream_is_open() {
    let (mut relay, client) = relay();
    let (mut local, mut program) = duplex(1 << 20);
    let all: Vec<u8> = (0..200_000_u32).map(|at| u8::try_from(at % 251).unwrap()).collect();
    program.write_all(&all).await.unwrap();
    let (stream, mut leg) = join!(lamp(&client).send_from(&mut local), async {
        let mut leg = relay.request().await.upgrade().await;
        assert_eq!(bytes(&mut leg, EARLY_DATA_BYTES).await, all[..EARLY_DATA_BYTES]);
        assert!(timeout(Duration::from_secs(30), receive(&mut leg)).await.is_err());
        send_text(&mut leg, OPENED).await;
        leg
    });
    drop(program);
    let rest = async { bytes(&mut leg, all.len() - EARLY_DATA_BYTES).await == all[EARLY_DATA_BYTES..] };
    let (is_rest, _) = join!(rest, timeout(Duration::from_secs(1), stream.unwrap().bridge(local, std::future::pending())));
    assert!(is_rest);
}

#[tokio::test(start_paused = true)]
async fn a_source_that_ended_is_no_end_of_the_stream_and_one_that_failed_cancels_it() {
    let (mut relay, client) = relay();
    let mut request = b"request".as_slice();
    let (stream, mut leg) = join!(lamp(&client).send_from(&mut request), async {
        let mut leg = relay.request().await.upgrade().await;
        assert_eq!(bytes(&mut leg, 7).await, b"request");
        send_text(&mut leg, OPENED).await;
        leg.send(Message::binary("answer")).await.unwrap();
        leg
    });
    let (mut stream, mut answer) = (stream.unwrap(), [0; 6]);
    stream.read_exact(&mut answer).await.unwrap();
    stream.write_all(b" and more").await.unwrap();
    assert_eq!(bytes(&mut leg, 9).await, b" and more");

    let mut failing = Failing;
    let (opened, code) = join!(lamp(&client).send_from(&mut failing), async {
        let mut leg = relay.request().await.upgrade().await;
        closed(&mut leg).await
    });
    assert!(matches!(opened, Err(OpenError::Source(error)) if error.kind() == io::ErrorKind::ConnectionReset));
    assert_eq!(code, Some(4001));
}

#[tokio::test(start_paused = true)]
async fn a_refusal_is_reported_although_bytes_were_sent() {
    let (mut relay, client) = relay();
    let mut request = b"request".as_slice();
    let (opened, _leg) = join!(lamp(&client).send_from(&mut request), async {
        let mut leg = relay.request().await.upgrade().await;
        bytes(&mut leg, 7).await;
        send_text(&mut leg, &refused(ProblemCode::TargetRefused)).await;
        leg
    });
    let problem = opened.unwrap_err().problem().cloned();
    assert_eq!(problem, Some(Problem::new(ProblemCode::TargetRefused, "not now")));
}
