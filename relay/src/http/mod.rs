//! HTTP: one file for each thing that a peer can ask for, and what all requests have in common (form, bearer tokens, upgrades, problems).

pub mod about;
pub mod bearer;
pub mod body;
pub mod connect;
pub mod control;
pub mod devices;
pub mod legs;
pub mod negotiate;
pub mod problem;
pub mod request_form;
pub mod routes;
pub mod server;
pub mod stream_request;
pub mod streams;
pub mod upgrade;
mod write_timeout;

use std::sync::Arc;
use std::time::Duration;

use axum::extract::Request;
use http::HeaderMap;
use moorline_proto::claims::Action;
use moorline_proto::id::NodeId;
use moorline_proto::problem::ProblemCode;
use rand::RngExt;

use crate::access::permit::AdminPermit;
use crate::access::policy::{self, On};
use crate::access::token::{Caller, CallerAuth};
use crate::clock::Clock;
use crate::directory::Directory;
use crate::http::bearer::bearer;
use crate::http::problem::Refusal;
use crate::limits::{Limits, Times};
use crate::net::admission::Peer;
use crate::store::{Registry, StoreError};
use crate::stream::join::Rendezvous;
use crate::stream::registry::Streams;
use crate::stream::{Event, Openings};
use crate::tasks::Tasks;
use moorline_proto::causes::Causes;

/// What the handlers answer from. One for each relay.
#[derive(Debug)]
pub struct Edge {
    /// This node.
    pub node: NodeId,
    /// The relay's names, lower case.
    pub names: Vec<String>,
    /// The ports that are dialled.
    pub ports: Vec<u16>,
    /// Pages of these may open WebSockets.
    pub origins: Vec<String>,
    /// Deadlines and intervals.
    pub times: Times,
    /// Bounds.
    pub limits: Limits,
    /// Wall time.
    pub clock: Clock,
    /// Owner of tasks.
    pub tasks: Tasks,
    /// Callers' tokens.
    pub callers: CallerAuth,
    /// Devices and their keys.
    pub registry: Arc<dyn Registry>,
    /// Where devices are.
    pub directory: Directory,
    /// Where legs join.
    pub rendezvous: Rendezvous<Event>,
    /// Every stream.
    pub streams: Streams,
    /// The way from asked to opened.
    pub openings: Openings,
}

/// The visitor of a request, which the connection put there.
fn visitor(request: &Request) -> Result<Peer, Refusal> {
    let visitor = request.extensions().get::<Peer>().cloned();
    visitor.ok_or_else(|| Refusal::new(ProblemCode::Internal, "the connection is not known"))
}

impl Edge {
    /// Who asks. The visitor is no stranger any more.
    fn caller(&self, headers: &HeaderMap, visitor: &Peer) -> Result<Caller, Refusal> {
        let caller = self.callers.authenticate(&bearer(headers)?);
        let caller = caller.map_err(|error| Refusal::new(error.problem(), error.to_string()))?;
        visitor.permit.authenticated();
        Ok(caller)
    }

    /// Leave for an action.
    fn act(&self, caller: &Caller, action: Action, on: On<'_>, visitor: &Peer) -> Result<AdminPermit, Refusal> {
        let leave = policy::act(caller, action, on, visitor.address, self.clock.now());
        leave.map_err(|denied| Refusal::new(denied.problem(), denied.to_string()))
    }

    /// The ping interval of one leg: a tenth less at most, so that legs do not ping in step.
    fn ping(&self) -> Duration {
        self.times.ping.mul_f64(rand::rng().random_range(0.9..=1.0))
    }
}

fn parse<T: std::str::FromStr<Err: std::fmt::Display>>(text: &str) -> Result<T, Refusal> {
    text.parse().map_err(|error: T::Err| Refusal::new(ProblemCode::Malformed, error.to_string()))
}

fn registry_failed(error: &StoreError) -> Refusal {
    tracing::error!(error = %Causes(error), "the registry failed");
    Refusal::new(ProblemCode::Internal, "the registry did not answer")
}
