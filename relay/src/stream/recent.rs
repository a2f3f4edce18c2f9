//! What is remembered of streams that ended: a digest and a small value each, in generations, so that an entry costs no time stamp and no queue.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::sync::Mutex;
use std::time::Duration;

use tokio::time::Instant;

use crate::sync::lock;

/// Into so many generations the time is cut.
const GENERATIONS: usize = 4;

/// Remembers values for `keep`, and at most a quarter longer; of more than `max`, the oldest quarter is forgotten.
#[derive(Debug)]
pub(super) struct RecentMap<K, V> {
    keep: Duration,
    max: usize,
    generations: Mutex<VecDeque<Generation<K, V>>>,
}

#[derive(Debug)]
struct Generation<K, V> {
    since: Instant,
    values: HashMap<K, V>,
}

impl<K: Eq + Hash, V: Clone> RecentMap<K, V> {
    pub(super) fn new(keep: Duration, max: usize) -> Self {
        Self { keep, max: max.max(GENERATIONS), generations: Mutex::default() }
    }

    /// Remembers a value from now on. The newest value of a key counts.
    pub(super) fn put(&self, key: K, value: V) {
        let now = Instant::now();
        let mut generations = lock(&self.generations);
        self.expire(&mut generations, now);
        let (span, capacity) = (self.keep / 4, self.max / GENERATIONS);
        let fits = |newest: &Generation<K, V>| now.duration_since(newest.since) < span && newest.values.len() < capacity;
        if !generations.back().is_some_and(fits) {
            if generations.iter().map(|generation| generation.values.len()).sum::<usize>() + capacity > self.max {
                generations.pop_front();
            }
            generations.push_back(Generation { since: now, values: HashMap::new() });
        }
        if let Some(newest) = generations.back_mut() {
            newest.values.insert(key, value);
        }
    }

    pub(super) fn get(&self, key: &K) -> Option<V> {
        let mut generations = lock(&self.generations);
        self.expire(&mut generations, Instant::now());
        generations.iter().rev().find_map(|generation| generation.values.get(key)).cloned()
    }

    fn expire(&self, generations: &mut VecDeque<Generation<K, V>>, now: Instant) {
        let kept = self.keep + self.keep / 4;
        while generations.front().is_some_and(|oldest| now.duration_since(oldest.since) >= kept) {
            generations.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn values_are_kept_for_their_time_and_not_much_longer() {
        let recent = RecentMap::new(Duration::from_secs(100), 1_000);
        recent.put("a", 1);
        tokio::time::advance(Duration::from_secs(24)).await;
        recent.put("b", 2);
        tokio::time::advance(Duration::from_secs(76)).await;
        assert_eq!((recent.get(&"a"), recent.get(&"b")), (Some(1), Some(2)));
        tokio::time::advance(Duration::from_secs(25)).await;
        assert_eq!((recent.get(&"a"), recent.get(&"b"), lock(&recent.generations).len()), (None, None, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn the_oldest_are_forgotten_first_and_there_are_never_more_than_the_bound() {
        let recent = RecentMap::new(Duration::from_secs(100), 40);
        for number in 0..200 {
            recent.put(number, ());
            let held: usize = lock(&recent.generations).iter().map(|generation| generation.values.len()).sum();
            assert!(held <= 40, "{held} after {number}");
        }
        assert!((170..200).all(|number| recent.get(&number).is_some()), "at least three quarters of the capacity are kept");
        assert_eq!(recent.get(&100), None);
    }
}
