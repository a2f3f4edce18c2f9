//! What Moorline's relay, device agents and service clients say to one another, as pure data.
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
//! Reading order: [`id`] and [`names`] (what things are called), [`control`] and [`leg`] (what is said),
//! [`problem`] and [`close`] (how it is refused and how it ends), [`proof`] and [`claims`] (who says it),
//! [`api`] (bodies of requests), [`bounds`] (how large any of it may be).
//!
//! There is no I/O here, no clock and no randomness: all of it can be tested by bytes, and is (`vectors/`).
//!
//! # Glossary
//!
//! A *device* runs the agent and is named by a device id; a *service* is what it exposes, by service name;
//! a *caller* asks for a *stream*. The *control channel* is the one WebSocket that a device holds open; an *offer*
//! is the relay's question on it. A stream has two *legs*, one WebSocket each; the relay *splices* them.

pub mod api;
pub mod bounds;
pub mod causes;
pub mod certificate;
pub mod claims;
mod clamp;
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
pub mod problem;
pub mod proof;
pub mod secret;
pub mod text;
pub mod timestamp;
