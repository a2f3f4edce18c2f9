//! Every bad road against every state of the control channel and of the handshake, beside an open stream that must not notice. Tables.

use std::time::Duration;

use futures_util::SinkExt;
use moorline_proto::names::{CONTROL, CONTROL_SUBPROTOCOL};
use moorline_proto::problem::ProblemCode;
use moorline_tests::memory::{HOST, INSTANCE, MemoryWorld};
use moorline_tests::rough::{Road, Rough};
use moorline_tests::stranger::first::{FIN, PING, TEXT};
use moorline_tests::stranger::{frame, header, upgrade_request};
use moorline_tests::wire::{Persona, WireDevice, WireLeg, bearer};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::time::{Instant, sleep, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

/// A world with a device and a stream that answer all the time.
struct Scene {
    world: MemoryWorld,
    honest: (WireDevice<DuplexStream>, WireLeg<DuplexStream>, WireLeg<DuplexStream>),
}

impl Scene {
    async fn start() -> Self {
        let world = MemoryWorld::start().await;
        let mut device = world.device("honest-1").await;
        let (caller, far) = world.stream(&mut device, "honest-1").await;
        Self { world, honest: (device, caller, far) }
    }

    /// What happens, while the honest ones do nothing but live; nothing of the rest may be left this long after it.
    async fn beside<T>(&mut self, case: &str, leaves_nothing_within: Duration, work: impl AsyncFnOnce(&MemoryWorld) -> T) {
        let Self { world, honest: (device, caller, far) } = self;
        let scenario = async {
            // What it returns is what the guilty one still holds.
            let held = work(world).await;
            let gone = async {
                while world.relay.tasks().values().sum::<usize>() > 2 || world.relay.devices() > 1 || world.relay.streams() > 1 {
                    sleep(Duration::from_millis(100)).await;
                }
            };
            let left = || format!("{:?}, {} streams", world.relay.tasks(), world.relay.streams());
            timeout(leaves_nothing_within, gone).await.unwrap_or_else(|_| panic!("{case}: {} are left", left()));
            drop(held);
        };
        tokio::select! {
            () = scenario => {}
            said = device.next() => panic!("{case}: the honest device hears {said:?}"),
            said = caller.next() => panic!("{case}: the honest caller hears {said:?}"),
            said = far.next() => panic!("{case}: the honest leg hears {said:?}"),
        }
        caller.say("untouched").await;
        assert_eq!(far.bytes(9).await, b"untouched", "{case}");
    }
}

/// How far a control channel comes before its device misbehaves: what it has sent, and whether it has read what came.
fn steps() -> [(&'static str, Vec<u8>, u64); 5] {
    let head = upgrade_request(HOST, CONTROL, CONTROL_SUBPROTOCOL, "");
    let hello = [&header(FIN | TEXT, 700), &br#"{"type":"hello","device":"lamp-1","#[..]].concat();
    let more = [head.as_bytes(), &frame(TEXT, br#"{"type":"hello""#)].concat();
    [
        ("connected", Vec::new(), 60),
        ("half asked", head.as_bytes()[..50].to_vec(), 10),
        // Ten seconds to its hello, five for the answer to a Close.
        ("challenged", head.clone().into_bytes(), 15),
        ("half a frame of hello", [head.as_bytes(), &hello].concat(), 15),
        ("half a message of hello", more, 15),
    ]
}

#[tokio::test(start_paused = true)]
async fn a_stranger_that_stops_half_way_is_gone_by_its_deadline_and_one_that_leaves_at_once() {
    let mut scene = Scene::start().await;
    for (state, sent, deadline) in steps() {
        // It holds still and reads nothing.
        let stalls = async |world: &MemoryWorld| {
            let mut pipe = world.dial();
            pipe.write_all(&sent).await.unwrap();
            pipe
        };
        scene.beside(&format!("{state}, stalled"), Duration::from_secs(deadline + 1), stalls).await;
        // It leaves.
        let leaves = async |world: &MemoryWorld| {
            let mut pipe = world.dial();
            pipe.write_all(&sent).await.unwrap();
            sleep(Duration::from_secs(1)).await;
        };
        scene.beside(&format!("{state}, cut"), Duration::from_millis(200), leaves).await;
        // It goes on, and a byte a second is not enough.
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
            let mut heard = Vec::new();
            tokio::select! {
                ended = reads.read_to_end(&mut heard) => drop(ended),
                () = trickle => panic!("{state}: for ever"),
            }
            assert!(begun.elapsed() <= Duration::from_secs(16), "{state}, a byte a second: {:?}", begun.elapsed());
        };
        scene.beside(&format!("{state}, a byte a second"), Duration::from_secs(6), trickles).await;
        if sent.ends_with(b"\r\n\r\n") {
            // It never reads, and pings as if all were well.
            let deaf = async |world: &MemoryWorld| {
                let mut pipe = world.dial();
                pipe.write_all(&sent).await.unwrap();
                for _ in 0..9 {
                    pipe.write_all(&frame(FIN | PING, b"")).await.ok();
                    sleep(Duration::from_secs(1)).await;
                }
                pipe
            };
            scene.beside(&format!("{state}, never reads"), Duration::from_secs(deadline + 1), deaf).await;
        }
    }
}

async fn device(world: &MemoryWorld) -> (WireDevice<Rough>, moorline_tests::rough::Turn) {
    let (pipe, turn) = Rough::new(world.dial());
    let device = "lamp-1".parse().unwrap();
    let key = world.key(&device).await;
    let instance = INSTANCE.parse().unwrap();
    let persona = Persona { device, key: &key, instance, services: &["ssh"], host: HOST, features: &[] };
    (WireDevice::come_online(pipe, &persona).await.expect("it is admitted"), turn)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Manner {
    Stalls,
    NeverReads,
    Cut,
}

/// How far a handshake has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Welcomed,
    Offered,
    Accepted,
    DeviceJoined,
}

/// A problem, and after how many seconds.
type Hears = Option<(ProblemCode, u64)>;

/// What the caller hears when the control channel turns bad, and after how many seconds; and by when all is gone.
const CHANNEL: [(State, Manner, Hears, u64); 9] = [
    // Two and a half heartbeats.
    (State::Welcomed, Manner::Stalls, None, 63),
    (State::Welcomed, Manner::Cut, None, 0),
    (State::Offered, Manner::Stalls, Some((ProblemCode::DeviceUnresponsive, 10)), 6),
    // Its pings are frames, so it lives, and does not decide.
    (State::Offered, Manner::NeverReads, Some((ProblemCode::HandshakeTimeout, 60)), 60),
    (State::Offered, Manner::Cut, Some((ProblemCode::DeviceUnresponsive, 0)), 6),
    (State::Accepted, Manner::Stalls, Some((ProblemCode::HandshakeTimeout, 60)), 10),
    (State::Accepted, Manner::NeverReads, Some((ProblemCode::HandshakeTimeout, 60)), 70),
    (State::Accepted, Manner::Cut, Some((ProblemCode::HandshakeTimeout, 60)), 6),
    (State::DeviceJoined, Manner::Cut, Some((ProblemCode::DeviceUnresponsive, 0)), 6),
];

#[tokio::test(start_paused = true)]
async fn a_control_channel_that_turns_bad_in_a_handshake_is_told_to_the_caller_in_time() {
    let mut scene = Scene::start().await;
    for (state, manner, hears, gone) in CHANNEL {
        let case = format!("the control channel {manner:?} when {state:?}");
        let play = async |world: &MemoryWorld| {
            let (mut device, turn) = device(world).await;
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
                // What was said is on its way.
                sleep(Duration::from_millis(1)).await;
            }
            let begun = Instant::now();
            let mut held = Some(device);
            match manner {
                Manner::Stalls => turn.to(Road::Stalled),
                Manner::NeverReads => turn.to(Road::Deaf),
                Manner::Cut => held = None,
            }
            if let (Some(caller), Some((code, after))) = (&mut caller, hears) {
                let problem = tokio::select! {
                    problem = caller.refused() => problem,
                    () = pings(held.as_mut().map(|device| &mut device.socket), manner) => unreachable!("for ever"),
                };
                assert_eq!((problem.known_code(), begun.elapsed().as_secs_f64().round() as u64), (Some(code), after), "{case}");
            }
            drop((caller, leg));
            held
        };
        scene.beside(&case, Duration::from_secs(gone) + Duration::from_millis(200), play).await;
    }
}

/// What becomes of a stream whose caller's or device's leg turns bad before it is open: what the other side hears, and when all is gone.
#[tokio::test(start_paused = true)]
async fn a_leg_that_turns_bad_before_opened_costs_the_deadline_at_most() {
    let mut scene = Scene::start().await;
    for (caller_is_guilty, manner, gone) in [
        // Refused at the deadline, it does not answer the Close.
        (true, Manner::Stalls, 66),
        (true, Manner::NeverReads, 66),
        (true, Manner::Cut, 1),
        // Its other side hears of the deadline; it does not answer its own Close.
        (false, Manner::Stalls, 66),
        (false, Manner::NeverReads, 66),
        // It may come again until the deadline.
        (false, Manner::Cut, 61),
    ] {
        let case = format!("the {} {manner:?} before opened", if caller_is_guilty { "caller" } else { "device's leg" });
        let play = async |world: &MemoryWorld| {
            let mut device = world.device("lamp-1").await;
            let (pipe, turn) = Rough::new(world.dial());
            let begun = Instant::now();
            let token = bearer(&world.token());
            let path = "/v1/devices/lamp-1/connect/ssh";
            let (mut caller, mut guilty);
            if caller_is_guilty {
                caller = None;
                guilty = WireLeg::join(pipe, HOST, path, &[("authorization", &token)]).await.ok();
                device.offer().await;
            } else {
                caller = world.connect("lamp-1", "ssh", &[]).await.ok();
                let offer = device.offer().await;
                let token = bearer(&offer.token);
                guilty = WireLeg::join(pipe, HOST, offer.url.as_str(), &[("authorization", &token)]).await.ok();
            }
            assert!(guilty.is_some(), "{case}");
            match manner {
                Manner::Stalls => turn.to(Road::Stalled),
                Manner::NeverReads => turn.to(Road::Deaf),
                Manner::Cut => guilty = None,
            }
            let told = tokio::select! {
                told = device.next() => told,
                () = pings(guilty.as_mut().map(|leg| &mut leg.socket), manner) => unreachable!("for ever"),
            };
            assert!(matches!(told, Ok(moorline_proto::control::ToDevice::Cancel(_))), "{case}: {told:?}");
            if let Some(mut caller) = caller.take() {
                assert_eq!(caller.refused().await.known_code(), Some(ProblemCode::HandshakeTimeout), "{case}");
            }
            drop(device);
            while world.relay.tasks().values().sum::<usize>() > 2 || world.relay.streams() > 1 {
                sleep(Duration::from_millis(100)).await;
            }
            assert!(begun.elapsed() <= Duration::from_secs(gone), "{case}: gone after {:?}", begun.elapsed());
        };
        scene.beside(&case, Duration::from_secs(1), play).await;
    }
}

/// Sends pings and never reads, where that is the manner.
async fn pings(mut guilty: Option<&mut WebSocketStream<Rough>>, manner: Manner) {
    loop {
        sleep(Duration::from_secs(5)).await;
        if let (Some(guilty), Manner::NeverReads) = (&mut guilty, manner) {
            guilty.send(Message::Ping(Vec::new().into())).await.ok();
        }
    }
}

/// A byte every two milliseconds, on all three roads, from the first byte to the last.
#[tokio::test(start_paused = true)]
async fn a_byte_at_a_time_carries_every_state_from_the_challenge_to_the_end() {
    let world = MemoryWorld::start().await;
    let pause = Duration::from_millis(2);
    let mut turns = Vec::new();
    let mut crumbs = || {
        let (pipe, turn) = Rough::new(world.dial());
        // The scripted ends take an answer in crumbs for an attack: what they hear crumbles once they are through.
        turn.to(Road::CrumbsSent(pause));
        turns.push(turn);
        pipe
    };
    let id = "lamp-1".parse().unwrap();
    let key = world.key(&id).await;
    let instance = INSTANCE.parse().unwrap();
    let persona = Persona { device: id, key: &key, instance, services: &["ssh"], host: HOST, features: &[] };
    let mut device = WireDevice::come_online(crumbs(), &persona).await.expect("its hello comes in ten seconds");
    let token = bearer(&world.token());
    let mut caller =
        WireLeg::join(crumbs(), HOST, "/v1/devices/lamp-1/connect/ssh", &[("authorization", &token)]).await.expect("it is allowed");
    let offer = device.offer().await;
    device.accept(offer.stream).await;
    let token = bearer(&offer.token);
    let mut far = WireLeg::join(crumbs(), HOST, offer.url.as_str(), &[("authorization", &token)]).await.expect("its token joins");
    caller.opened().await;
    far.opened().await;
    turns.iter().for_each(|turn| turn.to(Road::Crumbs(pause)));
    let (_, heard) = tokio::join!(caller.say(vec![7; 3_000]), far.bytes(3_000));
    assert_eq!(heard, vec![7; 3_000]);
    caller.end().await;
    far.end().await;
    assert_eq!(tokio::join!(caller.closed(), far.closed()), (1000, 1000));
}
