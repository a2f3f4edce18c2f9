//! The contract of [`Registry`]: each test runs against every backend.

use std::path::Path;
use std::sync::Arc;

use moorline_proto::claims::Pattern;
use moorline_proto::id::DeviceId;
use moorline_proto::proof::PublicKey;
use moorline_proto::timestamp::Timestamp;

use super::{CallerKey, DeviceRecord, MemoryRegistry, Page, Put, Registry, Sighting, SqliteRegistry, StoreError};

/// An empty registry in a new file.
async fn sqlite(file: &Path) -> SqliteRegistry {
    moorline_files::create(file, 0o600, b"").unwrap();
    SqliteRegistry::open(file).await.unwrap()
}

/// Every kind of registry, empty; the folder is removed when it is dropped.
async fn registries() -> (Vec<Arc<dyn Registry>>, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let sqlite = sqlite(&folder.path().join("moorline.db")).await;
    (vec![Arc::new(MemoryRegistry::new()), Arc::new(sqlite)], folder)
}

fn device(name: &str) -> DeviceId {
    name.parse().unwrap()
}

fn key(number: u8) -> PublicKey {
    PublicKey::Ed25519([number; 32])
}

fn at(ms: u64) -> Timestamp {
    Timestamp::from_millis(ms)
}

fn sighting(device: &DeviceId, key: &PublicKey, at: Timestamp) -> Sighting {
    Sighting { device: device.clone(), last_seen: at, key_uses: vec![(key.thumbprint(), at)] }
}

/// The device's keys, with the times when they were added and used.
fn keys(record: &DeviceRecord) -> Vec<(PublicKey, Timestamp, Option<Timestamp>)> {
    record.keys.iter().map(|key| (key.key.clone(), key.created, key.last_used)).collect()
}

#[tokio::test]
async fn a_device_is_added_once_and_then_replaced() {
    let (registries, _folder) = registries().await;
    for registry in registries {
        let lamp = device("lamp-1");
        assert_eq!(registry.device(&lamp).await.unwrap(), None);
        assert_eq!(registry.put_device(&lamp, &[key(1)], at(10)).await.unwrap(), Put::Created);
        assert_eq!(registry.put_device(&lamp, &[key(1)], at(20)).await.unwrap(), Put::Replaced);
        let record = registry.device(&lamp).await.unwrap().unwrap();
        assert_eq!((&record.device, record.created, record.last_seen), (&lamp, at(10), None));
        assert_eq!(keys(&record), [(key(1), at(10), None)], "{registry:?}");
        assert_eq!(record.keys[0].kid, key(1).thumbprint());
    }
}

#[tokio::test]
async fn a_key_that_is_kept_keeps_its_times() {
    let (registries, _folder) = registries().await;
    for registry in registries {
        let lamp = device("lamp-1");
        let p256 = PublicKey::P256([7; 64]);
        registry.put_device(&lamp, &[key(1), key(2)], at(10)).await.unwrap();
        registry.record_sightings(&[sighting(&lamp, &key(2), at(15))]).await.unwrap();
        registry.put_device(&lamp, &[p256.clone(), key(2), key(2)], at(20)).await.unwrap();
        let record = registry.device(&lamp).await.unwrap().unwrap();
        assert_eq!(keys(&record), [(key(2), at(10), Some(at(15))), (p256, at(20), None)], "{registry:?}");
        assert_eq!((record.created, record.last_seen), (at(10), Some(at(15))));
    }
}

#[tokio::test]
async fn a_key_of_another_device_is_refused_and_nothing_changes() {
    let (registries, _folder) = registries().await;
    for registry in registries {
        let (lamp, door) = (device("lamp-1"), device("door-1"));
        registry.put_device(&lamp, &[key(1)], at(10)).await.unwrap();
        registry.put_device(&door, &[key(2)], at(10)).await.unwrap();
        let refused = registry.put_device(&door, &[key(3), key(1)], at(20)).await;
        assert!(matches!(refused, Err(StoreError::Conflict { kid }) if kid == key(1).thumbprint()), "{refused:?}");
        assert_eq!(keys(&registry.device(&door).await.unwrap().unwrap()), [(key(2), at(10), None)]);

        let new = device("gate-1");
        assert!(matches!(registry.put_device(&new, &[key(1)], at(20)).await, Err(StoreError::Conflict { .. })));
        assert_eq!(registry.device(&new).await.unwrap(), None, "a refused device is not added: {registry:?}");

        assert!(registry.remove_device(&lamp).await.unwrap());
        assert_eq!(registry.put_device(&door, &[key(1)], at(30)).await.unwrap(), Put::Replaced, "the key is free again");
    }
}

#[tokio::test]
async fn devices_are_listed_in_pages_by_id() {
    let (registries, _folder) = registries().await;
    for registry in registries {
        for (number, name) in (1..).zip(["b", "a.1", "a-1", "c", "a_1"]) {
            registry.put_device(&device(name), &[key(number), key(number + 100)], at(10)).await.unwrap();
        }
        let mut seen: Vec<String> = Vec::new();
        let mut after = None;
        loop {
            let page = registry.devices(&[Pattern::any()], after.as_ref(), 2).await.unwrap();
            assert!(page.len() <= 2 && page.iter().all(|record| record.keys.len() == 2));
            seen.extend(page.iter().map(|record| record.device.to_string()));
            match page.last() {
                Some(last) => after = Some(last.device.clone()),
                None => break,
            }
        }
        assert_eq!(seen, ["a-1", "a.1", "a_1", "b", "c"], "{registry:?}");
    }
}

fn patterns(written: &[&str]) -> Vec<Pattern> {
    written.iter().map(|pattern| pattern.parse().unwrap()).collect()
}

/// The ids of the page's devices.
fn ids(page: &Page) -> Vec<&str> {
    page.devices.iter().map(|record| record.device.as_str()).collect()
}

#[tokio::test]
async fn a_listing_has_the_devices_that_its_filter_matches_and_no_others() {
    let (registries, _folder) = registries().await;
    for registry in registries {
        for (number, name) in (1..).zip(["lamp-1", "lamp_1", "lampx1", "door", "door-1", "a.b"]) {
            registry.put_device(&device(name), &[key(number)], at(10)).await.unwrap();
        }
        for (filter, expected) in [
            (&["*"][..], &["a.b", "door", "door-1", "lamp-1", "lamp_1", "lampx1"][..]),
            (&["lamp_1"], &["lamp_1"]),
            (&["lamp_*", "door"], &["door", "lamp_1"]),
            (&["*-1", "lamp-*", "lamp-1"], &["door-1", "lamp-1"]),
            (&["a.*", "*.b", "a*b"], &["a.b"]),
            (&["l*p*1"], &["lamp-1", "lamp_1", "lampx1"]),
            (&["lamp"], &[]),
            (&[], &[]),
        ] {
            let page = Page::read(registry.as_ref(), &patterns(filter), None, 10).await.unwrap();
            assert_eq!((ids(&page).as_slice(), &page.next), (expected, &None), "{filter:?} in {registry:?}");
        }
        let many: Vec<Pattern> = (0..2_000).map(|number| format!("lamp-{number}").parse().unwrap()).collect();
        assert_eq!(ids(&Page::read(registry.as_ref(), &many, None, 10).await.unwrap()), ["lamp-1"]);
    }
}

#[tokio::test]
async fn pages_follow_one_another_by_their_cursors() {
    let (registries, _folder) = registries().await;
    for registry in registries {
        for (number, name) in (1..).zip(["lamp-1", "door-1", "lamp-2", "lamp-3", "zoo", "lamp-4"]) {
            registry.put_device(&device(name), &[key(number)], at(10)).await.unwrap();
        }
        let lamps = patterns(&["lamp-*"]);
        let first = Page::read(registry.as_ref(), &lamps, None, 2).await.unwrap();
        assert_eq!(ids(&first), ["lamp-1", "lamp-2"]);
        let cursor = first.next.unwrap().to_string().parse().unwrap();
        let second = Page::read(registry.as_ref(), &lamps, Some(&cursor), 2).await.unwrap();
        assert_eq!(
            (ids(&second).as_slice(), &second.next),
            (&["lamp-3", "lamp-4"][..], &None),
            "a full page that is the last: {registry:?}"
        );
    }
}

#[tokio::test]
async fn three_visible_devices_among_ten_thousand_are_one_page() {
    let folder = tempfile::tempdir().unwrap();
    let (memory, sqlite) = (MemoryRegistry::new(), sqlite(&folder.path().join("moorline.db")).await);
    let row = "INSERT INTO devices (device, created_ms) WITH RECURSIVE n (i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < 9999) \
               SELECT printf('device-%05d', i), 10 FROM n";
    sqlx::query(row).execute(&sqlite.writer).await.unwrap();
    for number in 0..10_000 {
        memory.put_device(&device(&format!("device-{number:05}")), &[], at(10)).await.unwrap();
    }
    let visible = patterns(&["device-00017", "device-0420*9", "device-*9999"]);
    for registry in [&memory as &dyn Registry, &sqlite] {
        let page = Page::read(registry, &visible, None, 3).await.unwrap();
        let expected = ["device-00017", "device-04209", "device-09999"];
        assert_eq!((ids(&page).as_slice(), &page.next), (&expected[..], &None), "{registry:?}");
    }
}

#[tokio::test]
async fn a_removed_device_is_not_recreated_by_a_sighting() {
    let (registries, _folder) = registries().await;
    for registry in registries {
        let lamp = device("lamp-1");
        registry.put_device(&lamp, &[key(1)], at(10)).await.unwrap();
        assert!(registry.remove_device(&lamp).await.unwrap());
        assert!(!registry.remove_device(&lamp).await.unwrap());
        registry.record_sightings(&[sighting(&lamp, &key(1), at(20))]).await.unwrap();
        assert_eq!(registry.device(&lamp).await.unwrap(), None, "{registry:?}");
        assert_eq!(registry.devices(&[Pattern::any()], None, 10).await.unwrap(), []);
    }
}

#[tokio::test]
async fn a_device_that_is_added_again_does_not_get_the_sightings_of_the_former_one() {
    let (registries, _folder) = registries().await;
    for registry in registries {
        let lamp = device("lamp-1");
        registry.put_device(&lamp, &[key(1)], at(10)).await.unwrap();
        let in_flight = sighting(&lamp, &key(1), at(20));
        registry.remove_device(&lamp).await.unwrap();
        registry.put_device(&lamp, &[key(1)], at(30)).await.unwrap();
        registry.record_sightings(&[in_flight]).await.unwrap();
        let record = registry.device(&lamp).await.unwrap().unwrap();
        assert_eq!((record.last_seen, record.keys[0].last_used), (None, None), "{registry:?}");

        registry.record_sightings(&[sighting(&lamp, &key(1), at(30))]).await.unwrap();
        let record = registry.device(&lamp).await.unwrap().unwrap();
        assert_eq!((record.last_seen, record.keys[0].last_used), (Some(at(30)), Some(at(30))), "{registry:?}");
    }
}

#[tokio::test]
async fn callers_keys_are_kept_with_their_issuer() {
    let (registries, _folder) = registries().await;
    for registry in registries {
        let mut own = CallerKey::new("moorline:relay:relay", "relay".parse().unwrap(), key(1));
        registry.put_caller_key(&own).await.unwrap();
        own.issuer = "corp".parse().unwrap();
        registry.put_caller_key(&own).await.unwrap();
        assert_eq!(registry.caller_keys().await.unwrap(), [own], "{registry:?}");
    }
}

#[tokio::test]
async fn a_sighting_of_another_devices_key_changes_nothing() {
    let (registries, _folder) = registries().await;
    for registry in registries {
        let (lamp, door) = (device("lamp-1"), device("door-1"));
        registry.put_device(&lamp, &[key(1)], at(10)).await.unwrap();
        registry.put_device(&door, &[key(2)], at(10)).await.unwrap();
        registry.record_sightings(&[sighting(&lamp, &key(2), at(20)), sighting(&device("gone"), &key(1), at(20))]).await.unwrap();
        assert_eq!(registry.device(&lamp).await.unwrap().unwrap().last_seen, Some(at(20)));
        for (device, number) in [(&lamp, 1), (&door, 2)] {
            assert_eq!(keys(&registry.device(device).await.unwrap().unwrap()), [(key(number), at(10), None)], "{registry:?}");
        }
    }
}

#[tokio::test]
async fn changes_are_durable_before_they_are_acknowledged() {
    let folder = tempfile::tempdir().unwrap();
    let registry = sqlite(&folder.path().join("moorline.db")).await;
    for (pool, expected) in [(&registry.writer, 2), (&registry.background_writer, 1)] {
        let journal: String = sqlx::query_scalar("PRAGMA journal_mode").fetch_one(pool).await.unwrap();
        let synchronous: i64 = sqlx::query_scalar("PRAGMA synchronous").fetch_one(pool).await.unwrap();
        assert_eq!((journal.as_str(), synchronous), ("wal", expected), "2 syncs the log with every commit, 1 before a checkpoint");
    }
}

#[tokio::test]
async fn a_file_is_private_and_is_there_again_when_it_is_opened_again() {
    use std::os::unix::fs::PermissionsExt;

    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("moorline.db");
    let first = sqlite(&file).await;
    first.put_device(&device("lamp-1"), &[key(1)], at(10)).await.unwrap();
    for entry in std::fs::read_dir(folder.path()).unwrap() {
        let entry = entry.unwrap();
        assert_eq!(entry.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{:?}", entry.path());
    }
    first.close().await;

    let second = SqliteRegistry::open(&file).await.unwrap();
    assert_eq!(second.devices(&[Pattern::any()], None, 10).await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_file_that_is_not_a_database_is_an_error_with_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("moorline.db");
    let text = b"this is no database, and long enough to have a header of a hundred bytes if it were one, really";
    moorline_files::create(&file, 0o600, text).unwrap();
    let error = SqliteRegistry::open(&file).await.unwrap_err();
    assert!(std::error::Error::source(&error).is_some(), "{error}");
}

#[tokio::test]
async fn a_database_that_others_can_read_or_that_is_not_there_is_refused() {
    use std::os::unix::fs::PermissionsExt;

    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("moorline.db");
    assert!(SqliteRegistry::open(&file).await.is_err());
    assert!(!file.exists());
    sqlite(&file).await.close().await;
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
    let error = SqliteRegistry::open(&file).await.unwrap_err();
    let cause = std::error::Error::source(&error).unwrap().to_string();
    assert!(cause.contains("mode 0644"), "{cause}");
}
