//! Unauthenticated connections from one address: they use a share of the capacity, and other addresses are served.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use moorline_tests::connect_flood::ConnectFlood;
use moorline_tests::world::World;
use tokio::process::Command;
use tokio::time::{Instant, timeout};

/// The address of the flood; all other peers connect from 127.0.0.1.
const FLOOD: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 66));
/// An answer takes less than this during the flood; without a share for each address it takes many seconds.
const ANSWERED_WITHIN: Duration = Duration::from_secs(2);

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_connects_from_one_address_does_not_delay_other_addresses() {
    let world = World::start_as("", "unauthenticated_connections = 64\n", |program| Command::new(program)).await;
    // 500 connections a second for five seconds.
    let flood = ConnectFlood::start(FLOOD, world.address, 500, 2_500);
    let mut slowest = Duration::ZERO;
    while flood.dialled() < 2_000 {
        let begun = Instant::now();
        let answer = timeout(ANSWERED_WITHIN * 10, world.request("GET", "/v1/about", "")).await;
        slowest = slowest.max(begun.elapsed());
        assert!(answer.is_ok_and(|(status, _)| status == 200) && slowest < ANSWERED_WITHIN, "answered within {slowest:?}");
    }
    assert!(flood.open() < 64, "{} connections of one address are open: all of the capacity", flood.open());
    let device = async { world.wire_device("lamp-1").await };
    timeout(ANSWERED_WITHIN * 5, device).await.expect("a device connects during the flood");
}
