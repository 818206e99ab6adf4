//! One transaction of the log: the lock that gives out ids, the sign of life of the node, occupancy, sessions, events.

use std::collections::{BTreeMap, HashSet};

use serde_json::{Value, json};

use super::entry::Entry;
use super::queue::{Batch, Occupancy};
use super::{Events, Kinds, sessions};
use crate::config::sections::EventKind;
use crate::store::{Arg, Row, StoreError, Transaction};

/// What became of a batch.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Written {
    /// It is in the database, now or since an earlier try. Events by kind, those of now.
    Done(BTreeMap<&'static str, u64>),
    /// This node was taken for gone, and nothing was written.
    Fenced,
}

/// The right to give out ids, until the end of the transaction.
#[derive(Debug)]
pub(super) struct Ids {
    last: i64,
}

/// Which node writes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Writer<'a> {
    pub node: i64,
    pub name: &'a str,
    pub kinds: Kinds,
    pub sessions: bool,
}

impl Ids {
    /// Waits for the lock. It is taken before any other lock of the log, by everybody.
    pub(super) async fn lock(transaction: &mut Transaction) -> Result<Self, StoreError> {
        let sql = "INSERT INTO archmesh_event_counter (one, last_id) VALUES (1, 0) \
                   ON CONFLICT (one) DO UPDATE SET last_id = archmesh_event_counter.last_id RETURNING last_id";
        let rows = transaction.fetch(sql, &[]).await?;
        let row = rows.first().ok_or(StoreError::Unexpected("no counter of events"))?;
        Ok(Self { last: row.int(0)? })
    }

    /// Writes those of `entries` whose kinds are recorded, in their order.
    pub(super) async fn write(
        &mut self,
        transaction: &mut Transaction,
        writer: Writer<'_>,
        entries: impl IntoIterator<Item = &Entry>,
    ) -> Result<BTreeMap<&'static str, u64>, StoreError> {
        let mut counts = BTreeMap::new();
        let mut rows = Vec::new();
        for entry in entries.into_iter().filter(|entry| writer.kinds.contains(entry.kind)) {
            self.last += 1;
            *counts.entry(entry.kind.as_str()).or_default() += 1;
            rows.push(json!({
                "id": self.last, "at": entry.at, "node": writer.name, "kind": entry.kind.as_str(),
                "user_id": entry.user, "session": entry.session, "address": entry.address,
                "channel": entry.channel, "detail": entry.detail,
            }));
        }
        if rows.is_empty() {
            return Ok(counts);
        }
        let columns = [
            ("id", false),
            ("at", false),
            ("node", true),
            ("kind", true),
            ("user_id", true),
            ("session", true),
            ("address", true),
            ("channel", true),
            ("detail", true),
        ];
        let names = columns.map(|(name, _)| name).join(", ");
        let sql = format!(
            "INSERT INTO archmesh_events ({names}) SELECT {names} FROM {} ORDER BY id",
            transaction.dialect().rows("$1", &columns)
        );
        transaction.execute(sql, &[Arg::Text(&Value::Array(rows).to_string())]).await?;
        let sql = "UPDATE archmesh_event_counter SET last_id = $1 WHERE one = 1";
        transaction.execute(sql, &[Arg::Int(self.last)]).await?;
        Ok(counts)
    }
}

impl Events {
    /// Writes a batch, which must have a number above those of all batches before. May be called again when it is not known
    /// what came of it.
    pub(super) async fn write_batch(
        &self,
        number: i64,
        batch: &Batch,
    ) -> Result<Written, StoreError> {
        let mut transaction = self.store.begin().await?;
        let ids = if batch.is_empty() { None } else { Some(Ids::lock(&mut transaction).await?) };
        let writer = self.writer();
        if let Some(end) = sign_of_life(&mut transaction, writer.node, number).await? {
            transaction.roll_back().await?;
            return Ok(end);
        }
        let mut counts = BTreeMap::new();
        if let Some(mut ids) = ids {
            if writer.sessions {
                sessions::write(&mut transaction, writer, &batch.entries).await?;
            }
            let changes = change_occupancy(&mut transaction, writer.node, &batch.channels).await?;
            let entries = in_order(&batch.entries, &changes);
            counts = ids.write(&mut transaction, writer, entries).await?;
        }
        transaction.commit().await?;
        Ok(Written::Done(counts))
    }

    pub(super) fn writer(&self) -> Writer<'_> {
        Writer {
            node: self.node(),
            name: &self.node_name,
            kinds: self.kinds,
            sessions: self.section.sessions,
        }
    }
}

/// Entries with changes of occupancy where they belong by their time: a channel is occupied before its first message.
fn in_order<'a>(entries: &'a [Entry], changes: &'a [Entry]) -> Vec<&'a Entry> {
    let mut changes: Vec<&Entry> = changes.iter().collect();
    changes.sort_by_key(|change| change.at);
    let mut changes = changes.into_iter().peekable();
    let mut all = Vec::with_capacity(entries.len() + changes.len());
    for entry in entries {
        let is_message = entry.kind == EventKind::Message;
        while let Some(change) = changes.next_if(|change| {
            let is_first = is_message && change.kind == EventKind::ChannelOccupied;
            change.at < entry.at || (is_first && change.at == entry.at)
        }) {
            all.push(change);
        }
        all.push(entry);
    }
    all.extend(changes);
    all
}

/// Shows that the node lives. `Some` when the batch must not be written: because it was, or because the node is gone.
async fn sign_of_life(
    transaction: &mut Transaction,
    node: i64,
    number: i64,
) -> Result<Option<Written>, StoreError> {
    let sql =
        "UPDATE archmesh_event_nodes SET batch = $2 WHERE id = $1 AND gone = 0 AND batch < $2";
    if transaction.execute(sql, &[Arg::Int(node), Arg::Int(number)]).await? > 0 {
        return Ok(None);
    }
    let sql = "SELECT batch FROM archmesh_event_nodes WHERE id = $1 AND gone = 0";
    let rows = transaction.fetch(sql, &[Arg::Int(node)]).await?;
    Ok(Some(match rows.first() {
        Some(_) => Written::Done(BTreeMap::new()),
        None => Written::Fenced,
    }))
}

/// Makes and removes rows of the node; answers what that means for the cluster.
async fn change_occupancy(
    transaction: &mut Transaction,
    node: i64,
    changes: &[Occupancy],
) -> Result<Vec<Entry>, StoreError> {
    let mut entries = Vec::new();
    let names = |watched| -> Vec<&str> {
        let of = changes.iter().filter(|change| change.watched == watched);
        of.map(|change| &*change.channel).collect()
    };
    let (occupied, vacated) = (names(true), names(false));
    let at = |channel: &str| {
        let found = changes.iter().find(|change| *change.channel == *channel);
        found.map_or_else(crate::notify::now_ms, |change| change.at)
    };
    for channel in occupy(transaction, node, &occupied).await? {
        let entry = Entry::at(at(&channel), EventKind::ChannelOccupied, "{}".to_owned());
        entries.push(entry.channel(&channel));
    }
    for channel in vacate(transaction, node, &vacated).await? {
        let entry = Entry::at(at(&channel), EventKind::ChannelVacated, "{}".to_owned());
        entries.push(entry.channel(&channel));
    }
    Ok(entries)
}

/// Makes rows; answers the channels of which these are the first.
async fn occupy(
    transaction: &mut Transaction,
    node: i64,
    channels: &[&str],
) -> Result<Vec<String>, StoreError> {
    if channels.is_empty() {
        return Ok(Vec::new());
    }
    let before = occupied(transaction, channels).await?;
    let rows: Vec<Value> = channels.iter().map(|channel| json!({"channel": channel})).collect();
    let sql = format!(
        "INSERT INTO archmesh_occupancy (channel, node) SELECT channel, $2 FROM {} WHERE true \
         ON CONFLICT (channel, node) DO NOTHING",
        transaction.dialect().rows("$1", &[("channel", true)])
    );
    let args = [Arg::Text(&Value::Array(rows).to_string()), Arg::Int(node)];
    transaction.execute(sql, &args).await?;
    let first = channels.iter().filter(|channel| !before.contains(**channel));
    Ok(first.map(|channel| (*channel).to_owned()).collect())
}

/// Removes rows; answers the channels of which these were the last.
pub(super) async fn vacate(
    transaction: &mut Transaction,
    node: i64,
    channels: &[&str],
) -> Result<Vec<String>, StoreError> {
    if channels.is_empty() {
        return Ok(Vec::new());
    }
    let sql = format!(
        "DELETE FROM archmesh_occupancy WHERE node = $2 AND channel IN {} RETURNING channel",
        transaction.dialect().texts("$1")
    );
    let args = [Arg::Text(&json!(channels).to_string()), Arg::Int(node)];
    let removed = texts(&transaction.fetch(sql, &args).await?)?;
    let left = occupied(transaction, channels).await?;
    Ok(removed.into_iter().filter(|channel| !left.contains(channel)).collect())
}

/// Those of `channels` that have a row.
async fn occupied(
    transaction: &mut Transaction,
    channels: &[&str],
) -> Result<HashSet<String>, StoreError> {
    let sql = format!(
        "SELECT DISTINCT channel FROM archmesh_occupancy WHERE channel IN {}",
        transaction.dialect().texts("$1")
    );
    let rows = transaction.fetch(sql, &[Arg::Text(&json!(channels).to_string())]).await?;
    Ok(texts(&rows)?.into_iter().collect())
}

/// The first column.
pub(super) fn texts(rows: &[Row]) -> Result<Vec<String>, StoreError> {
    rows.iter().map(|row| row.text(0)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_channel_is_occupied_before_its_messages_and_vacated_after_them() {
        let entry = |at, kind| Entry::at(at, kind, "{}".to_owned());
        let entries = [
            entry(1, EventKind::Connected),
            entry(5, EventKind::Connected),
            entry(5, EventKind::Message),
            entry(9, EventKind::Message),
        ];
        let changes = [entry(9, EventKind::ChannelVacated), entry(5, EventKind::ChannelOccupied)];
        let order: Vec<_> =
            in_order(&entries, &changes).iter().map(|entry| entry.kind.as_str()).collect();
        let expected =
            ["connected", "connected", "channel_occupied", "message", "message", "channel_vacated"];
        assert_eq!(order, expected);
    }
}
