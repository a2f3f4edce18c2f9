//! OpenSSH to a device through ProxyCommand and through a forwarded port: commands, terminals, file copies, many sessions.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use futures_util::future::join_all;
use moorline_tests::programs::{command, feed, run};
use moorline_tests::sshd::{Sshd, user};
use moorline_tests::targets::file_hash;
use moorline_tests::world::{Device, Forward, World};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::time::timeout;

const WITHIN: Duration = Duration::from_secs(240);

struct Scene {
    world: World,
    sshd: Sshd,
    forward: Forward,
    _device: Device,
}

/// How OpenSSH reaches the device.
#[derive(Clone, Copy, Debug)]
enum Route {
    ProxyCommand,
    Forward,
}

const ROUTES: [Route; 2] = [Route::ProxyCommand, Route::Forward];

impl Scene {
    async fn set() -> Self {
        let world = World::start().await;
        let sshd = Sshd::start().await.expect("openssh-server is installed");
        let device = world.device("lamp-1", &[("ssh", sshd.address)]).await;
        let forward = world.forward("lamp-1", &["ssh"]).await;
        Self { world, sshd, forward, _device: device }
    }

    /// Options of `ssh`, `scp` and `rsync -e` for this route.
    fn options(&self, route: Route) -> Vec<String> {
        let option = match route {
            Route::ProxyCommand => format!("ProxyCommand={}", self.world.proxy_command("lamp-1")),
            Route::Forward => format!("Port={}", self.forward.local[0].port()),
        };
        [self.sshd.options(), vec!["-o".to_owned(), option]].concat()
    }

    /// The user and host name for this route.
    fn host(&self, route: Route) -> String {
        let host = match route {
            Route::ProxyCommand => "lamp-1",
            Route::Forward => "127.0.0.1",
        };
        format!("{}@{host}", user())
    }

    fn ssh(&self, route: Route) -> Command {
        let mut ssh = command("ssh");
        ssh.args(self.options(route)).arg(self.host(route));
        ssh
    }
}

/// Writes 64 MiB, or 1 GiB in a long run.
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
    for route in ROUTES {
        let done = run(scene.ssh(route).arg("echo out; echo err >&2; exit 7"), WITHIN).await;
        assert_eq!((done.code, done.text().as_str(), done.err.as_str()), (Some(7), "out\n", "err\n"), "{route:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interactive_session_has_a_terminal_that_resizes_and_interrupts() {
    let scene = Scene::set().await;
    for route in ROUTES {
        let mut terminal = command("/usr/bin/python3");
        terminal.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/scenarios/terminal.py"));
        terminal.args(["ssh", "-tt"]).args(scene.options(route)).arg(scene.host(route)).arg("/bin/sh");
        run(&mut terminal, WITHIN).await.success();
    }
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
    let here = scene.world.path("here");
    big_file(&here);
    let hash = file_hash(&here);
    for route in ROUTES {
        let path = |name: &str| scene.world.path(&format!("{name}-{route:?}"));
        let remote = |path: &Path| format!("{}:{}", scene.host(route), path.display());
        let scp = |from: String, to: String| {
            let mut scp = command("scp");
            scp.arg("-q").args(scene.options(route)).arg(from).arg(to);
            scp
        };
        let (there, back, piped, synced) = (path("there"), path("back"), path("piped"), path("synced"));
        run(&mut scp(here.display().to_string(), remote(&there)), WITHIN).await.success();
        assert_eq!(file_hash(&there), hash, "scp to the device, {route:?}");
        run(&mut scp(remote(&there), back.display().to_string()), WITHIN).await.success();
        assert_eq!(file_hash(&back), hash, "scp from the device, {route:?}");

        let input = std::fs::File::open(&here).expect("the file is there");
        feed(scene.ssh(route).arg(format!("cat > {}", piped.display())), Stdio::from(input), WITHIN).await.success();
        assert_eq!(file_hash(&piped), hash, "the end of standard input reaches the device, {route:?}");

        // rsync splits the command at spaces and understands double quotes.
        let shell = scene.options(route).iter().fold("ssh".to_owned(), |shell, word| format!("{shell} \"{word}\""));
        run(command("rsync").arg("-e").arg(shell).arg(&here).arg(remote(&synced)), WITHIN).await.success();
        assert_eq!(file_hash(&synced), hash, "rsync, {route:?}");
        for copy in [there, back, piped, synced] {
            std::fs::remove_file(copy).expect("it was there");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_sessions_to_one_device_run_at_once() {
    let scene = Scene::set().await;
    for route in ROUTES {
        // Each session prints a line and then waits for the end of its input, which is closed after the last session has printed its line.
        let mut sessions = Vec::new();
        for _ in 0..50 {
            let mut ssh = scene.ssh(route);
            ssh.arg("echo here; cat").stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
            sessions.push(ssh.spawn().expect("ssh starts"));
        }
        let lines = timeout(WITHIN, join_all(sessions.iter_mut().map(first_line))).await.expect("all sessions are open at once");
        assert_eq!(lines, vec!["here\n"; 50], "{route:?}");
        for session in &mut sessions {
            drop(session.stdin.take());
            let ended = timeout(WITHIN, session.wait()).await.expect("in time").expect("a child is waited for");
            assert!(ended.success(), "{route:?}: {ended}");
        }
    }
}

async fn first_line(session: &mut Child) -> String {
    let mut line = String::new();
    let output = session.stdout.as_mut().expect("it is piped");
    BufReader::new(output).read_line(&mut line).await.expect("a line of text");
    line
}
