//! Streams over idle legs, against a scripted relay with a paused clock.

use std::time::Duration;

use moorline_proto::problem::ProblemCode;
use moorline_proto::secret::Secret;
use tokio::join;
use tokio::time::{Instant, sleep};
use tokio_tungstenite::tungstenite::Message;

use crate::client::Client;
use crate::open::Open;
use crate::scripted_relay::{
    IDLE, Leg, OPENED, Relay, asked, carry, carry_until, close, closed, receive, refused, relay, send_text, use_up,
};
use crate::stream::Stream;

fn lamp(client: &Client) -> Open {
    client.open(&"lamp-1".parse().unwrap(), &"ssh".parse().unwrap())
}

/// A stream on a new connection, whose leg may be used again.
async fn cold(client: &Client, relay: &mut Relay) -> (Stream, Leg) {
    let (stream, leg) = join!(lamp(client), async {
        let mut leg = relay.request().await.grant().await;
        send_text(&mut leg, OPENED).await;
        leg
    });
    (stream.unwrap(), leg)
}

/// A leg that is idle behind its first stream.
async fn idle(client: &Client, relay: &mut Relay) -> Leg {
    let (stream, mut leg) = cold(client, relay).await;
    join!(use_up(stream, "up", "down"), carry(&mut leg, "up", "down"));
    leg
}

/// The number of idle legs, once it is this one.
async fn has_idle(client: &Client, wanted: usize) {
    client.inner.pool.count().wait_for(|count| *count == wanted).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_leg_whose_stream_ended_in_order_carries_the_next_ones() {
    let (mut relay, client) = relay();
    let mut leg = idle(&client, &mut relay).await;
    let mut keys = Vec::new();
    for turn in 0..3 {
        let (up, down) = (format!("up {turn}"), format!("down {turn}"));
        let (stream, ask) = join!(lamp(&client).wait(Duration::from_secs(9)), async {
            let ask = asked(&mut leg).await;
            send_text(&mut leg, OPENED).await;
            ask
        });
        assert_eq!((ask.device.as_str(), ask.service.as_str(), ask.wait_s), ("lamp-1", "ssh", Some(9)));
        keys.extend(ask.key);
        join!(use_up(stream.unwrap(), &up, &down), carry(&mut leg, &up, &down));
    }
    assert!(relay.is_idle(), "no further connection");
    keys.dedup();
    assert_eq!(keys.len(), 3, "each stream has a key of its own");
}

#[tokio::test(start_paused = true)]
async fn the_most_recently_used_leg_is_taken_first() {
    let (mut relay, client) = relay();
    let (first, mut first_leg) = cold(&client, &mut relay).await;
    let mut second_leg = idle(&client, &mut relay).await;
    join!(use_up(first, "up", "down"), carry(&mut first_leg, "up", "down"));
    has_idle(&client, 2).await;
    let opening = lamp(&client).into_future();
    let (stream, ask) = join!(opening, async {
        let ask = asked(&mut first_leg).await;
        send_text(&mut first_leg, OPENED).await;
        ask
    });
    assert_eq!((stream.unwrap().service(), ask.service.as_str()), (&"ssh".parse().unwrap(), "ssh"));
    close(&mut second_leg, 1000).await;
    has_idle(&client, 0).await;
}

#[tokio::test(start_paused = true)]
async fn a_leg_that_ends_without_an_answer_is_replaced_at_once_under_the_same_key() {
    for code in [None, Some(1000), Some(1012), Some(4004), Some(4010)] {
        let (mut relay, client) = relay();
        let mut leg = idle(&client, &mut relay).await;
        let begun = Instant::now();
        let (stream, ()) = join!(lamp(&client), async {
            let ask = asked(&mut leg).await;
            match code {
                Some(code) => close(&mut leg, code).await,
                None => drop(leg),
            }
            let request = relay.request().await;
            assert_eq!(request.header("idempotency-key"), ask.key.unwrap());
            drop(request.open().await);
        });
        stream.unwrap();
        assert_eq!(begun.elapsed(), Duration::ZERO, "{code:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_leg_that_died_without_a_word_is_replaced_after_two_seconds_and_once() {
    let (mut relay, client) = relay();
    let (_one, _two) = {
        let (first, mut first_leg) = cold(&client, &mut relay).await;
        let second_leg = idle(&client, &mut relay).await;
        join!(use_up(first, "up", "down"), carry(&mut first_leg, "up", "down"));
        (first_leg, second_leg)
    };
    has_idle(&client, 2).await;
    let begun = Instant::now();
    let (stream, _leg) = join!(lamp(&client), async {
        drop(relay.request().await.upgrade().await);
        relay.request().await.open().await
    });
    stream.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(4), "the other one was not tried behind a pause: {:?}", begun.elapsed());
    assert!(begun.elapsed() > Duration::from_secs(2));
}

#[tokio::test(start_paused = true)]
async fn a_leg_whose_close_has_arrived_is_not_asked() {
    let (mut relay, client) = relay();
    let mut leg = idle(&client, &mut relay).await;
    close(&mut leg, 1000).await;
    let (stream, _leg) = join!(lamp(&client), async { relay.request().await.open().await });
    stream.unwrap();
    assert!(matches!(receive(&mut leg).await, Message::Close(_)));
}

#[tokio::test(start_paused = true)]
async fn a_superseded_request_is_not_repeated() {
    let (mut relay, client) = relay();
    let mut leg = idle(&client, &mut relay).await;
    let (stream, ()) = join!(lamp(&client), async {
        asked(&mut leg).await;
        close(&mut leg, 4007).await;
    });
    assert!(stream.is_err());
    assert!(relay.is_idle());
}

#[tokio::test(start_paused = true)]
async fn a_refused_leg_is_used_again_unless_bytes_were_sent_on_it() {
    let (mut relay, client) = relay();
    let mut leg = idle(&client, &mut relay).await;
    for _ in 0..3 {
        let (opened, ()) = join!(lamp(&client), async {
            asked(&mut leg).await;
            send_text(&mut leg, &refused(ProblemCode::DeviceOffline)).await;
        });
        assert_eq!(opened.unwrap_err().problem().unwrap().known_code(), Some(ProblemCode::DeviceOffline));
        send_text(&mut leg, IDLE).await;
        has_idle(&client, 1).await;
    }
    let mut early = b"early".as_slice();
    let (opened, ()) = join!(lamp(&client).send_from(&mut early), async {
        asked(&mut leg).await;
        assert_eq!(receive(&mut leg).await, Message::binary("early"));
        send_text(&mut leg, &refused(ProblemCode::DeviceOffline)).await;
    });
    assert!(opened.unwrap_err().problem().is_some());
    assert_eq!(closed(&mut leg).await, Some(4001), "nobody waits for it");
    idle(&client, &mut relay).await;
}

#[tokio::test(start_paused = true)]
async fn a_temporary_refusal_is_retried_on_a_new_leg() {
    let (mut relay, client) = relay();
    let mut leg = idle(&client, &mut relay).await;
    let (stream, _leg) = join!(lamp(&client), async {
        let key = asked(&mut leg).await.key.unwrap();
        send_text(&mut leg, &refused(ProblemCode::Overloaded)).await;
        let request = relay.request().await;
        assert_eq!(request.header("idempotency-key"), key);
        request.open().await
    });
    stream.unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_idle_leg_leaves_when_it_ends_and_when_its_time_is_nearly_over() {
    let (mut relay, client) = relay();
    let mut leg = idle(&client, &mut relay).await;
    has_idle(&client, 1).await;
    close(&mut leg, 4006).await;
    has_idle(&client, 0).await;
    assert_eq!(closed(&mut leg).await, Some(4006), "its Close is answered");

    drop(idle(&client, &mut relay).await);
    has_idle(&client, 0).await;

    let begun = Instant::now();
    let mut leg = idle(&client, &mut relay).await;
    let pinged = async {
        sleep(Duration::from_secs(40)).await;
        send_text(&mut leg, r#"{"type":"later"}"#).await;
        closed(&mut leg).await
    };
    let (code, ()) = join!(pinged, has_idle(&client, 0));
    assert_eq!((code, begun.elapsed()), (Some(1000), Duration::from_secs(58)));
}

#[tokio::test(start_paused = true)]
async fn a_leg_that_is_kept_for_a_moment_is_used_for_most_of_it() {
    let (mut relay, client) = relay();
    let (stream, mut leg) = cold(&client, &mut relay).await;
    let short = IDLE.replace("60000", "400");
    join!(use_up(stream, "up", "down"), carry_until(&mut leg, "up", "down", &short));
    let begun = Instant::now();
    has_idle(&client, 1).await;
    assert_eq!(closed(&mut leg).await, Some(1000));
    assert_eq!(begun.elapsed(), Duration::from_millis(300));
}

#[tokio::test(start_paused = true)]
async fn a_renewed_token_empties_the_pool() {
    let (mut relay, client) = relay();
    let client = client.with_token_source(|| Ok(Secret::new("renewed")));
    let begun = Instant::now();
    let (open, mut open_leg) = cold(&client, &mut relay).await;
    let (other, mut other_leg) = cold(&client, &mut relay).await;
    let mut refused_leg = idle(&client, &mut relay).await;
    join!(use_up(other, "up", "down"), carry(&mut other_leg, "up", "down"));
    has_idle(&client, 2).await;
    std::mem::swap(&mut other_leg, &mut refused_leg); // the most recently used one is asked
    let (stream, _leg) = join!(lamp(&client), async {
        asked(&mut refused_leg).await;
        send_text(&mut refused_leg, &refused(ProblemCode::TokenExpired)).await;
        let request = relay.request().await;
        assert_eq!(request.header("authorization"), "Bearer renewed");
        request.open().await
    });
    stream.unwrap();
    assert_eq!(closed(&mut other_leg).await, Some(1000), "the idle one");
    send_text(&mut refused_leg, IDLE).await;
    assert_eq!(closed(&mut refused_leg).await, Some(1000), "the refused one");
    join!(use_up(open, "up", "down"), carry(&mut open_leg, "up", "down"));
    assert_eq!(closed(&mut open_leg).await, Some(1000), "one whose stream went on");
    assert_eq!(begun.elapsed(), Duration::ZERO, "none waited for its time");
    has_idle(&client, 0).await;
}

#[tokio::test(start_paused = true)]
async fn at_most_64_idle_legs_are_kept_and_the_one_that_was_unused_for_the_longest_goes() {
    let (mut relay, client) = relay();
    let mut streams = Vec::new();
    for _ in 0..65 {
        streams.push(cold(&client, &mut relay).await);
    }
    let mut legs = Vec::new();
    for (stream, mut leg) in streams {
        join!(use_up(stream, "up", "down"), carry(&mut leg, "up", "down"));
        legs.push(leg);
    }
    assert_eq!(*client.inner.pool.count().borrow(), 64);
    assert_eq!(closed(&mut legs[0]).await, Some(1000));
}

#[tokio::test(start_paused = true)]
async fn the_last_clone_of_a_client_closes_the_idle_legs_and_a_client_may_keep_none() {
    let (mut relay, client) = relay();
    let mut leg = idle(&client, &mut relay).await;
    let (stream, mut late) = join!(lamp(&client), async {
        asked(&mut leg).await;
        send_text(&mut leg, OPENED).await;
        cold(&client.clone(), &mut relay).await
    });
    join!(use_up(late.0, "up", "down"), carry(&mut late.1, "up", "down"));
    drop(client);
    assert_eq!(closed(&mut late.1).await, Some(1000));
    join!(use_up(stream.unwrap(), "up", "down"), carry(&mut leg, "up", "down"));
    assert_eq!(closed(&mut leg).await, Some(1000), "its stream ended later");

    let (mut relay, client) = self::relay();
    let client = client.with_idle_legs(0);
    let (stream, _leg) = join!(lamp(&client), async {
        let request = relay.request().await;
        assert_eq!(request.header("moorline-leg"), "");
        request.open().await
    });
    stream.unwrap();
}
