//! A test environment in this process: the whole relay over in-memory pipes instead of sockets, so that its clock can be paused.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::handshake;
use hyper_util::rt::TokioIo;
use moorline::Client;
use moorline_agent::{Agent, Handler, Identity, Settings};
use moorline_proto::claims::{AccessRule, Action, Audience, CallerClaims, Pattern};
use moorline_proto::id::{DeviceId, Instance};
use moorline_proto::secret::Secret;
use moorline_proto::timestamp::Timestamp;
use moorline_relay::access::mint::SigningKey;
use moorline_relay::clock::Clock;
use moorline_relay::config::Config;
use moorline_relay::config::file::File;
use moorline_relay::relay::{MemoryDoor, Relay, State};
use moorline_relay::store::{CallerKey, MemoryRegistry, Registry};
use moorline_transport::dial::Dialer;
use serde_json::Value;
use tokio::io::DuplexStream;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use crate::held_registry::HeldRegistry;
use crate::observed;
use crate::old_way;
use crate::wire::{ChannelClosed, Persona, Refusal, WireDevice, WireLeg, bearer};

/// Capacity of a pipe in bytes: an odd number, so that reads and writes rarely align.
const PIPE: usize = 7_919;
/// The relay's host name.
pub const HOST: &str = "relay.test";
/// The longest that [`MemoryWorld::until`] waits, on a paused clock.
const UNTIL_AT_MOST: Duration = Duration::from_secs(7_200);
/// The minimal valid `relay.toml` of such a relay.
const MINIMAL: &str = "names = ['relay.test']\n[[listeners]]\naddress = '127.0.0.1:0'\ntransport = 'plain'";
/// Wall time at the start, in milliseconds.
const START: u64 = 1_790_000_000_000;

/// A relay over in-memory pipes. Devices are registered when they first connect.
#[derive(Debug)]
pub struct MemoryWorld {
    /// The relay.
    pub relay: Relay,
    /// Its registry.
    pub registry: Arc<MemoryRegistry>,
    /// Holds back answers of the registry to the relay.
    pub held: Arc<HeldRegistry>,
    clock: Clock,
    signing: SigningKey,
    keys: std::sync::Mutex<HashMap<DeviceId, Arc<SigningKey>>>,
    dialled: Arc<AtomicUsize>,
}

impl MemoryWorld {
    /// Starts a relay with the default configuration after `change`.
    pub async fn start_with(change: impl FnOnce(&mut Config)) -> Self {
        let minimal = File::from_toml(MINIMAL).expect("the minimal configuration is well formed");
        let mut config = Config::check(minimal, Path::new("/")).expect("the minimal configuration is valid");
        config.listeners.clear();
        change(&mut config);
        let signing = SigningKey::generate().expect("a key is generated");
        let registry = Arc::new(MemoryRegistry::new());
        let issuer = config.issuer.clone();
        let key = CallerKey::new(config.own_iss(), issuer, signing.public().clone());
        registry.put_caller_key(&key).await.expect("the in-memory registry does not fail");
        let clock = Clock::at(Timestamp::from_millis(START));
        let held = Arc::new(HeldRegistry::new(Arc::clone(&registry)));
        let state = State { registry: Arc::clone(&held) as Arc<dyn Registry>, tls: None, clock: clock.clone() };
        let relay = Relay::start(config, state).await.expect("a relay without listeners starts");
        Self { relay, registry, held, clock, signing, keys: std::sync::Mutex::default(), dialled: Arc::default() }
    }

    /// Starts a relay whose `relay.toml` has these lines before its tables, in `[times]`, and in `[limits]`.
    pub async fn start_from(top: &str, times: &str, limits: &str) -> Self {
        let text = format!("{top}\n{MINIMAL}\n[times]\n{times}\n[limits]\n{limits}");
        let file = File::from_toml(&text).expect("the scenario's configuration is well formed");
        let changed = Config::check(file, Path::new("/")).expect("the scenario's configuration is valid");
        Self::start_with(|config| *config = Config { listeners: Vec::new(), ..changed }).await
    }

    /// Starts a relay with the default configuration.
    pub async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    /// Opens a connection to the relay.
    pub fn dial(&self) -> DuplexStream {
        dial(&self.relay.memory_door())
    }

    /// A dialler for agents and clients that connects to the relay in memory.
    pub fn dialer(&self) -> Dialer {
        let (door, dialled) = (self.relay.memory_door(), Arc::clone(&self.dialled));
        Dialer::over(format!("https://{HOST}").parse().expect("an address"), move |_| {
            dialled.fetch_add(1, Ordering::Relaxed);
            std::future::ready(Ok(dial(&door)))
        })
    }

    /// A dialler as [`MemoryWorld::dialer`]. Whatever is sent on `cuts` cuts its open connections: both ends lose them without a word.
    pub fn dialer_cut_by(&self, cuts: &watch::Sender<()>) -> Dialer {
        let (door, dialled, cuts) = (self.relay.memory_door(), Arc::clone(&self.dialled), cuts.clone());
        Dialer::over(format!("https://{HOST}").parse().expect("an address"), move |_| {
            dialled.fetch_add(1, Ordering::Relaxed);
            let ((local, mut near), mut far, mut cut) = (tokio::io::duplex(PIPE), dial(&door), cuts.subscribe());
            tokio::spawn(async move {
                tokio::select! {
                    _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                    _ = cut.changed() => {}
                }
            });
            std::future::ready(Ok(local))
        })
    }

    /// A relay, the control channel of the device `lamp-1`, and the caller's and the device's leg of an open stream to it.
    pub async fn with_stream() -> (Self, WireDevice<DuplexStream>, WireLeg<DuplexStream>, WireLeg<DuplexStream>) {
        let world = Self::start().await;
        let mut device = world.device("lamp-1").await;
        let (caller, leg) = world.stream(&mut device, "lamp-1").await;
        (world, device, caller, leg)
    }

    /// How many connections agents and clients have dialled so far.
    pub fn dialled(&self) -> usize {
        self.dialled.load(Ordering::Relaxed)
    }

    /// Waits until `holds` is true of the relay. For paused clocks: it checks when every task is idle, after each millisecond of the paused clock
    /// at first, later after each thousandth of the time that has passed, so that what never comes is soon known.
    ///
    /// # Panics
    /// If it takes longer than two hours of the paused clock.
    pub async fn until(&self, what: &str, holds: impl Fn(&Relay) -> bool) {
        let begun = Instant::now();
        while !holds(&self.relay) {
            assert!(begun.elapsed() < UNTIL_AT_MOST, "never: {what}; running: {:?}", self.relay.tasks());
            sleep((begun.elapsed() / 1_000).max(Duration::from_millis(1))).await; // paused clock: passes once every task waits
        }
    }

    /// The real client, with a token that allows everything.
    pub fn client(&self) -> Client {
        let client = Client::with_dialer(self.dialer(), Some(self.token()));
        if old_way::callers_reuse() { client } else { client.with_idle_legs(0) }
    }

    /// The real agent of a device, which is registered. It runs while [`Agent::run`] is polled.
    pub async fn agent(&self, id: &str, services: &[&str], handler: impl Handler) -> Agent {
        self.agent_keeping(0, id, services, handler).await
    }

    /// The real agent as [`MemoryWorld::agent`], which keeps this many legs ready.
    pub async fn agent_keeping(&self, warm_legs: u32, id: &str, services: &[&str], handler: impl Handler) -> Agent {
        self.agent_over(self.dialer(), warm_legs, id, services, handler).await
    }

    /// The real agent as [`MemoryWorld::agent_keeping`], with connections of this dialler.
    pub async fn agent_over(&self, dialer: Dialer, warm_legs: u32, id: &str, services: &[&str], handler: impl Handler) -> Agent {
        let device: DeviceId = id.parse().expect("a device id");
        let pem = self.key(&device).await.to_pem().expect("a key that was made is written");
        let identity = Identity::from_pem(&pem).expect("a key that was written is read");
        let join = format!("https://{HOST}").parse().expect("a join string");
        let settings = services.iter().fold(Settings::new(join, device, identity), |settings, name| settings.exposing(name, ""));
        let idle_legs = if old_way::devices_reuse() { settings.idle_legs } else { 0 };
        let settings = Settings { idle_legs, warm_legs, ..settings };
        Agent::with_dialer(settings, handler, dialer)
    }

    /// A caller's token that allows everything.
    pub fn token(&self) -> Secret {
        self.token_for(
            "alice",
            &[AccessRule { actions: Action::ALL.to_vec(), devices: vec![Pattern::any()], services: vec![Pattern::any()] }],
        )
    }

    /// A caller's token with these access rules, valid for an hour.
    pub fn token_for(&self, subject: &str, access: &[AccessRule]) -> Secret {
        let now = self.clock.now().as_millis() / 1000;
        let claims = CallerClaims {
            iss: "moorline:relay:relay".to_owned(),
            sub: subject.parse().expect("a subject"),
            aud: Audience::One(HOST.to_owned()),
            exp: now + 3600,
            iat: now,
            nbf: None,
            jti: None,
            access: access.to_vec(),
        };
        self.sign(&claims)
    }

    /// The relay's wall time.
    pub fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// A token with any claims.
    pub fn sign(&self, claims: &CallerClaims) -> Secret {
        self.signing.mint(claims).expect("claims are signed")
    }

    /// The key of a device. The first call makes the key and registers the device.
    pub async fn key(&self, device: &DeviceId) -> Arc<SigningKey> {
        let known = self.keys.lock().expect("the lock is not poisoned").get(device).map(Arc::clone);
        if let Some(key) = known {
            return key;
        }
        let key = Arc::new(SigningKey::generate().expect("a key is generated"));
        self.registry.put_device(device, &[key.public().clone()], self.clock.now()).await.expect("the in-memory registry does not fail");
        self.keys.lock().expect("the lock is not poisoned").insert(device.clone(), Arc::clone(&key));
        key
    }

    /// Registers a removed device again, with its old key.
    pub async fn register_again(&self, id: &str) {
        let device: DeviceId = id.parse().expect("a device id");
        let key = self.key(&device).await;
        self.registry.put_device(&device, &[key.public().clone()], self.clock.now()).await.expect("the in-memory registry does not fail");
    }

    /// A scripted device with the services `ssh` and `http`, online.
    pub async fn device(&self, id: &str) -> WireDevice<DuplexStream> {
        self.device_as(id, INSTANCE, &["ssh", "http"]).await.expect("the device is authenticated")
    }

    /// A scripted device that connects with this instance and these services.
    ///
    /// # Errors
    /// The code and reason with which the relay closes the channel.
    pub async fn device_as(&self, id: &str, instance: &str, services: &[&str]) -> Result<WireDevice<DuplexStream>, ChannelClosed> {
        self.device_knowing(id, instance, services, &[]).await
    }

    /// A scripted device as [`MemoryWorld::device_as`], which announces these features.
    ///
    /// # Errors
    /// The code and reason with which the relay closes the channel.
    pub async fn device_knowing(
        &self,
        id: &str,
        instance: &str,
        services: &[&str],
        features: &[&str],
    ) -> Result<WireDevice<DuplexStream>, ChannelClosed> {
        let device: DeviceId = id.parse().expect("a device id");
        let key = self.key(&device).await;
        let instance: Instance = instance.parse().expect("an instance");
        WireDevice::connect(self.dial(), &Persona { device, key: &key, instance, services, host: HOST, features }).await
    }

    /// Sends `connect` with further headers.
    ///
    /// # Errors
    /// The relay's refusal.
    pub async fn connect(&self, device: &str, service: &str, headers: &[(&str, &str)]) -> Result<WireLeg<DuplexStream>, Refusal> {
        self.connect_as(&self.token(), device, service, headers).await
    }

    /// Sends `connect` with this token and further headers.
    ///
    /// # Errors
    /// The relay's refusal.
    pub async fn connect_as(
        &self,
        token: &Secret,
        device: &str,
        service: &str,
        headers: &[(&str, &str)],
    ) -> Result<WireLeg<DuplexStream>, Refusal> {
        let authorization = bearer(token);
        let all: Vec<(&str, &str)> = [("authorization", authorization.as_str())].into_iter().chain(headers.iter().copied()).collect();
        WireLeg::join(self.dial(), HOST, &format!("/v1/devices/{device}/connect/{service}"), &all).await
    }

    /// Sends a request with a token that allows everything and an optional JSON body; returns status, headers and body.
    pub async fn request(&self, method: &str, path: &str, headers: &[(&str, &str)], body: Option<Value>) -> (u16, HeaderMap, Value) {
        self.request_as(&self.token(), method, path, headers, body).await
    }

    /// Sends a request as [`MemoryWorld::request`] does, with this token.
    pub async fn request_as(
        &self,
        token: &Secret,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<Value>,
    ) -> (u16, HeaderMap, Value) {
        let (mut sender, connection) = handshake(TokioIo::new(self.dial())).await.expect("the HTTP handshake succeeds");
        let mut request = Request::builder().method(method).uri(path).header("host", HOST).header("authorization", bearer(token));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if body.is_some() {
            request = request.header("content-type", "application/json");
        }
        let body = body.map_or_else(Full::default, |body| Full::new(Bytes::from(body.to_string())));
        let request = request.body(body).expect("the request of a scenario is valid");
        let exchange = async {
            let (head, body) = sender.send_request(request).await.expect("a response arrives").into_parts();
            let body = body.collect().await.expect("the body arrives").to_bytes();
            drop(sender);
            let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
            observed::body(&body);
            (head.status.as_u16(), head.headers, body)
        };
        tokio::join!(exchange, connection).0
    }

    /// Joins a leg with its token.
    ///
    /// # Errors
    /// The relay's refusal.
    pub async fn join(&self, url: &str, token: &Secret) -> Result<WireLeg<DuplexStream>, Refusal> {
        WireLeg::join(self.dial(), HOST, url, &[("authorization", &bearer(token))]).await
    }

    /// Opens a stream; returns the caller's leg and the device's leg.
    pub async fn stream(&self, device: &mut WireDevice<DuplexStream>, id: &str) -> (WireLeg<DuplexStream>, WireLeg<DuplexStream>) {
        let mut caller = self.connect(id, "ssh", &[]).await.expect("nothing refuses the stream");
        let offer = device.offer().await;
        device.accept(offer.stream).await;
        let mut device_leg = self.join(offer.url.as_str(), &offer.token).await.expect("the token of the offer joins");
        caller.opened().await;
        device_leg.opened().await;
        (caller, device_leg)
    }
}

fn dial(door: &MemoryDoor) -> DuplexStream {
    let (local, remote) = tokio::io::duplex(PIPE);
    door.serve(remote, IpAddr::V4(Ipv4Addr::new(192, 0, 2, 7)));
    local
}

/// The instance of a scripted device, unless a scenario names another.
pub const INSTANCE: &str = "00112233445566778899aabbccddeeff";
