//! Legs that are kept ready, against a scripted relay, with a paused clock.

use std::time::Duration;

use moorline_proto::control::{RejectCode, Warm, Welcome};
use moorline_proto::secret::Secret;
use moorline_proto::text::Text;
use tokio::time::{Instant, sleep, timeout};

use crate::scripted::{agent, alongside, handler, leg_offer, offer, reuse_welcome, settings};
use crate::settings::Settings;

fn keeping(warm_legs: u32) -> Settings {
    Settings { warm_legs, ..settings() }
}

#[tokio::test(start_paused = true)]
async fn legs_are_opened_ahead_and_replaced_at_once_when_they_are_used() {
    let (handler, mut calls) = handler();
    let (agent, mut relay) = agent(keeping(2), handler);
    alongside(agent, async {
        let (_control, _) = relay.admit(reuse_welcome()).await;
        let begun = Instant::now();
        let (mut first, _second) = (relay.accept_idle().await, relay.accept_idle().await);
        sleep(Duration::from_secs(120)).await;
        assert!(!relay.has_connections(), "no more than two");

        first.offer(leg_offer(1)).await;
        let call = calls.recv().await.unwrap();
        let _third = relay.accept_idle().await;
        call.reject(RejectCode::Policy);
        assert_eq!(first.rejected().await.code, RejectCode::Policy);
        first.idle().await;
        assert_eq!(begun.elapsed().as_secs(), 120, "nothing paused");
        sleep(Duration::from_secs(120)).await;
        assert!(!relay.has_connections(), "the one that came back is kept besides");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_leg_that_was_kept_for_its_time_is_replaced_at_once() {
    let (handler, _calls) = handler();
    let (agent, mut relay) = agent(keeping(1), handler);
    alongside(agent, async {
        let (_control, _) = relay.admit(reuse_welcome()).await;
        for _ in 0..20 {
            let mut leg = relay.accept_idle().await;
            sleep(Duration::from_secs(300)).await;
            let begun = Instant::now();
            leg.close(1000, "finished").await;
            assert_eq!(leg.closed().await, Some(1000));
            drop(relay.accept_connection().await); // one failure, with a pause of its own
            assert_eq!(begun.elapsed(), Duration::ZERO);
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_device_that_is_to_keep_no_legs_asks_for_none() {
    for (idle_legs, asks) in [(0, false), (1, true)] {
        let (handler, mut calls) = handler();
        let (agent, mut relay) = agent(Settings { idle_legs, ..keeping(0) }, handler);
        alongside(agent, async {
            let (mut control, hello) = relay.admit(reuse_welcome()).await;
            assert_eq!(hello.features.iter().any(|feature| feature.as_str() == "reuse"), asks);
            control.send(offer(1)).await;
            let _program = calls.recv().await.unwrap().accept();
            let (_leg, _, asked) = relay.upgrade(asks).await;
            assert_eq!(asked, asks, "its leg");
        })
        .await;
    }
}

/// Dials in a minute, where all that comes of them is closed at once: four to begin with, and then after pauses that grow to half a minute.
const MOST_DIALS: usize = 24;

/// What a relay closes at once.
#[derive(Clone, Copy, Debug)]
enum Closed {
    Connection,
    Leg,
    IdleLeg,
}

#[tokio::test(start_paused = true)]
async fn legs_that_cannot_be_had_are_dialled_with_pauses() {
    for closed in [Closed::Connection, Closed::Leg, Closed::IdleLeg] {
        let (handler, _calls) = handler();
        let (agent, mut relay) = agent(keeping(4), handler);
        let mut dials = 0;
        let scenario = async {
            let (_control, _) = relay.admit(reuse_welcome()).await;
            loop {
                match closed {
                    Closed::Connection => drop(relay.accept_connection().await),
                    Closed::Leg => drop(relay.accept_reusable().await),
                    Closed::IdleLeg => relay.accept_idle().await.close(1000, "finished").await,
                }
                dials += 1;
                assert!(dials <= MOST_DIALS, "{closed:?}");
            }
        };
        let a_minute = timeout(Duration::from_secs(60), alongside(agent, scenario)).await;
        assert!(a_minute.is_err(), "the agent goes on");
        assert!((4..=MOST_DIALS).contains(&dials), "{dials} dials in a minute, {closed:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn none_is_opened_at_a_foreign_address_or_where_the_relay_does_not_say_how() {
    let warm = Warm { url: Text::truncated("https://elsewhere.test/v1/legs/n1/idle"), token: Secret::new("mrl_warm_x") };
    for warm in [None, Some(warm)] {
        let (handler, _calls) = handler();
        let (agent, mut relay) = agent(keeping(1), handler);
        alongside(agent, async {
            let (_control, _) = relay.admit(Welcome { warm, ..reuse_welcome() }).await;
            sleep(Duration::from_secs(120)).await;
            assert!(!relay.has_connections());
        })
        .await;
    }
}

#[tokio::test(start_paused = true)]
async fn the_legs_of_a_session_are_not_replaced_after_it() {
    let (handler, _calls) = handler();
    let (agent, mut relay) = agent(keeping(1), handler);
    let handle = agent.handle();
    let running = agent.run(std::future::pending());
    let scenario = async {
        let (mut control, _) = relay.admit(reuse_welcome()).await;
        let mut leg = relay.accept_idle().await;
        handle.retire();
        assert_eq!(leg.closed().await, Some(1000));
        assert_eq!(control.closed().await, Some(1000));
        assert!(!relay.has_connections());
    };
    tokio::join!(running, scenario);
}
