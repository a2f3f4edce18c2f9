//! Floods: a thousand unauthenticated peers of every kind at once, and more requests for streams than the limits allow. Authenticated peers and
//! new authenticated callers are served meanwhile.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use moorline_proto::control::RejectCode;
use moorline_proto::names::{CONTROL, CONTROL_SUBPROTOCOL};
use moorline_proto::problem::ProblemCode;
use moorline_tests::patterns::pattern;
use moorline_tests::programs::run;
use moorline_tests::targets::Target;
use moorline_tests::unauthenticated_peer::opcode::{BINARY, CONTINUATION, FIN, PING, TEXT};
use moorline_tests::unauthenticated_peer::{PARTIAL_CLIENT_HELLO, connect_from, frame, tls, upgrade_request};
use moorline_tests::wire::{LegEvent, WireDevice, WireLeg, bearer};
use moorline_tests::world::World;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, interval, sleep_until, timeout};
use tokio_rustls::client::TlsStream;

type Tls = TlsStream<TcpStream>;

const WITHIN: Duration = Duration::from_secs(180);
const PEERS: usize = 1_000;
/// The relay's resident memory may grow by this much.
const MEMORY_KIB: u64 = 64 << 10;
/// A flooding peer that was closed reconnects after this.
const RECONNECT_AFTER: Duration = Duration::from_secs(1);

/// A flooding peer pauses between batches, so that the flood depends on the number of peers and not on the speed of the machine.
const BREATH: Duration = Duration::from_millis(50);

/// Lets time pass for a peer of the flood.
async fn pause(duration: Duration) {
    sleep_until(Instant::now() + duration).await; // real time: the rate of the flood
}

/// The duration of the flood.
fn lasts() -> Duration {
    Duration::from_secs(if std::env::var_os("MOORLINE_LONG").is_some() { 30 } else { 6 })
}

/// One connection of a flooding peer, until the relay closes it.
async fn flood_once(world: &World, kind: usize) -> std::io::Result<()> {
    let hold = |tls: Tls| async move {
        let (mut reads, writes) = tokio::io::split(tls);
        // The peer sends nothing and reads only to notice the end.
        let ended = tokio::io::copy(&mut reads, &mut tokio::io::sink()).await.map(drop);
        drop(writes);
        ended
    };
    // Each peer has an address of its own: a single address would only reach its own share.
    let octet = |number: usize| u8::try_from(number % 250 + 1).expect("at most 250");
    let from = IpAddr::from([127, 0, octet(kind / 250), octet(kind)]);
    let dial = async || tls(connect_from(from, world.address).await?, &world.ca_file(), &["http/1.1"]).await;
    let control = || upgrade_request("localhost", CONTROL, CONTROL_SUBPROTOCOL, "");
    match kind % 9 {
        0 => {
            let mut tcp = connect_from(from, world.address).await?;
            tcp.read_to_end(&mut Vec::new()).await.map(drop)
        }
        1 => {
            let mut tcp = connect_from(from, world.address).await?;
            tcp.write_all(PARTIAL_CLIENT_HELLO).await?;
            tcp.read_to_end(&mut Vec::new()).await.map(drop)
        }
        2 => hold(dial().await?).await,
        3 => {
            let mut tls = dial().await?;
            for byte in control().bytes() {
                tls.write_all(&[byte]).await?;
                pause(Duration::from_millis(300)).await;
            }
            Ok(())
        }
        4 => {
            let mut tls = dial().await?;
            tls.write_all(control().as_bytes()).await?;
            hold(tls).await
        }
        5 => {
            let mut tls = dial().await?;
            tls.write_all(control().as_bytes()).await?;
            tls.write_all(&frame(TEXT, br#"{"type":"hello","device":"#)).await?;
            hold(tls).await
        }
        6 => {
            let mut tls = dial().await?;
            tls.write_all(control().as_bytes()).await?;
            let flood = frame(FIN | PING, b"are you there?").repeat(100);
            loop {
                tls.write_all(&flood).await?;
                pause(BREATH).await;
            }
        }
        7 => {
            // Sends requests and never reads an answer.
            let mut tls = dial().await?;
            let questions = "GET /v1/about HTTP/1.1\r\nHost: localhost\r\n\r\n".repeat(100);
            loop {
                tls.write_all(questions.as_bytes()).await?;
            }
        }
        _ => {
            let mut tls = dial().await?;
            tls.write_all(control().as_bytes()).await?;
            tls.write_all(&frame(BINARY, &[])).await?;
            let flood = frame(CONTINUATION, &[]).repeat(1_000);
            loop {
                tls.write_all(&flood).await?;
                pause(BREATH).await;
            }
        }
    }
}

async fn reconnect_repeatedly(world: Arc<World>, kind: usize, opened: Arc<AtomicU64>) {
    loop {
        opened.fetch_add(1, Ordering::Relaxed);
        // Reconnects, however the connection ended.
        flood_once(&world, kind).await.ok();
        pause(RECONNECT_AFTER).await;
    }
}

/// An online device that reads nothing, and callers that offer it streams with the largest allowed data.
async fn device_that_never_reads(world: Arc<World>, _device: WireDevice<Tls>, id: &'static str, callers: usize) {
    let data = data_encoding::BASE64.encode(&[7; 4_096]);
    let mut requests = JoinSet::new();
    for _ in 0..callers {
        let (world, data) = (Arc::clone(&world), data.clone());
        requests.spawn(async move {
            let Ok(tls) = world.try_dial().await else { return };
            let headers = [("authorization", &*bearer(&world.token())), ("moorline-data", &data)];
            if let Ok(mut leg) = WireLeg::join(tls, "localhost", &format!("/v1/devices/{id}/connect/ssh"), &headers).await {
                leg.closed().await;
            }
        });
    }
    while requests.join_next().await.is_some() {}
    std::future::pending::<()>().await;
}

fn resident_kib(relay: u32) -> u64 {
    let status = std::fs::read_to_string(PathBuf::from(format!("/proc/{relay}/status"))).expect("the relay runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a VmRSS line");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

/// The maximum of bytes in flight through an echo, which reads nothing while it cannot write. With every buffer full in both directions, a kernel that takes its
/// receive window back drops the acknowledgements of one direction for good: Linux from 6.17, <https://lkml.iu.edu/hypermail/linux/kernel/2602.2/09224.html>.
const MAX_IN_FLIGHT: usize = 2 << 20;

/// A stream to an echo that has echoed one byte.
async fn open(local: SocketAddr) -> TcpStream {
    let mut tcp = TcpStream::connect(local).await.expect("the forward listens");
    tcp.write_all(b"?").await.expect("the stream opens");
    assert_eq!(tcp.read_u8().await.expect("the stream opens"), b'?');
    tcp
}

/// Sends a pattern through an echo for this long and checks that all of it comes back; returns bytes per second.
async fn exchange(stream: TcpStream, lasts: Duration) -> u64 {
    let cycle = Arc::new(pattern(7, 0, 65_521));
    let (mut reads, mut writes) = stream.into_split();
    let (until, payload) = (Instant::now() + lasts, Arc::clone(&cycle));
    let (progress, mut echoed) = watch::channel(0);
    let sending = async {
        let mut sent = 0;
        while Instant::now() < until {
            echoed.wait_for(|&echoed| sent < echoed + MAX_IN_FLIGHT).await.expect("the reader runs");
            writes.write_all(&payload).await.expect("the stream is open");
            sent += payload.len();
        }
        writes.shutdown().await.expect("the stream is open");
        sent
    };
    let receiving = async {
        let (mut buffer, mut received) = (vec![0; 60_000], 0);
        loop {
            let count = reads.read(&mut buffer).await.expect("the stream is open");
            let begins = received % cycle.len();
            let straight = count.min(cycle.len() - begins);
            assert!(buffer[..straight] == cycle[begins..begins + straight], "the bytes that were sent");
            assert!(buffer[straight..count] == cycle[..count - straight], "the bytes that were sent");
            received += count;
            progress.send_replace(received);
            if count == 0 {
                return received;
            }
        }
    };
    let begun = Instant::now();
    let (sent, received) = tokio::join!(sending, receiving);
    assert_eq!(sent, received, "every byte arrives");
    (received as f64 / begun.elapsed().as_secs_f64()) as u64
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_unauthenticated_peers_cost_little_memory_and_do_not_slow_others() {
    rlimit::increase_nofile_limit(8_192).expect("the limit can be raised");
    let world = Arc::new(World::start().await);
    let echo = Target::echo().await;
    let _device = world.device("lamp-1", &[("echo", echo.address)]).await;
    let forward = world.forward("lamp-1", &["echo"]).await;
    let before = timeout(WITHIN, exchange(open(forward.local[0]).await, Duration::from_secs(2))).await.expect("the stream moves");
    let honest = open(forward.local[0]).await;
    let memory = resident_kib(world.relay.id());

    let opened = Arc::new(AtomicU64::new(0));
    let mut flood = JoinSet::new();
    for id in ["silent-1", "silent-2"] {
        let device = world.wire_device(id).await;
        flood.spawn(device_that_never_reads(Arc::clone(&world), device, id, 50));
    }
    for kind in 0..PEERS - 102 {
        flood.spawn(reconnect_repeatedly(Arc::clone(&world), kind, Arc::clone(&opened)));
    }
    let most = async {
        let (mut ticks, mut most) = (interval(Duration::from_millis(100)), 0); // real time: samples of the relay's memory
        let until = Instant::now() + lasts();
        while Instant::now() < until {
            ticks.tick().await;
            most = most.max(resident_kib(world.relay.id()));
        }
        most
    };
    let opens = async {
        let mut times = Vec::new();
        // In the middle of the flood, when the unauthenticated capacity is used up.
        pause(lasts() / 3).await;
        let until = Instant::now() + lasts() / 2;
        while Instant::now() < until || times.is_empty() {
            let begun = Instant::now();
            let done = run(world.client().args(["connect", "lamp-1", "echo"]), WITHIN).await;
            times.push((done.code, begun.elapsed(), done.err));
        }
        times
    };
    let (meanwhile, most, opens) =
        timeout(WITHIN, async { tokio::join!(exchange(honest, lasts()), most, opens) }).await.expect("authenticated callers are served");
    flood.shutdown().await;
    println!(
        "{} connections of flooding peers; the stream's speed was {:.2} of what it was ({} of {} MB/s); {} KiB more memory",
        opened.load(Ordering::Relaxed),
        meanwhile as f64 / before as f64,
        meanwhile / 1_000_000,
        before / 1_000_000,
        most.saturating_sub(memory),
    );
    let slowest = opens.iter().map(|(_, took, _)| *took).max();
    println!("{} honest streams were opened meanwhile, the slowest within {slowest:?}", opens.len());
    assert!(opens.iter().all(|(code, ..)| *code == Some(0)), "{opens:?}");
    assert!(most.saturating_sub(memory) < MEMORY_KIB, "{memory} KiB before, {most} KiB in the flood");
}

async fn try_connect(world: &World, device: &str, headers: &[(&str, &str)]) -> Result<WireLeg<Tls>, ProblemCode> {
    let authorization = bearer(&world.token());
    let headers: Vec<(&str, &str)> = [("authorization", &*authorization)].into_iter().chain(headers.iter().copied()).collect();
    let leg = WireLeg::join(world.dial().await, "localhost", &format!("/v1/devices/{device}/connect/ssh"), &headers).await;
    leg.map_err(|refusal| {
        let problem = refusal.problem.expect("a refusal has a problem");
        assert_eq!((refusal.headers.contains_key("retry-after"), problem.retry_after_s.is_some()), (true, true), "{problem:?}");
        problem.known_code().expect("a code that the protocol knows")
    })
}

fn outcomes(results: Vec<Result<WireLeg<Tls>, ProblemCode>>) -> (Vec<WireLeg<Tls>>, Vec<ProblemCode>) {
    let (mut legs, mut codes) = (Vec::new(), Vec::new());
    for outcome in results {
        match outcome {
            Ok(leg) => legs.push(leg),
            Err(code) => codes.push(code),
        }
    }
    (legs, codes)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_requests_reaches_its_own_limits_only() {
    let scenario = async {
        let limits = "streams_per_device = 8\nundecided_per_caller = 100\nwaiting_callers = 5\nwaiting_per_caller = 100\n";
        let world = Arc::new(World::start_as("", limits, |program| tokio::process::Command::new(program)).await);
        let mut busy = world.wire_device("busy-1").await;
        let mut other = world.wire_device("other-1").await;
        drop(world.wire_device("away-1").await.socket);
        let many = |device: &'static str, headers: &'static [(&'static str, &'static str)]| {
            let mut requests = JoinSet::new();
            for _ in 0..60 {
                let world = Arc::clone(&world);
                requests.spawn(async move { try_connect(&world, device, headers).await });
            }
            requests.join_all()
        };
        let honest = async {
            for _ in 0..10 {
                let mut caller = try_connect(&world, "other-1", &[]).await.expect("the other device has capacity");
                let offer = other.offer().await;
                other.accept(offer.stream).await;
                let mut device_leg = world.join(offer.url.as_str(), &offer.token).await;
                caller.opened().await;
                device_leg.opened().await;
                caller.send_bytes("served").await;
                assert_eq!(device_leg.bytes(6).await, b"served");
            }
        };
        let (offered, waiting, ()) = tokio::join!(many("busy-1", &[]), many("away-1", &[("moorline-wait", "60")]), honest);
        let ((mut offered, too_many), (mut waiting, overloaded)) = (outcomes(offered), outcomes(waiting));
        assert_eq!((offered.len(), too_many), (8, vec![ProblemCode::TooManyStreams; 52]));
        assert_eq!((waiting.len(), overloaded), (5, vec![ProblemCode::Overloaded; 55]));
        // Waiting callers are served, and every slot that is released can be used again.
        for _ in 0..8 {
            let offer = busy.offer().await;
            busy.reject(offer.stream, RejectCode::Policy, "").await;
        }
        for leg in &mut offered {
            assert!(matches!(leg.next().await, LegEvent::Refused(problem) if problem.known_code() == Some(ProblemCode::RejectedByDevice)));
        }
        let (_next, offer) = tokio::join!(try_connect(&world, "busy-1", &[]), busy.offer());
        assert_eq!(offer.service.as_str(), "ssh");
        for leg in &mut waiting {
            leg.close(1000).await;
            assert_eq!(leg.closed().await, 1000);
        }
        try_connect(&world, "away-1", &[("moorline-wait", "60")]).await.expect("a caller that left no longer waits");
    };
    timeout(WITHIN, scenario).await.expect("seconds, not minutes");
}
