//! Signals from a terminal and from a supervisor: `moorline` resets what it carries, and then ends by the signal, so that whoever waits for it knows.

use std::os::unix::process::ExitStatusExt as _;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use moorline_tests::programs::{Program, command};
use moorline_tests::streams::{Kind, Ours, Streams};
use moorline_tests::targets::Target;
use moorline_tests::world::World;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::timeout;

const WITHIN: Duration = Duration::from_secs(60);
const CTRL_C: &[u8] = b"\x03";
/// Runs its arguments again and again, and says how each ended.
const LOOP: &str = r#"while true; do "$@"; echo "ended $?"; done"#;

/// A target that says a line, and reports for each connection whether it ended with a reset.
async fn held() -> (Target, mpsc::Receiver<bool>) {
    let (resets, reset) = mpsc::channel(8);
    let target = Target::start(move |mut tcp| {
        let resets = resets.clone();
        async move {
            tcp.write_all(b"open\n").await.expect("it is taken");
            let ended = tcp.read(&mut [0]).await;
            resets.send(ended.is_err()).await.ok();
        }
    })
    .await;
    (target, reset)
}

/// A shell that runs a program in a loop on a terminal of its own.
fn looped(program: &Command, args: &[&str]) -> (Program, Ours) {
    let folder = tempfile::tempdir().expect("a folder");
    let Streams { input, ours, .. } = Streams::new(Kind::Terminal, true, folder.path(), &[]).expect("a terminal");
    let mut shell = command("setsid");
    shell.args(["--ctty", "--wait", "bash", "-c", LOOP, "bash"]);
    shell.arg(program.as_std().get_program()).args(program.as_std().get_args()).args(args);
    (Program::start_with_input("a loop", &mut shell, input), ours)
}

fn signal(child: &Child, name: &str) {
    let process = child.id().expect("it runs").to_string();
    let sent = std::process::Command::new("kill").args([&format!("-{name}"), &process]).status();
    assert!(sent.is_ok_and(|sent| sent.success()));
}

#[tokio::test(flavor = "multi_thread")]
async fn ctrl_c_ends_a_shell_loop_around_connect_and_resets_the_stream() {
    let world = World::start().await;
    let (target, mut resets) = held().await;
    let _device = world.device("lamp-1", &[("held", target.address)]).await;
    let (mut shell, mut terminal) = looped(&world.client(), &["connect", "lamp-1", "held"]);
    shell.line("what the service says", |line| (line == "open").then_some(())).await;
    terminal.type_keys(CTRL_C).expect("the terminal is there");
    shell.ended().await;
    assert!(!shell.lines().iter().any(|line| line.starts_with("ended")), "the loop went on: {:?}", shell.lines());
    assert_eq!(resets.recv().await, Some(true), "the target sees a reset");
}

#[tokio::test(flavor = "multi_thread")]
async fn ctrl_c_ends_a_shell_loop_around_forward_and_resets_its_connections() {
    let world = World::start().await;
    let (target, mut resets) = held().await;
    let _device = world.device("lamp-1", &[("held", target.address)]).await;
    let (mut shell, mut terminal) = looped(&world.client(), &["forward", "--json", "lamp-1", "0:held"]);
    let address =
        |line: &str| serde_json::from_str::<serde_json::Value>(line).ok()?["local"].as_str()?.parse::<std::net::SocketAddr>().ok();
    let mut local = TcpStream::connect(shell.line("where it listens", address).await).await.expect("it listens");
    local.read_exact(&mut [0; 5]).await.expect("what the service says");
    terminal.type_keys(CTRL_C).expect("the terminal is there");
    shell.ended().await;
    assert!(!shell.lines().iter().any(|line| line.starts_with("ended")), "the loop went on: {:?}", shell.lines());
    assert_eq!(resets.recv().await, Some(true), "the target sees a reset");
    assert!(local.read(&mut [0]).await.is_err(), "so does the local program");
}

#[tokio::test(flavor = "multi_thread")]
async fn connect_ends_by_the_signal_that_it_received() {
    let world = World::start().await;
    let (target, mut resets) = held().await;
    let _device = world.device("lamp-1", &[("held", target.address)]).await;
    for (name, number) in [("INT", 2), ("TERM", 15), ("HUP", 1)] {
        let mut connect = world.client();
        connect.args(["connect", "lamp-1", "held"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut child = connect.spawn().expect("moorline starts");
        let _input = child.stdin.take();
        child.stdout.as_mut().expect("it is piped").read_exact(&mut [0; 5]).await.expect("what the service says");
        signal(&child, name);
        let status = timeout(WITHIN, child.wait_with_output()).await.expect("in time").expect("a child is waited for");
        assert_eq!((status.status.signal(), status.stderr.as_slice()), (Some(number), &b""[..]), "{name}");
        assert_eq!(resets.recv().await, Some(true), "the target sees a reset after {name}");
    }
}

/// socat ends its program by SIGTERM once both sides have ended, whether or not the program has passed everything on.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_sent_before_the_end_of_input_arrives_although_sigterm_follows() {
    const SIZE: usize = 200_000;
    let world = World::start().await;
    let (read, is_read) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
    let target = Target::start({
        let (read, is_read) = (Arc::clone(&read), Arc::clone(&is_read));
        move |mut tcp| {
            let (read, is_read) = (Arc::clone(&read), Arc::clone(&is_read));
            async move {
                tcp.write_all(b"open\n").await.expect("it is taken");
                tcp.shutdown().await.expect("the connection is there");
                drop(read.acquire().await);
                let all = tokio::io::copy(&mut tcp, &mut tokio::io::sink()).await.expect("no reset");
                assert_eq!(all, SIZE as u64);
                is_read.add_permits(1);
            }
        }
    })
    .await;
    let _device = world.device("lamp-1", &[("held", target.address)]).await;
    let mut connect = world.client();
    connect.args(["connect", "lamp-1", "held"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = connect.spawn().expect("moorline starts");
    child.stdout.as_mut().expect("it is piped").read_exact(&mut [0; 5]).await.expect("what the service says");
    let mut input = child.stdin.take().expect("it is piped");
    input.write_all(&vec![b'x'; SIZE]).await.expect("it is taken");
    drop(input);
    // The stream cannot finish before the target has read everything, and it reads only then.
    signal(&child, "TERM");
    read.add_permits(1);
    let ended = timeout(WITHIN, child.wait_with_output()).await.expect("in time").expect("a child is waited for");
    assert_eq!(ended.status.code(), Some(0), "{}", ended.status);
    drop(timeout(WITHIN, is_read.acquire()).await.expect("the target has everything"));
}
