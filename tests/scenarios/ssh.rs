//! OpenSSH to a device by its id: through ProxyCommand and through a forwarded port, with everything that people do with it.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use moorline_tests::programs::{command, feed, run};
use moorline_tests::sshd::{Sshd, user};
use moorline_tests::targets::file_hash;
use moorline_tests::world::{Device, Forward, World};
use tokio::process::Command;

const WITHIN: Duration = Duration::from_secs(240);

struct Scene {
    world: World,
    sshd: Sshd,
    forward: Forward,
    _device: Device,
}

/// How OpenSSH comes to the device.
#[derive(Clone, Copy, Debug)]
enum Way {
    ProxyCommand,
    Forward,
}

const WAYS: [Way; 2] = [Way::ProxyCommand, Way::Forward];

impl Scene {
    async fn set() -> Self {
        let world = World::start().await;
        let sshd = Sshd::start().await.expect("openssh-server is installed");
        let device = world.device("lamp-1", &[("ssh", sshd.address)]).await;
        let forward = world.forward("lamp-1", &["ssh"]).await;
        Self { world, sshd, forward, _device: device }
    }

    /// What `ssh`, `scp` and `rsync -e` need to come to the device that way.
    fn options(&self, way: Way) -> Vec<String> {
        let option = match way {
            Way::ProxyCommand => format!("ProxyCommand={}", self.world.proxy_command("lamp-1")),
            Way::Forward => format!("Port={}", self.forward.local[0].port()),
        };
        [self.sshd.options(), vec!["-o".to_owned(), option]].concat()
    }

    /// The host's name that way.
    fn host(&self, way: Way) -> String {
        let host = match way {
            Way::ProxyCommand => "lamp-1",
            Way::Forward => "127.0.0.1",
        };
        format!("{}@{host}", user())
    }

    fn ssh(&self, way: Way) -> Command {
        let mut ssh = command("ssh");
        ssh.args(self.options(way)).arg(self.host(way));
        ssh
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
    for way in WAYS {
        let done = run(scene.ssh(way).arg("echo out; echo err >&2; exit 7"), WITHIN).await;
        assert_eq!((done.code, done.text().as_str(), done.err.as_str()), (Some(7), "out\n", "err\n"), "{way:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interactive_session_has_a_terminal_that_resizes_and_interrupts() {
    let scene = Scene::set().await;
    for way in WAYS {
        let mut terminal = command("/usr/bin/python3");
        terminal.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/scenarios/terminal.py"));
        terminal.args(["ssh", "-tt"]).args(scene.options(way)).arg(scene.host(way)).arg("/bin/sh");
        run(&mut terminal, WITHIN).await.well();
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
    for way in WAYS {
        let path = |name: &str| scene.world.path(&format!("{name}-{way:?}"));
        let far = |path: &Path| format!("{}:{}", scene.host(way), path.display());
        let scp = |from: String, to: String| {
            let mut scp = command("scp");
            scp.arg("-q").args(scene.options(way)).arg(from).arg(to);
            scp
        };
        let (there, back, piped, synced) = (path("there"), path("back"), path("piped"), path("synced"));
        run(&mut scp(here.display().to_string(), far(&there)), WITHIN).await.well();
        assert_eq!(file_hash(&there), hash, "scp to the device, {way:?}");
        run(&mut scp(far(&there), back.display().to_string()), WITHIN).await.well();
        assert_eq!(file_hash(&back), hash, "scp from the device, {way:?}");

        let input = std::fs::File::open(&here).expect("the file is there");
        feed(scene.ssh(way).arg(format!("cat > {}", piped.display())), Stdio::from(input), WITHIN).await.well();
        assert_eq!(file_hash(&piped), hash, "the end of standard input reaches the device, {way:?}");

        // rsync splits the command at spaces and knows double quotes.
        let shell = scene.options(way).iter().fold("ssh".to_owned(), |shell, word| format!("{shell} \"{word}\""));
        run(command("rsync").arg("-e").arg(shell).arg(&here).arg(far(&synced)), WITHIN).await.well();
        assert_eq!(file_hash(&synced), hash, "rsync, {way:?}");
        for copy in [there, back, piped, synced] {
            std::fs::remove_file(copy).expect("it was there");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_sessions_to_one_device_run_at_once() {
    let scene = Scene::set().await;
    for way in WAYS {
        let folder = scene.world.path(&format!("sessions-{way:?}"));
        std::fs::create_dir(&folder).expect("a new folder");
        let session = async |number: usize| {
            // Each one waits until the last one has begun: all are there at the same time.
            let wait = format!(
                "touch {0}/{number}; n=0; while [ $(ls {0} | wc -l) -lt 50 ] && [ $n -lt 1000 ]; do sleep 0.2; n=$((n+1)); done; ls {0} | wc -l",
                folder.display()
            );
            let done = run(scene.ssh(way).arg(wait), WITHIN).await.well();
            assert_eq!(done.text().trim(), "50", "session {number}, {way:?}");
        };
        futures_util::future::join_all((0..50).map(session)).await;
    }
}
