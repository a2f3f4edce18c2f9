//! How streams end: who ends, how, with what in flight, and how fast it is read. A table lists what the TCP connection at the other side shows;
//! afterwards none of the three programs holds any resource of the streams.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::Duration;

use moorline_tests::link::{CutKind, Link, Plan};
use moorline_tests::patterns::pattern;
use moorline_tests::programs::Program;
use moorline_tests::targets::Target;
use moorline_tests::wire::{LegEvent, WireDevice, WireLeg, bearer};
use moorline_tests::world::World;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{interval, timeout};
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::tungstenite::Message;

const WITHIN: Duration = Duration::from_secs(60);
/// A slow reader starts once the other side has ended, or after this while the other side is stuck.
const STUCK: Duration = Duration::from_millis(500);
const MIB: usize = 1 << 20;

type Leg = WireLeg<TlsStream<TcpStream>>;

/// What the TCP connection at the other side shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// Every byte, and then the end.
    End,
    /// Some of the bytes, and then a reset.
    Reset,
}

/// How a program with a TCP connection ends it, and what the other side shows.
const BY_TCP: &[(ByTcp, Outcome)] = &[(ByTcp::Fin, Outcome::End), (ByTcp::Rst, Outcome::Reset)];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ByTcp {
    Fin,
    Rst,
}

/// How a scripted end ends its leg, and what the other side shows.
const BY_LEG: &[(ByLeg, Outcome)] = &[
    (ByLeg::End, Outcome::End),
    (ByLeg::Close(Some(1000)), Outcome::End), // a simple client that has finished
    (ByLeg::Close(None), Outcome::End),
    (ByLeg::Close(Some(4001)), Outcome::Reset),
    (ByLeg::Close(Some(1001)), Outcome::Reset), // a browser leaving the page
    (ByLeg::Close(Some(3000)), Outcome::Reset),
    (ByLeg::Vanish(CutKind::End), Outcome::Reset),
    (ByLeg::Vanish(CutKind::Reset), Outcome::Reset),
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ByLeg {
    End,
    Close(Option<u16>),
    Vanish(CutKind),
}

/// Bytes that were sent before the end, and how fast the other side reads them.
const FLIGHTS: &[(usize, Reader)] = &[(0, Reader::Quick), (MIB, Reader::Quick), (MIB, Reader::Slow)];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reader {
    Quick,
    Slow,
}

/// Reads a TCP connection to its end, then ends it too.
async fn observe(mut tcp: TcpStream, seed: u64, expected: usize, reader: Reader, ended: oneshot::Receiver<()>) -> Outcome {
    if reader == Reader::Slow {
        timeout(STUCK, ended).await.ok();
    }
    let mut buffer = vec![0; if reader == Reader::Slow { 4 << 10 } else { 64 << 10 }];
    let mut received = 0;
    loop {
        match tcp.read(&mut buffer).await {
            Ok(0) => break,
            Ok(count) => {
                assert!(buffer[..count] == pattern(seed, received as u64, count), "stream {seed}: wrong bytes after {received}");
                received += count;
            }
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::ConnectionReset);
                return Outcome::Reset;
            }
        }
    }
    assert_eq!(received, expected, "stream {seed}: a truncated transfer looks like a finished one");
    tcp.shutdown().await.ok();
    Outcome::End
}

async fn end_tcp(mut tcp: TcpStream, how: ByTcp, sent: Vec<u8>, ended: oneshot::Sender<()>) {
    tcp.write_all(&sent).await.expect("the stream accepts bytes");
    match how {
        ByTcp::Fin => {
            tcp.shutdown().await.expect("the direction is half-closed");
            ended.send(()).ok();
            assert_eq!(tcp.read(&mut [0; 1]).await.expect("the other direction ends by itself"), 0);
        }
        ByTcp::Rst => {
            tcp.set_zero_linger().expect("a socket of this machine");
            drop(tcp);
            ended.send(()).ok();
        }
    }
}

async fn end_leg(mut leg: Leg, how: ByLeg, sent: Vec<u8>, ended: oneshot::Sender<()>) {
    for piece in sent.chunks(64 << 10) {
        leg.send_bytes(piece.to_vec()).await;
    }
    match how {
        ByLeg::End => {
            leg.end().await;
            ended.send(()).ok();
            leg.ended().await;
            assert_eq!(leg.closed().await, 1000);
        }
        ByLeg::Close(code) => {
            match code {
                Some(code) => leg.close(code).await,
                None => leg.send(Message::Close(None)).await,
            }
            ended.send(()).ok();
            assert_eq!(leg.closed().await, code.unwrap_or(1000), "the Close is answered");
        }
        ByLeg::Vanish(kind) => {
            if kind == CutKind::Reset {
                leg.socket.get_ref().get_ref().0.set_zero_linger().expect("a socket of this machine");
            }
            drop(leg);
            ended.send(()).ok();
        }
    }
}

/// A target that hands over its connections.
async fn open_target() -> (Target, mpsc::Receiver<TcpStream>) {
    let (hand, handed) = mpsc::channel(64);
    let target = Target::start(move |tcp| {
        let hand = hand.clone();
        async move { hand.send(tcp).await.expect("the scenario runs") }
    });
    (target.await, handed)
}

/// Both ends of a stream through a forward and an agent, after one byte was sent in each direction.
async fn pair(local: SocketAddr, targets: &mut mpsc::Receiver<TcpStream>) -> (TcpStream, TcpStream) {
    let open = async {
        let mut caller = TcpStream::connect(local).await.expect("the forward listens");
        let mut target = targets.recv().await.expect("the target serves");
        caller.write_u8(1).await.expect("the stream accepts bytes");
        target.read_u8().await.expect("the byte arrives");
        target.write_u8(1).await.expect("the stream accepts bytes");
        caller.read_u8().await.expect("the byte arrives");
        (caller, target)
    };
    timeout(WITHIN, open).await.expect("in time")
}

/// A stream to a scripted device: the device's leg, and the TCP connection at the forward.
async fn device_leg(world: &World, local: SocketAddr, device: &mut WireDevice<TlsStream<TcpStream>>) -> (Leg, TcpStream) {
    let caller = TcpStream::connect(local).await.expect("the forward listens");
    let offer = device.offer().await;
    device.accept(offer.stream).await;
    let mut leg = world.join(offer.url.as_str(), &offer.token).await;
    leg.opened().await;
    (leg, caller)
}

/// A stream of a scripted caller: the caller's leg, and the TCP connection at the target.
async fn caller_leg(world: &World, targets: &mut mpsc::Receiver<TcpStream>) -> (Leg, TcpStream) {
    let authorization = bearer(&world.token());
    let headers = [("authorization", authorization.as_str())];
    let join = WireLeg::join(world.dial().await, "localhost", "/v1/devices/lamp-1/connect/data", &headers);
    let mut leg = join.await.expect("nothing refuses the stream");
    leg.opened().await;
    (leg, timeout(WITHIN, targets.recv()).await.expect("in time").expect("the target serves"))
}

/// Legs that two forwards keep ready, which come and go.
const READY_LEGS: usize = 2;

/// The open descriptors of a process by kind. The database is left out: its connections are opened on demand.
fn descriptors(program: &Program) -> BTreeMap<String, usize> {
    let mut kinds = BTreeMap::new();
    for entry in std::fs::read_dir(format!("/proc/{}/fd", program.id())).expect("it runs").flatten() {
        let what = std::fs::read_link(entry.path()).map(|what| what.display().to_string()).unwrap_or_default();
        if what.contains("moorline.db") {
            continue;
        }
        let kind = what.split(':').next().unwrap_or_default().to_owned(); // "socket:[123]", or a path
        *kinds.entry(kind).or_default() += 1;
    }
    kinds
}

/// Waits until each process holds no more descriptors than before, but for a leg that is kept ready, and the relay has no stream.
async fn nothing_is_left(world: &World, before: &[(&str, &Program, BTreeMap<String, usize>)]) {
    // real time: no event says when another process has closed a descriptor
    let mut looks = interval(Duration::from_millis(50));
    let mut last = String::new();
    let gone = async {
        loop {
            looks.tick().await;
            let streams = world.request("GET", "/v1/streams", "").await.1;
            let more: Vec<_> = before.iter().map(|(name, program, held)| (name, descriptors(program), held)).collect();
            let no_more = |now: &BTreeMap<String, usize>, held: &BTreeMap<String, usize>| {
                now.iter().all(|(kind, &count)| {
                    let ready = if kind == "socket" { READY_LEGS } else { 0 };
                    count <= held.get(kind).copied().unwrap_or_default() + ready
                })
            };
            if streams == json!({"streams": []}) && more.iter().all(|(_, now, held)| no_more(now, held)) {
                return;
            }
            last = format!("{streams} {more:?}");
        }
    };
    let in_time = timeout(Duration::from_secs(20), gone).await;
    assert!(in_time.is_ok(), "something is left: {last}");
}

/// Runs one case in the background and compares the outcome with the table.
fn play<E: Future<Output = ()> + Send + 'static>(
    playing: &mut JoinSet<()>,
    what: String,
    expected: Outcome,
    ends: E,
    sees: impl Future<Output = Outcome> + Send + 'static,
) {
    playing.spawn(async move {
        let both = async { tokio::join!(ends, sees).1 };
        let shown = timeout(WITHIN, both).await.unwrap_or_else(|_| panic!("{what}: did not end"));
        assert_eq!(shown, expected, "{what}");
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn every_way_to_end_a_stream_reaches_the_other_side_as_documented() {
    let world = World::start_with("idle_leg = '500ms'\n").await;
    let (target, mut targets) = open_target().await;
    let device = world.device("lamp-1", &[("data", target.address)]).await;
    let forward = world.forward("lamp-1", &["data"]).await;
    let mut wire = world.wire_device("lamp-2").await;
    let wired = world.forward("lamp-2", &["ssh"]).await;
    let programs = [("relay", &world.relay), ("agent", &device.agent), ("forward", &forward.program), ("forward", &wired.program)];
    let before = programs.map(|(name, program)| (name, program, descriptors(program)));

    let (mut playing, mut seed) = (JoinSet::new(), 0);
    for &(size, reader) in FLIGHTS {
        for &(how, expected) in BY_TCP {
            for by in ["caller", "device"] {
                seed += 1;
                let (caller, target) = pair(forward.local[0], &mut targets).await;
                let (ender, other) = if by == "caller" { (caller, target) } else { (target, caller) };
                let (ended, has_ended) = oneshot::channel();
                let ends = end_tcp(ender, how, pattern(seed, 0, size), ended);
                let what = format!("{by} {how:?} behind {size} bytes, {reader:?}");
                play(&mut playing, what, expected, ends, observe(other, seed, size, reader, has_ended));
            }
        }
        for &(how, expected) in BY_LEG {
            for by in ["caller", "device"] {
                seed += 1;
                let (leg, other) = match by {
                    "caller" => caller_leg(&world, &mut targets).await,
                    _ => device_leg(&world, wired.local[0], &mut wire).await,
                };
                let (ended, has_ended) = oneshot::channel();
                let ends = end_leg(leg, how, pattern(seed, 0, size), ended);
                let what = format!("{by}'s leg {how:?} behind {size} bytes, {reader:?}");
                play(&mut playing, what, expected, ends, observe(other, seed, size, reader, has_ended));
            }
        }
    }
    playing.join_all().await;
    nothing_is_left(&world, &before).await;
}

/// How a program, or its network, is lost while it has streams.
#[derive(Clone, Copy, Debug)]
enum Loss {
    Killed,
    Cut(CutKind),
}

/// Streams with bytes in flight whose forward or agent is lost: both of their TCP connections show a reset.
#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_is_killed_or_cut_off_resets_both_ends_and_leaves_nothing() {
    let world = World::start().await;
    let before = [("relay", &world.relay, descriptors(&world.relay))];
    let mut seed = 100;
    for loss in [Loss::Killed, Loss::Cut(CutKind::End), Loss::Cut(CutKind::Reset)] {
        for whose in ["caller", "device"] {
            let networks = [Link::start(world.address, |_| Plan::default()).await, Link::start(world.address, |_| Plan::default()).await];
            let (target, mut targets) = open_target().await;
            let id = format!("lamp-{seed}");
            let device = world.device_by(networks[0].address.port(), &id, &[("data", target.address)]).await;
            let forward = world.forward_by(networks[1].address.port(), &id, &["data"]).await;

            let (mut sees, mut ends) = (JoinSet::new(), Vec::new());
            for (caller_bytes, target_bytes) in [(0, 0), (MIB, 0), (0, MIB)] {
                let (mut caller, mut target) = pair(forward.local[0], &mut targets).await;
                let sent = timeout(STUCK, async {
                    caller.write_all(&pattern(seed, 0, caller_bytes)).await.expect("the stream accepts bytes");
                    target.write_all(&pattern(seed + 1, 0, target_bytes)).await.expect("the stream accepts bytes");
                });
                sent.await.ok(); // bytes that are stuck are in flight too
                for (tcp, seed, expected) in [(target, seed, caller_bytes), (caller, seed + 1, target_bytes)] {
                    let (ended, has_ended) = oneshot::channel();
                    ends.push(ended);
                    sees.spawn(observe(tcp, seed, expected, Reader::Slow, has_ended));
                }
                seed += 2;
            }
            match (loss, whose) {
                (Loss::Killed, "caller") => forward.program.signal("KILL"),
                (Loss::Killed, _) => device.agent.signal("KILL"),
                (Loss::Cut(kind), "caller") => networks[1].cut(kind),
                (Loss::Cut(kind), _) => networks[0].cut(kind),
            }
            ends.into_iter().for_each(|ended| ended.send(()).unwrap_or_default());
            let shown = timeout(WITHIN, sees.join_all()).await.unwrap_or_else(|_| panic!("the {whose}'s side {loss:?}: no outcome"));
            assert_eq!(shown, [Outcome::Reset; 6], "the {whose}'s side {loss:?}");
        }
    }
    nothing_is_left(&world, &before).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn closing_with_1000_before_the_other_end_has_finished_resets_it() {
    let world = World::start().await;
    let (target, mut targets) = open_target().await;
    let _device = world.device("lamp-1", &[("data", target.address)]).await;
    let (mut leg, mut target_tcp) = caller_leg(&world, &mut targets).await;
    let (written, done) = tokio::join!(
        // More than all buffers on the path can hold.
        async { target_tcp.write_all(&pattern(1, 0, 64 * MIB)).await },
        async {
            assert!(matches!(leg.next().await, LegEvent::Bytes(_)));
            leg.close(1000).await;
            leg.closed().await
        }
    );
    let kind = written.expect_err("nobody reads the rest").kind();
    assert!(matches!(kind, ErrorKind::ConnectionReset | ErrorKind::BrokenPipe), "{kind}");
    assert_eq!(done, 1000, "the Close was answered with its code");
}
