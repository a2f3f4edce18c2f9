//! `GET /v1/devices/{device}/connect/{service}`: negotiates and joins in one request. The 101 comes at once, so that pings hold the
//! connection through any balancer; the verdict is the first message.

use std::sync::Arc;

use axum::extract::{Path, Request, State};
use axum::response::Response;
use moorline_proto::names::STREAM_SUBPROTOCOL;
use tokio::time::Instant;
use tracing::debug;

use crate::http::problem::Refusal;
use crate::http::stream_request::{self, Question};
use crate::http::upgrade::upgrade;
use crate::http::{Edge, parse, visitor};
use crate::splice::{Leg, Side};
use crate::stream::{Event, Via, hand_in};

/// Opens a stream whose caller leg is this very request.
///
/// # Errors
/// What the relay can decide before the device is asked.
pub async fn connect(
    State(edge): State<Arc<Edge>>,
    Path((device, service)): Path<(String, String)>,
    mut request: Request,
) -> Result<Response, Refusal> {
    let since = Instant::now();
    let (device, service) = (parse(&device)?, parse(&service)?);
    let upgrade = upgrade(&mut request, STREAM_SUBPROTOCOL, &edge.origins)?;
    let open = stream_request::from_headers(request.headers(), service)?;
    let key = stream_request::key(request.headers())?;
    let visitor = visitor(&request)?;
    let caller = edge.caller(request.headers(), &visitor)?;
    let question = Question { device, open, key, via: Via::Connect, since };
    let (begun, _) = edge.begin(question, &caller, &visitor).await?;

    let (answer, upgrading) = upgrade.accept();
    let ping = edge.ping();
    edge.tasks.spawn("joining", move |_stop| async move {
        match upgrading.socket().await {
            Ok(socket) => hand_in(begun.mail, Side::Caller, Leg::new(socket, ping, visitor.permit)).await,
            Err(error) => {
                debug!(stream = %begun.stream, %error, "the caller's leg did not come about");
                // A stream that is over by now needs no telling.
                begun.mail.send(Event::CallerLost).await.ok();
            }
        }
    });
    Ok(answer)
}
