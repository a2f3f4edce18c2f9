//! The round trip of 64 bytes through an open stream, compared with direct TCP.

use moorline_tests::world::World;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::plain::Plain;
use crate::table::{Spread, Table};

/// Alternating, so that all are measured under the same conditions.
const TURNS: usize = 20;
const TRIPS: usize = 200;

/// Measures round trips: through the library, through `forward`, and direct.
pub async fn measure(table: &mut Table) {
    let world = World::start().await;
    let plain = Plain::start(&world).await;
    let _device = world.device("trip", &[("echo", plain.echo)]).await;
    let forward = world.forward("trip", &["echo"]).await;
    let client = world.library();
    let (id, service) = ("trip".parse().expect("a device id"), "echo".parse().expect("a service"));
    let mut stream = client.open(&id, &service).await.expect("nothing refuses the stream");
    let mut local = tcp(forward.local[0]).await;
    let mut direct = tcp(plain.echo).await;
    let (mut library, mut through, mut beside) = (Spread::default(), Spread::default(), Spread::default());
    for _ in 0..TURNS {
        trips(&mut stream, &mut library).await;
        trips(&mut local, &mut through).await;
        trips(&mut direct, &mut beside).await;
    }
    let reach = "≤ 3 × beside + 0.1 ms";
    for (name, ours) in [("library", &library), ("forward", &through)] {
        for percent in [50, 99] {
            table.beside(
                format!("round trip of 64 B, {name}, p{percent}"),
                "ms",
                ours.percentile(percent),
                beside.percentile(percent),
                reach,
            );
        }
    }
    table.note("round trip: load, relay, agent and echo are processes of their own; beside: TCP to the same echo");
}

/// A TCP connection with `TCP_NODELAY`.
pub async fn tcp(address: std::net::SocketAddr) -> TcpStream {
    let tcp = TcpStream::connect(address).await.expect("it listens");
    tcp.set_nodelay(true).expect("TCP options can be set");
    tcp
}

/// Sends everything back.
pub async fn nodelay_echo(mut tcp: TcpStream) {
    tcp.set_nodelay(true).ok();
    let mut buffer = vec![0; 1 << 10];
    while let Ok(count @ 1..) = tcp.read(&mut buffer).await {
        if tcp.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
}

async fn trips(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), spread: &mut Spread) {
    let mut answer = [0; 64];
    for _ in 0..TRIPS {
        let begun = Instant::now();
        stream.write_all(&[7; 64]).await.expect("the stream is open");
        stream.flush().await.expect("the stream is open");
        stream.read_exact(&mut answer).await.expect("the stream is open");
        spread.push(begun.elapsed().as_secs_f64() * 1e3);
    }
}
