//! The registry in one SQLite file, for a relay of one node.
//!
//! | connection | does | a commit |
//! | --- | --- | --- |
//! | `writer` | changes of devices and keys, one at a time | is on disk when it returns |
//! | `background_writer` | sightings; a registry change does not queue behind them | is on disk soon |
//! | `readers` | read beside the writers (write-ahead log) | |
//!
//! Statements keep to what PostgreSQL understands too.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use futures_util::FutureExt;
use moorline_files::{Link, check_private};
use moorline_proto::claims::Pattern;
use moorline_proto::id::DeviceId;
use moorline_proto::proof::{PublicKey, Thumbprint};
use moorline_proto::timestamp::Timestamp;
use sqlx::migrate::Migrator;
use sqlx::query::Query;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteRow, SqliteSynchronous};
use sqlx::{AssertSqlSafe, Row, Sqlite, Transaction};

use crate::store::{CallerKey, DeviceRecord, KeyRecord, Put, Registry, Sighting, StoreError, StoreFuture};

static MIGRATIONS: Migrator = sqlx::migrate!("src/store/migrations");

/// How long a statement waits for a lock on the file that another connection holds: an operator's backup, for example.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a statement waits for a free connection.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(10);
/// Connections that read at once. Each has a thread.
const READERS: u32 = 2;

/// What each connection keeps of the file: little, since Linux keeps it too. Memory that the relay holds grows with the devices online, not
/// with those that were looked up.
const CACHE: &str = "-256"; // KiB, as SQLite spells it

/// A registry in a private file.
#[derive(Debug)]
pub struct SqliteRegistry {
    pub(super) writer: SqlitePool,
    pub(super) background_writer: SqlitePool,
    readers: SqlitePool,
}

impl SqliteRegistry {
    /// Opens the file, which must exist and be private, and migrates it to the current schema. An empty file becomes a new database.
    ///
    /// SQLite gives its companions (`-wal`, `-shm`) the mode of the file.
    ///
    /// # Errors
    /// [`StoreError::Backend`]: the file cannot be opened, is open to others, is no database, or is of a later version.
    pub async fn open(file: &Path) -> Result<Self, StoreError> {
        check_private(file, Link::Refuse).map_err(StoreError::backend("checking its file"))?;
        let options = SqliteConnectOptions::new()
            .filename(file)
            .create_if_missing(false)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .pragma("cache_size", CACHE)
            .busy_timeout(BUSY_TIMEOUT);
        // A file does not hang up: connections are not tested before they are used.
        let pool = |max: u32| SqlitePoolOptions::new().max_connections(max).acquire_timeout(ACQUIRE_TIMEOUT).test_before_acquire(false);
        let writer = pool(1).connect_with(options.clone()).await.map_err(StoreError::backend("opening its file"))?;
        MIGRATIONS.run(&writer).await.map_err(StoreError::backend("bringing its tables up to date"))?;
        // Not `Off`: this connection may be the one that checkpoints, and then what others committed would no longer be durable.
        let background_writer = pool(1).connect_lazy_with(options.clone().synchronous(SqliteSynchronous::Normal));
        let readers = pool(READERS).connect_lazy_with(options.pragma("query_only", "ON"));
        Ok(Self { writer, background_writer, readers })
    }

    /// Closes the file, after what is being done to it. Dropping the registry does so too, at some later time.
    pub async fn close(&self) {
        self.readers.close().await;
        self.background_writer.close().await;
        self.writer.close().await;
    }
}

const DEVICE: &str = "SELECT d.device, d.created_ms, d.last_seen_ms, k.spki, k.created_ms AS key_created_ms, k.last_used_ms \
    FROM devices d LEFT JOIN device_keys k ON k.device = d.device WHERE d.device = $1 ORDER BY k.created_ms, k.kid";

/// The statement that lists devices: $1 is the id that they follow, $2 how many rows, and from $3 on there are the patterns.
///
/// The patterns are rows of a table, not terms of an expression: SQLite bounds the depth of expressions to 1,000.
fn list_statement(patterns: usize) -> String {
    let values: Vec<String> = (0..patterns).map(|index| format!("(${})", index + 3)).collect();
    format!(
        "SELECT d.device, d.created_ms, d.last_seen_ms, k.spki, k.created_ms AS key_created_ms, k.last_used_ms \
         FROM (SELECT device, created_ms, last_seen_ms FROM devices WHERE device > $1 \
               AND EXISTS (SELECT 1 FROM (VALUES {}) AS patterns WHERE devices.device LIKE patterns.column1 ESCAPE '\\') \
               ORDER BY device LIMIT $2) d \
         LEFT JOIN device_keys k ON k.device = d.device ORDER BY d.device, k.created_ms, k.kid",
        values.join(", ")
    )
}

/// The patterns as `LIKE` has them, each once; one where one of them matches everything.
fn like_patterns(filter: &[Pattern]) -> BTreeSet<String> {
    if filter.contains(&Pattern::any()) {
        return BTreeSet::from(["%".to_owned()]);
    }
    // A pattern has no `%` and no backslash of its own; `_` stands for any character in LIKE.
    filter.iter().map(|pattern| pattern.to_string().replace('_', "\\_").replace('*', "%")).collect()
}

/// What [`SqliteRegistry::put`] did, or the key that belongs to another device.
type PutOrTaken = Result<Put, Thumbprint>;

impl SqliteRegistry {
    async fn put(&self, device: &DeviceId, keys: &[PublicKey], now: Timestamp) -> Result<PutOrTaken, sqlx::Error> {
        let mut change = self.writer.begin().await?; // undone when it is dropped
        let added = sqlx::query("INSERT INTO devices (device, created_ms) VALUES ($1, $2) ON CONFLICT (device) DO NOTHING")
            .bind(device.as_str())
            .bind(millis(now))
            .execute(&mut *change)
            .await?;
        let had = sqlx::query_scalar::<_, String>("SELECT kid FROM device_keys WHERE device = $1")
            .bind(device.as_str())
            .fetch_all(&mut *change)
            .await?;
        let wanted: Vec<String> = keys.iter().map(|key| key.thumbprint().to_string()).collect();
        for kid in had.iter().filter(|kid| !wanted.contains(kid)) {
            sqlx::query("DELETE FROM device_keys WHERE kid = $1").bind(kid).execute(&mut *change).await?;
        }
        for key in keys {
            match owner(&mut change, key).await? {
                Some(owner) if owner == device.as_str() => {}
                Some(_) => return Ok(Err(key.thumbprint())),
                None => insert_key(&mut change, device, key, now).await?,
            }
        }
        change.commit().await?;
        Ok(Ok(if added.rows_affected() > 0 { Put::Created } else { Put::Replaced }))
    }

    async fn record(&self, sightings: &[Sighting]) -> Result<(), sqlx::Error> {
        let mut change = self.background_writer.begin_with("BEGIN IMMEDIATE").await?; // undone when it is dropped
        for sighting in sightings {
            // What was added later is another device or key of the same name.
            sqlx::query("UPDATE devices SET last_seen_ms = $2 WHERE device = $1 AND created_ms <= $2")
                .bind(sighting.device.as_str())
                .bind(millis(sighting.last_seen))
                .execute(&mut *change)
                .await?;
            for (kid, at) in &sighting.key_uses {
                sqlx::query("UPDATE device_keys SET last_used_ms = $3 WHERE kid = $2 AND device = $1 AND created_ms <= $3")
                    .bind(sighting.device.as_str())
                    .bind(kid.to_string())
                    .bind(millis(*at))
                    .execute(&mut *change)
                    .await?;
            }
        }
        change.commit().await
    }
}

/// Which device has the key.
async fn owner(change: &mut Transaction<'_, Sqlite>, key: &PublicKey) -> Result<Option<String>, sqlx::Error> {
    sqlx::query_scalar::<_, String>("SELECT device FROM device_keys WHERE kid = $1")
        .bind(key.thumbprint().to_string())
        .fetch_optional(&mut **change)
        .await
}

async fn insert_key(change: &mut Transaction<'_, Sqlite>, device: &DeviceId, key: &PublicKey, now: Timestamp) -> Result<(), sqlx::Error> {
    sqlx::query("INSERT INTO device_keys (kid, device, spki, created_ms) VALUES ($1, $2, $3, $4)")
        .bind(key.thumbprint().to_string())
        .bind(device.as_str())
        .bind(key.to_spki())
        .bind(millis(now))
        .execute(&mut **change)
        .await
        .map(drop)
}

impl Registry for SqliteRegistry {
    fn device<'a>(&'a self, device: &'a DeviceId) -> StoreFuture<'a, Option<DeviceRecord>> {
        async move {
            let failed = "reading a device";
            let rows = sqlx::query(DEVICE).bind(device.as_str()).fetch_all(&self.readers).await.map_err(StoreError::backend(failed))?;
            Ok(records(&rows).map_err(StoreError::backend(failed))?.pop())
        }
        .boxed()
    }

    fn devices<'a>(&'a self, filter: &'a [Pattern], after: Option<&'a DeviceId>, max: usize) -> StoreFuture<'a, Vec<DeviceRecord>> {
        async move {
            let failed = "listing devices";
            let patterns = like_patterns(filter);
            if patterns.is_empty() {
                return Ok(Vec::new());
            }
            let after = after.map_or("", DeviceId::as_str); // every id follows the empty text
            let max = i64::try_from(max).unwrap_or(i64::MAX);
            // Nothing but placeholders is written into the statement.
            let statement = sqlx::query(AssertSqlSafe(list_statement(patterns.len()))).persistent(false).bind(after).bind(max);
            let rows = patterns.into_iter().fold(statement, Query::bind).fetch_all(&self.readers).await;
            records(&rows.map_err(StoreError::backend(failed))?).map_err(StoreError::backend(failed))
        }
        .boxed()
    }

    fn put_device<'a>(&'a self, device: &'a DeviceId, keys: &'a [PublicKey], now: Timestamp) -> StoreFuture<'a, Put> {
        async move {
            let put = self.put(device, keys, now).await.map_err(StoreError::backend("writing a device"))?;
            put.map_err(|kid| StoreError::Conflict { kid })
        }
        .boxed()
    }

    fn remove_device<'a>(&'a self, device: &'a DeviceId) -> StoreFuture<'a, bool> {
        async move {
            let removed = sqlx::query("DELETE FROM devices WHERE device = $1").bind(device.as_str()).execute(&self.writer).await;
            Ok(removed.map_err(StoreError::backend("removing a device"))?.rows_affected() > 0)
        }
        .boxed()
    }

    fn record_sightings<'a>(&'a self, sightings: &'a [Sighting]) -> StoreFuture<'a, ()> {
        async move { self.record(sightings).await.map_err(StoreError::backend("recording when devices were online")) }.boxed()
    }

    fn caller_keys(&self) -> StoreFuture<'_, Vec<CallerKey>> {
        async move {
            let failed = "reading the callers' keys";
            let rows = sqlx::query("SELECT iss, issuer, spki FROM caller_keys ORDER BY kid").fetch_all(&self.readers).await;
            let keys: Result<Vec<_>, _> = rows.map_err(StoreError::backend(failed))?.iter().map(caller_key).collect();
            keys.map_err(StoreError::backend(failed))
        }
        .boxed()
    }

    fn put_caller_key<'a>(&'a self, key: &'a CallerKey) -> StoreFuture<'a, ()> {
        async move {
            let sql = "INSERT INTO caller_keys (kid, iss, issuer, spki) VALUES ($1, $2, $3, $4) \
                ON CONFLICT (kid) DO UPDATE SET iss = excluded.iss, issuer = excluded.issuer";
            let query = sqlx::query(sql).bind(key.kid.to_string()).bind(&key.iss).bind(key.issuer.as_str()).bind(key.key.to_spki());
            query.execute(&self.writer).await.map(drop).map_err(StoreError::backend("writing a caller's key"))
        }
        .boxed()
    }
}

/// Joins rows of one key each into one record per device. A device without keys has one row without a key.
fn records(rows: &[SqliteRow]) -> Result<Vec<DeviceRecord>, sqlx::Error> {
    let mut records: Vec<DeviceRecord> = Vec::new();
    for row in rows {
        let device: DeviceId = parsed(row, "device")?;
        if records.last().is_none_or(|last| last.device != device) {
            let (created, last_seen) = (timestamp(row.try_get("created_ms")?), row.try_get::<Option<i64>, _>("last_seen_ms")?);
            records.push(DeviceRecord { device, created, last_seen: last_seen.map(timestamp), keys: Vec::new() });
        }
        if let (Some(spki), Some(record)) = (row.try_get::<Option<Vec<u8>>, _>("spki")?, records.last_mut()) {
            let key = public_key(&spki)?;
            let (created, last_used) = (timestamp(row.try_get("key_created_ms")?), row.try_get::<Option<i64>, _>("last_used_ms")?);
            record.keys.push(KeyRecord { kid: key.thumbprint(), key, created, last_used: last_used.map(timestamp) });
        }
    }
    Ok(records)
}

fn caller_key(row: &SqliteRow) -> Result<CallerKey, sqlx::Error> {
    let key = public_key(&row.try_get::<Vec<u8>, _>("spki")?)?;
    Ok(CallerKey::new(row.try_get::<String, _>("iss")?, parsed(row, "issuer")?, key))
}

fn parsed<T>(row: &SqliteRow, column: &str) -> Result<T, sqlx::Error>
where
    T: TryFrom<String, Error: std::error::Error + Send + Sync + 'static>,
{
    let text: String = row.try_get(column)?;
    T::try_from(text).map_err(|error| sqlx::Error::ColumnDecode { index: column.to_owned(), source: Box::new(error) })
}

fn public_key(spki: &[u8]) -> Result<PublicKey, sqlx::Error> {
    PublicKey::from_spki(spki).map_err(|error| sqlx::Error::ColumnDecode { index: "spki".to_owned(), source: Box::new(error) })
}

fn millis(time: Timestamp) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}

fn timestamp(ms: i64) -> Timestamp {
    Timestamp::from_millis(u64::try_from(ms).unwrap_or_default())
}
