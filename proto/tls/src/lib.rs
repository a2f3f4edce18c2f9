//! A TLS connection as a byte stream, for the relay and for those who dial it. It owns no buffer while nothing is in flight.
//!
//! ```text
//!   socket ── ciphertext ─▶ the thread's buffer ── decrypted in place ─▶ reader
//!   socket ◀─ ciphertext ── the thread's buffer ◀─ encrypted at once ─── writer
//! ```
//!
//! Knows nothing of certificates, protocol versions and deadlines. There is no early data, because it can be replayed.

mod session;
mod side;
mod stream;

pub use side::Side;
pub use stream::{ClientStream, ServerStream, TlsStream};

#[cfg(test)]
mod stream_tests;
