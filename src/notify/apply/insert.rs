//! New notifications, new items, and what is to go out later.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use serde_json::{Value, json};

use super::super::change::{Change, Counters, Held, Notification, Recipient};
use super::super::item;
use super::{Batch, Event};
use crate::store::{Arg, Row, StoreError};

/// A new item.
pub(super) struct Item {
    pub(super) to: Recipient,
    pub(super) seq: i64,
    pub(super) notification: Arc<Notification>,
    counters: Counters,
}

/// An item that is to be made.
type Wanted<'a> = (&'a Recipient, &'a Arc<Notification>);

impl Batch<'_> {
    /// Ids of the notifications that are not new, with the id that stands instead: the same one, or that of the first one with
    /// the idempotency key.
    pub(super) async fn insert_notifications(
        &mut self,
        changes: &[Change],
    ) -> Result<HashMap<String, String>, StoreError> {
        let notifications: Vec<&Arc<Notification>> =
            changes.iter().filter_map(Change::notification).collect();
        if notifications.is_empty() {
            return Ok(HashMap::new());
        }
        let rows = notifications.iter().map(|n| notification_row(n)).collect();
        let columns = [
            ("id", true),
            ("idempotency_key", true),
            ("category", true),
            ("priority", false),
            ("content", true),
            ("template", true),
            ("collapse_key", true),
            ("created_at", false),
            ("expires_at", false),
        ];
        let tail = "WHERE true ORDER BY r.id ON CONFLICT DO NOTHING RETURNING id";
        let mut inserted = BTreeSet::new();
        for row in self.insert("archmesh_notifications", &columns, (rows, tail)).await? {
            inserted.insert(row.text(0)?);
        }
        let texts = notifications.iter().filter(|n| inserted.contains(&n.id)).flat_map(|n| {
            let id = &n.id;
            n.texts.iter().map(move |(locale, content)| {
                json!({"notification_id": id, "locale": locale, "content": content})
            })
        });
        let texts: Vec<Value> = texts.collect();
        let columns = [("notification_id", true), ("locale", true), ("content", true)];
        self.insert("archmesh_notification_texts", &columns, (texts, "")).await?;
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

    pub(super) async fn insert_items(
        &mut self,
        changes: &[&Change],
    ) -> Result<Vec<Item>, StoreError> {
        let mut wanted: Vec<Wanted<'_>> = Vec::new();
        let mut done: Vec<i64> = Vec::new();
        for change in changes {
            match change {
                Change::Send { notification, now, .. } => {
                    wanted.extend(now.iter().map(|to| (to, notification)));
                }
                Change::Release(due) => {
                    wanted.extend(due.iter().map(|due| (&due.recipient, &due.notification)));
                    done.extend(due.iter().map(|due| due.delivery));
                }
                Change::Digest { done: items, recipient, notification } => {
                    wanted.push((recipient, notification));
                    done.extend(items);
                }
                Change::Mark { .. } | Change::Clean { .. } => {}
            }
        }
        self.finish_deliveries(&done).await?;
        let wanted = only_newest_of_a_key(&wanted);
        self.collapse(&wanted).await?;
        let items = self.number(wanted);
        self.write_items(&items).await?;
        Ok(items)
    }

    /// Inserts rows, if there are any; what `tail` returns.
    async fn insert(
        &mut self,
        table: &str,
        columns: &[(&str, bool)],
        (rows, tail): (Vec<Value>, &str),
    ) -> Result<Vec<Row>, StoreError> {
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        let names: Vec<&str> = columns.iter().map(|(name, _)| *name).collect();
        let names = names.join(", ");
        let from = self.transaction.dialect().rows("$1", columns);
        let sql = format!("INSERT INTO {table} ({names}) SELECT {names} FROM {from} {tail}");
        let rows = Value::Array(rows).to_string();
        self.transaction.fetch(sql, &[Arg::Text(&rows)]).await
    }

    /// Items of the same collapse key that are unread leave for the new ones.
    async fn collapse(&mut self, wanted: &[Wanted<'_>]) -> Result<(), StoreError> {
        let keys: Vec<Value> = wanted
            .iter()
            .filter_map(|(to, n)| {
                Some(json!({"user_id": to.user, "collapse_key": n.collapse_key.as_ref()?}))
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
    fn number(&mut self, wanted: Vec<Wanted<'_>>) -> Vec<Item> {
        let mut items = Vec::with_capacity(wanted.len());
        for (to, notification) in wanted {
            let counters = self.counters.entry(to.user.clone()).or_default();
            counters.last_seq += 1;
            counters.unread += 1;
            counters.unseen += 1;
            counters.unacked += 1;
            let counters = self.touch(&to.user);
            items.push(Item {
                to: to.clone(),
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
        let rows = items.iter().map(|item| {
            json!({
                "user_id": item.to.user, "seq": item.seq, "notification_id": item.notification.id,
                "collapse_key": item.notification.collapse_key, "locale": item.to.locale.as_deref(),
                "created_at": self.now_ms, "expires_at": item.notification.expires_at,
            })
        });
        let rows = rows.collect();
        let columns = [
            ("user_id", true),
            ("seq", false),
            ("notification_id", true),
            ("collapse_key", true),
            ("locale", true),
            ("created_at", false),
            ("expires_at", false),
        ];
        self.insert("archmesh_inbox", &columns, (rows, "")).await?;
        for item in items {
            let notification = &item.notification;
            self.events.push(Event {
                user: item.to.user.clone(),
                kind: "notification",
                data: item::pushed(&item.to, (item.seq, self.now_ms), notification, item.counters),
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

    pub(super) async fn insert_held(&mut self, changes: &[&Change]) -> Result<(), StoreError> {
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
                let digest = held.digest_key.clone().map(|key| (held.recipient.user.clone(), key));
                let due_at = digest.and_then(|digest| open.get(&digest)).unwrap_or(&held.due_at);
                json!({
                    "notification_id": notification.id, "user_id": held.recipient.user,
                    "channel": held.channel.as_str(), "contact_id": held.contact,
                    "locale": held.recipient.locale.as_deref(), "priority": notification.priority.index(),
                    "due_at": due_at, "digest_key": held.digest_key, "created_at": self.now_ms,
                    "updated_at": self.now_ms,
                })
            })
            .collect();
        let columns = [
            ("notification_id", true),
            ("user_id", true),
            ("channel", true),
            ("contact_id", false),
            ("locale", true),
            ("priority", false),
            ("due_at", false),
            ("digest_key", true),
            ("created_at", false),
            ("updated_at", false),
        ];
        self.insert("archmesh_deliveries", &columns, (rows, "")).await?;
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
                Some(json!({"user_id": held.recipient.user, "digest_key": held.digest_key.as_ref()?}))
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
}

fn notification_row(notification: &Notification) -> Value {
    json!({
        "id": notification.id, "idempotency_key": notification.idempotency_key,
        "category": notification.category.as_str(), "priority": notification.priority.index(),
        "content": notification.content, "template": notification.template,
        "collapse_key": notification.collapse_key, "created_at": notification.created_at,
        "expires_at": notification.expires_at,
    })
}

/// Of several in one transaction with the same user and collapse key, the last one is the one that is to be seen.
fn only_newest_of_a_key<'a>(wanted: &[Wanted<'a>]) -> Vec<Wanted<'a>> {
    let mut last: HashMap<(&str, &str), usize> = HashMap::new();
    for (index, (to, notification)) in wanted.iter().enumerate() {
        if let Some(key) = &notification.collapse_key {
            last.insert((&to.user, key), index);
        }
    }
    let is_last = |index: usize, user: &str, notification: &Notification| {
        let key = notification.collapse_key.as_deref();
        key.is_none_or(|key| last.get(&(user, key)) == Some(&index))
    };
    let kept = wanted.iter().enumerate().filter(|(index, (to, n))| is_last(*index, &to.user, n));
    kept.map(|(_, pair)| *pair).collect()
}
