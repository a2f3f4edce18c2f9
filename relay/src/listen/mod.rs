//! The sockets where peers touch us: accepting them, whom a balancer brings, and TLS.

pub mod accept;
pub mod proxied;
pub mod tls;
