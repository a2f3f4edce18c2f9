//! Connections as bytes: accepting and limiting them, addresses behind load balancers, TLS. Knows no HTTP.

pub mod accept;
pub mod admission;
mod carrier;
pub mod client_address;
pub mod connection;
mod held_head;
mod idle;
pub mod proxy_header;
pub mod tls;
mod unauthenticated;
