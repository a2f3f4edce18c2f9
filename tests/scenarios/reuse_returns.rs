//! A device that returns on another connection while idle legs of the old one still hang: its connection died without a word, so nobody has closed
//! anything. A caller reaches the session that returned, and no byte of it reaches a target twice.

use std::net::SocketAddr;
use std::time::Duration;

use moorline_proto::bounds::LEG_ALIVE_MIN;
use moorline_proto::problem::ProblemCode;
use moorline_tests::link::{Link, Plan};
use moorline_tests::memory::{INSTANCE, MemoryWorld};
use moorline_tests::programs::feed;
use moorline_tests::targets::Target;
use moorline_tests::warm::{WarmWorld, idle_leg, warm_device};
use moorline_tests::wire::{LegEvent, WireDevice};
use moorline_tests::world::{SCALED, World};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

const OTHER_INSTANCE: &str = "ffeeddccbbaa99887766554433221100";
const WITHIN: Duration = Duration::from_secs(30);

/// Asks for a stream that may wait for the device, with bytes behind that.
async fn ask_with_bytes(warm: &mut WarmWorld) {
    warm.caller.say(&json!({"type": "ask", "device": "lamp-1", "service": "ssh", "wait_s": 30})).await;
    warm.caller.send_bytes("once only").await;
}

/// Takes an offer on the control channel: the caller's bytes arrive on the leg, once.
async fn take_offer(warm: &mut WarmWorld, session: &mut WireDevice<DuplexStream>, attempt: u32) {
    let offer = session.offer().await;
    assert_eq!(offer.attempt.get(), attempt);
    session.accept(offer.stream).await;
    let mut leg = warm.world.join(offer.url.as_str(), &offer.token).await.unwrap();
    warm.caller.opened().await;
    leg.opened().await;
    assert_eq!(leg.bytes(9).await, b"once only");
    leg.send_bytes("answer").await;
    assert_eq!(warm.caller.next().await, LegEvent::Bytes("answer".into()), "nothing came before it");
}

#[tokio::test(start_paused = true)]
async fn a_caller_is_offered_to_the_session_that_returned_and_not_on_a_leg_of_the_old_one() {
    for instance in [INSTANCE, OTHER_INSTANCE] {
        for has_leg in [false, true] {
            let mut warm = WarmWorld::start().await;
            // Nobody reads the old channel and its leg any more.
            let mut newer = warm_device(&warm.world, instance).await;
            let begun = Instant::now();
            if has_leg {
                let mut leg = idle_leg(&warm.world, &newer).await;
                leg.idle().await;
                ask_with_bytes(&mut warm).await;
                let offer = leg.offer().await;
                assert_eq!((offer.attempt.get(), leg.bytes(9).await.as_slice()), (1, &b"once only"[..]));
                leg.accept(offer.stream).await;
                warm.caller.opened().await;
            } else {
                ask_with_bytes(&mut warm).await;
                take_offer(&mut warm, &mut newer, 1).await;
            }
            assert!(begun.elapsed() < Duration::from_millis(10), "nobody was waited for: {:?}", begun.elapsed());
            assert!(matches!(warm.leg.next().await, LegEvent::Close(4007, _)), "all that the old leg was sent");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_offer_that_was_lost_with_its_connection_is_made_again_on_the_one_that_returned() {
    // On the control channel, of which nobody reads the offer.
    let world = MemoryWorld::start().await;
    let old = world.device("lamp-1").await;
    let mut caller = world.connect("lamp-1", "ssh", &[]).await.unwrap();
    world.until("the offer is out", |relay| relay.tasks().contains_key("stream")).await;
    sleep(Duration::from_millis(100)).await;
    let mut newer = world.device("lamp-1").await;
    let begun = Instant::now();
    let offer = newer.offer().await;
    assert_eq!((offer.attempt.get(), begun.elapsed()), (2, Duration::ZERO));
    newer.accept(offer.stream).await;
    let mut leg = world.join(offer.url.as_str(), &offer.token).await.unwrap();
    leg.opened().await;
    caller.opened().await;
    drop(old);

    // On a leg, before and after the relay has taken that for dead and has tried the control channel.
    for (silence, attempt) in [(LEG_ALIVE_MIN / 2, 2), (2 * LEG_ALIVE_MIN, 3)] {
        let mut warm = WarmWorld::start().await;
        ask_with_bytes(&mut warm).await;
        sleep(silence).await;
        let mut newer = warm_device(&warm.world, INSTANCE).await;
        take_offer(&mut warm, &mut newer, attempt).await;
    }
}

#[tokio::test(start_paused = true)]
async fn bytes_that_went_out_on_a_leg_go_to_no_other_start_of_the_agent_however_late() {
    for silence in [LEG_ALIVE_MIN / 2, 2 * LEG_ALIVE_MIN] {
        let mut warm = WarmWorld::start().await;
        ask_with_bytes(&mut warm).await;
        sleep(silence).await;
        let mut newer = warm_device(&warm.world, OTHER_INSTANCE).await;
        assert_eq!(warm.caller.refused().await.known_code(), Some(ProblemCode::DeviceUnresponsive), "after {silence:?}");
        let nothing = timeout(Duration::from_secs(20), newer.next()).await;
        assert!(nothing.is_err(), "after {silence:?}: {nothing:?}");
    }
    // The old channel is lost, and the device is waited for.
    for instance in [INSTANCE, OTHER_INSTANCE] {
        let mut warm = WarmWorld::start().await;
        ask_with_bytes(&mut warm).await;
        assert_eq!(warm.leg.offer().await.attempt.get(), 1);
        warm.device = warm.world.device("lamp-2").await;
        sleep(LEG_ALIVE_MIN).await;
        let mut newer = warm_device(&warm.world, instance).await;
        if instance == INSTANCE {
            take_offer(&mut warm, &mut newer, 2).await;
        } else {
            assert_eq!(warm.caller.refused().await.known_code(), Some(ProblemCode::DeviceUnresponsive));
        }
    }
}

/// Carries one stream through `forward` to an echo, and returns how long its first byte took.
async fn echoes(local: SocketAddr, sent: &[u8]) -> Duration {
    let begun = Instant::now();
    let exchange = async {
        let mut tcp = TcpStream::connect(local).await.expect("the forward listens");
        tcp.write_all(sent).await.expect("the stream accepts bytes");
        let mut received = vec![tcp.read_u8().await.expect("the stream was opened")];
        let opened = begun.elapsed();
        tcp.shutdown().await.expect("the direction is half-closed");
        tcp.read_to_end(&mut received).await.expect("an end, not a cut");
        assert_eq!(received, sent);
        opened
    };
    timeout(WITHIN, exchange).await.expect("in time")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_agent_whose_connections_died_without_a_word_returns_and_is_reached() {
    let (world, echo) = (World::start_with(SCALED).await, Target::echo().await);
    let network = Link::start(world.address, |_| Plan::default()).await;
    let _device = world.device_with("warm_legs = 1\n", network.address.port(), "lamp-1", &[("data", echo.address)]).await;
    let forward = world.forward("lamp-1", &["data"]).await;
    echoes(forward.local[0], b"before").await;

    network.freeze_open();
    world.relay.events("device online", 2).await;
    let opened = echoes(forward.local[0], b"after it returned").await;
    assert!(opened < LEG_ALIVE_MIN, "no leg of the old session was waited for: {opened:?}");

    // A caller that comes before anybody has noticed, and would wait for the device: its bytes go out on a leg that hangs.
    let input = world.path("input");
    std::fs::write(&input, b"before it returned").expect("a file is written");
    network.freeze_open();
    let mut connect = world.client();
    connect.args(["connect", "lamp-1", "data", "--wait", "20s"]);
    let done = feed(&mut connect, std::fs::File::open(&input).expect("the file is there"), WITHIN).await.success();
    assert_eq!(done.text(), "before it returned");
    assert_eq!(world.relay.count("device online"), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_forward_whose_idle_legs_died_without_a_word_waits_once() {
    let (world, echo) = (World::start().await, Target::echo().await);
    let network = Link::start(world.address, |_| Plan::default()).await;
    let _device = world.device("lamp-1", &[("data", echo.address)]).await;
    let forward = world.forward_by(network.address.port(), "lamp-1", &["data"]).await;
    echoes(forward.local[0], b"before").await;
    sleep(Duration::from_millis(500)).await; // real time: legs are ready again, on connections that are frozen then
    network.freeze_open();
    let opened = echoes(forward.local[0], b"on a new leg").await;
    assert!((LEG_ALIVE_MIN..2 * LEG_ALIVE_MIN).contains(&opened), "the one wait that the protocol names: {opened:?}");
}
