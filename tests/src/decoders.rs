//! Every decoder of untrusted input as a function of bytes, for fuzzers and property tests. None may panic, and
//! whatever decodes must encode and decode to the same value again.

use std::net::Ipv4Addr;

use futures_util::FutureExt;
use moorline_proto::api::{OpenStream, PutDevice};
use moorline_proto::claims::CallerClaims;
use moorline_proto::control::{FromDevice, Nonce, ToDevice};
use moorline_proto::frame::{Batch, Decoder as FrameDecoder, Event};
use moorline_proto::join::{Join, RelayUrl};
use moorline_proto::leg::LegText;
use moorline_proto::message::Decoded;
use moorline_proto::problem::Problem;
use moorline_proto::proof::PublicKey;
use moorline_proto::reuse::ReuseText;
use moorline_relay::access::proof::{Expected, verify_proof};
use moorline_relay::net::client_address::{TrustedProxies, network};
use moorline_relay::net::proxy_header::read_proxy_header;
use moorline_relay::store::KeyRecord;

use crate::frames::script;

/// A decoder under test.
pub type Decoder = fn(&[u8]);

/// All decoders, by the names of their fuzz targets.
pub const DECODERS: &[(&str, Decoder)] = &[
    ("control", control),
    ("leg", leg),
    ("frames", frames),
    ("problem", problem),
    ("claims", claims),
    ("proof", proof),
    ("requests", requests),
    ("join", join),
    ("balancer", balancer),
    ("relay_config", relay_config),
    ("agent_config", agent_config),
];

fn text(bytes: &[u8]) -> Option<&str> {
    std::str::from_utf8(bytes).ok()
}

/// Messages of the control channel, both directions.
pub fn control(bytes: &[u8]) {
    let Some(text) = text(bytes) else { return };
    if let Ok(Decoded::Known(message)) = ToDevice::decode(text) {
        assert_eq!(ToDevice::decode(&message.encode()), Ok(Decoded::Known(message)));
    }
    if let Ok(Decoded::Known(message)) = FromDevice::decode(text) {
        assert_eq!(FromDevice::decode(&message.encode()), Ok(Decoded::Known(message)));
    }
}

/// Text messages of a leg.
pub fn leg(bytes: &[u8]) {
    if let Some(Ok(Decoded::Known(message))) = text(bytes).map(LegText::decode) {
        assert_eq!(LegText::decode(&message.encode()), Ok(Decoded::Known(message)));
    }
    if let Some(Ok(Decoded::Known(message))) = text(bytes).map(ReuseText::decode) {
        assert_eq!(ReuseText::decode(&message.encode()), Ok(Decoded::Known(message)));
    }
}

/// Frames of a leg, raw and scripted from the bytes: decoded alike however they are split, and after encoding them again.
pub fn frames(bytes: &[u8]) {
    for frames in [bytes, &script(bytes)] {
        let decode = |pieces: &[&[u8]], mut decoder: FrameDecoder| {
            let (mut payload, mut messages, mut batch) = (Vec::new(), Vec::new(), Batch::new());
            for piece in pieces {
                let mut input = *piece;
                while let Ok(Some(event)) = decoder.next(&mut input) {
                    match event {
                        Event::Bytes(run) => {
                            run.append_to(&mut payload);
                            batch.bytes(run);
                            continue;
                        }
                        Event::Text(ref text) => batch.text(text),
                        Event::Ping(ref payload) => batch.ping(payload),
                        Event::Pong(ref payload) => batch.pong(payload),
                        Event::Close(ref close) => batch.close(close.as_ref().map(|close| (close.code, &*close.reason))),
                    }
                    messages.push(format!("{event:?} after {}", payload.len()));
                }
            }
            (payload, messages, batch.into_bytes())
        };
        let (half, rest) = frames.split_at(frames.len() / 2);
        let (payload, messages, encoded_again) = decode(&[frames], FrameDecoder::from_side());
        let (same_payload, same, _) = decode(&[half, rest], FrameDecoder::from_side());
        assert!(payload == same_payload && messages == same, "frames that are split decode to the same messages");
        let (same_payload, same, _) = decode(&[&encoded_again], FrameDecoder::from_relay());
        assert!(payload == same_payload && messages == same, "frames that are encoded again decode to the same messages");
        decode(&[frames], FrameDecoder::from_relay());
    }
}

/// Problem documents.
pub fn problem(bytes: &[u8]) {
    if let Ok(problem) = serde_json::from_slice::<Problem>(bytes) {
        let again = serde_json::to_vec(&problem).expect("a problem is written");
        assert_eq!(serde_json::from_slice::<Problem>(&again).ok(), Some(problem));
    }
}

/// Claims of callers' tokens.
pub fn claims(bytes: &[u8]) {
    if let Ok(claims) = serde_json::from_slice::<CallerClaims>(bytes) {
        let again = serde_json::to_vec(&claims).expect("claims are written");
        assert_eq!(serde_json::from_slice::<CallerClaims>(&again).ok(), Some(claims));
    }
}

/// Proofs of devices. No input may be a valid one.
pub fn proof(bytes: &[u8]) {
    let Some(text) = text(bytes) else { return };
    let (Ok(device), Ok(instance)) = ("lamp-1".parse(), "00112233445566778899aabbccddeeff".parse()) else { return };
    let names = ["relay.example.com".to_owned()];
    let expected = Expected { nonce: Nonce([7; 32]), names: &names, device: &device, instance: &instance };
    let key = PublicKey::Ed25519([9; 32]);
    let created = moorline_proto::timestamp::Timestamp::from_millis(0);
    let known = KeyRecord { kid: key.thumbprint(), key, created, last_used: None };
    assert!(verify_proof(text, &expected, &[known]).is_err(), "a proof was made without the key");
}

/// Bodies of requests.
pub fn requests(bytes: &[u8]) {
    if let Ok(open) = serde_json::from_slice::<OpenStream>(bytes) {
        let again = serde_json::to_vec(&open).expect("a request is written");
        assert_eq!(serde_json::from_slice::<OpenStream>(&again).ok(), Some(open));
    }
    drop(serde_json::from_slice::<PutDevice>(bytes));
    if let Some(Ok(key)) = text(bytes).map(PublicKey::from_pem) {
        assert_eq!(PublicKey::from_pem(&key.to_pem()), Ok(key));
    }
}

/// Join strings, and addresses from a relay.
pub fn join(bytes: &[u8]) {
    let Some(text) = text(bytes) else { return };
    if let Ok(join) = text.parse::<Join>() {
        assert_eq!(join.to_string().parse(), Ok(join));
    }
    let dialled: RelayUrl = "https://relay.example.com".parse().expect("an address");
    if let Ok((url, path)) = dialled.resolve(text, None) {
        assert!(url.host() == "relay.example.com" && path.starts_with('/'), "{text:?} leads away");
    }
}

/// PROXY protocol headers: the bytes alone, and after the prefix of each version.
pub fn balancer(bytes: &[u8]) {
    let trusted = TrustedProxies::new(network("127.0.0.0/8").into_iter().collect());
    for beginning in [&b""[..], b"PROXY ", b"\r\n\r\n\0\r\nQUIT\n", b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c"] {
        let all = [beginning, bytes].concat();
        let mut connection = &all[..];
        let read = read_proxy_header(&mut connection, Ipv4Addr::LOCALHOST.into(), &trusted).now_or_never();
        drop(read.expect("everything that arrives is available"));
    }
}

/// The relay's configuration.
pub fn relay_config(bytes: &[u8]) {
    drop(text(bytes).map(moorline_relay::config::file::File::from_toml));
}

/// The agent's configuration.
pub fn agent_config(bytes: &[u8]) {
    drop(text(bytes).map(moorline_agent::config::file::File::from_toml));
}
