//! Legs that are used again behind real load balancers that close idle connections sooner than the relay does: pings keep them open, and where
//! the pings come too seldom, the next stream takes a new one and nobody notices.

use std::net::SocketAddr;
use std::time::Duration;

use futures_util::future::join_all;
use moorline_proto::bounds::LEG_ALIVE_MIN;
use moorline_tests::balancer::{Balancer, Kind, LIMIT};
use moorline_tests::link::{Link, Plan};
use moorline_tests::patterns::pattern;
use moorline_tests::targets::Target;
use moorline_tests::world::{Device, Forward, SCALED, World};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

use crate::load_balancers::behind;

const WITHIN: Duration = Duration::from_secs(30);
/// On top of the wait that the protocol names: two busy cores, and unoptimised programs.
const SLACK: Duration = Duration::from_secs(3);
/// The control channel is kept open. Legs are pinged every 25 s, long after the balancer has closed them.
const SELDOM: &str = "heartbeat = '500ms'\nheartbeat_max = '5s'\n";
/// Between two streams: well before the balancer closes the legs, right at that, and well behind.
const PAUSES: [Duration; 6] = [
    Duration::from_millis(1_000),
    Duration::from_millis(1_930),
    Duration::from_millis(1_985),
    Duration::from_millis(2_005),
    Duration::from_millis(2_040),
    Duration::from_millis(2_600),
];
/// Streams behind such a pause, of each pair.
const ROUNDS: u64 = 3;

/// A device that keeps a leg ready and a forward to it, each behind the balancer.
struct Pair {
    number: u64,
    to_device: Link,
    to_caller: Link,
    forward: Forward,
    _device: Device,
}

impl Pair {
    async fn start(world: &World, balancer: &Balancer, number: u64, target: SocketAddr) -> Self {
        let (to_device, to_caller) =
            (Link::start(balancer.address, |_| Plan::default()).await, Link::start(balancer.address, |_| Plan::default()).await);
        let id = format!("lamp-{number}");
        let device = world.device_with("warm_legs = 1\n", to_device.address.port(), &id, &[("data", target)]).await;
        let forward = world.forward_by(to_caller.address.port(), &id, &["data"]).await;
        Self { number, to_device, to_caller, forward, _device: device }
    }

    /// How many connections the caller and the device have opened so far.
    fn connections(&self) -> (u64, u64) {
        (self.to_caller.connections(), self.to_device.connections())
    }

    /// Carries one stream with bytes of its own to its end.
    async fn stream(&self, round: u64) {
        let (sent, begun) = (pattern(self.number << 32 | round, 0, 20_000), Instant::now());
        let exchange = async {
            let mut tcp = TcpStream::connect(self.forward.local[0]).await.expect("the forward listens");
            tcp.write_all(&sent).await.expect("the stream accepts bytes");
            let first = tcp.read_u8().await.expect("the stream was opened");
            let opened = begun.elapsed();
            tcp.shutdown().await.expect("the direction is half-closed");
            let mut received = vec![first];
            tcp.read_to_end(&mut received).await.expect("an end, not a cut");
            assert!(received == sent, "pair {}, stream {round}: {} bytes came back", self.number, received.len());
            opened
        };
        let opened = timeout(WITHIN, exchange).await.expect("in time");
        assert!(opened < LEG_ALIVE_MIN + SLACK, "pair {}, stream {round}: the first byte came after {opened:?}", self.number);
    }
}

async fn idle_legs_outlive_the_idle_timeout(kind: Kind) {
    let (world, balancer) = behind(kind, SCALED).await;
    let echo = Target::echo().await;
    let pair = Pair::start(&world, &balancer, 1, echo.address).await;
    pair.stream(0).await;
    sleep(LIMIT / 2).await; // real time: each side has replaced the leg that it had ready, and the balancer has closed nothing
    let before = pair.connections();
    sleep(2 * LIMIT).await; // real time: without pings the balancer closes every leg
    pair.stream(1).await;
    assert_eq!(pair.connections(), before, "of caller and device: the stream was carried by legs that had been idle");
}

async fn streams_open_at_any_time_about_the_idle_timeout(kind: Kind) {
    let (world, balancer) = behind(kind, SELDOM).await;
    let echo = Target::echo().await;
    let numbered = (1..).zip(PAUSES);
    let playing = numbered.map(|(number, pause)| {
        let (world, balancer, echo) = (&world, &balancer, echo.address);
        async move {
            let pair = Pair::start(world, balancer, number, echo).await;
            pair.stream(0).await;
            for round in 1..=ROUNDS {
                sleep(pause).await; // real time: the balancer's clock runs meanwhile
                pair.stream(round).await;
            }
            pair
        }
    });
    let pairs = join_all(playing).await;
    let (callers, devices) = pairs.last().expect("there are pairs").connections();
    assert!(callers > ROUNDS && devices > 1 + ROUNDS, "the balancer has closed idle legs: {callers} and {devices} connections");
    for pair in &pairs {
        let said = pair.forward.program.lines().into_iter().find(|line| line.contains("error") || line.contains("was reset"));
        assert_eq!(said, None, "a failure of pair {}", pair.number);
    }
    let streams = pairs.len() * (1 + usize::try_from(ROUNDS).expect("few"));
    world.relay.events("stream ended", streams).await;
    let results: Vec<_> = world.relay.lines().iter().filter_map(|line| result_of_stream(line)).collect();
    assert_eq!(results, vec!["finished"; streams]);
}

/// How a stream ended, if the line says that.
fn result_of_stream(line: &str) -> Option<String> {
    let line: serde_json::Value = serde_json::from_str(line).ok()?;
    (line["message"] == "stream ended").then(|| line["result"].as_str().unwrap_or_default().to_owned())
}

macro_rules! behind_each {
    ($($scenario:ident),+) => {
        mod haproxy_http { $(#[tokio::test(flavor = "multi_thread")] async fn $scenario() { super::$scenario(super::Kind::HaproxyHttp).await; })+ }
        mod nginx { $(#[tokio::test(flavor = "multi_thread")] async fn $scenario() { super::$scenario(super::Kind::Nginx).await; })+ }
    };
}

behind_each!(idle_legs_outlive_the_idle_timeout, streams_open_at_any_time_about_the_idle_timeout);
