//! No byte of one stream in another: ten thousand short streams over legs that are used again, with patterns of their own, and rejects, cancels and
//! streams that either side drops in the middle mixed in at random; and any sequence of messages on such legs.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use moorline::{Client, Data};
use moorline_agent::{Accepted, Decision, OfferInfo, RejectCode};
use moorline_tests::memory::MemoryWorld;
use moorline_tests::patterns::pattern;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, split};
use tokio::time::timeout;

const STREAMS: u64 = 10_000;
/// Callers that open one stream after the other.
const CALLERS: u64 = 16;
const FROM_DEVICE: u64 = 1 << 40;
/// The longest that either side sends: a few batches.
const MOST: usize = 40_000;

/// What happens to a stream besides its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// Both sides send and end.
    Whole,
    /// The caller drops it in the middle.
    CallerDrops,
    /// The device drops it in the middle.
    DeviceDrops,
    /// The device rejects it.
    Rejected,
    /// The caller gives up while it is opened.
    Cancelled,
}

impl Outcome {
    const ALL: [Self; 5] = [Self::Whole, Self::CallerDrops, Self::DeviceDrops, Self::Rejected, Self::Cancelled];

    /// Most streams are whole, so that legs are used again.
    fn draw(random: &mut SmallRng) -> Self {
        if random.random_range(0..10) < 7 { Self::Whole } else { Self::ALL[random.random_range(1..5)] }
    }
}

/// What a stream is to do, as its caller tells the device in the offer's data.
#[derive(Clone, Copy, Debug)]
struct Plan {
    number: u64,
    outcome: Outcome,
    to_device: usize,
    to_caller: usize,
}

impl Plan {
    fn draw(number: u64, random: &mut SmallRng) -> Self {
        let mut size = || if random.random_range(0..4) == 0 { random.random_range(0..MOST) } else { random.random_range(0..300) };
        let (to_device, to_caller) = (size(), size());
        Self { number, outcome: Outcome::draw(random), to_device, to_caller }
    }

    fn encode(self) -> Vec<u8> {
        let outcome = Outcome::ALL.iter().position(|outcome| *outcome == self.outcome).expect("it is one of them") as u64;
        [self.number, outcome, self.to_device as u64, self.to_caller as u64].into_iter().flat_map(u64::to_be_bytes).collect()
    }

    fn decode(bytes: &[u8]) -> Self {
        let words: Vec<u64> = bytes.chunks(8).map(|word| u64::from_be_bytes(word.try_into().expect("eight bytes"))).collect();
        let size = |word: u64| usize::try_from(word).expect("a size");
        Self { number: words[0], outcome: Outcome::ALL[size(words[1])], to_device: size(words[2]), to_caller: size(words[3]) }
    }
}

/// What was seen.
#[derive(Debug, Default)]
struct Tally {
    whole: AtomicUsize,
    wrong: Mutex<Vec<String>>,
}

impl Tally {
    fn wrong(&self, what: String) {
        self.wrong.lock().expect("the lock is not poisoned").push(what);
    }
}

/// Sends `count` bytes of a pattern and ends.
async fn send(to: &mut (impl AsyncWrite + Unpin), seed: u64, count: usize) -> bool {
    to.write_all(&pattern(seed, 0, count)).await.is_ok() && to.shutdown().await.is_ok()
}

/// Reads to the end, and returns how many bytes came, all of which must be those of the pattern.
async fn check(tally: &Tally, of: &mut (impl AsyncRead + Unpin), seed: u64, plan: Plan) -> Option<usize> {
    let mut all = Vec::new();
    let ended = of.read_to_end(&mut all).await.is_ok();
    if all != pattern(seed, 0, all.len()) {
        tally.wrong(format!("{plan:?}: bytes of another stream among {}", all.len()));
    }
    ended.then_some(all.len())
}

/// The device decides as the plan has it.
fn decide(tally: Arc<Tally>, offer: &OfferInfo) -> Decision {
    let plan = Plan::decode(offer.data.as_ref().expect("the caller's plan").as_bytes());
    if plan.outcome == Outcome::Rejected {
        return Decision::reject(RejectCode::Policy, "as planned");
    }
    let (local, remote) = tokio::io::duplex(3_001);
    tokio::spawn(device_side(tally, remote, plan));
    Decision::Accept(Accepted::stream(local))
}

async fn device_side(tally: Arc<Tally>, stream: DuplexStream, plan: Plan) {
    let (mut reads, mut writes) = split(stream);
    if plan.outcome == Outcome::DeviceDrops {
        send(&mut writes, FROM_DEVICE + plan.number, plan.to_caller / 2).await;
        return;
    }
    let (_, came) =
        tokio::join!(send(&mut writes, FROM_DEVICE + plan.number, plan.to_caller), check(&tally, &mut reads, plan.number, plan));
    if plan.outcome == Outcome::Whole && came.is_some_and(|came| came != plan.to_device) {
        tally.wrong(format!("{plan:?}: a part that looks whole, {came:?} bytes"));
    }
}

async fn caller_side(tally: &Tally, client: &Client, plan: Plan, patience: Duration) {
    let open = client.open(&"lamp-1".parse().expect("a device"), &"data".parse().expect("a service"));
    let open = open.data(Data::new(plan.encode()).expect("the plan is short")).wait(Duration::from_secs(60));
    if plan.outcome == Outcome::Cancelled {
        drop(timeout(patience, open).await);
        return;
    }
    let Ok(stream) = open.await else { return };
    if plan.outcome == Outcome::Rejected {
        return tally.wrong(format!("{plan:?}: opened"));
    }
    let (mut reads, mut writes) = split(stream);
    if plan.outcome == Outcome::CallerDrops {
        drop(writes.write_all(&pattern(plan.number, 0, plan.to_device / 2)).await);
        return;
    }
    let (sent, came) =
        tokio::join!(send(&mut writes, plan.number, plan.to_device), check(tally, &mut reads, FROM_DEVICE + plan.number, plan));
    reads.unsplit(writes).finish().await;
    if plan.outcome == Outcome::Whole && sent && came == Some(plan.to_caller) {
        tally.whole.fetch_add(1, Ordering::Relaxed);
    }
}

#[tokio::test(start_paused = true)]
async fn ten_thousand_short_streams_over_reused_legs_are_intact() {
    let seed = rand::random::<u64>();
    println!("seed {seed}");
    let world = MemoryWorld::start().await;
    let tally = Arc::new(Tally::default());
    let of_device = Arc::clone(&tally);
    let agent = world
        .agent("lamp-1", &["data"], move |offer: OfferInfo| {
            let tally = Arc::clone(&of_device);
            async move { decide(tally, &offer) }
        })
        .await;
    let client = world.client();
    let scenario = async {
        let callers = (0..CALLERS).map(|caller| {
            let (client, tally) = (client.clone(), Arc::clone(&tally));
            let mut random = SmallRng::seed_from_u64(seed ^ caller);
            async move {
                for number in (caller..STREAMS).step_by(usize::try_from(CALLERS).expect("few")) {
                    let plan = Plan::draw(number, &mut random);
                    let patience = Duration::from_micros(random.random_range(0..3_000));
                    caller_side(&tally, &client, plan, patience).await;
                }
            }
        });
        futures_util::future::join_all(callers).await;
    };
    tokio::select! {
        () = agent.run(std::future::pending()) => panic!("the agent stopped"),
        () = scenario => {}
    }
    assert_eq!(*tally.wrong.lock().unwrap(), Vec::<String>::new(), "seed {seed}");
    let (whole, dialled) = (tally.whole.load(Ordering::Relaxed), world.dialled());
    println!("{whole} of {STREAMS} whole, {dialled} connections");
    assert!(whole > 6_000, "{whole} whole, seed {seed}");
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
