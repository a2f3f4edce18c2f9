//! Every bad road against every state of an open stream. Table: who misbehaves, how, when; what the honest end hears, and that nothing is left.

use std::ops::RangeInclusive;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use moorline_tests::memory::{HOST, MemoryWorld};
use moorline_tests::rough::{Road, Rough, Turn};
use moorline_tests::wire::{Said, WireDevice, WireLeg, bearer};
use tokio::io::DuplexStream;
use tokio::time::{Instant, sleep, timeout};
use tokio_tungstenite::tungstenite::Message;

type Leg = WireLeg<Rough>;

/// What is going on when one end begins to misbehave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Idle,
    /// The honest end sends without a pause.
    BusyToGuilty,
    /// The guilty one did.
    BusyFromGuilty,
    GuiltyEnded,
    HonestEnded,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Manner {
    /// Nothing comes from it and nothing goes to it.
    Stalls,
    /// It reads nothing more, and pings as if all were well.
    NeverReads,
    /// It goes on, a byte at a time.
    Dribbles,
    /// Its connection is gone.
    Cut,
}

/// What the honest end is to hear.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Hears {
    /// This close code, so many seconds after.
    Close(u16, RangeInclusive<u64>),
    /// Nothing for an hour: a slow end is not a dead one. Then the honest one gives up.
    Nothing,
    /// Everything, and a good end.
    Everything,
}

const STATES: [State; 5] = [State::Idle, State::BusyToGuilty, State::BusyFromGuilty, State::GuiltyEnded, State::HonestEnded];
const MANNERS: [Manner; 4] = [Manner::Stalls, Manner::NeverReads, Manner::Dribbles, Manner::Cut];

fn hears(state: State, manner: Manner) -> Hears {
    let lost = |after| Hears::Close(4002, after);
    let idle = Hears::Close(4003, 600..=600);
    match (manner, state) {
        (Manner::Cut, State::BusyToGuilty | State::BusyFromGuilty) => lost(0..=1),
        (Manner::Cut, _) => lost(0..=0),
        (Manner::Dribbles, _) => Hears::Everything,
        // It answered every ping and owes nothing: two intervals of silence are its end.
        (Manner::Stalls, State::Idle | State::BusyFromGuilty | State::GuiltyEnded) => lost(25..=77),
        // It has not read what was sent since: no silence proves anything, but half-closed and silent is over some day.
        (Manner::Stalls, State::HonestEnded) => idle,
        // Any frame counts as life.
        (Manner::NeverReads, State::GuiltyEnded | State::HonestEnded) => idle,
        (Manner::Stalls | Manner::NeverReads, State::BusyToGuilty) => Hears::Nothing,
        (Manner::NeverReads, State::Idle | State::BusyFromGuilty) => Hears::Nothing,
    }
}

struct Scene {
    world: MemoryWorld,
    device: WireDevice<DuplexStream>,
    guilty: Leg,
    turn: Turn,
    honest: Leg,
}

impl Scene {
    /// An open stream whose ends have both answered pings for a minute.
    async fn start(guilty_is_caller: bool) -> Self {
        let world = MemoryWorld::start().await;
        let mut device = world.device("lamp-1").await;
        let (caller_pipe, caller_turn) = Rough::new(world.dial());
        let (device_pipe, device_turn) = Rough::new(world.dial());
        let token = bearer(&world.token());
        let path = "/v1/devices/lamp-1/connect/ssh";
        let mut caller = WireLeg::join(caller_pipe, HOST, path, &[("authorization", &token)]).await.unwrap();
        let offer = device.offer().await;
        device.accept(offer.stream).await;
        let token = bearer(&offer.token);
        let mut far = WireLeg::join(device_pipe, HOST, offer.url.as_str(), &[("authorization", &token)]).await.unwrap();
        caller.opened().await;
        far.opened().await;
        let (guilty, turn, honest) = if guilty_is_caller { (caller, caller_turn, far) } else { (far, device_turn, caller) };
        let mut scene = Self { world, device, guilty, turn, honest };
        let Self { device, guilty, honest, .. } = &mut scene;
        tokio::select! {
            () = sleep(Duration::from_secs(60)) => {}
            said = device.next() => panic!("{said:?}"),
            said = guilty.next() => panic!("{said:?}"),
            said = honest.next() => panic!("{said:?}"),
        }
        scene
    }

    async fn comes_to(&mut self, state: State) {
        match state {
            State::Idle | State::BusyToGuilty => {}
            State::BusyFromGuilty => {
                for _ in 0..20 {
                    let (_, heard) = tokio::join!(self.guilty.say(vec![7; 10_000]), self.honest.bytes(10_000));
                    assert_eq!(heard.len(), 10_000);
                }
            }
            State::GuiltyEnded => {
                self.guilty.end().await;
                assert_eq!(self.honest.next().await, Said::End);
            }
            State::HonestEnded => {
                self.honest.end().await;
                assert_eq!(self.guilty.next().await, Said::End);
            }
        }
    }
}

/// Nothing of the stream is left, no task and no entry, though the guilty end still holds what it has.
async fn nothing_is_left(world: &MemoryWorld, device: &mut WireDevice<DuplexStream>, within: Duration, case: &str) {
    let gone = async {
        while world.relay.streams() > 0 || world.relay.tasks().keys().any(|name| *name != "control") {
            sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::select! {
        gone = timeout(within, gone) => assert!(gone.is_ok(), "{case}: after {within:?} there are still {:?}", world.relay.tasks()),
        said = device.next() => panic!("{case}: the device hears {said:?}"),
    }
    assert_eq!(world.relay.devices(), 1, "{case}: the device is another matter");
}

/// Pings without ever reading.
async fn pings(guilty: &mut Leg) {
    loop {
        sleep(Duration::from_secs(20)).await;
        if timeout(Duration::from_secs(1), guilty.socket.send(Message::Ping(Vec::new().into()))).await.is_ok_and(|sent| sent.is_err()) {
            std::future::pending::<()>().await;
        }
    }
}

/// The honest end, until it is closed: the code. Where it is busy, it sends as long as it may, and reads meanwhile.
async fn until_closed(honest: &mut Leg, state: State) -> u16 {
    if state != State::BusyToGuilty {
        return honest.closed().await;
    }
    let (mut sends, mut reads) = (&mut honest.socket).split();
    let busy = async {
        while sends.send(Message::binary(vec![7; 10_000])).await.is_ok() {
            sleep(Duration::from_millis(1)).await;
        }
        std::future::pending::<()>().await;
    };
    let closed = async {
        loop {
            match reads.next().await {
                Some(Ok(Message::Close(Some(frame)))) => return frame.code.into(),
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return 1006,
            }
        }
    };
    tokio::select! {
        code = closed => code,
        () = busy => unreachable!("it goes on for ever"),
    }
}

async fn play(guilty_is_caller: bool, state: State, manner: Manner) {
    let case = format!("the {} {manner:?} when {state:?}", if guilty_is_caller { "caller" } else { "device" });
    let expected = hears(state, manner);
    let mut scene = Scene::start(guilty_is_caller).await;
    scene.comes_to(state).await;
    let begun = Instant::now();
    let guilty = match manner {
        Manner::Dribbles => return dribble(scene, state, &case).await,
        Manner::Stalls => {
            scene.turn.to(Road::Stalled);
            Some(&mut scene.guilty)
        }
        Manner::NeverReads => {
            scene.turn.to(Road::Deaf);
            Some(&mut scene.guilty)
        }
        Manner::Cut => {
            let (other, _) = Rough::new(tokio::io::duplex(1).0);
            let other =
                tokio_tungstenite::WebSocketStream::from_raw_socket(other, tokio_tungstenite::tungstenite::protocol::Role::Client, None);
            drop(std::mem::replace(&mut scene.guilty.socket, other.await));
            None
        }
    };
    let lives = async {
        match guilty {
            Some(guilty) if manner == Manner::NeverReads => pings(guilty).await,
            Some(_) | None => std::future::pending().await,
        }
    };
    let heard = tokio::select! {
        code = timeout(Duration::from_secs(3_600), until_closed(&mut scene.honest, state)) => code.ok(),
        () = lives => unreachable!("it pings for ever"),
        said = scene.device.next() => panic!("{case}: the device hears {said:?}"),
    };
    let after = begun.elapsed().as_secs();
    match (expected, heard) {
        (Hears::Close(expected, within), Some(code)) => {
            assert!(code == expected && within.contains(&after), "{case}: {code} after {after} s instead of {expected} in {within:?}");
            nothing_is_left(&scene.world, &mut scene.device, Duration::from_secs(11), &case).await;
        }
        (Hears::Nothing, None) => {
            // The honest one gives up: what is left of the stream then is the relay's to put away, a ping later at the latest.
            let Scene { world, mut device, honest, guilty, .. } = scene;
            drop(honest);
            nothing_is_left(&world, &mut device, Duration::from_secs(60), &case).await;
            drop(guilty);
        }
        (expected, heard) => panic!("{case}: {heard:?} after {after} s instead of {expected:?}"),
    }
}

/// Whatever was going on, all of it arrives, and the end is a good one.
async fn dribble(mut scene: Scene, state: State, case: &str) {
    const BYTES: usize = 1_500;
    scene.turn.to(Road::Crumbs(Duration::from_millis(20)));
    let talk = async |leg: &mut Leg, says: bool, hears: bool| {
        if says {
            leg.say(vec![7; BYTES]).await;
            leg.end().await;
        }
        if hears {
            assert_eq!(leg.bytes(BYTES).await, vec![7; BYTES]);
            assert_eq!(leg.next().await, Said::End);
        }
        let code = leg.closed().await;
        assert_eq!(leg.next().await, Said::Lost, "its answer goes a byte at a time as well");
        code
    };
    let (guilty_says, honest_says) = (state != State::GuiltyEnded, state != State::HonestEnded);
    let Scene { device, guilty, honest, .. } = &mut scene;
    let both = async { tokio::join!(talk(guilty, guilty_says, honest_says), talk(honest, honest_says, guilty_says)) };
    let codes = tokio::select! {
        codes = both => codes,
        said = device.next() => panic!("{case}: the device hears {said:?}"),
    };
    assert_eq!(codes, (1000, 1000), "{case}");
    nothing_is_left(&scene.world, &mut scene.device, Duration::from_secs(6), case).await;
}

#[tokio::test(start_paused = true)]
async fn every_bad_road_in_every_state_of_a_stream_is_told_to_the_honest_end_and_leaves_nothing() {
    for guilty_is_caller in [true, false] {
        for state in STATES {
            for manner in MANNERS {
                play(guilty_is_caller, state, manner).await;
            }
        }
    }
}
