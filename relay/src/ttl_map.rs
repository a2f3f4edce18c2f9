//! A map whose entries expire after a fixed time. Where there are too many, the oldest is evicted.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::sync::Mutex;
use std::time::Duration;

use tokio::time::Instant;

use crate::sync::lock;

/// Keeps each entry for `ttl`, and at most `capacity` of them.
///
/// The key stands in memory twice and the value once: choose small ones, digests rather than texts.
#[derive(Debug)]
pub(crate) struct TtlMap<K, V> {
    ttl: Duration,
    capacity: usize,
    entries: Mutex<Entries<K, V>>,
}

#[derive(Debug)]
struct Entries<K, V> {
    values: HashMap<K, V>,
    /// Every key of `values` once, the oldest first.
    by_age: VecDeque<(Instant, K)>,
}

impl<K: Clone + Eq + Hash, V: Clone> TtlMap<K, V> {
    /// An empty map.
    pub(crate) fn new(ttl: Duration, capacity: usize) -> Self {
        Self { ttl, capacity, entries: Mutex::new(Entries { values: HashMap::new(), by_age: VecDeque::new() }) }
    }

    /// Inserts an entry that lives from now on. A key that is present keeps its first value and its time. Where the map is full, the oldest
    /// entry is evicted.
    pub(crate) fn put(&self, key: K, value: V) {
        let now = Instant::now();
        let mut entries = lock(&self.entries);
        entries.expire(now, self.ttl);
        if entries.values.contains_key(&key) || self.capacity == 0 {
            return;
        }
        if entries.by_age.len() >= self.capacity {
            entries.evict_oldest();
        }
        entries.values.insert(key.clone(), value);
        entries.by_age.push_back((now, key));
    }

    /// The value of a key that has not expired.
    pub(crate) fn get(&self, key: &K) -> Option<V> {
        let mut entries = lock(&self.entries);
        entries.expire(Instant::now(), self.ttl);
        entries.values.get(key).cloned()
    }
}

impl<K: Clone + Eq + Hash, V> Entries<K, V> {
    fn expire(&mut self, now: Instant, ttl: Duration) {
        while self.by_age.front().is_some_and(|(since, _)| now.duration_since(*since) >= ttl) {
            self.evict_oldest();
        }
    }

    fn evict_oldest(&mut self) {
        if let Some((_, key)) = self.by_age.pop_front() {
            self.values.remove(&key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TTL: Duration = Duration::from_secs(10);

    #[tokio::test(start_paused = true)]
    async fn an_entry_expires_after_its_time() {
        let map = TtlMap::new(TTL, 2);
        map.put("a", 1);
        tokio::time::advance(TTL / 2).await;
        map.put("b", 2);
        assert_eq!((map.get(&"a"), map.get(&"b")), (Some(1), Some(2)));
        tokio::time::advance(TTL / 2).await;
        assert_eq!((map.get(&"a"), map.get(&"b")), (None, Some(2)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_full_map_evicts_the_oldest_entry() {
        let map = TtlMap::new(TTL, 2);
        for (key, value) in [("a", 1), ("b", 2), ("c", 3)] {
            map.put(key, value);
        }
        assert_eq!((map.get(&"a"), map.get(&"b"), map.get(&"c")), (None, Some(2), Some(3)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_present_key_evicts_no_entry_and_keeps_its_first_value() {
        let map = TtlMap::new(TTL, 2);
        map.put("a", 1);
        map.put("b", 2);
        map.put("b", 3);
        assert_eq!((map.get(&"a"), map.get(&"b")), (Some(1), Some(2)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_map_without_capacity_keeps_nothing() {
        let map = TtlMap::new(TTL, 0);
        map.put("a", 1);
        assert_eq!(map.get(&"a"), None);
    }
}
