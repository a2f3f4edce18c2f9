//! What a stream that is over costs the relay: resident memory after tens of thousands of them, while their tokens and keys are still remembered.

use futures_util::StreamExt;
use futures_util::stream::iter;
use moorline_tests::targets::Target;
use moorline_tests::world::World;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::process::Process;
use crate::table::Table;
use crate::trip::{nodelay_echo, tcp};

/// Before the first measurement: what is allocated once, and the log's buffers.
const WARM: usize = 2_000;
/// Streams of one measurement. All of them are remembered at its end: it takes far less than `closed_stream_retention`.
const STREAMS: usize = 10_000;
const ROUNDS: usize = 2;
const AT_ONCE: usize = 16;

/// Opens and ends streams through `forward`, each with a key of its own, and measures the relay's growth.
pub async fn measure(table: &mut Table) {
    let world = World::start().await;
    let echo = Target::start(nodelay_echo).await;
    let _device = world.device("remembered", &[("echo", echo.address)]).await;
    let forward = world.forward("remembered", &["echo"]).await;
    let relay = Process(world.relay.id());
    let local = forward.local[0];
    let streams = async |count: usize| {
        let all = iter(0..count).map(|_| async move {
            let mut stream = tcp(local).await;
            stream.write_all(&[7; 64]).await.expect("the stream is open");
            stream.shutdown().await.expect("the stream is open");
            assert_eq!(stream.read_to_end(&mut Vec::new()).await.expect("the stream ends"), 64);
        });
        all.buffer_unordered(AT_ONCE).collect::<Vec<()>>().await;
    };
    streams(WARM).await;
    for round in 1..=ROUNDS {
        let before = relay.resident_kib();
        streams(STREAMS).await;
        let growth = (relay.resident_kib() - before) * 1_024.0 / STREAMS as f64;
        table.alone(format!("relay, growth for a finished stream, {STREAMS} more ({round})"), "bytes", growth, "");
    }
    table.alone("relay, resident after all of them", "MiB", relay.resident_kib() / 1_024.0, "");
    table.note("growth: resident memory while every finished stream is still remembered (closed_stream_retention, 5 min)");
}
