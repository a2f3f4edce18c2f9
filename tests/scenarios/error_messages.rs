//! Every refusal and every cut, once on the wire (status, headers, body) and once as `moorline` prints it: what happened, why, what to do
//! next, and the exit code.

use std::io::PipeWriter;
use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;
use std::time::Duration;

use moorline_proto::claims::{AccessRule, Action, CallerClaims, Pattern};
use moorline_proto::close::CloseReason;
use moorline_proto::control::{Cancel, CancelCode, RejectCode, ToDevice};
use moorline_proto::problem::ProblemCode;
use moorline_proto::secret::Secret;
use moorline_relay::access::mint::SigningKey;
use moorline_tests::memory::INSTANCE;
use moorline_tests::middlebox::{Answer, Middlebox};
use moorline_tests::programs::{Done, command, feed, run};
use moorline_tests::wire::{ChannelClosed, Persona, WireDevice, WireLeg, bearer};
use moorline_tests::world::World;
use serde_json::json;
use tokio::net::TcpStream;
use tokio::process::Command;
use tokio_rustls::client::TlsStream;

const WITHIN: Duration = Duration::from_secs(60);
/// A valid stream id that no stream has.
const NO_STREAM: &str = "/v1/legs/n1/00000000000000000000000000000000";
const CONNECT: &str = "/v1/devices/lamp-1/connect/ssh";

type Device = WireDevice<TlsStream<TcpStream>>;

/// A refusal as the relay sent it and as `moorline` printed it.
struct Refusal {
    answer: Answer,
    done: Done,
}

impl Refusal {
    /// Asserts that it is this refusal, with the documented status, headers, body, text and exit code.
    fn is(&self, code: ProblemCode) {
        let (Self { answer, done }, problem) = (self, &self.answer.problem);
        let context = format!("{code}: {} {problem}\n{:?}\n{}", answer.head, done.code, done.err);
        let body = json!({"type": code.urn(), "title": code.title(), "status": code.status(), "code": code.as_str()});
        for (member, value) in body.as_object().expect("it is one") {
            assert_eq!(&problem[member], value, "{context}");
        }
        let detail = problem["detail"].as_str().expect("a detail");
        assert!(!detail.is_empty(), "{context}");
        let by_http = answer.status != 101;
        let media_type = answer.head.contains("content-type: application/problem+json");
        assert!(!by_http || (answer.status == code.status() && media_type), "{context}");

        let lines: Vec<&str> = done.err.lines().collect();
        let ends = format!(": {} ({code})", code.title());
        assert!(lines[0].starts_with("moorline: ") && lines[0].ends_with(&ends), "what happened: {context}");
        let why = detail == code.title() || lines.contains(&format!("  because: {detail}").as_str());
        assert!(why, "why, where more than the title is known: {context}");
        let next = lines.last().expect("it has lines");
        assert!(next.starts_with("  next: ") && next.len() > 18, "what to do next: {context}");
        assert_eq!(done.code, Some(if code.status() == 401 { 5 } else { 3 }), "{context}");
        assert_eq!(done.out, b"", "standard output is reserved for the stream");

        if matches!(code.status(), 429 | 503) {
            let seconds = problem["retry_after_s"].as_u64().expect("when to ask again");
            assert!(!by_http || answer.head.contains(&format!("retry-after: {seconds}")), "{context}");
            assert!(next.ends_with(&format!("; try again in {seconds} s")), "{context}");
        }
    }

    fn contains(&self, text: &str) {
        assert!(self.done.err.contains(text), "{text:?} in {}", self.done.err);
    }
}

struct Scene {
    world: World,
    window: Middlebox,
}

impl Scene {
    async fn start(limits: &str) -> Self {
        let world = World::start_as("half_closed_idle = '300ms'\n", limits, |program| Command::new(program)).await;
        let window = Middlebox::start(&world).await;
        Self { world, window }
    }

    /// Runs `moorline` through a middlebox that replaces parts of its request.
    async fn run_through(&self, replace: &[(&str, &str)], args: &[&str]) -> Refusal {
        self.window.replace(replace);
        let done = run(self.world.client_by(self.window.address.port()).await.args(args), WITHIN).await;
        Refusal { answer: self.window.answer(), done }
    }

    async fn run(&self, args: &[&str]) -> Refusal {
        self.run_through(&[], args).await
    }

    async fn connect(&self, device: &str) -> Refusal {
        self.run(&["connect", device, "ssh"]).await
    }

    /// The operator's `connect`, as a scripted leg.
    async fn leg(&self, device: &str, header: (&str, &str)) -> WireLeg<TlsStream<TcpStream>> {
        let (path, authorization) = (format!("/v1/devices/{device}/connect/ssh"), bearer(&self.world.token()));
        let headers = [("authorization", authorization.as_str()), header];
        WireLeg::join(self.world.dial().await, "localhost", &path, &headers).await.expect("nothing refuses it at once")
    }

    /// A token with these claims, signed by the relay's own key.
    fn signed(&self, name: &str, change: impl FnOnce(&mut CallerClaims)) -> String {
        let payload = data_encoding::BASE64URL_NOPAD.decode(self.world.token().reveal().split('.').nth(1).expect("three parts").as_bytes());
        let mut claims = serde_json::from_slice(&payload.expect("base64url")).expect("claims");
        change(&mut claims);
        let key = std::fs::read_to_string(self.world.path("relay").join("signing.key")).expect("the relay's key");
        let token = SigningKey::from_pem(&Secret::new(key)).expect("it signs").mint(&claims).expect("claims are signed");
        self.secret(name, token.reveal())
    }

    fn secret(&self, name: &str, text: &str) -> String {
        let path = self.world.path(name);
        std::fs::write(&path, text).expect("a file is written");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).expect("its mode is set");
        path.display().to_string()
    }
}

#[tokio::test(flavor = "multi_thread")]
pub(crate) async fn a_request_that_a_middlebox_changed_is_refused() {
    let scene = Scene::start("").await;
    let long = format!("\r\nX-Long: {}\r\n\r\n", "x".repeat(40_000));
    for (from, to, code) in [
        ("/v1/devices", "/v1//devices", ProblemCode::Malformed),
        ("authorization:", "x-lost:", ProblemCode::TokenMissing),
        ("\r\n\r\n", "\r\nOrigin: https://page.example\r\n\r\n", ProblemCode::OriginNotAllowed),
        ("/v1/devices", "/v1/machines", ProblemCode::NoSuchRoute),
        ("GET ", "POST ", ProblemCode::MethodNotAllowed),
        ("upgrade: websocket", "x-lost: websocket", ProblemCode::UpgradeRequired),
        ("\r\n\r\n", &long, ProblemCode::TooLarge),
        (CONNECT, NO_STREAM, ProblemCode::StreamUnknown),
    ] {
        scene.run_through(&[(from, to)], &["connect", "lamp-1", "ssh"]).await.is(code);
    }
}

#[tokio::test(flavor = "multi_thread")]
pub(crate) async fn a_token_is_refused_for_what_it_does_not_allow() {
    let scene = Scene::start("").await;
    let http = || AccessRule {
        actions: Action::ALL.to_vec(),
        devices: vec!["lamp-*".parse::<Pattern>().unwrap()],
        services: vec!["http".parse().unwrap()],
    };
    let hour = 3_600;
    for (token, device, code) in [
        (scene.secret("forged", "not.a.token"), "lamp-1", ProblemCode::TokenInvalid),
        (scene.signed("late", |claims| claims.exp = claims.iat - hour), "lamp-1", ProblemCode::TokenExpired),
        (scene.signed("early", |claims| claims.nbf = Some(claims.iat + hour)), "lamp-1", ProblemCode::TokenNotYetValid),
        (scene.signed("http", |claims| claims.access = vec![http()]), "lamp-1", ProblemCode::Forbidden),
        (scene.signed("again", |claims| claims.access = vec![http()]), "door-1", ProblemCode::DeviceUnknown),
    ] {
        scene.run(&["--token-file", &token, "connect", device, "ssh"]).await.is(code);
    }
}

#[tokio::test(flavor = "multi_thread")]
pub(crate) async fn each_reject_code_of_a_device_is_explained() {
    let scene = Scene::start("").await;
    let mut device = scene.world.wire_device("lamp-1").await;
    for &code in RejectCode::ALL {
        let no = async {
            let offer = device.offer().await;
            device.reject(offer.stream, code, "so it is").await;
        };
        let (refusal, ()) = tokio::join!(scene.connect("lamp-1"), no);
        refusal.is(code.problem());
        refusal.contains("  because: the device says: so it is");
        refusal.contains("  because: it went as far as: authorized ");
    }
}

#[tokio::test(flavor = "multi_thread")]
pub(crate) async fn a_stream_is_refused_before_it_is_offered() {
    let scene = Scene::start("streams_per_device = 1\nundecided_per_caller = 8\nwaiting_callers = 1\nwaiting_per_caller = 8\n").await;
    let _device = scene.world.wire_device("lamp-1").await;
    drop(scene.world.wire_device("lamp-2").await);
    scene.world.relay.event("device offline").await;
    scene.connect("lamp-3").await.is(ProblemCode::DeviceUnknown);
    let offline = scene.connect("lamp-2").await;
    offline.is(ProblemCode::DeviceOffline);
    offline.contains("the device was last seen at ");
    scene.run(&["connect", "lamp-1", "http"]).await.is(ProblemCode::ServiceNotExposed);

    let _undecided = scene.leg("lamp-1", ("moorline-deadline", "60")).await;
    scene.connect("lamp-1").await.is(ProblemCode::TooManyStreams);
    let _waiting = scene.leg("lamp-2", ("moorline-wait", "60")).await;
    scene.run(&["connect", "lamp-2", "ssh", "--wait", "1m"]).await.is(ProblemCode::Overloaded);

    let key = SigningKey::generate().unwrap().public().to_pem();
    scene.world.add("lamp-4", key.as_bytes()).await;
    let key = scene.secret("key", &key);
    scene.run_through(&[], &["device", "add", "lamp-5", "--key", &key]).await.is(ProblemCode::Conflict);

    // The database breaks while the relay runs.
    let database = scene.world.path("relay").join("moorline.db");
    let drop_table = "import sqlite3, sys; sqlite3.connect(sys.argv[1]).execute('DROP TABLE devices')";
    run(command("/usr/bin/python3").args(["-c", drop_table]).arg(database), WITHIN).await.success();
    scene.connect("lamp-2").await.is(ProblemCode::Internal);
}

fn cancelled(message: Result<ToDevice, ChannelClosed>) -> CancelCode {
    match message {
        Ok(ToDevice::Cancel(Cancel { code, .. })) => code,
        other => panic!("{other:?} instead of a cancel"),
    }
}

/// Runs `moorline connect lamp-1 ssh` and calls `act` with the stream's path while its offer is undecided.
async fn undecided<T>(scene: &Scene, device: &mut Device, args: &[&str], act: impl AsyncFnOnce(&mut Device, String) -> T) -> (Refusal, T) {
    let args = [&["connect", "lamp-1", "ssh"], args].concat();
    tokio::join!(scene.run(&args), async {
        let offer = device.offer().await;
        act(device, format!("/v1/streams/{}", offer.stream)).await
    })
}

#[tokio::test(flavor = "multi_thread")]
pub(crate) async fn a_stream_is_refused_between_offer_and_opened() {
    let mut scene = Scene::start("").await;
    let mut device = scene.world.wire_device("lamp-1").await;
    let silent = async |device: &mut Device, _| device.next().await;
    let (refusal, event) = undecided(&scene, &mut device, &["--deadline", "1s"], silent).await;
    refusal.is(ProblemCode::HandshakeTimeout);
    refusal.contains("still missing: the device's answer");
    assert_eq!(cancelled(event), CancelCode::HandshakeTimeout);

    let killed = async |device: &mut Device, stream: String| {
        assert_eq!(scene.world.request("DELETE", &stream, "").await.0, 204);
        device.next().await
    };
    let (refusal, event) = undecided(&scene, &mut device, &[], killed).await;
    refusal.is(ProblemCode::Killed);
    assert_eq!(cancelled(event), CancelCode::Killed);

    let lost = async |device: &mut Device, _| device.socket.close(None).await;
    undecided(&scene, &mut device, &[], lost).await.0.is(ProblemCode::DeviceUnresponsive);

    scene.world.moorline(&["device", "remove", "lamp-1"]).await.success();
    device = scene.world.wire_device("lamp-1").await;
    let removed = async |device: &mut Device, _| {
        scene.world.moorline(&["device", "remove", "lamp-1"]).await.success();
        device.closed().await.0
    };
    let (refusal, event) = undecided(&scene, &mut device, &[], removed).await;
    refusal.is(ProblemCode::Revoked);
    assert_eq!(event, CloseReason::Revoked.code());

    device = scene.world.wire_device("lamp-1").await;
    let stopped = async |_: &mut Device, _| scene.world.relay.signal("TERM");
    undecided(&scene, &mut device, &[], stopped).await.0.is(ProblemCode::Draining);
    drop(device);
    assert_eq!(scene.world.relay.ended().await, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
pub(crate) async fn a_request_or_token_that_was_used_is_refused() {
    let scene = Scene::start("").await;
    let mut device = scene.world.wire_device("lamp-1").await;
    let same_key = [("idempotency-key:", "idempotency-key: k-1\r\nx-lost:")];
    let mut caller = scene.leg("lamp-1", ("idempotency-key", "k-1")).await;
    let offer = device.offer().await;
    scene.run_through(&same_key, &["connect", "lamp-1", "ssh", "--reason", "another"]).await.is(ProblemCode::Conflict);
    device.accept(offer.stream).await;
    let mut leg = scene.world.join(offer.url.as_str(), &offer.token).await;
    leg.opened().await;
    caller.opened().await;
    scene.run_through(&same_key, &["connect", "lamp-1", "ssh"]).await.is(ProblemCode::TokenUsed);
    caller.close(CloseReason::Reset.code()).await;
    tokio::join!(leg.closed(), caller.closed());
    drop((leg, caller)); // the relay waits for their connections to close
    scene.world.relay.event("stream ended").await;
    // A middlebox joins with a leg token of the finished stream.
    let (mine, its) = (bearer(&scene.world.token()), bearer(&offer.token));
    let join = [(CONNECT, offer.url.as_str()), (mine.as_str(), its.as_str())];
    scene.run_through(&join, &["connect", "lamp-1", "ssh"]).await.is(ProblemCode::StreamExpired);
}

type Leg = WireLeg<TlsStream<TcpStream>>;

/// Runs `moorline connect lamp-1 ssh` with an endless standard input, and calls `act` once its stream is open.
async fn cut(world: &World, device: &mut Device, act: impl AsyncFnOnce(&mut Device, Leg, String)) -> Done {
    let (input, _open): (_, PipeWriter) = std::io::pipe().expect("a pipe");
    let mut connect = world.client();
    let done = feed(connect.args(["connect", "lamp-1", "ssh"]), Stdio::from(input), WITHIN);
    let acting = async {
        let offer = device.offer().await;
        device.accept(offer.stream).await;
        let mut leg = world.join(offer.url.as_str(), &offer.token).await;
        leg.opened().await;
        leg.send_bytes("before it is cut").await;
        act(device, leg, format!("/v1/streams/{}", offer.stream)).await;
    };
    tokio::join!(done, acting).0
}

fn reports_cut(done: &Done, reason: CloseReason) {
    let lines: Vec<&str> = done.err.lines().collect();
    assert_eq!(done.code, Some(1), "{reason}: {}", done.err);
    assert_eq!(lines[0], "moorline: the stream to lamp-1/ssh did not end well", "{reason}");
    assert!(lines[1].starts_with(&format!("  because: the relay closed the leg with {} {reason}", reason.code())), "{}", done.err);
    assert!(lines[2].starts_with("  next: ") && lines.len() == 3, "{reason}: {}", done.err);
    // Bytes in flight may be lost when a stream is cut.
    assert!("before it is cut".starts_with(&done.text()), "bytes other than its own: {:?}", done.text());
}

#[tokio::test(flavor = "multi_thread")]
pub(crate) async fn an_open_stream_that_is_cut_reports_the_cause() {
    let mut world = World::start_with("half_closed_idle = '300ms'\n").await;
    let mut device = world.wire_device("lamp-1").await;
    let done = cut(&world, &mut device, async |_, mut leg, _| leg.close(CloseReason::Reset.code()).await).await;
    reports_cut(&done, CloseReason::Reset);
    let done = cut(&world, &mut device, async |_, leg, _| drop(leg)).await;
    reports_cut(&done, CloseReason::PeerLost);
    let half_closed = async |_: &mut Device, mut leg: Leg, _| {
        leg.end().await;
        assert_eq!(leg.closed().await, CloseReason::IdleTimeout.code());
    };
    reports_cut(&cut(&world, &mut device, half_closed).await, CloseReason::IdleTimeout);
    let done = cut(&world, &mut device, async |_, mut leg, stream| {
        assert_eq!(world.request("DELETE", &stream, "").await.0, 204);
        assert_eq!(leg.closed().await, CloseReason::Killed.code());
    });
    reports_cut(&done.await, CloseReason::Killed);

    let done = cut(&world, &mut device, async |_, mut leg, _| leg.close(1000).await).await;
    assert_eq!((done.code, done.text().as_str()), (Some(1), "before it is cut"));
    assert!(done.err.contains("  next: what was sent last may not have arrived"), "finished before standard input ended: {}", done.err);

    let done = cut(&world, &mut device, async |device, mut leg, _| {
        world.moorline(&["device", "remove", "lamp-1"]).await.success();
        assert_eq!((leg.closed().await, device.closed().await.0), (4006, 4006));
    });
    reports_cut(&done.await, CloseReason::Revoked);
    device = world.wire_device("lamp-1").await;
    let done = cut(&world, &mut device, async |_, mut leg, _| {
        world.relay.signal("TERM");
        assert_eq!(leg.closed().await, CloseReason::RelayDraining.code());
    });
    reports_cut(&done.await, CloseReason::RelayDraining);
    drop(device);
    assert_eq!(world.relay.ended().await, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_cause_of_an_invalid_proof_is_logged_and_not_sent_to_the_device() {
    let world = World::start().await;
    let (own, foreign) = (SigningKey::generate().expect("a key is generated"), SigningKey::generate().expect("keys are made"));
    world.add("lamp-1", own.public().to_pem().as_bytes()).await;
    let persona = Persona {
        device: "lamp-1".parse().expect("a device id"),
        key: &foreign,
        instance: INSTANCE.parse().expect("an instance"),
        services: &[],
        host: "localhost",
        features: &[],
    };
    let ChannelClosed(code, reason) = WireDevice::connect(world.dial().await, &persona).await.expect_err("the key is a different one");
    assert_eq!((code, reason.contains("kid")), (4401, false), "{reason}");
    let logged = world.relay.event("a device was not authenticated").await;
    assert_eq!(logged["error"], "the proof of lamp-1 does not hold: its kid names no key of the device");
}
