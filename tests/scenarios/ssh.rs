//! OpenSSH to a device by its id: through ProxyCommand and through a forwarded port, with everything that people do with it.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use moorline_tests::programs::{command, feed, run};
use moorline_tests::sshd::{Sshd, user};
use moorline_tests::targets::file_hash;
use moorline_tests::world::{Device, World};
use tokio::process::Command;

const WITHIN: Duration = Duration::from_secs(240);

struct Scene {
    world: World,
    sshd: Sshd,
    _device: Device,
}

impl Scene {
    async fn set() -> Self {
        let world = World::start().await;
        let sshd = Sshd::start().await.expect("openssh-server is installed");
        let device = world.device("lamp-1", &[("ssh", sshd.address)]).await;
        Self { world, sshd, _device: device }
    }

    fn ssh(&self) -> Command {
        self.sshd.ssh(&self.world.proxy_command("lamp-1"), "lamp-1")
    }
}

/// 64 MiB, or 1 GiB in a long run.
fn big_file(path: &Path) {
    use std::io::Write;
    let mebibytes: u64 = if std::env::var_os("MOORLINE_LONG").is_some() { 1024 } else { 64 };
    let mut file = std::fs::File::create(path).expect("a file");
    for number in 0..mebibytes {
        file.write_all(&moorline_tests::patterns::pattern(42, number << 20, 1 << 20)).expect("room on the disk");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_runs_and_its_exit_code_comes_back() {
    let scene = Scene::set().await;
    let done = run(scene.ssh().arg("echo out; echo err >&2; exit 7"), WITHIN).await;
    assert_eq!((done.code, done.text().as_str(), done.err.as_str()), (Some(7), "out\n", "err\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interactive_session_has_a_terminal_that_resizes_and_interrupts() {
    let scene = Scene::set().await;
    let mut terminal = command("/usr/bin/python3");
    terminal.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/scenarios/terminal.py"));
    let ssh = scene.ssh();
    terminal.arg(ssh.as_std().get_program()).arg("-tt").args(ssh.as_std().get_args()).arg("/bin/sh");
    run(&mut terminal, WITHIN).await.well();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_moorline_ssh_command_needs_no_configuration() {
    let scene = Scene::set().await;
    let mut ssh = scene.world.client();
    ssh.arg("ssh").arg(format!("{}@lamp-1", user())).arg("--").args(scene.sshd.options()).arg("echo here; exit 3");
    let done = run(&mut ssh, WITHIN).await;
    assert_eq!((done.code, done.text().as_str()), (Some(3), "here\n"), "{}", done.err);
}

#[tokio::test(flavor = "multi_thread")]
async fn large_files_are_copied_both_ways_and_half_close_ends_them() {
    let scene = Scene::set().await;
    let (here, there, back) = (scene.world.path("here"), scene.world.path("there"), scene.world.path("back"));
    big_file(&here);
    let hash = file_hash(&here);
    let forward = scene.world.forward("lamp-1", &["ssh"]).await;
    let far = |path: &Path| format!("{}@127.0.0.1:{}", user(), path.display());
    let scp = |from: String, to: String| {
        let mut scp = command("scp");
        scp.arg("-q").args(scene.sshd.options()).arg("-P").arg(forward.local[0].port().to_string()).arg(from).arg(to);
        scp
    };
    run(&mut scp(here.display().to_string(), far(&there)), WITHIN).await.well();
    assert_eq!(file_hash(&there), hash, "scp to the device");
    run(&mut scp(far(&there), back.display().to_string()), WITHIN).await.well();
    assert_eq!(file_hash(&back), hash, "scp from the device");

    let piped = scene.world.path("piped");
    let input = std::fs::File::open(&here).expect("the file is there");
    feed(scene.ssh().arg(format!("cat > {}", piped.display())), Stdio::from(input), WITHIN).await.well();
    assert_eq!(file_hash(&piped), hash, "the end of standard input reaches the device");

    let synced = scene.world.path("synced");
    let shell = format!("ssh {} -p {}", scene.sshd.options().join(" "), forward.local[0].port());
    run(command("rsync").arg("-e").arg(shell).arg(&here).arg(far(&synced)), WITHIN).await.well();
    assert_eq!(file_hash(&synced), hash, "rsync");
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_sessions_to_one_device_run_at_once() {
    let scene = Scene::set().await;
    let forward = scene.world.forward("lamp-1", &["ssh"]).await;
    let session = async |number: usize, local: SocketAddr| {
        let mut ssh = command("ssh");
        ssh.args(scene.sshd.options()).arg("-p").arg(local.port().to_string()).arg(format!("{}@127.0.0.1", user()));
        // Each one waits until the last one has begun: all are there at the same time.
        let folder = scene.world.path("sessions");
        let wait = format!(
            "mkdir -p {0}; touch {0}/{number}; n=0; while [ $(ls {0} | wc -l) -lt 50 ] && [ $n -lt 1000 ]; do sleep 0.2; n=$((n+1)); done; echo session {number}",
            folder.display()
        );
        let done = run(ssh.arg(wait), WITHIN).await.well();
        assert_eq!(done.text(), format!("session {number}\n"));
    };
    let sessions: Vec<_> = (0..50).map(|number| session(number, forward.local[0])).collect();
    futures_util::future::join_all(sessions).await;
}
