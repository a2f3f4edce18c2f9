//! Dials a relay that is scripted byte by byte.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use http::{HeaderMap, Method};
use moorline_proto::join::RelayUrl;
use moorline_proto::leg::LegText;
use moorline_proto::problem::{Problem, ProblemCode};
use moorline_proto::secret::Secret;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::HandshakeKind;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;

use crate::dial::{DialError, Dialer, Step};

fn url() -> RelayUrl {
    "https://relay.test:8443".parse().unwrap()
}

/// A dialer, and the relay's ends of the connections it opens.
fn dialer() -> (Dialer, mpsc::Receiver<DuplexStream>) {
    let (sender, remote_ends) = mpsc::channel(8);
    let connect = move |_: RelayUrl| {
        let (local, remote) = duplex(1 << 20);
        let sent = sender.try_send(remote);
        async move { sent.map(|()| local).map_err(|_| io::Error::other("nobody accepts")) }
    };
    (Dialer::over(url(), connect), remote_ends)
}

async fn head(remote: &mut DuplexStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(remote.read_u8().await.unwrap());
    }
    String::from_utf8(head).unwrap()
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
}

fn within(seconds: u64) -> Instant {
    Instant::now() + Duration::from_secs(seconds)
}

/// Dials a relay that answers this; `{accept}` is replaced by the correct Sec-WebSocket-Accept.
async fn answered(answer: &str) -> Result<crate::dial::WebSocket, DialError> {
    let (dialer, mut remote_ends) = dialer();
    let relay = async {
        let mut remote = remote_ends.recv().await.unwrap();
        let head = head(&mut remote).await;
        let accept = derive_accept_key(header(&head, "sec-websocket-key").unwrap().as_bytes());
        remote.write_all(answer.replace("{accept}", &accept).as_bytes()).await.unwrap();
        remote
    };
    tokio::join!(dialer.control("/v1/control", within(5)), relay).0
}

#[tokio::test(start_paused = true)]
async fn a_leg_is_used_again_where_it_was_asked_for_and_granted() {
    for (asks, grant, is_reusable) in [
        (true, "Moorline-Leg: reuse\r\n", true),
        (true, "Moorline-Leg: later, reuse\r\n", true),
        (true, "Moorline-Leg: later\r\n", false),
        (true, "", false),
        (false, "Moorline-Leg: reuse\r\n", false),
    ] {
        let (dialer, mut remote_ends) = dialer();
        let dialer = if asks { dialer.with_reuse() } else { dialer };
        let relay = async {
            let mut remote = remote_ends.recv().await.unwrap();
            let head = head(&mut remote).await;
            assert_eq!(header(&head, "moorline-leg"), asks.then_some("reuse"));
            let accept = derive_accept_key(header(&head, "sec-websocket-key").unwrap().as_bytes());
            let head = format!(
                "HTTP/1.1 101 x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: {accept}\r\n\
                 Sec-WebSocket-Protocol: moorline.stream.v1\r\n{grant}\r\n"
            );
            remote.write_all(head.as_bytes()).await.unwrap();
            remote
        };
        let none = HeaderMap::new();
        let (leg, _remote) = tokio::join!(dialer.leg("/v1/connect", &none, None, within(5)), relay);
        assert_eq!(leg.unwrap().is_idle_after_refusal(), is_reusable, "{asks} {grant:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_request_carries_what_an_upgrade_needs_and_bytes_behind_the_101_are_kept() {
    let (dialer, mut remote_ends) = dialer();
    let relay = async {
        let mut remote = remote_ends.recv().await.unwrap();
        let head = head(&mut remote).await;
        assert!(head.starts_with("GET /v1/legs/n1/00 HTTP/1.1\r\n"), "{head}");
        assert_eq!(header(&head, "host"), Some("relay.test:8443"));
        assert_eq!(header(&head, "authorization"), Some("Bearer mrl_leg_x"));
        assert_eq!(header(&head, "sec-websocket-protocol"), Some("moorline.stream.v1"));
        assert_eq!(header(&head, "sec-websocket-version"), Some("13"));
        assert_eq!(header(&head, "upgrade"), Some("websocket"));
        assert_eq!(header(&head, "moorline-wait"), Some("7"));
        let accept = derive_accept_key(header(&head, "sec-websocket-key").unwrap().as_bytes());
        let switch = format!(
            "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-accept: {accept}\r\n\
             sec-websocket-protocol: moorline.stream.v1\r\n\r\n"
        );
        // The first message follows the head in the same write.
        let (mut shown, pipe) = duplex(1 << 16);
        let mut relay = WebSocketStream::from_raw_socket(pipe, Role::Server, None).await;
        let opened = LegText::Opened(Box::new(crate::scripted_relay::opened())).encode();
        futures_util::SinkExt::send(&mut relay, Message::text(opened)).await.unwrap();
        drop(relay);
        let mut frames = Vec::new();
        shown.read_to_end(&mut frames).await.unwrap();
        remote.write_all(&[switch.as_bytes(), &frames].concat()).await.unwrap();
        remote
    };
    let headers = HeaderMap::from_iter([("moorline-wait".parse().unwrap(), "7".parse().unwrap())]);
    let token = Secret::new("mrl_leg_x");
    let (leg, _remote) = tokio::join!(dialer.leg("/v1/legs/n1/00", &headers, Some(&token), within(5)), relay);
    leg.unwrap().opened().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_refusal_keeps_its_status_its_problem_and_its_retry_after() {
    let problem = Problem::new(ProblemCode::Overloaded, "come later");
    let body = serde_json::to_string(&problem).unwrap();
    let head = "HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\nretry-after: 30\r\ncontent-type: application/problem+json";
    let error = answered(&format!("{head}\r\ncontent-length: {}\r\n\r\n{body}", body.len())).await.unwrap_err();
    let refusal = error.refusal().unwrap();
    assert_eq!((refusal.status, refusal.retry_after), (503, Some(Duration::from_secs(30))));
    assert_eq!(refusal.problem, Some(problem));
}

#[tokio::test(start_paused = true)]
async fn retry_after_is_capped_at_one_day() {
    let head = format!("HTTP/1.1 503 x\r\nconnection: close\r\nretry-after: {}\r\n\r\n", u64::MAX);
    assert_eq!(answered(&head).await.unwrap_err().refusal().unwrap().retry_after, Some(Duration::from_secs(86_400)));
}

#[tokio::test(start_paused = true)]
async fn unexpected_responses_are_refusals_too() {
    let large = format!("HTTP/1.1 502 Bad\r\ncontent-length: 100000\r\n\r\n{}", "x".repeat(100_000));
    for (answer, status) in [
        ("HTTP/1.1 404 Not Found\r\nconnection: close\r\n\r\n<html>".to_owned(), 404),
        ("HTTP/1.1 302 Found\r\nlocation: https://elsewhere.test/\r\ncontent-length: 0\r\n\r\n".to_owned(), 302),
        ("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}".to_owned(), 200),
        (large, 502),
    ] {
        let error = answered(&answer).await.unwrap_err();
        assert_eq!(error.refusal().map(|refusal| (refusal.status, refusal.problem.is_none())), Some((status, true)), "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_upgrade_to_something_else_is_an_error() {
    let lines = |accept: &str, protocol: &str, more: &str| {
        format!(
            "HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-accept: {accept}\r\n{protocol}{more}\r\n"
        )
    };
    let control = "sec-websocket-protocol: moorline.control.v1\r\n";
    assert!(answered(&lines("{accept}", control, "")).await.is_ok());
    for broken in [
        lines("c29tZXRoaW5nIGVsc2U=", control, ""),
        lines("{accept}", "", ""),
        lines("{accept}", "sec-websocket-protocol: moorline.stream.v1\r\n", ""),
        lines("{accept}", control, "sec-websocket-extensions: permessage-deflate\r\n"),
        "HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: h2c\r\n\r\n".to_owned(),
    ] {
        assert!(matches!(answered(&broken).await, Err(DialError::Upgrade(_))), "{broken}");
    }
    assert!(matches!(answered("SSH-2.0-OpenSSH_9.2\r\n\r\n").await, Err(DialError::Http(_))));
    assert!(matches!(answered("").await, Err(DialError::Http(_) | DialError::Deadline { .. })));
}

#[tokio::test(start_paused = true)]
async fn the_deadline_error_names_the_step() {
    let (dialer, mut remote_ends) = dialer();
    let begun = Instant::now();
    let headers = HeaderMap::new();
    let request = dialer.request(Method::GET, "/v1/about", &headers, None, None, within(3));
    let (result, _silent) = tokio::join!(request, remote_ends.recv());
    assert!(matches!(result, Err(DialError::Deadline { step: Step::Request })));
    assert_eq!(begun.elapsed(), Duration::from_secs(3));
}

#[tokio::test(start_paused = true)]
async fn an_api_request_carries_json_and_any_status_is_a_response() {
    let (dialer, mut remote_ends) = dialer();
    let relay = async {
        let mut remote = remote_ends.recv().await.unwrap();
        let head = head(&mut remote).await;
        assert!(head.starts_with("PUT /v1/devices/lamp HTTP/1.1\r\n"));
        assert_eq!((header(&head, "content-type"), header(&head, "content-length")), (Some("application/json"), Some("2")));
        remote.write_all(b"HTTP/1.1 409 Conflict\r\ncontent-length: 4\r\n\r\nnope").await.unwrap();
        remote
    };
    let headers = HeaderMap::new();
    let request = dialer.request(Method::PUT, "/v1/devices/lamp", &headers, None, Some("{}".to_owned()), within(3));
    let (response, _remote) = tokio::join!(request, relay);
    let response = response.unwrap();
    assert_eq!((response.status.as_u16(), response.body.as_ref()), (409, b"nope".as_slice()));
    assert!(matches!(response.accepted(), Err(DialError::Refused(refusal)) if refusal.status == 409));
}

#[tokio::test]
async fn a_closed_port_is_a_connect_error_and_an_unknown_name_a_resolve_error() {
    let port = TcpListener::bind(("127.0.0.1", 0)).await.unwrap().local_addr().unwrap().port();
    let about = async |url: &str| {
        let dialer = Dialer::new(url.parse().unwrap(), Some(&self_signed())).unwrap();
        dialer.request(Method::GET, "/v1/about", &HeaderMap::new(), None, None, within(20)).await.unwrap_err()
    };
    assert!(matches!(about(&format!("https://127.0.0.1:{port}")).await, DialError::Connect { .. }));
    assert!(matches!(about("https://nowhere.invalid").await, DialError::Resolve { .. }));
}

/// A CA, and a TLS server with its certificate for `localhost`.
pub(crate) fn relay_of_a_ca() -> (Vec<u8>, TlsAcceptor) {
    let ca_key = KeyPair::generate().unwrap();
    let mut ca = CertificateParams::new(Vec::new()).unwrap();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca_certificate = ca.self_signed(&ca_key).unwrap();
    let key = KeyPair::generate().unwrap();
    let issuer = Issuer::new(ca, ca_key);
    let certificate = CertificateParams::new(vec!["localhost".to_owned()]).unwrap().signed_by(&key, &issuer).unwrap();
    let private = rustls::pki_types::PrivateKeyDer::Pkcs8(key.serialize_der().into());
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let mut config = config.with_no_client_auth().with_single_cert(vec![certificate.der().clone()], private).unwrap();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    (ca_certificate.der().to_vec(), TlsAcceptor::from(Arc::new(config)))
}

fn self_signed() -> Vec<u8> {
    relay_of_a_ca().0
}

#[tokio::test]
async fn tls_trusts_the_given_ca_and_later_dials_resume_the_session() {
    let (ca, acceptor) = relay_of_a_ca();
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let url: RelayUrl = format!("https://localhost:{}", listener.local_addr().unwrap().port()).parse().unwrap();
    // Sequential dials, until there are tickets for more connections than rustls keeps by default.
    const AT_ONCE: usize = 12;
    let server = async {
        let mut kinds = Vec::new();
        while kinds.len() < 2 * AT_ONCE {
            let (tcp, _) = listener.accept().await.unwrap();
            let Ok(mut tls) = acceptor.accept(tcp).await else { continue };
            assert_eq!(tls.get_ref().1.alpn_protocol(), Some(b"http/1.1".as_slice()));
            kinds.push(tls.get_ref().1.handshake_kind().unwrap());
            drop(tls.read(&mut [0; 1024]).await);
            tls.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
            tls.shutdown().await.unwrap();
        }
        kinds
    };
    let client = async {
        let headers = HeaderMap::new();
        let untrusting = Dialer::new(url.clone(), Some(&self_signed())).unwrap();
        let error = untrusting.request(Method::GET, "/v1/about", &headers, None, None, within(20)).await.unwrap_err();
        assert!(matches!(error, DialError::Tls { .. }), "{error}");
        let dialer = Dialer::new(url.clone(), Some(&ca)).unwrap();
        let one = async |dialer: Dialer| {
            let answer = dialer.request(Method::GET, "/v1/about", &headers, None, None, within(20)).await.unwrap();
            assert_eq!(answer.status, 200);
        };
        for dialer in (0..AT_ONCE).map(|number| if number == 1 { dialer.at(url.clone()) } else { dialer.clone() }) {
            one(dialer).await;
        }
        let mut burst: FuturesUnordered<_> = (0..AT_ONCE).map(|_| one(dialer.clone())).collect();
        while burst.next().await.is_some() {}
    };
    let (kinds, ()) = tokio::join!(server, client);
    assert_eq!(kinds[0], HandshakeKind::Full);
    assert_eq!(kinds[1..], [HandshakeKind::Resumed; 2 * AT_ONCE - 1]);
}

#[test]
fn a_ca_file_without_a_certificate_is_an_error() {
    assert!(matches!(Dialer::new(url(), Some(b"no certificate")), Err(crate::dial::TrustError::NotACertificate(_))));
}
