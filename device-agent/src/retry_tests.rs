//! Retries against a scripted relay, with a paused clock: however fast the relay ends things, each attempt waits, and for longer and longer.

use std::convert::Infallible;
use std::ops::RangeInclusive;
use std::time::Duration;

use moorline_proto::control::{FromDevice, GoAway, RejectCode};
use moorline_proto::text::Text;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, timeout};

use crate::agent::Agent;
use crate::handler::{Accepted, Decision, OfferInfo};
use crate::scripted::{ScriptedRelay, agent, offer, settings, welcome};

const MINUTE: Duration = Duration::from_secs(60);
/// Legs that are joined in a minute, where each is lost at once: a few short pauses, then one of 0.3 to 5 s each.
const LEGS_A_MINUTE: RangeInclusive<usize> = 12..=50;
/// Control channels that are dialled in a minute, where each ends at once: the ceilings 1, 2, 4, 8, 16, 32 s take about half a minute.
const CHANNELS_A_MINUTE: RangeInclusive<usize> = 4..=20;

/// Runs the agent and the relay's script for a minute.
async fn for_a_minute(agent: Agent, script: impl Future<Output = Infallible>) {
    let both = async { tokio::join!(agent.run(std::future::pending()), script) };
    assert!(timeout(MINUTE, both).await.is_err(), "the agent stopped");
}

/// A device that accepts every offer.
fn device() -> (Agent, ScriptedRelay) {
    agent(settings(), |_: OfferInfo| async { Decision::Accept(Accepted::stream(tokio::io::duplex(64).0)) })
}

#[tokio::test(start_paused = true)]
async fn a_leg_that_is_lost_right_behind_its_101_is_joined_again_after_pauses_and_then_given_up() {
    let (agent, mut relay) = device();
    let mut joins: Vec<Instant> = Vec::new();
    let scenario = async {
        let (mut control, _) = relay.admit(welcome()).await;
        control.send(offer(1)).await;
        let FromDevice::Accept(_) = control.next().await else { panic!("an accept") };
        let rejected = loop {
            tokio::select! {
                leg = relay.accept() => {
                    drop(leg);
                    joins.push(Instant::now());
                    assert!(joins.len() <= *LEGS_A_MINUTE.end(), "{:?}", joins.last().unwrap().duration_since(joins[0]));
                }
                message = control.next() => break message,
            }
        };
        let FromDevice::Reject(reject) = rejected else { panic!("{rejected:?}") };
        assert_eq!(reject.code, RejectCode::Internal, "the caller is told before its deadline");
    };
    tokio::select! {
        () = agent.run(std::future::pending()) => panic!("the agent stopped"),
        () = scenario => {}
    }
    assert!(LEGS_A_MINUTE.contains(&joins.len()), "{}", joins.len());
    let pauses: Vec<_> = joins.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(pauses.iter().all(|pause| *pause >= Duration::from_millis(300)), "{pauses:?}");
}

#[tokio::test(start_paused = true)]
async fn a_go_away_without_delay_on_every_channel_backs_off_like_a_failure() {
    for ends_too in [false, true] {
        let (agent, mut relay) = device();
        let mut channels = 0;
        for_a_minute(agent, async {
            let mut held = Vec::new();
            loop {
                let (mut control, _) = relay.admit(welcome()).await;
                channels += 1;
                assert!(channels <= *CHANNELS_A_MINUTE.end(), "ends_too: {ends_too}");
                control.send(GoAway { reconnect_in_ms: 0, reason: Text::truncated("bye") }).await;
                if !ends_too {
                    held.push(control);
                }
            }
        })
        .await;
        assert!(CHANNELS_A_MINUTE.contains(&channels), "{channels} channels, ends_too: {ends_too}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_go_away_on_a_channel_that_was_up_for_a_minute_is_followed_as_it_says() {
    let (agent, mut relay) = device();
    tokio::select! {
        () = agent.run(std::future::pending()) => panic!("the agent stopped"),
        () = async {
            for _ in 0..20 {
                let (mut control, _) = relay.admit(welcome()).await;
                tokio::time::sleep(MINUTE).await;
                control.send(GoAway { reconnect_in_ms: 1_250, reason: Text::truncated("bye") }).await;
                let begun = Instant::now();
                let (newer, _) = relay.admit(welcome()).await;
                assert_eq!(begun.elapsed().as_millis(), 1_250);
                drop((control, newer));
            }
        } => {}
    }
}

#[tokio::test(start_paused = true)]
async fn channels_that_end_behind_their_welcome_are_dialled_again_with_pauses() {
    let (agent, mut relay) = device();
    let mut channels = 0;
    for_a_minute(agent, async {
        loop {
            drop(relay.admit(welcome()).await);
            channels += 1;
            assert!(channels <= *CHANNELS_A_MINUTE.end());
        }
    })
    .await;
    assert!(CHANNELS_A_MINUTE.contains(&channels), "{channels}");
}

#[tokio::test(start_paused = true)]
async fn a_relay_that_asks_for_no_pause_is_not_dialled_without_one() {
    let (agent, mut relay) = device();
    let mut dials = 0;
    for_a_minute(agent, async {
        loop {
            let mut connection = relay.accept_connection().await;
            dials += 1;
            assert!(dials <= *CHANNELS_A_MINUTE.end());
            let mut head = vec![0; 4_096];
            assert_ne!(connection.read(&mut head).await.unwrap(), 0);
            let refusal = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 0\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
            connection.write_all(refusal).await.unwrap();
        }
    })
    .await;
    assert!(CHANNELS_A_MINUTE.contains(&dials), "{dials}");
}
