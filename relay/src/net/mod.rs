//! Connections: accepting them, which peers may have one, whose address a balancer reports, TLS, and the bytes beneath everything else.

pub mod accept;
pub mod admission;
pub mod client_address;
pub mod connection;
pub mod proxy_header;
pub mod tls;
pub mod tls_stream;
