//! The device's side of Moorline: keeps a control channel to a relay open, decides about offers, connects streams to local services.
//!
//! The program `moorline-agent` is this library with a configuration file. A program that is a device itself can embed it. It gets each
//! offer and accepts it with any byte stream:
//!
//! ```no_run
//! use moorline_agent::{Accepted, Agent, Decision, Identity, OfferInfo, RejectCode, Settings};
//!
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! let join: moorline_agent::Join = std::fs::read_to_string("join")?.parse()?;
//! let settings = Settings::new(join, "lamp-1".parse()?, Identity::load("device.key".as_ref())?)
//!     .exposing("echo", "echoes everything");
//! let agent = Agent::new(settings, |offer: OfferInfo| async move {
//!     if offer.caller.subject.as_str() != "alice" {
//!         return Decision::reject(RejectCode::Policy, "alice only");
//!     }
//!     let (local, remote) = tokio::io::duplex(4096);
//!     // … pass `remote` to the code that serves the stream …
//!     # drop(remote);
//!     Decision::Accept(Accepted::stream(local))
//! })?;
//! agent.run(std::future::pending()).await;
//! # Ok(())
//! # }
//! ```
//!
//! Reading order: [`agent`] (connect, serve, wait, reconnect), [`session`] (one control channel), `offer` (one offer), `request` (how it
//! is decided), `leg_offer` (a leg that is used again), [`policy`] and [`reconnect`] (pure decisions).

mod admission;
pub mod agent;
pub mod cli;
pub mod config;
mod context;
mod control_sender;
mod handle;
pub mod handler;
pub mod identity;
mod idle_legs;
pub mod init;
mod leg_offer;
pub mod limits;
mod logging;
mod offer;
pub mod policy;
pub mod reconnect;
mod request;
pub mod session;
pub mod settings;
mod streams;
pub mod target;
mod warm_legs;

#[cfg(test)]
mod agent_tests;
#[cfg(test)]
mod leg_tests;
#[cfg(test)]
mod retry_tests;
#[cfg(test)]
mod scripted;
#[cfg(test)]
mod warm_tests;

pub use agent::Agent;
pub use handle::{AgentHandle, ReplaceError};
pub use handler::{Accepted, Decision, Handler, OfferInfo};
pub use identity::Identity;
pub use moorline_proto::control::RejectCode;
pub use moorline_proto::join::Join;
pub use settings::Settings;
