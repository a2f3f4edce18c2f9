//! A faulty network between two real programs: a TCP proxy that delays, throttles, splits, stalls and cuts connections, by a plan for each, and
//! that cuts or freezes all of them when it is told to.
//!
//! Owns the faults only. What a cut must look like at either end is asserted by the scenarios.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

/// Pieces that are on a long line at once.
const LINE_PIECES: usize = 4_096;

/// How a connection is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CutKind {
    /// Both ends see a reset.
    Reset,
    /// Both ends see an orderly end of the connection, as when a middlebox shuts down: harder to notice, because it looks like the end of the data.
    End,
}

/// Which bytes a rule counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the end that dialled.
    Up,
    /// To the end that dialled.
    Down,
}

/// What happens to one connection. By default nothing does.
#[derive(Clone, Copy, Debug, Default)]
pub struct Plan {
    /// Delays each piece by this, and those behind it with it.
    pub delay: Duration,
    /// Makes it a long line: each piece takes this long, and none waits for the one before. Opening the connection costs a round trip more.
    pub latency: Duration,
    /// Bytes per second, in each direction.
    pub rate: Option<u64>,
    /// The largest piece that is forwarded at once.
    pub piece: Option<usize>,
    /// Cuts the connection after this many bytes in this direction.
    pub cut: Option<(Direction, u64, CutKind)>,
    /// Forwards nothing for this long, after this many bytes in this direction.
    pub stall: Option<(Direction, u64, Duration)>,
}

/// A proxy on a port of its own. Dropping it closes it and all of its connections.
#[derive(Debug)]
pub struct Link {
    /// Its listening address.
    pub address: SocketAddr,
    connections: Arc<AtomicU64>,
    cuts: Arc<AtomicU64>,
    orders: watch::Sender<Order>,
    _carrying: JoinSet<()>,
}

/// What happens to connections, whatever their plans are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    /// Nothing.
    Pass,
    /// Those that are open are cut.
    Cut(CutKind),
    /// Those that are open are cut, and so is every later one.
    CutAll(CutKind),
    /// Those that are open forward nothing any more. Neither end is told.
    Freeze,
}

impl Link {
    /// Forwards every connection to `to`. `plan` returns the faults of each by its number, from 0.
    pub async fn start(to: SocketAddr, plan: impl Fn(u64) -> Plan + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let (connections, cuts) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let orders = watch::Sender::new(Order::Pass);
        let mut carrying = JoinSet::new();
        let (accepted, counted, ordered) = (Arc::clone(&connections), Arc::clone(&cuts), orders.clone());
        carrying.spawn(async move {
            let mut open = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                let number = accepted.fetch_add(1, Ordering::Relaxed);
                open.spawn(carry(client, to, plan(number), ordered.subscribe(), Arc::clone(&counted)));
            }
        });
        Self { address, connections, cuts, orders, _carrying: carrying }
    }

    /// Cuts every open connection now, and every later one at once.
    pub fn cut(&self, kind: CutKind) {
        self.orders.send_replace(Order::CutAll(kind));
    }

    /// Cuts every open connection now. Later ones are not affected.
    pub fn cut_open(&self, kind: CutKind) {
        self.orders.send_replace(Order::Cut(kind));
    }

    /// Freezes every open connection: it stays open at both ends, and nothing passes any more. Later ones are not affected.
    pub fn freeze_open(&self) {
        self.orders.send_replace(Order::Freeze);
    }

    /// The number of connections so far.
    pub fn connections(&self) -> u64 {
        self.connections.load(Ordering::Relaxed)
    }

    /// The number of connections that were cut so far.
    pub fn cuts(&self) -> u64 {
        self.cuts.load(Ordering::Relaxed)
    }
}

/// How one direction of a connection ended.
enum Passed {
    /// The sender ended it; the end was forwarded.
    Ended,
    /// A read or a write failed.
    Failed,
    /// The plan, or [`Link::cut`], cut it.
    Cut(CutKind),
}

async fn carry(client: TcpStream, to: SocketAddr, plan: Plan, mut orders: watch::Receiver<Order>, cuts: Arc<AtomicU64>) {
    let Ok(server) = TcpStream::connect(to).await else { return };
    for tcp in [&client, &server] {
        tcp.set_nodelay(true).ok();
    }
    let (client, server) = (client.into_split(), server.into_split());
    let ((mut client_reads, mut client_writes), (mut server_reads, mut server_writes)) = (client, server);
    let ended = {
        let mut up = std::pin::pin!(over(&mut client_reads, &mut server_writes, Direction::Up, plan));
        let mut down = std::pin::pin!(over(&mut server_reads, &mut client_writes, Direction::Down, plan));
        tokio::select! {
            passed = &mut up => if let Passed::Ended = passed { down.await } else { passed },
            passed = &mut down => if let Passed::Ended = passed { up.await } else { passed },
            order = next_order(&mut orders) => Passed::Cut(match order {
                Some(kind) => kind,
                None => until_cut(&mut orders).await,
            }),
        }
    };
    if let Passed::Cut(_) = ended {
        cuts.fetch_add(1, Ordering::Relaxed);
    }
    match ended {
        Passed::Ended => {}
        Passed::Cut(CutKind::End) => {
            // Closing a socket with unread bytes resets it, so they are read first.
            for (writes, reads) in [(&mut client_writes, &mut client_reads), (&mut server_writes, &mut server_reads)] {
                writes.shutdown().await.ok();
                while matches!(reads.try_read(&mut [0; 4096]), Ok(1..)) {}
            }
        }
        Passed::Cut(CutKind::Reset) | Passed::Failed => {
            for half in [client_reads.as_ref(), server_reads.as_ref()] {
                half.set_zero_linger().ok();
            }
            client_writes.forget(); // dropping them would send a FIN first
            server_writes.forget();
        }
    }
}

/// How the connection is to be cut now, or `None` where it is to be frozen.
async fn next_order(orders: &mut watch::Receiver<Order>) -> Option<CutKind> {
    let lasts = matches!(*orders.borrow(), Order::CutAll(_));
    if !lasts && orders.changed().await.is_err() {
        return std::future::pending().await;
    }
    match *orders.borrow_and_update() {
        Order::Cut(kind) | Order::CutAll(kind) => Some(kind),
        Order::Freeze | Order::Pass => None,
    }
}

/// How a frozen connection is cut at last.
async fn until_cut(orders: &mut watch::Receiver<Order>) -> CutKind {
    loop {
        if let Some(kind) = next_order(orders).await {
            return kind;
        }
    }
}

async fn over(from: &mut OwnedReadHalf, to: &mut OwnedWriteHalf, direction: Direction, plan: Plan) -> Passed {
    if plan.latency.is_zero() { pass(from, to, direction, plan).await } else { carry_far(from, to, direction, plan.latency).await }
}

/// A long line: what comes is written when its time has come, and more is read meanwhile.
async fn carry_far(from: &mut OwnedReadHalf, to: &mut OwnedWriteHalf, direction: Direction, latency: Duration) -> Passed {
    let (sender, mut pieces) = mpsc::channel::<(Instant, Vec<u8>)>(LINE_PIECES);
    // The far end hears of the connection, and the near end of its answer, before the first byte is sent.
    let first = Instant::now() + if direction == Direction::Up { 3 * latency } else { latency };
    let reading = async move {
        let mut buffer = vec![0; 64 << 10];
        loop {
            let count = from.read(&mut buffer).await.unwrap_or_default();
            let at = (Instant::now() + latency).max(first);
            if sender.send((at, buffer[..count].to_vec())).await.is_err() || count == 0 {
                return;
            }
        }
    };
    let writing = async {
        while let Some((at, piece)) = pieces.recv().await {
            sleep_until(at).await; // real time: the latency is what the line is for
            if piece.is_empty() {
                return if to.shutdown().await.is_ok() { Passed::Ended } else { Passed::Failed };
            }
            if to.write_all(&piece).await.is_err() {
                break;
            }
        }
        Passed::Failed
    };
    tokio::join!(reading, writing).1
}

async fn pass(from: &mut OwnedReadHalf, to: &mut OwnedWriteHalf, direction: Direction, plan: Plan) -> Passed {
    let mut buffer = vec![0; plan.piece.unwrap_or(16 << 10)];
    let cut = plan.cut.filter(|&(on, ..)| on == direction);
    let mut stall = plan.stall.filter(|&(on, ..)| on == direction);
    let (begun, mut passed) = (Instant::now(), 0_u64);
    loop {
        let most = cut.map_or(buffer.len(), |(_, at, _)| usize::try_from(at - passed).map_or(buffer.len(), |left| left.min(buffer.len())));
        if let (0, Some((.., kind))) = (most, cut) {
            return Passed::Cut(kind);
        }
        let count = match from.read(&mut buffer[..most]).await {
            Ok(0) if to.shutdown().await.is_ok() => return Passed::Ended,
            Ok(0) | Err(_) => return Passed::Failed,
            Ok(count) => count,
        };
        if !plan.delay.is_zero() {
            sleep(plan.delay).await; // real time: the delay is the fault that the link injects
        }
        if let Some(rate) = plan.rate {
            // real time: the rate is the fault that the link injects
            sleep_until(begun + Duration::from_micros(passed * 1_000_000 / rate)).await;
        }
        if let Some((_, _, time)) = stall.take_if(|&mut (_, at, _)| passed >= at) {
            sleep(time).await; // real time: the stall is the fault that the link injects
        }
        if to.write_all(&buffer[..count]).await.is_err() {
            return Passed::Failed;
        }
        passed += count as u64;
    }
}

/// Repeatable random numbers: the seed is printed, and `MOORLINE_SEED` sets it.
#[derive(Clone, Copy, Debug)]
pub struct Chance(u64);

impl Chance {
    /// Seeded by `MOORLINE_SEED`, or at random.
    ///
    /// # Panics
    /// If `MOORLINE_SEED` is not a number.
    pub fn new() -> Self {
        let given = std::env::var("MOORLINE_SEED").ok().map(|seed| seed.parse().expect("MOORLINE_SEED is a number"));
        let seed = given.unwrap_or_else(rand::random);
        println!("repeat with MOORLINE_SEED={seed}");
        Self(seed)
    }

    /// The seed.
    pub fn seed(self) -> u64 {
        self.0
    }

    /// The random number for `instance` of `purpose`, less than `below`.
    pub fn number(self, purpose: u64, instance: u64, below: u64) -> u64 {
        let bytes = crate::patterns::pattern(self.0 ^ purpose.rotate_left(32), 8 * instance, 8);
        u64::from_le_bytes(bytes.try_into().expect("eight bytes")) % below
    }
}

impl Default for Chance {
    fn default() -> Self {
        Self::new()
    }
}
