//! Services that close before they have read everything, and links that die behind an end: the caller sees what it would see on a direct
//! connection, and an answer that came first is not lost.

use std::fs::File;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use moorline_tests::link::{CutKind, Link, Plan};
use moorline_tests::patterns::pattern;
use moorline_tests::programs::{Done, binaries, command, feed, run};
use moorline_tests::targets::Target;
use moorline_tests::world::World;
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::timeout;

const WITHIN: Duration = Duration::from_secs(60);
const TRIES: usize = 6;
/// A link of a slow uplink, in bytes per second.
const SLOW: u64 = 500_000;
const MIB: usize = 1 << 20;

/// A target that reads at least `least` bytes and everything that has come until then, and closes: its kernel sends a FIN, and no reset.
/// Sends how much each connection took.
async fn reads_and_closes(least: usize) -> (Target, mpsc::Receiver<usize>) {
    let (taken, takes) = mpsc::channel(64);
    let target = Target::start(move |mut tcp| {
        let taken = taken.clone();
        async move {
            tcp.read_exact(&mut vec![0; least]).await.expect("more is sent");
            let mut all = least;
            while let Ok(count @ 1..) = tcp.try_read(&mut [0; 64 << 10]) {
                all += count;
            }
            drop(tcp);
            taken.send(all).await.ok();
        }
    })
    .await;
    (target, takes)
}

fn input(world: &World, size: usize) -> File {
    let path = world.path("input");
    std::fs::write(&path, pattern(5, 0, size)).expect("a file is written");
    File::open(&path).expect("the file is there")
}

async fn connect(world: &World, input: File) -> Done {
    feed(world.client().args(["connect", "lamp-1", "data"]), input, WITHIN).await
}

/// Uploads everything, and stays until the connection shows an error. Returns whether it did. It does not end its own direction: once both
/// have ended, TCP has no way to show anything.
async fn upload_fails(to: SocketAddr, size: usize) -> bool {
    let exchange = async {
        let mut tcp = TcpStream::connect(to).await?;
        tcp.write_all(&pattern(5, 0, size)).await?;
        tcp.read_to_end(&mut Vec::new()).await?;
        tcp.ready(Interest::ERROR).await?;
        tcp.take_error()?.map_or(Ok(()), Err)
    };
    timeout(WITHIN, exchange).await.is_ok_and(|ended: std::io::Result<()>| ended.is_err())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_a_service_did_not_read_to_its_end_fails() {
    const TOTAL: usize = 4 * MIB;
    let world = World::start().await;
    let (target, mut takes) = reads_and_closes(100_000).await;
    let _device = world.device("lamp-1", &[("data", target.address)]).await;
    for number in 0..TRIES {
        let done = connect(&world, input(&world, TOTAL)).await;
        let taken = takes.recv().await.expect("the target runs");
        assert_eq!(done.code == Some(0), taken == TOTAL, "try {number}: {taken} of {TOTAL} bytes were taken: {:?} {}", done.code, done.err);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_over_a_slow_link_that_a_service_did_not_read_to_its_end_fails() {
    let world = World::start().await;
    let (target, mut takes) = reads_and_closes(MIB / 4).await;
    let link = Link::start(world.address, |_| Plan { rate: Some(SLOW), ..Plan::default() }).await;
    let _device = world.device_by(link.address.port(), "lamp-1", &[("data", target.address)]).await;
    let forward = world.forward("lamp-1", &["data"]).await;
    let (done, failed) = tokio::join!(connect(&world, input(&world, MIB)), upload_fails(forward.local[0], MIB));
    assert!(takes.recv().await.is_some_and(|taken| taken < MIB), "most is still under way");
    assert_ne!(done.code, Some(0), "{}", done.err);
    assert!(failed, "the local connection shows it");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_that_dies_behind_both_ends_is_no_clean_end() {
    let world = World::start().await;
    let (progress, mut received) = mpsc::channel(64);
    let target = Target::start(move |mut tcp| {
        let progress = progress.clone();
        async move {
            tcp.shutdown().await.expect("it ends first");
            let (mut buffer, mut all) = (vec![0; 64 << 10], 0);
            while let Ok(count @ 1..) = tcp.read(&mut buffer).await {
                all += count;
                progress.send(all).await.ok();
            }
        }
    })
    .await;
    let link = Link::start(world.address, |_| Plan { rate: Some(SLOW), ..Plan::default() }).await;
    let _device = world.device_by(link.address.port(), "lamp-1", &[("data", target.address)]).await;
    let cut = async {
        while received.recv().await.expect("the target reads") < MIB / 8 {}
        link.cut(CutKind::Reset);
        while received.recv().await.is_some_and(|count| count < MIB) {
            // Drains what the target still reads, so that it does not wait for this task.
        }
    };
    let (done, ()) = tokio::join!(connect(&world, input(&world, MIB)), async {
        tokio::select! {
            () = cut => {}
            record = world.relay.event("stream ended") => assert_eq!(record["result"], "device_lost", "{record}"),
        }
    });
    assert_ne!(done.code, Some(0), "most of it never arrived: {}", done.err);
}

const ANSWER: &[u8] = b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 9\r\nConnection: close\r\n\r\ntoo large";

/// Answers a request by its head alone, and closes: at once, or after it has ended its direction.
async fn answers_early(ends_first: bool) -> Target {
    Target::start(move |mut tcp| async move {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(tcp.read_u8().await.expect("a head has an end"));
        }
        tcp.write_all(ANSWER).await.expect("the answer is taken");
        if ends_first {
            tcp.shutdown().await.expect("the direction is ended");
        }
    })
    .await
}

async fn curl(to: SocketAddr, body: &Path) -> String {
    let mut curl = command("curl");
    curl.args(["-s", "-o", "/dev/null", "-w", "%{http_code}", "-H", "Expect:", "--data-binary"]);
    curl.arg(format!("@{}", body.display())).arg(format!("http://{to}/"));
    run(&mut curl, WITHIN).await.text()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_comes_before_the_upload_is_read_arrives() {
    for ends_first in [false, true] {
        let world = World::start().await;
        let target = answers_early(ends_first).await;
        let _device = world.device("lamp-1", &[("data", target.address)]).await;
        let forward = world.forward("lamp-1", &["data"]).await;
        let body = world.path("body");
        std::fs::write(&body, pattern(6, 0, 20 * MIB)).expect("a file is written");
        let request = world.path("request");
        let head = format!("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", 20 * MIB);
        std::fs::write(&request, [head.into_bytes(), pattern(6, 0, 20 * MIB)].concat()).expect("a file is written");
        for number in 0..TRIES {
            assert_eq!(curl(forward.local[0], &body).await, "413", "through forward, try {number}, {ends_first}");
            let done = connect(&world, File::open(&request).expect("it is there")).await;
            assert!(done.out == ANSWER, "through connect, try {number}, {ends_first}: {:?} {}", done.text(), done.err);
            assert_ne!(done.code, Some(0), "the upload failed");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_closes_standard_output_ends_connect() {
    let world = World::start().await;
    let target = Target::start(|mut tcp| async move { while tcp.write_all(&[b'y'; 4_096]).await.is_ok() {} }).await;
    let _device = world.device("lamp-1", &[("data", target.address)]).await;
    let script = r#""$0" --profile "$1" connect lamp-1 data </dev/zero | head -c 10000 | wc -c"#;
    let mut shell = command("bash");
    shell.args(["-c", script]).arg(&binaries().client).arg(world.path("profile.toml"));
    let done = run(&mut shell, WITHIN).await;
    assert_eq!(done.text().trim(), "10000");
    assert_eq!(world.relay.event("stream ended").await["result"], "caller_reset");
}
