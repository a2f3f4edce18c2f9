//! The way from asked to opened, over one request or three. One task for each stream, from the question to the end record.
//!
//! ```text
//!   waiting ──(device appears)──▶ offered ──(accept, both legs)──▶ opened ──▶ (splice)
//!      └──────────────────────────────┴──▶ refused
//! ```
//!
//! Owns: the order of these steps, deadlines, idempotency keys, what each side is told. Does not own: who may ask ([`crate::access`]),
//! where devices are ([`crate::directory`]), whose token joins ([`crate::stream::join`]), the bytes afterwards ([`crate::splice`]).

mod actor;
mod idempotency;
pub mod join;
mod negotiation;
pub mod refusal;
pub mod registry;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use moorline_proto::api::OpenStream;
use moorline_proto::bounds::CLOSE_TIMEOUT;
use moorline_proto::close::CloseReason;
use moorline_proto::control::CallerInfo;
use moorline_proto::id::{NodeId, ServiceName, StreamId};
use moorline_proto::millis::Millis;
use moorline_proto::problem::{Problem, Timeline};
use moorline_proto::secret::Secret;
use moorline_proto::timestamp::Timestamp;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::access::permit::StreamPermit;
use crate::clock::Clock;
use crate::control::handle::DeviceHandle;
use crate::control::session::Answer;
use crate::directory::{Directory, Place};
use crate::limits::{Limits, Times};
use crate::random;
use crate::splice::{Leg, Side};
use crate::store::Registry;
use crate::stream::join::Rendezvous;
use crate::stream::registry::{DevicePlace, Facts, Live, Streams};
use crate::tasks::Tasks;
use actor::Task;
use idempotency::{Key, Keys};
use negotiation::Negotiation;
use refusal::Refused;

/// What comes for a stream.
#[derive(Debug)]
pub enum Event {
    /// A side's leg.
    Joined(Side, Box<Leg>),
    /// The caller's connection ended between the 101 and its leg.
    CallerLost,
    /// The device's answer.
    Answered(Answer),
}

/// Hands a leg to its stream's task. Where the stream is over, or was opened without it, the leg is closed.
pub async fn hand_in(mail: mpsc::Sender<Event>, side: Side, leg: Leg) {
    if let Err(unsent) = mail.send(Event::Joined(side, Box::new(leg))).await
        && let Event::Joined(_, leg) = unsent.0
    {
        leg.close(CloseReason::Refused, "the stream is over", CLOSE_TIMEOUT).await;
    }
}

/// A question, in good form and with leave.
#[derive(Debug)]
pub struct Ask {
    /// What is asked for.
    pub open: OpenStream,
    /// The leave for it.
    pub leave: StreamPermit,
    /// As the device is told.
    pub caller: CallerInfo,
    /// The caller's name for this request.
    pub key: Option<String>,
    /// One request, or negotiation first.
    pub via: Via,
    /// When the request came.
    pub since: Instant,
}

/// How a caller opens a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Via {
    /// Negotiates and joins in one request.
    Connect,
    /// Negotiates by `POST`; the leg comes with a token of its own.
    Negotiation,
}

/// How far the device's decision has come.
#[derive(Clone, Debug)]
pub enum Decision {
    /// It is waited for.
    Waiting,
    /// It was asked.
    Offered,
    /// It said yes.
    Accepted,
    /// There will be no stream.
    Refused(Box<Problem>),
}

/// A stream that is on its way.
#[derive(Clone, Debug)]
pub struct Begun {
    /// Its name.
    pub stream: StreamId,
    /// Where its caller leg is handed in.
    pub mail: mpsc::Sender<Event>,
    /// How far the device's decision has come.
    pub decision: watch::Receiver<Decision>,
    /// When it must be open: the deadline, and the wait before it.
    pub expires_at: Timestamp,
}

/// Opens streams. Clones open them in the same relay.
#[derive(Clone, Debug)]
pub struct Openings(Arc<Desk>);

/// What every opening uses.
#[derive(Debug)]
pub(crate) struct Desk {
    pub ground: Ground,
    keys: Keys,
    waiters: Arc<Semaphore>,
}

/// The parts of the relay that openings stand on.
#[derive(Debug)]
pub struct Ground {
    /// This node.
    pub node: NodeId,
    /// Deadlines and intervals.
    pub times: Times,
    /// Wall time.
    pub clock: Clock,
    /// Owner of the streams' tasks.
    pub tasks: Tasks,
    /// Where devices were last seen.
    pub registry: Arc<dyn Registry>,
    /// Where devices are now.
    pub directory: Directory,
    /// Where legs join.
    pub rendezvous: Rendezvous<Event>,
    /// The list of streams.
    pub streams: Streams,
}

/// Whether the device is there, and what of the relay's bounds the stream takes up.
struct Start {
    device: Option<(DeviceHandle, DevicePlace)>,
    waiter: Option<tokio::sync::OwnedSemaphorePermit>,
}

impl Openings {
    /// Openings within the limits.
    pub fn new(ground: Ground, limits: &Limits) -> Self {
        let keys = Keys::new(ground.times.deadline_max);
        let waiters = Arc::new(Semaphore::new(limits.waiting_callers.get()));
        Self(Arc::new(Desk { ground, keys, waiters }))
    }

    /// Begins a stream, or finds the one that the same key began: true then.
    ///
    /// # Errors
    /// [`Refused`]: what the relay can decide by itself.
    pub fn begin(&self, ask: Ask) -> Result<(Begun, bool), Refused> {
        let Some(text) = ask.key.clone() else { return Ok((self.begin_new(ask, None)?, false)) };
        let caller = ask.caller.id();
        let key = Key { caller, device: ask.leave.device().clone(), service: ask.open.service.clone(), text };
        let open = ask.open.clone();
        self.0.keys.find_or(key, &open, |key| self.begin_new(ask, Some(key)))
    }

    /// A fresh caller token for a stream that was negotiated.
    ///
    /// # Errors
    /// [`Refused::Used`] once it was opened or is over.
    pub fn caller_token(&self, stream: StreamId) -> Result<Secret, Refused> {
        self.0.ground.rendezvous.renew_caller_token(stream).ok_or(Refused::Used)
    }

    fn begin_new(&self, ask: Ask, key: Option<Key>) -> Result<Begun, Refused> {
        let desk = &self.0;
        let start = desk.start(&ask)?;
        let stream = random::stream_id();
        let (seat, mail, inbox) = desk.ground.rendezvous.seat(stream, ask.leave.device().clone());
        let now = desk.ground.clock.now();
        let live = desk.list(&ask, stream, now)?;
        let (decided, decision) = watch::channel(if start.device.is_some() { Decision::Offered } else { Decision::Waiting });
        let allowed = desk.deadline(&ask) + desk.wait(&ask);
        let expires_at = Timestamp::from_millis(now.as_millis() + u64::try_from(allowed.as_millis()).unwrap_or(u64::MAX));
        let key = key.map(|key| desk.keys.hold(key));
        let task = Task::new(Arc::clone(desk), ask, seat, live, inbox, decided, key);
        desk.ground.tasks.spawn("stream", move |stop| run(task, start, stop));
        Ok(Begun { stream, mail, decision, expires_at })
    }
}

/// One stream, from asked until nothing of it is left.
async fn run(mut task: Task, start: Start, stop: CancellationToken) {
    let outcome = tokio::select! {
        biased; // a relay that stops loses its devices too, and is the cause of it
        () = stop.cancelled() => Err(Refused::Cut(CloseReason::RelayDraining)),
        outcome = Box::pin(Negotiation::new(&mut task, start).run()) => outcome,
    };
    let outcome = if stop.is_cancelled() { outcome.map_err(|_| Refused::Cut(CloseReason::RelayDraining)) } else { outcome };
    match outcome {
        Ok(place) => Box::pin(task.carry(place, stop)).await,
        Err(refused) => Box::pin(task.refuse(refused, stop)).await,
    }
}

impl Desk {
    /// What the relay can decide by itself: online, exposed, within the limits.
    fn start(&self, ask: &Ask) -> Result<Start, Refused> {
        match self.ground.directory.find(ask.leave.device()) {
            Place::Here(handle) => {
                let place = self.may_offer(&handle, &ask.open.service)?;
                Ok(Start { device: Some((handle, place)), waiter: None })
            }
            Place::Node(_) | Place::Nowhere if self.wait(ask).is_zero() => {
                Err(Refused::Offline { device: ask.leave.device().clone(), last_seen: None })
            }
            Place::Node(_) | Place::Nowhere => match Arc::clone(&self.waiters).try_acquire_owned() {
                Ok(waiter) => Ok(Start { device: None, waiter: Some(waiter) }),
                Err(_) => Err(Refused::Overloaded("requests that wait for a device")),
            },
        }
    }

    /// One of the device's places, if it exposes the service.
    fn may_offer(&self, handle: &DeviceHandle, service: &ServiceName) -> Result<DevicePlace, Refused> {
        let device = &handle.about().device;
        if !handle.exposes(service) {
            return Err(Refused::not_exposed(device, service));
        }
        self.ground.streams.place(device).map_err(|_| Refused::TooManyStreams(device.clone()))
    }

    fn list(&self, ask: &Ask, stream: StreamId, since: Timestamp) -> Result<Live, Refused> {
        let facts = Facts {
            stream,
            device: ask.leave.device().clone(),
            service: ask.open.service.clone(),
            caller: ask.caller.id(),
            address: ask.address(),
            rule: ask.leave.rule().to_string(),
            since,
        };
        self.ground.streams.list(facts).map_err(|_| Refused::Overloaded("streams"))
    }

    /// The deadline of the handshake, at most the operator's.
    fn deadline(&self, ask: &Ask) -> Duration {
        ask.open.deadline_s.map_or(self.ground.times.deadline, Duration::from_secs).min(self.ground.times.deadline_max)
    }

    /// How long the device may be offline first, at most the operator's.
    fn wait(&self, ask: &Ask) -> Duration {
        Duration::from_secs(ask.open.wait_s.unwrap_or(0)).min(self.ground.times.wait_max)
    }
}

impl Ask {
    fn address(&self) -> IpAddr {
        self.caller.address
    }
}

/// How long ago the request came.
fn since(start: Instant) -> Option<Millis> {
    Some(Millis::from_duration(start.elapsed()))
}

/// The timeline of a stream whose request was allowed just now.
fn first_steps(start: Instant) -> Timeline {
    Timeline { authorized_ms: since(start), ..Timeline::default() }
}
