//! TLS without a socket: takes ciphertext in, gives plaintext and ciphertext to be sent out.

use std::io;
use std::sync::Arc;

use bytes::{Buf, BytesMut};
use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{ConnectionState, EncodeError, EncodeTlsData, EncryptError, UnbufferedStatus, WriteTraffic};
use rustls::{ProtocolVersion, ServerConfig};
use tokio::io::ReadBuf;

/// The plaintext of a full record.
const RECORD_PLAIN: usize = 16 * 1024;
/// Header, content type and tag of a record, with room to spare. An alert fits in it too.
const RECORD_OVERHEAD: usize = 64;

/// Where decrypted bytes go.
pub(super) trait Sink {
    /// Takes as many bytes from the front as it has room for, and returns how many.
    fn take(&mut self, plain: &[u8]) -> usize;

    /// Whether it always takes everything.
    fn takes_everything(&self) -> bool;
}

impl Sink for ReadBuf<'_> {
    fn take(&mut self, plain: &[u8]) -> usize {
        let some = plain.len().min(self.remaining());
        self.put_slice(&plain[..some]);
        some
    }

    fn takes_everything(&self) -> bool {
        false
    }
}

/// Passes on and counts everything that comes.
pub(super) struct Pieces<'a> {
    pub(super) to: &'a mut dyn FnMut(&[u8]),
    pub(super) count: usize,
}

impl Sink for Pieces<'_> {
    fn take(&mut self, plain: &[u8]) -> usize {
        if !plain.is_empty() {
            (self.to)(plain);
        }
        self.count += plain.len();
        plain.len()
    }

    fn takes_everything(&self) -> bool {
        true
    }
}

/// How far the peer's direction is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ReadState {
    Open,
    /// The peer sent `close_notify`.
    Closed,
    /// The socket ended without `close_notify`.
    Truncated,
}

/// The state of one TLS connection, server side.
pub(super) struct Session {
    tls: UnbufferedServerConnection,
    /// Decrypted bytes that the reader has not taken yet.
    pub(super) plain: BytesMut,
    /// Encrypted bytes that the socket has not taken yet.
    pub(super) out: Vec<u8>,
    /// The handshake is complete.
    pub(super) established: bool,
    pub(super) read_state: ReadState,
}

pub(super) fn invalid(error: impl std::error::Error + Send + Sync + 'static) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

impl Session {
    pub(super) fn new(config: Arc<ServerConfig>) -> io::Result<Self> {
        let tls = UnbufferedServerConnection::new(config).map_err(invalid)?;
        Ok(Self { tls, plain: BytesMut::new(), out: Vec::new(), established: false, read_state: ReadState::Open })
    }

    /// Whether TLS 1.3 was negotiated.
    pub(super) fn is_tls13(&self) -> bool {
        self.tls.protocol_version() == Some(ProtocolVersion::TLSv1_3)
    }

    /// Hands over plaintext that did not fit before.
    pub(super) fn take_plain(&mut self, to: &mut impl Sink) {
        let some = to.take(&self.plain);
        self.plain.advance(some);
        if self.plain.is_empty() {
            self.plain = BytesMut::new();
        }
    }

    /// Whether bytes of either direction are buffered.
    pub(super) fn holds_bytes(&self) -> bool {
        self.plain.capacity() + self.out.capacity() > 0
    }

    /// Processes ciphertext and returns how many bytes of its front were consumed. Plaintext goes to `to` as far as it fits.
    pub(super) fn process(&mut self, cipher: &mut [u8], to: &mut impl Sink) -> io::Result<usize> {
        let mut used = 0;
        loop {
            let UnbufferedStatus { mut discard, state } = self.tls.process_tls_records(&mut cipher[used..]);
            let mut waits = false;
            match state {
                Ok(ConnectionState::ReadTraffic(mut records)) => {
                    while let Some(record) = records.next_record() {
                        let record = record.map_err(invalid)?;
                        discard += record.discard;
                        let direct = if self.plain.is_empty() { to.take(record.payload) } else { 0 };
                        self.plain.extend_from_slice(&record.payload[direct..]);
                    }
                }
                Ok(ConnectionState::EncodeTlsData(message)) => encode(message, &mut self.out)?,
                Ok(ConnectionState::TransmitTlsData(queued)) => queued.done(),
                Ok(ConnectionState::WriteTraffic(_)) => {
                    self.established = true;
                    waits = true;
                }
                Ok(ConnectionState::PeerClosed) => self.read_state = ReadState::Closed,
                Ok(ConnectionState::BlockedHandshake | ConnectionState::Closed) => waits = true,
                Ok(other) => return Err(io::Error::other(format!("unexpected TLS state: {other:?}"))),
                Err(error) => {
                    self.queue_alert();
                    return Err(invalid(error));
                }
            }
            used += discard;
            if waits {
                return Ok(used);
            }
        }
    }

    /// After an error rustls has an alert for the peer, behind whatever it had queued before.
    fn queue_alert(&mut self) {
        loop {
            match self.tls.process_tls_records(&mut []).state {
                Ok(ConnectionState::EncodeTlsData(message)) => drop(encode(message, &mut self.out)),
                Ok(ConnectionState::TransmitTlsData(queued)) => queued.done(),
                Ok(_) | Err(_) => return,
            }
        }
    }

    /// Encrypts behind the bytes that [`Session::out`] holds already.
    pub(super) fn queue(&mut self, plain: &[u8]) -> io::Result<()> {
        self.when_writable(|traffic, out| {
            let at = out.len();
            let end = seal(traffic, plain, out, at)?;
            out.truncate(end);
            Ok(())
        })
    }

    /// Encrypts to the front of `scratch` and returns the number of bytes written.
    pub(super) fn encrypt(&mut self, plain: &[u8], scratch: &mut Vec<u8>) -> io::Result<usize> {
        self.when_writable(|traffic, _| seal(traffic, plain, scratch, 0))
    }

    pub(super) fn close_notify(&mut self) -> io::Result<()> {
        self.queue_pending()?;
        self.when_writable(|traffic, out| {
            let mut alert = [0; RECORD_OVERHEAD];
            let count = traffic.queue_close_notify(&mut alert).map_err(invalid)?;
            out.extend_from_slice(&alert[..count]);
            Ok(())
        })
    }

    /// Queues what earlier reads made rustls owe the peer, such as the answer to a key update, so that it goes first.
    pub(super) fn queue_pending(&mut self) -> io::Result<()> {
        self.process(&mut [], &mut ReadBuf::new(&mut [])).map(drop)
    }

    fn when_writable<T>(
        &mut self,
        act: impl FnOnce(&mut WriteTraffic<'_, ServerConnectionData>, &mut Vec<u8>) -> io::Result<T>,
    ) -> io::Result<T> {
        match self.tls.process_tls_records(&mut []).state {
            Ok(ConnectionState::WriteTraffic(mut traffic)) => act(&mut traffic, &mut self.out),
            Ok(_) => Err(io::ErrorKind::BrokenPipe.into()),
            Err(error) => Err(invalid(error)),
        }
    }
}

fn encode(mut message: EncodeTlsData<'_, ServerConnectionData>, into: &mut Vec<u8>) -> io::Result<()> {
    let at = into.len();
    if let Err(EncodeError::InsufficientSize(size)) = message.encode(&mut []) {
        into.resize(at + size.required_size, 0);
        message.encode(&mut into[at..]).map_err(invalid)?;
    }
    Ok(())
}

/// Encrypts `plain` into `into[at..]`, growing it where needed, and returns where the ciphertext ends.
fn seal(traffic: &mut WriteTraffic<'_, ServerConnectionData>, plain: &[u8], into: &mut Vec<u8>, at: usize) -> io::Result<usize> {
    let records = plain.len() / RECORD_PLAIN + 1;
    let enough = at + plain.len() + records * RECORD_OVERHEAD;
    if into.len() < enough {
        into.resize(enough, 0);
    }
    let mut done = traffic.encrypt(plain, &mut into[at..]);
    if let Err(EncryptError::InsufficientSize(size)) = &done {
        into.resize(at + size.required_size, 0);
        done = traffic.encrypt(plain, &mut into[at..]);
    }
    done.map(|count| at + count).map_err(invalid)
}
