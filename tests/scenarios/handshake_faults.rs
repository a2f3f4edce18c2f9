//! Every fault in every state of the control channel and of the handshake, next to an open stream that must not be affected.

use std::time::Duration;

use futures_util::SinkExt;
use moorline_proto::names::{CONTROL, CONTROL_SUBPROTOCOL};
use moorline_proto::problem::ProblemCode;
use moorline_tests::faulty_pipe::{Fault, FaultyPipe};
use moorline_tests::memory::{HOST, INSTANCE, MemoryWorld};
use moorline_tests::unauthenticated_peer::opcode::{FIN, PING, TEXT};
use moorline_tests::unauthenticated_peer::{frame, header, upgrade_request};
use moorline_tests::wire::{Persona, WireDevice, WireLeg, bearer};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::time::{Instant, sleep, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

/// A relay with a healthy device and a healthy stream that keep responding.
struct Scene {
    world: MemoryWorld,
    healthy: (WireDevice<DuplexStream>, WireLeg<DuplexStream>, WireLeg<DuplexStream>),
}

impl Scene {
    async fn start() -> Self {
        let world = MemoryWorld::start().await;
        let mut device = world.device("healthy-1").await;
        let (caller, device_leg) = world.stream(&mut device, "healthy-1").await;
        Self { world, healthy: (device, caller, device_leg) }
    }

    /// Runs `work` next to the healthy peers. Within `leaves_nothing_within` after it, nothing else may be left in the relay.
    async fn alongside<T>(&mut self, case: &str, leaves_nothing_within: Duration, work: impl AsyncFnOnce(&MemoryWorld) -> T) {
        let Self { world, healthy: (device, caller, device_leg) } = self;
        let scenario = async {
            // What the faulty peer still holds.
            let held = work(world).await;
            let gone =
                world.until(case, |relay| relay.tasks().values().sum::<usize>() == 2 && relay.devices() == 1 && relay.streams() == 1);
            assert!(
                timeout(leaves_nothing_within, gone).await.is_ok(),
                "{case}: {:?} and {} streams are left",
                world.relay.tasks(),
                world.relay.streams()
            );
            drop(held);
        };
        tokio::select! {
            () = scenario => {}
            message = device.next() => panic!("{case}: the healthy device gets {message:?}"),
            event = caller.next() => panic!("{case}: the healthy caller gets {event:?}"),
            event = device_leg.next() => panic!("{case}: the healthy leg gets {event:?}"),
        }
        caller.send_bytes("untouched").await;
        assert_eq!(device_leg.bytes(9).await, b"untouched", "{case}");
    }
}

/// The progress of a control channel before its device misbehaves: what it has sent, and the seconds until it is closed.
fn steps() -> [(&'static str, Vec<u8>, u64); 5] {
    let head = upgrade_request(HOST, CONTROL, CONTROL_SUBPROTOCOL, "");
    let hello = [&header(FIN | TEXT, 700), &br#"{"type":"hello","device":"lamp-1","#[..]].concat();
    let more = [head.as_bytes(), &frame(TEXT, br#"{"type":"hello""#)].concat();
    [
        ("connected", Vec::new(), 60),
        ("half a request sent", head.as_bytes()[..50].to_vec(), 10),
        // Ten seconds for `hello`, five for the answer to the Close.
        ("challenged", head.clone().into_bytes(), 15),
        ("half a frame of hello", [head.as_bytes(), &hello].concat(), 15),
        ("half a message of hello", more, 15),
    ]
}

#[tokio::test(start_paused = true)]
async fn an_unauthenticated_peer_that_stalls_is_closed_by_its_deadline() {
    let mut scene = Scene::start().await;
    for (state, sent, deadline) in steps() {
        // It stalls and reads nothing.
        let stalls = async |world: &MemoryWorld| {
            let mut pipe = world.dial();
            pipe.write_all(&sent).await.unwrap();
            pipe
        };
        scene.alongside(&format!("{state}, stalled"), Duration::from_secs(deadline + 1), stalls).await;
        // It disconnects.
        let leaves = async |world: &MemoryWorld| {
            let mut pipe = world.dial();
            pipe.write_all(&sent).await.unwrap();
            sleep(Duration::from_secs(1)).await;
        };
        scene.alongside(&format!("{state}, cut"), Duration::from_millis(200), leaves).await;
        // It sends one byte a second, which is too slow.
        let trickles = async |world: &MemoryWorld| {
            let (mut reads, mut writes) = tokio::io::split(world.dial());
            writes.write_all(&sent).await.unwrap();
            let begun = Instant::now();
            let trickle = async {
                for byte in upgrade_request(HOST, CONTROL, CONTROL_SUBPROTOCOL, "").bytes().skip(sent.len()).chain([b' '; 3_600]) {
                    writes.write_all(&[byte]).await.ok();
                    sleep(Duration::from_secs(1)).await;
                }
            };
            let mut received = Vec::new();
            tokio::select! {
                ended = reads.read_to_end(&mut received) => drop(ended),
                () = trickle => panic!("{state}: never closed"),
            }
            assert!(begun.elapsed() <= Duration::from_secs(16), "{state}, a byte a second: {:?}", begun.elapsed());
        };
        scene.alongside(&format!("{state}, a byte a second"), Duration::from_secs(6), trickles).await;
        if sent.ends_with(b"\r\n\r\n") {
            // It pings and never reads.
            let never_reads = async |world: &MemoryWorld| {
                let mut pipe = world.dial();
                pipe.write_all(&sent).await.unwrap();
                for _ in 0..9 {
                    pipe.write_all(&frame(FIN | PING, b"")).await.ok();
                    sleep(Duration::from_secs(1)).await;
                }
                pipe
            };
            scene.alongside(&format!("{state}, never reads"), Duration::from_secs(deadline + 1), never_reads).await;
        }
    }
}

async fn device(world: &MemoryWorld) -> (WireDevice<FaultyPipe>, moorline_tests::faulty_pipe::FaultSwitch) {
    let (pipe, switch) = FaultyPipe::new(world.dial());
    let device = "lamp-1".parse().unwrap();
    let key = world.key(&device).await;
    let instance = INSTANCE.parse().unwrap();
    let persona = Persona { device, key: &key, instance, services: &["ssh"], host: HOST, features: &[] };
    (WireDevice::connect(pipe, &persona).await.expect("the device is authenticated"), switch)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Misbehavior {
    Stalls,
    NeverReads,
    Cut,
}

/// The progress of a handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Welcomed,
    Offered,
    Accepted,
    DeviceJoined,
}

/// A problem, and after how many seconds.
type Expected = Option<(ProblemCode, u64)>;

/// What the caller gets when the control channel fails, after how many seconds; and within how many seconds nothing is left.
const CHANNEL: [(State, Misbehavior, Expected, u64); 9] = [
    // Two and a half heartbeats.
    (State::Welcomed, Misbehavior::Stalls, None, 63),
    (State::Welcomed, Misbehavior::Cut, None, 0),
    (State::Offered, Misbehavior::Stalls, Some((ProblemCode::DeviceUnresponsive, 10)), 6),
    // Its pings keep it alive, but it does not answer the offer.
    (State::Offered, Misbehavior::NeverReads, Some((ProblemCode::HandshakeTimeout, 60)), 60),
    (State::Offered, Misbehavior::Cut, Some((ProblemCode::DeviceUnresponsive, 0)), 6),
    (State::Accepted, Misbehavior::Stalls, Some((ProblemCode::HandshakeTimeout, 60)), 10),
    (State::Accepted, Misbehavior::NeverReads, Some((ProblemCode::HandshakeTimeout, 60)), 70),
    (State::Accepted, Misbehavior::Cut, Some((ProblemCode::HandshakeTimeout, 60)), 6),
    (State::DeviceJoined, Misbehavior::Cut, Some((ProblemCode::DeviceUnresponsive, 0)), 6),
];

#[tokio::test(start_paused = true)]
async fn a_control_channel_that_fails_during_a_handshake_is_reported_to_the_caller_in_time() {
    let mut scene = Scene::start().await;
    for (state, how, expected, gone) in CHANNEL {
        let case = format!("the control channel {how:?} when {state:?}");
        let play = async |world: &MemoryWorld| {
            let (mut device, switch) = device(world).await;
            let mut caller = None;
            let mut leg = None;
            if state != State::Welcomed {
                caller = Some(world.connect("lamp-1", "ssh", &[]).await.unwrap());
                let offer = device.offer().await;
                match state {
                    State::Accepted => device.accept(offer.stream).await,
                    State::DeviceJoined => leg = world.join(offer.url.as_str(), &offer.token).await.ok(),
                    State::Welcomed | State::Offered => {}
                }
                // Waits until what was sent has arrived.
                sleep(Duration::from_millis(1)).await;
            }
            let begun = Instant::now();
            let mut held = Some(device);
            match how {
                Misbehavior::Stalls => switch.set(Fault::Stalled),
                Misbehavior::NeverReads => switch.set(Fault::NeverReads),
                Misbehavior::Cut => held = None,
            }
            if let (Some(caller), Some((code, after))) = (&mut caller, expected) {
                let problem = tokio::select! {
                    problem = caller.refused() => problem,
                    () = pings(held.as_mut().map(|device| &mut device.socket), how) => unreachable!("never ends"),
                };
                assert_eq!((problem.known_code(), begun.elapsed().as_secs_f64().round() as u64), (Some(code), after), "{case}");
            }
            drop((caller, leg));
            held
        };
        scene.alongside(&case, Duration::from_secs(gone) + Duration::from_millis(200), play).await;
    }
}

/// A caller's or a device's leg that fails before `opened`: what the other side gets, and within how many seconds nothing is left.
#[tokio::test(start_paused = true)]
async fn a_leg_that_fails_before_opened_costs_at_most_the_deadline() {
    let mut scene = Scene::start().await;
    for (caller_is_faulty, how, gone) in [
        // Refused at the deadline, it does not answer the Close.
        (true, Misbehavior::Stalls, 66),
        (true, Misbehavior::NeverReads, 66),
        (true, Misbehavior::Cut, 1),
        // The caller is refused at the deadline; the leg does not answer its own Close.
        (false, Misbehavior::Stalls, 66),
        (false, Misbehavior::NeverReads, 66),
        // It may rejoin until the deadline.
        (false, Misbehavior::Cut, 61),
    ] {
        let case = format!("the {} {how:?} before opened", if caller_is_faulty { "caller" } else { "device's leg" });
        let play = async |world: &MemoryWorld| {
            let mut device = world.device("lamp-1").await;
            let (pipe, switch) = FaultyPipe::new(world.dial());
            let begun = Instant::now();
            let token = bearer(&world.token());
            let path = "/v1/devices/lamp-1/connect/ssh";
            let (mut caller, mut faulty);
            if caller_is_faulty {
                caller = None;
                faulty = WireLeg::join(pipe, HOST, path, &[("authorization", &token)]).await.ok();
                device.offer().await;
            } else {
                caller = world.connect("lamp-1", "ssh", &[]).await.ok();
                let offer = device.offer().await;
                let token = bearer(&offer.token);
                faulty = WireLeg::join(pipe, HOST, offer.url.as_str(), &[("authorization", &token)]).await.ok();
            }
            assert!(faulty.is_some(), "{case}");
            match how {
                Misbehavior::Stalls => switch.set(Fault::Stalled),
                Misbehavior::NeverReads => switch.set(Fault::NeverReads),
                Misbehavior::Cut => faulty = None,
            }
            let message = tokio::select! {
                message = device.next() => message,
                () = pings(faulty.as_mut().map(|leg| &mut leg.socket), how) => unreachable!("never ends"),
            };
            assert!(matches!(message, Ok(moorline_proto::control::ToDevice::Cancel(_))), "{case}: {message:?}");
            if let Some(mut caller) = caller.take() {
                assert_eq!(caller.refused().await.known_code(), Some(ProblemCode::HandshakeTimeout), "{case}");
            }
            drop(device);
            world.until(&case, |relay| relay.tasks().values().sum::<usize>() == 2 && relay.streams() == 1).await;
            assert!(begun.elapsed() <= Duration::from_secs(gone), "{case}: gone after {:?}", begun.elapsed());
        };
        scene.alongside(&case, Duration::from_secs(1), play).await;
    }
}

/// Sends pings and never reads, if that is the misbehavior.
async fn pings(mut faulty: Option<&mut WebSocketStream<FaultyPipe>>, how: Misbehavior) {
    loop {
        sleep(Duration::from_secs(5)).await;
        if let (Some(faulty), Misbehavior::NeverReads) = (&mut faulty, how) {
            faulty.send(Message::Ping(Vec::new().into())).await.ok();
        }
    }
}

/// One byte every two milliseconds on all three connections, from the first byte to the last.
#[tokio::test(start_paused = true)]
async fn a_stream_works_with_one_byte_at_a_time_on_every_connection() {
    let world = MemoryWorld::start().await;
    let pause = Duration::from_millis(2);
    let mut switches = Vec::new();
    let mut trickling = || {
        let (pipe, switch) = FaultyPipe::new(world.dial());
        // The scripted peers treat a trickling HTTP response as an attack, so their reads trickle only later.
        switch.set(Fault::TrickleSent(pause));
        switches.push(switch);
        pipe
    };
    let id = "lamp-1".parse().unwrap();
    let key = world.key(&id).await;
    let instance = INSTANCE.parse().unwrap();
    let persona = Persona { device: id, key: &key, instance, services: &["ssh"], host: HOST, features: &[] };
    let mut device = WireDevice::connect(trickling(), &persona).await.expect("its hello arrives within ten seconds");
    let token = bearer(&world.token());
    let mut caller =
        WireLeg::join(trickling(), HOST, "/v1/devices/lamp-1/connect/ssh", &[("authorization", &token)]).await.expect("it is allowed");
    let offer = device.offer().await;
    device.accept(offer.stream).await;
    let token = bearer(&offer.token);
    let mut device_leg = WireLeg::join(trickling(), HOST, offer.url.as_str(), &[("authorization", &token)]).await.expect("its token joins");
    caller.opened().await;
    device_leg.opened().await;
    switches.iter().for_each(|switch| switch.set(Fault::Trickle(pause)));
    let (_, received) = tokio::join!(caller.send_bytes(vec![7; 3_000]), device_leg.bytes(3_000));
    assert_eq!(received, vec![7; 3_000]);
    caller.end().await;
    device_leg.end().await;
    assert_eq!(tokio::join!(caller.closed(), device_leg.closed()), (1000, 1000));
}
