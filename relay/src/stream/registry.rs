//! Every stream from its setup until nothing of it is left: listed, joined by leg tokens, answered by its device, cut. And what is remembered
//! of those that are over.
//!
//! **Invariant:** whatever is here belongs to one task, the stream's actor; everybody else publishes events to it, or reads its status.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use dashmap::DashMap;
use moorline_proto::api::LiveStream;
use moorline_proto::id::{DeviceId, StreamId};
use moorline_proto::problem::Problem;
use moorline_proto::proof::Thumbprint;
use moorline_proto::secret::Secret;
use moorline_proto::timestamp::Timestamp;
use tokio::sync::{Notify, SetOnce, mpsc, watch};
use tokio::time::Instant;

use crate::access::revocation::{Cut, Revocation};
use crate::digest::Digest;
use crate::limits::{Limits, REMEMBERED_REFUSALS, STREAM_EVENTS, Times};
use crate::splice::Traffic;
use crate::stream::handle::{Event, StreamHandle};
use crate::stream::idempotency::Keys;
use crate::stream::join::{ClaimError, LegOf, LegTokens, token_digest};
use crate::stream::recent::RecentMap;
use crate::stream::record::Facts;
use crate::stream::slots::Slots;
use crate::stream::status::Status;
use crate::sync::lock;
use crate::ttl_map::TtlMap;

/// All streams of one relay. Clones share them.
#[derive(Clone, Debug)]
pub struct Streams(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    live: DashMap<StreamId, Arc<Entry>>,
    recent: Recent,
    ended: Notify,
    slots: Slots,
    keys: Keys,
}

/// What is remembered of streams that are over.
#[derive(Debug)]
struct Recent {
    /// Digests of their leg tokens.
    tokens: RecentMap<Digest, ()>,
    /// Refusals that were not delivered to the caller yet, with the digest of its token if it has one.
    refusals: TtlMap<StreamId, UndeliveredRefusal>,
}

/// A refusal that was not delivered to the caller.
#[derive(Clone, Debug)]
struct UndeliveredRefusal {
    /// The caller's token; without one its leg is on its way already.
    caller: Option<Digest>,
    problem: Arc<Problem>,
    /// Until when the token joins.
    until: Instant,
}

#[derive(Debug)]
struct Entry {
    facts: Facts,
    device_key: Mutex<Option<Thumbprint>>,
    status: watch::Sender<Status>,
    traffic: Traffic,
    cut: SetOnce<Cut>,
    tokens: Mutex<LegTokens>,
    events: mpsc::Sender<Event>,
}

/// A stream's place in the list, held by its actor; dropping it takes the stream from the list.
#[must_use = "the stream is listed only while this is held"]
#[derive(Debug)]
pub(super) struct Listing {
    streams: Streams,
    entry: Arc<Entry>,
}

/// What a good token leads to.
#[derive(Debug)]
pub enum Claim {
    /// A stream that can be joined.
    Join(LegOf, mpsc::Sender<Event>),
    /// A stream whose refusal was not delivered to the caller yet.
    Refused(Arc<Problem>),
}

impl Streams {
    /// None yet, within the limits.
    pub fn new(limits: &Limits, times: &Times) -> Self {
        let remembered = limits.streams.get().saturating_mul(2);
        let recent = Recent {
            tokens: RecentMap::new(times.closed_stream_retention, remembered.saturating_mul(2)),
            refusals: TtlMap::new(times.closed_stream_retention, REMEMBERED_REFUSALS),
        };
        let (slots, keys) = (Slots::new(limits), Keys::new(times.deadline_max, remembered));
        Self(Arc::new(Inner { live: DashMap::default(), recent, ended: Notify::default(), slots, keys }))
    }

    pub(super) fn slots(&self) -> &Slots {
        &self.0.slots
    }

    pub(super) fn keys(&self) -> &Keys {
        &self.0.keys
    }

    /// Lists a stream, and returns its handle and the receiver of its events.
    pub(super) fn list(&self, facts: Facts, status: Status, expires_at: Timestamp) -> (Listing, StreamHandle, mpsc::Receiver<Event>) {
        let (events, inbox) = mpsc::channel(STREAM_EVENTS);
        let status = watch::Sender::new(status);
        let handle = StreamHandle::new(facts.stream, expires_at, events.clone(), status.subscribe());
        let entry = Arc::new(Entry {
            facts,
            device_key: Mutex::default(),
            status,
            traffic: Traffic::default(),
            cut: SetOnce::new(),
            tokens: Mutex::default(),
            events,
        });
        self.0.live.insert(entry.facts.stream, Arc::clone(&entry));
        (Listing { streams: self.clone(), entry }, handle, inbox)
    }

    /// What a leg's token leads to.
    ///
    /// # Errors
    /// [`ClaimError`].
    pub fn claim(&self, stream: StreamId, token: &Secret) -> Result<Claim, ClaimError> {
        let token = token_digest(stream, token);
        if let Some(entry) = self.find(stream) {
            let leg = lock(&entry.tokens).find(&token).ok_or(ClaimError::Unknown)?;
            let used = entry.status.borrow().was_opened();
            return if used { Err(ClaimError::Used) } else { Ok(Claim::Join(leg, entry.events.clone())) };
        }
        let refusal = self.0.recent.refusals.get(&stream).filter(|refusal| Instant::now() < refusal.until);
        if let Some(UndeliveredRefusal { caller: Some(of_caller), problem, .. }) = refusal
            && of_caller.is(&token)
        {
            return Ok(Claim::Refused(problem));
        }
        Err(if self.0.recent.tokens.get(&token).is_some() { ClaimError::Over } else { ClaimError::Unknown })
    }

    /// Why the stream was refused, if the refusal is recent and was not delivered to its caller.
    pub fn refusal(&self, stream: StreamId) -> Option<Arc<Problem>> {
        self.0.recent.refusals.get(&stream).map(|refusal| refusal.problem)
    }

    /// A fresh caller token for a stream that was negotiated; nothing if it was opened or is over.
    pub fn renew_caller_token(&self, stream: StreamId) -> Option<Secret> {
        let entry = self.find(stream).filter(|entry| !entry.status.borrow().was_opened())?;
        let token = lock(&entry.tokens).renew_caller(stream);
        Some(token)
    }

    /// Hands on what a device answered. False if the stream is not that device's, or takes no more: answers race with cancels, and nobody
    /// waits for a device's words.
    pub fn answer(&self, device: &DeviceId, stream: StreamId, answer: Event) -> bool {
        let entry = self.find(stream).filter(|entry| entry.facts.device == *device);
        entry.is_some_and(|entry| entry.events.try_send(answer).is_ok())
    }

    /// How many streams the device has, open and undecided.
    pub fn of_device(&self, device: &DeviceId) -> u32 {
        self.0.slots.of_device(device)
    }

    /// How many streams have a slot: opened, or on their way.
    pub fn with_slot(&self) -> usize {
        self.0.live.iter().filter(|entry| !matches!(*entry.status.borrow(), Status::Closing)).count()
    }

    /// How many streams there are, with those that close.
    pub fn len(&self) -> usize {
        self.0.live.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.live.is_empty()
    }

    /// Waits until there are none. Cancel safe.
    pub async fn ended(&self) {
        loop {
            let mut ended = std::pin::pin!(self.0.ended.notified());
            ended.as_mut().enable();
            if self.is_empty() {
                return;
            }
            ended.await;
        }
    }

    /// Every stream that `shown` lets through.
    pub fn all(&self, shown: impl Fn(&Facts) -> bool) -> Vec<LiveStream> {
        self.entries().iter().filter(|entry| shown(&entry.facts)).map(|entry| entry.row()).collect()
    }

    /// What a stream is about, if it lives.
    pub fn facts(&self, stream: StreamId) -> Option<Facts> {
        self.find(stream).map(|entry| entry.facts.clone())
    }

    /// Ends a stream; the first cut stands. False if it is over.
    pub fn cut(&self, stream: StreamId, cut: Cut) -> bool {
        self.find(stream).map(|entry| entry.cut(cut)).is_some()
    }

    /// Ends every stream of a device that stands on a key which is not among `kept`; with none kept, those that wait for the device too.
    /// Returns how many.
    pub fn revoke_device(&self, device: &DeviceId, kept: &[Thumbprint], revocation: Revocation) -> usize {
        let stands = |entry: &Entry| match *lock(&entry.device_key) {
            Some(key) => kept.contains(&key),
            None => !kept.is_empty(),
        };
        let entries = self.entries();
        let revoked = entries.iter().filter(|entry| entry.facts.device == *device && !stands(entry));
        revoked.map(|entry| entry.cut(Cut::revoked(revocation))).count()
    }

    fn find(&self, stream: StreamId) -> Option<Arc<Entry>> {
        self.0.live.get(&stream).map(|entry| Arc::clone(entry.value()))
    }

    fn entries(&self) -> Vec<Arc<Entry>> {
        self.0.live.iter().map(|entry| Arc::clone(entry.value())).collect()
    }
}

impl Entry {
    fn cut(&self, cut: Cut) {
        self.cut.set(cut).ok(); // the first stands
    }

    fn row(&self) -> LiveStream {
        LiveStream {
            stream: self.facts.stream,
            device: self.facts.device.clone(),
            service: self.facts.service.clone(),
            caller: self.facts.caller().to_string(),
            state: self.status.borrow().as_str().to_owned(),
            since: self.facts.since,
            to_device_bytes: self.traffic.to_device.load(Ordering::Relaxed),
            to_caller_bytes: self.traffic.to_caller.load(Ordering::Relaxed),
        }
    }
}

impl Listing {
    /// What the stream is about.
    pub(super) fn facts(&self) -> &Facts {
        &self.entry.facts
    }

    /// Bytes that went each way.
    pub(super) fn traffic(&self) -> &Traffic {
        &self.entry.traffic
    }

    /// The key of the channel on which the device is asked; none while it is waited for. From here on the stream stands on that key.
    pub(super) fn set_device_key(&self, key: Option<Thumbprint>) {
        *lock(&self.entry.device_key) = key;
    }

    /// The key of the channel on which the device was asked.
    pub(super) fn device_key(&self) -> Option<Thumbprint> {
        *lock(&self.entry.device_key)
    }

    /// Publishes how far the stream has come.
    pub(super) fn publish(&self, status: Status) {
        self.entry.status.send_replace(status);
    }

    /// A new token for the device leg of an attempt.
    pub(super) fn renew_device_token(&self, attempt: moorline_proto::control::Attempt) -> Secret {
        lock(&self.entry.tokens).renew_device(self.entry.facts.stream, attempt)
    }

    /// Remembers a refusal for a caller that joins late: one whose token is good until then, or one whose leg is on its way.
    pub(super) fn remember_refusal(&self, problem: Arc<Problem>, until: Instant) {
        let caller = lock(&self.entry.tokens).caller();
        self.streams.0.recent.refusals.put(self.entry.facts.stream, UndeliveredRefusal { caller, problem, until });
    }

    /// Whether somebody has a token for the caller leg.
    pub(super) fn caller_has_token(&self) -> bool {
        lock(&self.entry.tokens).has_caller()
    }

    /// Waits until somebody cuts the stream. Cancel safe.
    pub(super) async fn cut(&self) -> Cut {
        *self.entry.cut.wait().await
    }

    /// Whether somebody has cut the stream.
    pub(super) fn was_cut(&self) -> bool {
        self.entry.cut.get().is_some()
    }
}

impl Drop for Listing {
    fn drop(&mut self) {
        let stream = self.entry.facts.stream;
        for digest in lock(&self.entry.tokens).digests() {
            self.streams.0.recent.tokens.put(digest, ());
        }
        self.streams.0.live.remove(&stream);
        self.streams.0.ended.notify_waiters();
    }
}
