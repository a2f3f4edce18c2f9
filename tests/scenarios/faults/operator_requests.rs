//! An operator whose connection ends while the relay works on the request.

use std::time::Duration;

use moorline_proto::close::CloseReason;
use moorline_tests::database::WriteLock;
use moorline_tests::world::World;
use tokio::time::timeout;

const WITHIN: Duration = Duration::from_secs(30);

/// The operator's connection is reset while the database is locked. The removal continues, and so does its enforcement.
#[tokio::test(flavor = "multi_thread")]
async fn a_removal_whose_operator_disconnects_is_enforced_all_the_same() {
    let world = World::start().await;
    let mut device = world.wire_device("lamp-1").await;
    let (mut caller, mut leg) = world.stream(&mut device, "lamp-1", &[]).await;

    let lock = WriteLock::hold(&world.database()).await;
    let operator = world.send_request("DELETE", "/v1/devices/lamp-1").await;
    // The response on another connection proves that the relay has read the earlier request.
    assert_eq!(world.request("GET", "/v1/about", "").await.0, 200);
    operator.get_ref().0.set_zero_linger().expect("a socket of this machine");
    drop(operator);
    assert_eq!(world.request("GET", "/v1/about", "").await.0, 200);
    lock.release().await;

    let revoked = CloseReason::Revoked.code();
    let closed = timeout(WITHIN, device.closed()).await.expect("the device is disconnected");
    assert_eq!(closed.0, revoked);
    let both = async { tokio::join!(caller.closed(), leg.closed()) };
    assert_eq!(timeout(WITHIN, both).await.expect("its stream is cut"), (revoked, revoked));
    assert_eq!(world.request("GET", "/v1/devices/lamp-1", "").await.0, 404, "the device is removed");
}
