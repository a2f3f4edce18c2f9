//! Each program without file descriptors: it logs that, does not spin, keeps its connections, and resumes when descriptors are free.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use moorline::Stream;
use moorline_tests::programs::{Program, binaries, run};
use moorline_tests::targets::Target;
use moorline_tests::world::World;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::Command;
use tokio::time::{Instant, interval, timeout};

const WITHIN: Duration = Duration::from_secs(60);

/// A command that runs `program` with at most `count` descriptors, which it cannot raise.
fn with_descriptors(count: usize, program: &Path) -> Command {
    let mut command = Command::new("prlimit");
    command.arg(format!("--nofile={count}:{count}")).arg(program);
    command
}

/// The processor time of a process so far, user and system.
fn cpu(program: &Program) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", program.id())).expect("it runs");
    let fields: Vec<&str> = stat.rsplit(") ").next().expect("behind the name").split(' ').collect();
    let ticks: u64 = fields[11].parse::<u64>().expect("ticks") + fields[12].parse::<u64>().expect("ticks");
    Duration::from_millis(10 * ticks) // Linux counts 100 ticks a second
}

async fn echoes(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), sent: &[u8]) {
    let exchange = async {
        stream.write_all(sent).await.expect("the stream accepts bytes");
        stream.flush().await.expect("and sends them");
        let mut received = vec![0; sent.len()];
        stream.read_exact(&mut received).await.expect("the bytes come back");
        assert_eq!(received, sent);
    };
    timeout(WITHIN, exchange).await.expect("in time");
}

/// The stream echoes for two seconds, and the program uses less than half a core meanwhile.
async fn does_not_spin_while_it_echoes(program: &Program, stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) {
    let (begun, used) = (Instant::now(), cpu(program));
    let mut beats = interval(Duration::from_millis(100)); // real time: a steady load, while processor time is measured
    while begun.elapsed() < Duration::from_secs(2) {
        beats.tick().await;
        echoes(stream, b"still here").await;
    }
    let (wall, used) = (begun.elapsed(), cpu(program) - used);
    assert!(used < wall / 2, "{used:?} of processor time in {wall:?}");
}

/// A connection, unless it was reset at once.
async fn connected(address: SocketAddr) -> Option<TcpStream> {
    match TcpStream::connect(address).await {
        Ok(tcp) => Some(tcp),
        Err(error) if error.kind() == ErrorKind::ConnectionReset => None,
        Err(error) => panic!("the connection is accepted: {error}"),
    }
}

async fn flood(address: SocketAddr, count: usize) -> Vec<Option<TcpStream>> {
    let mut flood = Vec::new();
    for _ in 0..count {
        flood.push(connected(address).await);
    }
    flood
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_without_descriptors_pauses_accepting_and_resumes() {
    // The flood comes from one address: its share would be exhausted before the descriptors are.
    let (times, limits) = ("tls_handshake_timeout = '5m'\n", "unauthenticated_per_address = 512\n");
    let world = World::start_as(times, limits, |program| with_descriptors(256, program)).await;
    let fewer = |line: &str| line.contains("fewer file descriptors than limits.connections").then_some(());
    world.relay.line("that there are fewer descriptors than connections", fewer).await;
    let echo = Target::echo().await;
    let _device = world.device("lamp-1", &[("echo", echo.address)]).await;
    let forward = world.forward("lamp-1", &["echo"]).await;
    let mut healthy = TcpStream::connect(forward.local[0]).await.expect("the forward listens");
    echoes(&mut healthy, b"before").await;

    let pauses = "accepting pauses: raise the limit of file descriptors, or lower limits.connections";
    let flood = flood(world.address, 320).await;
    world.relay.event(pauses).await;
    does_not_spin_while_it_echoes(&world.relay, &mut healthy).await;
    assert_eq!((world.relay.count(pauses), world.relay.count("accepting goes on")), (1, 0), "logged once");

    drop(flood);
    let goes_on = world.relay.event("accepting goes on").await;
    assert!(goes_on["lasted_ms"].as_u64().is_some_and(|lasted| lasted >= 1_000), "{goes_on}");
    run(world.client().args(["connect", "lamp-1", "echo"]), WITHIN).await.success();
    echoes(&mut healthy, b"after").await;
    assert_eq!((world.relay.count(pauses), world.relay.count("device online")), (1, 1), "the device stayed online");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_without_descriptors_rejects_at_once_and_keeps_its_streams() {
    let (world, echo) = (World::start().await, Target::echo().await);
    let mut device = world.device("lamp-1", &[("echo", echo.address)]).await;
    device.agent.signal("TERM");
    device.agent.ended().await;
    let few = world.agent_as(&device.folder, |program| with_descriptors(48, program)).await;
    let client = world.library();
    let open = async || client.open(&"lamp-1".parse().unwrap(), &"echo".parse().unwrap()).await;

    let mut streams: Vec<Stream> = Vec::new();
    let refused = loop {
        assert!(streams.len() < 48, "each stream uses two descriptors");
        match timeout(Duration::from_secs(20), open()).await.expect("long before the deadline") {
            Ok(stream) => streams.push(stream),
            Err(error) => break error,
        }
    };
    let problem = refused.problem().unwrap_or_else(|| panic!("{refused:?}"));
    assert_eq!(problem.code, "device_failed");
    assert!(problem.device_detail.as_deref().is_some_and(|words| words.contains("descriptors")), "{problem:?}");
    assert!(streams.len() > 10, "{} streams", streams.len());
    for _ in 0..20 {
        timeout(Duration::from_secs(20), open()).await.expect("long before the deadline").expect_err("no descriptors are left");
    }
    does_not_spin_while_it_echoes(&few.agent, &mut streams[0]).await;
    for stream in &mut streams {
        echoes(stream, b"still intact").await;
    }

    let (before, dropped) = (few.agent.count("stream ended"), streams.len() - 2);
    streams.truncate(2);
    few.agent.events("stream ended", before + dropped).await;
    let mut again = timeout(WITHIN, open()).await.expect("in time").expect("descriptors are free again");
    echoes(&mut again, b"after").await;
    assert_eq!(few.agent.count("online"), 1, "the agent stayed online");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forward_without_descriptors_keeps_its_streams_and_resumes() {
    let (world, echo) = (World::start().await, Target::echo().await);
    let _device = world.device("lamp-1", &[("echo", echo.address)]).await;
    let mut command = with_descriptors(40, &binaries().client);
    command.arg("--profile").arg(world.path("profile.toml"));
    let forward = World::forward_as(command, "lamp-1", &["echo"]).await;
    let mut healthy = TcpStream::connect(forward.local[0]).await.expect("the forward listens");
    echoes(&mut healthy, b"before").await;

    let flood = flood(forward.local[0], 100).await;
    let logged = |line: &str| (line.contains("descriptors are left") || line.contains("Too many open files")).then_some(());
    forward.program.line("that it has too few descriptors", logged).await;
    does_not_spin_while_it_echoes(&forward.program, &mut healthy).await;
    let waits = forward.program.lines().iter().filter(|line| line.contains("connections have to wait")).count();
    assert!(waits <= 1, "logged once: {waits}");

    drop(flood);
    let mut tries = interval(Duration::from_millis(100)); // real time: the program does not log that descriptors are free again
    let again = async {
        loop {
            tries.tick().await;
            let Some(mut tcp) = connected(forward.local[0]).await else { continue };
            if tcp.write_all(b"a").await.is_ok() && matches!(tcp.read(&mut [0; 1]).await, Ok(1)) {
                return tcp;
            }
        }
    };
    echoes(&mut timeout(WITHIN, again).await.expect("descriptors are free again"), b"after").await;
    echoes(&mut healthy, b"as before").await;
}
