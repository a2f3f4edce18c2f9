//! Strangers: connections to a real relay that say what no program of ours would, or nothing at all. Bytes and TLS; no protocol.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// The first bytes of a TLS hello, whose rest never comes.
pub const HALF_A_HELLO: &[u8] = &[0x16, 0x03, 0x01, 0x02, 0x00, 0x01, 0x00, 0x01, 0xfc, 0x03, 0x03];

/// TLS to the relay at `localhost`, offering these protocols.
///
/// # Errors
/// The handshake's.
pub async fn tls(tcp: TcpStream, ca_file: &Path, alpn: &[&str]) -> io::Result<TlsStream<TcpStream>> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(ca_file).expect("the relay's CA")).expect("it is a CA");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config =
        rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().expect("the provider has them");
    let mut config = config.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    TlsConnector::from(Arc::new(config)).connect(ServerName::try_from("localhost").expect("a host name"), tcp).await
}

/// All that comes until the relay ends the connection, in whichever way.
///
/// # Panics
/// If it does not end within `within`.
pub async fn heard_to_the_end(connection: &mut (impl AsyncRead + Unpin), within: Duration) -> Vec<u8> {
    let mut heard = Vec::new();
    let ended = timeout(within, connection.read_to_end(&mut heard)).await;
    assert!(ended.is_ok(), "the relay keeps the connection for longer than {within:?}");
    heard
}

/// First bytes of frames: the last frame of a message, and opcodes.
pub mod first {
    /// The last frame of its message.
    pub const FIN: u8 = 0x80;
    /// A frame that goes on with a message.
    pub const MORE: u8 = 0x00;
    /// Text begins.
    pub const TEXT: u8 = 0x01;
    /// Bytes begin.
    pub const BYTES: u8 = 0x02;
    /// Close.
    pub const CLOSE: u8 = 0x08;
    /// Ping.
    pub const PING: u8 = 0x09;
    /// Pong.
    pub const PONG: u8 = 0x0a;
}

/// The header of a client's frame that claims so many bytes, whether they follow or not. It masks with zeros: what is sent is what is read.
pub fn header(first: u8, claims: u64) -> Vec<u8> {
    let mut header = vec![first];
    match claims {
        0..126 => header.push(0x80 | u8::try_from(claims).expect("it is small")),
        126..0x1_0000 => {
            header.push(0x80 | 126);
            header.extend(u16::try_from(claims).expect("it is small").to_be_bytes());
        }
        _ => {
            header.push(0x80 | 127);
            header.extend(claims.to_be_bytes());
        }
    }
    header.extend([0; 4]);
    header
}

/// A client's frame, whatever its first byte says.
pub fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    [&header(first, payload.len() as u64), payload].concat()
}

/// A request that asks for a WebSocket, with further header lines.
pub fn upgrade_request(host: &str, path: &str, subprotocol: &str, lines: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Protocol: {subprotocol}\r\n{lines}\r\n"
    )
}

/// What a relay answered.
#[derive(Clone, Debug)]
pub struct Answer {
    /// HTTP status; 0 where there was none.
    pub status: u16,
    /// The problem's code; empty where there is none.
    pub code: String,
    /// All of it.
    pub text: String,
}

/// What comes for these very bytes until the connection ends, or until `within`.
pub async fn asks(mut connection: impl AsyncRead + AsyncWrite + Unpin, says: &[u8], within: Duration) -> Answer {
    // Who is refused early does not take the rest.
    connection.write_all(says).await.ok();
    let mut heard = Vec::new();
    timeout(within, connection.read_to_end(&mut heard)).await.map(drop).ok();
    let text = String::from_utf8_lossy(&heard).into_owned();
    let status = text.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    let code = text.split("\"code\":\"").nth(1).and_then(|rest| rest.split('"').next()).unwrap_or_default().to_owned();
    Answer { status, code, text }
}
