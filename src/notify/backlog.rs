//! What waits in the store or was given up there, counted now and then for metrics.
//!
//! The numbers are those of the database, so they are the same on all nodes. A count stops at a bound: beyond it the exact
//! number is of no use, and a full count would cost most when the database has most to do.

use std::sync::{Arc, Mutex, PoisonError};

use super::{Notifications, now_ms};
use crate::store::{Arg, StoreError};

/// Rows of one kind that are counted at most.
const COUNTED_MAX: i64 = 100_000;

/// Numbers of rows, up to a bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Rows of the outbox that wait to be published.
    pub waiting: i64,
    /// When the oldest of them was written, in Unix milliseconds.
    pub oldest: Option<i64>,
    /// Rows of the outbox that can never be published.
    pub failed: i64,
    /// Deliveries that were given up.
    pub given_up: i64,
}

/// The newest numbers.
#[derive(Debug, Default)]
pub(super) struct Backlog(Mutex<Option<Counts>>);

impl Backlog {
    /// Nothing before they were read for the first time.
    pub(super) fn counts(&self) -> Option<Counts> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, counts: Counts) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(counts);
    }
}

/// Counts every `database.backlog_interval`, until the future is dropped.
pub(super) async fn watch(notifications: Arc<Notifications>) {
    loop {
        // While the database is away the numbers stay as they were; other metrics tell that it is.
        if let Ok(counts) = notifications.read_backlog().await {
            notifications.backlog.set(counts);
        }
        tokio::time::sleep(notifications.backlog_interval).await;
    }
}

impl Notifications {
    async fn read_backlog(&self) -> Result<Counts, StoreError> {
        let sql = "SELECT \
            (SELECT count(*) FROM (SELECT 1 FROM archmesh_outbox WHERE failed_at IS NULL LIMIT $1) waiting), \
            (SELECT created_at FROM archmesh_outbox WHERE failed_at IS NULL ORDER BY id LIMIT 1), \
            (SELECT count(*) FROM (SELECT 1 FROM archmesh_outbox WHERE failed_at IS NOT NULL LIMIT $1) failed), \
            (SELECT count(*) FROM (SELECT 1 FROM archmesh_deliveries WHERE status IN ('dead', 'failed') LIMIT $1) dead)";
        let rows = self.store.read(sql, &[Arg::Int(COUNTED_MAX)]).await?;
        let row = rows.first().ok_or(StoreError::Unexpected("a count without a row"))?;
        Ok(Counts {
            waiting: row.int(0)?,
            oldest: row.maybe_int(1)?,
            failed: row.int(2)?,
            given_up: row.int(3)?,
        })
    }
}

impl Counts {
    /// How long the oldest row has waited, in seconds.
    pub(crate) fn oldest_seconds(&self) -> f64 {
        self.oldest.map_or(0.0, |at| (now_ms() - at).max(0) as f64 / 1000.0)
    }
}
