//! Half-close through the three programs: each direction ends by itself, and a cut connection never looks like an ended one.

use std::io::ErrorKind;
use std::time::Duration;

use moorline_tests::patterns::pattern;
use moorline_tests::programs::{feed, run};
use moorline_tests::targets::Target;
use moorline_tests::world::{Device, Forward, World};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::timeout;

const WITHIN: Duration = Duration::from_secs(60);
const SIZE: usize = 3 << 20;

/// What the target received on a connection: all bytes to the end, or the error that cut it.
type Seen = Result<Vec<u8>, ErrorKind>;

struct Scene {
    world: World,
    forward: Forward,
    seen: mpsc::Receiver<Seen>,
    _device: Device,
    _target: Target,
}

impl Scene {
    /// A target that sends `bytes`, half-closes at once, and then reads to the end.
    async fn with_target_that_sends(bytes: Vec<u8>) -> Self {
        let (outcome, seen) = mpsc::channel(8);
        let target = Target::start(move |mut tcp| {
            let (outcome, bytes) = (outcome.clone(), bytes.clone());
            async move {
                tcp.write_all(&bytes).await.expect("the stream accepts bytes");
                tcp.shutdown().await.expect("the direction is half-closed");
                let mut received = Vec::new();
                let ended = tcp.read_to_end(&mut received).await;
                outcome.send(ended.map(|_| received).map_err(|error| error.kind())).await.ok();
            }
        })
        .await;
        let world = World::start().await;
        let device = world.device("lamp-1", &[("data", target.address)]).await;
        let forward = world.forward("lamp-1", &["data"]).await;
        Self { world, forward, seen, _device: device, _target: target }
    }

    async fn dial(&self) -> TcpStream {
        TcpStream::connect(self.forward.local[0]).await.expect("the forward listens")
    }

    async fn seen(&mut self) -> Seen {
        timeout(WITHIN, self.seen.recv()).await.expect("the target sees an end in time").expect("the target runs")
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_device_may_end_first_and_still_receives_everything() {
    let mut scene = Scene::with_target_that_sends(pattern(1, 0, SIZE)).await;
    let mut tcp = scene.dial().await;
    let mut received = Vec::new();
    timeout(WITHIN, tcp.read_to_end(&mut received)).await.expect("in time").expect("an end, not a cut");
    assert!(received == pattern(1, 0, SIZE), "all bytes arrive before the end");
    tcp.write_all(&pattern(2, 0, SIZE)).await.expect("the other direction stays open");
    tcp.shutdown().await.expect("the direction is half-closed");
    assert!(scene.seen().await == Ok(pattern(2, 0, SIZE)), "the device receives all of it, and the end");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_caller_may_end_first_and_still_receives_everything() {
    let target = Target::start(|mut tcp| async move {
        let mut received = Vec::new();
        tcp.read_to_end(&mut received).await.expect("an end, not a cut");
        assert!(received == pattern(3, 0, SIZE));
        tcp.write_all(&pattern(4, 0, SIZE)).await.expect("the other direction stays open");
    })
    .await;
    let world = World::start().await;
    let _device = world.device("lamp-1", &[("data", target.address)]).await;
    let file = world.path("input");
    std::fs::write(&file, pattern(3, 0, SIZE)).expect("a file is written");
    let input = std::fs::File::open(&file).expect("the file is there");
    let done = feed(world.client().args(["connect", "lamp-1", "data"]), input, WITHIN).await.success();
    assert!(done.out == pattern(4, 0, SIZE), "the output after the end of standard input is complete");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reset_by_the_caller_resets_the_target() {
    let mut scene = Scene::with_target_that_sends(b"hello".to_vec()).await;
    let mut tcp = scene.dial().await;
    let mut hello = Vec::new();
    timeout(WITHIN, tcp.read_to_end(&mut hello)).await.expect("in time").expect("an end, not a cut");
    tcp.set_zero_linger().expect("a socket of this machine");
    drop(tcp);
    assert_eq!(scene.seen().await, Err(ErrorKind::ConnectionReset));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reset_by_the_target_resets_the_caller_and_connect_reports_it() {
    let target = Target::start(|mut tcp| async move {
        tcp.read_exact(&mut [0; 5]).await.expect("five bytes");
        tcp.set_zero_linger().expect("a socket of this machine");
    })
    .await;
    let world = World::start().await;
    let _device = world.device("lamp-1", &[("data", target.address)]).await;
    let forward = world.forward("lamp-1", &["data"]).await;
    let mut tcp = TcpStream::connect(forward.local[0]).await.expect("the forward listens");
    tcp.write_all(b"hello").await.expect("the stream accepts bytes");
    let cut = timeout(WITHIN, tcp.read(&mut [0; 1])).await.expect("in time");
    assert_eq!(cut.expect_err("a cut stream does not look ended").kind(), ErrorKind::ConnectionReset);

    let file = world.path("input");
    std::fs::write(&file, b"hello").expect("a file is written");
    let input = std::fs::File::open(&file).expect("the file is there");
    let done = feed(world.client().args(["connect", "lamp-1", "data"]), input, WITHIN).await;
    assert_eq!(done.code, Some(1), "{}", done.err);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_forward_resets_the_target() {
    let mut scene = Scene::with_target_that_sends(b"hello".to_vec()).await;
    let mut tcp = scene.dial().await;
    let mut hello = Vec::new();
    timeout(WITHIN, tcp.read_to_end(&mut hello)).await.expect("in time").expect("an end, not a cut");
    scene.forward.program.signal("KILL");
    assert_eq!(scene.seen().await, Err(ErrorKind::ConnectionReset), "the caller's leg vanished");
    let again = run(scene.world.client().args(["connect", "lamp-1", "data"]), WITHIN).await.success();
    assert_eq!(again.text(), "hello", "the next stream works");
}
