//! Short streams with patterns of their own, most of which are whole and some of which are dropped, refused or cancelled: what each is to do, and what
//! was seen of it. No byte of one may be in another, no end may look like another one, and no byte may reach two targets.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rand::RngExt;
use rand::rngs::SmallRng;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, split};
use tokio::time::Instant;

use crate::patterns::pattern;

/// What the device sends has the pattern of the stream's number and this.
const FROM_DEVICE: u64 = 1 << 40;
/// The longest that either side sends: a few batches.
const MOST: usize = 40_000;
/// The size of [`Plan::encode`].
pub const PLAN_BYTES: usize = 32;

/// What happens to a stream besides its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
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
}

/// What a stream is to do, as its caller tells the device.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Its number.
    pub number: u64,
    /// What happens to it.
    pub outcome: Outcome,
    /// Bytes of the caller.
    pub to_device: usize,
    /// Bytes of the device.
    pub to_caller: usize,
}

impl Plan {
    /// Draws a plan. Most streams are whole, so that legs are used again.
    pub fn draw(number: u64, random: &mut SmallRng) -> Self {
        let mut size = || if random.random_range(0..4) == 0 { random.random_range(0..MOST) } else { random.random_range(0..300) };
        let (to_device, to_caller) = (size(), size());
        let outcome = if random.random_range(0..10) < 7 { Outcome::Whole } else { Outcome::ALL[random.random_range(1..5)] };
        Self { number, outcome, to_device, to_caller }
    }

    /// As bytes.
    pub fn encode(self) -> [u8; PLAN_BYTES] {
        let outcome = Outcome::ALL.iter().position(|outcome| *outcome == self.outcome).expect("it is one of them");
        let words = [self.number, outcome as u64, self.to_device as u64, self.to_caller as u64];
        let bytes: Vec<u8> = words.into_iter().flat_map(u64::to_be_bytes).collect();
        bytes.try_into().expect("four words")
    }

    /// From bytes. None if they are no plan, so that some came from elsewhere.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let words: Vec<u64> = bytes.chunks_exact(8).map(|word| u64::from_be_bytes(word.try_into().expect("eight bytes"))).collect();
        let &[number, outcome, to_device, to_caller] = words.as_slice() else { return None };
        let size = |word: u64| usize::try_from(word).ok().filter(|size| *size < MOST);
        let outcome = *Outcome::ALL.get(usize::try_from(outcome).ok()?)?;
        Some(Self { number, outcome, to_device: size(to_device)?, to_caller: size(to_caller)? })
    }

    /// The caller's bytes from this one on.
    pub fn caller_bytes(self, from: usize) -> Vec<u8> {
        pattern(self.number, from as u64, self.to_device - from)
    }
}

/// How a side shows that it is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CutShows {
    /// As an error, as in TCP.
    AsError,
    /// As an end, as in a pipe of memory.
    AsEnd,
}

/// What was seen.
#[derive(Debug, Default)]
pub struct Tally {
    /// Streams that were whole for their callers.
    pub whole: AtomicUsize,
    wrong: Mutex<Vec<String>>,
    /// How many bytes of a stream arrived at a target.
    arrived: Mutex<HashMap<u64, usize>>,
    /// Streams whose callers know that the device has everything.
    finished: Mutex<Vec<Plan>>,
    /// Streams whose bytes reached a second target, and when.
    twice: Mutex<Vec<(Plan, Instant)>>,
    /// When streams began, and from when to when the relay was started again.
    begun: Mutex<HashMap<u64, Instant>>,
    restarts: Mutex<Vec<(Instant, Instant)>>,
}

impl Tally {
    /// Something is wrong.
    pub fn wrong(&self, what: String) {
        lock(&self.wrong).push(what);
    }

    /// All that was wrong, once both sides of all streams are over.
    pub fn all_wrong(&self) -> Vec<String> {
        let (mut wrong, arrived) = (lock(&self.wrong).clone(), lock(&self.arrived));
        for plan in lock(&self.finished).iter() {
            let arrived = arrived.get(&plan.number).copied().unwrap_or_default();
            if arrived != plan.to_device {
                wrong.push(format!("{plan:?}: finished, and {arrived} bytes arrived"));
            }
        }
        let (begun, restarts) = (lock(&self.begun), lock(&self.restarts));
        for (plan, at) in lock(&self.twice).iter() {
            let since = begun.get(&plan.number);
            let was_restarted = since.is_some_and(|since| restarts.iter().any(|(from, to)| since <= to && from <= at));
            if !was_restarted {
                wrong.push(format!("{plan:?}: its bytes reached two targets"));
            }
        }
        wrong
    }

    /// A stream is finished for its caller, who knows then that the device has everything.
    pub fn finished(&self, plan: Plan) {
        lock(&self.finished).push(plan);
    }

    /// The relay was started again, from this moment on: it does not know the keys from before, so that a stream that is asked for once more is a
    /// new one.
    pub fn relay_restarted(&self, from: Instant) {
        lock(&self.restarts).push((from, Instant::now()));
    }

    /// A stream begins.
    pub fn begins(&self, plan: Plan) {
        lock(&self.begun).insert(plan.number, Instant::now());
    }

    /// A target has received so much of a stream, and no more will come.
    fn arrived(&self, plan: Plan, count: usize) {
        if count > 0 && lock(&self.arrived).insert(plan.number, count).is_some() {
            lock(&self.twice).push((plan, Instant::now()));
        }
    }

    /// The device's side of a stream.
    pub async fn device_side(&self, stream: impl AsyncRead + AsyncWrite, plan: Plan, cut: CutShows) {
        let (mut reads, mut writes) = split(stream);
        let seed = FROM_DEVICE + plan.number;
        if plan.outcome == Outcome::DeviceDrops {
            send(&mut writes, &pattern(seed, 0, plan.to_caller / 2), Then::GoesOn).await;
            return;
        }
        let sent = pattern(seed, 0, plan.to_caller);
        let reading = async {
            let mut all = Vec::new();
            let has_ended = reads.read_to_end(&mut all).await.is_ok();
            self.arrived(plan, all.len());
            self.check(&all, plan.number, plan);
            has_ended.then_some(all.len())
        };
        let (was_sent, came) = tokio::join!(send(&mut writes, &sent, Then::Ends), reading);
        // The system shows a reset once: to whoever writes, or to whoever reads.
        let came = came.filter(|_| was_sent);
        if cut == CutShows::AsError && came.is_some_and(|came| plan.outcome != Outcome::Whole || came != plan.to_device) {
            self.wrong(format!("{plan:?}: {came:?} bytes look whole to the device"));
        }
    }

    /// The caller's side of a stream that is opened, of which `sent` bytes were sent before. Whether it was whole.
    pub async fn caller_side(&self, stream: &mut (impl AsyncRead + AsyncWrite + Unpin), plan: Plan, sent: usize, cut: CutShows) -> bool {
        let (mut reads, mut writes) = split(stream);
        if plan.outcome == Outcome::CallerDrops {
            send(&mut writes, &plan.caller_bytes(sent)[..(plan.to_device - sent) / 2], Then::GoesOn).await;
            return false;
        }
        let bytes = plan.caller_bytes(sent);
        let reading = async {
            let mut all = Vec::new();
            let has_ended = reads.read_to_end(&mut all).await.is_ok();
            self.check(&all, FROM_DEVICE + plan.number, plan);
            has_ended.then_some(all.len())
        };
        let (was_sent, came) = tokio::join!(send(&mut writes, &bytes, Then::Ends), reading);
        let came = came.filter(|_| was_sent); // as on the device's side
        let is_whole = plan.outcome == Outcome::Whole && came == Some(plan.to_caller);
        // A drop of the device's side of a pipe is an end.
        let may_end = plan.outcome == Outcome::DeviceDrops && cut == CutShows::AsEnd;
        if came.is_some() && !is_whole && !may_end {
            self.wrong(format!("{plan:?}: {came:?} bytes look whole to the caller"));
        }
        is_whole
    }

    /// All bytes must be those of the pattern.
    fn check(&self, all: &[u8], seed: u64, plan: Plan) {
        if all != pattern(seed, 0, all.len()) {
            self.wrong(format!("{plan:?}: bytes of another stream among {}", all.len()));
        }
    }

    /// Counts a stream that was whole for its caller.
    pub fn count_whole(&self) {
        self.whole.fetch_add(1, Ordering::Relaxed);
    }
}

/// What a side does behind its bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Then {
    Ends,
    GoesOn,
}

async fn send(to: &mut (impl AsyncWrite + Unpin), bytes: &[u8], then: Then) -> bool {
    to.write_all(bytes).await.is_ok() && (then == Then::GoesOn || to.shutdown().await.is_ok())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
