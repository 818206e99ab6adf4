//! Carries changes out in one transaction.
//!
//! The order of locks is the same in every transaction: first the counters of all users, in the order of their ids, then
//! notifications, then items. So items and counters of a user are changed by one transaction at a time, rows of the outbox have
//! the order of commits, and counters cannot drift from the rows.
//!
//! A batch is a handful of statements, however many changes it has: lists travel as JSON.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use serde_json::{Value, json};

use super::change::{Applied, Change, Counters, Held, Mark, Notification, Which};
use super::item;
use crate::store::{Arg, Row, StoreError, Transaction};

/// A publication on its way into the outbox.
struct Event {
    user: String,
    kind: &'static str,
    data: String,
    priority: &'static str,
}

/// A new item.
struct Item {
    user: String,
    seq: i64,
    notification: Arc<Notification>,
    counters: Counters,
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
    let fresh: Vec<&Change> = changes
        .iter()
        .filter(|change| change.notification().is_none_or(|n| !duplicates.contains_key(&n.id)))
        .collect();
    batch.insert_items(&fresh).await?;
    batch.insert_held(&fresh).await?;
    let mut applied = Vec::with_capacity(changes.len());
    for change in changes {
        applied.push(match change {
            Change::Send { notification, .. } => {
                let first = duplicates.get(&notification.id);
                Applied::Sent {
                    id: first.unwrap_or(&notification.id).clone(),
                    duplicate: first.is_some(),
                }
            }
            Change::Release(_) | Change::Digest { .. } => Applied::Released,
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

    /// Ids of the notifications that are not new, with the id that stands instead: the same one, or that of the first one with
    /// the idempotency key.
    async fn insert_notifications(
        &mut self,
        changes: &[Change],
    ) -> Result<HashMap<String, String>, StoreError> {
        let notifications: Vec<&Arc<Notification>> =
            changes.iter().filter_map(Change::notification).collect();
        if notifications.is_empty() {
            return Ok(HashMap::new());
        }
        let rows: Vec<Value> = notifications.iter().map(|n| notification_row(n)).collect();
        let columns = [
            ("id", true),
            ("idempotency_key", true),
            ("category", true),
            ("priority", false),
            ("content", true),
            ("collapse_key", true),
            ("created_at", false),
            ("expires_at", false),
        ];
        let names = columns.map(|(name, _)| name).join(", ");
        let sql = format!(
            "INSERT INTO archmesh_notifications ({names}) SELECT {names} FROM {} WHERE true ORDER BY r.id \
             ON CONFLICT DO NOTHING RETURNING id",
            self.transaction.dialect().rows("$1", &columns)
        );
        let rows = Value::Array(rows).to_string();
        let mut inserted = BTreeSet::new();
        for row in self.transaction.fetch(sql, &[Arg::Text(&rows)]).await? {
            inserted.insert(row.text(0)?);
        }
        let known: Vec<&Arc<Notification>> =
            notifications.into_iter().filter(|n| !inserted.contains(&n.id)).collect();
        let first = self.find_keys(&known).await?;
        let stands = |n: &&Arc<Notification>| {
            let id = n.idempotency_key.as_ref().and_then(|key| first.get(key)).unwrap_or(&n.id);
            (n.id.clone(), id.clone())
        };
        Ok(known.iter().map(stands).collect())
    }

    /// Notification ids by idempotency key.
    async fn find_keys(
        &mut self,
        known: &[&Arc<Notification>],
    ) -> Result<HashMap<String, String>, StoreError> {
        let keys: Vec<&str> = known.iter().filter_map(|n| n.idempotency_key.as_deref()).collect();
        let mut first = HashMap::new();
        if keys.is_empty() {
            return Ok(first);
        }
        let sql = format!(
            "SELECT idempotency_key, id FROM archmesh_notifications WHERE idempotency_key IN {}",
            self.transaction.dialect().texts("$1")
        );
        for row in self.transaction.fetch(sql, &[Arg::Text(&json!(keys).to_string())]).await? {
            first.insert(row.text(0)?, row.text(1)?);
        }
        Ok(first)
    }

    async fn insert_items(&mut self, changes: &[&Change]) -> Result<(), StoreError> {
        let mut wanted: Vec<(&str, &Arc<Notification>)> = Vec::new();
        let mut done: Vec<i64> = Vec::new();
        for change in changes {
            match change {
                Change::Send { notification, now, .. } => {
                    wanted.extend(now.iter().map(|user| (user.as_str(), notification)));
                }
                Change::Release(due) => {
                    wanted.extend(due.iter().map(|due| (due.user.as_str(), &due.notification)));
                    done.extend(due.iter().map(|due| due.delivery));
                }
                Change::Digest { done: items, user, notification } => {
                    wanted.push((user, notification));
                    done.extend(items);
                }
                Change::Mark { .. } | Change::Clean { .. } => {}
            }
        }
        self.finish_deliveries(&done).await?;
        let wanted = only_newest_of_a_key(wanted);
        self.collapse(&wanted).await?;
        let items = self.number(wanted);
        self.write_items(&items).await
    }

    /// Items of the same collapse key that are unread leave for the new ones.
    async fn collapse(&mut self, wanted: &[(&str, &Arc<Notification>)]) -> Result<(), StoreError> {
        let keys: Vec<Value> = wanted
            .iter()
            .filter_map(|(user, n)| {
                Some(json!({"user_id": user, "collapse_key": n.collapse_key.as_ref()?}))
            })
            .collect();
        if keys.is_empty() {
            return Ok(());
        }
        let sql = format!(
            "DELETE FROM archmesh_inbox WHERE read_at IS NULL AND archived_at IS NULL AND collapse_key IS NOT NULL \
             AND (user_id, collapse_key) IN (SELECT r.user_id, r.collapse_key FROM {}) \
             RETURNING user_id, notification_id, seen_at, acked_at",
            self.transaction.dialect().rows("$1", &[("user_id", true), ("collapse_key", true)])
        );
        let keys = Value::Array(keys).to_string();
        let mut gone: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for row in self.transaction.fetch(sql, &[Arg::Text(&keys)]).await? {
            let user = row.text(0)?;
            let (seen, acked) = (row.maybe_int(2)?.is_some(), row.maybe_int(3)?.is_some());
            let counters = self.counters.entry(user.clone()).or_default();
            counters.unread -= 1;
            counters.unseen -= i64::from(!seen);
            counters.unacked -= i64::from(!acked);
            gone.entry(user).or_default().push(row.text(1)?);
        }
        for (user, ids) in gone {
            let counters = self.touch(&user);
            self.tell_update(&user, json!({"state": "removed", "ids": ids}), counters);
        }
        Ok(())
    }

    /// Gives each item its place in the inbox.
    fn number(&mut self, wanted: Vec<(&str, &Arc<Notification>)>) -> Vec<Item> {
        let mut items = Vec::with_capacity(wanted.len());
        for (user, notification) in wanted {
            let counters = self.counters.entry(user.to_owned()).or_default();
            counters.last_seq += 1;
            counters.unread += 1;
            counters.unseen += 1;
            counters.unacked += 1;
            let counters = self.touch(user);
            items.push(Item {
                user: user.to_owned(),
                seq: counters.last_seq,
                notification: Arc::clone(notification),
                counters,
            });
        }
        items
    }

    async fn write_items(&mut self, items: &[Item]) -> Result<(), StoreError> {
        if items.is_empty() {
            return Ok(());
        }
        let rows: Vec<Value> = items
            .iter()
            .map(|item| {
                json!({
                    "user_id": item.user, "seq": item.seq, "notification_id": item.notification.id,
                    "collapse_key": item.notification.collapse_key,
                    "created_at": self.now_ms, "expires_at": item.notification.expires_at,
                })
            })
            .collect();
        let columns = [
            ("user_id", true),
            ("seq", false),
            ("notification_id", true),
            ("collapse_key", true),
            ("created_at", false),
            ("expires_at", false),
        ];
        let names = columns.map(|(name, _)| name).join(", ");
        let sql = format!(
            "INSERT INTO archmesh_inbox ({names}) SELECT {names} FROM {}",
            self.transaction.dialect().rows("$1", &columns)
        );
        let rows = Value::Array(rows).to_string();
        self.transaction.execute(sql, &[Arg::Text(&rows)]).await?;
        for item in items {
            let notification = &item.notification;
            self.events.push(Event {
                user: item.user.clone(),
                kind: "notification",
                data: item::pushed(&item.user, item.seq, self.now_ms, notification, item.counters),
                priority: notification.priority.as_str(),
            });
        }
        Ok(())
    }

    async fn finish_deliveries(&mut self, deliveries: &[i64]) -> Result<(), StoreError> {
        if deliveries.is_empty() {
            return Ok(());
        }
        let sql = format!(
            "UPDATE archmesh_deliveries SET status = 'delivered', updated_at = $2 WHERE id IN {}",
            self.transaction.dialect().numbers("$1")
        );
        let ids = json!(deliveries).to_string();
        self.transaction.execute(sql, &[Arg::Text(&ids), Arg::Int(self.now_ms)]).await?;
        Ok(())
    }

    async fn insert_held(&mut self, changes: &[&Change]) -> Result<(), StoreError> {
        let mut held: Vec<(&Notification, &Held)> = Vec::new();
        for change in changes {
            if let Change::Send { notification, later, .. } = change {
                held.extend(later.iter().map(|held| (&**notification, held)));
            }
        }
        if held.is_empty() {
            return Ok(());
        }
        let open = self.open_digests(&held).await?;
        let rows: Vec<Value> = held
            .iter()
            .map(|(notification, held)| {
                let digest = held.digest_key.clone().map(|key| (held.user.clone(), key));
                let due_at = digest.and_then(|digest| open.get(&digest)).unwrap_or(&held.due_at);
                json!({
                    "notification_id": notification.id, "user_id": held.user, "channel": "in_app",
                    "priority": notification.priority as i64, "due_at": due_at,
                    "digest_key": held.digest_key, "created_at": self.now_ms, "updated_at": self.now_ms,
                })
            })
            .collect();
        let columns = [
            ("notification_id", true),
            ("user_id", true),
            ("channel", true),
            ("priority", false),
            ("due_at", false),
            ("digest_key", true),
            ("created_at", false),
            ("updated_at", false),
        ];
        let names = columns.map(|(name, _)| name).join(", ");
        let sql = format!(
            "INSERT INTO archmesh_deliveries ({names}) SELECT {names} FROM {}",
            self.transaction.dialect().rows("$1", &columns)
        );
        let rows = Value::Array(rows).to_string();
        self.transaction.execute(sql, &[Arg::Text(&rows)]).await?;
        Ok(())
    }

    /// When the digests that are open are due: what comes later goes out with what is there.
    async fn open_digests(
        &mut self,
        held: &[(&Notification, &Held)],
    ) -> Result<HashMap<(String, String), i64>, StoreError> {
        let keys: Vec<Value> = held
            .iter()
            .filter_map(|(_, held)| {
                Some(json!({"user_id": held.user, "digest_key": held.digest_key.as_ref()?}))
            })
            .collect();
        let mut open = HashMap::new();
        if keys.is_empty() {
            return Ok(open);
        }
        let sql = format!(
            "SELECT user_id, digest_key, min(due_at) FROM archmesh_deliveries \
             WHERE status = 'pending' AND due_at > $2 AND digest_key IS NOT NULL \
             AND (user_id, digest_key) IN (SELECT r.user_id, r.digest_key FROM {}) GROUP BY user_id, digest_key",
            self.transaction.dialect().rows("$1", &[("user_id", true), ("digest_key", true)])
        );
        let keys = Value::Array(keys).to_string();
        for row in self.transaction.fetch(sql, &[Arg::Text(&keys), Arg::Int(self.now_ms)]).await? {
            open.insert((row.text(0)?, row.text(1)?), row.int(2)?);
        }
        Ok(open)
    }

    async fn mark(&mut self, user: &str, mark: Mark, which: &Which) -> Result<Applied, StoreError> {
        let columns = mark.columns();
        let condition = format!("{} IS NULL", columns[0]);
        let (condition, parameter) = match which {
            Which::Ids(ids) => {
                let ids_in = self.transaction.dialect().texts("$2");
                (format!("{condition} AND notification_id IN {ids_in}"), Ok(json!(ids).to_string()))
            }
            Which::UpTo(seq) => {
                let newest = self.counters.get(user).map_or(0, |counters| counters.last_seq);
                (format!("{condition} AND seq <= $2"), Err(seq.unwrap_or(newest)))
            }
        };
        let parameter = match &parameter {
            Ok(ids) => Arg::Text(ids),
            Err(seq) => Arg::Int(*seq),
        };
        let found = self.count_matching(user, &condition, parameter).await?;
        if found.items == 0 {
            return Ok(Applied::Changed(0, self.counters.get(user).copied().unwrap_or_default()));
        }
        let set: Vec<String> =
            columns.iter().map(|column| format!("{column} = coalesce({column}, $3)")).collect();
        let sql = format!(
            "UPDATE archmesh_inbox SET {} WHERE user_id = $1 AND {condition}",
            set.join(", ")
        );
        self.transaction.execute(sql, &[Arg::Text(user), parameter, Arg::Int(self.now_ms)]).await?;
        let counters = self.counters.entry(user.to_owned()).or_default();
        if matches!(mark, Mark::Read | Mark::Archived) {
            counters.unread -= found.unread;
        }
        if matches!(mark, Mark::Seen | Mark::Read | Mark::Archived) {
            counters.unseen -= found.unseen;
        }
        counters.unacked -= found.unacked;
        let counters = self.touch(user);
        let what = match which {
            Which::Ids(ids) => json!({"state": mark.as_str(), "ids": ids}),
            Which::UpTo(seq) => {
                json!({"state": mark.as_str(), "all": true, "up_to": seq.unwrap_or(counters.last_seq)})
            }
        };
        self.tell_update(user, what, counters);
        Ok(Applied::Changed(found.items as usize, counters))
    }

    async fn clean(&mut self, user: &str, created_before: i64) -> Result<Applied, StoreError> {
        let condition = "(created_at < $2 OR expires_at <= $3)";
        let sql = format!(
            "DELETE FROM archmesh_inbox WHERE user_id = $1 AND {condition} \
             RETURNING notification_id, seen_at, read_at, acked_at, archived_at"
        );
        let args = [Arg::Text(user), Arg::Int(created_before), Arg::Int(self.now_ms)];
        let rows = self.transaction.fetch(sql, &args).await?;
        let mut ids = Vec::new();
        let counters = self.counters.entry(user.to_owned()).or_default();
        for row in &rows {
            if row.maybe_int(4)?.is_none() {
                counters.unseen -= i64::from(row.maybe_int(1)?.is_none());
                counters.unread -= i64::from(row.maybe_int(2)?.is_none());
                counters.unacked -= i64::from(row.maybe_int(3)?.is_none());
                ids.push(row.text(0)?);
            }
        }
        if rows.is_empty() {
            return Ok(Applied::Changed(0, *counters));
        }
        let counters = self.touch(user);
        self.tell_update(user, json!({"state": "removed", "ids": ids}), counters);
        Ok(Applied::Changed(rows.len(), counters))
    }

    /// Counts the items that a condition meets; archived ones are in no counter.
    async fn count_matching(
        &mut self,
        user: &str,
        condition: &str,
        parameter: Arg<'_>,
    ) -> Result<Matching, StoreError> {
        let sql = format!(
            "SELECT count(*), \
             count(*) FILTER (WHERE read_at IS NULL AND archived_at IS NULL), \
             count(*) FILTER (WHERE seen_at IS NULL AND archived_at IS NULL), \
             count(*) FILTER (WHERE acked_at IS NULL AND archived_at IS NULL) \
             FROM archmesh_inbox WHERE user_id = $1 AND {condition}"
        );
        let rows = self.transaction.fetch(sql, &[Arg::Text(user), parameter]).await?;
        let row = rows.first().ok_or(StoreError::Unexpected("a count without a row"))?;
        Ok(Matching {
            items: row.int(0)?,
            unread: row.int(1)?,
            unseen: row.int(2)?,
            unacked: row.int(3)?,
        })
    }

    /// Notes that an inbox has changed once more.
    fn touch(&mut self, user: &str) -> Counters {
        self.changed.insert(user.to_owned());
        let counters = self.counters.entry(user.to_owned()).or_default();
        counters.revision += 1;
        *counters
    }

    fn tell_update(&mut self, user: &str, mut what: Value, counters: Counters) {
        what["unread"] = counters.unread.into();
        what["unseen"] = counters.unseen.into();
        what["revision"] = counters.revision.into();
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

struct Matching {
    items: i64,
    unread: i64,
    unseen: i64,
    unacked: i64,
}

fn notification_row(notification: &Notification) -> Value {
    json!({
        "id": notification.id, "idempotency_key": notification.idempotency_key,
        "category": notification.category.as_str(), "priority": notification.priority as i64,
        "content": notification.content, "collapse_key": notification.collapse_key, "created_at": notification.created_at,
        "expires_at": notification.expires_at,
    })
}

/// Of several in one transaction with the same user and collapse key, the last one is the one that is to be seen.
fn only_newest_of_a_key<'a>(
    wanted: Vec<(&'a str, &'a Arc<Notification>)>,
) -> Vec<(&'a str, &'a Arc<Notification>)> {
    let mut last: HashMap<(&str, &str), usize> = HashMap::new();
    for (index, (user, notification)) in wanted.iter().enumerate() {
        if let Some(key) = &notification.collapse_key {
            last.insert((user, key), index);
        }
    }
    let is_last = |index: usize, user: &str, notification: &Notification| {
        let key = notification.collapse_key.as_deref();
        key.is_none_or(|key| last.get(&(user, key)) == Some(&index))
    };
    let kept = wanted.iter().enumerate().filter(|(index, (user, n))| is_last(*index, user, n));
    kept.map(|(_, pair)| *pair).collect()
}
