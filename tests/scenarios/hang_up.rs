//! SIGHUP, with which an operator asks a daemon to reload: relay and agent say that they cannot, and cut nothing.

use std::time::Duration;

use moorline_tests::programs::Program;
use moorline_tests::targets::Target;
use moorline_tests::world::World;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

const WITHIN: Duration = Duration::from_secs(30);

async fn echoes(stream: &mut TcpStream, bytes: &[u8]) {
    stream.write_all(bytes).await.expect("the stream takes bytes");
    let mut echoed = vec![0; bytes.len()];
    timeout(WITHIN, stream.read_exact(&mut echoed)).await.expect("in time").expect("the stream is open");
    assert_eq!(echoed, bytes);
}

async fn is_told(program: &Program, message: &str) {
    for count in 1..=2 {
        program.signal("HUP");
        program.events(message, count).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sighup_is_logged_by_relay_and_agent_and_cuts_nothing() {
    let (mut world, echo) = (World::start().await, Target::echo().await);
    let mut device = world.device("lamp-1", &[("echo", echo.address)]).await;
    let forward = world.forward("lamp-1", &["echo"]).await;
    let mut stream = TcpStream::connect(forward.local[0]).await.expect("the forward listens");
    echoes(&mut stream, b"before").await;

    is_told(&world.relay, "reloading is not supported; restart the relay to apply changes").await;
    is_told(&device.agent, "reloading is not supported; restart the agent to apply changes").await;
    echoes(&mut stream, b"after").await;
    assert_eq!(world.relay.count("device online"), 1, "the device stayed online");

    device.agent.signal("TERM");
    assert_eq!(device.agent.ended().await, Some(0));
    world.relay.signal("TERM");
    assert_eq!(world.relay.ended().await, Some(0));
}

/// The terminal of a program in the foreground has closed: it ends, and resets what it carries.
#[tokio::test(flavor = "multi_thread")]
async fn sighup_ends_a_forward() {
    let (world, echo) = (World::start().await, Target::echo().await);
    let _device = world.device("lamp-1", &[("echo", echo.address)]).await;
    let mut forward = world.forward("lamp-1", &["echo"]).await;
    let mut stream = TcpStream::connect(forward.local[0]).await.expect("the forward listens");
    echoes(&mut stream, b"before").await;
    forward.program.signal("HUP");
    assert_eq!(forward.program.ended().await, None, "it ended by the signal");
    assert!(timeout(WITHIN, stream.read_u8()).await.expect("in time").is_err());
}
