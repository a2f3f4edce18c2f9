//! A caller's token that expires: waiting streams are refused, and open ones are cut if the operator configured that.

use std::time::Duration;

use moorline_proto::claims::{AccessRule, Action, Audience, CallerClaims, Pattern};
use moorline_proto::problem::ProblemCode;
use moorline_proto::secret::Secret;
use moorline_tests::memory::{HOST, MemoryWorld};
use moorline_tests::wire::LegEvent;
use tokio::time::{Instant, sleep};

/// A token that allows everything for a minute.
fn minute(world: &MemoryWorld) -> Secret {
    let now = world.now().as_millis() / 1000;
    let access = vec![AccessRule { actions: Action::ALL.to_vec(), devices: vec![Pattern::any()], services: vec![Pattern::any()] }];
    let (iss, sub, aud) = ("moorline:relay:relay".to_owned(), "alice".parse().unwrap(), Audience::One(HOST.to_owned()));
    world.sign(&CallerClaims { iss, sub, aud, exp: now + 60, iat: now, nbf: None, jti: None, access })
}

/// Rounding to seconds, and the leeway for clock differences.
const EXPIRED_WITHIN: Duration = Duration::from_secs(60 + 61);

#[tokio::test(start_paused = true)]
async fn a_waiting_caller_is_refused_when_its_token_expires() {
    let world = MemoryWorld::start().await;
    world.key(&"lamp-1".parse().unwrap()).await;
    let begun = Instant::now();
    let mut caller = world.connect_as(&minute(&world), "lamp-1", "ssh", &[("moorline-wait", "3600")]).await.unwrap();
    assert_eq!(caller.refused().await.known_code(), Some(ProblemCode::TokenExpired));
    assert!(begun.elapsed() >= Duration::from_secs(60) && begun.elapsed() <= EXPIRED_WITHIN, "{:?}", begun.elapsed());
    assert_eq!(world.relay.streams(), 0);
}

/// By default a stream outlives the token that it was opened with.
#[tokio::test(start_paused = true)]
async fn an_open_stream_outlives_its_token_only_where_the_operator_allows_it() {
    for (top, outlives) in [("", true), ("streams_outlive_tokens = true", true), ("streams_outlive_tokens = false", false)] {
        let world = MemoryWorld::start_from(top, "", "").await;
        let mut device = world.device("lamp-1").await;
        let mut caller = world.connect_as(&minute(&world), "lamp-1", "ssh", &[]).await.unwrap();
        let offer = device.offer().await;
        device.accept(offer.stream).await;
        let mut leg = world.join(offer.url.as_str(), &offer.token).await.unwrap();
        caller.opened().await;
        leg.opened().await;
        let (on_caller, on_leg) = tokio::select! {
            () = sleep(EXPIRED_WITHIN) => (None, None),
            both = async { tokio::join!(caller.next(), leg.next()) } => (Some(both.0), Some(both.1)),
            message = device.next() => panic!("{message:?}"),
        };
        match (on_caller, on_leg) {
            (None, None) => assert!(outlives, "{top:?}: still open"),
            (Some(LegEvent::Close(4004, _)), Some(LegEvent::Close(4004, _))) => assert!(!outlives, "{top:?}: cut"),
            other => panic!("{top:?}: {other:?}"),
        }
    }
}
