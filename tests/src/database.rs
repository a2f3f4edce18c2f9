//! A write lock on the relay's database, held by another process for as long as a scenario needs.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::time::timeout;

/// Taking and releasing the lock takes less than this.
const WITHIN: Duration = Duration::from_secs(30);

/// Takes the write lock, reports that on its output, and holds it until its input ends.
const HOLD: &str = "import sqlite3, sys
database = sqlite3.connect(sys.argv[1], timeout=20, isolation_level=None)
database.execute('BEGIN IMMEDIATE')
print('locked', flush=True)
sys.stdin.read()
database.execute('ROLLBACK')";

/// A write lock on a SQLite database. Readers are not affected; writers wait for it. Released when dropped.
#[derive(Debug)]
pub struct WriteLock {
    holder: Child,
}

impl WriteLock {
    /// Takes the write lock of a database file.
    ///
    /// # Panics
    /// If Python cannot take it.
    pub async fn hold(database: &Path) -> Self {
        let mut python = Command::new("/usr/bin/python3");
        python.args(["-c", HOLD]).arg(database).stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut holder = python.spawn().expect("python3 starts");
        let mut line = String::new();
        let mut output = BufReader::new(holder.stdout.take().expect("it is piped"));
        timeout(WITHIN, output.read_line(&mut line)).await.expect("in time").expect("a line of text");
        assert_eq!(line, "locked\n", "the write lock is taken");
        Self { holder }
    }

    /// Releases the lock; it is free when this returns.
    ///
    /// # Panics
    /// If the holder does not exit.
    pub async fn release(mut self) {
        drop(self.holder.stdin.take());
        let ended = timeout(WITHIN, self.holder.wait()).await.expect("in time").expect("a child is waited for");
        assert!(ended.success(), "{ended}");
    }
}
