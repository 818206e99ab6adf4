//! Carries changes out in one transaction.
//!
//! The order of locks is the same in every transaction: first the counters of all users, in the order of their ids, then
//! notifications, then items. So items and counters of a user are changed by one transaction at a time, rows of the outbox have
//! the order of commits, and counters cannot drift from the rows.
//!
//! A batch is a handful of statements, however many changes it has: lists travel as JSON.

mod insert;
mod marks;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
mod tops;

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::change::{Applied, Change, Counters, Which};
use crate::store::{Arg, Row, StoreError, Transaction};
use tops::Tops;

/// A publication on its way into the outbox.
struct Event {
    user: String,
    kind: &'static str,
    data: String,
    priority: &'static str,
}

/// State of one transaction.
struct Batch<'a> {
    transaction: &'a mut Transaction,
    now_ms: i64,
    counters: BTreeMap<String, Counters>,
    changed: BTreeSet<String>,
    events: Vec<Event>,
}

/// Applies `changes` in their order, at the time `now_ms` (Unix). The caller commits.
pub(crate) async fn apply(
    transaction: &mut Transaction,
    now_ms: i64,
    changes: &[Change],
) -> Result<Vec<Applied>, StoreError> {
    let mut batch = Batch {
        transaction,
        now_ms,
        counters: BTreeMap::new(),
        changed: BTreeSet::new(),
        events: Vec::new(),
    };
    batch.lock_counters(changes).await?;
    let duplicates = batch.insert_notifications(changes).await?;
    let mut tops = Tops::before(changes, &batch.counters);
    let fresh: Vec<&Change> = changes
        .iter()
        .filter(|change| change.notification().is_none_or(|n| !duplicates.contains_key(&n.id)))
        .collect();
    tops.note(&batch.insert_items(&fresh).await?);
    batch.insert_held(&fresh).await?;
    let mut applied = Vec::with_capacity(changes.len());
    for change in changes {
        tops.come_to(change);
        applied.push(match change {
            Change::Send { notification, .. } => {
                let first = duplicates.get(&notification.id);
                Applied::Sent {
                    id: first.unwrap_or(&notification.id).clone(),
                    duplicate: first.is_some(),
                }
            }
            Change::Release(_) | Change::Digest { .. } => Applied::Released,
            Change::Mark { user, mark, which: Which::UpTo(None) } => {
                // Not what comes behind it in the same batch.
                let top = tops.of(user);
                match batch.mark(user, *mark, &Which::UpTo(Some(top))).await? {
                    Applied::Changed(items, counters) => {
                        Applied::Changed(items, Counters { last_seq: top, ..counters })
                    }
                    other => other,
                }
            }
            Change::Mark { user, mark, which } => batch.mark(user, *mark, which).await?,
            Change::Clean { user, created_before } => batch.clean(user, *created_before).await?,
        });
    }
    batch.write_counters().await?;
    batch.insert_events().await?;
    Ok(applied)
}

pub(super) fn counters_of(row: &Row, first: usize) -> Result<Counters, StoreError> {
    Ok(Counters {
        last_seq: row.int(first)?,
        unread: row.int(first + 1)?,
        unseen: row.int(first + 2)?,
        unacked: row.int(first + 3)?,
        revision: row.int(first + 4)?,
    })
}

/// Reads the counters of one user; zero for one that has no inbox yet.
pub(crate) async fn read_counters(
    transaction: &mut Transaction,
    user: &str,
) -> Result<Counters, StoreError> {
    let rows = transaction
        .fetch(
            "SELECT last_seq, unread, unseen, unacked, revision FROM archmesh_inboxes WHERE user_id = $1",
            &[Arg::Text(user)],
        )
        .await?;
    rows.first().map_or(Ok(Counters::default()), |row| counters_of(row, 0))
}

impl Batch<'_> {
    /// Makes missing inboxes and locks all that will be touched, in the order of the user ids.
    async fn lock_counters(&mut self, changes: &[Change]) -> Result<(), StoreError> {
        let users: BTreeSet<&str> = changes.iter().flat_map(Change::users).collect();
        if users.is_empty() {
            return Ok(());
        }
        let rows: Vec<Value> = users.iter().map(|user| json!({"user_id": user})).collect();
        let sql = format!(
            "INSERT INTO archmesh_inboxes (user_id) SELECT r.user_id FROM {} WHERE true ORDER BY r.user_id \
             ON CONFLICT (user_id) DO UPDATE SET user_id = excluded.user_id \
             RETURNING user_id, last_seq, unread, unseen, unacked, revision",
            self.transaction.dialect().rows("$1", &[("user_id", true)])
        );
        let rows = Value::Array(rows).to_string();
        for row in self.transaction.fetch(sql, &[Arg::Text(&rows)]).await? {
            self.counters.insert(row.text(0)?, counters_of(&row, 1)?);
        }
        Ok(())
    }

    /// Notes that an inbox has changed once more.
    fn touch(&mut self, user: &str) -> Counters {
        self.changed.insert(user.to_owned());
        let counters = self.counters.entry(user.to_owned()).or_default();
        counters.revision += 1;
        *counters
    }

    fn tell_update(&mut self, user: &str, mut what: Value, counters: Counters) {
        counters.put_into(&mut what);
        self.events.push(Event {
            user: user.to_owned(),
            kind: "notification_update",
            data: what.to_string(),
            priority: "normal",
        });
    }

    async fn write_counters(&mut self) -> Result<(), StoreError> {
        if self.changed.is_empty() {
            return Ok(());
        }
        let rows: Vec<Value> = self
            .changed
            .iter()
            .filter_map(|user| Some((user, self.counters.get(user)?)))
            .map(|(user, counters)| {
                json!({
                    "user_id": user, "last_seq": counters.last_seq, "unread": counters.unread,
                    "unseen": counters.unseen, "unacked": counters.unacked, "revision": counters.revision,
                })
            })
            .collect();
        let columns = [
            ("user_id", true),
            ("last_seq", false),
            ("unread", false),
            ("unseen", false),
            ("unacked", false),
            ("revision", false),
        ];
        let sql = format!(
            "UPDATE archmesh_inboxes SET last_seq = r.last_seq, unread = r.unread, unseen = r.unseen, \
             unacked = r.unacked, revision = r.revision FROM {} WHERE archmesh_inboxes.user_id = r.user_id",
            self.transaction.dialect().rows("$1", &columns)
        );
        let rows = Value::Array(rows).to_string();
        self.transaction.execute(sql, &[Arg::Text(&rows)]).await?;
        Ok(())
    }

    async fn insert_events(&mut self) -> Result<(), StoreError> {
        if self.events.is_empty() {
            return Ok(());
        }
        let rows: Vec<Value> = self
            .events
            .iter()
            .enumerate()
            .map(|(place, event)| {
                json!({
                    "place": place, "channel": format!("user:{}", event.user), "type": event.kind,
                    "data": event.data, "priority": event.priority,
                })
            })
            .collect();
        let columns = [
            ("place", false),
            ("channel", true),
            ("type", true),
            ("data", true),
            ("priority", true),
        ];
        let sql = format!(
            "INSERT INTO archmesh_outbox (channel, type, data, priority) \
             SELECT r.channel, r.type, r.data, r.priority FROM {} ORDER BY r.place",
            self.transaction.dialect().rows("$1", &columns)
        );
        let rows = Value::Array(rows).to_string();
        self.transaction.execute(sql, &[Arg::Text(&rows)]).await?;
        Ok(())
    }
}
