//! How an end of Moorline reaches the relay, whoever it is: the device's agent and the caller's client stand on this.
//!
//! ```text
//!   Dialer ── DNS ─▶ TCP ─▶ TLS ─▶ HTTP/1.1 upgrade ──▶ WebSocket   one deadline for all of it
//!                                                          │
//!                          control channel ◀───────────────┴──────▶ Leg ◀══ bridge ══▶ local socket
//! ```
//!
//! Reading order: [`dial`] (reaching the relay), [`leg`] (a leg as a stream of bytes, and why it ended), [`bridge`](mod@bridge) (a leg and a
//! local socket tied together). What is said is in `moorline_proto`; what a device or a caller does with it is in their own crates.

pub mod bridge;
mod buffered_tcp;
pub mod connection;
pub mod descriptors;
pub mod dial;
mod error;
mod exchange;
pub mod leg;
mod tcp;
mod tls_sessions;
mod trust;

#[cfg(test)]
mod bridge_tests;
#[cfg(test)]
mod dial_tests;
#[cfg(test)]
mod leg_tests;
#[cfg(test)]
mod scripted_relay;
