//! What the programs advise, followed: each scenario gets into trouble, does what the line `next:` says, and is out of it.

use std::ffi::OsStr;
use std::net::SocketAddr;
use std::process::Stdio;
use std::time::Duration;

use moorline_proto::problem::ProblemCode;
use moorline_tests::programs::{Done, Program, binaries, command, run};
use moorline_tests::targets::Target;
use moorline_tests::world::World;
use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;
use tokio::process::Command;

const WITHIN: Duration = Duration::from_secs(60);

/// Asserts that something failed with this advice.
fn advises(done: &Done, advice: &str) {
    let next = done.err.lines().last().unwrap_or_default();
    assert!(done.code != Some(0) && next.starts_with("  next: ") && next.contains(advice), "{advice:?} in {:?}: {}", done.code, done.err);
}

/// The same for a refusal.
fn refuses(done: &Done, code: ProblemCode, advice: &str) {
    assert!(done.err.contains(&format!("({code})")), "{code}: {}", done.err);
    assert!(FOLLOWED.contains(&code), "{code} is followed here");
    advises(done, advice);
}

/// Problems whose advice is followed in this file.
const FOLLOWED: &[ProblemCode] = &[
    ProblemCode::TokenInvalid,
    ProblemCode::TokenExpired,
    ProblemCode::Forbidden,
    ProblemCode::DeviceUnknown,
    ProblemCode::DeviceOffline,
    ProblemCode::ServiceNotExposed,
    ProblemCode::Conflict,
    ProblemCode::TooManyStreams,
    ProblemCode::TargetRefused,
    ProblemCode::TargetUnreachable,
    ProblemCode::HandshakeTimeout,
    ProblemCode::Draining,
];

/// Problems whose advice cannot be followed in a scenario, and why.
const NOT_FOLLOWED: &[(ProblemCode, &str)] = &[
    (ProblemCode::Malformed, "moorline checks names before it sends them"),
    (ProblemCode::TokenMissing, "moorline sends no request without a token"),
    (ProblemCode::TokenNotYetValid, "time passes"),
    (ProblemCode::RejectedByDevice, "a person decides"),
    (ProblemCode::OriginNotAllowed, "for web pages; handshake.rs lists an origin"),
    (ProblemCode::Killed, "a person decides"),
    (ProblemCode::Revoked, "a person decides"),
    (ProblemCode::StreamUnknown, "for programs that negotiate and join by themselves"),
    (ProblemCode::NoSuchRoute, "another version, or no relay"),
    (ProblemCode::MethodNotAllowed, "another version"),
    (ProblemCode::TokenUsed, "the next run is a new stream"),
    (ProblemCode::StreamExpired, "the next run is a new stream"),
    (ProblemCode::TooLarge, "moorline checks the reason's length before it sends it"),
    (ProblemCode::UpgradeRequired, "a proxy that somebody else looks after; load_balancers.rs has ones that pass upgrades"),
    (ProblemCode::RateLimited, "time passes"),
    (ProblemCode::DeviceBusy, "as TooManyStreams, by the device's own limit"),
    (ProblemCode::Internal, "a person looks for the cause"),
    (ProblemCode::TargetTimeout, "dead_addresses.rs has the network for it"),
    (ProblemCode::DeviceFailed, "descriptors.rs takes the device's descriptors and gives them back"),
    (ProblemCode::Overloaded, "time passes"),
    (ProblemCode::DirectoryUnavailable, "time passes"),
    (ProblemCode::DeviceUnresponsive, "time passes; reconnecting.rs has the device come back"),
];

#[test]
fn the_advice_for_every_problem_is_followed_or_there_is_a_reason() {
    for &code in ProblemCode::ALL {
        let (followed, not) = (FOLLOWED.contains(&code), NOT_FOLLOWED.iter().any(|(other, _)| *other == code));
        assert!(followed != not, "{code}: followed {followed}, not followed {not}");
    }
}

/// A token for a world's relay from its own program, in a file.
async fn token(world: &World, name: &str, args: &[&str]) -> String {
    token_by(Command::new(&binaries().relay), world, name, args).await
}

/// The same; `new` runs the relay's program.
async fn token_by(mut new: Command, world: &World, name: &str, args: &[&str]) -> String {
    new.args(["token", "new", "--subject", "alice", "--state"]).arg(world.path("relay")).args(args);
    let token = run(&mut new, WITHIN).await.success();
    let path = world.path(name);
    moorline_files::create(&path, 0o600, &token.out).expect("a new file");
    path.display().to_string()
}

async fn log_in(world: &World, join: &str, token: &str) {
    world.moorline(&["login", "--join", join, "--token-file", token]).await.success();
}

fn text(path: std::path::PathBuf) -> String {
    path.display().to_string()
}

/// Runs a program on a machine whose clock says this.
fn faked(time: &str, program: &OsStr) -> Command {
    let mut faked = command("faketime");
    faked.env("FAKETIME_DONT_FAKE_MONOTONIC", "1").arg(time).arg(program);
    faked
}

/// `moorline` on a machine whose clock says this.
fn at(world: &World, time: &str) -> Command {
    let client = world.client();
    let mut faked = faked(time, client.as_std().get_program());
    faked.args(client.as_std().get_args());
    faked
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_clock_is_named_and_set() {
    let world = World::start().await;
    let behind = run(at(&world, "1970-01-02 00:00:00").args(["device", "list"]), WITHIN).await;
    advises(&behind, "set this machine's clock: it says 1970-01-02T");
    let ahead = run(at(&world, "2095-01-01 00:00:00").args(["device", "list"]), WITHIN).await;
    advises(&ahead, "set this machine's clock if it is not 2095-01-01T");
    world.moorline(&["device", "list"]).await.success();

    // The agent of a machine whose clock is behind says it in its log, and is online once the clock is right.
    let folder = world.device("lamp-1", &[("ssh", world.address)]).await.folder;
    let mut agent = faked("1970-01-02 00:00:00", binaries().agent.as_os_str());
    agent.args(["run", "--log-format", "json", "--config"]).arg(folder.join("agent.toml"));
    let behind = Program::start("an agent of 1970", &mut agent).event("connecting failed").await;
    let next = behind["next"].as_str().expect("what to do next");
    assert!(next.starts_with("set this machine's clock: it says 1970-01-02T"), "{next}");
    world.agent(&folder).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_without_ca_certificates_gets_some_or_a_join_string_with_one() {
    let world = World::start().await;
    let bare = world.path("bare");
    let join = std::fs::read_to_string(world.join_file()).expect("it was written");
    std::fs::write(&bare, join.split('#').next().expect("a url")).expect("a file is written");
    log_in(&world, &text(bare), &text(world.token_file())).await;
    let list = |ca: std::path::PathBuf| {
        let mut list = world.client();
        list.env("SSL_CERT_FILE", ca).env("SSL_CERT_DIR", "/nonexistent").args(["device", "list"]);
        list
    };
    let done = run(&mut list("/nonexistent".into()), WITHIN).await;
    advises(
        &done,
        "install this machine's CA certificates (Debian's package ca-certificates), or use a join string with the relay's own CA",
    );
    run(&mut list(world.ca_file()), WITHIN).await.success();
    let print = run(Command::new(&binaries().relay).args(["join", "--state"]).arg(world.path("relay")), WITHIN).await.success();
    let printed = world.path("printed");
    std::fs::write(&printed, print.text().replace("localhost:1#", &format!("localhost:{}#", world.address.port())))
        .expect("a file is written");
    log_in(&world, &text(printed), &text(world.token_file())).await;
    run(&mut list("/nonexistent".into()), WITHIN).await.success();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_was_set_up_again_needs_its_new_join_string() {
    let (old, new) = (World::start().await, World::start().await);
    let stale = old.path("stale");
    let join = std::fs::read_to_string(old.join_file()).expect("it was written");
    let (front, ca) = join.split_once('#').expect("a join string with a CA");
    let port = |address: SocketAddr| address.port().to_string();
    std::fs::write(&stale, format!("{}#{ca}", front.replace(&port(old.address), &port(new.address)))).expect("a file is written");
    log_in(&old, &text(stale), &text(new.token_file())).await;
    advises(&old.moorline(&["device", "list"]).await, "use the join string that `moorline-relay join` prints now");
    log_in(&old, &text(new.join_file()), &text(new.token_file())).await;
    old.moorline(&["device", "list"]).await.success();
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_is_not_logged_in_or_has_the_wrong_port_logs_in() {
    let world = World::start().await;
    let profile = text(world.path("other.toml"));
    let list = ["--profile", &profile, "device", "list"];
    let moorline = async |args: &[&str]| run(Command::new(&binaries().client).args(args), WITHIN).await;
    advises(&moorline(&list).await, "write it with `moorline login --join FILE --token-file FILE`");
    let (join, token) = (text(world.join_file()), text(world.token_file()));
    let login = ["--profile", &profile, "login", "--token-file", &token, "--join"];

    // A port where nothing listens, and one where something else does.
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let free = listener.local_addr().expect("it is bound").port();
    drop(listener);
    moorline(&[&login[..], &[&text(world.join_by(free))]].concat()).await.success();
    advises(&moorline(&list).await, "check that the relay is running and that no firewall blocks its port");
    let other = Target::start(|mut tcp| async move {
        use tokio::io::AsyncWriteExt as _;
        tcp.write_all(b"220 mail.example.com ESMTP\r\n").await.ok();
        tcp.read_to_end(&mut Vec::new()).await.ok();
    })
    .await;
    moorline(&[&login[..], &[&text(world.join_by(other.address.port()))]].concat()).await.success();
    advises(&moorline(&list).await, "check the port in the join string: what answers there does not speak TLS");
    moorline(&[&login[..], &[&join]].concat()).await.success();
    moorline(&list).await.success();
}

#[tokio::test(flavor = "multi_thread")]
async fn another_token_is_put_where_the_refused_one_came_from() {
    let (world, other) = (World::start().await, World::start().await);
    let good = token(&world, "good", &["--allow", "device.read"]).await;
    let mut yesterday = command("faketime");
    yesterday.arg("-1 day").arg(&binaries().relay);
    let late = token_by(yesterday, &world, "late", &[]).await;
    let foreign = text(other.token_file());
    let list = async |command: &mut Command| run(command.args(["device", "list"]), WITHIN).await;

    log_in(&world, &text(world.join_file()), &foreign).await;
    refuses(
        &list(&mut world.client()).await,
        ProblemCode::TokenInvalid,
        "the operator makes one with `moorline-relay token new`, `moorline login` keeps it",
    );
    log_in(&world, &text(world.join_file()), &good).await;
    list(&mut world.client()).await.success();

    let foreign_text = std::fs::read_to_string(&foreign).expect("it was written");
    let mut by_variable = world.client();
    refuses(
        &list(by_variable.env("MOORLINE_TOKEN", foreign_text)).await,
        ProblemCode::TokenInvalid,
        "set MOORLINE_TOKEN to it, or unset that",
    );
    list(world.client().env("MOORLINE_TOKEN", std::fs::read_to_string(&good).expect("it was written").trim())).await.success();

    refuses(&list(world.client().args(["--token-file", &foreign])).await, ProblemCode::TokenInvalid, &format!("and put it into {foreign}"));
    std::fs::copy(&good, &foreign).expect("it is replaced");
    list(world.client().args(["--token-file", &foreign])).await.success();

    refuses(&list(world.client().args(["--token-file", &late])).await, ProblemCode::TokenExpired, &format!("put it into {late}"));
    std::fs::copy(&good, &late).expect("it is replaced");
    list(world.client().args(["--token-file", &late])).await.success();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_token_does_not_allow_another_one_does() {
    let (world, echo) = (World::start().await, Target::echo().await);
    let _device = world.device("lamp-1", &[("http", echo.address), ("ssh", echo.address)]).await;
    let (http, ssh) = (token(&world, "http", &["--service", "http"]).await, token(&world, "ssh", &["--service", "ssh"]).await);
    let connect =
        async |token: &str, device: &str, service: &str| world.moorline(&["--token-file", token, "connect", device, service]).await;
    refuses(&connect(&http, "lamp-1", "ssh").await, ProblemCode::Forbidden, "ask the relay's operator for a token that allows this action");
    connect(&ssh, "lamp-1", "ssh").await.success();

    refuses(&connect(&ssh, "lamp-l", "ssh").await, ProblemCode::DeviceUnknown, "compare the id with `moorline device list`");
    let list = world.moorline(&["device", "list"]).await.success().text();
    let listed = list.lines().nth(1).and_then(|line| line.split_whitespace().next()).expect("a device").to_owned();
    connect(&ssh, &listed, "ssh").await.success();

    let all = text(world.token_file());
    refuses(&connect(&all, "lamp-1", "web").await, ProblemCode::ServiceNotExposed, "`moorline device show` lists the device's services");
    assert!(world.moorline(&["device", "show", "lamp-1"]).await.success().text().contains("http"));
    connect(&all, "lamp-1", "http").await.success();

    let done = world.moorline(&["forward", "lamp-1", "2222:localhost:22"]).await;
    assert_eq!(done.code, Some(2));
    assert!(done.err.contains("a service has a name") && done.err.contains("like 2222:ssh"), "{}", done.err);
    world.forward("lamp-1", &["ssh"]).await;

    let key = world.path("lamp-1.pem").display().to_string();
    std::fs::write(&key, moorline_relay::access::mint::SigningKey::generate().expect("a key").public().to_pem()).expect("it is written");
    let add = ["device", "add", "lamp-1", "--key", &key];
    advises(&world.moorline(&add).await, "to replace it: `moorline device remove lamp-1`, then add it again");
    world.moorline(&["device", "remove", "lamp-1"]).await.success();
    world.moorline(&add).await.success();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_is_offline_is_started_or_waited_for() {
    let (world, echo) = (World::start().await, Target::echo().await);
    let mut device = world.device("lamp-1", &[("echo", echo.address)]).await;
    device.agent.signal("TERM");
    device.agent.ended().await;
    world.relay.event("device offline").await;
    let connect = ["connect", "lamp-1", "echo"];
    let done = world.moorline(&connect).await;
    refuses(
        &done,
        ProblemCode::DeviceOffline,
        "check that the device has power, network and a running moorline-agent, or wait for it with --wait 10m",
    );
    let waited = [&connect[..], &["--wait", "10m"]].concat();
    let (waited, _again) = tokio::join!(world.moorline(&waited), world.agent(&device.folder));
    waited.success();
    world.moorline(&connect).await.success();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_is_not_there_is_started_and_a_wrong_target_is_corrected() {
    let world = World::start().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("it is bound");
    drop(listener);
    let mut device = world.device("lamp-1", &[("web", address)]).await;
    let connect = ["connect", "lamp-1", "web"];
    refuses(&world.moorline(&connect).await, ProblemCode::TargetRefused, "start the service on the device");
    let started = TcpListener::bind(address).await.expect("the port is still free");
    let serve = async { started.accept().await.expect("a connection").0.read_to_end(&mut Vec::new()).await };
    let (done, _) = tokio::join!(world.moorline(&connect), serve);
    done.success();

    let echo = Target::echo().await;
    let config = device.folder.join("agent.toml");
    let original = std::fs::read_to_string(&config).expect("init writes it");
    let restart = async |device: &mut moorline_tests::world::Device, target: &str| {
        std::fs::write(&config, original.replace(&address.to_string(), target)).expect("it is written");
        device.agent.signal("TERM");
        device.agent.ended().await;
        *device = world.agent(&device.folder.clone()).await;
    };
    restart(&mut device, "no-such-host.invalid:80").await;
    refuses(
        &world.moorline(&connect).await,
        ProblemCode::TargetUnreachable,
        "check the target's name and address in agent.toml on the device",
    );
    restart(&mut device, &echo.address.to_string()).await;
    world.moorline(&connect).await.success();
}

/// `connect` with a standard input that stays open, as a program that runs.
fn held(world: &World) -> (Program, std::io::PipeWriter) {
    let (input, open) = std::io::pipe().expect("a pipe");
    (Program::start_with_input("moorline connect", world.client().args(["connect", "lamp-1", "echo"]), Stdio::from(input)), open)
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_that_are_not_needed_are_closed_and_short_deadlines_are_made_longer() {
    let world = World::start_as("", "streams_per_device = 1\n", |program| Command::new(program)).await;
    let echo = Target::echo().await;
    let device = world.device("lamp-1", &[("echo", echo.address)]).await;
    let (mut first, mut input) = held(&world);
    std::io::Write::write_all(&mut input, b"a line\n").expect("it is taken");
    first.line("what the service answers", |line| (line == "a line").then_some(())).await;
    let connect = ["connect", "lamp-1", "echo"];
    refuses(&world.moorline(&connect).await, ProblemCode::TooManyStreams, "close streams that are not needed");
    drop(input);
    assert_eq!(first.ended().await, Some(0));
    world.moorline(&connect).await.success();

    // The device is suspended for longer than the deadline.
    device.agent.signal("STOP");
    let short = world.moorline(&[&connect[..], &["--deadline", "1s"]].concat()).await;
    device.agent.signal("CONT");
    refuses(&short, ProblemCode::HandshakeTimeout, "try again, with a longer --deadline if the link is slow");
    world.moorline(&[&connect[..], &["--deadline", "60s"]].concat()).await.success();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_leaves_is_asked_again() {
    let mut world = World::start().await;
    let mut device = world.wire_device("lamp-1").await;
    let asked = async {
        device.offer().await;
        world.relay.signal("TERM");
    };
    let (done, ()) = tokio::join!(world.moorline(&["connect", "lamp-1", "ssh"]), asked);
    refuses(&done, ProblemCode::Draining, "try again: another node of the relay takes over, or this one comes back");
    drop(device);
    world.relay.ended().await;
    let again = Program::start("moorline-relay", &mut world.second_relay());
    let listening = again.event("listening").await;
    let port = listening["address"].as_str().and_then(|address| address.rsplit(':').next()?.parse().ok()).expect("the line has an address");
    run(world.client_by(port).await.args(["device", "list"]), WITHIN).await.success();
}
