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

/// Events that the random input must produce, so that something is compared.
const KINDS: [&str; 5] = ["text", "ping", "pong", "close None", "close Some"];

/// What a decoder understood: bytes, other messages, and how it ended.
#[derive(Debug, Default, PartialEq, Eq)]
struct Understood {
    bytes: Vec<u8>,
    said: Vec<String>,
    ended: Option<CloseReason>,
}

/// A connection whose whole input is there already and whose output is dropped.
struct There<'a>(Cursor<&'a [u8]>);

impl Read for There<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> IoResult<usize> {
        self.0.read(buffer)
    }
}

impl Write for There<'_> {
    fn write(&mut self, buffer: &[u8]) -> IoResult<usize> {
        Ok(buffer.len())
    }

    fn flush(&mut self) -> IoResult<()> {
        Ok(())
    }
}

fn by_tungstenite(frames: &[u8], role: Role) -> Understood {
    let config = WebSocketConfig::default().max_message_size(Some(65_536)).max_frame_size(Some(65_536));
    let mut socket = WebSocket::from_raw_socket(There(Cursor::new(frames)), role, Some(config));
    let mut all = Understood::default();
    loop {
        match socket.read() {
            Ok(Message::Binary(bytes)) => all.bytes.extend_from_slice(&bytes),
            Ok(Message::Text(text)) => all.said.push(format!("text {text}")),
            Ok(Message::Ping(payload)) => all.said.push(format!("ping {payload:?}")),
            Ok(Message::Pong(payload)) => all.said.push(format!("pong {payload:?}")),
            Ok(Message::Close(Some(frame))) if frame.reason.as_str() == "Protocol violation" => {
                all.ended = Some(CloseReason::Framing);
                return all;
            }
            Ok(Message::Close(close)) => {
                all.said.push(format!("close {:?}", close.map(|frame| (u16::from(frame.code), frame.reason.to_string()))));
                return all;
            }
            Ok(Message::Frame(_)) => unreachable!("frames are not given out"),
            Err(Error::Protocol(ProtocolError::ResetWithoutClosingHandshake)) => return all,
            Err(error) => {
                all.ended = Some(match error {
                    Error::Protocol(_) => CloseReason::Framing,
                    Error::Utf8(_) => CloseReason::BadUtf8,
                    Error::Capacity(CapacityError::MessageTooLong { .. }) => CloseReason::TooBig,
                    other => panic!("{other:?}"),
                });
                return all;
            }
        }
    }
}

/// Decodes with our codec and encodes every event again.
fn by_us(mut frames: &[u8], mut decoder: Decoder) -> (Understood, Vec<u8>) {
    let (mut all, mut batch) = (Understood::default(), Batch::new());
    loop {
        match decoder.next(&mut frames) {
            Ok(Some(Event::Bytes(run))) => {
                run.append_to(&mut all.bytes);
                batch.bytes(run);
            }
            Ok(Some(Event::Text(text))) => {
                batch.text(&text);
                all.said.push(format!("text {text}"));
            }
            Ok(Some(Event::Ping(payload))) => {
                batch.ping(&payload);
                all.said.push(format!("ping {:?}", bytes::Bytes::from(payload)));
            }
            Ok(Some(Event::Pong(payload))) => {
                batch.pong(&payload);
                all.said.push(format!("pong {:?}", bytes::Bytes::from(payload)));
            }
            Ok(Some(Event::Close(close))) => {
                batch.close(close.as_ref().map(|close| (close.code, &*close.reason)));
                all.said.push(format!("close {:?}", close.map(|close| (close.code, close.reason))));
                return (all, batch.into_bytes());
            }
            Ok(None) => return (all, batch.into_bytes()),
            Err(error) => {
                all.ended = Some(error.reason());
                return (all, batch.into_bytes());
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
        let theirs = by_tungstenite(&frames, Role::Server);
        let (ours, again) = by_us(&frames, Decoder::from_side());
        // Tungstenite rejects invalid UTF-8 as it arrives, we once the text is whole; we deliver binary data before its message is whole.
        prop_assert!(ours.said.starts_with(&theirs.said) && ours.bytes.starts_with(&theirs.bytes), "{ours:?} {theirs:?}");
        if theirs.ended != Some(CloseReason::BadUtf8) {
            prop_assert_eq!(&ours.said, &theirs.said);
            prop_assert_eq!(ours.ended, theirs.ended);
        }
        let kinds = KINDS.into_iter().filter(|kind| ours.said.iter().any(|said| said.starts_with(kind)));
        let ended = ours.ended.map_or("nothing wrong", CloseReason::name);
        kinds.chain([ended]).for_each(|kind| *seen.borrow_mut().entry(kind).or_default() += 1);
        let heard = by_tungstenite(&again, Role::Client);
        prop_assert_eq!(heard, Understood { ended: None, ..ours });
        Ok(())
    });
    if let Err(error) = ran {
        panic!("{error}");
    }
    let seen = seen.into_inner();
    for kind in KINDS.into_iter().chain(["nothing wrong", "framing", "bad_utf8"]) {
        assert!(seen.get(kind).is_some_and(|&times| times >= 10), "{kind} was hardly tried: {seen:?}");
    }
}
