//! Pipelined requests whose answers are never read.

use std::time::Duration;

use moorline_tests::memory::{HOST, MemoryWorld};
use moorline_tests::unauthenticated_peer::pipeline_unread;
use moorline_tests::wire::bearer;
use tokio::time::timeout;

/// The deadline of an answer is far below this.
const WITHIN: Duration = Duration::from_secs(180);

/// The requests are authenticated, so that no limit of unauthenticated peers ends them first.
#[tokio::test(start_paused = true)]
async fn pipelined_requests_whose_answers_are_not_read_are_closed_by_a_deadline() {
    let world = MemoryWorld::start().await;
    let authorization = bearer(&world.token());
    let request = format!("GET /v1/devices HTTP/1.1\r\nHost: {HOST}\r\nAuthorization: {authorization}\r\n\r\n");
    let mut connections: Vec<_> = (0..8).map(|_| world.dial()).collect();
    for connection in &mut connections {
        let sent = timeout(WITHIN, pipeline_unread(connection, &request, 100_000)).await;
        assert!(
            sent.is_ok_and(|sent| sent < 100_000),
            "the relay holds the connection, and what it does not read, without a limit of time"
        );
    }
    world.until("no task is left", |relay| relay.tasks().is_empty()).await;
    assert_eq!(world.request("GET", "/v1/devices", &[], None).await.0, 200);
}
