//! Places before and after admission are separate: a full house of strangers costs no device and no stream anything, and the other way round.

use std::time::Duration;

use moorline_tests::memory::MemoryWorld;
use moorline_tests::wire::WireLeg;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::time::{Instant, advance, sleep, timeout};

async fn with_places(strangers: usize, connections: usize) -> MemoryWorld {
    MemoryWorld::start_with(|config| {
        config.limits.unauthenticated_connections = strangers.try_into().unwrap();
        config.limits.connections = connections.try_into().unwrap();
    })
    .await
}

/// Whether the relay ends this connection now, without waiting for anything.
async fn is_sent_away(pipe: &mut DuplexStream) -> bool {
    timeout(Duration::from_millis(1), pipe.read_u8()).await.is_ok_and(|read| read.is_err())
}

async fn talk(caller: &mut WireLeg<DuplexStream>, device: &mut WireLeg<DuplexStream>) {
    caller.say("to the device").await;
    assert_eq!(device.bytes(13).await, b"to the device");
    device.say("to the caller").await;
    assert_eq!(caller.bytes(13).await, b"to the caller");
}

#[tokio::test(start_paused = true)]
async fn a_full_house_of_strangers_does_not_touch_those_who_were_admitted() {
    let world = with_places(4, 64).await;
    let mut device = world.device("lamp-1").await;
    let (mut caller, mut far) = world.stream(&mut device, "lamp-1").await;
    // Asked and undecided: admitted as well.
    let mut undecided = world.connect("lamp-1", "ssh", &[]).await.unwrap();
    let offer = device.offer().await;
    for _ in 0..20 {
        let mut house: Vec<DuplexStream> = (0..4).map(|_| world.dial()).collect();
        for stranger in &mut house {
            stranger.write_all(b"GET /v1/con").await.unwrap();
            assert!(!is_sent_away(stranger).await, "it may stay for a while");
        }
        assert!(is_sent_away(&mut world.dial()).await, "the house is full");
        talk(&mut caller, &mut far).await;
        advance(Duration::from_secs(2)).await;
        let next = world.dial();
        assert!(is_sent_away(&mut house[0]).await, "the oldest gives way");
        talk(&mut caller, &mut far).await;
        drop((house, next));
        sleep(Duration::from_millis(1)).await;
    }
    device.accept(offer.stream).await;
    let mut joined = world.join(offer.url.as_str(), &offer.token).await.unwrap();
    undecided.opened().await;
    joined.opened().await;
    talk(&mut undecided, &mut joined).await;
}

#[tokio::test(start_paused = true)]
async fn a_full_house_of_streams_leaves_the_places_of_strangers_free() {
    let world = with_places(2, 64).await;
    let mut device = world.device("lamp-1").await;
    let mut streams = Vec::new();
    for _ in 0..20 {
        streams.push(world.stream(&mut device, "lamp-1").await);
    }
    let mut strangers = [world.dial(), world.dial()];
    for stranger in &mut strangers {
        assert!(!is_sent_away(stranger).await, "41 were admitted, and none of them is in a stranger's place");
    }
    for (caller, far) in &mut streams {
        talk(caller, far).await;
    }
    drop(strangers);
    sleep(Duration::from_millis(1)).await;
    // Places of any kind are another bound: beyond it the next one is closed, and nobody else.
    let mut more: Vec<DuplexStream> = Vec::new();
    while more.len() < 40 {
        let mut pipe = world.dial();
        if is_sent_away(&mut pipe).await {
            break;
        }
        more.push(pipe);
    }
    assert_eq!(more.len(), 2);
    for (caller, far) in &mut streams {
        talk(caller, far).await;
    }
}

#[tokio::test(start_paused = true)]
async fn every_place_taken_turns_the_next_one_away_and_nobody_who_is_inside() {
    let world = with_places(8, 5).await;
    let mut device = world.device("lamp-1").await;
    let mut one = world.stream(&mut device, "lamp-1").await;
    let mut two = world.stream(&mut device, "lamp-1").await;
    for _ in 0..10 {
        assert!(is_sent_away(&mut world.dial()).await, "a device and two streams are five");
        advance(Duration::from_secs(3)).await;
        talk(&mut one.0, &mut one.1).await;
        talk(&mut two.0, &mut two.1).await;
    }
    drop(two);
    sleep(Duration::from_millis(10)).await;
    let mut again = world.stream(&mut device, "lamp-1").await;
    talk(&mut again.0, &mut again.1).await;
}

/// What a stranger may take its time for is over long before anything of an admitted one is.
#[tokio::test(start_paused = true)]
async fn deadlines_of_strangers_are_not_those_of_the_admitted() {
    let world = with_places(8, 64).await;
    let mut device = world.device("lamp-1").await;
    let (mut caller, mut far) = world.stream(&mut device, "lamp-1").await;
    let mut silent = world.dial();
    let begun = Instant::now();
    let hour = async {
        tokio::select! {
            () = tokio::time::sleep_until(begun + Duration::from_secs(3_600)) => {}
            said = device.next() => panic!("{said:?}"),
            said = caller.next() => panic!("{said:?}"),
            said = far.next() => panic!("{said:?}"),
        }
    };
    let gone = async {
        assert!(silent.read_u8().await.is_err());
        assert_eq!(begun.elapsed(), Duration::from_secs(60));
    };
    tokio::join!(hour, gone);
    talk(&mut caller, &mut far).await;
}
