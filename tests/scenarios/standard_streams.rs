//! `moorline connect` with standard input and output of every kind that parents give, blocking or not: whatever they are, all bytes arrive, both
//! directions end by themselves, and the exit code tells.

use std::process::Stdio;
use std::time::Duration;

use moorline_tests::patterns::pattern;
use moorline_tests::programs::{Done, Program, command, run};
use moorline_tests::streams::{Kind, Streams};
use moorline_tests::targets::Target;
use moorline_tests::world::World;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::timeout;

const WITHIN: Duration = Duration::from_secs(60);
/// More than a pipe, a socket and the legs' buffers hold.
const MANY: usize = 4 << 20;
/// What a terminal holds of a line, or less.
const FEW: usize = 2_000;

const KINDS: [Kind; 6] = [Kind::Pipes, Kind::Sockets, Kind::OneSocket, Kind::Tcp, Kind::Terminal, Kind::Files];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum EndsFirst {
    Caller,
    Device,
}

/// A target that sends `size` bytes and takes what comes, and sends that on; one of them first, until its end.
async fn target(first: EndsFirst, size: usize) -> (Target, mpsc::Receiver<Vec<u8>>) {
    let (taken, takes) = mpsc::channel(1);
    let target = Target::start(move |mut tcp| {
        let taken = taken.clone();
        async move {
            let mut received = Vec::new();
            if first == EndsFirst::Caller {
                tcp.read_to_end(&mut received).await.expect("the caller ends its direction");
            }
            tcp.write_all(&text(2, size)).await.expect("everything is taken");
            tcp.shutdown().await.expect("the connection is there");
            tcp.read_to_end(&mut received).await.expect("the caller ends its direction");
            taken.send(received).await.ok();
        }
    })
    .await;
    (target, takes)
}

async fn taken(takes: &mut mpsc::Receiver<Vec<u8>>) -> Vec<u8> {
    timeout(WITHIN, takes.recv()).await.expect("the target was not reset").expect("the target runs")
}

/// Lines of hexadecimal digits, which a terminal passes on as they are.
fn text(seed: u64, size: usize) -> Vec<u8> {
    let digits = pattern(seed, 0, size).into_iter().enumerate();
    digits.map(|(at, byte)| if at % 64 == 63 || at + 1 == size { b'\n' } else { b"0123456789abcdef"[usize::from(byte % 16)] }).collect()
}

async fn carries_everything(
    world: &World,
    service: &str,
    kind: Kind,
    is_blocking: bool,
    first: EndsFirst,
    takes: &mut mpsc::Receiver<Vec<u8>>,
) {
    let case = format!("{kind:?}, blocking: {is_blocking}, {first:?} ends first");
    let size = if kind == Kind::Terminal { FEW } else { MANY };
    let folder = tempfile::tempdir().expect("a folder");
    let Streams { input, output, mut ours } = Streams::new(kind, is_blocking, folder.path(), &text(1, size)).expect("streams are made");
    let mut connect = world.client();
    connect.args(["connect", "lamp-1", service]).stdin(input).stdout(output).stderr(Stdio::piped()).kill_on_drop(true);
    let child = connect.spawn().expect("moorline starts");
    drop(connect); // it holds the program's ends

    let exchange = tokio::task::spawn_blocking(move || {
        if first == EndsFirst::Device && kind != Kind::Files {
            let received = ours.receive(size)?;
            ours.send(&text(1, size))?;
            return Ok((received, ours));
        }
        ours.send(&text(1, size))?;
        let received = if kind == Kind::Files { Vec::new() } else { ours.receive(size)? };
        Ok::<_, std::io::Error>((received, ours))
    });
    let exchanged = timeout(WITHIN, exchange).await.unwrap_or_else(|_| panic!("no end is passed on: {case}"));
    let (mut received, mut ours) = exchanged.expect("it does not panic").unwrap_or_else(|error| panic!("{case}: {error}"));
    let ended = timeout(WITHIN, child.wait_with_output()).await.unwrap_or_else(|_| panic!("it does not end: {case}"));
    let ended = ended.expect("a child is waited for");
    assert!(ended.status.success(), "{case}: {} {}", ended.status, String::from_utf8_lossy(&ended.stderr));
    if kind == Kind::Files {
        received = ours.receive(size).unwrap_or_else(|error| panic!("{case}: {error}"));
    }
    assert!(received == text(2, size), "{case}: what the device sent");
    assert!(taken(takes).await == text(1, size), "{case}: what the caller sent");
}

async fn every_kind(first: EndsFirst) {
    let world = World::start().await;
    let (many, mut many_takes) = target(first, MANY).await;
    let (few, mut few_takes) = target(first, FEW).await;
    let _device = world.device("lamp-1", &[("many", many.address), ("few", few.address)]).await;
    for kind in KINDS {
        for is_blocking in [true, false] {
            let (service, takes) = if kind == Kind::Terminal { ("few", &mut few_takes) } else { ("many", &mut many_takes) };
            carries_everything(&world, service, kind, is_blocking, first, takes).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_standard_streams_carries_everything_when_the_caller_ends_first() {
    every_kind(EndsFirst::Caller).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_standard_streams_carries_everything_when_the_device_ends_first() {
    every_kind(EndsFirst::Device).await;
}

/// A shell's redirections for standard input and output, with the program as "$@".
async fn redirected(world: &World, redirections: &str, service: &str) -> Done {
    let mut shell = command("sh");
    let connect = world.client();
    shell.args(["-c", &format!("exec \"$@\" {redirections}"), "sh"]).arg(connect.as_std().get_program()).args(connect.as_std().get_args());
    run(shell.args(["connect", "lamp-1", service]), WITHIN).await
}

/// OpenSSH opens /dev/null in the place of a closed descriptor, and so does every Rust program: nothing else may take its number.
#[tokio::test(flavor = "multi_thread")]
async fn a_closed_descriptor_is_as_the_null_device() {
    let world = World::start().await;
    let (target, mut takes) = target(EndsFirst::Caller, FEW).await;
    let _device = world.device("lamp-1", &[("few", target.address)]).await;
    for (redirections, output) in
        [("</dev/null", text(2, FEW)), ("<&-", text(2, FEW)), (">/dev/null", Vec::new()), (">&-", Vec::new()), ("<&- >&- 2>&-", Vec::new())]
    {
        let done = redirected(&world, redirections, "few").await.success();
        assert!(done.out == output, "{redirections}");
        assert_eq!(taken(&mut takes).await, b"", "{redirections}: nothing was sent");
    }
    let done = redirected(&world, ">/dev/full", "few").await;
    assert_eq!(done.code, Some(1));
    assert!(done.err.contains("cannot write to standard output") && done.err.contains("No space left"), "{}", done.err);
}

/// socat gives one socket for both: what closing standard output does not end, has to be shut down. And it ends the program by SIGTERM as soon as
/// both sides have ended.
#[tokio::test(flavor = "multi_thread")]
async fn socat_carries_connections_whichever_side_ends_first() {
    const SIZE: usize = 1 << 20;
    let world = World::start().await;
    for first in [EndsFirst::Caller, EndsFirst::Device] {
        let (target, mut takes) = target(first, SIZE).await;
        let id = format!("lamp-{first:?}").to_lowercase();
        let _device = world.device(&id, &[("many", target.address)]).await;
        let connect = world.client();
        let words = connect.as_std().get_args().map(|word| word.to_str().expect("a path in UTF-8"));
        let words: Vec<&str> = connect.as_std().get_program().to_str().into_iter().chain(words).chain(["connect", &id, "many"]).collect();
        let mut socat = command("socat");
        // Twice -d for the line with the port; -t for how long the other direction may go on once one has ended.
        socat.args(["-d", "-d", "-t", "60", "TCP-LISTEN:0,bind=127.0.0.1,fork"]).arg(format!("EXEC:{}", words.join(" ")));
        let socat = Program::start("socat", &mut socat);
        let port = socat.line("its port", |line| line.split_once("listening on ")?.1.rsplit_once(':')?.1.parse::<u16>().ok()).await;

        let exchange = async {
            let mut tcp = TcpStream::connect(("127.0.0.1", port)).await?;
            let mut received = Vec::new();
            if first == EndsFirst::Device {
                tcp.read_to_end(&mut received).await?;
            }
            tcp.write_all(&text(1, SIZE)).await?;
            tcp.shutdown().await?;
            tcp.read_to_end(&mut received).await?;
            Ok::<_, std::io::Error>(received)
        };
        let received = timeout(WITHIN, exchange).await.unwrap_or_else(|_| panic!("no end is passed on: {first:?}")).expect("no reset");
        assert!(received == text(2, SIZE), "{first:?}: {} bytes", received.len());
        assert!(taken(&mut takes).await == text(1, SIZE), "{first:?}");
    }
}
