//! Legs over pipes with a paused clock: when frames are written, what is buffered before `opened`, and that a silent leg owns no buffer.

use moorline_proto::bounds::CLOSE_TIMEOUT;
use moorline_proto::frame::{Decoder, Event};
use std::sync::atomic::Ordering;

use moorline_proto::leg::{DELIVERED_TEXT, END_TEXT};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

use super::*;
use crate::limits::Limits;
use crate::net::admission::Admission;
use crate::net::connection::Carrier;
use crate::splice::{Rules, SpliceEnd, Traffic, splice};

const PIPE: usize = 256;
const LARGE: usize = 1 << 20;
const RULES: Rules = Rules { half_closed_idle: Duration::from_secs(600) };
const BYTES: u8 = 0x82;
const PING: u8 = 0x89;
const CLOSE: u8 = 0x88;

fn leg(pipe: usize) -> (Leg, DuplexStream) {
    let (local, peer) = duplex(pipe);
    let permit = Admission::new(&Limits::default()).admit(None).unwrap();
    (Leg::new(Socket::new(Carrier::Memory(local)), Duration::from_secs(25), permit, None), peer)
}

/// A client's frame, with a mask of zeros.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(payload.len()).unwrap().to_be_bytes();
    [&[first, 0x80 | 126, length[0], length[1], 0, 0, 0, 0], payload].concat()
}

fn short(first: u8, payload: &[u8]) -> Vec<u8> {
    [&[first, 0x80 | u8::try_from(payload.len()).unwrap(), 0, 0, 0, 0], payload].concat()
}

fn end() -> Vec<u8> {
    short(0x81, END_TEXT.as_bytes())
}

fn delivered() -> Vec<u8> {
    short(0x81, DELIVERED_TEXT.as_bytes())
}

/// The same frame as the relay sends it, with a header of two bytes.
fn sent_by_relay(first: u8, payload: &[u8]) -> Vec<u8> {
    [&[first, u8::try_from(payload.len()).unwrap()], payload].concat()
}

/// Everything that can be read at once.
async fn read_available(pipe: &mut DuplexStream) -> Vec<u8> {
    let mut all = vec![0; LARGE];
    let count = pipe.read(&mut all).await.unwrap();
    all.truncate(count);
    all
}

async fn run(device: Leg, caller: Leg, traffic: &Traffic) -> SpliceEnd {
    let (end, farewell) = splice(Box::new(device), Box::new(caller), RULES, traffic, std::future::pending(), || false).await;
    farewell.close(RULES.half_closed_idle).await;
    end
}

#[tokio::test(start_paused = true)]
async fn available_bytes_go_in_one_frame_and_the_last_delivered_goes_with_its_close() {
    let ((caller, mut caller_peer), (device, mut device_peer)) = (leg(LARGE), leg(LARGE));
    let traffic = Traffic::default();
    let ends = async {
        caller_peer.write_all(&[short(BYTES, b"one"), short(BYTES, b""), short(BYTES, b"two")].concat()).await.unwrap();
        assert_eq!(read_available(&mut device_peer).await, sent_by_relay(BYTES, b"onetwo"));
        device_peer.write_all(&end()).await.unwrap();
        assert_eq!(read_available(&mut caller_peer).await, sent_by_relay(0x81, END_TEXT.as_bytes()));
        caller_peer.write_all(&[delivered(), short(BYTES, b"three"), end()].concat()).await.unwrap();
        let passed_on =
            [sent_by_relay(0x81, DELIVERED_TEXT.as_bytes()), sent_by_relay(BYTES, b"three"), sent_by_relay(0x81, END_TEXT.as_bytes())];
        assert_eq!(read_available(&mut device_peer).await, passed_on.concat());
        device_peer.write_all(&delivered()).await.unwrap();
        let finished = sent_by_relay(CLOSE, b"\x03\xe8finished");
        assert_eq!(read_available(&mut caller_peer).await, [sent_by_relay(0x81, DELIVERED_TEXT.as_bytes()), finished.clone()].concat());
        assert_eq!(read_available(&mut device_peer).await, finished);
        for pipe in [&mut caller_peer, &mut device_peer] {
            pipe.write_all(&short(CLOSE, b"\x03\xe8")).await.unwrap();
            pipe.shutdown().await.unwrap();
            assert_eq!(read_available(pipe).await, b"", "a Close is sent once");
        }
    };
    let (ended, ()) = tokio::join!(run(device, caller, &traffic), ends);
    assert_eq!((ended, traffic.to_device.load(Ordering::Relaxed)), (SpliceEnd::Finished, 11));
}

#[tokio::test(start_paused = true)]
async fn a_close_is_answered_once_the_far_side_has_everything() {
    let ((caller, mut caller_peer), (device, mut device_peer)) = (leg(LARGE), leg(LARGE));
    let traffic = Traffic::default();
    let ends = async {
        caller_peer.write_all(&[short(BYTES, b"all"), short(CLOSE, b"\x03\xe8bye")].concat()).await.unwrap();
        assert_eq!(
            read_available(&mut device_peer).await,
            [sent_by_relay(BYTES, b"all"), sent_by_relay(0x81, END_TEXT.as_bytes())].concat()
        );
        device_peer.write_all(&[short(BYTES, b"dropped"), delivered()].concat()).await.unwrap();
        let finished = sent_by_relay(CLOSE, b"\x03\xe8finished");
        assert_eq!((read_available(&mut device_peer).await, read_available(&mut caller_peer).await), (finished.clone(), finished));
        drop((caller_peer, device_peer));
    };
    let (ended, ()) = tokio::join!(run(device, caller, &traffic), ends);
    assert_eq!(ended, SpliceEnd::Finished);
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_pauses_blocks_the_writer_and_loses_nothing() {
    let ((caller, mut caller_peer), (device, mut device_peer)) = (leg(PIPE), leg(PIPE));
    let traffic = Traffic::default();
    let message = frame(BYTES, &(0..60_000).map(|at| u8::try_from(at % 251).unwrap()).collect::<Vec<u8>>());
    let ends = async {
        let mut sent = 0;
        let writing = async {
            loop {
                caller_peer.write_all(&message).await.unwrap();
                sent += 1;
            }
        };
        // Ten minutes in which the device's end is not read.
        timeout(Duration::from_secs(600), writing).await.unwrap_err();
        assert!(sent < 5, "{sent} messages were accepted");
        let taken = usize::try_from(traffic.to_device.load(Ordering::Relaxed)).unwrap();
        let (mut payload, mut decoder) = (Vec::new(), Decoder::from_relay());
        while payload.len() < taken {
            let bytes = read_available(&mut device_peer).await;
            let mut input = &bytes[..];
            while let Some(event) = decoder.next(&mut input).unwrap() {
                if let Event::Bytes(run) = event {
                    run.append_to(&mut payload);
                }
            }
        }
        assert!(payload.chunks(60_000).all(|chunk| chunk.iter().enumerate().all(|(at, &byte)| usize::from(byte) == at % 251)));
        drop((caller_peer, device_peer));
    };
    tokio::join!(run(device, caller, &traffic), ends);
}

#[tokio::test(start_paused = true)]
async fn pings_are_answered_in_order_and_a_peer_that_does_not_read_gets_at_least_the_last_pong() {
    let (mut leg, mut peer) = leg(LARGE);
    let pings: Vec<u8> = (0..50).flat_map(|number| short(PING, &[number; 100])).collect();
    let pongs: Vec<u8> = (0..50).flat_map(|number| sent_by_relay(0x8a, &[number; 100])).collect();
    peer.write_all(&pings).await.unwrap();
    let (received, mut leg) = {
        let watching = timeout(Duration::from_secs(1), leg.watch());
        let (_, received) = tokio::join!(watching, async { read_available(&mut peer).await });
        (received, leg)
    };
    assert_eq!(received, pongs);

    leg.write_buffer.push(&[0; LEG_PONG_BYTES]);
    leg.send_pong(b"lost".to_vec());
    leg.send_pong(b"last".to_vec());
    poll_fn(|cx| leg.poll_flush(cx)).await.unwrap();
    let received = read_available(&mut peer).await;
    assert_eq!(received[LEG_PONG_BYTES..], sent_by_relay(0x8a, b"last"));
}

#[tokio::test(start_paused = true)]
async fn a_second_with_more_than_a_hundred_pings_breaks_the_protocol() {
    let (mut leg, mut peer) = leg(LARGE);
    peer.write_all(&short(PING, b"").repeat(101)).await.unwrap();
    assert_eq!(leg.watch().await, Watched::Ended(LegEnd::protocol("more than 100 pings a second")));
}

#[tokio::test(start_paused = true)]
async fn beyond_the_early_data_limit_only_the_rest_of_a_message_is_read() {
    let (mut leg, mut peer) = leg(LARGE);
    let first = frame(BYTES, &[1; 60_000]);
    let crossing = [frame(0x02, &[2; 30_000]), frame(0x80, &[2; 30_000])].concat();
    peer.write_all(&[first, crossing, frame(BYTES, &[3; 60_000]).repeat(10)].concat()).await.unwrap();
    timeout(Duration::from_secs(1), leg.watch()).await.unwrap_err();
    let early = leg.early.taken.bytes;
    assert!(
        (120_000..EARLY_DATA_BYTES + LEG_BINARY_BYTES + LEG_EARLY_READ_BYTES).contains(&early) && !leg.reading,
        "{early} bytes are held"
    );
}

#[tokio::test(start_paused = true)]
async fn a_violation_beyond_the_early_data_limit_is_still_found() {
    let (mut leg, mut peer) = leg(LARGE);
    peer.write_all(&[frame(0x02, &[1; 65_535]), short(0x00, &[1]), short(0x80, &[1])].concat()).await.unwrap();
    assert!(matches!(leg.watch().await, Watched::Ended(LegEnd::Broke(CloseReason::TooBig, _))));
}

#[tokio::test(start_paused = true)]
async fn a_silent_leg_holds_no_buffer() {
    let (mut leg, mut peer) = leg(LARGE);
    peer.write_all(&[short(PING, b"alive?"), short(BYTES, &[7; 100]), short(0x81, br#"{"type":"x"}"#)].concat()).await.unwrap();
    timeout(Duration::from_secs(1), leg.watch()).await.unwrap_err();
    assert_eq!(leg.early.taken, Taken { bytes: 100, text: 12 });
    let early = leg.take_early();
    leg.push_early(&early.batch.into_bytes());
    poll_fn(|cx| leg.poll_flush(cx)).await.unwrap();
    assert!(!leg.write_buffer.owns_memory() && !leg.reader.owns_memory() && leg.early.batch.is_empty());
    assert_eq!(read_available(&mut peer).await.len(), 2 + 6 + 2 + 100 + 2 + 12);
}

#[tokio::test(start_paused = true)]
async fn frames_after_a_violation_are_drained_while_the_leg_is_closed() {
    let (mut leg, mut peer) = leg(PIPE);
    let garbage = tokio::join!(leg.watch(), async { peer.write_all(&[0xff; 100]).await.unwrap() }).0;
    assert!(matches!(garbage, Watched::Ended(LegEnd::Broke(CloseReason::Framing, _))));
    let ends = async {
        peer.write_all(&[0xff; 100_000]).await.unwrap();
        peer.shutdown().await.unwrap();
        read_available(&mut peer).await
    };
    let (_, received) = tokio::join!(Box::new(leg).close(CloseReason::Framing, "a reserved bit is set", CLOSE_TIMEOUT), ends);
    assert_eq!(received, sent_by_relay(CLOSE, b"\x03\xeaframing: a reserved bit is set"));
}
