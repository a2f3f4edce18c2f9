//! `GET /v1/legs/{node}/{stream}`: joins one leg, with that leg's token, which alone says which side it is.

use std::sync::Arc;

use axum::extract::{Path, Request, State};
use axum::response::Response;
use http::HeaderMap;
use moorline_proto::id::{NodeId, StreamId};
use moorline_proto::names::{STREAM_SUBPROTOCOL, TOKEN_SUBPROTOCOL_PREFIX};
use moorline_proto::problem::ProblemCode;
use moorline_proto::secret::Secret;
use tracing::debug;

use crate::http::bearer;
use crate::http::problem::Refusal;
use crate::http::upgrade::{subprotocols, upgrade};
use crate::http::{Edge, parse, visitor};
use crate::splice::{Leg, Side};
use crate::stream::hand_in;
use crate::stream::join::{ClaimError, TokenOf};

/// Joins a leg.
///
/// # Errors
/// `token_missing`, `stream_unknown`, `token_used`, `stream_expired`, and what an upgrade must have.
pub async fn join(
    State(edge): State<Arc<Edge>>,
    Path((node, stream)): Path<(String, String)>,
    mut request: Request,
) -> Result<Response, Refusal> {
    let (node, stream): (NodeId, StreamId) = (parse(&node)?, parse(&stream)?);
    let upgrade = upgrade(&mut request, STREAM_SUBPROTOCOL, &edge.origins)?;
    let token = token(request.headers())?;
    if node != edge.node {
        return Err(Refusal::new(ProblemCode::StreamUnknown, format!("there is no node {node}")));
    }
    let (side, mail) = edge.rendezvous.claim(stream, &token).map_err(|error| refusal(&error, stream))?;
    let side = match side {
        TokenOf::Device => Side::Device,
        TokenOf::Caller => Side::Caller,
    };
    let visitor = visitor(&request)?;
    visitor.permit.authenticated();

    let (answer, upgrading) = upgrade.accept();
    let ping = edge.ping();
    edge.tasks.spawn("joining", move |_stop| async move {
        match upgrading.socket().await {
            Ok(socket) => hand_in(mail, side, Leg::new(socket, ping, visitor.permit)).await,
            Err(error) => debug!(%stream, %error, "a leg did not come about"),
        }
    });
    Ok(answer)
}

/// From `Authorization`, or, for browsers, from a second subprotocol.
fn token(headers: &HeaderMap) -> Result<Secret, Refusal> {
    if let Some(token) = bearer::find(headers)? {
        return Ok(token);
    }
    let token = subprotocols(headers).find_map(|offered| offered.strip_prefix(TOKEN_SUBPROTOCOL_PREFIX));
    token.map(Secret::new).ok_or_else(|| Refusal::new(ProblemCode::TokenMissing, "send the leg's token as `Authorization: Bearer …`"))
}

fn refusal(error: &ClaimError, stream: StreamId) -> Refusal {
    let code = match error {
        ClaimError::Unknown => ProblemCode::StreamUnknown,
        ClaimError::Used => ProblemCode::TokenUsed,
        ClaimError::Over => ProblemCode::StreamExpired,
    };
    let mut problem = moorline_proto::problem::Problem::new(code, error.to_string());
    problem.stream = Some(stream);
    problem.into()
}
