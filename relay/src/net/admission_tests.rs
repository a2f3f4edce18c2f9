//! Permits with a paused clock: waiting, eviction, and what is counted for addresses and callers.

use std::time::Duration;

use super::*;
use crate::limits::EVICTABLE_AFTER;

fn admission() -> Admission {
    let number = |number: usize| number.try_into().unwrap();
    Admission::new(&Limits {
        unauthenticated_connections: number(2),
        unauthenticated_per_address: number(2),
        connections: number(3),
        connections_per_caller: number(2),
        ..Limits::default()
    })
}

fn address(text: &str) -> Option<AddressPrefix> {
    Some(AddressPrefix::of(text.parse().unwrap()))
}

const ADDRESS: &str = "192.0.2.1";
const OTHER_ADDRESS: &str = "192.0.2.2";

#[tokio::test(start_paused = true)]
async fn the_oldest_unauthenticated_connection_is_evicted_once_it_is_old() {
    let admission = admission();
    let (first, _second) = (admission.admit(address(ADDRESS)).unwrap(), admission.admit(address(OTHER_ADDRESS)).unwrap());
    assert_eq!(admission.admit(None).unwrap_err(), Full::Unauthenticated, "earlier connections can finish");
    tokio::time::advance(EVICTABLE_AFTER).await;
    let _third = admission.admit(None).unwrap();
    first.evicted().await;
    assert!(!first.is_unauthenticated());
}

#[tokio::test(start_paused = true)]
async fn ready_waits_until_a_permit_is_dropped_or_the_oldest_can_be_evicted() {
    let admission = admission();
    let start = Instant::now();
    admission.ready().await;
    let (first, _second) = (admission.admit(address(ADDRESS)).unwrap(), admission.admit(address(OTHER_ADDRESS)).unwrap());
    admission.ready().await;
    assert_eq!(start.elapsed(), EVICTABLE_AFTER);
    let (third, fourth) = (admission.admit(None).unwrap(), admission.admit(None));
    assert_eq!(fourth.unwrap_err(), Full::Connections);
    drop(first);
    let start = Instant::now();
    let leaving = async {
        tokio::time::sleep(Duration::from_millis(1)).await;
        drop(third);
    };
    tokio::join!(admission.ready(), leaving);
    assert!(start.elapsed() < EVICTABLE_AFTER);
}

#[tokio::test(start_paused = true)]
async fn an_authenticated_connection_is_not_evicted_and_frees_its_unauthenticated_permit() {
    let admission = admission();
    let (first, _second) = (admission.admit(address(ADDRESS)).unwrap(), admission.admit(address(OTHER_ADDRESS)).unwrap());
    first.authenticated();
    let _third = admission.admit(address(OTHER_ADDRESS)).unwrap();
    tokio::time::advance(EVICTABLE_AFTER).await;
    assert_eq!(admission.admit(None).unwrap_err(), Full::Connections);
    drop(first);
    let _fourth = admission.admit(None).unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_flood_from_one_address_is_refused_at_once_and_another_address_does_not_wait() {
    let admission = Admission::new(&Limits::default());
    let start = Instant::now();
    let held: Vec<_> = (0..128).map(|_| admission.admit(address(ADDRESS)).unwrap()).collect();
    for _ in 0..10_000 {
        admission.ready().await;
        assert_eq!(admission.admit(address(ADDRESS)).unwrap_err(), Full::Address);
    }
    admission.ready().await;
    let honest = admission.admit(address(OTHER_ADDRESS)).unwrap();
    assert_eq!(start.elapsed(), Duration::ZERO);
    assert!(honest.is_unauthenticated() && held.iter().all(ConnectionPermit::is_unauthenticated));
}

#[tokio::test(start_paused = true)]
async fn an_address_at_its_share_gets_no_more_through_a_proxy() {
    let number = |number: usize| number.try_into().unwrap();
    let limits = Limits { unauthenticated_connections: number(4), unauthenticated_per_address: number(2), ..Limits::default() };
    let admission = Admission::new(&limits);
    let permits: Vec<_> = (0..4).map(|_| admission.admit(None).unwrap()).collect();
    permits[0].set_address(address(ADDRESS)).unwrap();
    permits[1].set_address(address(ADDRESS)).unwrap();
    assert_eq!(permits[2].set_address(address(ADDRESS)), Err(Full::Address));
    assert!(permits.iter().all(ConnectionPermit::is_unauthenticated), "earlier connections can finish");
    permits[3].set_address(address(OTHER_ADDRESS)).unwrap();

    permits[0].authenticated();
    permits[2].set_address(address(ADDRESS)).unwrap();
    permits[1].authenticated();
    permits[1].set_address(address(ADDRESS)).unwrap(); // it has authenticated and no longer counts
    permits[3].set_address(address(ADDRESS)).unwrap();
}

#[tokio::test(start_paused = true)]
async fn connections_are_counted_for_their_caller() {
    let admission = admission();
    let (alice, bob) = (CallerDigest::of(&"relay:alice"), CallerDigest::of(&"relay:bob"));
    let (first, second) = (admission.admit(None).unwrap(), admission.admit(None).unwrap());
    for _ in 0..10 {
        first.authenticated_as(alice).unwrap();
    }
    second.authenticated_as(alice).unwrap();
    let third = admission.admit(None).unwrap();
    assert_eq!(third.authenticated_as(alice), Err(TooManyCallerConnections(2)));
    assert!(third.is_unauthenticated());
    second.authenticated_as(bob).unwrap();
    third.authenticated_as(alice).unwrap();
    drop((first, second.clone(), third));
    assert_eq!(lock(&admission.0.callers).len(), 1, "only a clone of bob's permit is left");
    drop(second);
    assert!(lock(&admission.0.callers).is_empty());
}
