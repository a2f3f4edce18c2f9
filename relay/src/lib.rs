//! The relay: devices wait here, callers ask here, streams are spliced here.
//!
//! The program is [`cli`]; everything that runs hangs off one value, so that several relays can live in one process (tests do that).

pub mod access;
pub mod cli;
pub mod clock;
pub mod config;
pub mod control;
pub mod core;
pub mod device_changes;
mod digest;
pub mod directory;
pub mod http;
pub mod init;
pub mod join_string;
pub mod lifecycle;
pub mod limits;
pub mod logging;
pub mod net;
mod ping_limiter;
mod pki;
mod random;
pub mod relay;
pub mod serve;
pub mod splice;
pub mod state_lock;
pub mod store;
pub mod stream;
mod sync;
pub mod tasks;
pub mod token;
mod ttl_map;
