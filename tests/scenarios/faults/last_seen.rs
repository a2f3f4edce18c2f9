//! The time when a device was last seen: written in the background; nothing waits for it.

use std::time::Duration;

use moorline_tests::database::WriteLock;
use moorline_tests::world::World;
use tokio::time::timeout;

/// Far below the time for which a writer waits for a locked database.
const AT_ONCE: Duration = Duration::from_secs(3);

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_connects_while_the_database_is_locked_gets_offers_at_once() {
    let world = World::start().await;
    let key = moorline_relay::access::mint::SigningKey::generate().expect("a key is generated");
    world.add("lamp-1", key.public().to_pem().as_bytes()).await;
    let lock = WriteLock::hold(&world.database()).await;
    let opens = async {
        let mut device = world.wire_device_by("lamp-1", &key).await;
        world.stream(&mut device, "lamp-1", &[]).await;
        device
    };
    let device = timeout(AT_ONCE, opens).await.expect("nothing waits for the write of last_seen");
    lock.release().await;
    drop(device);
    world.relay.event("device offline").await;
}
