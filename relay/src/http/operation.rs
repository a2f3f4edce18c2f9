//! One thing that a caller can ask for, and the one way to it: form, token, decision, and only then what was asked for.

use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;

use axum::RequestExt;
use axum::extract::{RawPathParams, Request};
use axum::response::Response;
use http::HeaderMap;
use moorline_proto::claims::Action;
use moorline_proto::problem::ProblemCode;

use crate::access::policy::{Denied, Permit, Resource};
use crate::access::principal::Caller;
use crate::core::Core;
use crate::http::bearer::bearer;
use crate::http::problem::Refusal;
use crate::net::admission::{CallerDigest, Peer};

/// One thing that a caller can ask for. The route names the action; [`run`] goes through these steps in order.
pub(super) trait Operation: Sized + Send {
    /// What the decision gives.
    type Permit: Permit + Send;

    /// Reads the request: its form alone is judged.
    fn read(core: &Core, params: &Params, request: &mut Request) -> impl Future<Output = Result<Self, Refusal>> + Send;

    /// What it acts on, found once the caller is known.
    fn resource(&mut self, core: &Core) -> Result<Resource<'_>, Refusal>;

    /// The refusal for a caller that the policy denies the operation.
    fn denied(&self, _core: &Core, _caller: &Caller, _address: IpAddr, denied: Denied) -> Refusal {
        Refusal::new(denied.problem(), denied.to_string())
    }

    /// Does it.
    fn run(self, core: Arc<Core>, authorized: Authorized<Self::Permit>) -> impl Future<Output = Result<Response, Refusal>> + Send;
}

/// A caller who may do what was asked for.
#[derive(Debug)]
pub(super) struct Authorized<P> {
    /// Who.
    pub(super) caller: Caller,
    /// From where, on which connection.
    pub(super) peer: Peer,
    /// The permission.
    pub(super) permit: P,
}

/// Goes from a request to its answer, for an action of the route table.
pub(super) async fn run<O: Operation>(core: Arc<Core>, action: Action, mut request: Request) -> Result<Response, Refusal> {
    let peer = peer(&request)?;
    let params = Params::of(&mut request).await?;
    let mut operation = O::read(&core, &params, &mut request).await?;
    let caller = authenticate(&core, &peer, request.headers())?;
    let decided = O::Permit::decide(&caller, action, operation.resource(&core)?, peer.address, core.clock.now());
    let permit = decided.map_err(|denied| operation.denied(&core, &caller, peer.address, denied))?;
    operation.run(core, Authorized { caller, peer, permit }).await
}

/// The caller of a request, for whom the connection counts from then on.
///
/// # Errors
/// Those of the token; `overloaded`, where the caller holds as many connections as it may.
pub(super) fn authenticate(core: &Core, peer: &Peer, headers: &HeaderMap) -> Result<Caller, Refusal> {
    let caller = core.tokens.authenticate(&bearer(headers)?);
    let caller = caller.map_err(|error| Refusal::new(error.problem(), error.to_string()))?;
    let held = peer.permit.authenticated_as(CallerDigest::of(&caller.id));
    held.map_err(|error| Refusal::new(ProblemCode::Overloaded, error.to_string()))?;
    Ok(caller)
}

/// The peer of a request, which the connection put there.
pub(super) fn peer(request: &Request) -> Result<Peer, Refusal> {
    let peer = request.extensions().get::<Peer>().cloned();
    peer.ok_or_else(|| Refusal::new(ProblemCode::Internal, "the connection is not known"))
}

/// The named parts of a request's path.
#[derive(Debug)]
pub(super) struct Params(RawPathParams);

impl Params {
    /// Those of a request that a route matched.
    pub(super) async fn of(request: &mut Request) -> Result<Self, Refusal> {
        let params = request.extract_parts::<RawPathParams>().await;
        params.map(Self).map_err(|error| Refusal::new(ProblemCode::Malformed, error.to_string()))
    }

    /// One of them, as the name that it must be.
    pub(super) fn parse<T: FromStr<Err: std::fmt::Display>>(&self, name: &str) -> Result<T, Refusal> {
        let text = self.0.iter().find(|(key, _)| *key == name).map_or("", |(_, value)| value);
        parse(text)
    }
}

/// Reads a name.
pub(super) fn parse<T: FromStr<Err: std::fmt::Display>>(text: &str) -> Result<T, Refusal> {
    text.parse().map_err(|error: T::Err| Refusal::new(ProblemCode::Malformed, error.to_string()))
}
