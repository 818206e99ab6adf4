//! What time does to inboxes: held items are shown when they are due, and old ones leave.
//!
//! Both work in transactions of their own that lock what they take, so several nodes may do it at once.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use super::apply::apply;
use super::change::{Change, Due, Notification, Recipient};
use super::kinds::Priority;
use super::{Notifications, now_ms};
use crate::store::{Arg, Row, StoreError, Transaction};

/// Items that one transaction shows, and users that one transaction cleans.
const BATCH: i64 = 256;
/// Items that a digest names; it counts all.
const DIGEST_ITEMS_MAX: usize = 50;
/// Characters of each of their titles.
const DIGEST_TITLE_MAX: usize = 200;
/// Between two looks for old items.
const CLEAN_INTERVAL: Duration = Duration::from_secs(1);

/// Shows held items when they are due, until the future is dropped.
pub(super) async fn release(notifications: Arc<Notifications>) {
    loop {
        // An outage has been logged by the store; the next look tries again.
        let released = match notifications.any_due().await {
            Ok(true) => notifications.store.run(notifications.release_due()).await.unwrap_or(0),
            Ok(false) | Err(_) => 0,
        };
        if released > 0 {
            notifications.relay.wake();
        }
        if released < BATCH as usize {
            tokio::time::sleep(notifications.poll_interval).await;
        }
    }
}

/// Removes old items, until the future is dropped.
pub(super) async fn clean(notifications: Arc<Notifications>) {
    loop {
        let cleaned = match notifications.any_old().await {
            Ok(true) => notifications.store.run(notifications.clean_old()).await.unwrap_or(0),
            Ok(false) | Err(_) => 0,
        };
        if cleaned > 0 {
            notifications.relay.wake();
        }
        if cleaned < BATCH as usize {
            tokio::time::sleep(CLEAN_INTERVAL).await;
        }
    }
}

impl Notifications {
    /// Whether a held item is due. It reads only, for most looks find nothing.
    async fn any_due(&self) -> Result<bool, StoreError> {
        let sql = "SELECT 1 FROM archmesh_deliveries WHERE status IN ('pending', 'retrying', 'sending') \
                   AND status = 'pending' AND channel = 'in_app' AND due_at <= $1 LIMIT 1";
        Ok(!self.store.read(sql, &[Arg::Int(now_ms())]).await?.is_empty())
    }

    /// Whether something is to be removed.
    async fn any_old(&self) -> Result<bool, StoreError> {
        let sql = "SELECT 1 WHERE EXISTS (SELECT 1 FROM archmesh_inbox WHERE expires_at <= $1) \
                   OR EXISTS (SELECT 1 FROM archmesh_inbox WHERE created_at < $2) \
                   OR EXISTS (SELECT 1 FROM archmesh_deliveries WHERE updated_at < $2 \
                              AND status NOT IN ('pending', 'retrying', 'sending')) \
                   OR EXISTS (SELECT 1 FROM archmesh_notifications WHERE created_at < $2)";
        let now = now_ms();
        let args = [Arg::Int(now), Arg::Int(self.created_before(now))];
        Ok(!self.store.read(sql, &args).await?.is_empty())
    }

    fn created_before(&self, now: i64) -> i64 {
        now - self.limits.retention.as_millis() as i64
    }

    async fn release_due(&self) -> Result<usize, StoreError> {
        let mut transaction = self.store.begin().await?;
        let now = now_ms();
        let sql = format!(
            "SELECT d.id, d.user_id, d.digest_key, n.id, n.category, n.priority, coalesce(t.content, n.content), \
             n.created_at, n.expires_at, n.collapse_key, d.locale \
             FROM archmesh_deliveries d JOIN archmesh_notifications n ON n.id = d.notification_id \
             LEFT JOIN archmesh_notification_texts t ON t.notification_id = n.id AND t.locale = d.locale \
             WHERE d.status IN ('pending', 'retrying', 'sending') AND d.status = 'pending' \
             AND d.channel = 'in_app' AND d.due_at <= $1 ORDER BY d.due_at, d.id LIMIT $2 {}",
            transaction.dialect().skip_locked().replace("UPDATE", "UPDATE OF d")
        );
        let rows = transaction.fetch(sql, &[Arg::Int(now), Arg::Int(BATCH)]).await?;
        if rows.is_empty() {
            transaction.roll_back().await?;
            return Ok(0);
        }
        let mut due: Vec<(Option<String>, Due)> = Vec::with_capacity(rows.len());
        let mut expired = Vec::new();
        for row in &rows {
            let item = due_of(row)?;
            if item.has_expired(now) {
                expired.push(item.delivery);
            } else {
                due.push((row.maybe_text(2)?, item));
            }
        }
        give_up(&mut transaction, &expired, now).await?;
        let changes = changes_of(due, now);
        apply(&mut transaction, now, &changes).await?;
        transaction.commit().await?;
        Ok(rows.len())
    }

    async fn clean_old(&self) -> Result<usize, StoreError> {
        let mut transaction = self.store.begin().await?;
        let now = now_ms();
        let created_before = self.created_before(now);
        let sql = "SELECT DISTINCT user_id FROM (SELECT user_id FROM archmesh_inbox WHERE expires_at <= $1 \
                   UNION ALL SELECT user_id FROM archmesh_inbox WHERE created_at < $2) old LIMIT $3";
        let args = [Arg::Int(now), Arg::Int(created_before), Arg::Int(BATCH)];
        let rows = transaction.fetch(sql, &args).await?;
        let changes = rows
            .iter()
            .map(|row| Ok(Change::Clean { user: row.text(0)?, created_before }))
            .collect::<Result<Vec<_>, StoreError>>()?;
        apply(&mut transaction, now, &changes).await?;
        forget(&mut transaction, created_before).await?;
        transaction.commit().await?;
        Ok(changes.len())
    }
}

/// Items that have expired while they were held.
async fn give_up(
    transaction: &mut Transaction,
    expired: &[i64],
    now: i64,
) -> Result<(), StoreError> {
    if expired.is_empty() {
        return Ok(());
    }
    let sql = format!(
        "UPDATE archmesh_deliveries SET status = 'failed', error = 'it has expired before it could be shown', \
         updated_at = $2 WHERE id IN {}",
        transaction.dialect().numbers("$1")
    );
    transaction.execute(sql, &[Arg::Text(&json!(expired).to_string()), Arg::Int(now)]).await?;
    Ok(())
}

/// Deliveries that are done, and notifications that nobody has any more.
async fn forget(transaction: &mut Transaction, created_before: i64) -> Result<(), StoreError> {
    let args = [Arg::Int(created_before), Arg::Int(BATCH * 4)];
    let deliveries = "DELETE FROM archmesh_deliveries WHERE id IN (SELECT id FROM archmesh_deliveries \
        WHERE updated_at < $1 AND status NOT IN ('pending', 'retrying', 'sending') LIMIT $2)";
    transaction.execute(deliveries, &args).await?;
    let notifications = "DELETE FROM archmesh_notifications WHERE id IN (SELECT n.id FROM archmesh_notifications n \
        WHERE n.created_at < $1 AND NOT EXISTS (SELECT 1 FROM archmesh_inbox i WHERE i.notification_id = n.id) \
        AND NOT EXISTS (SELECT 1 FROM archmesh_deliveries d WHERE d.notification_id = n.id) LIMIT $2) RETURNING id";
    let rows = transaction.fetch(notifications, &args).await?;
    let ids = rows.iter().map(|row| row.text(0)).collect::<Result<Vec<_>, _>>()?;
    if !ids.is_empty() {
        let texts = format!(
            "DELETE FROM archmesh_notification_texts WHERE notification_id IN {}",
            transaction.dialect().texts("$1")
        );
        transaction.execute(texts, &[Arg::Text(&json!(ids).to_string())]).await?;
    }
    Ok(())
}

fn due_of(row: &Row) -> Result<Due, StoreError> {
    let priority = Priority::from_number(row.int(5)?);
    let notification = Notification {
        id: row.text(3)?,
        idempotency_key: None,
        category: row.text(4)?.parse().map_err(|_| StoreError::Unexpected("a category"))?,
        priority: priority.ok_or(StoreError::Unexpected("a priority"))?,
        content: row.text(6)?,
        texts: BTreeMap::new(),
        template: None,
        collapse_key: row.maybe_text(9)?,
        created_at: row.int(7)?,
        expires_at: row.maybe_int(8)?,
    };
    let locale = row.maybe_text(10)?.map(Into::into);
    let recipient = Recipient { user: row.text(1)?, locale };
    Ok(Due { delivery: row.int(0)?, recipient, notification: Arc::new(notification) })
}

/// Single items are shown as they are; several of one digest as one notification that names them.
fn changes_of(due: Vec<(Option<String>, Due)>, now_ms: i64) -> Vec<Change> {
    let mut single = Vec::new();
    let mut digests: BTreeMap<(String, String), Vec<Due>> = BTreeMap::new();
    for (key, due) in due {
        match key {
            Some(key) => digests.entry((due.recipient.user.clone(), key)).or_default().push(due),
            None => single.push(due),
        }
    }
    let mut changes = Vec::new();
    for ((user, _), mut items) in digests {
        if items.len() == 1 {
            single.append(&mut items);
            continue;
        }
        let done = items.iter().map(|item| item.delivery).collect();
        let notification = Arc::new(digest_of(&items, now_ms));
        let recipient = Recipient { user, locale: None };
        changes.push(Change::Digest { done, recipient, notification });
    }
    changes.push(Change::Release(single));
    changes
}

/// One notification for several: the newest title and how many more, the titles as text, the items as metadata; both newest
/// first.
fn digest_of(items: &[Due], now_ms: i64) -> Notification {
    let contents: Vec<Value> = items
        .iter()
        .map(|item| serde_json::from_str(&item.notification.content).unwrap_or_default())
        .collect();
    let title = |content: &Value| -> String {
        content["title"].as_str().unwrap_or_default().chars().take(DIGEST_TITLE_MAX).collect()
    };
    let newest = contents.last().map(title).unwrap_or_default();
    let lines: Vec<String> = contents.iter().rev().take(DIGEST_ITEMS_MAX).map(title).collect();
    let listed: Vec<Value> = items
        .iter()
        .zip(&contents)
        .rev()
        .take(DIGEST_ITEMS_MAX)
        .map(|(item, content)| {
            json!({
                "notification_id": item.notification.id, "category": item.notification.category.as_str(),
                "created_at": item.notification.created_at, "title": title(content),
            })
        })
        .collect();
    let content = json!({
        "title": format!("{newest} (+{})", items.len() - 1),
        "message": lines.join("\n"),
        "metadata": {"count": items.len(), "digest": listed},
    });
    let first = &items[0].notification;
    let most_urgent = items.iter().map(|item| item.notification.priority).max();
    Notification {
        id: uuid::Uuid::now_v7().to_string(),
        idempotency_key: None,
        category: first.category.clone(),
        priority: most_urgent.unwrap_or_default(),
        content: content.to_string(),
        texts: BTreeMap::new(),
        template: None,
        collapse_key: None,
        created_at: now_ms,
        expires_at: None,
    }
}
