//! The idle legs of one client and its present token: kept by the relay for the next streams, the most recently used first.
//!
//! ```text
//!   a finished stream ── put ─▶ ┌──────┐ ── take ─▶ the next stream
//!   a refused one ─── reclaim ─▶│ Idle │
//!   ready.rs ────────── put ──▶ └──────┘ ─▶ closed: 64 are there, its time is over, the token was renewed, the client was dropped
//! ```
//!
//! One task polls all of them, so that pings are answered and a leg that the relay closed leaves at once. It and the legs end with the pool.
//!
//! Does not own: how a stream is asked for ([`crate::leg_request`]), legs that are opened idle ([`crate::ready`]).

use std::future::{pending, poll_fn};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use moorline_proto::bounds::{self, CLOSE_TIMEOUT};
use moorline_proto::secret::Secret;
use moorline_transport::leg::{IdleLeg, Leg};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, Sleep, sleep_until, timeout};
use tracing::debug;

/// The most idle legs that the relay keeps for a caller.
pub(crate) const MAX_IDLE_LEGS: usize = bounds::IDLE_LEGS as usize;
/// A leg is not used in the last moments before the relay closes it: the Close could cross the request. Of a short time the last quarter.
const LAST_MOMENTS: Duration = Duration::from_secs(2);

/// The idle legs of a client.
#[derive(Debug)]
pub(crate) struct Pool {
    idle: Arc<Idle>,
    max: usize,
    tasks: Mutex<Tasks>,
}

/// Aborted when the pool is dropped.
#[derive(Debug, Default)]
struct Tasks {
    watch: JoinSet<()>,
    /// One for each refused leg that waits for the relay's `idle`.
    reclaim: JoinSet<()>,
}

/// What the pool and its task share.
#[derive(Debug)]
struct Idle {
    /// The client's token. A leg of another one is not kept.
    token: watch::Receiver<Option<Secret>>,
    legs: Mutex<Legs>,
    /// How many there are.
    count: watch::Sender<usize>,
}

#[derive(Debug, Default)]
struct Legs {
    /// Whose legs these are.
    token: Option<Secret>,
    /// The most recently used one is the last.
    legs: Vec<KeptLeg>,
    /// The task's, to be woken for a leg that it has not polled.
    waker: Option<Waker>,
    /// How many were taken so far.
    taken: u64,
}

#[derive(Debug)]
struct KeptLeg {
    leg: IdleLeg,
    use_until: Instant,
}

impl KeptLeg {
    fn new(leg: IdleLeg) -> Self {
        let left = leg.keep_until().saturating_duration_since(Instant::now());
        let use_until = leg.keep_until() - LAST_MOMENTS.min(left / 4);
        Self { leg, use_until }
    }
}

impl Pool {
    /// A pool for the legs of the tokens that this receives. It keeps at most `max` of them, and never more than the protocol allows.
    pub(crate) fn new(token: watch::Receiver<Option<Secret>>, max: usize) -> Self {
        let idle = Idle { token, legs: Mutex::default(), count: watch::Sender::new(0) };
        Self { idle: Arc::new(idle), max: max.min(MAX_IDLE_LEGS), tasks: Mutex::default() }
    }

    /// How many legs it keeps.
    pub(crate) fn max(&self) -> usize {
        self.max
    }

    /// Whether it keeps legs at all.
    pub(crate) fn keeps_legs(&self) -> bool {
        self.max > 0
    }

    /// Takes the most recently used leg of this token, if there is one.
    pub(crate) fn take(&self, token: Option<&Secret>) -> Option<IdleLeg> {
        let mut legs = self.idle.lock();
        let taken = if legs.token.as_ref() == token { legs.take() } else { None };
        self.idle.publish(&legs);
        taken
    }

    /// Keeps a leg of this token, if it is the present one. Beyond the bound the leg that was not used for the longest is closed.
    pub(crate) fn put(&self, token: Option<&Secret>, leg: IdleLeg) {
        if !self.keeps_legs() {
            return;
        }
        {
            let mut legs = self.idle.lock();
            if legs.token.as_ref() != token {
                return;
            }
            if legs.legs.len() >= self.max {
                legs.legs.remove(0);
            }
            legs.legs.push(KeptLeg::new(leg));
            if let Some(waker) = legs.waker.take() {
                waker.wake();
            }
            self.idle.publish(&legs);
        }
        let tasks = &mut *lock(&self.tasks);
        while tasks.watch.try_join_next().is_some() {}
        if tasks.watch.is_empty() {
            tasks.watch.spawn(watch(Arc::clone(&self.idle)));
        }
    }

    /// Keeps a refused leg once the relay says that it is idle. Nobody waits for that.
    pub(crate) fn reclaim(self: &Arc<Self>, token: Option<Secret>, leg: Leg) {
        if !self.keeps_legs() || !leg.is_idle_after_refusal() {
            return;
        }
        let pool = Arc::downgrade(self);
        let tasks = &mut *lock(&self.tasks);
        while tasks.reclaim.try_join_next().is_some() {}
        tasks.reclaim.spawn(async move {
            let idle = timeout(CLOSE_TIMEOUT, leg.idle()).await;
            if let (Ok(Ok(leg)), Some(pool)) = (idle, pool.upgrade()) {
                pool.put(token.as_ref(), leg);
            }
        });
    }

    /// Waits until there is no idle leg, and returns how many were taken so far.
    pub(crate) async fn emptied(&self) -> u64 {
        drop(self.idle.count.subscribe().wait_for(|count| *count == 0).await); // the sender is here
        lock(&self.idle.legs).taken
    }

    /// How many idle legs there are.
    #[cfg(test)]
    pub(crate) fn count(&self) -> watch::Receiver<usize> {
        self.idle.count.subscribe()
    }
}

impl Legs {
    /// The most recently used one that has not ended, as far as that has arrived.
    fn take(&mut self) -> Option<IdleLeg> {
        let now = Instant::now();
        self.legs.retain(|kept| kept.use_until > now);
        loop {
            let mut taken = self.legs.pop()?.leg;
            // Whoever takes it polls it from here on.
            if taken.poll_ended(&mut Context::from_waker(Waker::noop())).is_pending() {
                self.taken += 1;
                return Some(taken);
            }
        }
    }
}

impl Idle {
    /// The legs of the present token.
    fn lock(&self) -> MutexGuard<'_, Legs> {
        let mut legs = lock(&self.legs);
        let token = self.token.borrow();
        if legs.token != *token {
            legs.token.clone_from(&token);
            legs.legs.clear();
        }
        legs
    }

    fn publish(&self, legs: &Legs) {
        self.count.send_if_modified(|count| std::mem::replace(count, legs.legs.len()) != legs.legs.len());
    }

    /// Polls every leg, and drops those that have ended or whose time is nearly over. `timer` runs until the next of them.
    fn poll(&self, mut timer: Pin<&mut Sleep>, cx: &mut Context<'_>) {
        let mut legs = self.lock();
        legs.waker = Some(cx.waker().clone());
        loop {
            let now = Instant::now();
            legs.legs.retain_mut(|kept| match kept.leg.poll_ended(cx) {
                Poll::Ready(end) => {
                    debug!(%end, "an idle leg has ended");
                    false
                }
                Poll::Pending => kept.use_until > now,
            });
            let Some(next) = legs.legs.iter().map(|kept| kept.use_until).min() else { break };
            timer.as_mut().reset(next);
            if timer.as_mut().poll(cx).is_pending() {
                break;
            }
        }
        self.publish(&legs);
    }
}

/// Polls the legs, and looks at them again when the token was renewed.
async fn watch(idle: Arc<Idle>) {
    let (mut token, mut timer) = (idle.token.clone(), Box::pin(sleep_until(Instant::now())));
    loop {
        let polling = poll_fn(|cx| {
            idle.poll(timer.as_mut(), cx);
            Poll::<()>::Pending
        });
        tokio::select! {
            () = polling => pending().await,
            renewed = token.changed() => if renewed.is_err() { return },
        }
    }
}

/// Locks a mutex, also after a panic of another holder: every state of what is kept behind one here is valid.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
