//! Limits of unauthenticated and of authenticated connections are separate: reaching one does not affect the other.

use std::time::Duration;

use moorline_tests::memory::MemoryWorld;
use moorline_tests::wire::WireLeg;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::time::{Instant, advance, sleep, timeout};

async fn with_limits(unauthenticated: usize, connections: usize) -> MemoryWorld {
    MemoryWorld::start_with(|config| {
        config.limits.unauthenticated_connections = unauthenticated.try_into().unwrap();
        config.limits.connections = connections.try_into().unwrap();
    })
    .await
}

/// Whether the relay has closed this connection already.
async fn is_closed_now(pipe: &mut DuplexStream) -> bool {
    timeout(Duration::from_millis(1), pipe.read_u8()).await.is_ok_and(|read| read.is_err())
}

async fn exchange(caller: &mut WireLeg<DuplexStream>, device: &mut WireLeg<DuplexStream>) {
    caller.send_bytes("to the device").await;
    assert_eq!(device.bytes(13).await, b"to the device");
    device.send_bytes("to the caller").await;
    assert_eq!(caller.bytes(13).await, b"to the caller");
}

#[tokio::test(start_paused = true)]
async fn unauthenticated_peers_at_capacity_do_not_affect_authenticated_ones() {
    let world = with_limits(4, 64).await;
    let mut device = world.device("lamp-1").await;
    let (mut caller, mut device_leg) = world.stream(&mut device, "lamp-1").await;
    // A caller whose stream is undecided is authenticated as well.
    let mut undecided = world.connect("lamp-1", "ssh", &[]).await.unwrap();
    let offer = device.offer().await;
    for _ in 0..20 {
        let mut peers: Vec<DuplexStream> = (0..4).map(|_| world.dial()).collect();
        for peer in &mut peers {
            peer.write_all(b"GET /v1/con").await.unwrap();
            assert!(!is_closed_now(peer).await, "it may stay until it is evicted");
        }
        assert!(is_closed_now(&mut world.dial()).await, "the unauthenticated capacity is used up");
        exchange(&mut caller, &mut device_leg).await;
        advance(Duration::from_secs(2)).await;
        let next = world.dial();
        assert!(is_closed_now(&mut peers[0]).await, "the oldest is evicted");
        exchange(&mut caller, &mut device_leg).await;
        drop((peers, next));
        sleep(Duration::from_millis(1)).await;
    }
    device.accept(offer.stream).await;
    let mut joined = world.join(offer.url.as_str(), &offer.token).await.unwrap();
    undecided.opened().await;
    joined.opened().await;
    exchange(&mut undecided, &mut joined).await;
}

#[tokio::test(start_paused = true)]
async fn streams_use_no_unauthenticated_capacity() {
    let world = with_limits(2, 64).await;
    let mut device = world.device("lamp-1").await;
    let mut streams = Vec::new();
    for _ in 0..20 {
        streams.push(world.stream(&mut device, "lamp-1").await);
    }
    let mut peers = [world.dial(), world.dial()];
    for peer in &mut peers {
        assert!(!is_closed_now(peer).await, "41 authenticated connections use no unauthenticated capacity");
    }
    for (caller, device_leg) in &mut streams {
        exchange(caller, device_leg).await;
    }
    drop(peers);
    sleep(Duration::from_millis(1)).await;
    // `connections` limits connections of any kind: above it only the new one is closed.
    let mut more: Vec<DuplexStream> = Vec::new();
    while more.len() < 40 {
        let mut pipe = world.dial();
        if is_closed_now(&mut pipe).await {
            break;
        }
        more.push(pipe);
    }
    assert_eq!(more.len(), 2);
    for (caller, device_leg) in &mut streams {
        exchange(caller, device_leg).await;
    }
}

#[tokio::test(start_paused = true)]
async fn at_the_connection_limit_new_connections_are_closed_and_existing_ones_stay_open() {
    let world = with_limits(8, 5).await;
    let mut device = world.device("lamp-1").await;
    let mut one = world.stream(&mut device, "lamp-1").await;
    let mut two = world.stream(&mut device, "lamp-1").await;
    for _ in 0..10 {
        assert!(is_closed_now(&mut world.dial()).await, "a device and two streams are five");
        advance(Duration::from_secs(3)).await;
        exchange(&mut one.0, &mut one.1).await;
        exchange(&mut two.0, &mut two.1).await;
    }
    drop(two);
    sleep(Duration::from_millis(10)).await;
    let mut again = world.stream(&mut device, "lamp-1").await;
    exchange(&mut again.0, &mut again.1).await;
}

/// An unauthenticated peer is closed by its deadline, long before any timeout of an authenticated one.
#[tokio::test(start_paused = true)]
async fn deadlines_of_unauthenticated_peers_do_not_apply_to_authenticated_ones() {
    let world = with_limits(8, 64).await;
    let mut device = world.device("lamp-1").await;
    let (mut caller, mut device_leg) = world.stream(&mut device, "lamp-1").await;
    let mut silent = world.dial();
    let begun = Instant::now();
    let hour = async {
        tokio::select! {
            () = tokio::time::sleep_until(begun + Duration::from_secs(3_600)) => {}
            message = device.next() => panic!("{message:?}"),
            event = caller.next() => panic!("{event:?}"),
            event = device_leg.next() => panic!("{event:?}"),
        }
    };
    let gone = async {
        assert!(silent.read_u8().await.is_err());
        assert_eq!(begun.elapsed(), Duration::from_secs(60));
    };
    tokio::join!(hour, gone);
    exchange(&mut caller, &mut device_leg).await;
}
