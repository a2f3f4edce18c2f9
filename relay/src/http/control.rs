//! `GET /v1/control`: a device's control channel, from the upgrade to its end.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::Request;
use axum::response::Response;
use moorline_proto::causes::Causes;
use moorline_proto::control::{Warm, Welcome};
use moorline_proto::names::{CONTROL_SUBPROTOCOL, HEARTBEAT_FEATURE, REUSE, idle_legs_path};
use moorline_proto::problem::ProblemCode;
use moorline_proto::text::Text;
use tokio::time::Instant;
use tracing::{debug, info, warn};

use crate::access::revocation::Revocation;
use crate::control::channel::Channel;
use crate::control::handle::{About, DeviceHandle};
use crate::control::handshake::{Authenticated, Authenticator, HandshakeError, Unauthenticated};
use crate::control::keepalive::{Keepalive, Pinger};
use crate::control::session::{Answer, Session};
use crate::core::Core;
use crate::directory::Listed;
use crate::http::operation::peer;
use crate::http::problem::Refusal;
use crate::http::upgrade::{Upgrade, Upgrading};
use crate::logging::warn_limited;
use crate::net::admission::Peer;
use crate::random;
use crate::stream::Event;

/// Opens a control channel.
///
/// # Errors
/// `draining`.
pub(super) async fn control(core: Arc<Core>, mut request: Request) -> Result<Response, Refusal> {
    if !core.lifecycle.is_running() {
        return Err(Refusal::new(ProblemCode::Draining, "the relay is leaving; connect to another node, or later"));
    }
    let peer = peer(&request)?;
    let (answer, upgrading) = Upgrade::new(&mut request, CONTROL_SUBPROTOCOL)?.accept();
    let tasks = core.tasks.clone();
    tasks.spawn("control", channel(core, upgrading, peer));
    Ok(answer)
}

async fn channel(core: Arc<Core>, upgrading: Upgrading, peer: Peer) {
    // Boxed, here and below: what comes before and behind a session is large and short, the session small and long.
    let Some((mut session, listed)) = Box::pin(come_online(&core, upgrading, &peer)).await else { return };
    let handle = session.handle().clone();
    let mut on_answer = |answer: Answer| on_answer(&core, &handle, answer);
    let cause = session.run(&mut on_answer, &core.lifecycle).await;
    Box::pin(session.close(&cause, on_answer, &core.lifecycle)).await;
    let About { principal, session, .. } = handle.about();
    // Before it is offline, so that readers who see it offline also see since when.
    core.last_seen.note(&principal.device, None, core.clock.now());
    drop(listed);
    info!(device = %principal.device, session, ?cause, "device offline");
}

/// From the 101 to the `welcome`.
async fn come_online(core: &Core, upgrading: Upgrading, peer: &Peer) -> Option<(Session, Listed)> {
    let address = peer.address;
    // Read before the registry is: what changes from here on is noticed once the device is listed.
    let revision = core.revision.current();
    let device = tokio::select! {
        device = authenticate(core, upgrading) => device,
        () = peer.permit.evicted() => {
            debug!(%address, "an unauthenticated connection was evicted");
            return None;
        }
        () = core.lifecycle.draining() => return None,
    };
    match device {
        Ok(Some(device)) => {
            peer.permit.authenticated();
            return admit(core, device, address, revision).await;
        }
        Ok(None) => debug!(%address, "a connection ended before it became a control channel"),
        Err(error) => warn_limited!(%address, error = %Causes(&error), "a device was not authenticated"),
    }
    None
}

async fn authenticate(core: &Core, upgrading: Upgrading) -> Result<Option<Authenticated>, HandshakeError> {
    let Ok(socket) = upgrading.socket().await else { return Ok(None) };
    let (registry, hello_timeout) = (core.registry.as_ref(), core.times.hello_timeout);
    let authenticator = Authenticator { names: &core.names, registry, clock: &core.clock, hello_timeout };
    Unauthenticated::new(Channel::new(socket)).authenticate(&authenticator).await.map(Some)
}

/// Lists the device and welcomes it.
async fn admit(core: &Core, device: Authenticated, address: IpAddr, revision: u64) -> Option<(Session, Listed)> {
    let hello = device.hello();
    let about = About::new(random::session(), hello, device.principal().clone(), address, core.clock.now());
    let knows = |name: &str| hello.features.iter().find(|feature| feature.as_str() == name).cloned();
    let (heartbeat, reuse) = (knows(HEARTBEAT_FEATURE), knows(REUSE));
    let pinger = if heartbeat.is_some() { Pinger::Device } else { Pinger::Relay };
    let has_reuse = reuse.is_some();
    let max_streams = core.limits.streams_per_device.get();
    let handle = DeviceHandle::new(about, hello.services.clone(), max_streams);

    let mut listed = core.directory.list(handle.clone());
    // Listed first, then checked again: a concurrent removal of the device or its key either sees the channel or is seen here.
    if core.revision.current() != revision {
        revoke_unregistered(core, &handle).await;
    }
    let welcome = Welcome {
        session: Text::truncated(&handle.about().session),
        node: core.node.clone(),
        heartbeat_ms: millis(core.times.heartbeat),
        heartbeat_max_ms: millis(core.times.heartbeat_max),
        max_streams,
        features: heartbeat.into_iter().chain(reuse).collect(),
        time: core.clock.now(),
        warm: has_reuse.then(|| Warm { url: Text::truncated(&idle_legs_path(&core.node)), token: listed.warm_token() }),
    };
    let About { principal, session, .. } = handle.about();
    let device_id = &principal.device;
    let socket = match device.admit(welcome, core.times.hello_timeout).await {
        Ok(socket) => socket,
        Err(error) => {
            debug!(device = %device_id, session, %error, "a device was lost before its welcome");
            return None;
        }
    };
    info!(device = %device_id, session, %address, "device online");
    core.last_seen.note(device_id, Some(principal.key_id), core.clock.now());
    let keepalive = Keepalive::new(pinger, core.times.heartbeat, core.times.heartbeat_max, Instant::now());
    let session = Session::new(socket, handle.clone(), keepalive, core.times.offer_ack_timeout);
    Some((session, listed))
}

/// Ends a channel whose device, or key, was removed while the device proved that it has it.
async fn revoke_unregistered(core: &Core, handle: &DeviceHandle) {
    let principal = &handle.about().principal;
    match core.registry.device(&principal.device).await {
        Ok(record) => {
            if let Some(revocation) = Revocation::of(principal, record.as_ref()) {
                handle.revoke(revocation);
            }
        }
        // It was registered a moment ago; the next look at all registrations decides.
        Err(error) => warn!(device = %principal.device, error = %Causes(&error), "a registration could not be looked up again"),
    }
}

fn on_answer(core: &Core, handle: &DeviceHandle, answer: Answer) {
    let (stream, event) = match answer {
        Answer::Accept(accept) => (accept.stream, Event::Accepted(accept)),
        Answer::Reject(reject) => (reject.stream, Event::Rejected(reject)),
    };
    let device = &handle.about().principal.device;
    if !core.streams.answer(device, stream, event) {
        debug!(%device, %stream, "ignored an answer to no undecided stream");
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
