//! The control channel: the one WebSocket that a device holds open. From the 101 to its end.
//!
//! ```text
//!   Unauthenticated ── authenticate ──▶ Authenticated ── admit ──▶ Session ── run ──▶ CloseCause
//! ```
//!
//! Does not know where devices are listed, nor what streams are: it carries out commands and reports answers.

pub mod channel;
pub mod handle;
pub mod handshake;
pub mod idle;
pub mod keepalive;
pub mod session;
