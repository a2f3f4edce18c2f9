//! The device's side of Moorline: holds one control channel open to a relay, decides about offers, carries streams to local services.
//!
//! The program `moorline-agent` is this library with a configuration file. A program that is a device itself embeds it, sees each offer,
//! and accepts it with any stream of bytes:
//!
//! ```no_run
//! use moorline_agent::{Accepted, Agent, Decision, Identity, OfferInfo, RejectCode, Settings};
//!
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! let join: moorline_agent::Join = std::fs::read_to_string("join")?.parse()?;
//! let settings = Settings::new(join, "lamp-1".parse()?, Identity::load("device.key".as_ref())?)
//!     .exposing("echo", "says everything twice");
//! let agent = Agent::new(settings, |offer: OfferInfo| async move {
//!     if offer.caller.subject.as_str() != "alice" {
//!         return Decision::reject(RejectCode::Policy, "alice only");
//!     }
//!     let (near, far) = tokio::io::duplex(4096);
//!     // … hand `far` to whatever answers …
//!     # drop(far);
//!     Decision::Accept(Accepted::stream(near))
//! })?;
//! agent.run(std::future::pending()).await;
//! # Ok(())
//! # }
//! ```
//!
//! Reading order: [`agent`] (connect, hold, pause, again), [`session`] (one control channel), [`offer`] (one stream),
//! [`policy`] and [`backoff`] (what is decided, and how long to wait: pure).

pub mod agent;
pub mod backoff;
pub mod cli;
pub mod config;
mod control_sender;
pub mod identity;
pub mod init;
pub mod offer;
pub mod policy;
pub mod session;
pub mod settings;
pub mod target;

pub use agent::Agent;
pub use identity::Identity;
pub use moorline_proto::control::RejectCode;
pub use moorline_proto::join::Join;
pub use offer::{Accepted, Decision, Handler, OfferInfo};
pub use settings::Settings;
