//! The client side of the protocol's transport: what a device's agent and a caller's client share to reach a relay and to carry a stream.
//!
//! ```text
//!   Dialer ── DNS ─▶ TCP ─▶ TLS ─▶ HTTP/1.1 upgrade ──▶ WebSocket   one deadline for all of it
//!                                                          │
//!                          control channel ◀───────────────┴──────▶ Leg ◀══ bridge ══▶ local socket
//! ```
//!
//! Reading order: [`tcp`] (from a name to a connection), [`dial`] (reaching the relay), [`leg`] (a leg as a byte stream, and why it ended),
//! [`bridge`](mod@bridge) (copies between a leg and a local socket); [`backoff`] (every pause before a retry). The messages are in `moorline_proto`; the logic of devices and callers is
//! in their own crates.

pub mod backoff;
pub mod bridge;
pub mod connection;
pub mod descriptors;
pub mod dial;
mod error;
mod exchange;
pub mod leg;
mod local_side;
mod lock;
mod race;
mod resolver;
mod socket;
pub mod tcp;
mod tls_fault;
mod tls_sessions;
mod trust;
mod unacknowledged;

pub use unacknowledged::unacknowledged;

#[cfg(test)]
mod bridge_tests;
#[cfg(test)]
mod dial_tests;
#[cfg(test)]
mod idle_leg_tests;
#[cfg(test)]
mod leg_tests;
#[cfg(test)]
mod offered_leg_tests;
#[cfg(test)]
mod scripted_relay;
#[cfg(test)]
mod tcp_tests;
#[cfg(test)]
mod tls_leg_tests;
