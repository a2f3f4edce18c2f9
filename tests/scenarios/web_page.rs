//! A page with many parts, as a browser loads it through `forward` over a long line: six connections at a time, each for one request.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use moorline_tests::link::{Link, Plan};
use moorline_tests::patterns::pattern;
use moorline_tests::targets::Target;
use moorline_tests::world::World;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

/// One way, on each of the two lines: 100 ms of round trip.
const LATENCY: Duration = Duration::from_millis(50);
/// What the page consists of.
const PARTS: u64 = 30;
/// Connections that a browser has at a time.
const AT_A_TIME: u64 = 6;
const PART_BYTES: usize = 30_000;
const WITHIN: Duration = Duration::from_secs(60);

/// The web server of a device: answers one request on each connection, and closes.
async fn answer(mut tcp: TcpStream) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match tcp.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => return,
        }
    }
    let head = String::from_utf8(head).expect("a head is text");
    let part: u64 = head.strip_prefix("GET /part/").and_then(|rest| rest.split(' ').next()?.parse().ok()).expect("a part's path");
    let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {PART_BYTES}\r\nConnection: close\r\n\r\n");
    tcp.write_all(&[answer.as_bytes(), &pattern(part, 0, PART_BYTES)].concat()).await.expect("the caller reads the answer");
}

/// Loads one part on a connection of its own.
async fn load(forward: SocketAddr, part: u64) {
    let mut tcp = TcpStream::connect(forward).await.expect("the forward listens");
    let request = format!("GET /part/{part} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    tcp.write_all(request.as_bytes()).await.expect("the request is sent");
    let mut answer = Vec::new();
    tcp.read_to_end(&mut answer).await.expect("an end, not a cut");
    let body = answer.windows(4).position(|window| window == b"\r\n\r\n").map(|at| &answer[at + 4..]);
    assert!(answer.starts_with(b"HTTP/1.1 200 OK\r\n") && body == Some(&pattern(part, 0, PART_BYTES)), "part {part}");
}

/// Loads all parts, as many at a time as a browser does.
async fn load_page(forward: SocketAddr) {
    let next = AtomicU64::new(0);
    let workers = (0..AT_A_TIME).map(|_| async {
        while let part @ 0..PARTS = next.fetch_add(1, Ordering::Relaxed) {
            load(forward, part).await;
        }
    });
    timeout(WITHIN, join_all(workers)).await.expect("in time");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_of_thirty_parts_takes_few_connections_over_a_long_line() {
    let world = World::start().await;
    let line = Plan { latency: LATENCY, ..Plan::default() };
    let (to_caller, to_device) = (Link::start(world.address, move |_| line).await, Link::start(world.address, move |_| line).await);
    let web = Target::start(answer).await;
    let _device = world.device_by(to_device.address.port(), "lamp-1", &[("http", web.address)]).await;
    let forward = world.forward_by(to_caller.address.port(), "lamp-1", &["http"]).await;
    load_page(forward.local[0]).await;
    world.relay.events("stream ended", 30).await;
    let (callers, devices) = (to_caller.connections(), to_device.connections());
    println!("{callers} connections of the caller, {devices} of the device");
    // While one leg comes back to a connection of the browser, which takes a round trip, the next one uses another. Besides, there are the legs
    // that are ready, and the control channel; and a busy machine is slower than the line.
    assert!(callers <= 3 * AT_A_TIME && devices <= 3 * AT_A_TIME, "{callers} connections of the caller, {devices} of the device");

    sleep(6 * LATENCY).await; // real time: the last legs come back over the line
    load_page(forward.local[0]).await;
    world.relay.events("stream ended", 60).await;
    let more = (to_caller.connections() - callers, to_device.connections() - devices);
    assert!(more.0 <= AT_A_TIME / 2 && more.1 <= AT_A_TIME / 2, "the second page takes {more:?} more, of caller and device");
}
