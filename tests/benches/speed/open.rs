//! The time from the request for a stream to its first byte back, and how many streams can be opened in a second. Compared with the minimum that a
//! stream needs: two TLS connections to one server, made one after the other, and a byte sent and received.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use moorline::{Client, Timeline};
use moorline_agent::{Accepted, Agent, Decision, Identity, OfferInfo, Settings};
use moorline_tests::world::World;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, duplex};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::load::Connect;
use crate::plain::{ECHO, Plain};
use crate::table::{Spread, Table};
use crate::trip::tcp;

/// Streams opened one at a time: the number of rounds, and of streams in each round, for each side.
const TURNS: usize = 10;
const OPENS: usize = 40;
/// The total number of streams when many are opened at once, in two rounds.
const MANY: usize = 600;

/// Measures opening in the library, through the real programs with `forward`, and pairs of TLS connections.
pub async fn measure(table: &mut Table) {
    let world = World::start().await;
    let plain = Plain::start(&world).await;
    let _device = world.device("open", &[("echo", plain.echo)]).await;
    let forward = world.forward("open", &["echo"]).await;
    let agent = embedded(&world).await;
    let ways = Arc::new(Ways {
        client: world.library(),
        forward: forward.local[0],
        plain: plain.address,
        cold: Connect::cold(&world),
        resuming: Connect::resuming(&world),
    });
    one_at_a_time(&ways, table).await;
    for at_once in [16, 64] {
        many(&ways, at_once, table).await;
    }
    table.note("open: to the first byte back. library: client and agent within the load, the relay a process of its own; forward: relay, agent and client are processes of their own, and TCP on either side");
    table.note(
        "open, beside: two TLS connections to a bare rustls server, one after the other and without resumption, and a byte there and back",
    );
    drop(agent);
}

/// An agent within this process, whose service sends everything back.
async fn embedded(world: &World) -> JoinSet<()> {
    let key = world.path("embedded.key");
    let identity = Identity::create(&key).expect("a key is made");
    let id = "embedded".parse().expect("a device id");
    world.library().put_device(&id, vec![identity.public().clone()]).await.expect("the device is added");
    let join = std::fs::read_to_string(world.join_file()).expect("the world has a join string");
    let settings = Settings::new(join.parse().expect("a join string"), id.clone(), identity).exposing("echo", "");
    let agent = Agent::new(settings, |_: OfferInfo| async {
        let (local, remote) = duplex(4 << 10);
        tokio::spawn(echo_within(remote)); // ends with its stream
        Decision::Accept(Accepted::stream(local))
    });
    let agent = agent.expect("the relay's CA is trusted");
    let mut running = JoinSet::new();
    running.spawn(async move { agent.run(std::future::pending()).await });
    let client = world.library();
    while client.device(&id).await.expect("the device is there").online.is_none() {}
    running
}

async fn echo_within(mut stream: tokio::io::DuplexStream) {
    let mut buffer = [0; 1 << 10];
    while let Ok(count @ 1..) = stream.read(&mut buffer).await {
        if stream.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
}

/// What a measurement opens.
#[derive(Clone, Copy, Debug)]
enum Way {
    Library,
    Forward,
    ColdPair,
    ResumedPair,
}

struct Ways {
    client: Client,
    forward: std::net::SocketAddr,
    plain: std::net::SocketAddr,
    cold: Connect,
    resuming: Connect,
}

impl Ways {
    /// Opens one; returns the relay's timeline and the milliseconds until it was open, where there is one.
    async fn open(&self, way: Way) -> Option<(Timeline, f64)> {
        match way {
            Way::Library => {
                let begun = Instant::now();
                let device = "embedded".parse().expect("a device id");
                let mut stream = self.client.open(&device, &"echo".parse().expect("a service")).await.expect("nothing refuses it");
                let opened = begun.elapsed().as_secs_f64() * 1e3;
                round_trip(&mut stream).await;
                let timeline = *stream.timeline();
                // Behind the measurement, as `forward` does it: both sides end, and the leg is there for a later stream.
                tokio::spawn(async move {
                    stream.shutdown().await.expect("the stream is open");
                    stream.read_to_end(&mut Vec::new()).await.expect("the echo ends behind us");
                    stream.finish().await;
                });
                Some((timeline, opened))
            }
            Way::Forward => {
                round_trip(&mut tcp(self.forward).await).await;
                None
            }
            Way::ColdPair => self.pair(&self.cold).await,
            Way::ResumedPair => self.pair(&self.resuming).await,
        }
    }

    async fn pair<T>(&self, connect: &Connect) -> Option<T> {
        let _first = connect.to(self.plain).await;
        let mut second = connect.to(self.plain).await;
        second.write_u8(ECHO).await.expect("the plain server accepts bytes");
        round_trip(&mut second).await;
        None
    }
}

async fn round_trip(stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) {
    stream.write_all(&[7]).await.expect("the stream is open");
    stream.flush().await.expect("the stream is open");
    stream.read_u8().await.expect("the stream is open");
}

async fn one_at_a_time(ways: &Ways, table: &mut Table) {
    let all = [Way::Library, Way::Forward, Way::ColdPair, Way::ResumedPair];
    let mut spreads: [Spread; 4] = Default::default();
    let mut parts: Vec<(&str, Spread)> = Vec::new();
    for way in all {
        ways.open(way).await; // the first one is measured nowhere: it fills caches
    }
    for _ in 0..TURNS {
        for (way, spread) in all.into_iter().zip(&mut spreads) {
            for _ in 0..OPENS {
                let begun = Instant::now();
                let opened = ways.open(way).await;
                spread.push(begun.elapsed().as_secs_f64() * 1e3);
                if let Some((timeline, opened)) = opened {
                    note_parts(&mut parts, &timeline, opened);
                }
            }
        }
    }
    let [library, forward, cold, resumed] = spreads;
    for percent in [50, 99] {
        let least = cold.percentile(percent);
        let reach = if percent == 50 { "≤ 0.4" } else { "" };
        table.beside(format!("open to first byte, library, p{percent}"), "ms", library.percentile(percent), least, "");
        table.beside(format!("open to first byte, forward, p{percent}"), "ms", forward.percentile(percent), least, reach);
        table.beside(format!("  the pair with resumption, p{percent}"), "ms", resumed.percentile(percent), least, "");
    }
    let parts: Vec<String> = parts.iter().map(|(name, spread)| format!("{name} {:.2}", spread.mean())).collect();
    table.note(format!("open, library: means in ms after the request came: {}", parts.join(", ")));
}

/// The moments of the relay's timeline, and the client's own moment.
fn note_parts(parts: &mut Vec<(&'static str, Spread)>, timeline: &Timeline, opened: f64) {
    let moments = [
        ("authorized", timeline.authorized_ms),
        ("found", timeline.found_ms),
        ("offered", timeline.offered_ms),
        ("device alive", timeline.device_alive_ms),
        ("accepted", timeline.accepted_ms),
        ("device joined", timeline.device_joined_ms),
        ("caller joined", timeline.caller_joined_ms),
        ("opened", timeline.opened_ms),
    ];
    let moments = moments.into_iter().filter_map(|(name, moment)| Some((name, moment?.as_duration().as_secs_f64() * 1e3)));
    for (name, moment) in moments.chain([("opened at the client, from its asking", opened)]) {
        match parts.iter_mut().find(|(known, _)| *known == name) {
            Some((_, spread)) => spread.push(moment),
            None => {
                let mut spread = Spread::default();
                spread.push(moment);
                parts.push((name, spread));
            }
        }
    }
}

async fn many(ways: &Arc<Ways>, at_once: usize, table: &mut Table) {
    let mut spreads: [Spread; 3] = Default::default();
    for _ in 0..2 {
        for (way, spread) in [Way::Library, Way::Forward, Way::ColdPair].into_iter().zip(&mut spreads) {
            let left = Arc::new(AtomicUsize::new(MANY));
            let mut workers = JoinSet::new();
            let begun = Instant::now();
            for _ in 0..at_once {
                let (ways, left) = (Arc::clone(ways), Arc::clone(&left));
                workers.spawn(async move {
                    while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok() {
                        ways.open(way).await;
                    }
                });
            }
            workers.join_all().await;
            spread.push(MANY as f64 / begun.elapsed().as_secs_f64());
        }
    }
    let [library, forward, cold] = spreads.map(|spread| spread.mean());
    let reach = if at_once == 16 { "≥ 2.5" } else { "" };
    table.beside(format!("opens, library, {at_once} at once"), "1/s", library, cold, "");
    table.beside(format!("opens, forward, {at_once} at once"), "1/s", forward, cold, reach);
}
