//! The sockets where peers touch us: accepting them, whom a balancer brings, and TLS.

pub mod accept;
mod proxied;
pub mod tls;
