//! The messages that Moorline's relay, device agents and service clients exchange, as pure data.
//!
//! ```text
//!   caller                        relay                         device
//!      │                            │◀── hello (proof) ───────────│  control channel: [`control`]
//!      │                            │─── welcome ────────────────▶│
//!      │── connect DEVICE SERVICE ─▶│                             │  [`api`], [`claims`]
//!      │                            │─── offer ──────────────────▶│
//!      │                            │◀── accept ──────────────────│
//!      │                            │◀══ device leg ══════════════│  legs: [`leg`]
//!      │◀──────── opened ───────────│─── opened ─────────────────▶│
//!      │◀═══════════════════════ splice ═════════════════════════▶│
//!      │◀──────── close ────────────│─── close ──────────────────▶│  [`close`]
//! ```
//!
//! Reading order: [`id`] and [`names`] (identifiers, paths and headers), [`control`] and [`leg`] (messages),
//! [`problem`] and [`close`] (refusals and close codes), [`proof`] and [`claims`] (authentication),
//! [`api`] (bodies of requests and responses), [`bounds`] (sizes, ranges and timeouts).
//!
//! There is no I/O here, no clock and no randomness: everything is tested with bytes (`vectors/`).
//!
//! # Glossary
//!
//! A *device* runs the agent and is named by a device id; a *service* is what it exposes, by service name;
//! a *caller* asks for a *stream*. The *control channel* is the one WebSocket that a device holds open; with an *offer*
//! on it the relay asks the device to take a stream. A stream has two *legs*, one WebSocket each; the relay *splices* them.

pub mod api;
pub mod bounds;
pub mod causes;
pub mod certificate;
pub mod claims;
pub mod close;
mod code;
pub mod control;
mod ed25519;
pub mod failure;
pub mod frame;
pub mod id;
pub mod join;
pub mod leg;
pub mod message;
pub mod millis;
pub mod names;
pub mod pasted;
pub mod problem;
pub mod proof;
pub mod reuse;
pub mod secret;
pub mod text;
pub mod timestamp;
pub mod whole;
