//! From a permitted request to a stream with an actor: reserve the key, locate the device once, take the slots. Runs once and straight.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use moorline_proto::api::OpenStream;
use moorline_proto::id::DeviceId;
use moorline_proto::problem::Timeline;
use moorline_proto::timestamp::Timestamp;
use tokio::time::Instant;

use crate::access::permit::Basis;
use crate::access::policy::Denied;
use crate::access::principal::Caller;
use crate::control::handle::DeviceHandle;
use crate::core::Core;
use crate::directory::Location;
use crate::random;
use crate::stream::actor::Actor;
use crate::stream::handle::StreamHandle;
use crate::stream::idempotency::{KeyedRequest, Named};
use crate::stream::record::{EndRecord, Facts};
use crate::stream::refusal::Refusal;
use crate::stream::request::{Start, StreamRequest};
use crate::stream::slots::DeviceSlot;
use crate::stream::status::Status;
use crate::stream::steps::Steps;

/// A stream that was set up.
pub(super) enum Prepared {
    /// Its actor, which is to be run.
    New(Box<Actor>, Start, StreamHandle),
    /// The one that the same key set up before.
    Earlier(StreamHandle),
}

/// Records that a caller may not have a stream: it leaves an end record as every refusal does.
pub fn record_denied(core: &Core, from: (&Caller, IpAddr), device: &DeviceId, open: &OpenStream, since: Instant, denied: Denied) {
    let (caller, address) = from;
    let basis = Basis::denied(caller, address);
    let facts = Facts::new(random::stream_id(), device.clone(), basis, open, core.clock.now());
    EndRecord::refused(&facts, denied.problem().as_str(), since.elapsed(), &Timeline::default()).log();
}

/// Sets a stream up, or finds the one that the same key set up before.
///
/// # Errors
/// [`Refusal`]: what the relay can decide by itself. It leaves an end record too.
///
/// # Cancel safety
/// Dropping the future before it returns leaves nothing behind.
pub(super) async fn prepare(core: &Arc<Core>, request: StreamRequest) -> Result<Prepared, Refusal> {
    let facts =
        Facts::new(random::stream_id(), request.permit.device().clone(), request.permit.basis().clone(), &request.open, core.clock.now());
    let steps = Steps::authorized(request.since);
    let opened = set_up(core, request, facts.clone(), steps).await;
    if let Err(refusal) = &opened {
        EndRecord::refused(&facts, refusal.result(), steps.elapsed(), steps.timeline()).log();
    }
    opened
}

async fn set_up(core: &Arc<Core>, request: StreamRequest, facts: Facts, steps: Steps) -> Result<Prepared, Refusal> {
    let key = match reserve(core, &request).await? {
        Some(Named::Earlier(stream)) => return Ok(Prepared::Earlier(stream)),
        Some(Named::New(reservation)) => Some(reservation),
        None => None,
    };
    let revision = core.revision.current();
    let start = start(core, &request).await?;
    let slots = core.streams.slots().stream(facts.caller())?;
    let status = match &start {
        Start::Offer(..) => Status::Offered,
        Start::Wait(_) => Status::Waiting,
    };
    let (deadline, wait) = (core.deadline(&request.open), core.wait(&request.open));
    let allowed = u64::try_from((deadline + wait).as_millis()).unwrap_or(u64::MAX);
    let expires_at = Timestamp::from_millis(facts.since.as_millis().saturating_add(allowed));
    let (listing, stream, events) = core.streams.list(facts, status, expires_at);
    // Listed first, then checked again: a concurrent removal of the device either sees the stream or is seen here.
    if core.revision.current() != revision {
        registered(core, &request).await?;
    }
    if let Some(key) = &key {
        key.names(&stream);
    }
    let actor = Actor::new(Arc::clone(core), request, listing, events, key, slots, steps, wait);
    Ok(Prepared::New(Box::new(actor), start, stream))
}

async fn reserve(core: &Core, request: &StreamRequest) -> Result<Option<Named>, Refusal> {
    let Some(text) = &request.key else { return Ok(None) };
    // What is left out asks for the default, and what is beyond the operator's most for that: it is the same question.
    let (deadline_s, wait_s) = (core.deadline(&request.open).as_secs(), core.wait(&request.open).as_secs());
    let question = OpenStream { deadline_s: Some(deadline_s), wait_s: Some(wait_s), ..request.open.clone() };
    let keyed = KeyedRequest::new(text, &request.permit.basis().caller, request.permit.device(), &question);
    core.streams.keys().reserve(keyed).await.map(Some)
}

/// What the relay can decide by itself: whether it is leaving, the device online, the service exposed, the limits kept.
async fn start(core: &Core, request: &StreamRequest) -> Result<Start, Refusal> {
    if !core.lifecycle.is_running() {
        return Err(Refusal::Draining);
    }
    let device = request.permit.device();
    match core.directory.locate(device).await.map_err(|_| Refusal::DirectoryUnavailable)? {
        Location::Here(handle) => {
            let slot = core.may_offer(&handle, request.permit.service())?;
            Ok(Start::Offer(handle, slot))
        }
        Location::Node(_) | Location::Offline => {
            let last_seen = registered(core, request).await?;
            if core.wait(&request.open).is_zero() {
                return Err(Refusal::Offline { device: device.clone(), last_seen });
            }
            Ok(Start::Wait(core.streams.slots().waiting(&request.permit.basis().caller)?))
        }
    }
}

/// When the device was last seen, if it is registered.
async fn registered(core: &Core, request: &StreamRequest) -> Result<Option<Timestamp>, Refusal> {
    let device = request.permit.device();
    match core.registry.device(device).await {
        Ok(Some(record)) => Ok(record.last_seen),
        Ok(None) => Err(Refusal::UnknownDevice(device.clone())),
        Err(error) => {
            tracing::error!(error = %moorline_proto::causes::Causes(&error), "the registry failed");
            Err(Refusal::RegistryFailed)
        }
    }
}

impl Core {
    /// One of the device's slots, if it exposes the service.
    pub(super) fn may_offer(&self, handle: &DeviceHandle, service: &moorline_proto::id::ServiceName) -> Result<DeviceSlot, Refusal> {
        let device = &handle.about().principal.device;
        if !handle.exposes(service) {
            return Err(Refusal::not_exposed(device, service));
        }
        Ok(self.streams.slots().device(device)?)
    }

    /// The deadline of the handshake, at most the operator's.
    pub(super) fn deadline(&self, open: &OpenStream) -> Duration {
        open.deadline_s.map_or(self.times.deadline, Duration::from_secs).min(self.times.deadline_max)
    }

    /// How long the device may be offline first, at most the operator's.
    fn wait(&self, open: &OpenStream) -> Duration {
        Duration::from_secs(open.wait_s.unwrap_or(0)).min(self.times.wait_max)
    }
}
