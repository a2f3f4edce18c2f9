//! Opening a stream with the real programs: it opens, or exit code and message explain why not and what to do next.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;

use moorline::{Client, Join, StreamTicket};
use moorline_tests::programs::{Done, binaries, command, run};
use moorline_tests::targets::Target;
use moorline_tests::world::World;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::time::{Instant, timeout};

const WITHIN: Duration = Duration::from_secs(60);
/// Shorter than any deadline, retry or backoff. Most of it is the time that a busy machine needs to start a program.
const AT_ONCE: Duration = Duration::from_secs(8);

/// An address without a listener.
async fn nowhere() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    listener.local_addr().expect("it is bound")
}

fn secret(world: &World, name: &str, text: &str) -> PathBuf {
    let path = world.path(name);
    std::fs::write(&path, text).expect("a file is written");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).expect("its mode is set");
    path
}

async fn run_client(world: &World, args: &[&str]) -> (Done, Duration) {
    let begun = Instant::now();
    let done = run(world.client().args(args), WITHIN).await;
    (done, begun.elapsed())
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_that_cannot_be_opened_are_refused_at_once_with_a_reason() {
    let (world, echo) = (World::start().await, Target::echo().await);
    let _lamp = world.device("lamp-1", &[("echo", echo.address), ("dead", nowhere().await)]).await;
    let mut off = world.device("lamp-2", &[("echo", echo.address)]).await;
    off.agent.signal("TERM");
    off.agent.ended().await;
    world.relay.event("device offline").await;
    for (device, service, code) in [
        ("lamp-3", "echo", "device_unknown"),
        ("lamp-2", "echo", "device_offline"),
        ("lamp-1", "ssh", "service_not_exposed"),
        ("lamp-1", "dead", "target_refused"),
    ] {
        let (done, took) = run_client(&world, &["connect", device, service]).await;
        assert_eq!(done.code, Some(3), "{code}: {}", done.err);
        assert!(done.err.contains(code), "{code}: {}", done.err);
        assert!(took < AT_ONCE, "{code} took {took:?}");
    }
    let (done, _) = run_client(&world, &["connect", "lamp-2", "echo"]).await;
    assert!(done.err.contains("last seen"), "{}", done.err);
    assert!(run_client(&world, &["connect", "lamp-1", "echo"]).await.0.code == Some(0), "a stream that can be opened opens");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_kind_of_failure_has_its_own_exit_code() {
    let world = World::start().await;
    let bad = secret(&world, "bad-token", "not.a.token");
    let (done, _) = run_client(&world, &["--token-file", &bad.display().to_string(), "connect", "lamp-1", "echo"]).await;
    assert_eq!(done.code, Some(5), "{}", done.err);
    assert!(done.err.contains("token_invalid"), "{}", done.err);

    let missing = world.path("no-profile").display().to_string();
    let done = run(command(&binaries().client).args(["--profile", &missing, "connect", "lamp-1", "echo"]), WITHIN).await;
    assert_eq!(done.code, Some(5), "{}", done.err);

    let (done, _) = run_client(&world, &["connect", "LAMP-1", "echo"]).await;
    assert_eq!(done.code, Some(2), "{}", done.err);

    let join = std::fs::read_to_string(world.join_file()).expect("it was written");
    let elsewhere = format!("localhost:{}#", nowhere().await.port());
    let join = secret(&world, "join-elsewhere", &join.replace(&format!("localhost:{}#", world.address.port()), &elsewhere));
    let profile = world.path("profile-elsewhere").display().to_string();
    let client = || {
        let mut client = command(&binaries().client);
        client.args(["--profile", &profile]);
        client
    };
    run(client().arg("login").arg("--join").arg(join).arg("--token-file").arg(world.token_file()), WITHIN).await.success();
    let done = run(client().args(["connect", "lamp-1", "echo"]), WITHIN).await;
    assert_eq!(done.code, Some(4), "{}", done.err);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_allows_only_what_it_names() {
    let (world, echo) = (World::start().await, Target::echo().await);
    let _lamp = world.device("lamp-1", &[("echo", echo.address), ("ssh", echo.address)]).await;
    let _camera = world.device("camera-1", &[("echo", echo.address)]).await;
    let mut mint = command(&binaries().relay);
    mint.args(["token", "new", "--subject", "alice", "--device", "lamp-*", "--service", "echo", "--state"]).arg(world.path("relay"));
    let token = secret(&world, "alice", &run(&mut mint, WITHIN).await.success().text()).display().to_string();
    for (args, exit, code) in [
        (&["connect", "lamp-1", "echo"][..], 0, ""),
        (&["connect", "lamp-1", "ssh"], 3, "forbidden"),
        (&["connect", "camera-1", "echo"], 3, "device_unknown"),
        (&["device", "remove", "lamp-1"], 3, "forbidden"),
    ] {
        let (done, _) = run_client(&world, &[&["--token-file", token.as_str()], args].concat()).await;
        assert_eq!(done.code, Some(exit), "{args:?}: {}", done.err);
        assert!(done.err.contains(code), "{args:?}: {}", done.err);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ticket_is_joined_by_a_program_without_a_token() {
    let (world, echo) = (World::start().await, Target::echo().await);
    let _device = world.device("lamp-1", &[("echo", echo.address)]).await;
    let (device, service) = ("lamp-1".parse().unwrap(), "echo".parse().unwrap());
    let ticket = world.library().open(&device, &service).negotiate().await.expect("the device accepts");
    // The other program gets the ticket as text.
    let ticket: StreamTicket = serde_json::from_str(&serde_json::to_string(&ticket).unwrap()).unwrap();
    let join: Join = std::fs::read_to_string(world.join_file()).unwrap().parse().unwrap();
    let other = Client::new(&join, None).expect("the relay's own CA is trusted");
    let exchange = async {
        let mut stream = other.join(&ticket).await.expect("the ticket joins");
        stream.write_all(b"over two connections").await.expect("the stream accepts bytes");
        stream.shutdown().await.expect("the direction is half-closed");
        let mut received = String::new();
        stream.read_to_string(&mut received).await.expect("an end, not a cut");
        assert_eq!(received, "over two connections");
    };
    timeout(WITHIN, exchange).await.expect("in time");
    let again = timeout(WITHIN, other.join(&ticket)).await.expect("in time").expect_err("the ticket is used up");
    assert!(again.problem().is_some_and(|problem| ["token_used", "stream_expired"].contains(&problem.code.as_str())), "{again}");
}
