//! A map whose entries fade: each is kept for a fixed time, and the oldest go first where there are too many.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Remembers values for `keep`, at most `most` of them.
#[derive(Debug)]
pub(crate) struct TtlMap<K, V> {
    keep: Duration,
    most: usize,
    inside: Mutex<Inside<K, V>>,
}

#[derive(Debug)]
struct Inside<K, V> {
    values: HashMap<K, V>,
    order: VecDeque<(Instant, K)>,
}

impl<K: Clone + Eq + Hash, V: Clone> TtlMap<K, V> {
    pub(crate) fn new(keep: Duration, most: usize) -> Self {
        Self { keep, most, inside: Mutex::new(Inside { values: HashMap::new(), order: VecDeque::new() }) }
    }

    /// Remembers a value from now on. A key that is remembered already keeps its first value and time.
    pub(crate) fn put(&self, key: K, value: V) {
        let now = Instant::now();
        let mut inside = self.inside.lock().unwrap_or_else(PoisonError::into_inner);
        inside.fade(now, self.keep);
        if inside.order.len() >= self.most {
            inside.forget_oldest();
        }
        if !inside.values.contains_key(&key) {
            inside.values.insert(key.clone(), value);
            inside.order.push_back((now, key));
        }
    }

    pub(crate) fn get(&self, key: &K) -> Option<V> {
        let mut inside = self.inside.lock().unwrap_or_else(PoisonError::into_inner);
        inside.fade(Instant::now(), self.keep);
        inside.values.get(key).cloned()
    }
}

impl<K: Clone + Eq + Hash, V> Inside<K, V> {
    fn fade(&mut self, now: Instant, keep: Duration) {
        while self.order.front().is_some_and(|(since, _)| now.duration_since(*since) >= keep) {
            self.forget_oldest();
        }
    }

    fn forget_oldest(&mut self) {
        if let Some((_, key)) = self.order.pop_front() {
            self.values.remove(&key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn values_fade_after_their_time_and_the_oldest_give_way() {
        let fading = TtlMap::new(Duration::from_secs(10), 2);
        fading.put("a", 1);
        tokio::time::advance(Duration::from_secs(5)).await;
        fading.put("b", 2);
        assert_eq!((fading.get(&"a"), fading.get(&"b")), (Some(1), Some(2)));
        tokio::time::advance(Duration::from_secs(5)).await;
        assert_eq!((fading.get(&"a"), fading.get(&"b")), (None, Some(2)));
        fading.put("c", 3);
        fading.put("d", 4);
        assert_eq!((fading.get(&"b"), fading.get(&"c"), fading.get(&"d")), (None, Some(3), Some(4)));
    }
}
