//! `GET /v1/legs/{node}/{stream}`: joins one leg, with that leg's token, which alone determines the side.

use std::sync::Arc;

use axum::extract::Request;
use axum::response::Response;
use moorline_proto::id::{NodeId, StreamId};
use moorline_proto::names::STREAM_SUBPROTOCOL;
use moorline_proto::problem::{Problem, ProblemCode};
use tracing::debug;

use crate::core::Core;
use crate::http::bearer;
use crate::http::operation::{Params, peer};
use crate::http::problem::Refusal;
use crate::http::upgrade::{Upgrade, wants_reuse};
use crate::splice::Leg;
use crate::splice::reuse::Reuse;
use crate::stream::Claim;
use crate::stream::join::{ClaimError, LegOf};
use crate::stream::leg_close::{deliver, refuse};

/// Joins a leg.
///
/// # Errors
/// `token_missing`, `stream_unknown`, `token_used`, `stream_expired`.
pub(super) async fn join(core: Arc<Core>, mut request: Request) -> Result<Response, Refusal> {
    let params = Params::of(&mut request).await?;
    let (node, stream): (NodeId, StreamId) = (params.parse("node")?, params.parse("stream")?);
    let token = bearer::leg_token(request.headers())?;
    if node != core.node {
        return Err(Refusal::new(ProblemCode::StreamUnknown, format!("there is no node {node}")));
    }
    let claim = core.streams.claim(stream, &token).map_err(|error| refusal(&error, stream))?;
    let peer = peer(&request)?;
    peer.permit.authenticated();

    // A caller's leg that was joined with a leg token has nobody's rights behind it.
    let is_device = matches!(claim, Claim::Join(LegOf::Device(_), _));
    let reuse = (is_device && wants_reuse(request.headers())).then_some(Reuse::Device);
    let upgrade = Upgrade::new(&mut request, STREAM_SUBPROTOCOL)?;
    let (answer, upgrading) = if reuse.is_some() { upgrade.accept_for_reuse() } else { upgrade.accept() };
    let (tasks, ping) = (core.tasks.clone(), core.ping_interval());
    tasks.spawn("joining", async move {
        let leg = match upgrading.socket().await {
            Ok(socket) => Box::new(Leg::new(socket, ping, peer.permit, reuse)),
            Err(error) => return debug!(%stream, %error, "a leg's connection ended before it joined"),
        };
        match claim {
            Claim::Join(of, events) => deliver(&core.streams, stream, events, of, leg).await,
            Claim::Refused(problem) => refuse(leg, &problem).await,
        }
    });
    Ok(answer)
}

fn refusal(error: &ClaimError, stream: StreamId) -> Refusal {
    let code = match error {
        ClaimError::Unknown => ProblemCode::StreamUnknown,
        ClaimError::Used => ProblemCode::TokenUsed,
        ClaimError::Over => ProblemCode::StreamExpired,
    };
    let mut problem = Problem::new(code, error.to_string());
    problem.stream = Some(stream);
    problem.into()
}
