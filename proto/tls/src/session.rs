//! TLS without a socket: takes ciphertext in, gives plaintext and ciphertext to be sent out.

use std::io;
use std::mem::take;

use bytes::{Buf, BytesMut};
use rustls::unbuffered::{ConnectionState, EncodeError, EncodeTlsData, EncryptError, UnbufferedStatus, WriteTraffic};
use tokio::io::ReadBuf;

use crate::side::Side;

/// The plaintext of a full record.
const RECORD_PLAIN: usize = 16 * 1024;
/// Header, content type and tag of a record, with room to spare. An alert fits in it too.
const RECORD_OVERHEAD: usize = 64;

/// Where decrypted bytes go.
pub(crate) trait Sink {
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
pub(crate) struct Pieces<'a> {
    pub(crate) to: &'a mut dyn FnMut(&[u8]),
    pub(crate) count: usize,
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
pub(crate) enum ReadState {
    Open,
    /// The peer sent `close_notify`.
    Closed,
    /// The socket ended without `close_notify`.
    Truncated,
    /// The peer broke TLS. rustls must not be asked for anything more than the alert.
    Broken,
}

/// The state of one side of a TLS connection.
pub(crate) struct Session<T> {
    tls: T,
    /// Ciphertext of a record, or of a handshake message over several records, that is not complete. rustls remembers places in it, so that
    /// every call must have it.
    pub(crate) incomplete: Vec<u8>,
    /// Decrypted bytes that the reader has not taken yet.
    pub(crate) plain: BytesMut,
    /// Encrypted bytes that the socket has not taken yet.
    pub(crate) out: Vec<u8>,
    /// The handshake is complete.
    pub(crate) established: bool,
    pub(crate) read_state: ReadState,
}

pub(crate) fn invalid(error: impl std::error::Error + Send + Sync + 'static) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

impl<T: Side> Session<T> {
    pub(crate) fn new(tls: T) -> Self {
        Self { tls, incomplete: Vec::new(), plain: BytesMut::new(), out: Vec::new(), established: false, read_state: ReadState::Open }
    }

    /// Whether the peer sends nothing until it has what is queued at the end of the handshake.
    pub(crate) fn is_awaited_by_peer(&self) -> bool {
        self.tls.is_awaited_by_peer()
    }

    /// Hands over plaintext that did not fit before.
    pub(crate) fn take_plain(&mut self, to: &mut impl Sink) {
        let some = to.take(&self.plain);
        self.plain.advance(some);
        if self.plain.is_empty() {
            self.plain = BytesMut::new();
        }
    }

    /// Whether bytes of either direction are buffered.
    pub(crate) fn holds_bytes(&self) -> bool {
        self.incomplete.capacity() + self.plain.capacity() + self.out.capacity() > 0
    }

    /// Keeps what was not consumed of the ciphertext for the next call.
    pub(crate) fn keep(&mut self, rest: &[u8]) {
        if rest.is_empty() {
            self.incomplete = Vec::new();
        } else {
            self.incomplete.extend_from_slice(rest);
        }
    }

    /// Processes ciphertext and returns how many bytes of its front were consumed. Plaintext goes to `to` as far as it fits.
    pub(crate) fn process(&mut self, cipher: &mut [u8], to: &mut impl Sink) -> io::Result<usize> {
        let mut used = 0;
        loop {
            let UnbufferedStatus { mut discard, state } = self.tls.process(&mut cipher[used..]);
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
                    self.read_state = ReadState::Broken;
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
        while self.tls.owes_bytes() {
            match self.tls.process(&mut []).state {
                Ok(ConnectionState::EncodeTlsData(message)) => drop(encode(message, &mut self.out)),
                Ok(_) | Err(_) => return,
            }
        }
    }

    /// Encrypts behind the bytes that [`Session::out`] holds already.
    pub(crate) fn queue(&mut self, plain: &[u8]) -> io::Result<()> {
        self.when_writable(|traffic, out| {
            let at = out.len();
            let end = seal(traffic, plain, out, at)?;
            out.truncate(end);
            Ok(())
        })
    }

    /// Encrypts to the front of `scratch` and returns the number of bytes written.
    pub(crate) fn encrypt(&mut self, plain: &[u8], scratch: &mut Vec<u8>) -> io::Result<usize> {
        self.when_writable(|traffic, _| seal(traffic, plain, scratch, 0))
    }

    pub(crate) fn close_notify(&mut self) -> io::Result<()> {
        self.queue_pending()?;
        self.when_writable(|traffic, out| {
            let mut alert = [0; RECORD_OVERHEAD];
            let count = traffic.queue_close_notify(&mut alert).map_err(invalid)?;
            out.extend_from_slice(&alert[..count]);
            Ok(())
        })
    }

    /// Queues what earlier reads made rustls owe the peer, such as the answer to a key update, so that it goes first.
    pub(crate) fn queue_pending(&mut self) -> io::Result<()> {
        self.with_incomplete(|session, cipher| {
            let used = session.process(cipher, &mut ReadBuf::new(&mut []))?;
            Ok((used, ()))
        })
    }

    fn when_writable<R>(&mut self, act: impl FnOnce(&mut WriteTraffic<'_, T::Data>, &mut Vec<u8>) -> io::Result<R>) -> io::Result<R> {
        self.with_incomplete(|session, cipher| {
            let UnbufferedStatus { discard, state } = session.tls.process(cipher);
            match state {
                Ok(ConnectionState::WriteTraffic(mut traffic)) => Ok((discard, act(&mut traffic, &mut session.out)?)),
                Ok(_) => Err(io::ErrorKind::BrokenPipe.into()),
                Err(error) => Err(invalid(error)),
            }
        })
    }

    /// Lends the incomplete ciphertext. `work` says how many bytes of its front were consumed.
    fn with_incomplete<R>(&mut self, work: impl FnOnce(&mut Self, &mut [u8]) -> io::Result<(usize, R)>) -> io::Result<R> {
        if self.read_state == ReadState::Broken {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let mut cipher = take(&mut self.incomplete);
        let (used, done) = work(self, &mut cipher)?;
        if used > 0 {
            cipher.drain(..used);
        }
        self.incomplete = cipher;
        Ok(done)
    }
}

fn encode<D>(mut message: EncodeTlsData<'_, D>, into: &mut Vec<u8>) -> io::Result<()> {
    let at = into.len();
    if let Err(EncodeError::InsufficientSize(size)) = message.encode(&mut []) {
        into.resize(at + size.required_size, 0);
        message.encode(&mut into[at..]).map_err(invalid)?;
    }
    Ok(())
}

/// Encrypts `plain` into `into[at..]`, growing it where needed, and returns where the ciphertext ends.
fn seal<D>(traffic: &mut WriteTraffic<'_, D>, plain: &[u8], into: &mut Vec<u8>, at: usize) -> io::Result<usize> {
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
