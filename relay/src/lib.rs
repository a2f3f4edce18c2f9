//! The relay: devices wait here, callers ask here, streams are spliced here.
//!
//! The program is [`cli`]; everything that runs hangs off one value, so that several relays can live in one process (tests do that).

pub mod api;
pub mod auth;
pub mod cli;
pub mod clock;
pub mod config;
pub mod control;
pub mod directory;
mod fading;
pub mod http;
pub mod init;
pub mod limits;
pub mod listen;
pub mod opening;
mod pki;
pub mod proxies;
mod random;
pub mod relay;
pub mod rendezvous;
pub mod routes;
pub mod serve;
pub mod slots;
pub mod socket;
pub mod splice;
pub mod store;
pub mod streams;
pub mod tasks;
pub mod tls_stream;
pub mod token;
