//! Frames by their bytes: errors, and the encoding of batches.

use super::*;
use crate::close::CloseReason;

/// A client's frame with a mask of zeros.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    masked(first, payload, [0; 4])
}

fn masked(first: u8, payload: &[u8], mask: [u8; 4]) -> Vec<u8> {
    let mut frame = vec![first];
    match payload.len() {
        short @ 0..126 => frame.push(0x80 | u8::try_from(short).unwrap()),
        middle @ 126..0x1_0000 => frame.extend([&[0x80 | 126][..], &u16::try_from(middle).unwrap().to_be_bytes()].concat()),
        long => frame.extend([&[0x80 | 127][..], &(long as u64).to_be_bytes()].concat()),
    }
    frame.extend(mask);
    frame.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    frame
}

/// All events as text, and the error at the end.
fn read(mut decoder: Decoder, mut input: &[u8]) -> (Vec<String>, Option<FrameError>) {
    let mut events = Vec::new();
    loop {
        match decoder.next(&mut input) {
            Ok(Some(Event::Bytes(run))) => {
                let mut bytes = Vec::new();
                run.append_to(&mut bytes);
                events.push(format!("bytes {}", String::from_utf8_lossy(&bytes)));
            }
            Ok(Some(other)) => events.push(format!("{other:?}")),
            Ok(None) => return (events, None),
            Err(error) => {
                assert!(decoder.is_broken() && decoder.next(&mut &b""[..]).is_err(), "the error persists");
                return (events, Some(error));
            }
        }
    }
}

fn error(bytes: &[u8]) -> FrameError {
    read(Decoder::from_side(), bytes).1.unwrap_or_else(|| panic!("{bytes:?} is not an error"))
}

#[test]
fn bytes_are_given_out_before_their_message_is_whole_and_control_frames_come_inside_it() {
    let all = masked(0x02, b"hello", [1, 2, 3, 4]);
    let ping = masked(0x89, b"?", [9, 8, 7, 6]);
    let more = masked(0x80, b"world", [5, 6, 7, 8]);
    let input = [&all[..], &ping, &more[..9]].concat();
    let (events, error) = read(Decoder::from_side(), &input);
    assert_eq!((events, error), (vec!["bytes hello".into(), "Ping([63])".into(), "bytes wor".into()], None));
}

#[test]
fn text_is_delivered_whole_and_empty_binary_messages_are_ignored() {
    let input =
        [frame(0x82, b""), frame(0x01, b"{\xc3"), frame(0x8a, b""), frame(0x00, b"\xa4"), frame(0x80, b"}"), frame(0x81, b"")].concat();
    let (events, error) = read(Decoder::from_side(), &input);
    assert_eq!((events, error), (vec!["Pong([])".into(), "Text(\"{ä}\")".into(), "Text(\"\")".into()], None));
}

#[test]
fn a_close_has_no_payload_a_code_or_a_code_and_a_reason() {
    let (events, _) = read(Decoder::from_side(), &[frame(0x88, b""), frame(0x88, b"\x03\xe8"), frame(0x88, b"\x0f\xa1bye")].concat());
    assert_eq!(
        events,
        ["Close(None)", r#"Close(Some(Close { code: 1000, reason: "" }))"#, r#"Close(Some(Close { code: 4001, reason: "bye" }))"#]
    );
    for code in [0_u16, 999, 1004, 1005, 1006, 1014, 1015, 1016, 2999, 5000, 65_535] {
        assert_eq!(error(&frame(0x88, &code.to_be_bytes())), FrameError::CloseCode(code));
    }
    assert_eq!(error(&frame(0x88, &[3])), FrameError::TruncatedCode);
    assert_eq!(error(&frame(0x88, b"\x03\xe8\xc3\x28")), FrameError::CloseUtf8);
}

#[test]
fn framing_errors_are_named() {
    let cases: [(&[u8], FrameError); 9] = [
        (&[0x82, 1, 7], FrameError::Unmasked),
        (&[0x89, 0], FrameError::Unmasked),
        (&frame(0xc2, b"x"), FrameError::ReservedBit),
        (&frame(0x83, b"x"), FrameError::ReservedOpcode(3)),
        (&frame(0x80, b"x"), FrameError::UnexpectedContinuation),
        (&[frame(0x02, b"x"), frame(0x82, b"y")].concat(), FrameError::InterleavedMessage),
        (&frame(0x09, b"x"), FrameError::FragmentedControl),
        (&frame(0x89, &[7; 126]), FrameError::ControlTooLong(126)),
        (&frame(0x81, b"\xc3"), FrameError::TextUtf8),
    ];
    for (bytes, expected) in cases {
        assert_eq!(error(bytes), expected, "{bytes:?}");
    }
    let (_, from_relay) = read(Decoder::from_relay(), &frame(0x82, b"x"));
    assert_eq!(from_relay, Some(FrameError::Masked));
    assert_eq!(read(Decoder::from_relay(), b"\x82\x01x"), (vec!["bytes x".into()], None));
}

#[test]
fn sizes_are_checked_by_headers_and_across_fragments() {
    let too_big = |bytes: &[u8]| matches!(error(bytes), FrameError::TooBig { .. });
    let huge = |first: u8, claims: u64| [&[first, 0xff][..], &claims.to_be_bytes(), &[0; 4]].concat();
    assert!(too_big(&huge(0x82, 65_537)) && too_big(&huge(0x81, u64::MAX)) && too_big(&huge(0x89, 1 << 63)));
    assert_eq!(read(Decoder::from_side(), &huge(0x82, 65_536)), (vec![], None));
    assert!(too_big(&[frame(0x02, &[7; 65_536]), frame(0x80, b"x")].concat()));
    assert!(too_big(&frame(0x81, &[b'x'; 4_097])));
    assert_eq!(read(Decoder::from_side(), &frame(0x81, &[b'x'; 4_096])).1, None);
    assert_eq!(read(Decoder::from_relay(), &[&[0x81, 126, 0x40, 0][..], &[b'x'; 16_384]].concat()).1, None);
}

#[test]
fn a_message_of_endless_empty_fragments_is_refused() {
    let endless = [frame(0x02, b""), frame(0x00, b"").repeat(200_000)].concat();
    assert_eq!(error(&endless), FrameError::TooManyFragments(1 << 20));
    assert_eq!(error(&endless).reason(), CloseReason::Protocol);
    let crumbs = [frame(0x02, b"x"), frame(0x00, b"x").repeat(65_535), frame(0x80, b"")].concat();
    assert_eq!(read(Decoder::from_side(), &crumbs.repeat(3)).1, None, "one byte per frame is slow but valid");
}

#[test]
fn consecutive_bytes_are_sent_in_one_frame_and_the_order_is_kept() {
    let mut batch = Batch::new();
    let add = |batch: &mut Batch, bytes: &[u8]| {
        let mut decoder = Decoder::from_side();
        let framed = masked(0x82, bytes, [3, 1, 4, 1]);
        let mut input = &framed[..];
        while let Some(Event::Bytes(run)) = decoder.next(&mut input).unwrap() {
            batch.bytes(run);
        }
    };
    add(&mut batch, b"one");
    add(&mut batch, b"two");
    batch.text("{}");
    batch.ping(b"?");
    add(&mut batch, &[b'x'; 126]);
    batch.pong(b"!");
    batch.close(Some((1000, "finished")));
    batch.close(None);
    let expected = [&b"\x82\x06onetwo\x81\x02{}\x89\x01?\x82\x7e\x00\x7e"[..], &[b'x'; 126], b"\x8a\x01!\x88\x0a\x03\xe8finished\x88\x00"];
    assert_eq!(batch.finish(), expected.concat());
    batch.clear();
    assert!(batch.is_empty() && batch.finish().is_empty());

    add(&mut batch, &[b'x'; 65_536]);
    add(&mut batch, b"y");
    let expected = [&b"\x82\x7e\xff\xff"[..], &[b'x'; 65_535], b"\x82\x02xy"];
    assert!(batch.into_bytes() == expected.concat(), "a frame is full at 65,535 bytes");
}

#[test]
fn text_of_every_length_has_the_shortest_header() {
    for (size, header) in [(125, &[0x81, 125][..]), (126, &[0x81, 126, 0, 126]), (65_535, &[0x81, 126, 255, 255])] {
        let mut batch = Batch::new();
        batch.text(&"x".repeat(size));
        assert!(batch.finish().starts_with(header) && batch.len() == header.len() + size);
    }
    let mut batch = Batch::new();
    batch.text(&"x".repeat(65_536));
    assert!(batch.finish().starts_with(&[0x81, 127, 0, 0, 0, 0, 0, 1, 0, 0]));
    batch.clear();
    batch.ping(&[7; 200]);
    batch.close(Some((4000, &"x".repeat(200))));
    assert_eq!(batch.len(), 2 + 125 + 2 + 125, "control frames fit");
}

#[test]
fn a_clients_frames_of_every_length_are_decoded_by_the_relay() {
    for size in [0, 1, 7, 8, 125, 126, 4_096] {
        for (kind, name) in [(Kind::Bytes, "bytes "), (Kind::Text, "Text")] {
            let mut buffer = vec![b'.'; HEADER_ROOM];
            buffer.extend((0..size).map(|at| b'a' + u8::try_from(at % 26).unwrap()));
            let text = String::from_utf8(buffer[HEADER_ROOM..].to_vec()).unwrap();
            let begins = client_frame(kind, &mut buffer, [1, 2, 4, 8]);
            let expected = match kind {
                Kind::Bytes if size == 0 => vec![],
                Kind::Bytes => vec![format!("{name}{text}")],
                _ => vec![format!("{name}({text:?})")],
            };
            assert_eq!(read(Decoder::from_side(), &buffer[begins..]), (expected, None), "{size}");
        }
    }
    for (size, header) in [(125, 6), (126, 8), (65_535, 8), (65_536, 14)] {
        let mut buffer = vec![0; HEADER_ROOM + size];
        assert_eq!(client_frame(Kind::Bytes, &mut buffer, [9; 4]), HEADER_ROOM - header, "the shortest header");
        let frame = &buffer[HEADER_ROOM - header..];
        assert!(matches!(Decoder::from_side().next(&mut &frame[..]), Ok(Some(Event::Bytes(run))) if run.len() == size));
    }
    let mut buffer = [vec![0; HEADER_ROOM], close_payload(4001, "reset")].concat();
    let begins = client_frame(Kind::Close, &mut buffer, [3, 1, 4, 1]);
    let expected = vec![r#"Close(Some(Close { code: 4001, reason: "reset" }))"#.to_owned()];
    assert_eq!(read(Decoder::from_side(), &buffer[begins..]), (expected, None));
    assert_eq!(close_payload(4000, &"x".repeat(200)).len(), CONTROL_PAYLOAD_BYTES);
}
