//! How streams end that nobody ended whole, as one table: who had ended its direction, what was under way, and what died then. Wherever a direct
//! TCP connection would show the failure, the caller's exit code, its local connection and the service's connection show it.

use std::io;
use std::net::SocketAddr;
use std::process::Stdio;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::iter;
use moorline_tests::link::{CutKind, Link, Plan};
use moorline_tests::patterns::pattern;
use moorline_tests::targets::Target;
use moorline_tests::world::World;
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::TcpStream;
use tokio::process::Child;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

const WITHIN: Duration = Duration::from_secs(30);
/// The device's uplink in bytes per second, where something is to be under way.
const SLOW: u64 = 500_000;
const AT_ONCE: usize = 4;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    Caller,
    Device,
    Nobody,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum UnderWay {
    /// The service has everything that was sent so far.
    Nothing,
    /// Most is in buffers on the path, behind a slow link.
    Most,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Death {
    /// The service resets its connections.
    Service,
    /// The device's link is cut.
    Link,
    /// kill -9
    Agent,
    /// kill -9
    Relay,
}

type Case = (Ended, UnderWay, Death);

fn size(under_way: UnderWay) -> usize {
    if under_way == UnderWay::Nothing { 4 << 10 } else { 1 << 20 }
}

/// What a service saw of one connection at last.
#[derive(Debug)]
enum Seen {
    /// It has read enough.
    Enough,
    /// Its connection failed.
    Failed,
}

/// A service that says "open", ends its direction or not, and reads: it reports enough of it, and a failure, also one behind the end.
async fn service(ended: Ended, under_way: UnderWay, die: watch::Receiver<bool>) -> (Target, mpsc::Receiver<Seen>) {
    let (seen, sights) = mpsc::channel(8);
    let enough = if under_way == UnderWay::Nothing { size(under_way) } else { size(under_way) / 8 };
    let target = Target::start(move |mut tcp| {
        let (seen, mut die) = (seen.clone(), die.clone());
        async move {
            tcp.write_all(b"open\n").await.expect("the caller is there");
            if ended == Ended::Device {
                tcp.shutdown().await.expect("the caller is there");
            }
            let is_failed = tokio::select! {
                () = async { drop(die.wait_for(|die| *die).await) } => false,
                () = watch_out(&mut tcp, enough, &seen) => true,
            };
            tcp.set_zero_linger().expect("a socket of this machine");
            if is_failed {
                seen.send(Seen::Failed).await.ok();
            }
        }
    })
    .await;
    (target, sights)
}

/// Returns once the connection has failed.
async fn watch_out(tcp: &mut TcpStream, enough: usize, seen: &mpsc::Sender<Seen>) {
    let (mut buffer, mut all, mut is_told) = (vec![0; 16 << 10], 0, false);
    while let Ok(count) = tcp.read(&mut buffer).await {
        all += count;
        if all >= enough && !std::mem::replace(&mut is_told, true) {
            seen.send(Seen::Enough).await.ok();
        }
        if count == 0 {
            drop(tcp.ready(Interest::ERROR).await);
            return;
        }
    }
}

/// `moorline connect` that has sent everything; its standard input is open unless it has ended.
async fn connect(world: &World, case: Case) -> (Child, Option<tokio::process::ChildStdin>) {
    let (ended, under_way, _) = case;
    let mut connect = world.client();
    connect.args(["connect", "lamp-1", "data"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = connect.spawn().expect("moorline starts");
    child.stdout.as_mut().expect("it is piped").read_exact(&mut [0; 5]).await.expect("the service says open");
    let mut input = child.stdin.take().expect("it is piped");
    input.write_all(&pattern(1, 0, size(under_way))).await.expect("it is taken");
    (child, Some(input).filter(|_| ended != Ended::Caller))
}

/// A connection through `forward`, likewise.
async fn local(to: SocketAddr, case: Case) -> TcpStream {
    let (ended, under_way, _) = case;
    let mut tcp = TcpStream::connect(to).await.expect("the forward listens");
    tcp.read_exact(&mut [0; 5]).await.expect("the service says open");
    tcp.write_all(&pattern(2, 0, size(under_way))).await.expect("it is taken");
    if ended == Ended::Caller {
        tcp.shutdown().await.expect("the connection is there");
    }
    tcp
}

/// Reads what there is, and returns the error that the connection shows.
async fn failure_of(mut tcp: TcpStream) -> Option<io::Error> {
    if let Err(error) = tcp.read_to_end(&mut Vec::new()).await {
        return Some(error);
    }
    tcp.ready(Interest::ERROR).await.ok()?;
    tcp.take_error().ok().flatten()
}

/// Plays one case, and returns what was wrong.
async fn play(case: Case) -> Result<(), String> {
    let (ended, under_way, death) = case;
    let world = World::start().await;
    let (die, dying) = watch::channel(false);
    let (target, mut seen) = service(ended, under_way, dying).await;
    let rate = (under_way == UnderWay::Most).then_some(SLOW);
    let link = Link::start(world.address, move |_| Plan { rate, ..Plan::default() }).await;
    let device = world.device_by(link.address.port(), "lamp-1", &[("data", target.address)]).await;
    let forward = world.forward("lamp-1", &["data"]).await;
    let ((child, _input), local) = tokio::join!(connect(&world, case), local(forward.local[0], case));
    for _ in 0..2 {
        let Some(Seen::Enough) = seen.recv().await else { return Err("a service failed too early".to_owned()) };
    }
    match death {
        Death::Service => drop(die.send(true)),
        Death::Link => link.cut(CutKind::Reset),
        Death::Agent => device.agent.signal("KILL"),
        Death::Relay => world.relay.signal("KILL"),
    }
    let done = child.wait_with_output().await.map_err(|error| error.to_string())?;
    if done.status.success() {
        return Err("connect exits with 0".to_owned());
    }
    let error = failure_of(local).await.ok_or("the local connection shows nothing")?;
    // Linux calls a reset behind a FIN a broken pipe.
    if !matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe) {
        return Err(format!("the local connection shows {error}"));
    }
    for _ in 0..if death == Death::Service { 0 } else { 2 } {
        let Some(Seen::Failed) = seen.recv().await else { return Err("the service's connection shows nothing".to_owned()) };
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_did_not_finish_looks_finished_to_nobody() {
    let mut cases = Vec::new();
    for ended in [Ended::Caller, Ended::Device, Ended::Nobody] {
        for under_way in [UnderWay::Nothing, UnderWay::Most] {
            cases.extend([Death::Service, Death::Link, Death::Agent, Death::Relay].map(|death| (ended, under_way, death)));
        }
    }
    let played = iter(cases).map(|case| async move {
        let outcome = timeout(WITHIN, play(case)).await.unwrap_or_else(|_| Err("it hangs".to_owned()));
        outcome.err().map(|wrong| format!("{case:?}: {wrong}"))
    });
    let wrong: Vec<String> = played.buffer_unordered(AT_ONCE).filter_map(async |wrong| wrong).collect().await;
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
