//! The connections that have not authenticated: how many each address holds, and which one is evicted for which. Pure: the time is an
//! argument.
//!
//! - An address has a share. At its share it competes with itself alone: its oldest connection is evicted once it is old enough, otherwise
//!   the new one is refused.
//! - If all places are taken, a connection of the address that holds most is evicted, at once, for an address that holds less. So a flood
//!   from few addresses cannot keep others out.
//! - If no address holds many, the oldest connection is evicted once it is old enough: honest clients that came first can finish.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::limits::EVICTABLE_AFTER;
use crate::net::client_address::AddressPrefix;

/// An address that holds no more than this is evicted by age alone. An agent or a client behind the address may have several connections.
const ALWAYS_FAIR: usize = 8;

/// Why a connection gets no permit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Full {
    /// There are `connections` connections.
    #[error("limits.connections is reached")]
    Connections,
    /// There are `unauthenticated_connections` unauthenticated connections, and none can be evicted yet.
    #[error("limits.unauthenticated_connections is reached")]
    Unauthenticated,
    /// The address holds `unauthenticated_per_address` of them, and none can be evicted yet.
    #[error("limits.unauthenticated_per_address is reached")]
    Address,
}

/// Every unauthenticated connection. Its size is bounded by its capacity.
#[derive(Debug)]
pub(super) struct Unauthenticated {
    capacity: usize,
    per_address: usize,
    next_id: u64,
    /// The oldest first.
    connections: BTreeMap<u64, Connection>,
    /// The connections of each address, the oldest first. No set is empty.
    by_address: HashMap<AddressPrefix, BTreeSet<u64>>,
    /// The sizes of those sets, the largest last.
    by_count: BTreeSet<(usize, AddressPrefix)>,
}

#[derive(Debug)]
struct Connection {
    since: Instant,
    /// None while the address is not known: the connection comes from a trusted proxy.
    address: Option<AddressPrefix>,
    evicted: CancellationToken,
}

impl Unauthenticated {
    /// An empty table.
    pub(super) fn new(capacity: usize, per_address: usize) -> Self {
        let (connections, by_address, by_count) = (BTreeMap::new(), HashMap::new(), BTreeSet::new());
        Self { capacity, per_address, next_id: 0, connections, by_address, by_count }
    }

    /// When a new connection finds a place at the latest, if it may have to wait. `None`: some connection would find a place now.
    pub(super) fn full_until(&self) -> Option<Instant> {
        if self.connections.len() < self.capacity || self.largest().is_some_and(|(count, _)| count > ALWAYS_FAIR) {
            return None;
        }
        self.connections.values().next().map(|oldest| oldest.since + EVICTABLE_AFTER)
    }

    /// Adds a connection, if need be in place of another, and returns its id. `evicted` is cancelled when it is evicted itself.
    ///
    /// # Errors
    /// [`Full::Address`] or [`Full::Unauthenticated`].
    pub(super) fn insert(&mut self, address: Option<AddressPrefix>, now: Instant, evicted: CancellationToken) -> Result<u64, Full> {
        self.make_room_in_share(address, now)?;
        self.make_room(address, now)?;
        let id = self.next_id;
        self.next_id += 1;
        self.connections.insert(id, Connection { since: now, address, evicted });
        self.count(address, id);
        Ok(id)
    }

    /// Moves a connection to the share of `address`, because its true address became known.
    ///
    /// # Errors
    /// [`Full::Address`]: the connection stays where it was.
    pub(super) fn assign(&mut self, id: u64, address: Option<AddressPrefix>, now: Instant) -> Result<(), Full> {
        match self.connections.get(&id) {
            Some(connection) if connection.address != address => self.make_room_in_share(address, now)?,
            Some(_) | None => return Ok(()),
        }
        if let Some(connection) = self.connections.get_mut(&id) {
            let before = std::mem::replace(&mut connection.address, address);
            self.uncount(before, id);
            self.count(address, id);
        }
        Ok(())
    }

    /// Removes a connection that ended or authenticated. Returns whether it was there.
    pub(super) fn remove(&mut self, id: u64) -> bool {
        let removed = self.connections.remove(&id);
        if let Some(connection) = &removed {
            self.uncount(connection.address, id);
        }
        removed.is_some()
    }

    /// Whether a connection is there: it has neither authenticated nor been evicted.
    pub(super) fn contains(&self, id: u64) -> bool {
        self.connections.contains_key(&id)
    }

    fn make_room_in_share(&mut self, address: Option<AddressPrefix>, now: Instant) -> Result<(), Full> {
        let Some(address) = address.filter(|address| self.held_by(*address) >= self.per_address) else { return Ok(()) };
        let oldest = self.oldest_of(address).filter(|id| self.is_old(*id, now)).ok_or(Full::Address)?;
        self.evict(oldest);
        Ok(())
    }

    fn make_room(&mut self, newcomer: Option<AddressPrefix>, now: Instant) -> Result<(), Full> {
        if self.connections.len() < self.capacity {
            return Ok(());
        }
        let own = newcomer.map_or(0, |address| self.held_by(address));
        let largest = self.largest().filter(|(count, _)| *count > ALWAYS_FAIR);
        let of_largest = largest.and_then(|(_, address)| self.oldest_of(address));
        let candidate = if largest.is_some_and(|(count, _)| count > own + 1) {
            of_largest
        } else {
            let oldest = self.connections.keys().next().copied();
            [of_largest, oldest].into_iter().flatten().find(|id| self.is_old(*id, now))
        };
        self.evict(candidate.ok_or(Full::Unauthenticated)?);
        Ok(())
    }

    fn evict(&mut self, id: u64) {
        if let Some(connection) = self.connections.remove(&id) {
            self.uncount(connection.address, id);
            connection.evicted.cancel();
        }
    }

    fn is_old(&self, id: u64, now: Instant) -> bool {
        self.connections.get(&id).is_some_and(|connection| now.duration_since(connection.since) >= EVICTABLE_AFTER)
    }

    fn largest(&self) -> Option<(usize, AddressPrefix)> {
        self.by_count.last().copied()
    }

    fn held_by(&self, address: AddressPrefix) -> usize {
        self.by_address.get(&address).map_or(0, BTreeSet::len)
    }

    fn oldest_of(&self, address: AddressPrefix) -> Option<u64> {
        self.by_address.get(&address).and_then(BTreeSet::first).copied()
    }

    fn count(&mut self, address: Option<AddressPrefix>, id: u64) {
        let Some(address) = address else { return };
        let ids = self.by_address.entry(address).or_default();
        self.by_count.remove(&(ids.len(), address));
        ids.insert(id);
        self.by_count.insert((ids.len(), address));
    }

    fn uncount(&mut self, address: Option<AddressPrefix>, id: u64) {
        let Some(address) = address else { return };
        let Some(ids) = self.by_address.get_mut(&address) else { return };
        self.by_count.remove(&(ids.len(), address));
        ids.remove(&id);
        if ids.is_empty() {
            self.by_address.remove(&address);
        } else {
            self.by_count.insert((ids.len(), address));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn from(text: &str) -> Option<AddressPrefix> {
        Some(AddressPrefix::of(text.parse().unwrap()))
    }

    fn add(table: &mut Unauthenticated, address: Option<AddressPrefix>, now: Instant) -> Result<(u64, CancellationToken), Full> {
        let evicted = CancellationToken::new();
        table.insert(address, now, evicted.clone()).map(|id| (id, evicted))
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_at_its_share_is_refused_and_all_others_are_admitted() {
        let (mut table, now) = (Unauthenticated::new(100, 3), Instant::now());
        for _ in 0..3 {
            add(&mut table, from("192.0.2.1"), now).unwrap();
        }
        for _ in 0..1_000 {
            assert_eq!(add(&mut table, from("192.0.2.1"), now).unwrap_err(), Full::Address);
        }
        assert_eq!((table.connections.len(), table.full_until()), (3, None));
        add(&mut table, from("192.0.2.2"), now).unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_at_its_share_competes_with_itself_alone() {
        let (mut table, now) = (Unauthenticated::new(100, 2), Instant::now());
        let (_, other) = add(&mut table, from("192.0.2.9"), now).unwrap();
        let (_, first) = add(&mut table, from("192.0.2.1"), now).unwrap();
        let (_, second) = add(&mut table, from("192.0.2.1"), now).unwrap();
        add(&mut table, from("192.0.2.1"), now + EVICTABLE_AFTER).unwrap();
        assert_eq!((other.is_cancelled(), first.is_cancelled(), second.is_cancelled()), (false, true, false));
    }

    #[tokio::test(start_paused = true)]
    async fn a_full_table_evicts_from_the_address_with_most_connections_without_waiting() {
        let (mut table, now) = (Unauthenticated::new(30, 20), Instant::now());
        let (_, honest) = add(&mut table, from("198.51.100.7"), now).unwrap();
        let (_, oldest) = add(&mut table, from("192.0.2.1"), now).unwrap();
        for _ in 0..28 {
            let address = if table.held_by(from("192.0.2.1").unwrap()) < 20 { "192.0.2.1" } else { "192.0.2.2" };
            add(&mut table, from(address), now).unwrap();
        }
        assert_eq!(table.full_until(), None);
        let (_, newcomer) = add(&mut table, from("198.51.100.8"), now).unwrap();
        assert!(oldest.is_cancelled() && !honest.is_cancelled() && !newcomer.is_cancelled());
        // Down to the share of any address; from there on by age.
        let mut added = 0;
        while add(&mut table, from(&format!("203.0.113.{added}")), now).is_ok() {
            added += 1;
        }
        assert_eq!(table.largest().unwrap().0, ALWAYS_FAIR);
        assert_eq!(table.full_until(), Some(now + EVICTABLE_AFTER));
        add(&mut table, from("203.0.113.255"), now + EVICTABLE_AFTER).unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_heavy_address_the_oldest_connection_is_evicted_once_it_is_old() {
        let (mut table, now) = (Unauthenticated::new(2, 2), Instant::now());
        let (_, first) = add(&mut table, from("192.0.2.1"), now).unwrap();
        let (_, second) = add(&mut table, from("192.0.2.2"), now + Duration::from_secs(1)).unwrap();
        let almost = now + EVICTABLE_AFTER - Duration::from_millis(1);
        assert_eq!(add(&mut table, from("192.0.2.3"), almost).unwrap_err(), Full::Unauthenticated);
        assert_eq!(table.full_until(), Some(now + EVICTABLE_AFTER));
        add(&mut table, from("192.0.2.3"), now + EVICTABLE_AFTER).unwrap();
        assert_eq!((first.is_cancelled(), second.is_cancelled()), (true, false));
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_through_a_proxy_counts_for_its_true_address_once_that_is_known() {
        let (mut table, now) = (Unauthenticated::new(100, 2), Instant::now());
        let ids: Vec<u64> = (0..50).map(|_| add(&mut table, None, now).unwrap().0).collect();
        for id in &ids[..2] {
            table.assign(*id, from("192.0.2.1"), now).unwrap();
            table.assign(*id, from("192.0.2.1"), now).unwrap();
        }
        assert_eq!(table.assign(ids[2], from("192.0.2.1"), now), Err(Full::Address));
        table.assign(ids[2], from("192.0.2.2"), now).unwrap();
        table.assign(ids[0], from("192.0.2.2"), now).unwrap();
        assert_eq!((table.held_by(from("192.0.2.1").unwrap()), table.held_by(from("192.0.2.2").unwrap())), (1, 2));
        for id in ids {
            assert!(table.remove(id) && !table.remove(id));
            table.assign(id, from("192.0.2.3"), now).unwrap();
        }
        assert!(table.by_address.is_empty() && table.by_count.is_empty(), "an address without connections has no entry");
    }

    #[tokio::test(start_paused = true)]
    async fn an_ipv6_site_is_one_address() {
        let (mut table, now) = (Unauthenticated::new(100, 1), Instant::now());
        add(&mut table, from("2001:db8:0:1::1"), now).unwrap();
        assert_eq!(add(&mut table, from("2001:db8:0:1:ffff::2"), now).unwrap_err(), Full::Address);
        add(&mut table, from("2001:db8:0:2::1"), now).unwrap();
    }
}
