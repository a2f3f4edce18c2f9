//! The end of a stream by `end`, `delivered` and Close: what each side receives, by who ended first, who confirmed, and how the other one closed.

use std::time::Duration;

use moorline_proto::close::CloseReason;
use moorline_tests::memory::MemoryWorld;
use moorline_tests::wire::{LegEvent, WireLeg};
use tokio::io::DuplexStream;
use tokio::time::Instant;
use tokio_tungstenite::tungstenite::Message;

type Leg = WireLeg<DuplexStream>;

/// How a leg goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Goes {
    /// The connection is lost.
    Lost,
    /// It closes with this code.
    Closes(u16),
}

impl Goes {
    async fn go(self, mut leg: Leg) -> Option<Leg> {
        match self {
            Self::Lost => {
                drop(leg);
                None
            }
            Self::Closes(code) => {
                leg.close(code).await;
                Some(leg)
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn both_sides_get_1000_once_both_have_said_end_and_delivered() {
    let (_world, _device, mut caller, mut leg) = MemoryWorld::with_stream().await;
    caller.end().await;
    assert_eq!(leg.next().await, LegEvent::End);
    leg.end().await;
    assert_eq!(caller.next().await, LegEvent::End);
    caller.delivered().await;
    assert_eq!(leg.next().await, LegEvent::Delivered);
    tokio::select! {
        event = leg.next() => panic!("{event:?} before the device has everything"),
        event = caller.next() => panic!("{event:?} before the device has everything"),
        () = tokio::time::sleep(Duration::from_secs(10)) => {}
    }
    leg.delivered().await;
    assert_eq!(caller.next().await, LegEvent::Delivered);
    assert_eq!((caller.closed().await, leg.closed().await), (1000, 1000));
}

/// Both have said `end`, and the caller `delivered`; then the device goes without it.
#[tokio::test(start_paused = true)]
async fn a_side_that_goes_without_delivered_is_a_reset_or_a_loss_for_the_other() {
    for (goes, told) in [(Goes::Lost, 4002), (Goes::Closes(4001), 4001), (Goes::Closes(3000), 4001)] {
        for confirms in [true, false] {
            let (_world, _device, mut caller, mut leg) = MemoryWorld::with_stream().await;
            caller.send_bytes("upload").await;
            caller.end().await;
            leg.end().await;
            assert_eq!(caller.next().await, LegEvent::End);
            if confirms {
                caller.delivered().await;
            }
            let _held = goes.go(leg).await;
            assert_eq!(caller.closed().await, told, "{goes:?}, the caller confirmed: {confirms}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_side_that_goes_after_its_end_and_its_delivered_is_no_loss() {
    for goes in [Goes::Lost, Goes::Closes(4001), Goes::Closes(1000)] {
        let (world, _device, mut caller, mut leg) = MemoryWorld::with_stream().await;
        caller.end().await;
        assert_eq!(leg.next().await, LegEvent::End);
        leg.send_bytes("answer").await;
        leg.end().await;
        leg.delivered().await;
        let _held = goes.go(leg).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(caller.bytes(6).await, b"answer", "{goes:?}");
        assert_eq!((caller.next().await, caller.next().await), (LegEvent::End, LegEvent::Delivered), "{goes:?}");
        caller.delivered().await;
        assert_eq!(caller.closed().await, 1000, "{goes:?}");
        world.until("the stream is over", |relay| relay.streams() == 0).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_simple_close_is_answered_by_what_became_of_the_bytes_before_it() {
    for (goes, told) in [(None, 1000), (Some(Goes::Lost), 4002), (Some(Goes::Closes(4001)), 4001), (Some(Goes::Closes(1000)), 4001)] {
        let (_world, _device, mut caller, mut leg) = MemoryWorld::with_stream().await;
        caller.send_bytes("everything").await;
        caller.close(1000).await;
        assert_eq!(leg.bytes(10).await, b"everything");
        assert_eq!(leg.next().await, LegEvent::End);
        leg.send_bytes("dropped").await;
        let held = match goes {
            None => {
                leg.delivered().await;
                assert_eq!(leg.closed().await, 1000);
                None
            }
            Some(goes) => goes.go(leg).await,
        };
        assert_eq!(caller.closed().await, told, "{goes:?}");
        drop(held);
    }
}

#[tokio::test(start_paused = true)]
async fn a_close_1000_behind_the_far_end_is_no_delivered() {
    let (_world, _device, mut caller, mut leg) = MemoryWorld::with_stream().await;
    leg.send_bytes("bytes").await;
    leg.end().await;
    assert_eq!(caller.bytes(5).await, b"bytes");
    assert_eq!(caller.next().await, LegEvent::End);
    caller.close(1000).await;
    assert_eq!(leg.next().await, LegEvent::End);
    leg.delivered().await;
    assert_eq!(leg.next().await, LegEvent::Close(1000, "finished".to_owned()), "without `delivered`, so it was cut short");
    assert_eq!(caller.closed().await, 1000);
}

#[tokio::test(start_paused = true)]
async fn a_close_without_a_code_from_a_side_is_1000() {
    let (_world, _device, mut caller, mut leg) = MemoryWorld::with_stream().await;
    caller.send(Message::Close(None)).await;
    leg.ended().await;
    assert_eq!((leg.closed().await, caller.closed().await), (1000, 1000));
}

#[tokio::test(start_paused = true)]
async fn delivered_before_the_far_end_and_types_of_the_relay_break_the_protocol() {
    for text in ["delivered", "idle", "offer", "cancel", "ask", "accept", "reject", "opened", "refused"] {
        let (_world, _device, mut caller, mut leg) = MemoryWorld::with_stream().await;
        caller.send(Message::text(format!(r#"{{"type":"{text}"}}"#))).await;
        assert_eq!((caller.closed().await, leg.closed().await), (CloseReason::Protocol.code(), 4001), "{text}");
    }
}

#[tokio::test(start_paused = true)]
async fn after_its_end_a_side_says_nothing_but_delivered_and_that_once() {
    let (_world, _device, mut caller, mut leg) = MemoryWorld::with_stream().await;
    caller.end().await;
    caller.end().await;
    caller.send(Message::text(r#"{"type":"resume"}"#)).await;
    assert_eq!(leg.next().await, LegEvent::End);
    leg.end().await;
    assert_eq!(caller.next().await, LegEvent::End);
    caller.delivered().await;
    caller.delivered().await;
    assert_eq!(leg.next().await, LegEvent::Delivered);
    leg.delivered().await;
    assert_eq!((leg.next().await, caller.next().await), (LegEvent::Close(1000, "finished".to_owned()), LegEvent::Delivered));
}

/// The half-closed time of an in-memory relay: the default.
const HALF_CLOSED_IDLE: Duration = Duration::from_secs(600);

#[tokio::test(start_paused = true)]
async fn a_side_that_owes_delivered_and_is_silent_ends_the_stream_and_one_that_sends_pongs_does_not() {
    let (_world, mut device, mut caller, mut leg) = MemoryWorld::with_stream().await;
    let begun = Instant::now();
    let scenario = async {
        caller.end().await;
        leg.end().await;
        assert_eq!((leg.next().await, caller.next().await), (LegEvent::End, LegEvent::End));
        caller.delivered().await;
        assert_eq!(leg.next().await, LegEvent::Delivered);
        let silence = async {
            // Its local side is slow for twice the time; then it is silent but for its answers to pings.
            for _ in 0..60 {
                tokio::select! {
                    event = leg.next() => panic!("{event:?} while the device is at work"),
                    () = tokio::time::sleep(Duration::from_secs(20)) => {}
                }
                leg.send(Message::Pong(Vec::new().into())).await;
            }
            assert_eq!(begun.elapsed(), 2 * HALF_CLOSED_IDLE);
            leg.closed().await
        };
        assert_eq!(tokio::join!(silence, caller.closed()), (4003, 4003));
        assert!(begun.elapsed() >= 3 * HALF_CLOSED_IDLE, "after {:?}", begun.elapsed());
    };
    tokio::select! {
        () = scenario => {}
        message = device.next() => panic!("{message:?}"),
    }
}
