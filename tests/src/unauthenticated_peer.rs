//! Unauthenticated and hostile peers: raw TCP and TLS connections that send what no Moorline program would, or nothing at all.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// The first bytes of a TLS ClientHello whose rest is never sent.
pub const PARTIAL_CLIENT_HELLO: &[u8] = &[0x16, 0x03, 0x01, 0x02, 0x00, 0x01, 0x00, 0x01, 0xfc, 0x03, 0x03];

/// Opens TLS to the relay at `localhost`, offering these ALPN protocols.
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

/// A TCP connection from a certain local address; every address of 127.0.0.0/8 is one.
///
/// # Errors
/// The connection's.
pub async fn connect_from(from: IpAddr, to: SocketAddr) -> io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::new(from, 0))?;
    socket.connect(to).await
}

/// Sends a request `count` times without reading an answer, as HTTP/1.1 pipelining allows; returns how many were sent whole before the relay
/// ended the connection. Waits for as long as the relay neither reads nor closes: give it a deadline.
pub async fn pipeline_unread(connection: &mut (impl AsyncWrite + Unpin), request: &str, count: usize) -> usize {
    for sent in 0..count {
        if connection.write_all(request.as_bytes()).await.is_err() || connection.flush().await.is_err() {
            return sent;
        }
    }
    count
}

/// Reads until the relay ends the connection, in whichever way.
///
/// # Panics
/// If it is still open after `within`.
pub async fn read_until_closed(connection: &mut (impl AsyncRead + Unpin), within: Duration) -> Vec<u8> {
    let mut received = Vec::new();
    let ended = timeout(within, connection.read_to_end(&mut received)).await;
    assert!(ended.is_ok(), "the relay keeps the connection for longer than {within:?}");
    received
}

/// First bytes of WebSocket frames: the FIN bit and the opcodes.
pub mod opcode {
    /// The final frame of a message.
    pub const FIN: u8 = 0x80;
    /// A continuation frame.
    pub const CONTINUATION: u8 = 0x00;
    /// A text frame.
    pub const TEXT: u8 = 0x01;
    /// A binary frame.
    pub const BINARY: u8 = 0x02;
    /// Close.
    pub const CLOSE: u8 = 0x08;
    /// Ping.
    pub const PING: u8 = 0x09;
    /// Pong.
    pub const PONG: u8 = 0x0a;
}

/// The header of a client's frame that announces `claims` bytes, whether or not they follow. Its mask is zero, so that the payload is sent as it is.
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

/// A client's frame with this first byte.
pub fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    [&header(first, payload.len() as u64), payload].concat()
}

/// A WebSocket upgrade request, with further header lines.
pub fn upgrade_request(host: &str, path: &str, subprotocol: &str, lines: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Protocol: {subprotocol}\r\n{lines}\r\n"
    )
}

/// A relay's answer.
#[derive(Clone, Debug)]
pub struct Answer {
    /// HTTP status; 0 if there was no answer.
    pub status: u16,
    /// The problem's code; empty if there is none.
    pub code: String,
    /// The whole answer.
    pub text: String,
}

/// Sends these bytes and reads until the connection ends, or for `within`.
pub async fn send_raw(mut connection: impl AsyncRead + AsyncWrite + Unpin, request: &[u8], within: Duration) -> Answer {
    // A relay that refuses early does not read the rest.
    connection.write_all(request).await.ok();
    let mut received = Vec::new();
    timeout(within, connection.read_to_end(&mut received)).await.map(drop).ok();
    let text = String::from_utf8_lossy(&received).into_owned();
    let status = text.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    let code = text.split("\"code\":\"").nth(1).and_then(|rest| rest.split('"').next()).unwrap_or_default().to_owned();
    Answer { status, code, text }
}
