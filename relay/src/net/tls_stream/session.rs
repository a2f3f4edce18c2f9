//! The part of a TLS connection that knows no socket: ciphertext in; plaintext, and ciphertext to be sent, out.

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

/// Where plaintext goes.
pub(super) trait Sink {
    /// Takes of the front what it has room for, and says how much.
    fn take(&mut self, plain: &[u8]) -> usize;

    /// Whether nothing is ever left by it.
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

/// Gives on all that comes, and counts it.
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

/// What the peer has said about its direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ReadState {
    Open,
    /// It said `close_notify`.
    Closed,
    /// The socket ended without one.
    Truncated,
}

/// One TLS connection, on the server's side.
pub(super) struct Session {
    tls: UnbufferedServerConnection,
    /// Decrypted, and not taken by the reader yet.
    pub(super) plain: BytesMut,
    /// Encrypted, and not taken by the socket yet.
    pub(super) out: Vec<u8>,
    /// The handshake is done.
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

    /// Whether it is TLS 1.3, once that is agreed.
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

    /// Whether it holds bytes of either kind.
    pub(super) fn holds_bytes(&self) -> bool {
        self.plain.capacity() + self.out.capacity() > 0
    }

    /// Takes ciphertext in, and says how many bytes of its front are done with. Plaintext goes to `to` as far as it fits there.
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
                Ok(other) => return Err(io::Error::other(format!("TLS came to a state that is not expected: {other:?}"))),
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

    /// After an error rustls has an alert ready that tells the peer, behind what it had to say before that.
    fn queue_alert(&mut self) {
        loop {
            match self.tls.process_tls_records(&mut []).state {
                Ok(ConnectionState::EncodeTlsData(message)) => drop(encode(message, &mut self.out)),
                Ok(ConnectionState::TransmitTlsData(queued)) => queued.done(),
                Ok(_) | Err(_) => return,
            }
        }
    }

    /// Encrypts to where [`Session::out`] has bytes already that go first.
    pub(super) fn queue(&mut self, plain: &[u8]) -> io::Result<()> {
        self.when_writable(|traffic, out| {
            let at = out.len();
            let end = seal(traffic, plain, out, at)?;
            out.truncate(end);
            Ok(())
        })
    }

    /// Encrypts to the front of `scratch`, and says how much it became.
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

    /// What earlier reads made rustls say, such as the answer to a key update, is queued and goes first.
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

/// Encrypts `plain` to `into[at..]`, which is made longer where it is too short. Where it ends.
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
