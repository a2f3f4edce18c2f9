//! Invalid WebSocket frames over TLS to the real relay: each is answered with the documented code, the other side of a leg is reset, and
//! another stream is not affected.

use std::time::Duration;

use futures_util::StreamExt;
use moorline_proto::close::CloseReason;
use moorline_proto::names::{CONTROL, CONTROL_SUBPROTOCOL};
use moorline_relay::access::mint::SigningKey;
use moorline_tests::unauthenticated_peer::opcode::{BINARY, CLOSE, CONTINUATION, FIN, PING, PONG, TEXT};
use moorline_tests::unauthenticated_peer::{frame, header};
use moorline_tests::wire::{LegEvent, WireDevice, WireLeg, bearer, upgrade};
use moorline_tests::world::World;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

type Tls = TlsStream<TcpStream>;
type Leg = WireLeg<Tls>;

const WITHIN: Duration = Duration::from_secs(120);
/// The largest message that is allowed anywhere.
const MOST: u64 = 65_536;

/// What a peer sends, and the close codes that it gets.
struct Case {
    what: &'static str,
    sends: Vec<u8>,
    on_leg: u16,
    on_control: u16,
}

const RESERVED_BITS: [u8; 3] = [0x40, 0x20, 0x10];
const RESERVED_OPCODES: [u8; 10] = [3, 4, 5, 6, 7, 11, 12, 13, 14, 15];

fn close_frame(code: u16) -> Vec<u8> {
    frame(FIN | CLOSE, &code.to_be_bytes())
}

fn fragments(begin: u8, count: usize, each: &[u8]) -> Vec<u8> {
    let more = std::iter::repeat_with(|| frame(CONTINUATION, each));
    std::iter::once(frame(begin, each)).chain(more).take(count).flatten().collect()
}

/// Violations of WebSocket itself and of the allowed sizes and kinds of messages.
fn cases() -> Vec<Case> {
    let (framing, utf8, big, protocol) =
        (CloseReason::Framing.code(), CloseReason::BadUtf8.code(), CloseReason::TooBig.code(), CloseReason::Protocol.code());
    let mut cases = Vec::new();
    // A control channel closes all of it with 4400; a leg uses WebSocket's own codes.
    let mut case = |what, on_leg, sends| cases.push(Case { what, sends, on_leg, on_control: protocol });
    case("a header that claims 2^63 bytes", big, header(FIN | BINARY, 1 << 63));
    case("a header that claims all there can be", big, header(FIN | TEXT, u64::MAX));
    case("a header that claims a byte too much", big, header(FIN | BINARY, MOST + 1));
    case("a ping that claims 2^63 bytes", big, header(FIN | PING, 1 << 63));
    case("a message a byte too long, in two frames", big, [frame(BINARY, &[7; MOST as usize]), frame(FIN | CONTINUATION, &[7])].concat());
    case("a message that never ends, a byte in each frame", big, fragments(BINARY, MOST as usize + 1, &[7]));
    case("text that never ends, a byte in each frame", big, fragments(TEXT, MOST as usize + 1, b"x"));
    case("a message that never ends and has nothing in it", protocol, fragments(BINARY, 250_000, &[]));
    let between = [frame(CONTINUATION, &[]).repeat(9), frame(FIN | PONG, b"alive")].concat();
    case("the same with pongs between", protocol, [frame(BINARY, &[]), between.repeat(25_000)].concat());
    case("a frame that is not masked", framing, vec![FIN | BINARY, 1, 7]);
    case("a frame that is not masked and empty", framing, vec![FIN | PING, 0]);
    for bit in RESERVED_BITS {
        case("a reserved bit", framing, frame(FIN | bit | BINARY, &[7]));
        case("a reserved bit on a ping", framing, frame(FIN | bit | PING, &[7]));
    }
    for opcode in RESERVED_OPCODES {
        case("a reserved opcode", framing, frame(FIN | opcode, &[7]));
    }
    case("a ping in fragments", framing, frame(PING, &[7]));
    case("a Close in fragments", framing, frame(CLOSE, &1000_u16.to_be_bytes()));
    case("a ping of 126 bytes", framing, frame(FIN | PING, &[7; 126]));
    case("a continuation of nothing", framing, frame(FIN | CONTINUATION, &[7]));
    case("a message inside another", framing, [frame(BINARY, &[7]), frame(FIN | BINARY, &[7])].concat());
    case("text that is no UTF-8", utf8, frame(FIN | TEXT, b"\xc3\x28"));
    case("fragments of text that are no UTF-8", utf8, [frame(TEXT, b"{\xc3"), frame(FIN | CONTINUATION, b"\x28}")].concat());
    case("half a character", utf8, frame(FIN | TEXT, b"\xc3"));
    case("a Close whose reason is no UTF-8", utf8, frame(FIN | CLOSE, b"\x03\xe8\xc3\x28"));
    case("text where there should be JSON", protocol, frame(FIN | TEXT, b"hello world"));
    case("JSON without a type", protocol, frame(FIN | TEXT, b"[]"));
    case("a Close of one byte", framing, frame(FIN | CLOSE, &[3]));
    // The WebSocket library answers these by itself.
    for code in [0, 999, 1004, 1005, 1006, 1014, 1015, 1016, 2999, 5000] {
        cases.push(Case { what: "a Close with a code that none may have", sends: close_frame(code), on_leg: framing, on_control: framing });
    }
    cases
}

async fn sends(socket: &mut WebSocketStream<Tls>, bytes: &[u8]) {
    // The relay may close before it has read everything.
    let sent = async {
        socket.get_mut().write_all(bytes).await?;
        socket.get_mut().flush().await
    };
    sent.await.ok();
}

/// Waits for the Close: its code and reason; 1006 if the connection ends without one.
async fn closed(socket: &mut WebSocketStream<Tls>) -> (u16, String) {
    let read = async {
        loop {
            match socket.next().await {
                Some(Ok(Message::Close(Some(frame)))) => return (frame.code.into(), frame.reason.to_string()),
                Some(Ok(Message::Close(None))) => return (1005, String::new()),
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return (1006, String::new()),
            }
        }
    };
    timeout(WITHIN, read).await.expect("the relay closes it")
}

/// A relay with a healthy stream, which is checked after each case, and a device that misbehaves.
struct Scene {
    world: World,
    device: WireDevice<Tls>,
    key: SigningKey,
    healthy: (Leg, Leg),
    _healthy_device: WireDevice<Tls>,
}

impl Scene {
    async fn start() -> Self {
        let world = World::start().await;
        let mut healthy_device = world.wire_device("healthy-1").await;
        let healthy = open(&world, &mut healthy_device, "healthy-1").await;
        let key = SigningKey::generate().expect("a key is generated");
        world.add("lamp-1", key.public().to_pem().as_bytes()).await;
        let device = world.wire_device_by("lamp-1", &key).await;
        Self { world, device, key, healthy, _healthy_device: healthy_device }
    }

    async fn open(&mut self) -> (Leg, Leg) {
        open(&self.world, &mut self.device, "lamp-1").await
    }

    async fn healthy_stream_still_works(&mut self) {
        let (caller, device) = &mut self.healthy;
        caller.send_bytes("to the device").await;
        assert_eq!(device.bytes(13).await, b"to the device");
        device.send_bytes("to the caller").await;
        assert_eq!(caller.bytes(13).await, b"to the caller");
    }
}

async fn connect(world: &World, device: &str) -> Leg {
    let path = format!("/v1/devices/{device}/connect/ssh");
    let headers = [("authorization", &*bearer(&world.token()))];
    WireLeg::join(world.dial().await, "localhost", &path, &headers).await.expect("nothing refuses the stream")
}

async fn open(world: &World, device: &mut WireDevice<Tls>, id: &str) -> (Leg, Leg) {
    let mut caller = connect(world, id).await;
    let offer = device.offer().await;
    device.accept(offer.stream).await;
    let mut device_leg = world.join(offer.url.as_str(), &offer.token).await;
    caller.opened().await;
    device_leg.opened().await;
    (caller, device_leg)
}

fn named(what: &str, (code, reason): &(u16, String), expected: u16) {
    assert_eq!(*code, expected, "{what}: {reason}");
    let name = CloseReason::from_code(expected).expect("it is one of the protocol's").name();
    assert!(reason.starts_with(name) || reason == "Protocol violation", "{what}: the reason begins with {name}: {reason}");
}

#[tokio::test(flavor = "multi_thread")]
async fn invalid_frames_on_an_open_leg_reset_its_far_side_only() {
    let scenario = async {
        let mut scene = Scene::start().await;
        for (number, case) in cases().into_iter().enumerate() {
            let (caller, device) = scene.open().await;
            let (mut faulty, mut healthy) = if number % 2 == 0 { (caller, device) } else { (device, caller) };
            sends(&mut faulty.socket, &case.sends).await;
            let (closed, healthy) = tokio::join!(closed(&mut faulty.socket), healthy.closed());
            named(case.what, &closed, case.on_leg);
            assert_eq!(healthy, CloseReason::Reset.code(), "{}: the healthy side", case.what);
            scene.healthy_stream_still_works().await;
        }
    };
    timeout(WITHIN, scenario).await.expect("seconds, not minutes");
}

#[tokio::test(flavor = "multi_thread")]
async fn invalid_frames_before_opened_end_the_callers_stream_and_let_the_device_rejoin() {
    let scenario = async {
        let mut scene = Scene::start().await;
        for case in cases() {
            let mut caller = connect(&scene.world, "lamp-1").await;
            let offer = scene.device.offer().await;
            sends(&mut caller.socket, &case.sends).await;
            named(case.what, &closed(&mut caller.socket).await, case.on_leg);
            let message = scene.device.next().await;
            assert!(matches!(message, Ok(moorline_proto::control::ToDevice::Cancel(_))), "{}: {message:?}", case.what);
            assert_eq!(offer.service.as_str(), "ssh");
        }
        for case in cases().into_iter().filter(|case| !case.sends.starts_with(&[FIN | CLOSE])) {
            let mut caller = connect(&scene.world, "lamp-1").await;
            let offer = scene.device.offer().await;
            let mut broken = scene.world.join(offer.url.as_str(), &offer.token).await;
            sends(&mut broken.socket, &case.sends).await;
            named(case.what, &closed(&mut broken.socket).await, case.on_leg);
            scene.device.accept(offer.stream).await;
            let mut again = scene.world.join(offer.url.as_str(), &offer.token).await;
            assert!(matches!(again.next().await, LegEvent::Opened(_)), "{}", case.what);
            caller.opened().await;
        }
        scene.healthy_stream_still_works().await;
    };
    timeout(WITHIN, scenario).await.expect("seconds, not minutes");
}

#[tokio::test(flavor = "multi_thread")]
async fn invalid_frames_on_a_control_channel_close_it_with_a_reason() {
    let scenario = async {
        let mut scene = Scene::start().await;
        let binary = Case { what: "binary", sends: frame(FIN | BINARY, b"x"), on_leg: 0, on_control: CloseReason::Protocol.code() };
        for case in cases().into_iter().chain([binary]) {
            let (mut peer, _) = upgrade(scene.world.dial().await, "localhost", CONTROL, CONTROL_SUBPROTOCOL, &[])
                .await
                .expect("a control channel needs no token");
            sends(&mut peer, &case.sends).await;
            named(case.what, &closed(&mut peer).await, case.on_control);
            sends(&mut scene.device.socket, &case.sends).await;
            named(case.what, &closed(&mut scene.device.socket).await, case.on_control);
            scene.healthy_stream_still_works().await;
            scene.device = scene.world.wire_device_by("lamp-1", &scene.key).await;
        }
    };
    timeout(WITHIN, scenario).await.expect("seconds, not minutes");
}

#[tokio::test(flavor = "multi_thread")]
async fn more_than_a_hundred_pings_a_second_close_any_connection() {
    let scenario = async {
        let mut scene = Scene::start().await;
        let flood = frame(FIN | PING, b"x").repeat(300);
        let protocol = CloseReason::Protocol.code();
        for faulty_is_caller in [true, false] {
            let (caller, device) = scene.open().await;
            let (mut faulty, mut healthy) = if faulty_is_caller { (caller, device) } else { (device, caller) };
            sends(&mut faulty.socket, &flood).await;
            named("a leg", &closed(&mut faulty.socket).await, protocol);
            assert_eq!(healthy.closed().await, CloseReason::Reset.code());
        }
        let (mut peer, _) = upgrade(scene.world.dial().await, "localhost", CONTROL, CONTROL_SUBPROTOCOL, &[])
            .await
            .expect("a control channel needs no token");
        sends(&mut peer, &flood).await;
        named("a peer", &closed(&mut peer).await, protocol);
        sends(&mut scene.device.socket, &flood).await;
        named("a device", &closed(&mut scene.device.socket).await, protocol);
        scene.healthy_stream_still_works().await;
    };
    timeout(WITHIN, scenario).await.expect("seconds, not minutes");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_byte_fragments_and_many_pongs_are_allowed() {
    let scenario = async {
        let mut scene = Scene::start().await;
        let (mut caller, mut device) = scene.open().await;
        let most = MOST as usize;
        let crumbs = [fragments(BINARY, most, &[7]), frame(FIN | CONTINUATION, &[])].concat();
        for _ in 0..3 {
            sends(&mut caller.socket, &crumbs).await;
            assert_eq!(device.bytes(most).await, vec![7; most], "a byte in each frame");
        }
        sends(&mut caller.socket, &frame(FIN | PONG, b"").repeat(200_000)).await;
        sends(&mut scene.device.socket, &frame(FIN | PONG, b"").repeat(200_000)).await;
        caller.send_bytes("still here").await;
        assert_eq!(device.bytes(10).await, b"still here");
        scene.open().await;
    };
    timeout(WITHIN, scenario).await.expect("seconds, not minutes");
}

/// A Close is answered with the same code, before and after authentication.
#[tokio::test(flavor = "multi_thread")]
async fn a_close_of_a_control_channel_is_answered_with_its_code() {
    let scenario = async {
        let mut scene = Scene::start().await;
        for code in [1000, 1001, 4001] {
            let (mut peer, _) = upgrade(scene.world.dial().await, "localhost", CONTROL, CONTROL_SUBPROTOCOL, &[])
                .await
                .expect("a control channel needs no token");
            sends(&mut peer, &close_frame(code)).await;
            assert_eq!(closed(&mut peer).await.0, code, "a peer");
            sends(&mut scene.device.socket, &close_frame(code)).await;
            assert_eq!(closed(&mut scene.device.socket).await.0, code, "a device");
            scene.device = scene.world.wire_device_by("lamp-1", &scene.key).await;
        }
        scene.device.socket.close(None).await.expect("it is sent");
        assert_eq!(closed(&mut scene.device.socket).await.0, 1005, "without a code");
        scene.healthy_stream_still_works().await;
    };
    timeout(WITHIN, scenario).await.expect("seconds, not minutes");
}
