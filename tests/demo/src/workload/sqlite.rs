//! Commits in an SQLite database.
//!
//! The journal mode is WAL with `synchronous = FULL`: a commit returns after the WAL is synced. (In DELETE mode FULL is
//! not enough: the directory is not synced after the journal is unlinked, so a crash may roll the commit back.)

use std::fs::File;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rusqlite::{Connection, OptionalExtension, params};

use super::{Commits, checksum};

/// Pages in the WAL after which it is copied into the database: few, so that the load has many checkpoints.
const CHECKPOINT_PAGES: u32 = 200;

/// A database that is open.
#[derive(Debug)]
pub(crate) struct SqliteStore(Connection);

impl SqliteStore {
    /// Opens the database; makes it if it is not there.
    pub(crate) fn open(path: &Path) -> Result<SqliteStore> {
        let connection = Connection::open(path).with_context(|| format!("cannot open {}", path.display()))?;
        connection.busy_timeout(Duration::from_secs(5))?;
        // The order matters: with exclusive locking before the first access, WAL needs no shared memory.
        connection.pragma_update(None, "locking_mode", "EXCLUSIVE")?;
        let mode: String = connection.pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get(0))?;
        ensure!(mode == "wal", "the database is in journal mode {mode}, not WAL");
        connection.pragma_update(None, "synchronous", "FULL")?;
        connection.pragma_update(None, "wal_autocheckpoint", CHECKPOINT_PAGES)?;
        connection.execute_batch(
            "CREATE TABLE IF NOT EXISTS commits (sequence INTEGER PRIMARY KEY, payload BLOB NOT NULL)",
        )?;
        if let Some(directory) = path.parent() {
            File::open(directory).and_then(|it| it.sync_all())?;
        }
        Ok(SqliteStore(connection))
    }
}

impl Commits for SqliteStore {
    fn commit(&mut self, sequence: u64, payload: &[u8]) -> Result<()> {
        let sequence = i64::try_from(sequence)?;
        let mut insert = self.0.prepare_cached("INSERT INTO commits VALUES (?, ?)")?;
        insert.execute(params![sequence, payload])?;
        Ok(())
    }

    fn find(&mut self, sequence: u64) -> Result<Option<u32>> {
        let mut select = self.0.prepare_cached("SELECT payload FROM commits WHERE sequence = ?")?;
        let payload: Option<Vec<u8>> = select.query_row([i64::try_from(sequence)?], |row| row.get(0)).optional()?;
        Ok(payload.map(|payload| checksum(sequence, &payload)))
    }

    fn remove(&mut self, sequence: u64) -> Result<()> {
        let removed = self.0.execute("DELETE FROM commits WHERE sequence = ?", [i64::try_from(sequence)?])?;
        ensure!(removed == 1, "commit {sequence} is not there to be taken away");
        Ok(())
    }

    fn check(&mut self) -> Result<()> {
        let verdict: String = self.0.query_row("PRAGMA integrity_check", [], |row| row.get(0))?;
        ensure!(verdict == "ok", "PRAGMA integrity_check: {verdict}");
        Ok(())
    }
}
