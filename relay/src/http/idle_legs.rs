//! `GET /v1/connect` and `GET /v1/legs/{node}/idle`: legs that are idle from the start, a caller's with its token, a device's with the token of its
//! `welcome`.

use std::sync::Arc;

use axum::extract::Request;
use axum::response::Response;
use moorline_proto::id::NodeId;
use moorline_proto::names::STREAM_SUBPROTOCOL;
use moorline_proto::problem::ProblemCode;
use tracing::debug;

use crate::access::principal::AskingCaller;
use crate::core::Core;
use crate::http::bearer;
use crate::http::operation::{Params, authenticate, peer};
use crate::http::problem::Refusal;
use crate::http::upgrade::{Upgrade, Upgrading};
use crate::net::admission::Peer;
use crate::splice::Leg;
use crate::splice::reuse::Reuse;
use crate::stream::{idle_caller, idle_device};

/// Opens a caller's leg that is idle. What is asked for on it is authorized then.
///
/// # Errors
/// `malformed`, `draining`, `overloaded`, and those of the token.
pub(super) async fn open_caller(core: Arc<Core>, mut request: Request) -> Result<Response, Refusal> {
    check(&core)?;
    let peer = peer(&request)?;
    let caller = authenticate(&core, &peer, request.headers())?;
    let reuse = Reuse::Caller(Box::new(AskingCaller { caller, address: peer.address }));
    let (answer, upgrading) = Upgrade::new(&mut request, STREAM_SUBPROTOCOL)?.accept_for_reuse();
    let tasks = core.tasks.clone();
    tasks.spawn("idle", async move {
        if let Some(leg) = leg(&core, upgrading, peer, reuse).await {
            idle_caller::keep(core, leg).await;
        }
    });
    Ok(answer)
}

/// Opens a device's leg that is idle.
///
/// # Errors
/// `malformed`, `draining`, `token_missing`, `token_invalid`, `stream_unknown`.
pub(super) async fn open_device(core: Arc<Core>, mut request: Request) -> Result<Response, Refusal> {
    check(&core)?;
    let node: NodeId = Params::of(&mut request).await?.parse("node")?;
    let token = bearer::leg_token(request.headers())?;
    if node != core.node {
        return Err(Refusal::new(ProblemCode::StreamUnknown, format!("there is no node {node}")));
    }
    let session = core.directory.find_warm(&token);
    let session = session.ok_or_else(|| Refusal::new(ProblemCode::TokenInvalid, "no such token, or its control channel is gone"))?;
    let peer = peer(&request)?;
    peer.permit.authenticated();
    let (answer, upgrading) = Upgrade::new(&mut request, STREAM_SUBPROTOCOL)?.accept_for_reuse();
    let tasks = core.tasks.clone();
    tasks.spawn("idle", async move {
        if let Some(leg) = leg(&core, upgrading, peer, Reuse::Device).await {
            idle_device::keep(core, session, leg).await;
        }
    });
    Ok(answer)
}

fn check(core: &Core) -> Result<(), Refusal> {
    if !core.lifecycle.is_running() {
        return Err(Refusal::new(ProblemCode::Draining, "the relay is leaving; connect to another node, or later"));
    }
    Ok(())
}

/// The leg behind the 101.
async fn leg(core: &Core, upgrading: Upgrading, peer: Peer, reuse: Reuse) -> Option<Box<Leg>> {
    match upgrading.socket().await {
        Ok(socket) => Some(Box::new(Leg::new(socket, core.ping_interval(), peer.permit, Some(reuse)))),
        Err(error) => {
            debug!(%error, "a connection ended before it became an idle leg");
            None
        }
    }
}
