//! The real client's streams over legs that are used again, on a paused clock: how many connections they take, and whose bytes they carry.

use std::time::Duration;

use moorline::{Client, Open, ProblemCode, Stream};
use moorline_agent::{Accepted, Decision, OfferInfo};
use moorline_tests::memory::MemoryWorld;
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
use tokio::time::sleep;

/// Echoes each stream to its end.
async fn echo(_offer: OfferInfo) -> Decision {
    let (local, mut target) = duplex(1 << 16);
    tokio::spawn(async move {
        let (mut from, mut to) = tokio::io::split(&mut target);
        tokio::io::copy(&mut from, &mut to).await.ok();
        to.shutdown().await.ok();
    });
    Decision::Accept(Accepted::stream(local))
}

fn lamp(client: &Client) -> Open {
    client.open(&"lamp-1".parse().unwrap(), &"ssh".parse().unwrap())
}

/// Sends this and hears it again, to the end of the stream.
async fn echoes(mut stream: Stream, early: &[u8], sent: &[u8]) {
    stream.write_all(sent).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut received = Vec::new();
    stream.read_to_end(&mut received).await.unwrap();
    assert!(received == [early, sent].concat(), "{} bytes", received.len());
    assert!(stream.finish().await.is_clean());
}

/// Runs a scene with a device and a client.
async fn with_device(scene: impl AsyncFnOnce(&MemoryWorld, &Client)) {
    let world = MemoryWorld::start().await;
    let agent = world.agent("lamp-1", &["ssh"], echo).await;
    let client = world.client();
    tokio::select! {
        ended = agent.run(std::future::pending()) => panic!("{ended:?}"),
        () = async {
            world.until("online", |relay| relay.devices() == 1).await;
            scene(&world, &client).await;
        } => {}
    }
}

#[tokio::test(start_paused = true)]
async fn streams_one_after_the_other_take_one_connection_of_the_client() {
    with_device(async |world, client| {
        echoes(lamp(client).await.unwrap(), b"", b"first").await;
        let (before, mut others) = (world.dialled(), 0);
        for turn in 0..20_u8 {
            let early = vec![turn; usize::from(turn) * 500];
            let stream = lamp(client).send_from(&mut early.as_slice()).await.unwrap();
            echoes(stream, &early, &[turn ^ 0xff; 3_000]).await;
            others += 1;
        }
        assert!(world.dialled() - before <= others, "at most the device's: {} of {others}", world.dialled() - before);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_refused_stream_gives_its_leg_back() {
    with_device(async |world, client| {
        echoes(lamp(client).await.unwrap(), b"", b"first").await;
        let before = world.dialled();
        for _ in 0..5 {
            let refused = client.open(&"lamp-2".parse().unwrap(), &"ssh".parse().unwrap()).await.unwrap_err();
            assert_eq!(refused.problem().unwrap().known_code(), Some(ProblemCode::DeviceUnknown));
            sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(world.dialled(), before);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_client_keeps_a_leg_ready_for_an_hour_and_uses_it() {
    with_device(async |world, client| {
        let scene = async {
            sleep(Duration::from_secs(3_600)).await;
            let before = world.dialled();
            echoes(lamp(client).await.unwrap(), b"", b"after an hour").await;
            sleep(Duration::from_secs(1)).await;
            assert!(world.dialled() - before <= 2, "the device's leg, and the next one that is ready");
        };
        tokio::select! {
            never = client.keep_leg_ready() => match never {},
            () = scene => {}
        }
    })
    .await;
}
