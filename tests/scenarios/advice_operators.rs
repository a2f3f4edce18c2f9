//! What the relay's and the agent's programs advise whoever sets them up, followed as in [`crate::advice`].

use std::path::{Path, PathBuf};
use std::time::Duration;

use moorline_tests::programs::{Done, Program, binaries, run};
use moorline_tests::world::World;
use tempfile::TempDir;
use tokio::process::Command;

const WITHIN: Duration = Duration::from_secs(60);

fn advises(done: &Done, advice: &str) {
    let next = done.err.lines().last().unwrap_or_default();
    assert!(done.code != Some(0) && next.starts_with("  next: ") && next.contains(advice), "{advice:?} in {:?}: {}", done.code, done.err);
}

async fn program(program: &Path, args: &[&str]) -> Done {
    run(Command::new(program).args(args), WITHIN).await
}

async fn relay(args: &[&str]) -> Done {
    program(&binaries().relay, args).await
}

async fn agent(args: &[&str]) -> Done {
    program(&binaries().agent, args).await
}

struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a temporary folder"))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    fn write(&self, name: &str, content: &str) -> String {
        std::fs::write(self.path(name), content).expect("a file is written");
        self.text(name)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_sets_a_relay_up_is_told_what_each_option_takes() {
    let folder = Folder::new();
    let state = folder.text("relay");
    let init = ["init", "--state", &state, "--name"];
    advises(&relay(&[&init[..], &["https://relay.example.com"]].concat()).await, "without scheme and port: relay.example.com, 192.0.2.1");
    let unreachable = [&init[..], &["relay.example.com", "--listen", "127.0.0.1:0"]].concat();
    advises(&relay(&unreachable).await, "give --listen a port from 1 to 65535");
    let no_pem = folder.write("no.pem", "nothing");
    let foreign = [&init[..], &["relay.example.com", "--certificate", &no_pem, "--key", &no_pem]].concat();
    std::fs::set_permissions(folder.path("no.pem"), std::os::unix::fs::PermissionsExt::from_mode(0o600)).expect("it is ours");
    advises(&relay(&foreign).await, "a PEM file with the whole chain, relay first, and --key its private key in PEM");
    folder.write("file", "");
    let below_a_file = folder.text("file/relay");
    advises(&relay(&["init", "--state", &below_a_file, "--name", "localhost"]).await, "give --state a folder that this user may write to");
    let used = folder.text("");
    advises(
        &relay(&["init", "--state", &used, "--name", "localhost"]).await,
        "give --state an empty folder, or one that does not exist yet",
    );

    relay(&[&init[..], &["localhost"]].concat()).await.success();
    advises(&relay(&[&init[..], &["localhost"]].concat()).await, "start it with `moorline-relay serve`, or give --state another folder");
    let another = folder.text("another");
    relay(&["init", "--state", &another, "--name", "localhost"]).await.success();

    let token = ["token", "new", "--subject", "alice", "--state"];
    advises(&relay(&[&token[..], &[&used]].concat()).await, "give --state the folder that `moorline-relay init` made");
    let patterns: Vec<String> = (0..500).map(|number| format!("device-{number:020}")).collect();
    let many: Vec<&str> = patterns.iter().flat_map(|pattern| ["--device", pattern]).collect();
    advises(&relay(&[&token[..], &[&state], &many].concat()).await, "name fewer devices and services, or use patterns like lamp-*");
    relay(&[&token[..], &[&state, "--device", "device-*"]].concat()).await.success();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_does_not_start_says_what_is_in_its_way() {
    let mut world = World::start().await;
    let (state, other) = (world.path("relay").display().to_string(), Folder::new());
    let serve = ["serve", "--state", &state, "--listen"];
    advises(&relay(&["serve", "--state", &other.text("nothing")]).await, "give --state the folder that `moorline-relay init` made");
    advises(&relay(&[&serve[..], &["127.0.0.1:0"]].concat()).await, "stop the other relay first, or give --state another folder");
    world.relay.signal("TERM");
    world.relay.ended().await;

    let taken = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = taken.local_addr().expect("it is bound").to_string();
    advises(&relay(&[&serve[..], &[&address]].concat()).await, "check what else listens there (`ss -ltnp`)");
    let config = world.path("relay").join("relay.toml");
    let original = std::fs::read_to_string(&config).expect("init writes it");
    for wrong in [original.replace("[limits]", "[limit]"), original.replace("[times]", "[times]\nping = 'often'")] {
        std::fs::write(&config, wrong).expect("it is ours");
        advises(&relay(&[&serve[..], &["127.0.0.1:0"]].concat()).await, "correct it in relay.toml and start again");
    }
    std::fs::write(&config, &original).expect("it is ours");
    let key = world.path("relay").join("tls.key");
    let kept = std::fs::read(&key).expect("init writes it");
    std::fs::write(&key, "nothing").expect("it is ours");
    advises(&relay(&[&serve[..], &["127.0.0.1:0"]].concat()).await, "check [tls] in relay.toml: a PEM file with the whole chain");
    std::fs::write(&key, kept).expect("it is ours");

    drop(taken);
    let mut again = Command::new(&binaries().relay);
    let again = Program::start("moorline-relay", again.args(serve).arg(&address).args(["--log-format", "json"]));
    again.event("listening").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_sets_a_device_up_is_told_where_and_how() {
    let (world, folder) = (World::start().await, Folder::new());
    let (join, device) = (world.join_file().display().to_string(), folder.text("device"));
    let init = ["init", "--device", "lamp-1", "--service", "ssh=127.0.0.1:22", "--dir", &device, "--join"];
    let missing = folder.text("missing");
    advises(
        &agent(&[&init[..], &[&missing]].concat()).await,
        "give --join a file with the join string that `moorline-relay join` prints, or -",
    );
    let public = agent(&[&init[..], &[&join]].concat()).await.success();
    let again = agent(&[&init[..], &[&join]].concat()).await;
    advises(&again, "give --dir a folder that is writable and contains no device; nothing was changed");
    let other = folder.text("other");
    agent(&["init", "--device", "lamp-2", "--service", "ssh=127.0.0.1:22", "--dir", &other, "--join", &join]).await.success();

    let config = folder.text("device/agent.toml");
    let original = std::fs::read_to_string(&config).expect("init writes it");
    std::fs::write(&config, original.replace("lamp-1", "LAMP")).expect("it is ours");
    for command in ["run", "check"] {
        let done = agent(&[command, "--config", &config]).await;
        advises(&done, "correct the configuration, then validate it with `moorline-agent check --config FILE`");
        assert!(done.err.contains("device = \"LAMP\""), "{}", done.err);
    }
    std::fs::write(&config, original).expect("it is ours");
    agent(&["check", "--config", &config]).await.success();
    world.add("lamp-1", &public.out).await;
    world.agent(&folder.path("device")).await;
}
