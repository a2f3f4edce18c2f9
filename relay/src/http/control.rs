//! `GET /v1/control`: a device's control channel, from the upgrade to its end.

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
use crate::control;
use crate::control::handle::{About, DeviceHandle};
use crate::control::handshake::{Authenticated, Authenticator, HandshakeError, Unauthenticated};
use crate::control::keepalive::{Keepalive, Pinger};
use crate::control::session::{Answer, Session};
use crate::core::Core;
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
    let address = peer.address;
    // Read before the registry is: what changes from here on is noticed once the device is listed.
    let revision = core.revision.current();
    // Boxed, here and below: the handshake is large and short, the session small and long.
    let device = tokio::select! {
        device = Box::pin(authenticate(&core, upgrading)) => device,
        () = peer.permit.evicted() => return debug!(%address, "an unauthenticated connection was evicted"),
        () = core.lifecycle.draining() => return,
    };
    let device = match device {
        Ok(Some(device)) => device,
        Ok(None) => return debug!(%address, "a connection ended before it became a control channel"),
        Err(error) => return warn_limited!(%address, error = %Causes(&error), "a device was not authenticated"),
    };
    peer.permit.authenticated();
    serve(&core, device, &peer, revision).await;
}

async fn authenticate(core: &Core, upgrading: Upgrading) -> Result<Option<Box<Authenticated>>, HandshakeError> {
    let Ok(socket) = upgrading.websocket(control::websocket_config()).await else { return Ok(None) };
    let (registry, hello_timeout) = (core.registry.as_ref(), core.times.hello_timeout);
    let authenticator = Authenticator { names: &core.names, registry, clock: &core.clock, hello_timeout };
    Unauthenticated::new(socket).authenticate(&authenticator).await.map(|device| Some(Box::new(device)))
}

async fn serve(core: &Arc<Core>, device: Box<Authenticated>, peer: &Peer, revision: u64) {
    let hello = device.hello();
    let about = About::new(random::session(), hello, device.principal().clone(), peer.address, core.clock.now());
    let knows = |name: &str| hello.features.iter().find(|feature| feature.as_str() == name).cloned();
    let (heartbeat, reuse) = (knows(HEARTBEAT_FEATURE), knows(REUSE));
    let pinger = if heartbeat.is_some() { Pinger::Device } else { Pinger::Relay };
    let has_reuse = reuse.is_some();
    let max_streams = core.limits.streams_per_device.get();
    let handle = DeviceHandle::new(about, hello.services.clone(), max_streams);

    let mut listed = core.directory.list(handle.clone());
    // Listed first, then checked again: a concurrent removal of the device or its key either sees the channel or is seen here.
    if core.revision.current() != revision {
        Box::pin(revoke_unregistered(core, &handle)).await;
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
    let socket = match Box::pin(device.admit(welcome, core.times.hello_timeout)).await {
        Ok(socket) => socket,
        Err(error) => return debug!(device = %device_id, session, %error, "a device was lost before its welcome"),
    };
    info!(device = %device_id, session, address = %peer.address, "device online");
    core.last_seen.note(device_id, Some(principal.key_id), core.clock.now());
    let keepalive = Keepalive::new(pinger, core.times.heartbeat, core.times.heartbeat_max, Instant::now());
    let on_answer = |answer: Answer| on_answer(core, &handle, answer);
    let session_task = Session::new(socket, handle.clone(), keepalive, core.times.offer_ack_timeout);
    let cause = session_task.run(on_answer, core.lifecycle.clone()).await;
    core.last_seen.note(device_id, None, core.clock.now()); // before it is offline, so that readers who see it offline also see since when
    drop(listed);
    info!(device = %device_id, session, ?cause, "device offline");
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
