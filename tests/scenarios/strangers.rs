//! Strangers at the door of a real relay: silence, noise and half sentences cost them their place, and nobody else anything.

use std::time::Duration;

use moorline_tests::programs::run;
use moorline_tests::stranger::{HALF_A_HELLO, heard_to_the_end, tls};
use moorline_tests::targets::Target;
use moorline_tests::world::World;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::timeout;

const WITHIN: Duration = Duration::from_secs(60);

async fn knock(world: &World, says: &[u8]) -> TcpStream {
    let mut tcp = TcpStream::connect(world.address).await.expect("the relay listens");
    tcp.write_all(says).await.expect("the relay takes bytes");
    tcp
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crowd_that_never_finishes_a_sentence_does_not_keep_a_device_or_a_caller_waiting() {
    let (world, echo) = (World::start_with("establish = '5m'\n").await, Target::echo().await);
    let mut crowd = Vec::new();
    for _ in 0..40 {
        crowd.push(knock(&world, b"").await);
        crowd.push(knock(&world, HALF_A_HELLO).await);
    }
    let scenario = async {
        let _device = world.device("lamp-1", &[("echo", echo.address)]).await;
        let mut connect = world.client();
        run(connect.args(["connect", "lamp-1", "echo"]), WITHIN).await.well();
    };
    timeout(WITHIN, scenario).await.expect("long before anybody of the crowd is sent away");
    drop(crowd);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_come_to_tls_in_time_is_sent_away() {
    let world = World::start_with("establish = '300ms'\n").await;
    for says in [&b""[..], HALF_A_HELLO] {
        let mut tcp = knock(&world, says).await;
        assert_eq!(heard_to_the_end(&mut tcp, WITHIN).await, b"", "nothing is said to somebody who is late");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn noise_and_plain_http_get_no_answer_that_says_anything() {
    let world = World::start().await;
    for says in [&b"GET /v1/about HTTP/1.1\r\nHost: localhost\r\n\r\n"[..], b"SSH-2.0-OpenSSH_9.2\r\n", &[0xff; 4096]] {
        let mut tcp = knock(&world, says).await;
        let heard = heard_to_the_end(&mut tcp, WITHIN).await;
        assert!(heard.len() <= 7 && !heard.starts_with(b"HTTP"), "at most a TLS alert: {heard:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn h2_is_never_agreed_on() {
    let world = World::start().await;
    let dial = async |alpn: &[&str]| tls(TcpStream::connect(world.address).await.expect("it listens"), &world.ca_file(), alpn).await;
    let both = dial(&["h2", "http/1.1"]).await.expect("there is a protocol in common");
    assert_eq!(both.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
    let refused = dial(&["h2"]).await.expect_err("there is none in common");
    assert!(refused.to_string().contains("NoApplicationProtocol"), "the relay says so in TLS: {refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_asks_in_bulk_and_says_not_who_he_is_gets_sixteen_answers_and_the_end() {
    let world = World::start().await;
    let tcp = TcpStream::connect(world.address).await.expect("the relay listens");
    let mut connection = tls(tcp, &world.ca_file(), &["http/1.1"]).await.expect("TLS comes about");
    let questions = "GET /v1/about HTTP/1.1\r\nHost: localhost\r\n\r\n".repeat(100);
    connection.write_all(questions.as_bytes()).await.expect("the relay takes bytes");
    let heard = String::from_utf8_lossy(&heard_to_the_end(&mut connection, WITHIN).await).into_owned();
    assert_eq!(heard.matches("HTTP/1.1 200 OK").count(), 16, "{heard}");
    assert_eq!(heard.matches("connection: close").count(), 1, "{heard}");
}

/// Two lengths, or a length and chunks: whichever of them a balancer believes, the relay never sees a request hidden in the body.
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
        let mut connection = tls(tcp, &world.ca_file(), &["http/1.1"]).await.expect("TLS comes about");
        let request = format!("POST /v1/devices/lamp-1/streams HTTP/1.1\r\nHost: localhost\r\n{framing}");
        connection.write_all(request.as_bytes()).await.expect("the relay takes bytes");
        let heard = String::from_utf8_lossy(&heard_to_the_end(&mut connection, WITHIN).await).into_owned();
        assert_eq!(heard.matches("HTTP/1.1 ").count(), 1, "one answer, and the end: {framing:?}\n{heard}");
        assert!(heard.starts_with("HTTP/1.1 4"), "and it is a refusal: {heard}");
    }
}
