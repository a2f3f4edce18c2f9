//! No byte of one stream in another: ten thousand short streams over legs that are used again, with patterns of their own, and rejects, cancels,
//! streams that either side drops in the middle, lost connections, agents that are replaced, and relays that leave mixed in at random; and any
//! sequence of messages on such legs.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use moorline::{Client, Data, EndReason};
use moorline_agent::{Accepted, Decision, OfferInfo, RejectCode};
use moorline_tests::link::Chance;
use moorline_tests::memory::MemoryWorld;
use moorline_tests::short_streams::{CutShows, Outcome, Plan, Tally};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use serde_json::Value;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

/// Relays, one after the other. Each leaves while streams are open.
const RELAYS: u64 = 5;
/// Streams through one of them.
const STREAMS: u64 = 2_000;
/// Callers that open one stream after the other.
const CALLERS: u64 = 16;
/// Behind so many streams something happens to all of them.
const EVENT_AFTER: u64 = 60;
/// The relay leaves when so many streams are left.
const LEAVES_BEFORE: u64 = 50;

/// The device decides as the plan has it.
fn decide(tally: Arc<Tally>, offer: &OfferInfo) -> Decision {
    let plan = Plan::decode(offer.data.as_ref().expect("the caller's plan").as_bytes()).expect("a plan");
    if plan.outcome == Outcome::Rejected {
        return Decision::reject(RejectCode::Policy, "as planned");
    }
    let (local, remote) = tokio::io::duplex(3_001);
    tokio::spawn(async move { tally.device_side(remote, plan, CutShows::AsEnd).await });
    Decision::Accept(Accepted::stream(local))
}

async fn caller_side(tally: &Tally, client: &Client, plan: Plan, patience: Duration) {
    let open = client.open(&"lamp-1".parse().expect("a device"), &"data".parse().expect("a service"));
    let open = open.data(Data::new(plan.encode().to_vec()).expect("the plan is short")).wait(Duration::from_secs(60));
    // Some is sent before the stream is open, or nothing.
    let early = if plan.number.is_multiple_of(3) { 0 } else { plan.to_device.min(20_000) / 2 };
    let bytes = plan.caller_bytes(0);
    let mut source = &bytes[..early];
    let open = open.send_from(&mut source);
    if plan.outcome == Outcome::Cancelled {
        drop(timeout(patience, open).await);
        return;
    }
    let Ok(mut stream) = open.await else { return };
    if plan.outcome == Outcome::Rejected {
        return tally.wrong(format!("{plan:?}: opened"));
    }
    let is_whole = tally.caller_side(&mut stream, plan, early - source.len(), CutShows::AsEnd).await;
    if plan.outcome == Outcome::CallerDrops {
        return;
    }
    let end = stream.finish().await;
    if is_whole {
        tally.count_whole();
        if end == EndReason::Finished {
            tally.finished(plan);
        }
    }
}

/// The device, whose agent is replaced by another start of it.
struct Device<'w> {
    world: &'w MemoryWorld,
    tally: Arc<Tally>,
    cuts: watch::Sender<()>,
    running: JoinHandle<()>,
    stop: oneshot::Sender<()>,
}

impl<'w> Device<'w> {
    async fn start(world: &'w MemoryWorld, tally: Arc<Tally>, cuts: watch::Sender<()>) -> Self {
        let of_device = Arc::clone(&tally);
        let handler = move |offer: OfferInfo| {
            let tally = Arc::clone(&of_device);
            async move { decide(tally, &offer) }
        };
        let agent = world.agent_over(world.dialer_cut_by(&cuts), 1, "lamp-1", &["data"], handler).await;
        let (stop, stopped) = oneshot::channel();
        let running = tokio::spawn(agent.run(async { drop(stopped.await) }));
        Self { world, tally, cuts, running, stop }
    }

    async fn again(&self) -> Self {
        Self::start(self.world, Arc::clone(&self.tally), self.cuts.clone()).await
    }

    /// Ends at once, as if it was killed.
    fn kill(self) {
        self.running.abort();
        drop(self.stop);
    }
}

/// What happens to many streams at once, now and then, until the relay leaves.
async fn disturb(mut device: Device<'_>, mut random: SmallRng, to_caller: watch::Sender<()>, mut begun: watch::Receiver<u64>) {
    let (world, to_device) = (device.world, device.cuts.clone());
    for event in 1.. {
        begun.wait_for(|begun| *begun >= event * EVENT_AFTER).await.expect("the sender is here");
        if *begun.borrow() + LEAVES_BEFORE > STREAMS {
            world.relay.drain(Duration::from_secs(60)).await;
            return;
        }
        match random.random_range(0..6) {
            0 => drop(to_device.send(())),
            1 => drop(to_caller.send(())),
            2 => {
                let newer = device.again().await;
                std::mem::replace(&mut device, newer).kill();
            }
            3 => {
                // The newer one supersedes it.
                let newer = device.again().await;
                sleep(Duration::from_millis(3)).await;
                std::mem::replace(&mut device, newer).kill();
            }
            4 => {
                let newer = device.again().await;
                let Device { running, stop, .. } = std::mem::replace(&mut device, newer);
                stop.send(()).ok();
                running.await.expect("the agent does not panic");
            }
            _ => {
                let (_, _, live) = world.request("GET", "/v1/streams", &[], None).await;
                for stream in live["streams"].as_array().map(Vec::as_slice).unwrap_or_default() {
                    let path = format!("/v1/streams/{}", stream["stream"].as_str().expect("an id"));
                    world.request("DELETE", &path, &[], None::<Value>).await;
                }
            }
        }
    }
}

/// Runs the streams of one relay, and returns how many connections they took.
async fn streams_of_one_relay(relay: u64, seed: u64, tally: &Arc<Tally>) -> usize {
    let world = MemoryWorld::start().await;
    let (to_device, to_caller, begun) = (watch::Sender::new(()), watch::Sender::new(()), watch::Sender::new(0));
    let device = Device::start(&world, Arc::clone(tally), to_device).await;
    let client = Client::with_dialer(world.dialer_cut_by(&to_caller), Some(world.token()));
    let callers = (0..CALLERS).map(|caller| {
        let (client, begun) = (&client, &begun);
        let mut random = SmallRng::seed_from_u64(seed ^ (relay << 32 | caller));
        async move {
            for number in (caller..STREAMS).step_by(usize::try_from(CALLERS).expect("few")) {
                let plan = Plan::draw(relay * STREAMS + number, &mut random);
                let patience = Duration::from_micros(random.random_range(0..3_000));
                begun.send_modify(|begun| *begun += 1);
                caller_side(tally, client, plan, patience).await;
            }
        }
    });
    let random = SmallRng::seed_from_u64(seed ^ (relay << 32 | CALLERS));
    let disturbed = disturb(device, random, to_caller.clone(), begun.subscribe());
    tokio::join!(futures_util::future::join_all(callers), disturbed);
    sleep(Duration::from_secs(1)).await; // the devices' sides have read what there is
    world.dialled()
}

#[tokio::test(start_paused = true)]
async fn ten_thousand_short_streams_over_reused_legs_are_intact() {
    let (seed, tally) = (Chance::new().seed(), Arc::new(Tally::default()));
    let mut dialled = 0;
    for relay in 0..RELAYS {
        dialled += streams_of_one_relay(relay, seed, &tally).await;
    }
    assert_eq!(tally.all_wrong(), Vec::<String>::new(), "seed {seed}");
    let whole = tally.whole.load(Ordering::Relaxed);
    println!("{whole} of {} whole, {dialled} connections", RELAYS * STREAMS);
    assert!(whole > 5_000, "{whole} whole, seed {seed}");
}

/// Sequences of messages in and out of their place.
#[test]
fn no_sequence_of_messages_on_reused_legs_mixes_streams() {
    use proptest::collection::vec;
    use proptest::prelude::any;
    use proptest::test_runner::{Config, TestRunner};

    let mut runner = TestRunner::new(Config { cases: 300, failure_persistence: None, ..Config::default() });
    let ran = runner.run(&vec(any::<u8>(), 0..128), |bytes| {
        moorline_tests::leg_sequences::run(&bytes);
        Ok(())
    });
    if let Err(error) = ran {
        panic!("{error}");
    }
    let manifest = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/Cargo.toml")).expect("the fuzz targets");
    assert!(manifest.contains("name = \"reuse\""));
}
