//! Tokens that expire under a program that lives longer: a `moorline forward` takes the one that its user logs in with, and says before that
//! it is time to.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use moorline_proto::claims::CallerClaims;
use moorline_proto::secret::Secret;
use moorline_relay::access::mint::SigningKey;
use moorline_relay::access::token::LEEWAY;
use moorline_tests::programs::{Program, binaries, run};
use moorline_tests::targets::Target;
use moorline_tests::world::{Device, World};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::Command;
use tokio::time::timeout;

const WITHIN: Duration = Duration::from_secs(60);
const WARNING: &str = "the token's time ends at ";
const REFUSED: &str = "(token_expired)";

struct Scene {
    world: World,
    _echo: Target,
    _device: Device,
}

impl Scene {
    async fn set() -> Self {
        let (world, echo) = (World::start().await, Target::echo().await);
        let device = world.device("lamp-1", &[("echo", echo.address)]).await;
        Self { world, _echo: echo, _device: device }
    }

    /// A token of the operator's that the relay takes until `end` after now, or has not taken since `-end`.
    fn token(&self, end: i64) -> Secret {
        let token = self.world.token();
        let payload = token.reveal().split('.').nth(1).expect("three parts").as_bytes(); // decoded, to be changed
        let payload = data_encoding::BASE64URL_NOPAD.decode(payload).expect("base64url");
        let mut claims: CallerClaims = serde_json::from_slice(&payload).expect("claims");
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
        claims.exp = now.saturating_add_signed(end) - LEEWAY.as_secs();
        let key = std::fs::read_to_string(self.world.path("relay").join("signing.key")).expect("the relay's key");
        SigningKey::from_pem(&Secret::new(key)).expect("it signs").mint(&claims).expect("claims are signed")
    }

    /// Replaces a private file, as an orchestrator does.
    fn put(&self, name: &str, token: &Secret) -> PathBuf {
        let (path, new) = (self.world.path(name), self.world.path(&format!("{name}.new")));
        moorline_files::create(&new, 0o600, token.reveal().as_bytes()).expect("a new file"); // to the file that the programs read
        std::fs::rename(new, &path).expect("it is renamed");
        path
    }

    async fn log_in(&self, profile: &Path, token: &Secret) {
        let token = self.put("login-token", token);
        let mut login = Command::new(&binaries().client);
        login.arg("login").arg("--profile").arg(profile).arg("--join").arg(self.world.join_file()).arg("--token-file").arg(token);
        run(&mut login, WITHIN).await.success();
    }
}

fn client(options: &[(&str, &Path)]) -> Command {
    let mut command = Command::new(&binaries().client);
    for (option, path) in options {
        command.arg(option).arg(path);
    }
    command
}

async fn echoes(stream: &mut TcpStream, bytes: &[u8]) {
    stream.write_all(bytes).await.expect("the stream takes bytes");
    let mut echoed = vec![0; bytes.len()];
    timeout(WITHIN, stream.read_exact(&mut echoed)).await.expect("in time").expect("the stream is open");
    assert_eq!(echoed, bytes);
}

async fn connected(local: SocketAddr) -> TcpStream {
    let mut stream = TcpStream::connect(local).await.expect("the forward listens");
    echoes(&mut stream, b"hello").await;
    stream
}

async fn is_reset(local: SocketAddr) {
    match TcpStream::connect(local).await {
        Ok(mut stream) => assert!(timeout(WITHIN, stream.read_u8()).await.expect("in time").is_err()),
        Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset), // before this end had a look at it
    }
}

fn count(program: &Program, words: &str) -> usize {
    program.lines().iter().filter(|line| line.contains(words)).count()
}

async fn says(program: &Program, words: &str) -> String {
    program.line(words, |line| line.contains(words).then(|| line.to_owned())).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forward_takes_the_token_of_a_fresh_login_and_its_streams_go_on() {
    let scene = Scene::set().await;
    let profile = scene.world.path("short.toml");
    let taken = 8;
    scene.log_in(&profile, &scene.token(taken)).await;
    let until = tokio::time::Instant::now() + Duration::from_secs(taken.unsigned_abs() + 1);
    let forward = World::forward_as(client(&[("--profile", &profile)]), "lamp-1", &["echo"]).await;
    let local = forward.local[0];
    let mut open = connected(local).await;
    says(&forward.program, WARNING).await;
    says(&forward.program, "  next: log in with a new one (`moorline login`)").await;

    // real time: the end of the token is what this is about
    tokio::time::sleep_until(until).await;
    is_reset(local).await;
    says(&forward.program, REFUSED).await;
    assert!(says(&forward.program, "  next: ask the relay's operator").await.contains("a `moorline forward` that runs takes it"));

    scene.log_in(&profile, &scene.world.token()).await;
    connected(local).await;
    echoes(&mut open, b"the first one is still open").await;
    assert_eq!((count(&forward.program, WARNING), count(&forward.program, REFUSED)), (1, 1), "{:?}", forward.program.lines());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forward_reads_its_token_file_once_for_each_refusal_and_reports_the_second() {
    let scene = Scene::set().await;
    let path = scene.put("renewed", &scene.token(-60));
    let profile = scene.world.path("profile.toml");
    let forward = World::forward_as(client(&[("--profile", &profile), ("--token-file", &path)]), "lamp-1", &["echo"]).await;
    let local = forward.local[0];
    says(&forward.program, &format!("  next: put a new one into {}", path.display())).await;
    scene.put("renewed", &scene.token(-30)); // another one, and expired too
    is_reset(local).await;
    says(&forward.program, REFUSED).await;

    std::fs::remove_file(&path).expect("it is there");
    is_reset(local).await;
    says(&forward.program, &format!("cannot use {}", path.display())).await;

    scene.put("renewed", &scene.world.token());
    connected(local).await;
    assert_eq!(count(&forward.program, REFUSED), 2);
    let printed = forward.program.lines().join("\n");
    assert!(!printed.contains("eyJ"), "no token is printed: {printed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_in_a_variable_cannot_change_and_the_warning_says_so() {
    let scene = Scene::set().await;
    let mut command = scene.world.client();
    command.env("MOORLINE_TOKEN", scene.token(60).reveal()); // into the program's environment
    let forward = World::forward_as(command, "lamp-1", &["echo"]).await;
    connected(forward.local[0]).await;
    says(&forward.program, WARNING).await;
    says(&forward.program, "  next: set MOORLINE_TOKEN to a new one and start this again").await;

    let lasting = scene.world.forward("lamp-1", &["echo"]).await;
    connected(lasting.local[0]).await;
    assert_eq!(count(&lasting.program, WARNING), 0, "thirty days are left");
}
