//! What an idle device costs the relay: resident memory, and CPU time to connect, compared with a bare TLS accept. All connections are real and open at the same time.

use std::net::SocketAddr;
use std::sync::Arc;

use futures_util::StreamExt;
use futures_util::stream::iter;
use moorline_relay::access::mint::SigningKey;
use moorline_tests::wire::{Persona, WireDevice};
use moorline_tests::world::World;
use tokio::io::AsyncReadExt;
use tokio::time::{Duration, timeout};

use crate::load::{Connect, HOST, Tls};
use crate::plain::Plain;
use crate::process::Process;
use crate::splice::INSTANCE;
use crate::table::Table;

/// The number of devices; fewer where the machine has too few file descriptors.
const DEVICES: usize = 5_000;
/// Connections that are opened concurrently: below the relay's limit of unauthenticated connections.
const AT_ONCE: usize = 32;

/// Connects devices, and the same number of bare TLS connections.
pub async fn measure(table: &mut Table) {
    let world = World::start().await;
    let plain = Plain::start(&world).await;
    let connect = Connect::cold(&world);
    let (descriptors, _) = rlimit::Resource::NOFILE.get().expect("the limit is known");
    let count = DEVICES.min(usize::try_from(descriptors).unwrap_or(DEVICES).saturating_sub(500) / 2);
    let keys = add(&world, count).await;

    let relay = Process(world.relay.id());
    warm(&world, &connect, &keys).await;
    let (memory, cpu) = (relay.resident_kib(), relay.cpu());
    let devices: Vec<WireDevice<Tls>> =
        iter(keys.iter().enumerate()).map(|(number, key)| device(&world, &connect, number, key)).buffer_unordered(AT_ONCE).collect().await;
    let ours = (relay.resident_kib() - memory, relay.cpu() - cpu);

    let server = Process(plain.program.id());
    drop(held(&connect, plain.address).await);
    let (memory, cpu) = (server.resident_kib(), server.cpu());
    let bare: Vec<Tls> = iter(0..count).map(|_| held(&connect, plain.address)).buffer_unordered(AT_ONCE).collect().await;
    let beside = (server.resident_kib() - memory, server.cpu() - cpu);

    let each = 1.0 / count as f64;
    table.beside(format!("memory of an idle device, {count} online"), "KiB", ours.0 * each, beside.0 * each, "≤ 6 KiB");
    table.beside("CPU of a device's coming", "ms", ours.1 * each * 1e3, beside.1 * each * 1e3, "≤ 3");
    table.note("idle: resident memory of the relay, what the kernel holds apart; beside: a TLS connection that is accepted and held");
    drop((devices, bare));
}

/// Registers devices over the API; each has a key of its own.
async fn add(world: &World, count: usize) -> Vec<Arc<SigningKey>> {
    let client = world.library();
    iter(0..count)
        .map(|number| {
            let (client, key) = (client.clone(), Arc::new(SigningKey::generate().expect("a key is generated")));
            async move {
                let id = name(number).parse().expect("a device id");
                client.put_device(&id, vec![key.public().clone()]).await.expect("the device is added");
                key
            }
        })
        .buffered(AT_ONCE)
        .collect()
        .await
}

fn name(number: usize) -> String {
    format!("idle-{number}")
}

/// Connects and disconnects as many devices as will be on their way at once, so that what the programs need once, or for each thread, and what
/// their coming needs, is there before the measurement.
async fn warm(world: &World, connect: &Connect, keys: &[Arc<SigningKey>]) {
    let keys = keys.iter().enumerate().take(AT_ONCE);
    let devices: Vec<_> = iter(keys).map(|(number, key)| device(world, connect, number, key)).buffer_unordered(AT_ONCE).collect().await;
    let first = devices.len();
    drop(devices);
    let client = world.library();
    for number in 0..first {
        let id = name(number).parse().expect("a device id");
        let gone = async { while client.device(&id).await.is_ok_and(|device| device.online.is_some()) {} };
        timeout(Duration::from_secs(10), gone).await.expect("the relay sees that the device is gone");
    }
}

async fn device(world: &World, connect: &Connect, number: usize, key: &SigningKey) -> WireDevice<Tls> {
    let persona = Persona {
        device: name(number).parse().expect("a device id"),
        key,
        instance: INSTANCE.parse().expect("an instance"),
        services: &["ssh"],
        host: HOST,
        features: &[],
    };
    WireDevice::connect(connect.to(world.address).await, &persona).await.expect("the device is admitted")
}

/// A bare TLS connection whose handshake is complete at the server: its session tickets have arrived.
async fn held(connect: &Connect, address: SocketAddr) -> Tls {
    let mut tls = connect.to(address).await;
    // Only session tickets arrive; the read processes them.
    drop(timeout(Duration::from_millis(1), tls.read_u8()).await);
    tls
}
