//! A bad road between two real programs: a TCP proxy that delays, slows, crumbles, stalls and cuts what passes, by a plan for each connection.
//!
//! Owns the road alone: what a cut must look like at its ends is for the scenarios to say.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

/// How a connection is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    /// Both ends see a reset.
    Reset,
    /// Both ends see an ordinary end of the connection, as when a middle box is told to stop: the worse one, since it looks like an end.
    End,
}

/// Which bytes a rule counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// From who dialled.
    Up,
    /// To who dialled.
    Down,
}

/// What happens to one connection. The default is a good road.
#[derive(Clone, Copy, Debug, Default)]
pub struct Plan {
    /// Every piece comes this much later.
    pub delay: Duration,
    /// Bytes a second, each way.
    pub rate: Option<u64>,
    /// The largest piece that passes at once.
    pub piece: Option<usize>,
    /// After so many bytes that way, the connection is cut.
    pub cut: Option<(Way, u64, Manner)>,
    /// After so many bytes that way, nothing passes that way for so long.
    pub stall: Option<(Way, u64, Duration)>,
}

/// A proxy that listens on a port of its own. It ends, with all of its connections, with the value that holds it.
#[derive(Debug)]
pub struct Link {
    /// Where it listens.
    pub address: SocketAddr,
    cuts: Arc<AtomicU64>,
    now: watch::Sender<Option<Manner>>,
    _carrying: JoinSet<()>,
}

impl Link {
    /// Carries every connection to `to`, by what `plan` says for its number; the first is 0.
    pub async fn start(to: SocketAddr, plan: impl Fn(u64) -> Plan + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let cuts = Arc::new(AtomicU64::new(0));
        let (mut carrying, counted) = (JoinSet::new(), Arc::clone(&cuts));
        let now = watch::Sender::new(None);
        let cut_now = now.clone();
        carrying.spawn(async move {
            let mut connections = JoinSet::new();
            let mut number = 0;
            while let Ok((near, _)) = listener.accept().await {
                connections.spawn(carry(near, to, plan(number), cut_now.subscribe(), Arc::clone(&counted)));
                number += 1;
            }
        });
        Self { address, cuts, now, _carrying: carrying }
    }

    /// Cuts every connection that there is now, and every further one at once.
    pub fn cut(&self, manner: Manner) {
        self.now.send_replace(Some(manner));
    }

    /// How many connections were cut so far.
    pub fn cuts(&self) -> u64 {
        self.cuts.load(Ordering::Relaxed)
    }
}

/// How one way of a connection came to its end.
enum Passed {
    /// It ended by itself; that was passed on.
    Ended,
    /// An end of the connection failed.
    Failed,
    /// The plan says so.
    Cut(Manner),
}

async fn carry(near: TcpStream, to: SocketAddr, plan: Plan, mut now: watch::Receiver<Option<Manner>>, cuts: Arc<AtomicU64>) {
    let Ok(far) = TcpStream::connect(to).await else { return };
    for tcp in [&near, &far] {
        tcp.set_nodelay(true).ok();
    }
    let (near, far) = (near.into_split(), far.into_split());
    let ((mut near_reads, mut near_writes), (mut far_reads, mut far_writes)) = (near, far);
    let over = {
        let mut up = std::pin::pin!(pass(&mut near_reads, &mut far_writes, Way::Up, plan));
        let mut down = std::pin::pin!(pass(&mut far_reads, &mut near_writes, Way::Down, plan));
        tokio::select! {
            passed = &mut up => if let Passed::Ended = passed { down.await } else { passed },
            passed = &mut down => if let Passed::Ended = passed { up.await } else { passed },
            manner = asked_to_cut(&mut now) => Passed::Cut(manner),
        }
    };
    if let Passed::Cut(_) = over {
        cuts.fetch_add(1, Ordering::Relaxed);
    }
    match over {
        Passed::Ended => {}
        Passed::Cut(Manner::End) => {
            // A socket that is closed with unread bytes in it is reset: they are read first.
            for (writes, reads) in [(&mut near_writes, &mut near_reads), (&mut far_writes, &mut far_reads)] {
                writes.shutdown().await.ok();
                while matches!(reads.try_read(&mut [0; 4096]), Ok(1..)) {}
            }
        }
        Passed::Cut(Manner::Reset) | Passed::Failed => {
            for half in [near_reads.as_ref(), far_reads.as_ref()] {
                half.set_zero_linger().ok();
            }
            near_writes.forget(); // dropped, they would say an ordinary end first
            far_writes.forget();
        }
    }
}

async fn asked_to_cut(now: &mut watch::Receiver<Option<Manner>>) -> Manner {
    match now.wait_for(Option::is_some).await.ok().and_then(|manner| *manner) {
        Some(manner) => manner,
        None => std::future::pending().await,
    }
}

async fn pass(from: &mut OwnedReadHalf, to: &mut OwnedWriteHalf, way: Way, plan: Plan) -> Passed {
    let mut buffer = vec![0; plan.piece.unwrap_or(16 << 10)];
    let cut = plan.cut.filter(|&(on, ..)| on == way);
    let mut stall = plan.stall.filter(|&(on, ..)| on == way);
    let (begun, mut passed) = (Instant::now(), 0_u64);
    loop {
        let most = cut.map_or(buffer.len(), |(_, at, _)| usize::try_from(at - passed).map_or(buffer.len(), |left| left.min(buffer.len())));
        if let (0, Some((.., manner))) = (most, cut) {
            return Passed::Cut(manner);
        }
        let count = match from.read(&mut buffer[..most]).await {
            Ok(0) if to.shutdown().await.is_ok() => return Passed::Ended,
            Ok(0) | Err(_) => return Passed::Failed,
            Ok(count) => count,
        };
        if !plan.delay.is_zero() {
            sleep(plan.delay).await;
        }
        if let Some(rate) = plan.rate {
            sleep_until(begun + Duration::from_micros(passed * 1_000_000 / rate)).await;
        }
        if let Some((_, _, time)) = stall.take_if(|&mut (_, at, _)| passed >= at) {
            sleep(time).await;
        }
        if to.write_all(&buffer[..count]).await.is_err() {
            return Passed::Failed;
        }
        passed += count as u64;
    }
}

/// Chance that can be repeated: the seed is printed, and `MOORLINE_SEED` sets it.
#[derive(Clone, Copy, Debug)]
pub struct Chance(u64);

impl Chance {
    /// The seed of `MOORLINE_SEED`, or a new one.
    ///
    /// # Panics
    /// If `MOORLINE_SEED` is no number.
    pub fn new() -> Self {
        let given = std::env::var("MOORLINE_SEED").ok().map(|seed| seed.parse().expect("MOORLINE_SEED is a number"));
        let seed = given.unwrap_or_else(rand::random);
        println!("MOORLINE_SEED={seed} does this again");
        Self(seed)
    }

    /// The number for a purpose and its instance, less than `below`.
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
