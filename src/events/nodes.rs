//! Runs of nodes in the database: each shows that it lives by writing, and what a dead one has left behind is ended by another.
//!
//! A run is gone when its number of batches stands still for `events.node_ttl` while this node could look all the time: after an
//! outage of the database everybody has the whole time again, and no clocks are compared. It is marked first, so a run that was
//! only away finds that out with its next write, comes back as another and takes its sessions and channels along (`recorder`).

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use serde_json::json;

use super::entry::Entry;
use super::write::{Ids, Writer, texts, vacate};
use super::{EventStats, Events};
use crate::config::sections::EventKind;
use crate::notify::now_ms;
use crate::store::{Arg, Row, StoreError, Transaction};

/// Why sessions end whose node is gone.
const NODE_LOST: &str = "node_lost";
/// Sessions and channels that one transaction ends.
const END_MAX: i64 = 1_000;
/// Signs of life and looks in the time after which a node is gone.
pub(super) const SIGNS: u32 = 4;

/// An id that no other run has.
pub(super) fn new_id() -> i64 {
    fastrand::i64(1..i64::MAX)
}

/// Ends what dead nodes have left behind, until the future is dropped.
pub(super) async fn watch(events: Arc<Events>) {
    let ttl = events.section.node_ttl;
    let mut seen: HashMap<i64, (i64, Instant)> = HashMap::new();
    loop {
        tokio::time::sleep(ttl / SIGNS).await;
        let Ok(others) = events.other_nodes().await else {
            // The store has logged it. Whoever could not write meanwhile is not blamed for that.
            seen.clear();
            continue;
        };
        let now = Instant::now();
        seen.retain(|id, _| others.iter().any(|(other, ..)| other == id));
        for (id, batch, is_gone) in others {
            let since = seen.entry(id).or_insert((batch, now));
            if since.0 != batch {
                *since = (batch, now);
            }
            if !is_gone && now.duration_since(since.1) < ttl {
                continue;
            }
            match events.end_node(id, Some(batch)).await {
                Ok(true) => {
                    events.stats.nodes_ended.fetch_add(1, Ordering::Relaxed);
                    tracing::warn!(category = "events", event = "node_ended", run = id);
                }
                Ok(false) => {}
                Err(error) => {
                    tracing::debug!(category = "events", event = "node_not_ended", run = id, %error);
                    seen.clear();
                    break;
                }
            }
        }
    }
}

impl Events {
    /// The other runs: id, number of batches, and whether it is being ended.
    async fn other_nodes(&self) -> Result<Vec<(i64, i64, bool)>, StoreError> {
        let read = async {
            let mut transaction = self.store.begin_read().await?;
            let sql = "SELECT id, batch, gone FROM archmesh_event_nodes WHERE id <> $1";
            let rows = transaction.fetch(sql, &[Arg::Int(self.node())]).await?;
            transaction.commit().await?;
            rows.iter().map(|row| Ok((row.int(0)?, row.int(1)?, row.int(2)? != 0))).collect()
        };
        self.store.run(read).await
    }

    /// Ends the sessions and channels of a run that stands at `batch` (`None` = wherever it stands) and forgets it. `false` when
    /// it has written since, or another node was faster.
    pub(super) async fn end_node(&self, id: i64, batch: Option<i64>) -> Result<bool, StoreError> {
        loop {
            match self.store.run(self.end_part(id, batch)).await? {
                Some(true) => return Ok(true),
                Some(false) => {}
                None => return Ok(false),
            }
        }
    }

    /// One transaction of [`Self::end_node`]: whether that was all, `None` when there is nothing to end.
    async fn end_part(&self, id: i64, batch: Option<i64>) -> Result<Option<bool>, StoreError> {
        let mut transaction = self.store.begin().await?;
        let mut ids = Ids::lock(&mut transaction).await?;
        let sql = "UPDATE archmesh_event_nodes SET gone = 1 WHERE id = $1 AND (gone = 1 OR $2 < 0 OR batch = $2) \
                   RETURNING name";
        let args = [Arg::Int(id), Arg::Int(batch.unwrap_or(-1))];
        let Some(name) = texts(&transaction.fetch(sql, &args).await?)?.pop() else {
            transaction.roll_back().await?;
            return Ok(None);
        };
        let now = now_ms();
        let (mut entries, sessions) = end_sessions(&mut transaction, id, now).await?;
        let channels = channels_of(&mut transaction, id).await?;
        let names: Vec<&str> = channels.iter().map(String::as_str).collect();
        for channel in vacate(&mut transaction, id, &names).await? {
            let entry = Entry::at(now, EventKind::ChannelVacated, "{}".to_owned());
            entries.push(entry.channel(&channel));
        }
        let writer = Writer { name: &name, ..self.writer() };
        let counts = ids.write(&mut transaction, writer, &entries).await?;
        let is_all = sessions < END_MAX as usize && channels.len() < END_MAX as usize;
        if is_all {
            let leases = "UPDATE archmesh_webhook_cursors SET lease_until = 0 WHERE owner = $1";
            transaction.execute(leases, &[Arg::Int(id)]).await?;
            let forget = "DELETE FROM archmesh_event_nodes WHERE id = $1";
            transaction.execute(forget, &[Arg::Int(id)]).await?;
        }
        transaction.commit().await?;
        self.count_written(&counts);
        self.forget_last_seen(&entries);
        Ok(Some(is_all))
    }

    pub(super) fn count_written(&self, counts: &std::collections::BTreeMap<&'static str, u64>) {
        for (kind, count) in counts {
            if let Some(kind) = EventKind::parse(kind) {
                EventStats::add(&self.stats.recorded, kind, *count);
            }
        }
        if !counts.is_empty() {
            self.stats.batches.fetch_add(1, Ordering::Relaxed);
            self.written.notify_waiters();
        }
    }

    /// Makes the row of this run as `new`, and takes over what `old` still has, or had until it was taken for gone. Answers the
    /// channels with a row. May be called again when it is not known what came of it.
    pub(super) async fn join(
        &self,
        new: i64,
        old: Option<i64>,
    ) -> Result<HashSet<String>, StoreError> {
        let mut transaction = self.store.begin().await?;
        let mut ids = Ids::lock(&mut transaction).await?;
        let sql = "INSERT INTO archmesh_event_nodes (id, name, batch, started_at) VALUES ($1, $2, 0, $3) \
                   ON CONFLICT (id) DO NOTHING";
        let args = [Arg::Int(new), Arg::Text(&self.node_name), Arg::Int(now_ms())];
        let is_new = transaction.execute(sql, &args).await? > 0;
        let mut counts = std::collections::BTreeMap::new();
        if let (true, Some(old)) = (is_new, old) {
            let moved = "UPDATE archmesh_occupancy SET node = $1 WHERE node = $2";
            transaction.execute(moved, &[Arg::Int(new), Arg::Int(old)]).await?;
            let entries = take_sessions(&mut transaction, new, old).await?;
            let writer = Writer { node: new, ..self.writer() };
            counts = ids.write(&mut transaction, writer, &entries).await?;
        }
        let sql = "SELECT channel FROM archmesh_occupancy WHERE node = $1";
        let channels = texts(&transaction.fetch(sql, &[Arg::Int(new)]).await?)?;
        transaction.commit().await?;
        self.count_written(&counts);
        Ok(channels.into_iter().collect())
    }
}

/// Ends sessions of a run; answers the events and how many there were.
async fn end_sessions(
    transaction: &mut Transaction,
    node: i64,
    now: i64,
) -> Result<(Vec<Entry>, usize), StoreError> {
    let sql = "UPDATE archmesh_sessions SET disconnected_at = $2, reason = $3 WHERE session IN \
               (SELECT session FROM archmesh_sessions WHERE node = $1 AND disconnected_at IS NULL LIMIT $4) \
               RETURNING session, user_id, address, connected_at";
    let args = [Arg::Int(node), Arg::Int(now), Arg::Text(NODE_LOST), Arg::Int(END_MAX)];
    let rows = transaction.fetch(sql, &args).await?;
    let entry = |row: &Row| {
        let detail = json!({"reason": NODE_LOST, "duration_ms": (now - row.int(3)?).max(0)});
        of_session(row, Entry::at(now, EventKind::Disconnected, detail.to_string()))
    };
    let entries = rows.iter().map(entry).collect::<Result<Vec<_>, StoreError>>()?;
    Ok((entries, rows.len()))
}

/// Sessions of a run that came back go on; those that were ended meanwhile are told to be connected again.
async fn take_sessions(
    transaction: &mut Transaction,
    new: i64,
    old: i64,
) -> Result<Vec<Entry>, StoreError> {
    let open = "UPDATE archmesh_sessions SET node = $1 WHERE node = $2 AND disconnected_at IS NULL";
    transaction.execute(open, &[Arg::Int(new), Arg::Int(old)]).await?;
    let sql = "UPDATE archmesh_sessions SET node = $1, disconnected_at = NULL, reason = NULL \
               WHERE node = $2 AND reason = $3 RETURNING session, user_id, address, user_agent";
    let rows =
        transaction.fetch(sql, &[Arg::Int(new), Arg::Int(old), Arg::Text(NODE_LOST)]).await?;
    let now = now_ms();
    let entry = |row: &Row| {
        let mut detail = json!({"again": true});
        if let Some(agent) = row.maybe_text(3)? {
            detail["user_agent"] = agent.into();
        }
        of_session(row, Entry::at(now, EventKind::Connected, detail.to_string()))
    };
    rows.iter().map(entry).collect()
}

fn of_session(row: &Row, entry: Entry) -> Result<Entry, StoreError> {
    let entry = entry.session(&row.text(0)?).address(&row.text(2)?);
    Ok(match row.maybe_text(1)? {
        Some(user) => entry.user(&user),
        None => entry,
    })
}

async fn channels_of(transaction: &mut Transaction, node: i64) -> Result<Vec<String>, StoreError> {
    let sql = "SELECT channel FROM archmesh_occupancy WHERE node = $1 LIMIT $2";
    texts(&transaction.fetch(sql, &[Arg::Int(node), Arg::Int(END_MAX)]).await?)
}
