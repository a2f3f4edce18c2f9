//! Opening over a long line: 100 ms of round trip between the relay and each side, from a local connection to the first byte back. Beside it is the
//! floor: one round trip of each side.

use std::net::SocketAddr;
use std::time::Duration;

use moorline_tests::link::{Link, Plan};
use moorline_tests::targets::Target;
use moorline_tests::world::{Device, World};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::Instant;

use crate::table::{Spread, Table};
use crate::trip::{nodelay_echo, tcp};

/// One way.
const LATENCY: Duration = Duration::from_millis(50);
/// Devices, each of which has had no stream before its first.
const DEVICES: usize = 5;
/// Streams to each of them afterwards.
const AGAIN: usize = 4;
/// The floor in milliseconds.
const FLOOR: f64 = 200.0;

/// Measures opening cold and warm.
pub async fn measure(table: &mut Table) {
    let world = World::start().await;
    let line = Plan { latency: LATENCY, ..Plan::default() };
    let (of_caller, of_device) = (Link::start(world.address, move |_| line).await, Link::start(world.address, move |_| line).await);
    let (echo, banner) = (Target::start(nodelay_echo).await, Target::start(greet).await);
    let mut devices: Vec<Device> = Vec::new();
    for number in 0..DEVICES {
        let services = [("echo", echo.address), ("banner", banner.address)];
        devices.push(world.device_by(of_device.address.port(), &format!("far-{number}"), &services).await);
    }
    let (mut cold, mut ready_device, mut banners, mut warm) = (Spread::default(), Spread::default(), Spread::default(), Spread::default());
    for number in 0..DEVICES {
        let id = format!("far-{number}");
        // A program that has nothing ready, to a device that has had no stream; then to one that keeps a leg.
        cold.push(connect(&world, of_caller.address, &id, "echo").await);
        ready_device.push(connect(&world, of_caller.address, &id, "echo").await);
        banners.push(connect(&world, of_caller.address, &id, "banner").await);
        let forward = world.forward_by(of_caller.address.port(), &id, &["echo"]).await;
        first_byte(forward.local[0]).await;
        for _ in 0..AGAIN {
            // The legs come back a round trip after the end of the stream.
            tokio::time::sleep(6 * LATENCY).await; // real time: the line is real
            warm.push(first_byte(forward.local[0]).await);
        }
    }
    table.beside("open over 100 ms, connect, nothing ready, p50", "ms", cold.median(), FLOOR, "≤ 715 ms");
    table.beside("open over 100 ms, connect, the device has a leg, p50", "ms", ready_device.median(), FLOOR, "≤ 515 ms");
    table.beside("  the same, and the target speaks first, p50", "ms", banners.median(), FLOOR, "≤ 415 ms");
    table.beside("open over 100 ms, forward, warm, p50", "ms", warm.median(), FLOOR, "≤ 215 ms");
    table.note("open over 100 ms: from the local connection, or from `open` of a client that has nothing, to the first byte back; beside: one round trip of each side");
    drop(devices);
}

async fn greet(mut tcp: tokio::net::TcpStream) {
    tcp.write_all(b"hello\n").await.ok();
    tcp.read_to_end(&mut Vec::new()).await.ok();
}

/// The milliseconds from a local connection to the first byte back, which is waited for after one byte was sent.
async fn first_byte(local: SocketAddr) -> f64 {
    let begun = Instant::now();
    let mut stream = tcp(local).await;
    stream.write_all(&[7]).await.expect("it is open");
    stream.read_u8().await.expect("it is open");
    let took = begun.elapsed().as_secs_f64() * 1e3;
    stream.shutdown().await.expect("it is open");
    stream.read_to_end(&mut Vec::new()).await.expect("it ends");
    took
}

/// The same through the library, by a client that keeps nothing.
async fn connect(world: &World, relay: SocketAddr, device: &str, service: &str) -> f64 {
    let join = std::fs::read_to_string(world.join_by(relay.port())).expect("a join string").parse().expect("a join string");
    let client = moorline::Client::new(&join, Some(world.token())).expect("the relay's CA is trusted").with_idle_legs(0);
    let (device, service) = (device.parse().expect("a device id"), service.parse().expect("a service"));
    let begun = Instant::now();
    let mut early: &[u8] = &[7];
    let mut stream = client.open(&device, &service).send_from(&mut early).await.expect("nothing refuses it");
    stream.read_u8().await.expect("the stream is open");
    let took = begun.elapsed().as_secs_f64() * 1e3;
    // Ended by both sides: after any other end the device's leg is closed.
    stream.shutdown().await.expect("the stream is open");
    stream.read_to_end(&mut Vec::new()).await.expect("the stream ends");
    stream.finish().await;
    // The device's leg comes back to it.
    tokio::time::sleep(6 * LATENCY).await; // real time: the line is real
    took
}
