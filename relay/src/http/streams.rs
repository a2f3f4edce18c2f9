//! `GET /v1/streams` and `DELETE /v1/streams/{stream}`: live streams, and the end of one.

use std::net::IpAddr;
use std::sync::Arc;

use axum::Json;
use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use moorline_proto::api::StreamList;
use moorline_proto::claims::Action;
use moorline_proto::id::StreamId;
use moorline_proto::problem::ProblemCode;
use tracing::info;

use crate::access::permit::AdminPermit;
use crate::access::policy::{Denied, Permit, Resource};
use crate::access::principal::Caller;
use crate::access::revocation::Cut;
use crate::core::Core;
use crate::http::operation::{Authorized, Operation, Params};
use crate::http::problem::Refusal;
use crate::stream::record::Facts;

/// The live streams that the caller may see.
#[derive(Debug)]
pub(super) struct List;

impl Operation for List {
    type Permit = AdminPermit;

    async fn read(_core: &Core, _params: &Params, _request: &mut Request) -> Result<Self, Refusal> {
        Ok(Self)
    }

    fn resource(&mut self, _core: &Core) -> Result<Resource<'_>, Refusal> {
        Ok(Resource::ALL)
    }

    async fn run(self, core: Arc<Core>, Authorized { caller, peer, .. }: Authorized<AdminPermit>) -> Result<Response, Refusal> {
        let now = core.clock.now();
        let sees = |facts: &Facts| {
            let resource = Resource::service(&facts.device, &facts.service);
            AdminPermit::decide(&caller, Action::StreamList, resource, peer.address, now).is_ok()
        };
        Ok(Json(StreamList { streams: core.streams.all(sees) }).into_response())
    }
}

/// Ends a stream: 204 once its end was requested.
#[derive(Debug)]
pub(super) struct End {
    stream: StreamId,
    facts: Option<Facts>,
}

impl End {
    fn unknown(&self) -> Refusal {
        Refusal::new(ProblemCode::StreamUnknown, format!("there is no live stream {}", self.stream))
    }
}

impl Operation for End {
    type Permit = AdminPermit;

    async fn read(_core: &Core, params: &Params, _request: &mut Request) -> Result<Self, Refusal> {
        Ok(Self { stream: params.parse("stream")?, facts: None })
    }

    fn resource(&mut self, core: &Core) -> Result<Resource<'_>, Refusal> {
        let unknown = self.unknown();
        let facts = self.facts.insert(core.streams.facts(self.stream).ok_or(unknown)?);
        Ok(Resource::service(&facts.device, &facts.service))
    }

    /// A stream of a device that the caller may not see looks like one that does not exist.
    fn denied(&self, _core: &Core, _caller: &Caller, _address: IpAddr, denied: Denied) -> Refusal {
        if denied == Denied::DeviceUnknown { self.unknown() } else { Refusal::new(denied.problem(), denied.to_string()) }
    }

    async fn run(self, core: Arc<Core>, Authorized { permit, .. }: Authorized<AdminPermit>) -> Result<Response, Refusal> {
        let is_cut = Cut::killed(&permit).is_some_and(|cut| core.streams.cut(self.stream, cut));
        if !is_cut {
            return Err(self.unknown());
        }
        let (stream, device, by) = (self.stream, permit.device(), &permit.basis().caller);
        info!(%stream, device = device.map(tracing::field::display), %by, token_id = permit.basis().token_id.as_deref(), "stream ended by an operator");
        Ok(StatusCode::NO_CONTENT.into_response())
    }
}
