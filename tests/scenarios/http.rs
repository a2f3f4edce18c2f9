//! HTTP to a device through a forwarded port.

use std::process::Stdio;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use moorline_tests::patterns::pattern;
use moorline_tests::programs::{command, feed, run};
use moorline_tests::targets::{Target, file_hash};
use moorline_tests::world::{SCALED, World};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_tungstenite::tungstenite::Message;

const WITHIN: Duration = Duration::from_secs(120);

#[tokio::test(flavor = "multi_thread")]
async fn a_kept_alive_connection_is_one_stream() {
    let (world, web) = (World::start().await, Target::web().await);
    let _device = world.device("lamp-1", &[("http", web.address)]).await;
    let forward = world.forward("lamp-1", &["http"]).await;
    let url = format!("http://{}/", forward.local[0]);
    let done = run(command("curl").args(["-sS", "-w", "\n%{num_connects}\n"]).args([&url, &url, &url]), WITHIN).await.success();
    assert_eq!(done.text(), "hello\n1\nhello\n0\nhello\n0\n", "three requests, one connection");
    world.relay.events("stream ended", 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_connections_at_once_reach_one_device() {
    let (world, web) = (World::start().await, Target::web().await);
    let _device = world.device("lamp-1", &[("http", web.address)]).await;
    let forward = world.forward("lamp-1", &["http"]).await;
    let mut held = Vec::new();
    for _ in 0..100 {
        let mut tcp = TcpStream::connect(forward.local[0]).await.expect("the forward listens");
        tcp.write_all(b"GET / HTTP/1.1\r\nhost: lamp-1\r\n\r\n").await.expect("it accepts bytes");
        held.push(tcp);
    }
    for tcp in &mut held {
        let mut answer = vec![0; 15];
        timeout(WITHIN, tcp.read_exact(&mut answer)).await.expect("in time").expect("each is answered");
        assert_eq!(answer, b"HTTP/1.1 200 OK");
    }
    let device = world.moorline(&["device", "show", "lamp-1", "--json"]).await.success();
    let device: serde_json::Value = serde_json::from_slice(&device.out).expect("--json prints JSON");
    assert_eq!(device["online"]["streams"], 100, "all of them are open at once");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chunked_upload_arrives_whole() {
    let (world, web) = (World::start().await, Target::web().await);
    let _device = world.device("lamp-1", &[("http", web.address)]).await;
    let forward = world.forward("lamp-1", &["http"]).await;
    let file = world.path("upload");
    std::fs::write(&file, pattern(9, 0, 32 << 20)).expect("a file is written");
    let mut upload = command("curl");
    upload
        .args(["-sS", "-X", "POST", "-H", "Transfer-Encoding: chunked", "-H", "Expect:", "-T", "-"])
        .arg(format!("http://{}/", forward.local[0]));
    let input = std::fs::File::open(&file).expect("the file is there");
    let done = feed(&mut upload, Stdio::from(input), WITHIN).await.success();
    assert_eq!(done.text(), file_hash(&file));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_websocket_runs_inside_a_stream() {
    let (world, target) = (World::start().await, Target::websocket().await);
    let _device = world.device("lamp-1", &[("http", target.address)]).await;
    let forward = world.forward("lamp-1", &["http"]).await;
    let tcp = TcpStream::connect(forward.local[0]).await.expect("the forward listens");
    let (mut socket, _) = tokio_tungstenite::client_async("ws://lamp-1/", tcp).await.expect("the upgrade passes through");
    for size in [1, 125, 126, 65_535, 65_536, 1 << 20] {
        let bytes = pattern(size, 0, usize::try_from(size).expect("small"));
        socket.send(Message::binary(bytes.clone())).await.expect("it is sent");
        let received = timeout(WITHIN, socket.next()).await.expect("in time");
        assert_eq!(received.expect("the message comes back").expect("whole").into_data(), bytes);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_survives_many_silent_ping_intervals() {
    let (world, echo) = (World::start_with(SCALED).await, Target::echo().await);
    let _device = world.device("lamp-1", &[("echo", echo.address)]).await;
    let forward = world.forward("lamp-1", &["echo"]).await;
    echo_after_silence(&forward.local[0].to_string(), Duration::from_secs(3)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_survives_ninety_silent_seconds_at_default_times() {
    let (world, echo) = (World::start().await, Target::echo().await);
    let _device = world.device("lamp-1", &[("echo", echo.address)]).await;
    let forward = world.forward("lamp-1", &["echo"]).await;
    echo_after_silence(&forward.local[0].to_string(), Duration::from_secs(90)).await;
    assert_eq!(world.relay.count("device online"), 1, "the control channel was silent too, and is open");
}

async fn echo_after_silence(address: &str, silence: Duration) {
    let mut tcp = TcpStream::connect(address).await.expect("the forward listens");
    for sent in [&b"before"[..], b"after"] {
        tcp.write_all(sent).await.expect("the stream accepts bytes");
        let mut received = vec![0; sent.len()];
        timeout(WITHIN, tcp.read_exact(&mut received)).await.expect("in time").expect("the bytes come back");
        assert_eq!(received, sent);
        if sent == b"before" {
            // real time: the test is about silence
            sleep_until(Instant::now() + silence).await;
        }
    }
    tcp.shutdown().await.expect("the direction is half-closed");
    assert_eq!(timeout(WITHIN, tcp.read(&mut [0; 1])).await.expect("in time").expect("the end is echoed"), 0);
}
