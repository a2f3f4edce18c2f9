//! An open stream in memory, on a paused clock: bytes, half-close, close codes, and silent streams.

use std::time::Duration;

use futures_util::SinkExt;
use moorline_proto::close::CloseReason;
use moorline_tests::memory::MemoryWorld;
use moorline_tests::wire::{LegEvent, WireDevice};
use tokio::io::{AsyncWriteExt, DuplexStream};
use tokio::time::Instant;
use tokio_tungstenite::tungstenite::Message;

/// Runs `work` while the device answers on its control channel.
async fn alongside<T>(device: &mut WireDevice<DuplexStream>, work: impl Future<Output = T>) -> T {
    tokio::select! {
        done = work => done,
        message = device.next() => panic!("the relay sends {message:?}"),
    }
}

async fn no_stream_is_left(world: &MemoryWorld) {
    let begun = Instant::now();
    world.until("nothing is left of a finished stream", |relay| relay.streams() == 0 && !relay.tasks().contains_key("stream")).await;
    assert!(begun.elapsed() < Duration::from_secs(60), "after {:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
pub(crate) async fn each_direction_ends_by_itself_and_both_ends_are_1000() {
    let (world, _device, mut caller, mut leg) = MemoryWorld::with_stream().await;
    caller.send_bytes("question").await;
    caller.end().await;
    assert_eq!(leg.bytes(8).await, b"question");
    leg.ended().await;
    leg.send_bytes("answer").await;
    assert_eq!(caller.bytes(6).await, b"answer");
    leg.end().await;
    caller.ended().await;
    assert_eq!((caller.closed().await, leg.closed().await), (1000, 1000));
    drop((caller, leg));
    no_stream_is_left(&world).await;
}

#[tokio::test(start_paused = true)]
async fn closing_with_1000_ends_a_stream_cleanly() {
    let (_world, _device, mut caller, mut leg) = MemoryWorld::with_stream().await;
    caller.send_bytes("all there is").await;
    caller.close(1000).await;
    assert_eq!(leg.bytes(12).await, b"all there is");
    leg.ended().await;
    assert_eq!((leg.closed().await, caller.closed().await), (1000, 1000));
}

#[tokio::test(start_paused = true)]
async fn any_other_close_resets_the_far_side() {
    for code in [4001, 1001, 1011, 3000] {
        let (_world, _device, mut caller, mut leg) = MemoryWorld::with_stream().await;
        leg.close(code).await;
        assert_eq!(caller.closed().await, 4001, "after {code}");
    }
}

#[tokio::test(start_paused = true)]
pub(crate) async fn a_lost_leg_is_peer_lost_for_the_far_side() {
    let (world, _device, caller, mut leg) = MemoryWorld::with_stream().await;
    drop(caller);
    assert_eq!(leg.closed().await, 4002);
    drop(leg);
    no_stream_is_left(&world).await;
}

#[tokio::test(start_paused = true)]
pub(crate) async fn a_protocol_violation_closes_with_its_code_and_resets_the_far_side() {
    let oversized = format!(r#"{{"type":"x","x":"{}"}}"#, "y".repeat(4096));
    let broken: [(Message, u16); 6] = [
        (Message::text("no json"), 4400),
        (Message::text(r#"{"kind":"end"}"#), 4400),
        (Message::text(r#"{"type":"opened"}"#), 4400),
        (Message::text(r#"{"type":"refused"}"#), 4400),
        (Message::text(oversized), 1009),
        (Message::binary(vec![0; 65_537]), 1009),
    ];
    for (message, code) in broken {
        let (_world, _device, mut caller, mut leg) = MemoryWorld::with_stream().await;
        caller.socket.send(message).await.ok();
        assert_eq!((caller.closed().await, leg.closed().await), (code, 4001));
    }
    let (_world, _device, mut caller, mut leg) = MemoryWorld::with_stream().await;
    caller.end().await;
    caller.send_bytes("more").await;
    assert_eq!(caller.closed().await, 4400, "bytes after end");
    assert_eq!(leg.closed().await, 4001);
}

#[tokio::test(start_paused = true)]
pub(crate) async fn invalid_frames_and_invalid_utf8_have_different_codes() {
    // Masked with zeros, so that the payload is sent as it is.
    let broken: [(&[u8], CloseReason); 4] = [
        (&[0x83, 0x80, 0, 0, 0, 0], CloseReason::Framing),    // a reserved opcode
        (&[0xc2, 0x81, 0, 0, 0, 0, 7], CloseReason::Framing), // a reserved bit
        (&[0x82, 0x01, 7], CloseReason::Framing),             // not masked
        (&[0x81, 0x82, 0, 0, 0, 0, 0xc3, 0x28], CloseReason::BadUtf8),
    ];
    for (frame, reason) in broken {
        let (_world, _device, mut caller, mut leg) = MemoryWorld::with_stream().await;
        caller.socket.get_mut().write_all(frame).await.unwrap();
        assert_eq!((caller.closed().await, leg.closed().await), (reason.code(), CloseReason::Reset.code()), "after {frame:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn unknown_text_is_forwarded_unchanged_and_in_order_until_the_end() {
    let (_world, _device, mut caller, mut leg) = MemoryWorld::with_stream().await;
    let text = r#"{ "type":"resume",  "at": 7 }"#;
    caller.send_bytes("before").await;
    caller.send(Message::text(text)).await;
    caller.send_bytes("behind").await;
    caller.end().await;
    caller.send(Message::text(text)).await;
    assert_eq!(leg.bytes(6).await, b"before");
    assert_eq!(leg.next().await, LegEvent::Text(text.to_owned()));
    assert_eq!(leg.bytes(6).await, b"behind");
    leg.ended().await;
    leg.end().await;
    caller.ended().await;
    assert_eq!((leg.next().await, leg.closed().await), (LegEvent::Delivered, 1000), "nothing but `delivered` follows an end");
}

#[tokio::test(start_paused = true)]
async fn early_data_is_buffered_up_to_its_limit_and_none_is_lost() {
    let world = MemoryWorld::start().await;
    let mut device = world.device("lamp-1").await;
    let mut caller = world.connect("lamp-1", "ssh", &[]).await.unwrap();
    let offer = device.offer().await;
    let sent: Vec<u8> = (0..200_000_u32).map(|at| (at % 251) as u8).collect();
    let all = sent.clone();
    let sender = async {
        for piece in all.chunks(10_000) {
            caller.send_bytes(piece.to_vec()).await;
        }
        caller.end().await;
        caller
    };
    let receiver = async {
        device.accept(offer.stream).await;
        let mut leg = world.join(offer.url.as_str(), &offer.token).await.unwrap();
        leg.opened().await;
        let got = leg.bytes(200_000).await;
        leg.ended().await;
        (got, leg)
    };
    let (_caller, (got, _leg)) = tokio::join!(sender, receiver);
    assert!(got == sent, "every byte is intact");
}

#[tokio::test(start_paused = true)]
async fn a_half_closed_silent_stream_ends_after_exactly_ten_minutes() {
    let (_world, mut device, mut caller, mut leg) = MemoryWorld::with_stream().await;
    caller.end().await;
    leg.ended().await;
    let begun = Instant::now();
    let codes = alongside(&mut device, async { tokio::join!(caller.closed(), leg.closed()) }).await;
    assert_eq!((codes, begun.elapsed()), ((4003, 4003), Duration::from_secs(600)));
}

#[tokio::test(start_paused = true)]
async fn texts_of_any_type_keep_a_half_closed_stream_alive() {
    let (_world, mut device, mut caller, mut leg) = MemoryWorld::with_stream().await;
    caller.end().await;
    leg.ended().await;
    assert_eq!(caller.next().await, LegEvent::Delivered);
    let begun = Instant::now();
    let speaking = async {
        for _ in 0..3 {
            tokio::select! {
                () = tokio::time::sleep(Duration::from_secs(300)) => {}
                event = caller.next() => panic!("{event:?} on a silent stream"),
                event = leg.next() => panic!("{event:?} on a silent stream"),
            }
            leg.send(Message::text(r#"{"type":"x.note"}"#)).await;
            assert!(matches!(caller.next().await, LegEvent::Text(_)), "it is passed on");
        }
        tokio::join!(caller.closed(), leg.closed())
    };
    let codes = alongside(&mut device, speaking).await;
    assert_eq!((codes, begun.elapsed()), ((4003, 4003), Duration::from_secs(1_500)), "ten minutes from the last text");
}

#[tokio::test(start_paused = true)]
async fn a_silent_stream_is_kept_alive_by_pings() {
    let (_world, mut device, mut caller, mut leg) = MemoryWorld::with_stream().await;
    let begun = Instant::now();
    let silence = async {
        let hour = tokio::time::sleep_until(begun + Duration::from_secs(3600));
        tokio::select! {
            () = hour => {}
            event = caller.next() => panic!("{event:?} on a silent stream"),
            event = leg.next() => panic!("{event:?} on a silent stream"),
        }
    };
    alongside(&mut device, silence).await;
    caller.send_bytes("after an hour").await;
    assert_eq!(leg.bytes(13).await, b"after an hour");
}

#[tokio::test(start_paused = true)]
async fn a_leg_that_stops_answering_pings_is_lost_after_two_intervals() {
    let (_world, mut device, mut caller, mut leg) = MemoryWorld::with_stream().await;
    let begun = Instant::now();
    // Both answer for a minute; then the device's leg is not read any more.
    let minute = async {
        tokio::select! {
            () = tokio::time::sleep_until(begun + Duration::from_secs(60)) => {}
            event = caller.next() => panic!("{event:?}"),
            event = leg.next() => panic!("{event:?}"),
        }
    };
    alongside(&mut device, minute).await;
    let code = alongside(&mut device, caller.closed()).await;
    assert_eq!(code, 4002);
    let after = begun.elapsed() - Duration::from_secs(60);
    assert!(after >= Duration::from_secs(25) && after <= Duration::from_secs(76), "dead after {after:?}");
}

#[tokio::test(start_paused = true)]
async fn a_paused_reader_is_not_lost_and_loses_nothing() {
    let (_world, mut device, mut caller, mut leg) = MemoryWorld::with_stream().await;
    let sent = vec![7_u8; 60_000];
    let sending = async {
        for _ in 0..20 {
            leg.send_bytes(sent.clone()).await;
        }
        leg.end().await;
        assert_eq!(leg.closed().await, 1000);
    };
    let receiving = async {
        // The caller reads nothing for three minutes.
        tokio::time::sleep(Duration::from_secs(180)).await;
        assert_eq!(caller.bytes(1_200_000).await.len(), 1_200_000);
        caller.ended().await;
        caller.end().await;
        assert_eq!(caller.closed().await, 1000);
    };
    alongside(&mut device, async { tokio::join!(sending, receiving) }).await;
}

#[tokio::test(start_paused = true)]
async fn an_operator_ends_a_stream() {
    let (world, _device, mut caller, mut leg) = MemoryWorld::with_stream().await;
    let (_, _, list) = world.request("GET", "/v1/streams", &[], None).await;
    assert_eq!((list["streams"][0]["state"].as_str(), list["streams"][0]["device"].as_str()), (Some("opened"), Some("lamp-1")));
    let path = format!("/v1/streams/{}", list["streams"][0]["stream"].as_str().unwrap());
    assert_eq!(world.request("DELETE", &path, &[], None).await.0, 204);
    assert_eq!((caller.closed().await, leg.closed().await), (4005, 4005));
    drop((caller, leg));
    no_stream_is_left(&world).await;
    assert_eq!(world.request("DELETE", &path, &[], None).await.0, 404);
}

#[tokio::test(start_paused = true)]
async fn removing_a_device_closes_its_channel_and_its_streams() {
    let (world, mut device, mut caller, mut leg) = MemoryWorld::with_stream().await;
    assert_eq!(world.request("DELETE", "/v1/devices/lamp-1", &[], None).await.0, 204);
    assert_eq!(device.closed().await.0, 4006);
    assert_eq!((caller.closed().await, leg.closed().await), (4006, 4006));
    assert_eq!(world.connect("lamp-1", "ssh", &[]).await.unwrap_err().status, 404);
}

#[tokio::test(start_paused = true)]
async fn a_relay_that_stops_closes_every_connection_with_1012() {
    let (world, mut device, mut caller, mut leg) = MemoryWorld::with_stream().await;
    let stop = world.relay.stop();
    let closing = async {
        assert_eq!((caller.closed().await, leg.closed().await), (1012, 1012));
        drop((caller, leg));
        assert!(matches!(device.next().await, Ok(moorline_proto::control::ToDevice::GoAway(_))));
        assert_eq!(device.closed().await.0, 1012);
        drop(device);
    };
    tokio::join!(stop, closing);
}
