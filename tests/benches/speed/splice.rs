//! The CPU time that the relay needs to forward a gigabyte, and the throughput of one stream, compared with a plain copy between two TLS connections.

use std::net::SocketAddr;

use moorline_proto::id::DeviceId;
use moorline_relay::access::mint::SigningKey;
use moorline_tests::wire::{Persona, WireDevice, WireLeg, bearer};
use moorline_tests::world::World;
use tokio::io::{AsyncWriteExt, split};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::load::{Connect, Cut, Framing, HOST, Tls, drain, pour};
use crate::plain::{PAIR, Plain};
use crate::process::Process;
use crate::table::{Spread, Table};

/// The number of rounds for each shape and side; sides alternate.
const ROUNDS: usize = 5;
const DEVICE: &str = "load";
pub const INSTANCE: &str = "00112233445566778899aabbccddeeff";

/// A kind of load.
struct Shape {
    name: &'static str,
    cut: Cut,
    streams: usize,
    both_ways: bool,
    mebibytes: usize,
    reach: &'static str,
}

const SHAPES: &[Shape] = &[
    Shape { name: "64 KiB messages", cut: LARGE, streams: 1, both_ways: false, mebibytes: 512, reach: "≤ 1.15" },
    Shape { name: "1 KiB messages, 64 in a write", cut: SMALL, streams: 1, both_ways: false, mebibytes: 256, reach: "" },
    Shape { name: "1 KiB messages, a TLS record each", cut: ALONE, streams: 1, both_ways: false, mebibytes: 128, reach: "" },
    Shape { name: "64 KiB messages, both directions", cut: LARGE, streams: 1, both_ways: true, mebibytes: 512, reach: "" },
    Shape { name: "64 KiB messages, 16 streams", cut: LARGE, streams: 16, both_ways: false, mebibytes: 512, reach: "" },
];
const LARGE: Cut = Cut { message: 64 << 10, alone: false };
const SMALL: Cut = Cut { message: 1 << 10, alone: false };
const ALONE: Cut = Cut { message: 1 << 10, alone: true };

/// Both ends of a stream.
struct Ends(Tls, Tls);

/// Measures every shape on both sides alternately.
pub async fn measure(table: &mut Table) {
    let world = World::start().await;
    let plain = Plain::start(&world).await;
    let connect = Connect::cold(&world);
    let key = SigningKey::generate().expect("a key is generated");
    let device: DeviceId = DEVICE.parse().expect("a device id");
    world.library().put_device(&device, vec![key.public().clone()]).await.expect("the device is added");
    let persona =
        Persona { device, key: &key, instance: INSTANCE.parse().expect("an instance"), services: &["load"], host: HOST, features: &[] };
    let mut device = WireDevice::connect(connect.to(world.address).await, &persona).await.expect("the device is admitted");
    let (ours, beside) = (Process(world.relay.id()), Process(plain.program.id()));
    let mut suite = None;
    for shape in SHAPES {
        let mut spreads: [Spread; 5] = Default::default();
        for _ in 0..ROUNDS {
            let mut ends = Vec::new();
            for _ in 0..shape.streams {
                ends.push(stream(&world, &connect, &mut device).await);
            }
            let moorline = run(shape, ends, Framing::Frames, ours).await;
            let mut ends = Vec::new();
            for name in 0..shape.streams {
                ends.push(pair(plain.address, &connect, name as u8).await);
            }
            suite = ends[0].0.get_ref().1.negotiated_cipher_suite();
            let plain = run(shape, ends, Framing::Bare, beside).await;
            let both = [moorline.0, plain.0, moorline.1, plain.1, moorline.0 / plain.0];
            spreads.iter_mut().zip(both).for_each(|(spread, value)| spread.push(value));
        }
        let [cpu, plain_cpu, speed, plain_speed, ratio] = spreads;
        table.paired(format!("splice CPU, {}", shape.name), "s/GB", cpu.median(), plain_cpu.median(), ratio.median(), shape.reach);
        table.beside(format!("splice speed, {}", shape.name), "GB/s", speed.median(), plain_speed.median(), "");
    }
    let suite = suite.map(|suite| format!("{:?}", suite.suite())).unwrap_or_default();
    table.note(format!(
        "splice: medians of {ROUNDS} rounds in turns; the ratio of CPU is the median of the rounds' ratios; {suite}; beside: copy_bidirectional, 64 KiB"
    ));
}

async fn stream(world: &World, connect: &Connect, device: &mut WireDevice<Tls>) -> Ends {
    let token = std::fs::read_to_string(world.token_file()).expect("the world has a token");
    let authorization = bearer(&token.trim().to_owned().into());
    let path = format!("/v1/devices/{DEVICE}/connect/load");
    let tls = connect.to(world.address).await;
    let mut caller = WireLeg::join(tls, HOST, &path, &[("authorization", &authorization)]).await.expect("nothing refuses the stream");
    let offer = device.offer().await;
    device.accept(offer.stream).await;
    let tls = connect.to(world.address).await;
    let headers = [("authorization", bearer(&offer.token))];
    let headers = headers.each_ref().map(|(name, value)| (*name, value.as_str()));
    let mut device_leg = WireLeg::join(tls, HOST, offer.url.as_str(), &headers).await.expect("the token of the offer joins");
    caller.opened().await;
    device_leg.opened().await;
    Ends(caller.socket.into_inner(), device_leg.socket.into_inner())
}

async fn pair(address: SocketAddr, connect: &Connect, name: u8) -> Ends {
    let (mut first, mut second) = (connect.to(address).await, connect.to(address).await);
    for tls in [&mut first, &mut second] {
        tls.write_all(&[PAIR, name, 0, 0, 0, 0, 0, 0]).await.expect("the plain server accepts bytes");
        tls.flush().await.expect("the plain server accepts bytes");
    }
    Ends(first, second)
}

/// Returns CPU seconds per gigabyte, and gigabytes per second.
async fn run(shape: &Shape, ends: Vec<Ends>, framing: Framing, process: Process) -> (f64, f64) {
    let payload = (shape.mebibytes << 20) / shape.streams / if shape.both_ways { 2 } else { 1 };
    let (cut, both_ways) = (shape.cut, shape.both_ways);
    let mut transfers = JoinSet::new();
    let (before, begun) = (process.cpu(), Instant::now());
    let mut kept = Vec::new();
    for Ends(first, second) in ends {
        let (mut first_read, mut first_write) = split(first);
        let (mut second_read, mut second_write) = split(second);
        transfers.spawn(async move {
            pour(&mut first_write, framing, cut, payload).await;
            Half::Write(first_write)
        });
        transfers.spawn(async move {
            drain(&mut second_read, framing, payload).await;
            Half::Read(second_read)
        });
        if both_ways {
            transfers.spawn(async move {
                pour(&mut second_write, framing, cut, payload).await;
                Half::Write(second_write)
            });
            transfers.spawn(async move {
                drain(&mut first_read, framing, payload).await;
                Half::Read(first_read)
            });
        } else {
            kept.extend([Half::Write(second_write), Half::Read(first_read)]);
        }
    }
    kept.extend(transfers.join_all().await);
    let gigabytes = (shape.mebibytes << 20) as f64 / 1e9;
    let figures = ((process.cpu() - before) / gigabytes, gigabytes / begun.elapsed().as_secs_f64());
    drop(kept);
    figures
}

/// Kept until the figures are taken, so that closing a connection is not part of them.
#[expect(dead_code, reason = "held, not used")]
enum Half {
    Read(tokio::io::ReadHalf<Tls>),
    Write(tokio::io::WriteHalf<Tls>),
}
