//! The frame codec against tungstenite: both decode a client's bytes alike, and tungstenite decodes what the codec encodes.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::{Cursor, Read, Result as IoResult, Write};

use moorline_proto::close::CloseReason;
use moorline_proto::frame::{Batch, Decoder, Event};
use moorline_tests::frames::script;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use tokio_tungstenite::tungstenite::error::{CapacityError, ProtocolError};
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocket, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error, Message};

/// Events that the random input must produce, so that the comparison covers them.
const KINDS: [&str; 5] = ["text", "ping", "pong", "close None", "close Some"];

/// What a decoder returned: bytes, other messages, and how it ended.
#[derive(Debug, Default, PartialEq, Eq)]
struct Decoded {
    bytes: Vec<u8>,
    messages: Vec<String>,
    ended: Option<CloseReason>,
}

/// A connection whose whole input is available and whose output is discarded.
struct Input<'a>(Cursor<&'a [u8]>);

impl Read for Input<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> IoResult<usize> {
        self.0.read(buffer)
    }
}

impl Write for Input<'_> {
    fn write(&mut self, buffer: &[u8]) -> IoResult<usize> {
        Ok(buffer.len())
    }

    fn flush(&mut self) -> IoResult<()> {
        Ok(())
    }
}

fn decode_with_tungstenite(frames: &[u8], role: Role) -> Decoded {
    let config = WebSocketConfig::default().max_message_size(Some(65_536)).max_frame_size(Some(65_536));
    let mut socket = WebSocket::from_raw_socket(Input(Cursor::new(frames)), role, Some(config));
    let mut decoded = Decoded::default();
    loop {
        match socket.read() {
            Ok(Message::Binary(bytes)) => decoded.bytes.extend_from_slice(&bytes),
            Ok(Message::Text(text)) => decoded.messages.push(format!("text {text}")),
            Ok(Message::Ping(payload)) => decoded.messages.push(format!("ping {payload:?}")),
            Ok(Message::Pong(payload)) => decoded.messages.push(format!("pong {payload:?}")),
            Ok(Message::Close(Some(frame))) if frame.reason.as_str() == "Protocol violation" => {
                decoded.ended = Some(CloseReason::Framing);
                return decoded;
            }
            Ok(Message::Close(close)) => {
                decoded.messages.push(format!("close {:?}", close.map(|frame| (u16::from(frame.code), frame.reason.to_string()))));
                return decoded;
            }
            Ok(Message::Frame(_)) => unreachable!("frames are not given out"),
            Err(Error::Protocol(ProtocolError::ResetWithoutClosingHandshake)) => return decoded,
            Err(error) => {
                decoded.ended = Some(match error {
                    Error::Protocol(_) => CloseReason::Framing,
                    Error::Utf8(_) => CloseReason::BadUtf8,
                    Error::Capacity(CapacityError::MessageTooLong { .. }) => CloseReason::TooBig,
                    other => panic!("{other:?}"),
                });
                return decoded;
            }
        }
    }
}

/// Decodes with our codec and encodes every event again.
fn decode_and_encode(mut frames: &[u8], mut decoder: Decoder) -> (Decoded, Vec<u8>) {
    let (mut decoded, mut batch) = (Decoded::default(), Batch::new());
    loop {
        match decoder.next(&mut frames) {
            Ok(Some(Event::Bytes(run))) => {
                run.append_to(&mut decoded.bytes);
                batch.bytes(run);
            }
            Ok(Some(Event::Text(text))) => {
                batch.text(&text);
                decoded.messages.push(format!("text {text}"));
            }
            Ok(Some(Event::Ping(payload))) => {
                batch.ping(&payload);
                decoded.messages.push(format!("ping {:?}", bytes::Bytes::from(payload)));
            }
            Ok(Some(Event::Pong(payload))) => {
                batch.pong(&payload);
                decoded.messages.push(format!("pong {:?}", bytes::Bytes::from(payload)));
            }
            Ok(Some(Event::Close(close))) => {
                batch.close(close.as_ref().map(|close| (close.code, &*close.reason)));
                decoded.messages.push(format!("close {:?}", close.map(|close| (close.code, close.reason))));
                return (decoded, batch.into_bytes());
            }
            Ok(None) => return (decoded, batch.into_bytes()),
            Err(error) => {
                decoded.ended = Some(error.reason());
                return (decoded, batch.into_bytes());
            }
        }
    }
}

#[test]
fn the_frame_codec_agrees_with_tungstenite() {
    let seen: RefCell<BTreeMap<&str, usize>> = RefCell::default();
    let mut runner = TestRunner::new(Config { cases: 4_000, failure_persistence: None, ..Config::default() });
    let ran = runner.run(&vec(any::<u8>(), 0..400), |bytes| {
        let frames = script(&bytes);
        let theirs = decode_with_tungstenite(&frames, Role::Server);
        let (ours, encoded_again) = decode_and_encode(&frames, Decoder::from_side());
        // Tungstenite rejects invalid UTF-8 as it arrives, ours when the text is complete. Ours delivers binary data before its message is complete.
        prop_assert!(ours.messages.starts_with(&theirs.messages) && ours.bytes.starts_with(&theirs.bytes), "{ours:?} {theirs:?}");
        if theirs.ended != Some(CloseReason::BadUtf8) {
            prop_assert_eq!(&ours.messages, &theirs.messages);
            prop_assert_eq!(ours.ended, theirs.ended);
        }
        let kinds = KINDS.into_iter().filter(|kind| ours.messages.iter().any(|message| message.starts_with(kind)));
        let ended = ours.ended.map_or("nothing wrong", CloseReason::name);
        kinds.chain([ended]).for_each(|kind| *seen.borrow_mut().entry(kind).or_default() += 1);
        let decoded_again = decode_with_tungstenite(&encoded_again, Role::Client);
        prop_assert_eq!(decoded_again, Decoded { ended: None, ..ours });
        Ok(())
    });
    if let Err(error) = ran {
        panic!("{error}");
    }
    let seen = seen.into_inner();
    for kind in KINDS.into_iter().chain(["nothing wrong", "framing", "bad_utf8"]) {
        assert!(seen.get(kind).is_some_and(|&times| times >= 10), "{kind} occurred too rarely: {seen:?}");
    }
}
