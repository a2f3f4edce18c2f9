//! Each side of the stream against tokio-rustls and against each other: sizes, key updates, ends, invalid input, and that no buffer is kept.

use std::future::poll_fn;
use std::io::ErrorKind;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use rustls::crypto::aws_lc_rs;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::version::{TLS12, TLS13};
use rustls::{CertificateError, ClientConfig, Error, RootCertStore, ServerConfig, SupportedProtocolVersion};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf, duplex};
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

use crate::{ClientStream, ServerStream};

const PIPE: usize = 1 << 16;
const SIZES: [usize; 8] = [1, 2, 100, 16_383, 16_384, 16_385, 40_000, 150_000];

fn configs_with(names: Vec<String>, version: &'static SupportedProtocolVersion) -> (Arc<ServerConfig>, Arc<ClientConfig>) {
    let made = rcgen::generate_simple_self_signed(names).unwrap();
    let certificate = CertificateDer::from(made.cert.der().to_vec());
    let provider = Arc::new(aws_lc_rs::default_provider());
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let server = ServerConfig::builder_with_provider(Arc::clone(&provider)).with_protocol_versions(&[version]).unwrap();
    let server = server.with_no_client_auth().with_single_cert(vec![certificate.clone()], key).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(certificate).unwrap();
    let client = ClientConfig::builder_with_provider(provider).with_protocol_versions(&[version]).unwrap();
    (Arc::new(server), Arc::new(client.with_root_certificates(roots).with_no_client_auth()))
}

fn configs(version: &'static SupportedProtocolVersion) -> (Arc<ServerConfig>, Arc<ClientConfig>) {
    configs_with(vec!["relay.test".into()], version)
}

async fn connect<S: AsyncRead + AsyncWrite + Unpin>(config: Arc<ClientConfig>, io: S) -> std::io::Result<ClientStream<S>> {
    ClientStream::connect(config, "relay.test".try_into().unwrap(), io).await
}

/// Our server, and a client of tokio-rustls.
async fn server_pair(
    pipe: usize,
    version: &'static SupportedProtocolVersion,
) -> (ServerStream<DuplexStream>, client::TlsStream<DuplexStream>) {
    let (server, client) = configs(version);
    let (local, remote) = duplex(pipe);
    let connecting = TlsConnector::from(client).connect("relay.test".try_into().unwrap(), remote);
    let (local, remote) = tokio::join!(ServerStream::accept(server, local), connecting);
    (local.unwrap(), remote.unwrap())
}

/// Our client, and a server of tokio-rustls, which has the end of the handshake.
async fn client_pair(version: &'static SupportedProtocolVersion) -> (ClientStream<DuplexStream>, server::TlsStream<DuplexStream>) {
    let (server, client) = configs(version);
    let (local, remote) = duplex(PIPE);
    let connecting = async {
        let mut local = connect(client, local).await.unwrap();
        local.flush().await.unwrap();
        local
    };
    let (local, remote) = tokio::join!(connecting, TlsAcceptor::from(server).accept(remote));
    (local, remote.unwrap())
}

/// Echoes everything until the end, and returns the stream.
async fn echo<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S) -> S {
    let mut buffer = vec![0; 3_000];
    loop {
        match stream.read(&mut buffer).await.unwrap() {
            0 => return stream,
            count => {
                stream.write_all(&buffer[..count]).await.unwrap();
                stream.flush().await.unwrap();
            }
        }
    }
}

/// Sends [`SIZES`] bytes to an [`echo`] and checks what comes back, ends its direction, and returns the stream.
async fn call<S: AsyncRead + AsyncWrite + Unpin>(stream: S) -> S {
    let (mut reads, mut writes) = tokio::io::split(stream);
    let writing = async {
        for size in SIZES {
            writes.write_all(&bytes(size)).await.unwrap();
            writes.flush().await.unwrap();
        }
        writes.shutdown().await.unwrap();
    };
    let reading = async {
        for size in SIZES {
            let mut received = vec![0; size];
            reads.read_exact(&mut received).await.unwrap();
            assert!(received == bytes(size), "{size} bytes");
        }
    };
    tokio::join!(writing, reading);
    reads.unsplit(writes)
}

/// The stream that was echoed to ends too.
async fn end(mut ending: impl AsyncWrite + Unpin, mut reading: impl AsyncRead + Unpin) {
    let mut end = [0; 8];
    let (shut, read) = tokio::join!(ending.shutdown(), reading.read(&mut end));
    shut.unwrap();
    assert_eq!(read.unwrap(), 0);
}

fn bytes(size: usize) -> Vec<u8> {
    (0..=250).cycle().take(size).collect()
}

fn versions_and_pipes() -> impl Iterator<Item = (&'static SupportedProtocolVersion, usize)> {
    [&TLS13, &TLS12].into_iter().flat_map(|version| [7, 1_000, 1 << 20].map(|pipe| (version, pipe)))
}

#[tokio::test]
async fn a_server_passes_every_size_in_both_versions_through_small_and_large_pipes_and_keeps_no_buffer() {
    for (version, pipe) in versions_and_pipes() {
        let (local, remote) = server_pair(pipe, version).await;
        let (local, remote) = tokio::join!(echo(local), call(remote));
        assert!(!local.holds_bytes());
        end(local, remote).await;
    }
}

#[tokio::test]
async fn a_client_passes_every_size_in_both_versions_through_small_and_large_pipes_and_keeps_no_buffer() {
    for (version, pipe) in versions_and_pipes() {
        let (server, client) = configs(version);
        let (local, remote) = duplex(pipe);
        // Behind its handshake the server waits until its tickets are read.
        let serving = async { echo(TlsAcceptor::from(server).accept(remote).await.unwrap()).await };
        let calling = async { call(connect(client, local).await.unwrap()).await };
        let (local, remote) = tokio::join!(calling, serving);
        assert!(!local.holds_bytes());
        end(remote, local).await;
    }
}

#[tokio::test]
async fn both_sides_understand_each_other() {
    for version in [&TLS13, &TLS12] {
        let (server, client) = configs(version);
        let (local, remote) = duplex(1_000);
        let serving = async { echo(ServerStream::accept(server, local).await.unwrap()).await };
        let calling = async { call(connect(client, remote).await.unwrap()).await };
        let (server, client) = tokio::join!(serving, calling);
        assert!(!server.holds_bytes() && !client.holds_bytes());
        end(server, client).await;
    }
}

#[tokio::test]
async fn a_certificate_that_spans_records_is_read_through_small_and_large_pipes() {
    let names: Vec<String> = (0..1_500).map(|number| format!("relay{number:04}.example.test")).chain(["relay.test".into()]).collect();
    for version in [&TLS13, &TLS12] {
        let (server, client) = configs_with(names.clone(), version);
        for pipe in [100, 20_000, 1 << 20] {
            let (local, remote) = duplex(pipe);
            let serving = async { echo(ServerStream::accept(Arc::clone(&server), local).await.unwrap()).await };
            let calling = async { call(connect(Arc::clone(&client), remote).await.unwrap()).await };
            let (_, client) = tokio::join!(serving, calling);
            assert!(!client.holds_bytes());
        }
    }
}

/// A pipe that counts the writes to it.
struct Counted(DuplexStream, usize);

impl AsyncRead for Counted {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, to: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, to)
    }
}

impl AsyncWrite for Counted {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, from: &[u8]) -> Poll<std::io::Result<usize>> {
        self.1 += 1;
        Pin::new(&mut self.0).poll_write(cx, from)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

#[tokio::test]
async fn the_end_of_a_clients_handshake_goes_out_with_the_first_write_or_with_a_flush() {
    for flushes_first in [false, true] {
        let (server, client) = configs(&TLS13);
        let (local, remote) = duplex(1 << 20);
        let calling = async {
            let mut local = connect(client, Counted(local, 0)).await.unwrap();
            assert_eq!(local.get_ref().1, 1, "the client's hello");
            if flushes_first {
                local.flush().await.unwrap();
                assert_eq!((local.get_ref().1, local.unsent_bytes()), (2, 0));
            }
            local.write_all(b"GET").await.unwrap();
            assert_eq!((local.get_ref().1, local.unsent_bytes()), (if flushes_first { 3 } else { 2 }, 0));
            local
        };
        let serving = async {
            let mut received = [0; 3];
            let mut remote = TlsAcceptor::from(server).accept(remote).await.unwrap();
            remote.read_exact(&mut received).await.unwrap();
            assert_eq!(&received, b"GET");
        };
        tokio::join!(calling, serving);
    }
}

#[tokio::test]
async fn a_servers_tickets_go_out_with_its_first_write() {
    let (server, client) = configs(&TLS13);
    let (local, remote) = duplex(1 << 20);
    let connecting = TlsConnector::from(client).connect("relay.test".try_into().unwrap(), remote);
    let (local, remote) = tokio::join!(ServerStream::accept(server, Counted(local, 0)), connecting);
    let (mut local, mut remote) = (local.unwrap(), remote.unwrap());
    assert_eq!(local.get_ref().1, 1, "the server's flight");
    assert!(local.unsent_bytes() > 0, "tickets");
    local.write_all(b"200").await.unwrap();
    assert_eq!((local.get_ref().1, local.unsent_bytes()), (2, 0));
    remote.read_exact(&mut [0; 3]).await.unwrap();
}

#[tokio::test]
async fn a_server_that_is_not_trusted_is_told_so_and_the_error_names_the_reason() {
    for version in [&TLS13, &TLS12] {
        let (server, _) = configs(version);
        let (_, client) = configs(version);
        let (local, remote) = duplex(PIPE);
        let (local, remote) = tokio::join!(connect(client, local), TlsAcceptor::from(server).accept(remote));
        let error = local.unwrap_err();
        let reason = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
        let is_expected = |fault: &CertificateError| matches!(fault, CertificateError::BadSignature | CertificateError::UnknownIssuer);
        assert!(matches!(reason, Some(Error::InvalidCertificate(fault)) if is_expected(fault)), "{error:?}");
        let told = remote.unwrap_err();
        assert!(matches!(told.get_ref().and_then(|inner| inner.downcast_ref()), Some(Error::AlertReceived(_))), "{told:?}");
    }
}

#[tokio::test]
async fn a_server_that_hangs_up_or_speaks_something_else_is_an_error() {
    let (_, client) = configs(&TLS13);
    let (local, remote) = duplex(PIPE);
    drop(remote);
    assert!(connect(Arc::clone(&client), local).await.is_err());
    let (local, mut remote) = duplex(PIPE);
    remote.shutdown().await.unwrap();
    assert_eq!(connect(Arc::clone(&client), local).await.unwrap_err().kind(), ErrorKind::UnexpectedEof);
    let (local, mut remote) = duplex(PIPE);
    remote.write_all(b"SSH-2.0-OpenSSH_9.2\r\n").await.unwrap();
    assert_eq!(connect(client, local).await.unwrap_err().kind(), ErrorKind::InvalidData);
}

/// Sends and receives small messages, with new keys before each.
async fn renew_keys<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S, renew: impl Fn(&mut S)) {
    for round in 0..20 {
        renew(&mut stream);
        stream.write_all(&[round; 50]).await.unwrap();
        stream.flush().await.unwrap();
        let mut received = [0; 50];
        stream.read_exact(&mut received).await.unwrap();
        assert_eq!(received, [round; 50]);
    }
    stream.shutdown().await.unwrap();
}

#[tokio::test]
async fn key_updates_are_answered() {
    let (local, remote) = server_pair(PIPE, &TLS13).await;
    tokio::join!(echo(local), renew_keys(remote, |remote| remote.get_mut().1.refresh_traffic_keys().unwrap()));
    let (local, remote) = client_pair(&TLS13).await;
    tokio::join!(echo(local), renew_keys(remote, |remote| remote.get_mut().1.refresh_traffic_keys().unwrap()));
}

#[tokio::test]
async fn a_connection_that_is_cut_is_an_error_and_one_that_is_closed_is_an_end() {
    async fn cut(mut local: impl AsyncRead + Unpin, remote: impl AsyncWrite) {
        drop(remote);
        assert_eq!(local.read(&mut [0; 8]).await.unwrap_err().kind(), ErrorKind::UnexpectedEof);
    }
    async fn closed(mut local: impl AsyncRead + Unpin, mut remote: impl AsyncWrite + Unpin) {
        remote.shutdown().await.unwrap();
        assert_eq!(local.read(&mut [0; 8]).await.unwrap(), 0);
    }
    let (local, remote) = server_pair(PIPE, &TLS13).await;
    cut(local, remote).await;
    let (local, remote) = server_pair(PIPE, &TLS13).await;
    closed(local, remote).await;
    let (local, remote) = client_pair(&TLS13).await;
    cut(local, remote).await;
    let (local, remote) = client_pair(&TLS13).await;
    closed(local, remote).await;
}

#[tokio::test]
async fn bytes_before_the_end_are_read_though_nothing_can_be_written_any_more() {
    async fn last_words(mut local: impl AsyncRead + AsyncWrite + Unpin, mut remote: impl AsyncWrite + Unpin) {
        remote.write_all(b"last words").await.unwrap();
        remote.shutdown().await.unwrap();
        drop(remote);
        local.write_all(b"nobody reads this").await.ok();
        let mut received = Vec::new();
        local.read_to_end(&mut received).await.unwrap();
        assert_eq!(received, b"last words");
    }
    let (local, remote) = server_pair(PIPE, &TLS13).await;
    last_words(local, remote).await;
    let (local, remote) = client_pair(&TLS13).await;
    last_words(local, remote).await;
}

#[tokio::test]
async fn a_damaged_record_is_an_error() {
    let (mut local, remote) = server_pair(PIPE, &TLS13).await;
    let (mut pipe, _) = remote.into_inner();
    pipe.write_all(&[23, 3, 3, 0, 32]).await.unwrap();
    pipe.write_all(&[7; 32]).await.unwrap();
    assert_eq!(local.read(&mut [0; 8]).await.unwrap_err().kind(), ErrorKind::InvalidData);
    local.shutdown().await.unwrap();
    drop(pipe);
    assert_eq!(local.read(&mut [0; 8]).await.unwrap_err().kind(), ErrorKind::InvalidData);
    assert_eq!(local.write(b"more").await.unwrap_err().kind(), ErrorKind::BrokenPipe);
}

#[tokio::test]
async fn bytes_are_written_while_a_handshake_message_is_incomplete() {
    let (server, client) = configs(&TLS13);
    let mut server = ServerConfig::clone(&server);
    server.max_fragment_size = Some(32);
    let (local, remote) = duplex(64);
    let serving = async {
        let mut received = [0; 3];
        let mut remote = TlsAcceptor::from(Arc::new(server)).accept(remote).await.unwrap();
        remote.read_exact(&mut received).await.unwrap();
        remote.write_all(&received).await.unwrap();
        remote.flush().await.unwrap();
        remote
    };
    let calling = async {
        let mut local = connect(client, local).await.unwrap();
        local.flush().await.unwrap();
        let mut received = [0; 3];
        // Until a ticket, in many records, is there in part.
        let part = poll_fn(|cx| {
            let pending = Pin::new(&mut local).poll_read(cx, &mut ReadBuf::new(&mut received)).is_pending();
            if local.holds_bytes() { Poll::Ready(pending) } else { Poll::Pending }
        });
        assert!(part.await);
        local.write_all(b"GET").await.unwrap();
        local.read_exact(&mut received).await.unwrap();
        assert_eq!((&received, local.holds_bytes()), (b"GET", false));
    };
    tokio::join!(serving, calling);
}

#[tokio::test]
async fn garbage_instead_of_a_client_hello_is_answered_by_an_alert_at_most() {
    let (server, _) = configs(&TLS13);
    let (local, mut remote) = duplex(PIPE);
    remote.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    ServerStream::accept(Arc::clone(&server), local).await.unwrap_err();
    // A well-formed record with one unknown handshake message, and with two.
    for record in [&[22, 3, 1, 0, 4, 99, 0, 0, 0][..], &[22, 3, 1, 0, 8, 99, 0, 0, 0, 99, 0, 0, 0]] {
        let (local, mut remote) = duplex(PIPE);
        remote.write_all(record).await.unwrap();
        ServerStream::accept(Arc::clone(&server), local).await.unwrap_err();
        let mut received = Vec::new();
        remote.read_to_end(&mut received).await.unwrap();
        assert_eq!(&received[..3], [21, 3, 3], "an alert: {received:?}");
    }
}
