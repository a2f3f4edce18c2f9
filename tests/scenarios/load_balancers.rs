//! A relay behind real load balancers with the shipped configurations: streams stay open, also when silent, and client addresses are preserved.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use moorline_proto::secret::Secret;
use moorline_relay::access::mint::SigningKey;
use moorline_tests::balancer::{Balancer, Kind, LIMIT, PROXY_ADDRESS};
use moorline_tests::memory::INSTANCE;
use moorline_tests::patterns::pattern;
use moorline_tests::targets::Target;
use moorline_tests::unauthenticated_peer::{connect_from, read_until_closed, tls};
use moorline_tests::wire::{Persona, Pipe, WireDevice, WireLeg, bearer};
use moorline_tests::world::{SCALED, World};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::Command;
use tokio::time::timeout;

const WITHIN: Duration = Duration::from_secs(60);
const SIZE: usize = 5 << 20;
/// The address of scripted callers and devices.
const CLIENT: &str = "127.0.0.7";

/// A relay that logs why it drops connections, behind a balancer.
pub(crate) async fn behind(kind: Kind, times: &str) -> (World, Balancer) {
    let logging = |program: &Path| {
        let mut shell = Command::new("sh");
        shell.args(["-c", r#"exec "$0" "$@" --log info,moorline_relay=debug"#]).arg(program);
        shell
    };
    let world = World::start_at(&kind.listener(), times, "", logging).await;
    let balancer = Balancer::start(kind, world.further[0], &world.path("relay")).await;
    (world, balancer)
}

async fn dial(from: &str, to: SocketAddr) -> TcpStream {
    connect_from(from.parse().expect("an address"), to).await.expect("it listens")
}

/// Opens TLS to a balancer, or through it to the relay.
async fn dial_tls(world: &World, to: SocketAddr) -> impl Pipe + use<> {
    tls(dial(CLIENT, to).await, &world.ca_file(), &["http/1.1"]).await.expect("the TLS handshake succeeds")
}

async fn wire_device<P: Pipe>(world: &World, id: &str, pipe: P) -> WireDevice<P> {
    let key = SigningKey::generate().expect("a key is generated");
    world.add(id, key.public().to_pem().as_bytes()).await;
    let (device, instance) = (id.parse().expect("an id"), INSTANCE.parse().expect("an instance"));
    let persona = Persona { device, key: &key, instance, services: &["data"], host: "localhost", features: &[] };
    WireDevice::connect(pipe, &persona).await.expect("the device is added")
}

/// A `connect` to `lamp-1` that sends this `X-Forwarded-For`.
async fn connect<P: Pipe>(world: &World, pipe: P, forwarded: &str) -> WireLeg<P> {
    let token = Secret::new(std::fs::read_to_string(world.token_file()).expect("it was written"));
    let headers = [("authorization", &*bearer(&token)), ("x-forwarded-for", forwarded)];
    WireLeg::join(pipe, "localhost", "/v1/devices/lamp-1/connect/data", &headers).await.expect("the device is online")
}

async fn echoes(tcp: &mut TcpStream, sent: &[u8]) {
    tcp.write_all(sent).await.expect("the stream accepts bytes");
    let mut received = vec![0; sent.len()];
    timeout(WITHIN, tcp.read_exact(&mut received)).await.expect("in time").expect("the bytes come back");
    assert_eq!(received, sent);
}

/// Both directions at once are intact; the caller ends first, then the device.
async fn both_directions_are_intact(kind: Kind) {
    let (world, balancer) = behind(kind, SCALED).await;
    let target = Target::start(|tcp| async move {
        let (mut reads, mut writes) = tcp.into_split();
        let mut received = Vec::new();
        let begin = async { writes.write_all(&pattern(2, 0, SIZE)).await.expect("the stream accepts bytes") };
        let reading = async { reads.read_to_end(&mut received).await.expect("an end, not a cut") };
        tokio::join!(begin, reading);
        assert!(received == pattern(1, 0, SIZE), "the caller's bytes and its end");
        writes.write_all(&pattern(2, SIZE as u64, SIZE)).await.expect("the other direction stays open");
    });
    let target = target.await;
    let port = balancer.address.port();
    let _device = world.device_by(port, "lamp-1", &[("data", target.address)]).await;
    let forward = world.forward_by(port, "lamp-1", &["data"]).await;
    let tcp = TcpStream::connect(forward.local[0]).await.expect("the forward listens");
    let (mut reads, mut writes) = tcp.into_split();
    let mut received = Vec::new();
    let writing = async {
        writes.write_all(&pattern(1, 0, SIZE)).await.expect("the stream accepts bytes");
        writes.shutdown().await.expect("the direction is half-closed");
    };
    let reading = async { reads.read_to_end(&mut received).await.expect("an end, not a cut") };
    timeout(WITHIN, async { tokio::join!(writing, reading) }).await.expect("in time");
    assert!(received == pattern(2, 0, 2 * SIZE), "all that the device sent, half of it after the caller's end");
}

/// The handshake takes longer than the balancer's idle timeout; the caller's leg is kept alive by pings.
async fn a_handshake_longer_than_the_idle_timeout_opens(kind: Kind) {
    let (world, balancer) = behind(kind, SCALED).await;
    let mut device = wire_device(&world, "lamp-1", dial_tls(&world, balancer.address).await).await;
    let mut caller = connect(&world, dial_tls(&world, balancer.address).await, "203.0.113.66").await;
    let offer = device.offer().await;
    let (nothing, silence) = tokio::join!(timeout(3 * LIMIT, device.next()), timeout(3 * LIMIT, caller.next()));
    assert!(nothing.is_err() && silence.is_err(), "both sides are silent and open: {nothing:?}, {silence:?}");
    device.accept(offer.stream).await;
    let headers = [("authorization", &*bearer(&offer.token))];
    let pipe = dial_tls(&world, balancer.address).await;
    let mut leg = WireLeg::join(pipe, "localhost", offer.url.as_str(), &headers).await.expect("the token is valid");
    tokio::join!(leg.opened(), caller.opened());
    leg.send_bytes("late and well").await;
    assert_eq!(caller.bytes(13).await, b"late and well");
}

async fn pings_outlive_the_idle_timeout(kind: Kind) {
    let (world, balancer) = behind(kind, SCALED).await;
    let echo = Target::echo().await;
    let port = balancer.address.port();
    let device = world.device_by(port, "lamp-1", &[("data", echo.address)]).await;
    let forward = world.forward_by(port, "lamp-1", &["data"]).await;
    let mut tcp = TcpStream::connect(forward.local[0]).await.expect("the forward listens");
    echoes(&mut tcp, b"before").await;
    let silence = timeout(3 * LIMIT, tcp.read(&mut [0])).await;
    assert!(silence.is_err(), "neither bytes nor an end: {silence:?}");
    echoes(&mut tcp, b"after").await;
    assert_eq!((device.agent.count("online"), world.relay.count("device offline")), (1, 0), "the control channel stayed open");
}

/// The control experiment for the scenarios above: without pings the balancer cuts the connection.
async fn without_pings_the_idle_timeout_cuts(kind: Kind) {
    let (world, balancer) = behind(kind, "").await;
    let mut device = wire_device(&world, "lamp-1", dial_tls(&world, balancer.address).await).await;
    let closed = timeout(4 * LIMIT, device.closed()).await.expect("the balancer cuts it");
    assert_eq!(closed.0, 1006, "without a Close of the relay");
}

/// The relay sees the true addresses of caller and device, whatever headers they send.
async fn client_addresses_are_preserved(kind: Kind) {
    let (world, balancer) = behind(kind, SCALED).await;
    let mut device = wire_device(&world, "lamp-1", dial_tls(&world, balancer.address).await).await;
    assert_eq!(world.relay.event("device online").await["address"], CLIENT);
    let mut callers = Vec::new();
    for claimed in ["203.0.113.66", PROXY_ADDRESS, "203.0.113.66, 127.0.0.9", ""] {
        callers.push(connect(&world, dial_tls(&world, balancer.address).await, claimed).await);
        let offer = device.offer().await;
        assert_eq!(offer.caller.address, CLIENT.parse::<IpAddr>().expect("an address"), "it claimed {claimed:?}");
    }
    drop(callers);
    let ended = world.relay.event("stream ended").await;
    assert_eq!(ended["address"], CLIENT, "{ended}");

    let _real = world.device_by(balancer.address.port(), "lamp-2", &[]).await;
    let seen = |line: &str| {
        let line: serde_json::Value = serde_json::from_str(line).ok()?;
        (line["message"] == "device online" && line["device"] == "lamp-2").then(|| line["address"].as_str().map(str::to_owned)).flatten()
    };
    assert_eq!(world.relay.line("lamp-2 is online", seen).await, "127.0.0.1");
}

/// A request close to the relay's size limits reaches it, and its refusal is received: the balancer's limits are not smaller.
async fn long_requests_pass(kind: Kind) {
    let (world, balancer) = behind(kind, SCALED).await;
    let mut pipe = dial_tls(&world, balancer.address).await;
    let (token, junk, path) = ("x".repeat(8_000), "y".repeat(11_000), "z".repeat(6_000));
    let request = format!(
        "GET /v1/{path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nAuthorization: Bearer {token}\r\n\
         Moorline-Data: {junk}\r\nCookie: {junk}\r\n\r\n"
    );
    pipe.write_all(request.as_bytes()).await.expect("it accepts bytes");
    let received = String::from_utf8_lossy(&read_until_closed(&mut pipe, WITHIN).await).into_owned();
    assert!(received.starts_with("HTTP/1.1 404 ") && received.contains("no_such_route"), "{received}");
}

macro_rules! behind_each {
    ($($scenario:ident),+) => {
        mod haproxy_tcp { $(#[tokio::test(flavor = "multi_thread")] async fn $scenario() { super::$scenario(super::Kind::HaproxyTcp).await; })+ }
        mod haproxy_http { $(#[tokio::test(flavor = "multi_thread")] async fn $scenario() { super::$scenario(super::Kind::HaproxyHttp).await; })+ }
        mod nginx { $(#[tokio::test(flavor = "multi_thread")] async fn $scenario() { super::$scenario(super::Kind::Nginx).await; })+ }
    };
}

behind_each!(
    both_directions_are_intact,
    a_handshake_longer_than_the_idle_timeout_opens,
    pings_outlive_the_idle_timeout,
    without_pings_the_idle_timeout_cuts,
    client_addresses_are_preserved,
    long_requests_pass
);

/// The caller's address in the offer to `lamp-1`, for a request from `from` straight to a listener that trusts [`PROXY_ADDRESS`].
async fn offered_address(from: &str, forwarded: &str) -> String {
    let world = World::start_at(&Kind::Nginx.listener(), "", "", |program| Command::new(program)).await;
    let mut device = wire_device(&world, "lamp-1", dial(CLIENT, world.further[0]).await).await;
    let _caller = connect(&world, dial(from, world.further[0]).await, forwarded).await;
    device.offer().await.caller.address.to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forwarded_address_is_trusted_from_trusted_proxies_only() {
    assert_eq!(offered_address(CLIENT, "198.51.100.7").await, CLIENT, "an untrusted peer's header is ignored");
    assert_eq!(offered_address(PROXY_ADDRESS, "203.0.113.66, 198.51.100.7").await, "198.51.100.7", "the client's own entry is ignored");
    assert_eq!(offered_address(PROXY_ADDRESS, "203.0.113.66, [2001:db8::7]:4711").await, "2001:db8::7");
    assert_eq!(
        offered_address(PROXY_ADDRESS, "203.0.113.66, no address").await,
        PROXY_ADDRESS,
        "an invalid address does not refuse the stream"
    );
}

/// HAProxy's PROXY header for a connection from 198.51.100.7.
const BRINGS: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc6\x33\x64\x07\x0a\0\0\x05\x12\x34\x01\xbb";

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_header_is_required_from_trusted_proxies_and_refused_from_others() {
    let (world, balancer) = behind(Kind::HaproxyTcp, "tls_handshake_timeout = '1s'\n").await;
    let listener = world.further[0];
    for (from, sent, reason) in [
        (CLIENT, BRINGS, "the peer is not in trusted_proxies"),
        (CLIENT, b"", "the peer is not in trusted_proxies"),
        (PROXY_ADDRESS, b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03 a TLS hello without a header", "it does not begin with a PROXY header"),
        (PROXY_ADDRESS, b"GET /v1/about HTTP/1.1\r\nHost: localhost\r\n\r\n", "it does not begin with a PROXY header"),
        (PROXY_ADDRESS, b"\r\n\r\n\0\r\nQUIT\n\x21\x11\xff\xff", "its PROXY header is too long"),
        (PROXY_ADDRESS, b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x02\0\0", "its PROXY header is malformed"),
    ] {
        let mut tcp = dial(from, listener).await;
        tcp.write_all(sent).await.expect("the relay accepts bytes");
        assert_eq!(read_until_closed(&mut tcp, WITHIN).await, b"", "closed without a response");
        let logged = |line: &str| (line.contains(reason) && line.contains(from)).then_some(());
        world.relay.line(reason, logged).await;
    }
    let mut slow = dial(PROXY_ADDRESS, listener).await;
    slow.write_all(&BRINGS[..20]).await.expect("the relay accepts bytes");
    assert_eq!(read_until_closed(&mut slow, WITHIN).await, b"", "a partial header has the deadline of the TLS handshake");

    let mut tcp = dial(PROXY_ADDRESS, listener).await;
    tcp.write_all(BRINGS).await.expect("the relay accepts bytes");
    let pipe = tls(tcp, &world.ca_file(), &["http/1.1"]).await.expect("the TLS handshake succeeds behind the header");
    let _device = wire_device(&world, "lamp-1", pipe).await;
    assert_eq!(world.relay.event("device online").await["address"], "198.51.100.7");
    drop(balancer);
}
