//! A finished stream whose side never answers its Close.

use std::time::Duration;

use moorline_tests::faulty_pipe::{Fault, FaultyPipe};
use moorline_tests::memory::{HOST, MemoryWorld};
use moorline_tests::wire::{WireLeg, bearer};
use tokio::time::{Instant, timeout};

/// Both directions have ended; the caller never answers the relay's Close. The stream is over, and its slot is free.
#[tokio::test(start_paused = true)]
async fn a_finished_stream_whose_close_is_not_answered_holds_no_slot() {
    let world = MemoryWorld::start_from("", "", "streams = 1\nstreams_per_device = 1").await;
    let mut device = world.device("lamp-1").await;
    let authorization = bearer(&world.token());
    let mut silent = Vec::new();
    for _ in 0..3 {
        let (pipe, switch) = FaultyPipe::new(world.dial());
        let headers = [("authorization", authorization.as_str())];
        let mut caller = WireLeg::join(pipe, HOST, "/v1/devices/lamp-1/connect/ssh", &headers).await.expect("the slot is free");
        let offer = device.offer().await;
        device.accept(offer.stream).await;
        let mut leg = world.join(offer.url.as_str(), &offer.token).await.unwrap();
        caller.opened().await;
        leg.opened().await;
        caller.end().await;
        leg.ended().await;
        leg.end().await;
        caller.ended().await;
        switch.set(Fault::NeverReads);
        let gone = timeout(Duration::from_secs(1), world.until("the finished stream is gone", |relay| relay.streams() == 0)).await;
        assert!(gone.is_ok(), "a finished stream holds its slot");
        assert_eq!(leg.closed().await, 1000, "the other side is not kept waiting");
        silent.push(caller);
    }
    // What remains is one connection for each, which has a deadline.
    let begun = Instant::now();
    tokio::select! {
        () = world.until("the connections are closed", |relay| relay.tasks().values().sum::<usize>() == 1) => {}
        message = device.next() => panic!("{message:?}"),
    }
    assert!(begun.elapsed() <= Duration::from_secs(610), "after {:?}", begun.elapsed());
}
