//! Sightings: visible to readers at once, written later, and blocking nothing.

use std::sync::atomic::{AtomicBool, Ordering};

use moorline_proto::proof::PublicKey;
use sqlx::{Connection, SqliteConnection};

use super::*;
use crate::store::{MemoryRegistry, SqliteRegistry};
use tokio_util::sync::CancellationToken;

use crate::tasks::Tasks;

fn device(name: &str) -> DeviceId {
    name.parse().unwrap()
}

fn key(number: u8) -> PublicKey {
    PublicKey::Ed25519([number; 32])
}

fn at(ms: u64) -> Timestamp {
    Timestamp::from_millis(ms)
}

const CAPACITY: NonZeroUsize = NonZeroUsize::new(2_000).unwrap();

/// A registry in memory that can fail to record sightings, and records the sizes of the batches.
#[derive(Debug, Default)]
struct Fallible {
    memory: MemoryRegistry,
    is_failing: AtomicBool,
    batches: Mutex<Vec<usize>>,
}

impl Registry for Fallible {
    fn device<'a>(&'a self, device: &'a DeviceId) -> StoreFuture<'a, Option<DeviceRecord>> {
        self.memory.device(device)
    }

    fn devices<'a>(&'a self, filter: &'a [Pattern], after: Option<&'a DeviceId>, max: usize) -> StoreFuture<'a, Vec<DeviceRecord>> {
        self.memory.devices(filter, after, max)
    }

    fn put_device<'a>(&'a self, device: &'a DeviceId, keys: &'a [PublicKey], now: Timestamp) -> StoreFuture<'a, Put> {
        self.memory.put_device(device, keys, now)
    }

    fn remove_device<'a>(&'a self, device: &'a DeviceId) -> StoreFuture<'a, bool> {
        self.memory.remove_device(device)
    }

    fn record_sightings<'a>(&'a self, sightings: &'a [Sighting]) -> StoreFuture<'a, ()> {
        self.batches.lock().unwrap().push(sightings.len());
        if self.is_failing.load(Ordering::Relaxed) {
            let source = "database is locked".into();
            return std::future::ready(Err(StoreError::Backend { doing: "recording sightings", source })).boxed();
        }
        self.memory.record_sightings(sightings)
    }

    fn caller_keys(&self) -> StoreFuture<'_, Vec<CallerKey>> {
        self.memory.caller_keys()
    }

    fn put_caller_key<'a>(&'a self, key: &'a CallerKey) -> StoreFuture<'a, ()> {
        self.memory.put_caller_key(key)
    }
}

/// A registry with one device, lamp-1, of two keys.
async fn lamp() -> (DeviceId, Arc<Fallible>, Arc<LastSeen>) {
    let (lamp, registry) = (device("lamp-1"), Arc::new(Fallible::default()));
    registry.put_device(&lamp, &[key(1), key(2)], at(10)).await.unwrap();
    let last_seen = Arc::new(LastSeen::new(Arc::clone(&registry) as Arc<dyn Registry>, CAPACITY));
    (lamp, registry, last_seen)
}

fn run(last_seen: &Arc<LastSeen>) -> (Tasks, CancellationToken) {
    let (tasks, stop) = (Tasks::default(), CancellationToken::new());
    let (last_seen, stopped) = (Arc::clone(last_seen), stop.clone());
    tasks.spawn("last seen", async move { last_seen.run(stopped).await });
    (tasks, stop)
}

async fn seen_in(registry: &dyn Registry, device: &DeviceId) -> Option<Timestamp> {
    registry.device(device).await.unwrap().and_then(|record| record.last_seen)
}

#[tokio::test(start_paused = true)]
async fn readers_see_a_note_at_once_and_the_registry_gets_the_latest_a_second_later() {
    let (lamp, registry, last_seen) = lamp().await;
    let _tasks = run(&last_seen);
    last_seen.note(&lamp, Some(key(2).thumbprint()), at(20));
    last_seen.note(&lamp, None, at(30));

    for record in [last_seen.device(&lamp).await.unwrap().unwrap(), last_seen.devices(&[Pattern::any()], None, 10).await.unwrap().remove(0)]
    {
        assert_eq!(record.last_seen, Some(at(30)));
        let used: Vec<_> = record.keys.iter().map(|key| (key.kid, key.last_used)).collect();
        assert!(used.contains(&(key(1).thumbprint(), None)) && used.contains(&(key(2).thumbprint(), Some(at(20)))), "{used:?}");
    }
    assert_eq!(seen_in(registry.as_ref(), &lamp).await, None, "not written yet");

    sleep(FLUSH_INTERVAL * 2).await;
    assert_eq!(seen_in(registry.as_ref(), &lamp).await, Some(at(30)));
    let record = registry.device(&lamp).await.unwrap().unwrap();
    assert!(record.keys.iter().any(|had| had.kid == key(2).thumbprint() && had.last_used == Some(at(20))));
    assert_eq!((registry.batches.lock().unwrap().as_slice(), last_seen.unwritten_devices()), (&[1][..], 0), "both sightings in one write");
}

#[tokio::test(start_paused = true)]
async fn failed_writes_are_retried_later() {
    let (lamp, registry, last_seen) = lamp().await;
    let _tasks = run(&last_seen);
    registry.is_failing.store(true, Ordering::Relaxed);
    last_seen.note(&lamp, None, at(20));
    sleep(FLUSH_INTERVAL * 3).await;
    assert_eq!((seen_in(registry.as_ref(), &lamp).await, seen_in(last_seen.as_ref(), &lamp).await), (None, Some(at(20))));
    registry.is_failing.store(false, Ordering::Relaxed);
    sleep(FLUSH_INTERVAL * 2).await;
    assert_eq!(seen_in(registry.as_ref(), &lamp).await, Some(at(20)));
}

#[tokio::test(start_paused = true)]
async fn pending_sightings_are_written_before_the_task_ends() {
    let (lamp, registry, last_seen) = lamp().await;
    let (tasks, stop) = run(&last_seen);
    last_seen.note(&lamp, None, at(20));
    let begun = tokio::time::Instant::now();
    stop.cancel();
    tasks.finish(FLUSH_INTERVAL).await.unwrap();
    assert_eq!((seen_in(registry.as_ref(), &lamp).await, begun.elapsed()), (Some(at(20)), Duration::ZERO));
}

#[tokio::test]
async fn transactions_are_bounded() {
    let (_, registry, last_seen) = lamp().await;
    for number in 0..2 * BATCH + 1 {
        last_seen.note(&device(&format!("device-{number}")), None, at(20));
    }
    last_seen.flush().await.unwrap();
    assert_eq!(*registry.batches.lock().unwrap(), [BATCH, BATCH, 1]);
    assert_eq!(last_seen.unwritten_devices(), 0);
}

#[tokio::test]
async fn beyond_the_capacity_new_devices_are_dropped_and_counted() {
    let (lamp, registry, _) = lamp().await;
    let last_seen = LastSeen::new(registry, NonZeroUsize::MIN);
    last_seen.note(&lamp, None, at(20));
    last_seen.note(&device("door-1"), None, at(20));
    last_seen.note(&lamp, None, at(30));
    assert_eq!((last_seen.unwritten_devices(), last_seen.unwritten().dropped), (1, 1));
    assert_eq!(seen_in(&last_seen, &lamp).await, Some(at(30)));
}

#[tokio::test]
async fn only_the_latest_keys_of_a_device_are_remembered() {
    let (lamp, _, last_seen) = lamp().await;
    for number in 1..10 {
        last_seen.note(&lamp, Some(key(number).thumbprint()), at(u64::from(number)));
        last_seen.note(&lamp, Some(key(9).thumbprint()), at(u64::from(number)));
    }
    let unwritten = last_seen.unwritten();
    let uses = &unwritten.sightings[&lamp].key_uses;
    assert_eq!((uses.len(), uses.last()), (MAX_KEY_USES, Some(&(key(9).thumbprint(), at(9)))));
}

#[tokio::test]
async fn removing_a_device_removes_its_pending_sightings() {
    let (lamp, registry, last_seen) = lamp().await;
    last_seen.note(&lamp, None, at(20));
    assert!(last_seen.remove_device(&lamp).await.unwrap());
    assert_eq!(last_seen.unwritten_devices(), 0);

    last_seen.note(&lamp, None, at(30)); // its connection ends after it was removed
    assert_eq!(last_seen.device(&lamp).await.unwrap(), None);
    last_seen.put_device(&lamp, &[key(3)], at(40)).await.unwrap();
    assert_eq!(seen_in(last_seen.as_ref(), &lamp).await, None, "the new device of the same id was never seen");
    last_seen.note(&lamp, None, at(50));
    registry.remove_device(&lamp).await.unwrap(); // by another process
    last_seen.flush().await.unwrap();
    assert_eq!(last_seen.device(&lamp).await.unwrap(), None);
}

#[tokio::test]
async fn a_locked_database_delays_no_note_and_gets_it_once_it_is_unlocked() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("moorline.db");
    moorline_files::create(&file, 0o600, b"").unwrap();
    let (lamp, registry) = (device("lamp-1"), Arc::new(SqliteRegistry::open(&file).await.unwrap()));
    registry.put_device(&lamp, &[key(1)], at(10)).await.unwrap();
    let last_seen = LastSeen::new(Arc::clone(&registry) as Arc<dyn Registry>, CAPACITY);
    let mut other = SqliteConnection::connect(file.to_str().unwrap()).await.unwrap();
    sqlx::query("BEGIN IMMEDIATE").execute(&mut other).await.unwrap();

    last_seen.note(&lamp, Some(key(1).thumbprint()), at(20));
    assert_eq!(seen_in(&last_seen, &lamp).await, Some(at(20)));
    let unlock = async {
        assert_eq!(seen_in(registry.as_ref(), &lamp).await, None, "the lock is held, and readers do not wait for it");
        sqlx::query("COMMIT").execute(&mut other).await.unwrap();
    };
    let (flushed, ()) = tokio::join!(last_seen.flush(), unlock);
    flushed.unwrap();
    assert_eq!((seen_in(registry.as_ref(), &lamp).await, last_seen.unwritten_devices()), (Some(at(20)), 0));
}
