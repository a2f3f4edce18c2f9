//! Faulty networks between the real programs: a stream arrives whole or both ends see a reset, and no byte is misdirected.

use std::io::ErrorKind;
use std::time::Duration;

use moorline_tests::link::{Chance, CutKind, Direction, Link, Plan};
use moorline_tests::patterns::{pattern, pieces};
use moorline_tests::targets::Target;
use moorline_tests::world::World;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;

const FROM_CALLER: u64 = 1_000;
const FROM_DEVICE: u64 = 2_000;
const WITHIN: Duration = Duration::from_secs(180);
/// The scaled-down handshake deadline: a device waits this long for a caller that may rejoin.
const SHORT_DEADLINE: &str = "deadline = '6s'\n";

/// What one end of a stream observed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seen {
    Whole,
    Reset,
    /// The target was dialled and received no byte: the stream was not opened.
    NotOpened,
}

/// Sends the whole pattern; false if the connection was reset.
async fn send(mut to: OwnedWriteHalf, seed: u64, total: usize) -> bool {
    let mut from = 0;
    for piece in pieces(seed, total) {
        if let Err(error) = to.write_all(&pattern(seed, from, piece)).await {
            assert!(matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe), "{error}");
            return false;
        }
        from += piece as u64;
    }
    to.shutdown().await.is_ok()
}

/// Reads to the end and checks every byte; returns how many bytes were received, and whether the connection was reset.
async fn receive(from: &mut OwnedReadHalf, seed: u64) -> (usize, bool) {
    let (mut received, mut buffer) = (0, vec![0; 60_000]);
    loop {
        match from.read(&mut buffer).await {
            Ok(0) => return (received, false),
            Ok(count) => {
                assert!(buffer[..count] == pattern(seed, received as u64, count), "stream {seed}: wrong bytes after {received}");
                received += count;
            }
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::ConnectionReset);
                return (received, true);
            }
        }
    }
}

/// An end of the connection without all bytes is a failure, unless the kernel reported a reset to either half.
async fn exchange(reads: &mut OwnedReadHalf, writes: OwnedWriteHalf, sent_seed: u64, received_seed: u64, total: usize) -> Seen {
    let (sent_all, (received, reset)) = tokio::join!(send(writes, sent_seed, total), receive(reads, received_seed));
    assert!(received <= total, "stream {received_seed}: more bytes than were sent");
    match (received == total && !reset, reset || !sent_all) {
        (true, _) => Seen::Whole,
        (false, true) => Seen::Reset,
        (false, false) => panic!("stream {received_seed}: a clean end after {received} of {total} bytes"),
    }
}

async fn device_side(tcp: TcpStream, total: usize) -> Seen {
    let (mut reads, writes) = tcp.into_split();
    let Ok(number) = reads.read_u8().await else { return Seen::NotOpened };
    exchange(&mut reads, writes, FROM_DEVICE + u64::from(number), FROM_CALLER + u64::from(number), total).await
}

async fn caller_side(tcp: TcpStream, number: u64, total: usize) -> Seen {
    let (mut reads, mut writes) = tcp.into_split();
    if writes.write_u8(u8::try_from(number).expect("few streams")).await.is_err() {
        return Seen::Reset;
    }
    exchange(&mut reads, writes, FROM_CALLER + number, FROM_DEVICE + number, total).await
}

/// What the ends of all streams observed through two faulty networks.
struct Observed {
    /// The callers' ends.
    callers: Vec<Seen>,
    /// The device's ends.
    targets: Vec<Seen>,
    /// Connections that were cut.
    cuts: usize,
}

async fn run_streams<D, C>(times: &str, device_network: D, caller_network: C, streams: u64, total: usize) -> Observed
where
    D: Fn(u64) -> Plan + Send + 'static,
    C: Fn(u64) -> Plan + Send + 'static,
{
    let world = World::start_with(times).await;
    let (observed, mut seen) = watch::channel((0, Vec::new()));
    let target = Target::start(move |tcp| {
        let observed = observed.clone();
        async move {
            observed.send_modify(|(begun, _)| *begun += 1);
            let saw = tokio::spawn(device_side(tcp, total)).await;
            observed.send_modify(|(_, ended)| ended.push(saw.ok()));
        }
    })
    .await;
    let to_device = Link::start(world.address, device_network).await;
    let to_caller = Link::start(world.address, caller_network).await;
    let _device = world.device_by(to_device.address.port(), "lamp-1", &[("data", target.address)]).await;
    let forward = world.forward_by(to_caller.address.port(), "lamp-1", &["data"]).await;
    let local = forward.local[0];
    let mut callers = JoinSet::new();
    for number in 0..streams {
        callers.spawn(async move {
            let tcp = TcpStream::connect(local).await.expect("the forward listens");
            caller_side(tcp, number, total).await
        });
    }
    let callers = timeout(WITHIN, callers.join_all()).await.expect("every caller's stream ends");
    let all = seen.wait_for(|(begun, ended)| *begun == ended.len());
    let targets = timeout(WITHIN, all).await.expect("every target's stream ends").expect("the target serves").1.clone();
    println!("{} legs of the device and {} of the caller were cut", to_device.cuts(), to_caller.cuts());
    let targets = targets.into_iter().map(|saw| saw.expect("no target failed an assertion")).collect();
    Observed { callers, targets, cuts: usize::try_from(to_device.cuts() + to_caller.cuts()).expect("few cuts") }
}

/// Cuts each connection somewhere in its first `within` bytes, except the first one, which is a control channel or a login.
fn cut_somewhere(chance: Chance, network: u64, within: u64) -> impl Fn(u64) -> Plan + Send + 'static {
    move |number| {
        let direction = if chance.number(network, 3 * number, 2) == 0 { Direction::Up } else { Direction::Down };
        let kind = if chance.number(network, 3 * number + 1, 2) == 0 { CutKind::Reset } else { CutKind::End };
        let at = chance.number(network, 3 * number + 2, within);
        Plan { cut: (number > 0).then_some((direction, at, kind)), ..Plan::default() }
    }
}

fn count(seen: &[Seen], of: Seen) -> usize {
    seen.iter().filter(|&&saw| saw == of).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_whose_legs_are_cut_at_any_byte_are_whole_or_reset() {
    const TOTAL: usize = 256 << 10;
    let chance = Chance::new();
    let within = (TOTAL + TOTAL / 2) as u64;
    let Observed { callers, targets, .. } =
        run_streams("", cut_somewhere(chance, 1, within), cut_somewhere(chance, 2, within), 64, TOTAL).await;
    assert_eq!(callers.len(), 64);
    let saw = |of| (count(&callers, of), count(&targets, of));
    println!("whole {:?}, reset {:?}, not opened {:?}", saw(Seen::Whole), saw(Seen::Reset), saw(Seen::NotOpened));
    assert!(saw(Seen::Reset).0 > 0 && saw(Seen::Reset).1 > 0, "nothing was cut");
}

/// About what TLS (a resumed session), the request and `opened` take in either direction.
const HANDSHAKE_BYTES: u64 = 1_000;

/// Cuts the first sixteen legs somewhere in their handshake, and none of the later ones.
fn cut_first_handshakes(chance: Chance, network: u64) -> impl Fn(u64) -> Plan + Send + 'static {
    let cut = cut_somewhere(chance, network, HANDSHAKE_BYTES);
    move |number| if number <= 16 { cut(number) } else { Plan::default() }
}

/// Returns how many of 32 streams were whole, and how many were reset. There must be a cut for each reset.
fn whole_and_reset(observed: &Observed) -> (usize, usize) {
    let (whole, reset) = (count(&observed.callers, Seen::Whole), count(&observed.callers, Seen::Reset));
    println!("whole {whole}, reset {reset}, cut {}", observed.cuts);
    assert_eq!((observed.callers.len(), whole + reset), (32, 32));
    assert!(observed.cuts >= 16 && reset <= observed.cuts, "streams whose legs are not cut are whole");
    (whole, reset)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_devices_handshake_that_is_cut_at_any_byte_is_retried() {
    let cut = cut_first_handshakes(Chance::new(), 1);
    let observed = run_streams(SHORT_DEADLINE, cut, |_| Plan::default(), 32, 10_000).await;
    let (whole, _) = whole_and_reset(&observed);
    assert!(whole > 18, "{whole} streams are whole, of which 16 had no leg that was cut");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_callers_request_that_is_cut_at_any_byte_is_retried_and_a_cut_in_tls_is_reported() {
    let cut = cut_first_handshakes(Chance::new(), 2);
    let observed = run_streams(SHORT_DEADLINE, |_| Plan::default(), cut, 32, 10_000).await;
    let (whole, _) = whole_and_reset(&observed);
    assert!(whole > 18, "{whole} streams are whole, of which 16 had no leg that was cut");
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_whose_every_leg_is_cut_in_its_handshake_or_soon_after_it_are_reset() {
    let chance = Chance::new();
    let observed = run_streams(SHORT_DEADLINE, cut_somewhere(chance, 1, 4_000), cut_somewhere(chance, 2, 4_000), 32, 10_000).await;
    println!("whole {}, cut {}", count(&observed.callers, Seen::Whole), observed.cuts);
    assert_eq!(observed.callers.len(), 32);
    assert!(observed.cuts >= 31 && count(&observed.callers, Seen::Whole) <= 1, "each leg but the first is cut");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_network_that_forwards_one_byte_at_a_time_loses_nothing() {
    let trickle = |_| Plan { piece: Some(1), ..Plan::default() };
    let Observed { callers, targets, .. } = run_streams("", trickle, trickle, 4, 20_000).await;
    assert_eq!((callers, targets), (vec![Seen::Whole; 4], vec![Seen::Whole; 4]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_network_that_stalls_loses_nothing() {
    let chance = Chance::new();
    let stalls = move |number| {
        let direction = if chance.number(3, 2 * number, 2) == 0 { Direction::Up } else { Direction::Down };
        let at = if number == 0 { 0 } else { chance.number(3, 2 * number + 1, 200_000) };
        Plan {
            delay: Duration::from_millis(3),
            rate: Some(1 << 20),
            stall: Some((direction, at, Duration::from_secs(2))),
            ..Plan::default()
        }
    };
    let Observed { callers, targets, .. } = run_streams("", stalls, stalls, 16, 256 << 10).await;
    assert_eq!((callers, targets), (vec![Seen::Whole; 16], vec![Seen::Whole; 16]));
}
