//! Any sequence of messages on two legs that are used again, as a function of bytes, for fuzzers and for random tests. The relay must not mix the
//! bytes of two streams, whatever its peers say in which order; and it must be left with nothing.

use std::time::Duration;

use moorline_proto::reuse::ReuseText;
use serde_json::json;
use tokio::runtime::Builder;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;

use crate::memory::{INSTANCE, MemoryWorld};
use crate::warm::{Leg, idle_caller, idle_leg, warm_device};
use crate::wire::LegEvent;

/// Steps of one sequence at most.
const STEPS: usize = 64;
/// Types of messages that are wrong without their fields, out of their place, or not known.
const TYPES: [&str; 7] = ["ask", "accept", "idle", "offer", "cancel", "opened", "x"];
/// When everything that a step causes has happened, on a paused clock without latency.
const SETTLED: Duration = Duration::from_millis(1);

/// One side's leg, and the stream that it knows of.
#[derive(Default)]
struct Side {
    leg: Option<Leg>,
    /// The number of the stream of which bytes may come.
    stream: Option<u8>,
    /// The offer that was made last.
    offered: Option<String>,
}

/// Runs the sequence of steps that the bytes are.
///
/// # Panics
/// If a byte of one stream comes on another, or something is left of the streams when both sides have gone.
pub fn run(bytes: &[u8]) {
    let runtime = Builder::new_current_thread().enable_all().start_paused(true).build().expect("a runtime");
    runtime.block_on(sequence(bytes));
}

async fn sequence(bytes: &[u8]) {
    let world = MemoryWorld::start().await;
    let device = warm_device(&world, INSTANCE).await;
    let (mut caller, mut target) = (Side::default(), Side::default());
    let mut asked = 0;
    for step in bytes.chunks_exact(2).take(STEPS) {
        let (of_caller, action, argument) = (step[0] & 1 == 0, step[0] >> 1, step[1]);
        let side = if of_caller { &mut caller } else { &mut target };
        if side.leg.is_none() {
            let mut leg = if of_caller { idle_caller(&world).await } else { idle_leg(&world, &device).await };
            leg.idle().await;
            *side = Side { leg: Some(leg), ..Side::default() };
        }
        act(side, of_caller, action, argument, &mut asked).await;
        settle(&mut caller, true).await;
        settle(&mut target, false).await;
    }
    drop((caller, target, device));
    world.until("nothing is left", |relay| relay.streams() == 0 && !relay.tasks().contains_key("stream")).await;
}

/// Says something, in its place or out of it. The caller's bytes are the number of its stream, the device's are that and the highest bit.
async fn act(side: &mut Side, of_caller: bool, action: u8, argument: u8, asked: &mut u8) {
    let Some(leg) = &mut side.leg else { return };
    let offered = side.offered.clone().unwrap_or_else(|| "7f1a3c5e9b2d4f608192a3b4c5d6e7f8".to_owned());
    let own = |stream: u8| if of_caller { stream } else { stream | 0x80 };
    let text = |value: serde_json::Value| Message::text(value.to_string());
    let message = match action % 14 {
        0 | 1 if of_caller => {
            *asked = (*asked + 1) & 0x7f;
            side.stream.get_or_insert(*asked); // out of its place, it begins no stream
            text(json!({"type": "ask", "device": "lamp-1", "service": "ssh", "deadline_s": 2, "reason": asked.to_string()}))
        }
        0 | 1 => text(json!({"type": "accept", "stream": offered, "data": data(side.stream)})),
        2 => text(json!({"type": "reject", "stream": offered, "code": "busy"})),
        3..=5 => Message::binary(vec![own(side.stream.unwrap_or(0x7f)); usize::from(argument) * 40 + 1]),
        6 | 7 => text(json!({"type": "end"})),
        8 | 9 => text(json!({"type": "delivered"})),
        10 => text(json!({"type": TYPES[usize::from(argument) % TYPES.len()]})),
        11 => Message::Close(None),
        12 => Message::Ping(vec![argument].into()),
        _ => {
            side.leg = None;
            return;
        }
    };
    // The relay may have closed it by now.
    drop(futures_util::SinkExt::send(&mut leg.socket, message).await);
}

/// The device's word to the caller about which stream it is.
fn data(stream: Option<u8>) -> String {
    data_encoding::BASE64.encode(&[stream.unwrap_or(0x7f)])
}

/// Reads all that has come.
async fn settle(side: &mut Side, of_caller: bool) {
    while let Some(leg) = &mut side.leg {
        let Ok(event) = timeout(SETTLED, leg.next()).await else { return };
        match event {
            LegEvent::Bytes(bytes) => {
                let stream = side.stream.expect("bytes come on a stream");
                let expected = if of_caller { stream | 0x80 } else { stream };
                assert!(
                    bytes.iter().all(|byte| *byte == expected),
                    "bytes of another stream: {:?} instead of {expected}",
                    &bytes[..bytes.len().min(8)]
                );
            }
            LegEvent::Reuse(ReuseText::Offer(offer)) => {
                side.stream = offer.caller.reason.as_ref().and_then(|reason| reason.as_str().parse().ok());
                side.offered = Some(offer.stream.to_string());
            }
            LegEvent::Reuse(ReuseText::Idle(_)) => side.stream = None,
            LegEvent::Opened(opened) => {
                let told = opened.data.as_ref().and_then(|data| data.as_bytes().first().copied());
                assert_eq!(told, side.stream, "the data of another stream");
            }
            LegEvent::Close(..) | LegEvent::Lost => side.leg = None,
            LegEvent::Reuse(_) | LegEvent::Refused(_) | LegEvent::End | LegEvent::Delivered | LegEvent::Text(_) => {}
        }
    }
}
