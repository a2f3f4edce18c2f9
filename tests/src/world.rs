//! A test environment of real programs: a relay, its operator, devices with agents, callers. It has its own folder and its own ports.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use moorline::{Client, Join, Secret};
use moorline_relay::access::mint::SigningKey;
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::process::Command;
use tokio_rustls::client::TlsStream;

use crate::memory::INSTANCE;
use crate::old_way;
use crate::programs::{Done, Program, binaries, run};
use crate::unauthenticated_peer::{read_until_closed, tls};
use crate::wire::{Persona, WireDevice, WireLeg, bearer};

/// The longest that a single operator command may take.
const SOON: Duration = Duration::from_secs(60);

/// Scaled-down times, so that keepalive timeouts pass quickly.
pub const SCALED: &str = "ping = '300ms'\nheartbeat = '500ms'\nheartbeat_max = '5s'\nhalf_closed_idle = '60s'\n";

/// A running relay with its folder, operator and listeners.
#[derive(Debug)]
pub struct World {
    /// The relay's process.
    pub relay: Program,
    /// Its listening address.
    pub address: SocketAddr,
    /// Addresses of the other listeners, in the order of the configuration.
    pub further: Vec<SocketAddr>,
    folder: TempDir,
}

/// A running device.
#[derive(Debug)]
pub struct Device {
    /// The agent's process.
    pub agent: Program,
    /// Its folder.
    pub folder: PathBuf,
}

/// A running `moorline forward`, with the local address of each service in the order of the arguments.
#[derive(Debug)]
pub struct Forward {
    /// The process.
    pub program: Program,
    /// Its listening address.
    pub local: Vec<SocketAddr>,
}

impl World {
    /// Starts a relay with default times.
    pub async fn start() -> Self {
        Self::start_with("").await
    }

    /// Starts a relay with these lines in `[times]`.
    pub async fn start_with(times: &str) -> Self {
        Self::start_as(times, "", |program| Command::new(program)).await
    }

    /// Starts a relay with these lines in `[times]` and `[limits]`; `command` makes the command that runs the given program.
    pub async fn start_as(times: &str, limits: &str, command: impl FnOnce(&Path) -> Command) -> Self {
        Self::start_at("", times, limits, command).await
    }

    /// Starts a relay as [`World::start_as`] does, with additional `[[listeners]]`.
    pub async fn start_at(listeners: &str, times: &str, limits: &str, command: impl FnOnce(&Path) -> Command) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let state = folder.path().join("relay");
        let made = run(
            Command::new(&binaries().relay)
                .args(["init", "--name", "localhost", "--name", "127.0.0.1", "--listen", "127.0.0.1:1", "--json", "--state"])
                .arg(&state),
            SOON,
        )
        .await
        .success();
        let made: Value = serde_json::from_slice(&made.out).expect("--json prints JSON");
        let config = std::fs::read_to_string(state.join("relay.toml")).expect("init writes relay.toml");
        let config = config.replace("[times]\n", &format!("[times]\n{times}")).replace("[limits]\n", &format!("[limits]\n{limits}"));
        std::fs::write(state.join("relay.toml"), config + listeners).expect("relay.toml is written");
        let (relay, address) = serve(command(&binaries().relay), &state, "127.0.0.1:0").await;
        let further = further(&relay, listeners.matches("[[listeners]]").count()).await;
        let join = made["join"].as_str().expect("a join string").replace("localhost:1#", &format!("localhost:{}#", address.port()));
        write(&folder.path().join("join"), &join);
        write(&folder.path().join("token"), made["token"].as_str().expect("a token"));
        let world = Self { relay, address, further, folder };
        let login = world
            .client()
            .arg("login")
            .arg("--join")
            .arg(world.join_file())
            .arg("--token-file")
            .arg(world.token_file())
            .kill_on_drop(true)
            .output();
        assert!(login.await.expect("login runs").status.success(), "the operator logs in");
        world
    }

    /// A command that runs another relay on the same state folder, on a free port.
    pub fn second_relay(&self) -> Command {
        let mut command = Command::new(&binaries().relay);
        command.args(["serve", "--log-format", "json", "--listen", "127.0.0.1:0", "--state"]).arg(self.path("relay"));
        command
    }

    /// The relay's database.
    pub fn database(&self) -> PathBuf {
        self.path("relay").join("moorline.db")
    }

    /// Sends a request with the operator's token over a connection of its own and returns the connection before any answer.
    pub async fn send_request(&self, method: &str, path: &str) -> TlsStream<TcpStream> {
        let mut connection = self.dial().await;
        let head = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: {}\r\n\r\n", bearer(&self.token()));
        connection.write_all(head.as_bytes()).await.expect("the relay accepts bytes");
        connection.flush().await.expect("the relay accepts bytes");
        connection
    }

    /// Kills the relay and restarts it on the same port.
    pub async fn restart(&mut self) {
        self.restart_by("KILL").await;
    }

    /// Ends the relay by this signal and restarts it on the same port.
    pub async fn restart_by(&mut self, signal: &str) {
        self.relay.signal(signal);
        self.relay.ended().await;
        (self.relay, self.address) = serve(Command::new(&binaries().relay), &self.path("relay"), &self.address.to_string()).await;
        self.further = further(&self.relay, self.further.len()).await;
    }

    /// A path in the world's folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The join string's file.
    pub fn join_file(&self) -> PathBuf {
        self.path("join")
    }

    /// The operator's token's file.
    pub fn token_file(&self) -> PathBuf {
        self.path("token")
    }

    /// The operator's token.
    pub fn token(&self) -> Secret {
        Secret::new(std::fs::read_to_string(self.token_file()).expect("it was written").trim())
    }

    /// The CA certificate's file.
    pub fn ca_file(&self) -> PathBuf {
        self.path("relay").join("ca.pem")
    }

    /// `moorline` with the operator's profile.
    pub fn client(&self) -> Command {
        let mut command = Command::new(&binaries().client);
        command.arg("--profile").arg(self.path("profile.toml"));
        command
    }

    /// `moorline` with the operator's token, reaching the relay through another local port.
    pub async fn client_by(&self, port: u16) -> Command {
        let profile = self.path(&format!("profile-{port}.toml"));
        let client = || {
            let mut client = Command::new(&binaries().client);
            client.arg("--profile").arg(&profile);
            client
        };
        if !profile.exists() {
            run(client().arg("login").arg("--join").arg(self.join_by(port)).arg("--token-file").arg(self.token_file()), SOON)
                .await
                .success();
        }
        client()
    }

    /// Runs `moorline` to its end.
    pub async fn moorline(&self, args: &[&str]) -> Done {
        run(self.client().args(args), SOON).await
    }

    /// `moorline connect DEVICE ssh` for ssh's ProxyCommand.
    pub fn proxy_command(&self, device: &str) -> String {
        format!("'{}' --profile '{}' connect {device} ssh", binaries().client.display(), self.path("profile.toml").display())
    }

    /// The library's client with the operator's token.
    pub fn library(&self) -> Client {
        let join: Join = std::fs::read_to_string(self.join_file()).expect("it was written").parse().expect("a join string");
        let client = Client::new(&join, Some(self.token())).expect("the relay's own CA is trusted");
        if old_way::callers_reuse() { client } else { client.with_idle_legs(0) }
    }

    /// A join string that leads to the relay through another local port.
    pub fn join_by(&self, port: u16) -> PathBuf {
        let file = self.path(&format!("join-{port}"));
        if !file.exists() {
            let join = std::fs::read_to_string(self.join_file()).expect("it was written");
            write(&file, &join.replace(&format!("localhost:{}#", self.address.port()), &format!("localhost:{port}#")));
        }
        file
    }

    /// Adds a device with these services and targets, and waits until it is online.
    pub async fn device(&self, id: &str, services: &[(&str, SocketAddr)]) -> Device {
        self.device_by(self.address.port(), id, services).await
    }

    /// A device as [`World::device`], reaching the relay through another local port.
    pub async fn device_by(&self, port: u16, id: &str, services: &[(&str, SocketAddr)]) -> Device {
        self.device_with("", port, id, services).await
    }

    /// A device as [`World::device_by`], with these lines at the top of its `agent.toml`.
    pub async fn device_with(&self, lines: &str, port: u16, id: &str, services: &[(&str, SocketAddr)]) -> Device {
        let folder = self.path(id);
        let mut init = Command::new(&binaries().agent);
        init.args(["init", "--device", id, "--join"]).arg(self.join_by(port)).arg("--dir").arg(&folder);
        for (name, target) in services {
            init.arg("--service").arg(format!("{name}={target}"));
        }
        let public = run(&mut init, SOON).await.success();
        self.add(id, &public.out).await;
        let config = folder.join("agent.toml");
        let written = std::fs::read_to_string(&config).expect("init writes agent.toml");
        let old_way = if old_way::devices_reuse() { "" } else { "idle_legs = 0\n" };
        std::fs::write(&config, format!("{old_way}{lines}{written}")).expect("agent.toml is written");
        self.agent(&folder).await
    }

    /// Adds a device by its public key in PEM.
    pub async fn add(&self, id: &str, public: &[u8]) {
        let key = self.path(&format!("{id}.pem"));
        std::fs::write(&key, public).expect("the public key is written");
        run(self.client().args(["device", "add", id, "--key"]).arg(&key), SOON).await.success();
    }

    /// Opens a TLS connection to the relay.
    pub async fn dial(&self) -> TlsStream<TcpStream> {
        self.try_dial().await.expect("the TLS handshake succeeds")
    }

    /// Opens a TLS connection to the relay, if it accepts one.
    ///
    /// # Errors
    /// Errors of TCP or TLS: the relay may be at its connection limit.
    pub async fn try_dial(&self) -> std::io::Result<TlsStream<TcpStream>> {
        tls(TcpStream::connect(self.address).await?, &self.ca_file(), &["http/1.1"]).await
    }

    /// A scripted device with the service `ssh`, added and online.
    pub async fn wire_device(&self, id: &str) -> WireDevice<TlsStream<TcpStream>> {
        let key = SigningKey::generate().expect("a key is generated");
        self.add(id, key.public().to_pem().as_bytes()).await;
        self.wire_device_by(id, &key).await
    }

    /// A scripted device with the service `ssh` that was added with this key; online.
    pub async fn wire_device_by(&self, id: &str, key: &SigningKey) -> WireDevice<TlsStream<TcpStream>> {
        let persona = Persona {
            device: id.parse().expect("a device id"),
            key,
            instance: INSTANCE.parse().expect("an instance"),
            services: &["ssh"],
            host: "localhost",
            features: &[],
        };
        WireDevice::connect(self.dial().await, &persona).await.expect("the device is authenticated")
    }

    /// Opens a stream to `ssh` of a device, with further headers: the caller's leg and the device's.
    pub async fn stream(
        &self,
        device: &mut WireDevice<TlsStream<TcpStream>>,
        id: &str,
        headers: &[(&str, &str)],
    ) -> (WireLeg<TlsStream<TcpStream>>, WireLeg<TlsStream<TcpStream>>) {
        let authorization = bearer(&self.token());
        let headers: Vec<_> = [("authorization", authorization.as_str())].into_iter().chain(headers.iter().copied()).collect();
        let path = format!("/v1/devices/{id}/connect/ssh");
        let mut caller = WireLeg::join(self.dial().await, "localhost", &path, &headers).await.expect("nothing refuses the stream");
        let offer = device.offer().await;
        device.accept(offer.stream).await;
        let mut device_leg = self.join(offer.url.as_str(), &offer.token).await;
        caller.opened().await;
        device_leg.opened().await;
        (caller, device_leg)
    }

    /// Joins a leg with its token, as a scripted leg.
    pub async fn join(&self, url: &str, token: &Secret) -> WireLeg<TlsStream<TcpStream>> {
        WireLeg::join(self.dial().await, "localhost", url, &[("authorization", &bearer(token))]).await.expect("the token joins")
    }

    /// Sends a request with the operator's token; returns status and body.
    pub async fn request(&self, method: &str, path: &str, body: &str) -> (u16, Value) {
        let mut connection = self.dial().await;
        let (authorization, length) = (bearer(&self.token()), body.len());
        let head = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: {authorization}\r\nConnection: close");
        let form = if body.is_empty() { "" } else { "Content-Type: application/json\r\n" };
        let request = format!("{head}\r\n{form}Content-Length: {length}\r\n\r\n{body}");
        connection.write_all(request.as_bytes()).await.expect("the relay accepts bytes");
        let received = String::from_utf8(read_until_closed(&mut connection, SOON).await).expect("the answer is text");
        let status = received.get(9..12).and_then(|status| status.parse().ok()).expect("a status");
        (status, received.split_once("\r\n\r\n").and_then(|(_, body)| serde_json::from_str(body).ok()).unwrap_or(Value::Null))
    }

    /// Starts the agent of a folder and waits until it is online.
    pub async fn agent(&self, folder: &Path) -> Device {
        self.agent_as(folder, |program| Command::new(program)).await
    }

    /// Starts an agent as [`World::agent`] does; `command` makes the command that runs the given program.
    pub async fn agent_as(&self, folder: &Path, command: impl FnOnce(&Path) -> Command) -> Device {
        let mut command = command(&binaries().agent);
        command.args(["run", "--log-format", "json", "--config"]).arg(folder.join("agent.toml"));
        let agent = Program::start("moorline-agent", &mut command);
        agent.event("online").await;
        Device { agent, folder: folder.to_owned() }
    }

    /// Forwards free local ports to the services of a device.
    pub async fn forward(&self, device: &str, services: &[&str]) -> Forward {
        Self::forward_as(self.client(), device, services).await
    }

    /// Forwards as [`World::forward`], reaching the relay through another local port.
    pub async fn forward_by(&self, port: u16, device: &str, services: &[&str]) -> Forward {
        Self::forward_with(&[], self.client_by(port).await, device, services).await
    }

    /// Forwards as [`World::forward`]; `command` runs `moorline` with a profile.
    pub async fn forward_as(command: Command, device: &str, services: &[&str]) -> Forward {
        Self::forward_with(&[], command, device, services).await
    }

    /// Forwards as [`World::forward_as`], with further options of `forward`.
    pub async fn forward_with(options: &[&str], mut command: Command, device: &str, services: &[&str]) -> Forward {
        command.args(["forward", "--json"]).args(options).args((!old_way::callers_reuse()).then_some("--idle-legs=0"));
        command.arg(device).args(services.iter().map(|service| format!("0:{service}")));
        let program = Program::start("moorline forward", &mut command);
        let mut local = Vec::new();
        for service in services {
            let address = |line: &str| {
                let line: Value = serde_json::from_str(line).ok()?;
                (line["service"] == *service).then(|| line["local"].as_str()?.parse().ok()).flatten()
            };
            local.push(program.line("where it listens", address).await);
        }
        Forward { program, local }
    }
}

async fn serve(mut command: Command, state: &Path, listen: &str) -> (Program, SocketAddr) {
    command.args(["serve", "--log-format", "json", "--listen", listen, "--state"]).arg(state);
    let relay = Program::start("moorline-relay", &mut command);
    let listening = relay.event("listening").await;
    let address = listening["address"].as_str().and_then(|address| address.parse().ok()).expect("the line has an address");
    (relay, address)
}

async fn further(relay: &Program, count: usize) -> Vec<SocketAddr> {
    relay.events("listening", 1 + count).await;
    let lines = relay.lines().into_iter().filter_map(|line| serde_json::from_str::<Value>(&line).ok());
    let listening = lines.filter(|line| line["message"] == "listening");
    listening
        .skip(1)
        .map(|line| line["address"].as_str().and_then(|address| address.parse().ok()).expect("the line has an address"))
        .collect()
}

fn write(path: &Path, text: &str) {
    use std::os::unix::fs::OpenOptionsExt;
    let mut options = std::fs::OpenOptions::new();
    let file = options.write(true).create_new(true).mode(0o600).open(path);
    std::io::Write::write_all(&mut file.expect("a new file"), text.as_bytes()).expect("it is written");
}
