//! The connections of idle legs: near the limit of connections those are closed first that have been idle for the longest.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use tokio_util::sync::CancellationToken;

use crate::sync::lock;

/// All of them, the one that has been idle for the longest first. Clones share them.
#[derive(Clone, Debug, Default)]
pub(super) struct IdleConnections(Arc<Mutex<Queue>>);

#[derive(Debug, Default)]
struct Queue {
    next: u64,
    waiting: BTreeMap<u64, CancellationToken>,
}

/// A connection that is idle until this is dropped.
#[must_use = "the connection counts as idle only while this is held"]
#[derive(Debug)]
pub struct IdleConnection {
    all: IdleConnections,
    at: u64,
    evicted: CancellationToken,
}

impl IdleConnections {
    pub(super) fn insert(&self) -> IdleConnection {
        let evicted = CancellationToken::new();
        let mut queue = lock(&self.0);
        let at = queue.next;
        queue.next += 1;
        queue.waiting.insert(at, evicted.clone());
        IdleConnection { all: self.clone(), at, evicted }
    }

    /// Evicts the one that has been idle for the longest, if there is one.
    pub(super) fn evict(&self) {
        let oldest = lock(&self.0).waiting.pop_first();
        if let Some((_, evicted)) = oldest {
            evicted.cancel();
        }
    }
}

impl IdleConnection {
    /// Waits until the connection is to be closed in favour of another one. Cancel safe.
    pub async fn evicted(&self) {
        self.evicted.cancelled().await;
    }
}

impl Drop for IdleConnection {
    fn drop(&mut self) {
        lock(&self.all.0).waiting.remove(&self.at);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_one_that_was_idle_for_the_longest_goes_first() {
        let all = IdleConnections::default();
        let (first, second, third) = (all.insert(), all.insert(), all.insert());
        drop(first);
        all.evict();
        assert!(second.evicted.is_cancelled() && !third.evicted.is_cancelled());
        all.evict();
        all.evict();
        assert!(third.evicted.is_cancelled());
    }
}
