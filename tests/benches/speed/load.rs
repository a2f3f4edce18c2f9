//! The load: TLS connections to either server, and the two halves of a transfer over them. The same code against both; the difference is that
//! bytes to the relay are sent in frames, which are encoded beforehand and counted as they arrive.

use std::net::SocketAddr;
use std::sync::Arc;

use moorline_tests::world::World;
use moorline_transport::dial::provider;
use rustls::client::Resumption;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// The name in the certificate that both servers show.
pub const HOST: &str = "localhost";
/// A TLS connection of the load.
pub type Tls = TlsStream<TcpStream>;
/// The approximate size of one write.
const BATCH: usize = 64 << 10;

/// Makes TLS connections.
#[derive(Clone)]
pub struct Connect(TlsConnector);

impl Connect {
    /// Without session resumption: each connection makes a full handshake.
    pub fn cold(world: &World) -> Self {
        let mut config = config(world);
        config.resumption = Resumption::disabled();
        Self(TlsConnector::from(Arc::new(config)))
    }

    /// Later connections resume the session of earlier ones.
    pub fn resuming(world: &World) -> Self {
        Self(TlsConnector::from(Arc::new(config(world))))
    }

    /// One connection.
    pub async fn to(&self, address: SocketAddr) -> Tls {
        let tcp = TcpStream::connect(address).await.expect("the server listens");
        tcp.set_nodelay(true).expect("TCP options can be set");
        let name = ServerName::try_from(HOST).expect("a name");
        self.0.connect(name, tcp).await.expect("the TLS handshake succeeds")
    }
}

fn config(world: &World) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(world.ca_file()).expect("a certificate")).expect("it is one");
    let config = ClientConfig::builder_with_provider(Arc::new(provider())).with_safe_default_protocol_versions();
    let mut config = config.expect("rustls knows its versions").with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config
}

/// How the bytes of a transfer are split.
#[derive(Clone, Copy, Debug)]
pub struct Cut {
    /// Bytes of one message.
    pub message: usize,
    /// Whether each message is written separately, and so is a TLS record of its own. Otherwise about 64 KiB are written at once.
    pub alone: bool,
}

/// How a connection carries bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// As they are.
    Bare,
    /// In WebSocket frames.
    Frames,
}

/// Writes `payload` bytes of payload.
pub async fn pour(to: &mut (impl AsyncWrite + Unpin), framing: Framing, cut: Cut, payload: usize) {
    let messages = if cut.alone { 1 } else { (BATCH / cut.message).max(1) };
    let mut batch = Vec::new();
    for _ in 0..messages {
        if framing == Framing::Frames {
            frame_head(&mut batch, cut.message);
        }
        // The mask is all zeroes: unmasking costs the server as much as with any other mask, and masking costs the load nothing.
        batch.extend((0..cut.message).map(|at| (at % 251) as u8));
    }
    for _ in 0..payload / (messages * cut.message) {
        to.write_all(&batch).await.expect("the server accepts bytes");
        if cut.alone {
            to.flush().await.expect("the server accepts bytes");
        }
    }
    to.flush().await.expect("the server accepts bytes");
}

fn frame_head(batch: &mut Vec<u8>, length: usize) {
    batch.push(0x82);
    match length {
        0..126 => batch.push(0x80 | length as u8),
        126..65_536 => {
            batch.push(0x80 | 126);
            batch.extend((length as u16).to_be_bytes());
        }
        _ => {
            batch.push(0x80 | 127);
            batch.extend((length as u64).to_be_bytes());
        }
    }
    batch.extend([0; 4]);
}

/// Reads until `payload` bytes of payload have arrived.
pub async fn drain(from: &mut (impl AsyncRead + Unpin), framing: Framing, payload: usize) {
    let mut buffer = vec![0; 256 << 10];
    let mut counter = Counter::default();
    let mut received = 0;
    while received < payload {
        let count = from.read(&mut buffer).await.expect("the server sends");
        assert_ne!(count, 0, "all payload arrives before the end");
        received += if framing == Framing::Bare { count } else { counter.count(&buffer[..count]) };
    }
    assert_eq!(received, payload);
}

/// Counts the payload in a stream of unmasked frames, without any validation.
#[derive(Debug, Default)]
struct Counter {
    head: Vec<u8>,
    rest: usize,
    is_payload: bool,
}

impl Counter {
    fn count(&mut self, mut bytes: &[u8]) -> usize {
        let mut payload = 0;
        while !bytes.is_empty() {
            if self.rest > 0 {
                let here = self.rest.min(bytes.len());
                payload += if self.is_payload { here } else { 0 };
                self.rest -= here;
                bytes = &bytes[here..];
                continue;
            }
            self.head.push(bytes[0]);
            bytes = &bytes[1..];
            let head = &self.head;
            let length = match (head.get(1), head.len()) {
                (Some(&short @ 0..=125), 2) => usize::from(short),
                (Some(126), 4) => usize::from(u16::from_be_bytes([head[2], head[3]])),
                (Some(127), 10) => head[2..].iter().fold(0, |sum, &byte| sum << 8 | usize::from(byte)),
                _ => continue,
            };
            (self.rest, self.is_payload) = (length, matches!(head[0] & 0x0f, 0 | 2));
            self.head.clear();
        }
        payload
    }
}
