//! `moorline ssh` as other programs use their ssh: rsync, scp, sftp, git. And what ssh prints where there is no stream and its ProxyCommand's
//! standard error goes nowhere.

use std::path::PathBuf;
use std::time::Duration;

use moorline_relay::access::mint::SigningKey;
use moorline_tests::patterns::pattern;
use moorline_tests::programs::{Done, binaries, command, run};
use moorline_tests::sshd::{Sshd, user};
use moorline_tests::targets::{Target, file_hash};
use moorline_tests::world::World;
use tokio::io::AsyncReadExt;
use tokio::process::Command;

const WITHIN: Duration = Duration::from_secs(120);

/// What it takes to run `moorline ssh` by a name without arguments, as `scp -S` does.
struct Tools {
    world: World,
    sshd: Sshd,
    link: PathBuf,
}

impl Tools {
    async fn new() -> Self {
        let (world, sshd) = (World::start().await, Sshd::start().await.expect("openssh-server is installed"));
        let link = world.path("moorline-ssh");
        std::os::unix::fs::symlink(&binaries().client, &link).expect("a new link");
        Self { world, sshd, link }
    }

    /// A program that finds the profile in its environment.
    fn command(&self, name: &str) -> Command {
        let mut command = command(name);
        command.env("MOORLINE_PROFILE", self.world.path("profile.toml"));
        command
    }

    /// `moorline ssh` with the options of the test's own server, as a word list for programs that split it at spaces.
    fn shell(&self) -> String {
        format!("{} ssh {}", binaries().client.display(), self.sshd.options().join(" "))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rsync_scp_sftp_and_git_use_moorline_as_their_ssh() {
    let tools = Tools::new().await;
    let world = &tools.world;
    let _device = world.device("lamp-1", &[("ssh", tools.sshd.address)]).await;
    let (here, remote) = (world.path("here"), |name: &str| format!("{}@lamp-1:{}", user(), world.path(name).display()));
    std::fs::write(&here, pattern(1, 0, 3 << 20)).expect("a file is written");
    let arrived = |name: &str| assert_eq!(file_hash(&world.path(name)), file_hash(&here), "{name}");

    run(tools.command("rsync").args(["-e", &tools.shell()]).arg(&here).arg(remote("by-rsync")), WITHIN).await.success();
    arrived("by-rsync");
    run(tools.command("rsync").args(["-e", &tools.shell()]).arg(remote("by-rsync")).arg(world.path("by-rsync-back")), WITHIN)
        .await
        .success();
    arrived("by-rsync-back");

    let scp = || {
        let mut scp = tools.command("scp");
        scp.arg("-S").arg(&tools.link).args(tools.sshd.options());
        scp
    };
    run(scp().arg(&here).arg(remote("by-scp")), WITHIN).await.success();
    arrived("by-scp");
    run(scp().arg("-O").arg(&here).arg(remote("by-old-scp")), WITHIN).await.success();
    arrived("by-old-scp");

    let batch = world.path("batch");
    std::fs::write(&batch, format!("put {} {}\n", here.display(), world.path("by-sftp").display())).expect("a file is written");
    let mut sftp = tools.command("sftp");
    sftp.arg("-S").arg(&tools.link).args(tools.sshd.options()).arg("-b").arg(&batch).arg(format!("{}@lamp-1", user()));
    run(&mut sftp, WITHIN).await.success();
    arrived("by-sftp");

    let git = |args: &[&str]| {
        let mut git = tools.command("git");
        git.env("GIT_SSH_COMMAND", tools.shell()).current_dir(world.path("relay").parent().expect("a folder")).args(args);
        git
    };
    run(&mut git(&["init", "-q", "--bare", "project.git"]), WITHIN).await.success();
    run(&mut git(&["clone", "-q", &remote("project.git"), "work"]), WITHIN).await.success();
    let identity = ["-C", "work", "-c", "user.name=A", "-c", "user.email=a@example.com"];
    run(&mut git(&[&identity[..], &["commit", "-q", "--allow-empty", "-m", "first"]].concat()), WITHIN).await.success();
    run(&mut git(&["-C", "work", "push", "-q", "origin", "HEAD:main"]), WITHIN).await.success();
    let log = run(&mut git(&["-C", "project.git", "log", "--format=%s", "main"]), WITHIN).await.success();
    assert_eq!(log.text(), "first\n");
}

/// `moorline ssh` to a device, with the standard error of the ProxyCommand in its place or as ControlPersist has it: nowhere.
async fn ssh(tools: &Tools, sources: &[&str], device: &str, persist: bool) -> Done {
    let mut ssh = command(&binaries().client);
    ssh.args(sources).arg("ssh").args(tools.sshd.options());
    if persist {
        let socket = tools.world.path("control");
        ssh.args(["-o", "ControlMaster=auto", "-o", "ControlPersist=60", "-o"]).arg(format!("ControlPath={}", socket.display()));
    }
    run(ssh.arg(device).arg("true"), WITHIN).await
}

#[tokio::test(flavor = "multi_thread")]
async fn ssh_prints_why_there_is_no_stream_where_standard_error_is_dropped() {
    let tools = Tools::new().await;
    let world = &tools.world;
    let resets = Target::start(|mut tcp| async move {
        tcp.set_zero_linger().expect("a socket of this machine");
        tcp.read_u8().await.expect("ssh begins");
    })
    .await;
    let _device = world.device("lamp-1", &[("ssh", resets.address)]).await;
    let key = SigningKey::generate().expect("a key is generated").public().to_pem();
    world.add("lamp-2", key.as_bytes()).await;
    let (profile, missing) = (world.path("profile.toml"), world.path("missing.toml"));
    let (profile, missing) = (profile.to_str().expect("UTF-8"), missing.to_str().expect("UTF-8"));
    for (what, sources, device, expected) in [
        ("the device is offline", ["--profile", profile], "lamp-2", "(device_offline)"),
        ("the device is unknown", ["--profile", profile], "lamp-3", "(device_unknown)"),
        ("nobody is logged in", ["--profile", missing], "lamp-1", "moorline login"),
        ("the service resets its connection", ["--profile", profile], "lamp-1", "reset the connection"),
    ] {
        for persist in [true, false] {
            let done = ssh(&tools, &sources, device, persist).await;
            assert_eq!(done.code, Some(255), "{what}: {}", done.err);
            let told = done.err.lines().find(|line| line.starts_with("Received disconnect from"));
            assert!(told.is_some_and(|line| line.contains(expected)), "{what}, dropped: {persist}: {}", done.err);
            assert_eq!(done.err.contains("moorline: "), !persist, "{what}, dropped: {persist}: {}", done.err);
        }
    }
}

/// Without the option, what is no ssh gets the device's bytes and nothing else.
#[tokio::test(flavor = "multi_thread")]
async fn connect_alone_prints_nothing_on_standard_output_without_a_stream() {
    let world = World::start().await;
    let done = world.moorline(&["connect", "lamp-1", "ssh"]).await;
    assert_eq!((done.code, done.text().as_str()), (Some(3), ""), "{}", done.err);
    let done = world.moorline(&["connect", "--for-ssh", "lamp-1", "ssh"]).await;
    assert_eq!(done.code, Some(3), "{}", done.err);
    assert!(done.text().starts_with("SSH-2.0-moorline_") && done.text().contains("(device_unknown)"), "{}", done.text());
}
