//! How an end of Moorline reaches the relay, and how it carries a stream. The agent and the client stand on this; the relay does not.
//!
//! - [`dial`]: DNS → TCP → TLS → request or upgrade, under one deadline.
//! - [`leg`]: a stream's WebSocket as [`tokio::io::AsyncRead`] and [`tokio::io::AsyncWrite`], with true half-close and the reason of its end.
//! - [`bridge`]: a local socket and a leg, joined until both are done.
//!
//! Owns no task: everything here runs in the caller's future and ends when that is dropped.

pub mod bridge;
pub mod connection;
pub mod dial;
pub mod leg;
