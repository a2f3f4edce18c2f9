//! Unauthenticated peers of a real relay: silence, random bytes and partial requests close their own connection and affect no other.

use std::time::Duration;

use moorline_tests::programs::run;
use moorline_tests::targets::Target;
use moorline_tests::unauthenticated_peer::{PARTIAL_CLIENT_HELLO, read_until_closed, tls};
use moorline_tests::world::World;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::timeout;

const WITHIN: Duration = Duration::from_secs(60);

async fn connect_and_send(world: &World, bytes: &[u8]) -> TcpStream {
    let mut tcp = TcpStream::connect(world.address).await.expect("the relay listens");
    tcp.write_all(bytes).await.expect("the relay accepts bytes");
    tcp
}

#[tokio::test(flavor = "multi_thread")]
async fn unfinished_tls_handshakes_delay_neither_devices_nor_callers() {
    let (world, echo) = (World::start_with("tls_handshake_timeout = '5m'\n").await, Target::echo().await);
    let mut flood = Vec::new();
    for _ in 0..40 {
        flood.push(connect_and_send(&world, b"").await);
        flood.push(connect_and_send(&world, PARTIAL_CLIENT_HELLO).await);
    }
    let scenario = async {
        let _device = world.device("lamp-1", &[("echo", echo.address)]).await;
        let mut connect = world.client();
        run(connect.args(["connect", "lamp-1", "echo"]), WITHIN).await.success();
    };
    timeout(WITHIN, scenario).await.expect("long before a flooding peer is closed");
    drop(flood);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_does_not_finish_tls_in_time_is_closed() {
    let world = World::start_with("tls_handshake_timeout = '300ms'\n").await;
    for bytes in [&b""[..], PARTIAL_CLIENT_HELLO] {
        let mut tcp = connect_and_send(&world, bytes).await;
        assert_eq!(read_until_closed(&mut tcp, WITHIN).await, b"", "closed without a response");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn random_bytes_and_plain_http_get_at_most_a_tls_alert() {
    let world = World::start().await;
    for bytes in [&b"GET /v1/about HTTP/1.1\r\nHost: localhost\r\n\r\n"[..], b"SSH-2.0-OpenSSH_9.2\r\n", &[0xff; 4096]] {
        let mut tcp = connect_and_send(&world, bytes).await;
        let received = read_until_closed(&mut tcp, WITHIN).await;
        assert!(received.len() <= 7 && !received.starts_with(b"HTTP"), "at most a TLS alert: {received:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn h2_is_never_negotiated() {
    let world = World::start().await;
    let dial = async |alpn: &[&str]| tls(TcpStream::connect(world.address).await.expect("it listens"), &world.ca_file(), alpn).await;
    let both = dial(&["h2", "http/1.1"]).await.expect("there is a protocol in common");
    assert_eq!(both.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
    let refused = dial(&["h2"]).await.expect_err("there is none in common");
    assert!(refused.to_string().contains("NoApplicationProtocol"), "the relay sends a TLS alert: {refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unauthenticated_connection_gets_sixteen_answers_and_is_closed() {
    let world = World::start().await;
    let tcp = TcpStream::connect(world.address).await.expect("the relay listens");
    let mut connection = tls(tcp, &world.ca_file(), &["http/1.1"]).await.expect("the TLS handshake succeeds");
    let questions = "GET /v1/about HTTP/1.1\r\nHost: localhost\r\n\r\n".repeat(100);
    connection.write_all(questions.as_bytes()).await.expect("the relay accepts bytes");
    let received = String::from_utf8_lossy(&read_until_closed(&mut connection, WITHIN).await).into_owned();
    assert_eq!(received.matches("HTTP/1.1 200 OK").count(), 16, "{received}");
    assert_eq!(received.matches("connection: close").count(), 1, "{received}");
}

/// Two lengths, or a length and chunks: whichever a proxy uses, the relay never reads a second request out of the body.
#[tokio::test(flavor = "multi_thread")]
async fn ambiguous_framing_never_yields_a_second_request() {
    let world = World::start().await;
    let hidden = "GET /v1/about HTTP/1.1\r\nHost: localhost\r\n\r\n";
    for framing in [
        format!("Content-Length: 5\r\nContent-Length: {}\r\n\r\n0\r\n\r\n{hidden}", 5 + hidden.len()),
        format!("Content-Length: {}\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{hidden}", 5 + hidden.len()),
        format!("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n{hidden}"),
        format!("Transfer-Encoding: chunked, identity\r\nContent-Length: 5\r\n\r\n0\r\n\r\n{hidden}"),
    ] {
        let tcp = TcpStream::connect(world.address).await.expect("the relay listens");
        let mut connection = tls(tcp, &world.ca_file(), &["http/1.1"]).await.expect("the TLS handshake succeeds");
        let request = format!("POST /v1/devices/lamp-1/streams HTTP/1.1\r\nHost: localhost\r\n{framing}");
        connection.write_all(request.as_bytes()).await.expect("the relay accepts bytes");
        let received = String::from_utf8_lossy(&read_until_closed(&mut connection, WITHIN).await).into_owned();
        assert_eq!(received.matches("HTTP/1.1 ").count(), 1, "one answer, then the end: {framing:?}\n{received}");
        assert!(received.starts_with("HTTP/1.1 4"), "and it is a refusal: {received}");
    }
}
