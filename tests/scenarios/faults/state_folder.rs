//! Two relays on one state folder.

use std::time::Duration;

use moorline_tests::programs::run;
use moorline_tests::world::World;

const WITHIN: Duration = Duration::from_secs(20);

#[tokio::test(flavor = "multi_thread")]
async fn a_second_relay_on_a_state_folder_in_use_does_not_start() {
    let mut world = World::start().await;
    let second = run(&mut world.second_relay(), WITHIN).await;
    assert!(second.code.is_some_and(|code| code != 0), "{:?}: {}", second.code, second.err);
    let (state, output) = (world.path("relay").display().to_string(), second.err.to_lowercase());
    assert!(output.contains(&state.to_lowercase()) && output.contains("another"), "which folder, and why: {}", second.err);
    assert!(!output.contains("listening"), "it must not listen: {}", second.err);
    assert_eq!(world.request("GET", "/v1/about", "").await.0, 200, "the first one is not disturbed");
    world.restart().await; // a relay that was killed leaves no lock behind
    assert_eq!(world.request("GET", "/v1/about", "").await.0, 200);
}
