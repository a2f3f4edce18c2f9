//! The stream against the client of tokio-rustls: sizes, key updates, ends, invalid input, and that no buffer is kept.

use std::sync::Arc;

use rustls::crypto::aws_lc_rs;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, RootCertStore, ServerConfig, SupportedProtocolVersion};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio_rustls::{TlsConnector, client};

use super::TlsStream;

fn configs(version: &'static SupportedProtocolVersion) -> (Arc<ServerConfig>, Arc<ClientConfig>) {
    let made = rcgen::generate_simple_self_signed(vec!["relay.test".into()]).unwrap();
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

async fn pair(pipe: usize, version: &'static SupportedProtocolVersion) -> (TlsStream<DuplexStream>, client::TlsStream<DuplexStream>) {
    let (server, client) = configs(version);
    let (local, remote) = duplex(pipe);
    let connecting = TlsConnector::from(client).connect("relay.test".try_into().unwrap(), remote);
    let (local, remote) = tokio::join!(TlsStream::accept(server, local), connecting);
    (local.unwrap(), remote.unwrap())
}

/// Echoes everything until the end, and returns the stream.
async fn echo(mut stream: TlsStream<DuplexStream>) -> TlsStream<DuplexStream> {
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

fn bytes(size: usize) -> Vec<u8> {
    (0..=250).cycle().take(size).collect()
}

#[tokio::test]
async fn every_size_passes_in_both_versions_through_small_and_large_pipes_and_no_buffer_is_kept() {
    const SIZES: [usize; 8] = [1, 2, 100, 16_383, 16_384, 16_385, 40_000, 300_000];
    for (version, pipe) in [&TLS13, &TLS12].into_iter().flat_map(|version| [7, 1_000, 1 << 20].map(|pipe| (version, pipe))) {
        let (server, client) = configs(version);
        let (local, remote) = duplex(pipe);
        let serving = async { echo(TlsStream::accept(server, local).await.unwrap()).await };
        let calling = async {
            let remote = TlsConnector::from(client).connect("relay.test".try_into().unwrap(), remote).await.unwrap();
            let (mut reads, mut writes) = tokio::io::split(remote);
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
            reads
        };
        let (mut local, mut reads) = tokio::join!(serving, calling);
        assert!(!local.holds_bytes());
        let mut end = [0; 8];
        let (shut, read) = tokio::join!(local.shutdown(), reads.read(&mut end));
        shut.unwrap();
        assert_eq!(read.unwrap(), 0);
    }
}

#[tokio::test]
async fn key_updates_are_answered() {
    let (local, mut remote) = pair(1 << 16, &TLS13).await;
    let calling = async {
        for round in 0..20 {
            remote.get_mut().1.refresh_traffic_keys().unwrap();
            remote.write_all(&[round; 50]).await.unwrap();
            remote.flush().await.unwrap();
            let mut received = [0; 50];
            remote.read_exact(&mut received).await.unwrap();
            assert_eq!(received, [round; 50]);
        }
        remote.shutdown().await.unwrap();
    };
    tokio::join!(echo(local), calling);
}

#[tokio::test]
async fn a_connection_that_is_cut_is_an_error_and_one_that_is_closed_is_an_end() {
    let (mut local, remote) = pair(1 << 16, &TLS13).await;
    drop(remote);
    assert_eq!(local.read(&mut [0; 8]).await.unwrap_err().kind(), std::io::ErrorKind::UnexpectedEof);
    let (mut local, mut remote) = pair(1 << 16, &TLS13).await;
    remote.shutdown().await.unwrap();
    assert_eq!(local.read(&mut [0; 8]).await.unwrap(), 0);
}

#[tokio::test]
async fn bytes_before_the_end_are_read_though_nothing_can_be_written_any_more() {
    let (mut local, mut remote) = pair(1 << 16, &TLS13).await;
    remote.write_all(b"last words").await.unwrap();
    remote.shutdown().await.unwrap();
    drop(remote);
    local.write_all(b"nobody reads this").await.ok();
    let mut received = Vec::new();
    local.read_to_end(&mut received).await.unwrap();
    assert_eq!(received, b"last words");
}

#[tokio::test]
async fn a_damaged_record_is_an_error() {
    let (mut local, remote) = pair(1 << 16, &TLS13).await;
    let (mut pipe, _) = remote.into_inner();
    pipe.write_all(&[23, 3, 3, 0, 32]).await.unwrap();
    pipe.write_all(&[7; 32]).await.unwrap();
    assert_eq!(local.read(&mut [0; 8]).await.unwrap_err().kind(), std::io::ErrorKind::InvalidData);
}

#[tokio::test]
async fn garbage_instead_of_a_client_hello_is_answered_by_an_alert_at_most() {
    let (server, _) = configs(&TLS13);
    let (local, mut remote) = duplex(1 << 16);
    remote.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    TlsStream::accept(Arc::clone(&server), local).await.unwrap_err();
    // A well-formed record with an unknown handshake message.
    let (local, mut remote) = duplex(1 << 16);
    remote.write_all(&[22, 3, 1, 0, 4, 99, 0, 0, 0]).await.unwrap();
    TlsStream::accept(server, local).await.unwrap_err();
    let mut received = Vec::new();
    remote.read_to_end(&mut received).await.unwrap();
    assert_eq!(&received[..3], [21, 3, 3], "an alert: {received:?}");
}
