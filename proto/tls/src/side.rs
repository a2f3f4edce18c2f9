//! What the two sides of TLS differ in: rustls has a type for each, and their peers wait for different things.

use rustls::ProtocolVersion;
use rustls::client::{ClientConnectionData, UnbufferedClientConnection};
use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::UnbufferedStatus;

/// One side of TLS: [`UnbufferedClientConnection`] or [`UnbufferedServerConnection`].
pub trait Side: half::Half {}

impl Side for UnbufferedClientConnection {}
impl Side for UnbufferedServerConnection {}

/// Seals [`Side`].
pub(crate) mod half {
    use super::UnbufferedStatus;

    /// The calls that rustls has on each side.
    pub trait Half: Unpin {
        /// What rustls keeps for this side alone.
        type Data;

        /// Processes ciphertext in place, up to the next state.
        fn process<'c, 'i>(&'c mut self, cipher: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data>;

        /// Whether rustls has bytes for the peer that are not encoded yet.
        fn owes_bytes(&self) -> bool;

        /// Whether the peer sends nothing until it has the end of this side's handshake. Otherwise the end can wait for the first bytes.
        fn is_awaited_by_peer(&self) -> bool;
    }
}

impl half::Half for UnbufferedClientConnection {
    type Data = ClientConnectionData;

    fn process<'c, 'i>(&'c mut self, cipher: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(cipher)
    }

    fn owes_bytes(&self) -> bool {
        self.wants_write()
    }

    /// A server waits for the client's request in any case.
    fn is_awaited_by_peer(&self) -> bool {
        false
    }
}

impl half::Half for UnbufferedServerConnection {
    type Data = ServerConnectionData;

    fn process<'c, 'i>(&'c mut self, cipher: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(cipher)
    }

    fn owes_bytes(&self) -> bool {
        self.wants_write()
    }

    /// In TLS 1.3 only session tickets are left, which would wake the client for nothing.
    fn is_awaited_by_peer(&self) -> bool {
        self.protocol_version() != Some(ProtocolVersion::TLSv1_3)
    }
}
