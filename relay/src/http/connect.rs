//! `GET /v1/devices/{device}/connect/{service}`: negotiates and joins in one request. The 101 comes at once, so that pings hold the
//! connection through any balancer; the verdict is the first message.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::Request;
use axum::response::Response;
use moorline_proto::names::STREAM_SUBPROTOCOL;
use tokio::time::Instant;
use tracing::debug;

use crate::access::permit::StreamPermit;
use crate::access::policy::{Denied, Resource};
use crate::access::principal::{AskingCaller, Caller};
use crate::core::Core;
use crate::http::operation::{Authorized, Operation, Params};
use crate::http::problem::Refusal;
use crate::http::stream_request::{self, StreamForm};
use crate::http::upgrade::{Upgrade, wants_reuse};
use crate::splice::Leg;
use crate::splice::reuse::Reuse;
use crate::stream::join::LegOf;
use crate::stream::leg_close::deliver;
use crate::stream::{Event, Via};

/// A stream whose caller leg is the very request that asks for it.
#[derive(Debug)]
pub(super) struct Connect {
    form: StreamForm,
    upgrade: Upgrade,
    wants_reuse: bool,
}

impl Operation for Connect {
    type Permit = StreamPermit;

    async fn read(_core: &Core, params: &Params, request: &mut Request) -> Result<Self, Refusal> {
        let since = Instant::now();
        let (device, service) = (params.parse("device")?, params.parse("service")?);
        let open = stream_request::from_headers(request.headers(), service)?;
        let key = stream_request::key(request.headers())?;
        let wants_reuse = wants_reuse(request.headers());
        let upgrade = Upgrade::new(request, STREAM_SUBPROTOCOL)?;
        Ok(Self { form: StreamForm { device, open, key, since }, upgrade, wants_reuse })
    }

    fn resource(&mut self, _core: &Core) -> Result<Resource<'_>, Refusal> {
        Ok(self.form.resource())
    }

    fn denied(&self, core: &Core, caller: &Caller, address: IpAddr, denied: Denied) -> Refusal {
        self.form.denied(core, caller, address, denied)
    }

    async fn run(self, core: Arc<Core>, Authorized { caller, peer, permit }: Authorized<StreamPermit>) -> Result<Response, Refusal> {
        let stream = self.form.open(&core, permit, Via::Connect).await?;
        let (answer, upgrading, reuse) = if self.wants_reuse {
            let (answer, upgrading) = self.upgrade.accept_for_reuse();
            (answer, upgrading, Some(Reuse::Caller(Box::new(AskingCaller { caller, address: peer.address }))))
        } else {
            let (answer, upgrading) = self.upgrade.accept();
            (answer, upgrading, None)
        };
        let (tasks, ping) = (core.tasks.clone(), core.ping_interval());
        tasks.spawn("joining", async move {
            match upgrading.socket().await {
                Ok(socket) => {
                    let leg = Box::new(Leg::new(socket, ping, peer.permit, reuse));
                    deliver(&core.streams, stream.stream, stream.events(), LegOf::Caller, leg).await;
                }
                Err(error) => {
                    debug!(stream = %stream.stream, %error, "the caller's connection ended before its leg joined");
                    // A stream that is over by now needs no telling.
                    stream.events().send(Event::CallerLost).await.ok();
                }
            }
        });
        Ok(answer)
    }
}
