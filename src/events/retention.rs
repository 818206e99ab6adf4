//! What is too old leaves, a little at a time.

use std::sync::Arc;
use std::time::Duration;

use super::Events;
use crate::notify::now_ms;
use crate::store::{Arg, StoreError};

/// Rows of each table that one transaction removes.
const BATCH: i64 = 500;
/// Between two looks when there is little to remove.
const INTERVAL: Duration = Duration::from_secs(5);
/// Between two transactions when there is much.
const PAUSE: Duration = Duration::from_millis(20);

/// Removes until the future is dropped.
pub(super) async fn clean(events: Arc<Events>) {
    // Looks more often where little is kept.
    let interval = INTERVAL.min(events.section.retention / 4);
    loop {
        // An outage has been logged by the store; the next look tries again.
        let removed = events.store.run(events.remove_old()).await.unwrap_or(0);
        tokio::time::sleep(if removed < BATCH as u64 { interval } else { PAUSE }).await;
    }
}

impl Events {
    /// The most rows that were removed of one table.
    pub(super) async fn remove_old(&self) -> Result<u64, StoreError> {
        let before = now_ms() - self.section.retention.as_millis() as i64;
        let mut transaction = self.store.begin().await?;
        let mut most = 0;
        for sql in [
            // Ids are about in the order of time; one that is not leaves a little later.
            "DELETE FROM archmesh_events WHERE id IN \
             (SELECT id FROM archmesh_events WHERE at < $1 ORDER BY at LIMIT $2)",
            "DELETE FROM archmesh_sessions WHERE session IN (SELECT session FROM archmesh_sessions \
             WHERE disconnected_at < $1 ORDER BY disconnected_at LIMIT $2)",
            "DELETE FROM archmesh_webhook_dead WHERE id IN (SELECT id FROM archmesh_webhook_dead \
             WHERE died_at < $1 AND retry = 0 ORDER BY id LIMIT $2)",
        ] {
            most = most.max(transaction.execute(sql, &[Arg::Int(before), Arg::Int(BATCH)]).await?);
        }
        transaction.commit().await?;
        Ok(most)
    }
}
