//! Scenarios of the real client and agent once more, with devices or callers that do not use legs again. (Scenarios of scripted legs ask for it
//! where they want it, so most of them are of such devices and callers already.)

use std::time::Duration;

use moorline_agent::{Accepted, Decision, OfferInfo};
use moorline_tests::link::{Link, Plan};
use moorline_tests::memory::MemoryWorld;
use moorline_tests::old_way::{Without, callers_reuse, devices_reuse, run};
use moorline_tests::targets::Target;
use moorline_tests::world::World;
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
use tokio::net::TcpStream;
use tokio::time::sleep;

/// Where one side does not use legs again: that it does not, and streams in both directions.
const OF_ONE_SIDE: [&str; 4] = [
    "half_close::the_caller_may_end_first_and_still_receives_everything",
    "half_close::the_device_may_end_first_and_still_receives_everything",
    "old_way::a_side_that_does_not_use_legs_again_has_a_connection_for_each_stream",
    "old_way::a_program_that_does_not_use_legs_again_has_a_connection_for_each_stream",
];
/// Where nobody does: also what streams carry, and how they end.
const OF_BOTH_SIDES: [&str; 8] = [
    "end_matrix::a_stream_that_did_not_finish_looks_finished_to_nobody",
    "half_close::a_killed_forward_resets_the_target",
    "half_close::a_reset_by_the_caller_resets_the_target",
    "half_close::a_reset_by_the_target_resets_the_caller_and_connect_reports_it",
    "integrity::sixty_four_streams_through_the_programs_are_intact",
    "stream_ends::a_program_that_is_killed_or_cut_off_resets_both_ends_and_leaves_nothing",
    "stream_ends::closing_with_1000_before_the_other_end_has_finished_resets_it",
    "stream_ends::every_way_to_end_a_stream_reaches_the_other_side_as_documented",
];

#[test]
fn streams_are_carried_where_one_side_does_not_use_legs_again() {
    run(Without::Devices, &OF_ONE_SIDE);
    run(Without::Callers, &OF_ONE_SIDE);
}

#[test]
fn streams_are_carried_and_end_as_ever_where_nobody_uses_legs_again() {
    run(Without::Both, &[&OF_ONE_SIDE[..], &OF_BOTH_SIDES].concat());
}

const STREAMS: u64 = 5;

/// Echoes each stream to its end.
async fn echo(_offer: OfferInfo) -> Decision {
    let (local, target) = duplex(1 << 10);
    tokio::spawn(async move {
        let (mut from, mut to) = tokio::io::split(target);
        tokio::io::copy(&mut from, &mut to).await.ok();
        to.shutdown().await.ok();
    });
    Decision::Accept(Accepted::stream(local))
}

#[tokio::test(start_paused = true)]
async fn a_side_that_does_not_use_legs_again_has_a_connection_for_each_stream() {
    let world = MemoryWorld::start().await;
    let agent = world.agent("lamp-1", &["ssh"], echo).await;
    let client = world.client();
    let streams = async {
        world.until("online", |relay| relay.devices() == 1).await;
        for number in 0..STREAMS {
            let open = client.open(&"lamp-1".parse().unwrap(), &"ssh".parse().unwrap());
            let mut stream = open.send_from(&mut [7; 100].as_slice()).await.unwrap();
            stream.shutdown().await.unwrap();
            assert_eq!(stream.read_to_end(&mut Vec::new()).await.unwrap(), 100);
            assert!(stream.finish().await.is_clean(), "{number}");
            sleep(Duration::from_millis(10)).await; // the legs that are kept are idle
        }
    };
    tokio::select! {
        ended = agent.run(std::future::pending()) => panic!("{ended:?}"),
        () = streams => {}
    }
    let legs = |reuse: bool| if reuse { 1 } else { usize::try_from(STREAMS).unwrap() };
    assert_eq!(world.dialled(), 1 + legs(devices_reuse()) + legs(callers_reuse()), "the control channel, and the legs");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_does_not_use_legs_again_has_a_connection_for_each_stream() {
    let (world, target) = (World::start().await, Target::echo().await);
    let (to_device, to_caller) =
        (Link::start(world.address, |_| Plan::default()).await, Link::start(world.address, |_| Plan::default()).await);
    let _device = world.device_by(to_device.address.port(), "lamp-1", &[("data", target.address)]).await;
    let forward = world.forward_by(to_caller.address.port(), "lamp-1", &["data"]).await;
    for _ in 0..STREAMS {
        let mut tcp = TcpStream::connect(forward.local[0]).await.expect("the forward listens");
        tcp.write_all(b"question").await.expect("the stream accepts bytes");
        tcp.shutdown().await.expect("the direction is half-closed");
        assert_eq!(tcp.read_to_end(&mut Vec::new()).await.expect("an end, not a cut"), 8);
    }
    for (who, reuse, connections) in
        [("caller", callers_reuse(), to_caller.connections()), ("device", devices_reuse(), to_device.connections() - 1)]
    {
        assert!(reuse || connections == STREAMS, "{connections} of the {who}");
    }
}
