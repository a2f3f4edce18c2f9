//! What the agent and the client cost: resident memory idle and with streams, and bytes through `forward`, with the CPU time of each program.

use moorline_tests::targets::Target;
use moorline_tests::world::World;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::process::Process;
use crate::table::{Spread, Table};
use crate::trip::{nodelay_echo, tcp};

const STREAMS: usize = 100;
/// Streams that are open before memory is looked at.
const WARMING: usize = 10;
const MEBIBYTES: usize = 256;
const ROUNDS: usize = 3;

/// Measures both ends as real programs.
pub async fn measure(table: &mut Table) {
    let world = World::start().await;
    let (echo, sink, source) = (Target::start(nodelay_echo).await, Target::start(sink).await, Target::start(source).await);
    let services = [("echo", echo.address), ("sink", sink.address), ("source", source.address)];
    let device = world.device("ends", &services).await;
    let forward = world.forward("ends", &["echo", "sink", "source"]).await;
    let (agent, client, relay) = (Process(device.agent.id()), Process(forward.program.id()), Process(world.relay.id()));

    table.alone("agent, resident, idle", "MiB", agent.resident_kib() / 1024.0, "");
    table.alone("client (forward), resident, idle", "MiB", client.resident_kib() / 1024.0, "");
    // The first ones bring what the programs need once, or for each thread.
    let mut streams = Vec::new();
    for _ in 0..WARMING {
        streams.push(open_and_ask(forward.local[0]).await);
    }
    let before = [agent, client, relay].map(Process::resident_kib);
    for _ in 0..STREAMS {
        streams.push(open_and_ask(forward.local[0]).await);
    }
    let after = [agent, client, relay].map(Process::resident_kib);
    for (at, name) in ["agent", "client (forward)"].into_iter().enumerate() {
        table.alone(format!("{name}, resident, {STREAMS} streams"), "MiB", after[at] / 1024.0, "");
    }
    for (at, (name, reach)) in [("agent", "≤ 10 KiB"), ("client (forward)", "≤ 16 KiB"), ("relay", "≤ 16 KiB")].into_iter().enumerate()
    {
        table.alone(format!("{name}, memory of a silent open stream"), "KiB", (after[at] - before[at]) / STREAMS as f64, reach);
    }
    drop(streams);

    for (local, target, name) in [(forward.local[1], sink.address, "up"), (forward.local[2], source.address, "down")] {
        let (mut ours, mut beside) = (Spread::default(), Spread::default());
        let mut cpu: [Spread; 3] = Default::default();
        for _ in 0..ROUNDS {
            let before = [relay, agent, client].map(Process::cpu);
            ours.push(transfer(local, name).await);
            let gigabytes = (MEBIBYTES << 20) as f64 / 1e9;
            let after = [relay, agent, client].map(Process::cpu);
            cpu.iter_mut().enumerate().for_each(|(at, spread)| spread.push((after[at] - before[at]) / gigabytes));
            beside.push(transfer(target, name).await);
        }
        table.beside(format!("bytes through forward, {name}"), "GB/s", ours.median(), beside.median(), "");
        for (program, cpu) in ["relay", "agent", "client"].into_iter().zip(cpu) {
            table.alone(format!("  CPU of the {program}"), "s/GB", cpu.median(), "");
        }
    }
    table.note("bytes through forward: all on one machine, so the cores are shared by five programs; beside: TCP to the same target");
}

/// A stream that has carried something each way.
async fn open_and_ask(address: std::net::SocketAddr) -> TcpStream {
    let mut stream = tcp(address).await;
    stream.write_all(&[7; 64]).await.expect("the stream is open");
    stream.read_exact(&mut [0; 64]).await.expect("the stream is open");
    stream
}

/// Gigabytes per second.
async fn transfer(address: std::net::SocketAddr, way: &str) -> f64 {
    let begun = Instant::now();
    let mut tcp = TcpStream::connect(address).await.expect("it listens");
    let bytes = MEBIBYTES << 20;
    if way == "up" {
        send(&mut tcp).await;
        tcp.shutdown().await.expect("the stream is open");
        assert_eq!(tcp.read_u64().await.expect("the stream is open"), bytes as u64);
    } else {
        assert_eq!(count(&mut tcp).await, bytes);
    }
    bytes as f64 / 1e9 / begun.elapsed().as_secs_f64()
}

async fn send(tcp: &mut TcpStream) {
    let piece = vec![7; 64 << 10];
    for _ in 0..(MEBIBYTES << 20) / piece.len() {
        tcp.write_all(&piece).await.expect("the stream is open");
    }
}

async fn count(tcp: &mut TcpStream) -> usize {
    let (mut buffer, mut all) = (vec![0; 256 << 10], 0);
    loop {
        match tcp.read(&mut buffer).await.expect("the stream is open") {
            0 => return all,
            count => all += count,
        }
    }
}

/// Reads to the end and returns the number of bytes.
async fn sink(mut tcp: TcpStream) {
    let all = count(&mut tcp).await;
    tcp.write_u64(all as u64).await.ok();
}

/// Sends the payload of a source and ends.
async fn source(mut tcp: TcpStream) {
    send(&mut tcp).await;
    tcp.shutdown().await.ok();
    drop(tcp.read_u8().await);
}
