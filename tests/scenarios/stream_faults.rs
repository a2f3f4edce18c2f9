//! Every fault in every state of an open stream: a table of which end misbehaves, how and when; what the healthy end gets; and that nothing is left.

use std::ops::RangeInclusive;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use moorline_tests::faulty_pipe::{Fault, FaultSwitch, FaultyPipe};
use moorline_tests::memory::{HOST, MemoryWorld};
use moorline_tests::wire::{LegEvent, WireDevice, WireLeg, bearer};
use tokio::io::DuplexStream;
use tokio::time::{Instant, sleep, timeout};
use tokio_tungstenite::tungstenite::Message;

type Leg = WireLeg<FaultyPipe>;

/// The state of the stream when one end begins to misbehave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Idle,
    /// The healthy end sends continuously.
    BusyToFaulty,
    /// The faulty end has been sending.
    BusyFromFaulty,
    FaultyEnded,
    HealthyEnded,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Misbehavior {
    /// Nothing passes in either direction.
    Stalls,
    /// It stops reading and continues to send pings.
    NeverReads,
    /// It continues, one byte at a time.
    Trickles,
    /// Its connection is lost.
    Cut,
}

/// What the healthy end must get.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Expected {
    /// This close code, after this many seconds.
    Close(u16, RangeInclusive<u64>),
    /// Nothing for an hour, because a slow end is not a lost one. Then the healthy end disconnects.
    Nothing,
    /// Everything, and a clean end.
    Everything,
}

const STATES: [State; 5] = [State::Idle, State::BusyToFaulty, State::BusyFromFaulty, State::FaultyEnded, State::HealthyEnded];
const MISBEHAVIORS: [Misbehavior; 4] = [Misbehavior::Stalls, Misbehavior::NeverReads, Misbehavior::Trickles, Misbehavior::Cut];

fn expected(state: State, how: Misbehavior) -> Expected {
    let lost = |after| Expected::Close(4002, after);
    // The healthy end owes its `end` since up to a minute before the fault.
    let idle = Expected::Close(4003, 540..=600);
    match (how, state) {
        (Misbehavior::Cut, State::BusyToFaulty | State::BusyFromFaulty) => lost(0..=1),
        (Misbehavior::Cut, _) => lost(0..=0),
        (Misbehavior::Trickles, _) => Expected::Everything,
        // It answered every ping and has no unread bytes: it is lost after two silent intervals.
        (Misbehavior::Stalls, State::Idle | State::BusyFromFaulty | State::FaultyEnded) => lost(25..=77),
        // It has unread bytes, so silence proves nothing; the half-closed timeout applies.
        (Misbehavior::Stalls, State::HealthyEnded) => idle,
        (Misbehavior::NeverReads, State::FaultyEnded) => idle,
        (Misbehavior::Stalls | Misbehavior::NeverReads, State::BusyToFaulty) => Expected::Nothing,
        // Any frame but an answer to a ping is a sign of life.
        (Misbehavior::NeverReads, State::Idle | State::BusyFromFaulty | State::HealthyEnded) => Expected::Nothing,
    }
}

struct Scene {
    world: MemoryWorld,
    device: WireDevice<DuplexStream>,
    faulty: Leg,
    switch: FaultSwitch,
    healthy: Leg,
}

impl Scene {
    /// An open stream.
    async fn start(faulty_is_caller: bool) -> Self {
        let world = MemoryWorld::start().await;
        let mut device = world.device("lamp-1").await;
        let (caller_pipe, caller_switch) = FaultyPipe::new(world.dial());
        let (device_pipe, device_switch) = FaultyPipe::new(world.dial());
        let token = bearer(&world.token());
        let path = "/v1/devices/lamp-1/connect/ssh";
        let mut caller = WireLeg::join(caller_pipe, HOST, path, &[("authorization", &token)]).await.unwrap();
        let offer = device.offer().await;
        device.accept(offer.stream).await;
        let token = bearer(&offer.token);
        let mut device_leg = WireLeg::join(device_pipe, HOST, offer.url.as_str(), &[("authorization", &token)]).await.unwrap();
        caller.opened().await;
        device_leg.opened().await;
        let (faulty, switch, healthy) =
            if faulty_is_caller { (caller, caller_switch, device_leg) } else { (device_leg, device_switch, caller) };
        let mut scene = Self { world, device, faulty, switch, healthy };
        scene.idle().await;
        scene
    }

    /// A minute in which both ends answer pings, so that the relay knows that they have everything that it sent.
    async fn idle(&mut self) {
        let Self { device, faulty, healthy, .. } = self;
        tokio::select! {
            () = sleep(Duration::from_secs(60)) => {}
            message = device.next() => panic!("{message:?}"),
            event = faulty.next() => panic!("{event:?}"),
            event = healthy.next() => panic!("{event:?}"),
        }
    }

    async fn reach(&mut self, state: State) {
        match state {
            State::Idle | State::BusyToFaulty => {}
            State::BusyFromFaulty => {
                for _ in 0..20 {
                    let (_, received) = tokio::join!(self.faulty.send_bytes(vec![7; 10_000]), self.healthy.bytes(10_000));
                    assert_eq!(received.len(), 10_000);
                }
            }
            State::FaultyEnded => {
                self.faulty.end().await;
                self.healthy.ended().await;
                assert_eq!(self.faulty.next().await, LegEvent::Delivered);
                self.idle().await;
            }
            State::HealthyEnded => {
                self.healthy.end().await;
                self.faulty.ended().await;
            }
        }
    }
}

/// Asserts that no task and no entry of the stream is left, although the faulty end still holds its connection.
async fn nothing_is_left(world: &MemoryWorld, device: &mut WireDevice<DuplexStream>, within: Duration, case: &str) {
    let gone = world.until(case, |relay| relay.streams() == 0 && relay.tasks().keys().all(|name| *name == "control"));
    tokio::select! {
        gone = timeout(within, gone) => assert!(gone.is_ok(), "{case}: after {within:?} there are still {:?}", world.relay.tasks()),
        message = device.next() => panic!("{case}: the device gets {message:?}"),
    }
    assert_eq!(world.relay.devices(), 1, "{case}: the device stays online");
}

/// Sends pings and never reads.
async fn pings(faulty: &mut Leg) {
    loop {
        sleep(Duration::from_secs(20)).await;
        if timeout(Duration::from_secs(1), faulty.socket.send(Message::Ping(Vec::new().into()))).await.is_ok_and(|sent| sent.is_err()) {
            std::future::pending::<()>().await;
        }
    }
}

/// Runs the healthy end until it is closed, and returns the code. In a busy state it also sends as much as it can.
async fn until_closed(healthy: &mut Leg, state: State) -> u16 {
    if state != State::BusyToFaulty {
        return healthy.closed().await;
    }
    let (mut sends, mut reads) = (&mut healthy.socket).split();
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
        () = busy => unreachable!("the stream is never closed"),
    }
}

async fn play(faulty_is_caller: bool, state: State, how: Misbehavior) {
    let case = format!("the {} {how:?} when {state:?}", if faulty_is_caller { "caller" } else { "device" });
    let expected = expected(state, how);
    let mut scene = Scene::start(faulty_is_caller).await;
    scene.reach(state).await;
    let begun = Instant::now();
    let faulty = match how {
        Misbehavior::Trickles => return trickle(scene, state, &case).await,
        Misbehavior::Stalls => {
            scene.switch.set(Fault::Stalled);
            Some(&mut scene.faulty)
        }
        Misbehavior::NeverReads => {
            scene.switch.set(Fault::NeverReads);
            Some(&mut scene.faulty)
        }
        Misbehavior::Cut => {
            let (other, _) = FaultyPipe::new(tokio::io::duplex(1).0);
            let other =
                tokio_tungstenite::WebSocketStream::from_raw_socket(other, tokio_tungstenite::tungstenite::protocol::Role::Client, None);
            drop(std::mem::replace(&mut scene.faulty.socket, other.await));
            None
        }
    };
    let lives = async {
        match faulty {
            Some(faulty) if how == Misbehavior::NeverReads => pings(faulty).await,
            Some(_) | None => std::future::pending().await,
        }
    };
    let close_code = tokio::select! {
        code = timeout(Duration::from_secs(3_600), until_closed(&mut scene.healthy, state)) => code.ok(),
        () = lives => unreachable!("the stream is never closed"),
        message = scene.device.next() => panic!("{case}: the device gets {message:?}"),
    };
    let after = begun.elapsed().as_secs();
    match (expected, close_code) {
        (Expected::Close(expected, within), Some(code)) => {
            assert!(code == expected && within.contains(&after), "{case}: {code} after {after} s instead of {expected} in {within:?}");
            nothing_is_left(&scene.world, &mut scene.device, Duration::from_secs(11), &case).await;
        }
        (Expected::Nothing, None) => {
            // The healthy end disconnects; the relay removes the rest after one ping interval at the latest.
            let Scene { world, mut device, healthy, faulty, .. } = scene;
            drop(healthy);
            nothing_is_left(&world, &mut device, Duration::from_secs(60), &case).await;
            drop(faulty);
        }
        (expected, close_code) => panic!("{case}: {close_code:?} after {after} s instead of {expected:?}"),
    }
}

/// Everything in flight arrives, and the end is clean.
async fn trickle(mut scene: Scene, state: State, case: &str) {
    const BYTES: usize = 1_500;
    scene.switch.set(Fault::Trickle(Duration::from_millis(20)));
    let exchange = async |leg: &mut Leg, sends: bool, receives: bool| {
        if sends {
            leg.send_bytes(vec![7; BYTES]).await;
            leg.end().await;
        }
        if receives {
            assert_eq!(leg.bytes(BYTES).await, vec![7; BYTES]);
            leg.ended().await;
        }
        let code = leg.closed().await;
        assert_eq!(leg.next().await, LegEvent::Lost, "then the connection ends");
        code
    };
    let (faulty_sends, healthy_sends) = (state != State::FaultyEnded, state != State::HealthyEnded);
    let Scene { device, faulty, healthy, .. } = &mut scene;
    let both = async { tokio::join!(exchange(faulty, faulty_sends, healthy_sends), exchange(healthy, healthy_sends, faulty_sends)) };
    let codes = tokio::select! {
        codes = both => codes,
        message = device.next() => panic!("{case}: the device gets {message:?}"),
    };
    assert_eq!(codes, (1000, 1000), "{case}");
    nothing_is_left(&scene.world, &mut scene.device, Duration::from_secs(6), case).await;
}

#[tokio::test(start_paused = true)]
async fn every_fault_in_every_stream_state_is_reported_to_the_other_end_and_leaves_nothing() {
    for faulty_is_caller in [true, false] {
        for state in STATES {
            for how in MISBEHAVIORS {
                play(faulty_is_caller, state, how).await;
            }
        }
    }
}
