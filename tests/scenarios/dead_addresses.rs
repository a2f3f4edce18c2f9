//! Names with several addresses, of which the first never answers: they cost the programs a moment, not a deadline. And `moorline forward`, which
//! listens on both addresses of `localhost`.

use std::net::SocketAddr;
use std::time::Duration;

use moorline_tests::namespace::{SILENT, is_inside};
use moorline_tests::programs::{binaries, run};
use moorline_tests::targets::Target;
use moorline_tests::world::World;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, lookup_host};
use tokio::process::Command;
use tokio::time::{Instant, timeout};

const WITHIN: Duration = Duration::from_secs(60);
/// What each of the programs may take. One dead address costs 250 ms; one after another, they took from 7.5 to 30 s.
const SOON: Duration = Duration::from_secs(3);

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_address_of_the_relay_or_of_a_target_delays_nobody_for_long() {
    // The relay's name is `localhost`.
    let hosts = format!("{SILENT} localhost target.test\n127.0.0.1 localhost target.test\n");
    if !is_inside("dead_addresses::a_dead_address_of_the_relay_or_of_a_target_delays_nobody_for_long", &hosts, "").await {
        return;
    }
    let addresses: Vec<SocketAddr> = lookup_host("localhost:9").await.expect("it resolves").collect();
    assert!(addresses.len() == 2 && addresses[0].is_ipv6(), "the dead address is first: {addresses:?}");
    timeout(Duration::from_secs(1), TcpStream::connect(addresses[0])).await.expect_err("it does not answer");

    let (world, echo) = (World::start().await, Target::echo().await);
    let folder = world.path("lamp-1");
    let mut init = Command::new(&binaries().agent);
    init.args(["init", "--device", "lamp-1", "--join"]).arg(world.join_file()).arg("--dir").arg(&folder);
    init.arg("--service").arg(format!("echo=target.test:{}", echo.address.port()));
    let public = run(&mut init, WITHIN).await.success();
    world.add("lamp-1", &public.out).await;

    let mut took = Vec::new();
    let begun = Instant::now();
    let _device = world.agent(&folder).await;
    took.push(("agent online", begun.elapsed()));
    for args in [["device", "show", "lamp-1"], ["connect", "lamp-1", "echo"]] {
        for _ in ["once", "again"] {
            let begun = Instant::now();
            let done = run(world.client().args(args), WITHIN).await;
            took.push((args[0], begun.elapsed()));
            assert_eq!(done.code, Some(0), "{args:?}: {}\n{took:?}", done.err);
        }
    }
    println!("{took:?}");
    assert!(took.iter().all(|(_, took)| *took < SOON), "{took:?}");
}

/// Sends a byte to an address of a forward, and waits until it comes back.
async fn echoes(address: SocketAddr) {
    let exchange = async {
        let mut tcp = TcpStream::connect(address).await.expect("the forward listens");
        tcp.write_all(b"a").await.expect("the stream accepts bytes");
        assert_eq!(tcp.read_u8().await.expect("the byte comes back"), b'a');
    };
    timeout(WITHIN, exchange).await.expect("in time");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forward_listens_on_both_addresses_of_localhost() {
    if !is_inside("dead_addresses::a_forward_listens_on_both_addresses_of_localhost", "127.0.0.1 localhost\n", "").await {
        return;
    }
    let (world, echo) = (World::start().await, Target::echo().await);
    let _device = world.device("lamp-1", &[("echo", echo.address)]).await;
    let forward = world.forward("lamp-1", &["echo"]).await;
    let (v4, v6) = (forward.local[0], SocketAddr::new("::1".parse().expect("an address"), forward.local[0].port()));
    echoes(v4).await;
    echoes(v6).await;
    let line = format!("forwarding {v4} and {v6} to lamp-1/echo");
    forward.program.line("both addresses", |printed| printed.contains(&line).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forward_without_ipv6_listens_on_ipv4_alone() {
    let scenario = "dead_addresses::a_forward_without_ipv6_listens_on_ipv4_alone";
    if !is_inside(scenario, "127.0.0.1 localhost\n", "ip -6 address delete ::1/128 dev lo").await {
        return;
    }
    let (world, echo) = (World::start().await, Target::echo().await);
    let _device = world.device("lamp-1", &[("echo", echo.address)]).await;
    let forward = world.forward("lamp-1", &["echo"]).await;
    echoes(forward.local[0]).await;
    let line = format!("forwarding {} to lamp-1/echo", forward.local[0]);
    forward.program.line("its only address", |printed| printed.contains(&line).then_some(())).await;
}
