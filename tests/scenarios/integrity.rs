//! No byte is lost, swapped or misdirected: 64 streams at once, each with its own pattern in each direction.

use std::time::Duration;

use moorline_agent::{Accepted, Decision, OfferInfo};
use moorline_tests::memory::MemoryWorld;
use moorline_tests::patterns::{pattern, pieces};
use moorline_tests::targets::Target;
use moorline_tests::world::World;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, split};
use tokio::net::TcpStream;
use tokio::time::timeout;

const STREAMS: u64 = 64;
const WITHIN: Duration = Duration::from_secs(240);

/// The caller names the stream in its first byte; then both ends send their own pattern and check the other's.
const FROM_CALLER: u64 = 1_000;
const FROM_DEVICE: u64 = 2_000;

async fn send(to: &mut (impl AsyncWrite + Unpin), seed: u64, total: usize) {
    let mut from = 0;
    for piece in pieces(seed, total) {
        to.write_all(&pattern(seed, from, piece)).await.expect("the stream accepts bytes");
        from += piece as u64;
        if piece < 100 {
            to.flush().await.expect("the stream is flushed");
        }
    }
    to.shutdown().await.expect("the direction is half-closed");
}

async fn check(of: &mut (impl AsyncRead + Unpin), seed: u64, total: usize) {
    let mut buffer = vec![0; 100_000];
    let mut from = 0;
    loop {
        let count = of.read(&mut buffer).await.expect("the stream is not cut");
        if count == 0 {
            break;
        }
        assert!(buffer[..count] == pattern(seed, from, count), "stream {seed}: bytes {from} to {} are wrong", from + count as u64);
        from += count as u64;
    }
    assert_eq!(from, total as u64, "stream {seed} is whole");
}

/// The device's end: the first byte names the stream.
async fn device_side(mut stream: impl AsyncRead + AsyncWrite + Unpin, total: usize) {
    let Ok(number) = stream.read_u8().await else { return };
    let (mut reads, mut writes) = split(stream);
    let number = u64::from(number);
    tokio::join!(send(&mut writes, FROM_DEVICE + number, total), check(&mut reads, FROM_CALLER + number, total));
}

async fn caller_side(mut stream: impl AsyncRead + AsyncWrite + Unpin, number: u64, total: usize) {
    stream.write_u8(u8::try_from(number).expect("64 streams")).await.expect("the stream accepts bytes");
    let (mut reads, mut writes) = split(stream);
    tokio::join!(send(&mut writes, FROM_CALLER + number, total), check(&mut reads, FROM_DEVICE + number, total));
}

#[tokio::test(flavor = "multi_thread")]
async fn sixty_four_streams_through_the_programs_are_intact() {
    const TOTAL: usize = 4 << 20;
    let world = World::start().await;
    let target = Target::start(|tcp| device_side(tcp, TOTAL)).await;
    let _device = world.device("lamp-1", &[("data", target.address)]).await;
    let forward = world.forward("lamp-1", &["data"]).await;
    let local = forward.local[0];
    let mut streams = tokio::task::JoinSet::new();
    for number in 0..STREAMS {
        streams.spawn(async move {
            let tcp = TcpStream::connect(local).await.expect("the forward listens");
            caller_side(tcp, number, TOTAL).await;
        });
    }
    timeout(WITHIN, streams.join_all()).await.expect("in time");
    world.relay.events("stream ended", 64).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sixty_four_streams_through_the_library_are_intact() {
    const TOTAL: usize = 2 << 20;
    let world = MemoryWorld::start().await;
    let agent = world
        .agent("lamp-1", &["data"], async |_: OfferInfo| {
            let (local, remote) = tokio::io::duplex(3_001);
            tokio::spawn(device_side(remote, TOTAL));
            Decision::Accept(Accepted::stream(local))
        })
        .await;
    let client = world.client();
    let scenario = async {
        let mut streams = tokio::task::JoinSet::new();
        for number in 0..STREAMS {
            let open = client.open(&"lamp-1".parse().unwrap(), &"data".parse().unwrap()).wait(WITHIN); // the agent is still connecting
            streams.spawn(async move {
                let stream = open.await.expect("the stream opens");
                caller_side(stream, number, TOTAL).await;
            });
        }
        streams.join_all().await;
    };
    tokio::select! {
        () = agent.run(std::future::pending()) => panic!("the agent stopped"),
        done = timeout(WITHIN, scenario) => done.expect("in time"),
    }
}
