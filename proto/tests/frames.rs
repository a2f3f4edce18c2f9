//! Properties of any frames, split anywhere: the same messages are decoded, and frames that are encoded again decode to the same messages.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use moorline_proto::frame::{Batch, Close, Decoder, Event, FrameError};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;

/// What was decoded, with runs of bytes joined.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Output {
    Bytes(Vec<u8>),
    Text(String),
    Ping(Vec<u8>),
    Pong(Vec<u8>),
    Close(Option<Close>),
    Error(FrameError),
}

fn decode_all(mut decoder: Decoder, pieces: &[&[u8]]) -> Vec<Output> {
    let mut output = Vec::new();
    for piece in pieces {
        let mut input = *piece;
        loop {
            let event = match decoder.next(&mut input) {
                Ok(Some(Event::Bytes(run))) => match output.last_mut() {
                    Some(Output::Bytes(bytes)) => {
                        run.append_to(bytes);
                        continue;
                    }
                    _ => {
                        let mut bytes = Vec::new();
                        run.append_to(&mut bytes);
                        Output::Bytes(bytes)
                    }
                },
                Ok(Some(Event::Text(text))) => Output::Text(text),
                Ok(Some(Event::Ping(payload))) => Output::Ping(payload),
                Ok(Some(Event::Pong(payload))) => Output::Pong(payload),
                Ok(Some(Event::Close(close))) => Output::Close(close),
                Ok(None) => {
                    assert!(input.is_empty(), "all input is consumed");
                    break;
                }
                Err(error) => {
                    output.push(Output::Error(error));
                    return output;
                }
            };
            output.push(event);
        }
    }
    output
}

/// Any frame as a client sends it, most of them valid.
fn frame() -> impl Strategy<Value = Vec<u8>> {
    let first = prop_oneof![
        8 => prop::sample::select(vec![0x82_u8, 0x02, 0x00, 0x80, 0x81, 0x89, 0x8a, 0x88]),
        1 => any::<u8>(),
    ];
    let payload =
        prop_oneof![4 => vec(any::<u8>(), 0..20), 4 => "[a-zä💡]{0,40}".prop_map(String::into_bytes), 1 => vec(any::<u8>(), 100..400)];
    (first, payload, any::<[u8; 4]>(), prop::bool::weighted(0.98)).prop_map(|(first, payload, mask, is_masked)| {
        let size = payload.len();
        let bit = if is_masked { 0x80 } else { 0 };
        let mut frame = vec![first];
        match u8::try_from(size) {
            Ok(short) if short < 126 => frame.push(bit | short),
            _ => {
                frame.push(bit | 126);
                frame.extend(u16::try_from(size).unwrap().to_be_bytes());
            }
        }
        if is_masked {
            frame.extend(mask);
        }
        frame.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| if is_masked { byte ^ mask } else { *byte }));
        frame
    })
}

fn cut<'a>(bytes: &'a [u8], at: &[Index]) -> Vec<&'a [u8]> {
    let mut at: Vec<usize> = at.iter().map(|at| at.index(bytes.len() + 1)).chain([0, bytes.len()]).collect();
    at.sort_unstable();
    at.windows(2).map(|ends| &bytes[ends[0]..ends[1]]).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn splitting_frames_does_not_change_what_is_decoded(frames in vec(frame(), 1..12), cuts in vec(any::<Index>(), 0..20)) {
        let all = frames.concat();
        let whole = decode_all(Decoder::from_side(), &[&all]);
        prop_assert_eq!(&decode_all(Decoder::from_side(), &cut(&all, &cuts)), &whole);
        let single: Vec<&[u8]> = all.chunks(1).collect();
        prop_assert_eq!(&decode_all(Decoder::from_side(), &single), &whole);
    }

    #[test]
    fn frames_that_are_encoded_again_decode_to_the_same_messages(frames in vec(frame(), 1..12), cuts in vec(any::<Index>(), 0..20)) {
        let all = frames.concat();
        let (mut decoder, mut batch) = (Decoder::from_side(), Batch::new());
        let mut expected = decode_all(Decoder::from_side(), &[&all]);
        for piece in cut(&all, &cuts) {
            let mut input = piece;
            while let Ok(Some(event)) = decoder.next(&mut input) {
                match event {
                    Event::Bytes(run) => batch.bytes(run),
                    Event::Text(text) => batch.text(&text),
                    Event::Ping(payload) => batch.ping(&payload),
                    Event::Pong(payload) => batch.pong(&payload),
                    Event::Close(close) => batch.close(close.as_ref().map(|close| (close.code, &*close.reason))),
                }
            }
        }
        if let Some(Output::Error(_)) = expected.last() {
            expected.pop();
        }
        prop_assert_eq!(decode_all(Decoder::from_relay(), &[&batch.into_bytes()]), expected);
    }

    #[test]
    fn arbitrary_bytes_do_not_panic(bytes in vec(any::<u8>(), 0..200)) {
        decode_all(Decoder::from_side(), &[&bytes]);
        decode_all(Decoder::from_relay(), &[&bytes]);
    }
}
