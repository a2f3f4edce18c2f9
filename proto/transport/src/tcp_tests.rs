//! Connects to names on a network that is a table of addresses, on a paused clock.

use std::cell::{Cell, RefCell};
use std::future::pending;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::time::{Instant, advance, sleep, timeout};

use crate::race::{AFTER_REFUSAL, ATTEMPT_DELAY, MAX_ADDRESSES, in_order};
use crate::tcp::AddressSource::{CacheFirst, Resolve};
use crate::tcp::{AddressSource, ConnectError, REMEMBERED_FOR, TcpConnector};

const NAME: (&str, u16) = ("relay.test", 443);
/// ENFILE is the other one.
const EMFILE: i32 = 24;

/// What an address does with an attempt.
#[derive(Clone, Copy)]
enum Host {
    Silent,
    Connects(Duration),
    Fails(io::ErrorKind),
    NoDescriptors,
}

const AT_ONCE: Host = Host::Connects(Duration::ZERO);

fn v4(last: u8) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, last], NAME.1))
}

fn v6(last: u16) -> SocketAddr {
    SocketAddr::from(([0x2001, 0xdb8, 0, 0, 0, 0, 0, last], NAME.1))
}

/// Hosts by address, and what has been tried.
struct Network {
    hosts: RefCell<Vec<(SocketAddr, Host)>>,
    began: Instant,
    attempts: RefCell<Vec<(SocketAddr, u128)>>,
    running: Cell<usize>,
    resolved: Cell<usize>,
}

/// An attempt that goes on until it is dropped.
struct Running<'a>(&'a Cell<usize>);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

impl Network {
    fn of(hosts: &[(SocketAddr, Host)]) -> Self {
        Self {
            hosts: RefCell::new(hosts.to_vec()),
            began: Instant::now(),
            attempts: RefCell::default(),
            running: Cell::new(0),
            resolved: Cell::new(0),
        }
    }

    fn change(&self, address: SocketAddr, to: Host) {
        self.hosts.borrow_mut().iter_mut().filter(|(known, _)| *known == address).for_each(|(_, host)| *host = to);
    }

    async fn resolve(&self) -> io::Result<Vec<SocketAddr>> {
        self.resolved.set(self.resolved.get() + 1);
        Ok(self.hosts.borrow().iter().map(|(address, _)| *address).collect())
    }

    async fn attempt(&self, address: SocketAddr) -> io::Result<SocketAddr> {
        self.attempts.borrow_mut().push((address, self.began.elapsed().as_millis()));
        self.running.set(self.running.get() + 1);
        let _running = Running(&self.running);
        let host = self.hosts.borrow().iter().find(|(known, _)| *known == address).map(|(_, host)| *host);
        match host.unwrap_or(Host::Silent) {
            Host::Silent => pending().await,
            Host::Connects(after) => {
                sleep(after).await; // paused clock: how long the host takes
                Ok(address)
            }
            Host::Fails(kind) => Err(kind.into()),
            Host::NoDescriptors => Err(io::Error::from_raw_os_error(EMFILE)),
        }
    }

    /// Dials the name within ten seconds.
    async fn dial(&self, connector: &TcpConnector, source: AddressSource) -> Result<SocketAddr, ConnectError> {
        let deadline = Instant::now() + Duration::from_secs(10);
        connector.connect_with(NAME, source, deadline, self.resolve(), |address| self.attempt(address)).await
    }

    async fn dial_anew(&self) -> Result<SocketAddr, ConnectError> {
        self.dial(&TcpConnector::default(), Resolve).await
    }

    /// The attempts since the last call: address, and milliseconds since the network began.
    fn tried(&self) -> Vec<(SocketAddr, u128)> {
        self.attempts.take()
    }

    fn now(&self) -> u128 {
        self.began.elapsed().as_millis()
    }
}

#[test]
fn families_take_turns_in_the_resolvers_order() {
    assert_eq!(in_order(vec![v6(1), v6(2), v6(3), v4(1), v4(2)], None), [v6(1), v4(1), v6(2), v4(2), v6(3)]);
    assert_eq!(in_order(vec![v4(1), v4(2), v6(1)], None), [v4(1), v6(1), v4(2)]);
    assert_eq!(in_order(vec![v4(1), v4(1), v6(1), v4(1)], None), [v4(1), v6(1)], "each once");
    assert_eq!(in_order(vec![v6(1), v6(2), v4(1), v4(2)], Some(v4(2))), [v4(2), v6(1), v4(1), v6(2)], "the one that connected last");
    assert_eq!(in_order(vec![v6(1), v4(1)], Some(v4(9))), [v6(1), v4(1)], "an address that the name no longer has");
    assert!(in_order(Vec::new(), Some(v4(1))).is_empty());
}

#[test]
fn a_name_with_very_many_addresses_is_cut_and_keeps_both_families() {
    let addresses = in_order((0..200).map(v6).chain((0..200).map(v4)).collect(), None);
    assert_eq!(addresses.len(), MAX_ADDRESSES);
    assert_eq!(addresses.iter().filter(|address| address.is_ipv4()).count(), MAX_ADDRESSES / 2);
}

#[tokio::test(start_paused = true)]
async fn an_address_that_never_answers_costs_a_quarter_of_a_second() {
    let network = Network::of(&[(v6(1), Host::Silent), (v4(1), AT_ONCE)]);
    assert_eq!(network.dial_anew().await.unwrap(), v4(1));
    assert_eq!(network.tried(), [(v6(1), 0), (v4(1), 250)]);
    assert_eq!(network.running.get(), 0, "the other attempt is dropped");
}

#[tokio::test(start_paused = true)]
async fn attempts_start_one_after_another_and_all_go_on() {
    let late = Host::Connects(Duration::from_millis(600));
    let network = Network::of(&[(v6(1), late), (v6(2), Host::Silent), (v4(1), Host::Silent), (v4(2), Host::Silent)]);
    assert_eq!(network.dial_anew().await.unwrap(), v6(1));
    assert_eq!((network.tried(), network.now()), (vec![(v6(1), 0), (v4(1), 250), (v6(2), 500)], 600));
}

#[tokio::test(start_paused = true)]
async fn an_address_that_fails_costs_nothing() {
    let refused = Host::Fails(io::ErrorKind::ConnectionRefused);
    let network = Network::of(&[(v6(1), Host::Fails(io::ErrorKind::NetworkUnreachable)), (v4(1), refused), (v4(2), AT_ONCE)]);
    assert_eq!(network.dial_anew().await.unwrap(), v4(2));
    assert_eq!(network.tried(), [(v6(1), 0), (v4(1), 0), (v4(2), 0)]);
}

#[tokio::test(start_paused = true)]
async fn the_first_address_that_answers_is_alone_tried() {
    let network = Network::of(&[(v6(1), Host::Connects(Duration::from_millis(249))), (v4(1), AT_ONCE)]);
    assert_eq!(network.dial_anew().await.unwrap(), v6(1));
    assert_eq!(network.tried(), [(v6(1), 0)]);
}

#[tokio::test(start_paused = true)]
async fn the_winner_is_tried_first_from_the_moment_of_its_success() {
    let slow = Host::Connects(Duration::from_secs(5));
    let network = Network::of(&[(v6(1), Host::Silent), (v4(1), slow)]);
    let connector = TcpConnector::default();
    network.dial(&connector, CacheFirst).await.unwrap();
    assert_eq!((network.resolved.get(), network.now(), network.tried().len()), (1, 5_250, 2));
    network.change(v4(1), AT_ONCE);
    advance(REMEMBERED_FOR - Duration::from_secs(1)).await;
    network.dial(&connector, CacheFirst).await.unwrap();
    assert_eq!((network.resolved.get(), network.tried()), (1, vec![(v4(1), 14_250)]), "without resolving the name");
    network.dial(&connector, Resolve).await.unwrap();
    assert_eq!((network.resolved.get(), network.tried()), (2, vec![(v4(1), 14_250)]), "and where the name is resolved, too");
    advance(REMEMBERED_FOR).await;
    network.dial(&connector, CacheFirst).await.unwrap();
    assert_eq!((network.resolved.get(), network.tried()), (3, vec![(v6(1), 24_250), (v4(1), 24_500)]), "for a while");
}

#[tokio::test(start_paused = true)]
async fn a_busy_client_resolves_the_name_again_in_time() {
    let network = Network::of(&[(v4(1), AT_ONCE)]);
    let connector = TcpConnector::default();
    for _ in 0..21 {
        network.dial(&connector, CacheFirst).await.unwrap();
        advance(Duration::from_secs(1)).await;
    }
    assert_eq!(network.resolved.get(), 3, "every ten seconds");
}

#[tokio::test(start_paused = true)]
async fn a_remembered_address_that_dies_keeps_nobody_from_the_others() {
    let refuses = Host::Fails(io::ErrorKind::ConnectionRefused);
    for (dead, found_after) in [(Host::Silent, 250), (refuses, 0)] {
        let network = Network::of(&[(v6(1), AT_ONCE), (v4(1), AT_ONCE)]);
        let connector = TcpConnector::default();
        network.dial(&connector, CacheFirst).await.unwrap();
        network.change(v6(1), dead);
        network.tried();
        assert_eq!(network.dial(&connector, CacheFirst).await.unwrap(), v4(1));
        assert_eq!((network.resolved.get(), network.tried()), (2, vec![(v6(1), 0), (v4(1), found_after)]));
        assert_eq!(connector.remembered(NAME), Some(v4(1)));
    }
}

#[tokio::test(start_paused = true)]
async fn a_dead_address_is_forgotten() {
    let refuses = Host::Fails(io::ErrorKind::ConnectionRefused);
    for (dead, other) in [(Host::Silent, Host::Silent), (refuses, Host::Silent), (Host::Silent, refuses)] {
        let network = Network::of(&[(v4(1), AT_ONCE), (v4(2), other)]);
        let connector = TcpConnector::default();
        network.dial(&connector, CacheFirst).await.unwrap();
        assert_eq!(connector.remembered(NAME), Some(v4(1)));
        network.change(v4(1), dead);
        network.dial(&connector, CacheFirst).await.unwrap_err();
        assert_eq!((connector.remembered(NAME), network.tried().len()), (None, 3), "and tried only once");
    }
}

#[tokio::test(start_paused = true)]
async fn names_are_remembered_apart() {
    let (connector, deadline) = (TcpConnector::default(), Instant::now() + Duration::from_secs(1));
    for (number, host) in (0..100).map(|number| (number, format!("target-{number}.test"))) {
        let resolved = async { Ok(vec![v4(number)]) };
        connector.connect_with((&host, NAME.1), Resolve, deadline, resolved, |_| async { Ok(()) }).await.unwrap();
    }
    assert_eq!(connector.remembered(("target-99.test", NAME.1)), Some(v4(99)));
    assert_eq!(connector.remembered(("target-99.test", 80)), None, "another port");
    assert_eq!(connector.remembered(("target-0.test", NAME.1)), None, "the oldest of too many");
}

#[tokio::test(start_paused = true)]
async fn the_deadline_ends_all_attempts_and_the_error_names_them() {
    let network = Network::of(&[(v6(1), Host::Silent), (v4(1), Host::Fails(io::ErrorKind::HostUnreachable)), (v4(2), Host::Silent)]);
    let error = network.dial_anew().await.unwrap_err();
    assert_eq!((network.now(), network.running.get()), (10_000, 0));
    let tried = "[2001:db8::1]:443 (no answer), 192.0.2.1:443 (host unreachable) and 192.0.2.2:443 (no answer)";
    assert_eq!(error.to_string(), format!("the deadline passed while connecting to {tried}"));
}

#[tokio::test(start_paused = true)]
async fn a_refusal_ends_the_race_once_the_silent_addresses_have_had_their_time() {
    let refuses = Host::Fails(io::ErrorKind::ConnectionRefused);
    let network = Network::of(&[(v6(1), Host::Silent), (v4(1), refuses), (v6(2), Host::Silent)]);
    let error = network.dial_anew().await.unwrap_err();
    let tried = "[2001:db8::1]:443 (no answer), 192.0.2.1:443 (connection refused) and [2001:db8::2]:443 (no answer)";
    assert_eq!(error.to_string(), format!("no connection to {tried}"));
    assert_eq!((network.now(), network.running.get()), ((ATTEMPT_DELAY * 2 + AFTER_REFUSAL).as_millis(), 0));

    let slow = Host::Connects(AFTER_REFUSAL);
    let network = Network::of(&[(v6(1), refuses), (v4(1), slow)]);
    assert_eq!(network.dial_anew().await.unwrap(), v4(1), "a slow address has its time");

    let connector = TcpConnector::default();
    let network = Network::of(&[(v4(1), AT_ONCE)]);
    network.dial(&connector, CacheFirst).await.unwrap();
    network.change(v4(1), refuses);
    let slowly = async {
        sleep(AFTER_REFUSAL * 3 / 2).await; // paused clock: how long the resolver takes
        Ok(vec![v4(2)])
    };
    let attempt = async |address| if address == v4(2) { Ok(address) } else { network.attempt(address).await };
    let deadline = Instant::now() + Duration::from_secs(10);
    let found = connector.connect_with(NAME, CacheFirst, deadline, slowly, attempt).await;
    assert_eq!(found.unwrap(), v4(2), "and so has the resolver");
}

#[tokio::test(start_paused = true)]
async fn the_resolver_has_the_same_deadline() {
    let deadline = Instant::now() + Duration::from_secs(3);
    let connect = |_| async { Ok(()) };
    let error = TcpConnector::default().connect_with(NAME, Resolve, deadline, pending(), connect).await.unwrap_err();
    assert_eq!((error.to_string().as_str(), Instant::now()), ("the deadline passed while resolving the name", deadline));
}

#[tokio::test(start_paused = true)]
async fn when_all_fail_the_error_that_says_most_is_given() {
    use io::ErrorKind::{ConnectionRefused, HostUnreachable, NetworkUnreachable, PermissionDenied, TimedOut};
    for (kinds, most) in [
        (&[NetworkUnreachable, ConnectionRefused][..], ConnectionRefused),
        (&[ConnectionRefused, NetworkUnreachable], ConnectionRefused),
        (&[TimedOut, HostUnreachable, NetworkUnreachable], TimedOut),
        (&[HostUnreachable, PermissionDenied, TimedOut], PermissionDenied),
    ] {
        let hosts: Vec<_> = (1..).zip(kinds).map(|(last, &kind)| (v4(last), Host::Fails(kind))).collect();
        match Network::of(&hosts).dial_anew().await {
            Err(ConnectError::Failed { source, .. }) => assert_eq!(source.kind(), most, "{kinds:?}"),
            other => panic!("{other:?}"),
        }
    }
    let network = Network::of(&[(v4(1), Host::Fails(ConnectionRefused))]);
    assert_eq!(network.dial_anew().await.unwrap_err().to_string(), "no connection to 192.0.2.1:443");
    let error = Network::of(&[]).dial_anew().await.unwrap_err();
    assert!(matches!(&error, ConnectError::Resolve(source) if source.kind() == io::ErrorKind::NotFound), "{error:?}");
}

#[tokio::test(start_paused = true)]
async fn without_descriptors_no_further_address_is_tried() {
    let network = Network::of(&[(v6(1), Host::NoDescriptors), (v4(1), AT_ONCE)]);
    assert!(matches!(network.dial_anew().await, Err(ConnectError::NoDescriptors)));
    assert_eq!(network.tried().len(), 1);
    let slow = Host::Connects(Duration::from_secs(2));
    let network = Network::of(&[(v6(1), slow), (v4(1), Host::NoDescriptors), (v6(2), AT_ONCE)]);
    assert_eq!(network.dial_anew().await.unwrap(), v6(1), "an attempt that has its descriptor goes on");
    assert_eq!(network.tried().len(), 2);
    let network = Network::of(&[(v6(1), Host::Silent), (v4(1), Host::NoDescriptors)]);
    assert!(matches!(network.dial_anew().await, Err(ConnectError::NoDescriptors)), "also at the deadline");
}

#[tokio::test(start_paused = true)]
async fn a_dial_that_is_dropped_drops_all_attempts_and_keeps_what_is_remembered() {
    let network = Network::of(&[(v6(1), AT_ONCE), (v4(1), AT_ONCE), (v6(2), AT_ONCE)]);
    let connector = TcpConnector::default();
    network.dial(&connector, CacheFirst).await.unwrap();
    [v6(1), v4(1), v6(2)].into_iter().for_each(|address| network.change(address, Host::Silent));
    timeout(ATTEMPT_DELAY * 5 / 2, network.dial(&connector, CacheFirst)).await.unwrap_err();
    assert_eq!((network.tried().len(), network.running.get()), (4, 0));
    assert_eq!(connector.remembered(NAME), Some(v6(1)));
}

#[tokio::test(start_paused = true)]
async fn a_name_that_no_longer_resolves_is_the_error_unless_the_remembered_address_answers() {
    let connector = TcpConnector::default();
    let network = Network::of(&[(v4(1), AT_ONCE)]);
    network.dial(&connector, CacheFirst).await.unwrap();
    let dial = async |source| {
        let gone = async { Err(io::ErrorKind::NotFound.into()) };
        let deadline = Instant::now() + Duration::from_secs(10);
        connector.connect_with(NAME, source, deadline, gone, |address| network.attempt(address)).await
    };
    assert!(matches!(dial(Resolve).await, Err(ConnectError::Resolve(_))));
    assert_eq!(connector.remembered(NAME), Some(v4(1)), "nothing is known against it");
    network.change(v4(1), Host::Connects(Duration::from_secs(1)));
    assert_eq!(dial(CacheFirst).await.unwrap(), v4(1));
    network.change(v4(1), Host::Fails(io::ErrorKind::ConnectionRefused));
    assert!(matches!(dial(CacheFirst).await, Err(ConnectError::Resolve(_))));
}

#[tokio::test]
async fn an_ip_address_needs_no_resolver() {
    for (host, listens_on) in [("127.0.0.1", "127.0.0.1:0"), ("localhost", "127.0.0.1:0"), ("::1", "[::1]:0")] {
        let Ok(listener) = tokio::net::TcpListener::bind(listens_on).await else { continue }; // no IPv6 on this machine
        let address = listener.local_addr().unwrap();
        let (connector, deadline) = (TcpConnector::default(), Instant::now() + Duration::from_secs(5));
        let connected = connector.connect(host, address.port(), CacheFirst, deadline).await;
        assert_eq!(connected.unwrap().peer_addr().unwrap(), address);
        assert_eq!(connector.remembered((host, address.port())).is_some(), host == "localhost", "only names are remembered");
    }
}
