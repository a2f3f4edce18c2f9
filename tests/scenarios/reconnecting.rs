//! Reconnecting devices, killed programs and restarted relays, with the real programs.

use std::time::Duration;

use moorline_tests::middlebox::Middlebox;
use moorline_tests::programs::run;
use moorline_tests::targets::Target;
use moorline_tests::world::{SCALED, World};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

async fn echoes(tcp: &mut TcpStream, sent: &[u8]) {
    tcp.write_all(sent).await.expect("the stream accepts bytes");
    let mut received = vec![0; sent.len()];
    timeout(Duration::from_secs(30), tcp.read_exact(&mut received)).await.expect("in time").expect("the bytes come back");
    assert_eq!(received, sent);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reconnecting_device_supersedes_a_hanging_connection_and_its_streams_live() {
    let (world, echo) = (World::start().await, Target::echo().await);
    let device = world.device("lamp-1", &[("echo", echo.address)]).await;
    let forward = world.forward("lamp-1", &["echo"]).await;
    let mut old = TcpStream::connect(forward.local[0]).await.expect("the forward listens");
    echoes(&mut old, b"on the old connection").await;

    // The old agent hangs: its connections stay open without any response.
    device.agent.signal("STOP");
    let begun = Instant::now();
    let _newer = world.agent(&device.folder).await;
    let mut new = TcpStream::connect(forward.local[0]).await.expect("the forward listens");
    echoes(&mut new, b"on the new connection").await;
    assert!(begun.elapsed() < Duration::from_secs(8), "no deadline of the old connection was waited for: {:?}", begun.elapsed());

    device.agent.signal("CONT");
    echoes(&mut old, b"the old stream goes on").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_agent_resets_its_streams_and_a_new_one_serves_at_once() {
    let (world, echo) = (World::start().await, Target::echo().await);
    let mut device = world.device("lamp-1", &[("echo", echo.address)]).await;
    let forward = world.forward("lamp-1", &["echo"]).await;
    let mut stream = TcpStream::connect(forward.local[0]).await.expect("the forward listens");
    echoes(&mut stream, b"before").await;
    device.agent.signal("KILL");
    device.agent.ended().await;
    let cut = timeout(Duration::from_secs(30), stream.read(&mut [0; 1])).await.expect("in time");
    assert_eq!(cut.expect_err("a cut stream does not look ended").kind(), std::io::ErrorKind::ConnectionReset);

    let offline = world.moorline(&["connect", "lamp-1", "echo"]).await;
    assert_eq!(offline.code, Some(3));
    assert!(offline.err.contains("device_offline"), "{}", offline.err);
    let _again = world.agent(&device.folder).await;
    let mut stream = TcpStream::connect(forward.local[0]).await.expect("the forward listens");
    echoes(&mut stream, b"after").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn agents_reconnect_to_a_restarted_relay() {
    let (mut world, echo) = (World::start_with(SCALED).await, Target::echo().await);
    let device = world.device("lamp-1", &[("echo", echo.address)]).await;
    world.restart().await;
    device.agent.events("online", 2).await;
    let forward = world.forward("lamp-1", &["echo"]).await;
    let mut stream = TcpStream::connect(forward.local[0]).await.expect("the forward listens");
    echoes(&mut stream, b"as before").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_waiting_stream_opens_when_the_device_connects() {
    let (world, echo) = (World::start_with("ping = '300ms'\n").await, Target::echo().await);
    let mut device = world.device("lamp-1", &[("echo", echo.address)]).await;
    device.agent.signal("TERM");
    assert_eq!(device.agent.ended().await, Some(0), "a stopped agent exits with 0");
    world.relay.event("device offline").await;
    let middlebox = Middlebox::start(&world).await;
    let mut connect = world.client_by(middlebox.address.port()).await;
    connect.args(["connect", "lamp-1", "echo", "--wait", "2m"]);
    let appear = async {
        middlebox.callers_answered(1).await; // it answers pings on its leg, so it waits
        world.agent(&device.folder).await
    };
    let both = async { tokio::join!(run(&mut connect, Duration::from_secs(60)), appear) };
    let (done, _device) = timeout(Duration::from_secs(120), both).await.expect("the stream waits, then opens");
    done.success();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_gets_sigterm_sends_go_away_and_exits_with_zero() {
    let (mut world, echo) = (World::start().await, Target::echo().await);
    let device = world.device("lamp-1", &[("echo", echo.address)]).await;
    world.relay.signal("TERM");
    assert_eq!(world.relay.ended().await, Some(0));
    device.agent.event("the relay node is leaving: connecting anew").await;
}
