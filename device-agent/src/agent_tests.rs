//! The agent against a scripted relay.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use moorline_proto::control::{Attempt, Cancel, CancelCode, FromDevice, GoAway, Offer, RejectCode, Welcome};
use moorline_proto::text::Text;
use moorline_proto::whole::Whole;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout};
use tokio_tungstenite::tungstenite::Message;

use crate::handle::ReplaceError;
use crate::handler::{Accepted, Decision, OfferInfo};
use crate::scripted::{Call, ScriptedRelay, Socket, agent, alongside, handler, offer, rejected, settings, welcome};
use crate::session::{Session, SessionEvent};
use crate::settings::Settings;

#[tokio::test(start_paused = true)]
async fn an_offer_that_is_repeated_replaces_the_first_whose_target_is_dropped_without_an_answer() {
    let (handler, mut calls) = handler();
    let (agent, mut relay) = agent(settings(), handler);
    alongside(agent, async {
        let (mut first_control, _) = relay.admit(welcome()).await;
        first_control.send(offer(1)).await;
        let first = calls.recv().await.unwrap();
        let _leg_ahead = relay.accept_connection().await;
        drop(first_control);

        let (mut control, _) = relay.admit(welcome()).await;
        let attempt = Attempt::FIRST.next();
        control.send(Offer { attempt, ..offer(1) }).await;
        let second = calls.recv().await.unwrap();
        first.dropped.await.unwrap_err();
        second.decide.send(Decision::reject(RejectCode::Policy, "no")).unwrap();
        let reject = rejected(&mut control).await;
        assert_eq!((reject.attempt, reject.code), (attempt, RejectCode::Policy));

        // Nothing else was sent: the next answer is that of the next offer.
        control.send(offer(2)).await;
        calls.recv().await.unwrap().decide.send(Decision::reject(RejectCode::Busy, "no")).unwrap();
        assert_eq!(rejected(&mut control).await.stream, offer(2).stream);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn an_offer_that_replaced_another_is_cancelled_by_its_stream() {
    let (handler, mut calls) = handler();
    let (agent, mut relay) = agent(settings(), handler);
    alongside(agent, async {
        let (mut control, _) = relay.admit(welcome()).await;
        control.send(offer(1)).await;
        let first = calls.recv().await.unwrap();
        control.send(offer(1)).await;
        let second = calls.recv().await.unwrap();
        first.dropped.await.unwrap_err();
        control.send(Cancel { stream: offer(1).stream, code: CancelCode::CallerGone }).await;
        second.dropped.await.unwrap_err();
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_flood_of_offers_opens_no_more_targets_than_allowed_and_starts_no_task_for_the_rest() {
    const MAX: usize = 16;
    const OFFERS: usize = 5_000;
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&calls);
    let (agent, mut relay) = agent(settings_with(MAX), move |_: OfferInfo| {
        counted.fetch_add(1, Ordering::SeqCst);
        std::future::pending::<Decision>()
    });
    let handle = agent.handle();
    alongside(agent, async {
        let (mut control, _) = relay.admit(welcome()).await;
        let mut most_tasks = 0;
        for number in 0..u32::try_from(OFFERS).unwrap() {
            control.send(offer(number)).await;
            most_tasks = most_tasks.max(handle.tasks());
        }
        let mut rejections = 0;
        while rejections + handle.dropped_rejections() < OFFERS - MAX {
            assert_eq!(rejected(&mut control).await.code, RejectCode::Busy);
            rejections += 1;
        }
        assert_eq!(calls.load(Ordering::SeqCst), MAX);
        assert_eq!(most_tasks.max(handle.tasks()), MAX);
    })
    .await;
}

fn settings_with(max_streams: usize) -> Settings {
    Settings { max_streams: u32::try_from(max_streams).unwrap(), ..settings() }
}

#[tokio::test(start_paused = true)]
async fn the_smaller_of_the_two_limits_of_streams_holds() {
    for (own, relays) in [(2, 512), (512, 2)] {
        let (handler, mut calls) = handler();
        let (agent, mut relay) = agent(settings_with(own), handler);
        alongside(agent, async {
            let (mut control, _) = relay.admit(Welcome { max_streams: relays, ..welcome() }).await;
            let mut held = Vec::new();
            for number in 0..2 {
                control.send(offer(number)).await;
                held.push(calls.recv().await.unwrap());
            }
            control.send(offer(2)).await;
            let reject = rejected(&mut control).await;
            assert_eq!((reject.stream, reject.code), (offer(2).stream, RejectCode::Busy));
            held.pop().unwrap().decide.send(Decision::reject(RejectCode::Policy, "no")).unwrap();
            assert_eq!(rejected(&mut control).await.stream, offer(1).stream);
            control.send(offer(3)).await;
            calls.recv().await.unwrap();
        })
        .await;
    }
}

#[tokio::test(start_paused = true)]
async fn absurd_times_of_a_relay_are_clamped() {
    let (handler, mut calls) = handler();
    let (agent, mut relay) = agent(settings(), handler);
    alongside(agent, async {
        let mut disconnected_at: Option<Instant> = None;
        for ms in [Whole::MAX.get(), 0] {
            let features = vec!["heartbeat".parse().unwrap()];
            let welcome = Welcome { heartbeat_ms: ms, heartbeat_max_ms: ms, features, ..welcome() };
            let (mut control, _) = relay.admit(welcome).await;
            assert_returned_after_five_minutes(disconnected_at);
            control.send(Offer { expires_in_ms: Whole::MAX.get(), ..offer(1) }).await;
            let call = calls.recv().await.unwrap();
            let _leg_ahead = relay.accept_connection().await;
            call.decide.send(Decision::reject(RejectCode::Policy, "no")).unwrap();
            assert_eq!(rejected(&mut control).await.code, RejectCode::Policy);
            control.send(GoAway { reconnect_in_ms: Whole::MAX.get(), reason: Text::truncated("bye") }).await;
            control.close(1012, "relay_draining").await;
            drop(control);
            disconnected_at = Some(Instant::now());
        }
        relay.admit(welcome()).await;
        assert_returned_after_five_minutes(disconnected_at);
    })
    .await;
}

/// Asserts that the device reconnected after five minutes: a longer delay in `go_away` is clamped to that.
fn assert_returned_after_five_minutes(disconnected_at: Option<Instant>) {
    let away = disconnected_at.map(|since| since.elapsed().as_secs_f64());
    assert!(away.is_none_or(|away| (299.0..=301.0).contains(&away)), "{away:?}");
}

/// An open stream: the program behind the target, and the relay's end of the leg.
async fn open(relay: &mut ScriptedRelay, control: &mut Socket, calls: &mut mpsc::Receiver<Call>) -> (DuplexStream, Socket) {
    control.send(offer(1)).await;
    let (local, program) = tokio::io::duplex(1 << 16);
    calls.recv().await.unwrap().decide.send(Decision::Accept(Accepted::stream(local))).unwrap();
    let FromDevice::Accept(_) = control.next().await else { panic!("an accept") };
    (program, relay.open_leg(&offer(1)).await)
}

#[tokio::test(start_paused = true)]
async fn a_retired_agent_keeps_its_streams_rejects_offers_and_does_not_connect_again() {
    let (handler, mut calls) = handler();
    let (agent, mut relay) = agent(settings(), handler);
    let handle = agent.handle();
    let mut running = pin!(agent.run(std::future::pending()));
    let scenario = async {
        let (mut control, _) = relay.admit(welcome()).await;
        let (mut program, mut leg) = open(&mut relay, &mut control, &mut calls).await;
        handle.retire();
        for number in [2, 3] {
            control.send(offer(number)).await;
            let reject = rejected(&mut control).await;
            assert_eq!((reject.stream, reject.code), (offer(number).stream, RejectCode::Busy));
        }
        let begun = Instant::now();
        assert_eq!(control.closed().await, Some(1000));
        assert_eq!(begun.elapsed(), Duration::from_secs(10), "meanwhile another agent may have taken over");

        tokio::time::advance(Duration::from_secs(600)).await;
        leg.send_message(Message::binary(&b"ping"[..])).await;
        let mut received = [0; 4];
        program.read_exact(&mut received).await.unwrap();
        assert_eq!(&received, b"ping");
        program.write_all(b"pong").await.unwrap();
        assert_eq!(leg.next_message().await, Some(Message::binary(&b"pong"[..])));
        assert!(!relay.has_connections());
        leg
    };
    let leg = tokio::select! {
        leg = scenario => leg,
        () = &mut running => panic!("the agent stopped before its last stream"),
    };
    drop(leg);
    timeout(Duration::from_secs(60), running).await.unwrap();
}

/// How long the agent stays away after each of two channels that were superseded, by itself or by another process.
async fn superseded_twice(by_itself: bool) -> [Duration; 2] {
    let (handler, _calls) = handler();
    let (agent, mut relay) = agent(settings(), handler);
    let mut away = [Duration::ZERO; 2];
    alongside(agent, async {
        for away in &mut away {
            let (mut control, hello) = relay.admit(welcome()).await;
            let newer = if by_itself { hello.instance.as_str().to_owned() } else { "f".repeat(32) };
            control.close(4007, &format!("superseded {newer}")).await;
            let closed_at = Instant::now();
            let next = relay.accept_connection().await;
            *away = closed_at.elapsed();
            drop(next); // one more failed attempt, and then the next channel
        }
    })
    .await;
    away
}

#[tokio::test(start_paused = true)]
async fn two_processes_with_one_identity_stop_superseding_each_other_and_one_that_supersedes_itself_goes_on() {
    let [first, second] = superseded_twice(false).await;
    assert!(first <= Duration::from_secs(1) && second == Duration::from_secs(60), "{first:?}, {second:?}");
    let [first, second] = superseded_twice(true).await;
    assert!(first <= Duration::from_secs(1) && second < Duration::from_secs(5), "{first:?}, {second:?}");
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_stops_closes_its_channel_and_resets_its_streams() {
    let (handler, mut calls) = handler();
    let (agent, mut relay) = agent(settings(), handler);
    let (stop, stopped) = oneshot::channel::<()>();
    let running = agent.run(async { drop(stopped.await) });
    let scenario = async {
        let (mut control, _) = relay.admit(welcome()).await;
        let (_program, mut leg) = open(&mut relay, &mut control, &mut calls).await;
        let begun = Instant::now();
        stop.send(()).unwrap();
        let codes = tokio::join!(control.closed(), leg.closed());
        assert_eq!(codes, (Some(1000), Some(4001)));
        assert_eq!(begun.elapsed(), Duration::ZERO);
    };
    tokio::join!(running, scenario);
}

#[tokio::test(start_paused = true)]
async fn streams_end_with_the_future_that_runs_the_agent() {
    let (handler, mut calls) = handler();
    let (agent, mut relay) = agent(settings(), handler);
    let mut end = None;
    alongside(agent, async {
        let (mut control, _) = relay.admit(welcome()).await;
        end = Some(open(&mut relay, &mut control, &mut calls).await);
    })
    .await;
    assert_eq!(end.unwrap().1.closed().await, Some(4001));
}

#[tokio::test(start_paused = true)]
async fn settings_are_replaced_while_the_agent_runs() {
    let (handler, mut calls) = handler();
    let (agent, mut relay) = agent(settings().exposing("ssh", "a shell"), handler);
    let handle = agent.handle();
    alongside(agent, async {
        let (mut control, hello) = relay.admit(welcome()).await;
        assert_eq!(hello.services.len(), 1);
        handle.replace_settings(settings_with(1).exposing("ssh", "a shell")).unwrap();
        handle.replace_settings(settings_with(1).exposing("http", "a page")).unwrap();
        let FromDevice::Services(services) = control.next().await else { panic!("the services are announced") };
        assert_eq!((services.services.len(), services.services[0].name.as_str()), (1, "http"));

        control.send(offer(1)).await;
        let _held = calls.recv().await.unwrap();
        control.send(offer(2)).await;
        assert_eq!(rejected(&mut control).await.code, RejectCode::Busy, "the new limit applies");

        let other = Settings { device: "lamp-2".parse().unwrap(), ..settings() };
        assert_eq!(handle.replace_settings(other).unwrap_err(), ReplaceError::Device);
        let moved = Settings { join: "https://other.test".parse().unwrap(), ..settings() };
        assert_eq!(handle.replace_settings(moved).unwrap_err(), ReplaceError::Relay);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn text_of_the_relay_is_bounded_and_printable_before_it_is_logged() {
    let (sender, receiver) = tokio::sync::watch::channel(Arc::new(settings()));
    let instance = "00112233445566778899aabbccddeeff".parse().unwrap();
    let (dialer, mut relay) = crate::scripted::dialer();
    let mut connect = async || {
        let session = Session::connect(&dialer, receiver.clone(), &instance);
        let (session, (control, _)) = tokio::join!(session, relay.admit(welcome()));
        (session.unwrap(), control)
    };
    let (mut session, mut control) = connect().await;
    control.close(4400, "one\n2027-01-01 ERROR\u{202e}forged").await;
    let SessionEvent::Ended(end) = session.next().await else { panic!("it was closed") };
    assert_eq!(end.to_string(), "closed by the relay with 4400: one\u{fffd}2027-01-01 ERROR\u{fffd}forged");

    for text in [format!(r#"{{"type":"offer","stream":"{}\\n"}}"#, "x".repeat(50_000)), format!("{{\"{}", "\u{1b}".repeat(9_000))] {
        let (mut session, mut control) = connect().await;
        control.send_message(Message::text(text)).await;
        let SessionEvent::Ended(end) = session.next().await else { panic!("the protocol was violated") };
        let shown = end.to_string();
        assert!(shown.chars().count() < 400 && !shown.contains(char::is_control), "{shown:?}");
    }
    drop(sender);
}
