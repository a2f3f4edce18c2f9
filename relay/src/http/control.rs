//! `GET /v1/control`: a device's control channel, from the upgrade to its end.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::response::Response;
use moorline_proto::control::Welcome;
use moorline_proto::names::{CONTROL_SUBPROTOCOL, HEARTBEAT_FEATURE};
use moorline_proto::text::Text;
use rand::RngExt;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::control;
use crate::control::handle::{About, DeviceHandle};
use crate::control::handshake::{Authenticator, HandshakeError, Known, Unauthenticated};
use crate::control::keepalive::{Keepalive, Pinger};
use crate::control::session::{Answer, Session};
use crate::http::problem::Refusal;
use crate::http::upgrade::{Upgrading, upgrade};
use crate::http::{Edge, visitor};
use crate::logging::warn_limited;
use crate::net::admission::Peer;
use crate::random;
use crate::stream::Event;
use moorline_proto::causes::Causes;

/// Devices of a relay that stops dial anew within this, each at a moment of its own.
const RECONNECT_SPREAD: Duration = Duration::from_secs(2);

/// Opens a control channel.
///
/// # Errors
/// What an upgrade must have.
pub async fn control(State(edge): State<Arc<Edge>>, mut request: Request) -> Result<Response, Refusal> {
    let upgrade = upgrade(&mut request, CONTROL_SUBPROTOCOL, &edge.origins)?;
    let visitor = visitor(&request)?;
    let (answer, upgrading) = upgrade.accept();
    let tasks = edge.tasks.clone();
    tasks.spawn("control", move |stop| channel(edge, upgrading, visitor, stop));
    Ok(answer)
}

async fn channel(edge: Arc<Edge>, upgrading: Upgrading, visitor: Peer, stop: CancellationToken) {
    let address = visitor.address;
    // Boxed: the handshake is large and short, the session small and long.
    let known = tokio::select! {
        known = Box::pin(meet(&edge, upgrading)) => known,
        () = visitor.permit.evicted() => return debug!(%address, "a stranger gave way"),
        () = stop.cancelled() => return,
    };
    let known = match known {
        Ok(Some(known)) => known,
        Ok(None) => return debug!(%address, "a control channel did not come about"),
        Err(error) => return warn_limited!(%address, error = %Causes(&error), "a device was not admitted"),
    };
    visitor.permit.authenticated();
    serve(&edge, known, &visitor, stop).await;
}

async fn meet(edge: &Edge, upgrading: Upgrading) -> Result<Option<Known>, HandshakeError> {
    let Ok(socket) = upgrading.websocket(control::websocket_config()).await else { return Ok(None) };
    let judge =
        Authenticator { names: &edge.names, registry: edge.registry.as_ref(), clock: &edge.clock, hello_within: edge.times.hello_timeout };
    Unauthenticated::new(socket).greet(&judge).await.map(Some)
}

async fn serve(edge: &Arc<Edge>, known: Known, visitor: &Peer, stop: CancellationToken) {
    let hello = known.hello();
    let about = About::new(random::session(), hello, known.kid(), visitor.address, edge.clock.now());
    let (device, session) = (about.device.clone(), about.session.clone());
    let heartbeat = hello.features.iter().filter(|feature| feature.as_str() == HEARTBEAT_FEATURE).cloned();
    let features: Vec<_> = heartbeat.take(1).collect();
    let pinger = if features.is_empty() { Pinger::Relay } else { Pinger::Device };
    let handle = DeviceHandle::new(about, hello.services.clone());
    let kid = known.kid();

    let listed = edge.directory.list(handle.clone());
    let welcome = Welcome {
        session: Text::cut(&session),
        node: edge.node.clone(),
        heartbeat_ms: millis(edge.times.heartbeat),
        heartbeat_max_ms: millis(edge.times.heartbeat_max),
        max_streams: edge.limits.streams_per_device.get(),
        features,
        time: edge.clock.now(),
    };
    let socket = match known.admit(welcome, edge.times.hello_timeout).await {
        Ok(socket) => socket,
        Err(error) => return debug!(%device, session, %error, "a device was lost before its welcome"),
    };
    info!(%device, session, address = %visitor.address, "device online");
    remember(edge, &handle, Some(kid)).await;
    let keepalive = Keepalive::new(pinger, edge.times.heartbeat, edge.times.heartbeat_max, Instant::now());
    let reconnect_in = RECONNECT_SPREAD.mul_f64(rand::rng().random());
    let hear = |answer: Answer| hear(edge, &handle, answer);
    let ended = Session::new(socket, handle.clone(), keepalive, edge.times.offer_ack_timeout, reconnect_in).run(hear, stop).await;
    drop(listed);
    info!(%device, session, ?ended, "device offline");
    remember(edge, &handle, None).await;
}

fn hear(edge: &Edge, handle: &DeviceHandle, answer: Answer) {
    let stream = match &answer {
        Answer::Accept(accept) => accept.stream,
        Answer::Reject(reject) => reject.stream,
    };
    let device = &handle.about().device;
    if !edge.rendezvous.from_device(device, stream, Event::Answered(answer)) {
        debug!(%device, %stream, "an answer to no undecided stream was passed over");
    }
}

async fn remember(edge: &Edge, handle: &DeviceHandle, kid: Option<moorline_proto::proof::Thumbprint>) {
    let device = &handle.about().device;
    if let Err(error) = edge.registry.seen(device, kid, edge.clock.now()).await {
        warn!(%device, error = %Causes(&error), "when the device was seen is not recorded");
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
