//! The sockets where peers touch us: accepting them, and TLS.

pub mod accept;
pub mod tls;
pub mod tls_stream;
