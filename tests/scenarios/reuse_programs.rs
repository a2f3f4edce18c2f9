//! No byte of one stream in another, through the real programs: short streams over legs that are used again, with patterns of their own, through one
//! `forward` and one agent. At random, either side resets a stream or the caller gives up while it is opened, and the networks, the agent and the
//! relay are cut, frozen, ended and started again. Every connection shows how its stream ended.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use moorline_tests::link::{self, Chance, CutKind, Link};
use moorline_tests::short_streams::{CutShows, Outcome, PLAN_BYTES, Plan, Tally};
use moorline_tests::targets::Target;
use moorline_tests::world::{Device, SCALED, World};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

/// Local programs that open one connection after the other.
const CALLERS: u64 = 12;
/// The most streams of the scenario, which ends with the last event.
const STREAMS: u64 = 3_000;
/// What happens to many streams at once.
const EVENTS: u64 = 20;
/// From one event to the next, at most.
const EVENT_WITHIN_MS: u64 = 700;
/// Longer than the client waits for a device, for the deadline and for the relay: 20 s.
const WITHIN: Duration = Duration::from_secs(40);

/// The service: the first bytes say what is planned.
async fn serve(tally: Arc<Tally>, mut tcp: TcpStream) {
    let mut header = [0; PLAN_BYTES];
    // Without it, the caller was cut before.
    if tcp.read_exact(&mut header).await.is_err() {
        return;
    }
    let Some(plan) = Plan::decode(&header) else { return tally.wrong(format!("no plan: {header:02x?}")) };
    if plan.outcome == Outcome::DeviceDrops {
        tcp.set_zero_linger().expect("a socket of this machine");
    }
    tally.device_side(tcp, plan, CutShows::AsError).await;
}

/// A local program that opens a stream. Whether that was whole.
async fn call(tally: &Tally, local: SocketAddr, refusing: SocketAddr, plan: Plan, patience: Duration) -> bool {
    let to = if plan.outcome == Outcome::Rejected { refusing } else { local };
    let mut tcp = match TcpStream::connect(to).await {
        Ok(tcp) => tcp,
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::ConnectionReset, "the forward listens");
            return false; // there was no stream before this side looked
        }
    };
    if matches!(plan.outcome, Outcome::CallerDrops | Outcome::Cancelled) {
        tcp.set_zero_linger().expect("a socket of this machine");
    }
    if tcp.write_all(&plan.encode()).await.is_err() {
        return false; // it was reset already
    }
    if plan.outcome == Outcome::Cancelled {
        sleep(patience).await; // real time: the stream is somewhere on its way
        return false;
    }
    tally.caller_side(&mut tcp, plan, 0, CutShows::AsError).await
}

/// What happens to many streams at once, one event after the other.
async fn disturb(world: &mut World, device: &mut Device, to_device: &Link, to_caller: &Link, tally: &Tally, mut random: SmallRng) {
    for event in 0..EVENTS {
        sleep(Duration::from_millis(random.random_range(0..EVENT_WITHIN_MS))).await; // real time: streams are at work
        let kind = if random.random() { CutKind::Reset } else { CutKind::End };
        // Each of them comes about, whatever is drawn.
        let event = if event < 8 { event } else { random.random_range(1..8) };
        match event {
            // Once: a request that hangs on a new connection waits for all the time that it has.
            0 => to_caller.freeze_open(),
            1 => to_device.freeze_open(),
            2 | 3 => to_device.cut_open(kind),
            4 | 5 => to_caller.cut_open(kind),
            6 => {
                device.agent.signal(if random.random() { "TERM" } else { "KILL" });
                device.agent.ended().await;
                *device = world.agent(&device.folder).await;
            }
            _ => {
                let from = Instant::now();
                world.restart_by(if random.random() { "TERM" } else { "KILL" }).await;
                tally.relay_restarted(from);
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn short_streams_through_the_programs_are_intact_and_end_truthfully_whatever_happens() {
    let (seed, tally) = (Chance::new().seed(), Arc::new(Tally::default()));
    // A device's leg that hangs with bytes under way proves nothing until a side owes its end for too long.
    let mut world = World::start_with(&SCALED.replace("half_closed_idle = '60s'", "half_closed_idle = '5s'")).await;
    let of_target = Arc::clone(&tally);
    let target = Target::start(move |tcp| serve(Arc::clone(&of_target), tcp)).await;
    let nobody = tokio::net::TcpSocket::new_v4().expect("a socket");
    nobody.bind("127.0.0.1:0".parse().expect("an address")).expect("a free port");
    let services = [("data", target.address), ("nobody", nobody.local_addr().expect("it is bound"))];
    let network = async || Link::start(world.address, |_| link::Plan::default()).await;
    let (to_device, to_caller) = (network().await, network().await);
    let mut device = world.device_with("warm_legs = 2\n", to_device.address.port(), "lamp-1", &services).await;
    let client = world.client_by(to_caller.address.port()).await;
    let forward = World::forward_with(&["--wait", "5s", "--deadline", "5s"], client, "lamp-1", &["data", "nobody"]).await;
    let (local, refusing) = (forward.local[0], forward.local[1]);

    let (mut callers, next) = (JoinSet::new(), Arc::new(AtomicU64::new(0)));
    for caller in 0..CALLERS {
        let (tally, next, mut random) = (Arc::clone(&tally), Arc::clone(&next), SmallRng::seed_from_u64(seed ^ caller));
        callers.spawn(async move {
            while let number @ 0..STREAMS = next.fetch_add(1, Ordering::Relaxed) {
                let plan = Plan::draw(number, &mut random);
                let patience = Duration::from_micros(random.random_range(0..20_000));
                tally.begins(plan);
                match timeout(WITHIN, call(&tally, local, refusing, plan, patience)).await {
                    Ok(true) => tally.count_whole(),
                    Ok(false) => sleep(5 * patience).await, // real time: what is refused at once must not take all the numbers
                    Err(_) => tally.wrong(format!("{plan:?}: it hangs")),
                }
            }
        });
    }
    disturb(&mut world, &mut device, &to_device, &to_caller, &tally, SmallRng::seed_from_u64(seed ^ CALLERS)).await;
    let begun = next.fetch_max(STREAMS, Ordering::Relaxed).min(STREAMS);
    callers.join_all().await;
    let wrong = tally.all_wrong();
    assert!(wrong.is_empty(), "seed {seed}, {} wrong:\n{}", wrong.len(), wrong[..wrong.len().min(20)].join("\n"));
    let (whole, connections) = (tally.whole.load(Ordering::Relaxed), (to_caller.connections(), to_device.connections()));
    println!("{whole} of {begun} whole, {connections:?} connections of caller and device");
    assert!(whole > 40 && connections.1 < whole as u64, "{whole} of {begun} whole, {connections:?} connections");
}
