//! What became of notifications: per notification, dead letters, and sums.

use serde_json::json;

use super::{Notifications, NotifyError, now_ms};
use crate::store::{Arg, Row, StoreError};

/// Deliveries listed for one notification; the sums count all.
const LISTED_MAX: i64 = 200;

/// A notification and its deliveries.
#[derive(Clone, Debug)]
pub(crate) struct Status {
    /// Items in inboxes, and how many of them were seen, read, confirmed by a device, archived.
    pub inbox: [i64; 5],
    /// Deliveries by channel and status.
    pub sums: Vec<(String, String, i64)>,
    /// The first deliveries.
    pub deliveries: Vec<DeadLetter>,
}

/// A delivery.
#[derive(Clone, Debug)]
pub(crate) struct DeadLetter {
    /// Row.
    pub id: i64,
    /// Notification.
    pub notification_id: String,
    /// User.
    pub user: String,
    /// Delivery channel.
    pub channel: String,
    /// What it has come to.
    pub status: String,
    /// Attempts so far.
    pub attempts: i64,
    /// Why the last one failed.
    pub error: Option<String>,
    /// Unix milliseconds of the last change.
    pub updated_at: i64,
}

/// Sums over a time.
#[derive(Clone, Debug)]
pub(crate) struct Analytics {
    /// Items by category and priority, with how many were seen, read, archived.
    pub inbox: Vec<(String, i64, [i64; 4])>,
    /// Deliveries by channel, category, priority and status.
    pub deliveries: Vec<(String, String, i64, String, i64)>,
}

const DELIVERY: &str = "id, notification_id, user_id, channel, status, attempts, error, updated_at FROM archmesh_deliveries";

fn delivery(row: &Row) -> Result<DeadLetter, StoreError> {
    Ok(DeadLetter {
        id: row.int(0)?,
        notification_id: row.text(1)?,
        user: row.text(2)?,
        channel: row.text(3)?,
        status: row.text(4)?,
        attempts: row.int(5)?,
        error: row.maybe_text(6)?.filter(|error| !error.is_empty()),
        updated_at: row.int(7)?,
    })
}

impl Notifications {
    /// What became of a notification; `None` when it is not known, or not any more.
    pub(crate) async fn status(&self, id: &str) -> Result<Option<Status>, NotifyError> {
        let read = async {
            let mut transaction = self.store.begin_read().await?;
            let known = "SELECT 1 FROM archmesh_notifications WHERE id = $1";
            if transaction.fetch(known, &[Arg::Text(id)]).await?.is_empty() {
                transaction.roll_back().await?;
                return Ok(None);
            }
            let inbox = "SELECT count(*), count(seen_at), count(read_at), count(acked_at), count(archived_at) \
                         FROM archmesh_inbox WHERE notification_id = $1";
            let rows = transaction.fetch(inbox, &[Arg::Text(id)]).await?;
            let row = rows.first().ok_or(StoreError::Unexpected("a count without a row"))?;
            let inbox = [row.int(0)?, row.int(1)?, row.int(2)?, row.int(3)?, row.int(4)?];
            let sums = "SELECT channel, status, count(*) FROM archmesh_deliveries WHERE notification_id = $1 \
                        GROUP BY channel, status ORDER BY channel, status";
            let mut by_status = Vec::new();
            for row in transaction.fetch(sums, &[Arg::Text(id)]).await? {
                by_status.push((row.text(0)?, row.text(1)?, row.int(2)?));
            }
            let sql = format!("SELECT {DELIVERY} WHERE notification_id = $1 ORDER BY id LIMIT $2");
            let rows = transaction.fetch(sql, &[Arg::Text(id), Arg::Int(LISTED_MAX)]).await?;
            let deliveries = rows.iter().map(delivery).collect::<Result<_, _>>()?;
            transaction.commit().await?;
            Ok(Some(Status { inbox, sums: by_status, deliveries }))
        };
        Ok(self.store.run(read).await?)
    }

    /// Deliveries that were given up, the newest first; those before `before`, when it is given.
    pub(crate) async fn dead_letters(
        &self,
        before: Option<i64>,
        limit: u32,
    ) -> Result<Vec<DeadLetter>, NotifyError> {
        let sql = format!(
            "SELECT {DELIVERY} WHERE status IN ('dead', 'failed') AND id < $1 ORDER BY id DESC LIMIT $2"
        );
        let args = [Arg::Int(before.unwrap_or(i64::MAX)), Arg::Int(i64::from(limit))];
        let rows = self.store.read(sql, &args).await?;
        Ok(rows.iter().map(delivery).collect::<Result<_, _>>()?)
    }

    /// Tries given-up deliveries again, from the first attempt on: these, or all. How many there are.
    pub(crate) async fn retry_dead(&self, ids: Option<&[i64]>) -> Result<u64, NotifyError> {
        let ids = ids.map(|ids| json!(ids).to_string());
        let only = match ids {
            Some(_) => format!("AND id IN {}", self.store.dialect().numbers("$2")),
            None => "AND $2 = '[]'".to_owned(),
        };
        let sql = format!(
            "UPDATE archmesh_deliveries SET status = 'pending', attempts = 0, due_at = $1, updated_at = $1, error = NULL \
             WHERE status IN ('dead', 'failed') {only}"
        );
        let args = [Arg::Int(now_ms()), Arg::Text(ids.as_deref().unwrap_or("[]"))];
        let retried = self.store.write(sql, &args).await?;
        self.outgoing.notify_one();
        Ok(retried)
    }

    /// Sums of notifications that were sent from `from` until `to` (Unix milliseconds).
    pub(crate) async fn analytics(&self, from: i64, to: i64) -> Result<Analytics, NotifyError> {
        let read = async {
            let mut transaction = self.store.begin_read().await?;
            let inbox = "SELECT n.category, n.priority, count(*), count(i.seen_at), count(i.read_at), count(i.archived_at) \
                         FROM archmesh_inbox i JOIN archmesh_notifications n ON n.id = i.notification_id \
                         WHERE i.created_at >= $1 AND i.created_at < $2 GROUP BY n.category, n.priority \
                         ORDER BY n.category, n.priority";
            let args = [Arg::Int(from), Arg::Int(to)];
            let mut items = Vec::new();
            for row in transaction.fetch(inbox, &args).await? {
                let counts = [row.int(2)?, row.int(3)?, row.int(4)?, row.int(5)?];
                items.push((row.text(0)?, row.int(1)?, counts));
            }
            let deliveries = "SELECT d.channel, n.category, n.priority, d.status, count(*) \
                              FROM archmesh_deliveries d JOIN archmesh_notifications n ON n.id = d.notification_id \
                              WHERE d.created_at >= $1 AND d.created_at < $2 \
                              GROUP BY d.channel, n.category, n.priority, d.status \
                              ORDER BY d.channel, n.category, n.priority, d.status";
            let mut sums = Vec::new();
            for row in transaction.fetch(deliveries, &args).await? {
                sums.push((row.text(0)?, row.text(1)?, row.int(2)?, row.text(3)?, row.int(4)?));
            }
            transaction.commit().await?;
            Ok(Analytics { inbox: items, deliveries: sums })
        };
        Ok(self.store.run(read).await?)
    }
}
