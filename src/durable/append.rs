//! Publications become rows: the place of each is given out under the lock of its stream's row, which is held until the
//! commit, so places are committed in their order whoever publishes.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use gateway_core::broker::Retention;
use gateway_core::message::{ChannelName, Publish, StreamPosition};
use serde::Serialize;
use serde_json::json;

use super::rows;
use crate::broker::{new_epoch, record};
use crate::store::{Apply, Arg, Dialect, StoreError, Transaction, now_ms};

/// A change of a stream.
#[derive(Debug)]
pub(super) struct Append {
    pub channel: ChannelName,
    pub kind: AppendKind,
}

#[derive(Debug)]
pub(super) enum AppendKind {
    Publish {
        publish: Box<Publish>,
        retention: Retention,
        /// The connection that wants no copy, with its node.
        origin: Option<String>,
        /// When it was taken, in Unix milliseconds.
        taken_at: i64,
    },
    /// Forget everything that is kept.
    Remove,
}

impl Append {
    /// Bytes of what is published, about.
    pub(super) fn weight(&self) -> usize {
        self.kind.publication().map_or(0, |(publish, _)| publish.data.len())
    }
}

impl AppendKind {
    fn publication(&self) -> Option<(&Publish, Retention)> {
        match self {
            Self::Publish { publish, retention, .. } => Some((publish, *retention)),
            Self::Remove => None,
        }
    }
}

/// What became of a change.
#[derive(Clone, Copy, Debug)]
pub(super) struct Appended {
    pub position: StreamPosition,
    /// Whether it has been published now, not before under the same idempotency key.
    pub fresh: bool,
}

/// How changes are made.
#[derive(Debug)]
pub(super) struct Appends {
    /// SQL for the life of the database.
    pub incarnation: String,
    pub idempotency_ttl: Duration,
}

#[derive(Debug, Serialize)]
struct Publication<'a> {
    channel: &'a str,
    seq: i64,
    expires_at: i64,
    created_at: i64,
    priority: i64,
    r#type: &'a str,
    data: &'a str,
    key: Option<&'a str>,
    sender: Option<&'a str>,
    extra: Option<&'a str>,
    origin: Option<&'a str>,
}

/// What one transaction does, while places are given out.
#[derive(Debug, Default)]
struct Work<'a> {
    publications: Vec<Publication<'a>>,
    keys: Vec<serde_json::Value>,
    /// Newest place of each channel.
    tops: BTreeMap<&'a str, StreamPosition>,
    removals: BTreeMap<&'a str, i64>,
    /// Places that were given to idempotency keys.
    known: HashMap<(String, String), i64>,
}

impl Apply for Appends {
    type Change = Append;
    type Applied = Appended;

    async fn apply(
        &self,
        transaction: &mut Transaction,
        changes: &[Append],
    ) -> Result<Vec<Appended>, StoreError> {
        let mut wanted = BTreeMap::<&str, (u64, u32)>::new();
        for change in changes {
            let (count, size) = wanted.entry(&change.channel).or_default();
            if let Some((_, retention)) = change.kind.publication() {
                *count += 1;
                *size = retention.size.max(*size);
            }
        }
        let mut work = Work::default();
        let keyed = !self.idempotency_ttl.is_zero()
            && changes.iter().any(|change| key_of(change).is_some());
        let stands = self.lock(transaction, &wanted, !keyed).await?;
        for (&channel, (count, _)) in &wanted {
            let top = stands.get(channel).ok_or(StoreError::Unexpected("no row of a stream"))?;
            let before = if keyed { top.offset } else { top.offset.saturating_sub(*count) };
            work.tops.insert(channel, StreamPosition { offset: before, ..*top });
        }
        if keyed {
            work.known = self.known_keys(transaction, changes).await?;
        }
        let applied =
            changes.iter().map(|change| self.place(&mut work, change)).collect::<Result<_, _>>()?;
        work.write(transaction, keyed).await?;
        Ok(applied)
    }
}

impl Appends {
    /// Locks the rows of the streams, makes those that are missing, and gives out places at once if that is all there is to it.
    pub(super) async fn lock(
        &self,
        transaction: &mut Transaction,
        wanted: &BTreeMap<&str, (u64, u32)>,
        take_places: bool,
    ) -> Result<HashMap<String, StreamPosition>, StoreError> {
        // In the order of their names, so that nobody waits in a circle.
        let streams: Vec<_> = wanted
            .iter()
            .map(|(channel, (count, size))| {
                let taken = if take_places { *count } else { 0 };
                json!({ "channel": channel, "epoch": new_epoch(), "taken": taken, "size": size })
            })
            .collect();
        let columns = [("channel", true), ("epoch", true), ("taken", false), ("size", false)];
        let table = transaction.dialect().rows("$1", &columns);
        let incarnation = &self.incarnation;
        let sql = format!(
            "INSERT INTO archmesh_streams (channel, epoch, top_seq, size_max, incarnation, updated_at) \
             SELECT r.channel, r.epoch, r.taken, r.size, {incarnation}, $2 FROM {table} WHERE true ORDER BY r.channel \
             ON CONFLICT (channel) DO UPDATE SET \
               epoch = CASE WHEN archmesh_streams.incarnation = excluded.incarnation \
                       THEN archmesh_streams.epoch ELSE excluded.epoch END, \
               incarnation = excluded.incarnation, \
               top_seq = archmesh_streams.top_seq + excluded.top_seq, \
               size_max = CASE WHEN excluded.size_max > 0 \
                          THEN excluded.size_max ELSE archmesh_streams.size_max END, \
               updated_at = excluded.updated_at \
             RETURNING channel, epoch, top_seq"
        );
        let streams = rows::json(&streams)?;
        let mut stands = HashMap::with_capacity(wanted.len());
        for row in transaction.fetch(sql, &[Arg::Text(&streams), Arg::Int(now_ms())]).await? {
            stands.insert(row.text(0)?, rows::position(&row.text(1)?, row.int(2)?)?);
        }
        Ok(stands)
    }

    /// Places that were given to the idempotency keys of `changes` before.
    async fn known_keys(
        &self,
        transaction: &mut Transaction,
        changes: &[Append],
    ) -> Result<HashMap<(String, String), i64>, StoreError> {
        let asked: Vec<_> = changes
            .iter()
            .filter_map(|change| {
                Some(json!({ "channel": &*change.channel, "name": key_of(change)? }))
            })
            .collect();
        let table = transaction.dialect().rows("$1", &[("channel", true), ("name", true)]);
        let sql = format!(
            "SELECT k.channel, k.idempotency_key, k.seq FROM {table} \
             JOIN archmesh_publication_keys k ON k.channel = r.channel AND k.idempotency_key = r.name \
             JOIN archmesh_streams s ON s.channel = k.channel AND s.epoch = k.epoch WHERE k.expires_at > $2"
        );
        let asked = rows::json(&asked)?;
        let mut known = HashMap::new();
        for row in transaction.fetch(sql, &[Arg::Text(&asked), Arg::Int(now_ms())]).await? {
            known.insert((row.text(0)?, row.text(1)?), row.int(2)?);
        }
        Ok(known)
    }

    fn place<'a>(&self, work: &mut Work<'a>, change: &'a Append) -> Result<Appended, StoreError> {
        let channel = &*change.channel;
        let top = work.tops.get_mut(channel).ok_or(StoreError::Unexpected("no row of a stream"))?;
        let AppendKind::Publish { publish, retention, origin, taken_at } = &change.kind else {
            work.removals.insert(channel, rows::seq(top.offset));
            return Ok(Appended { position: *top, fresh: true });
        };
        let key = key_of(change).filter(|_| !self.idempotency_ttl.is_zero());
        let name = key.map(|key| (channel.to_owned(), key.to_owned()));
        if let Some(seq) = name.as_ref().and_then(|name| work.known.get(name)) {
            let position = StreamPosition { offset: rows::offset(*seq), ..*top };
            return Ok(Appended { position, fresh: false });
        }
        top.offset += 1;
        let (position, seq) = (*top, rows::seq(top.offset));
        if let Some(name) = name {
            let expires_at = now_ms().saturating_add(rows::millis(self.idempotency_ttl));
            work.keys.push(json!({
                "channel": channel, "name": key, "epoch": position.epoch.as_str(), "seq": seq, "expires_at": expires_at,
            }));
            work.known.insert(name, seq);
        }
        if retention.size > 0 && !retention.ttl.is_zero() && !publish.transient {
            let text = |bytes: &'a [u8]| {
                std::str::from_utf8(bytes)
                    .map_err(|_| StoreError::Unexpected("a publication that is no text"))
            };
            let maybe = |bytes: &'a Option<bytes::Bytes>| bytes.as_deref().map(text).transpose();
            work.publications.push(Publication {
                channel,
                seq,
                expires_at: taken_at.saturating_add(rows::millis(retention.ttl)),
                created_at: *taken_at,
                priority: publish.priority.map_or(0, record::priority_code).into(),
                r#type: &publish.kind,
                data: text(&publish.data)?,
                key: publish.key.as_deref(),
                sender: maybe(&publish.sender)?,
                extra: maybe(&publish.extra)?,
                origin: origin.as_deref(),
            });
        }
        Ok(Appended { position, fresh: true })
    }
}

impl Work<'_> {
    async fn write(&self, transaction: &mut Transaction, keyed: bool) -> Result<(), StoreError> {
        let dialect = transaction.dialect();
        if !self.publications.is_empty() {
            let publications = rows::json(&self.publications)?;
            let names = rows::COLUMNS.map(|(name, _)| name).join(", ");
            let sql = format!(
                "INSERT INTO archmesh_publications ({names}) SELECT {names} FROM {}",
                dialect.rows("$1", &rows::COLUMNS)
            );
            transaction.execute(sql, &[Arg::Text(&publications)]).await?;
        }
        if !self.keys.is_empty() {
            let keys = rows::json(&self.keys)?;
            transaction.execute(remember_keys(dialect), &[Arg::Text(&keys)]).await?;
        }
        if keyed {
            let tops = self.tops.iter().map(|(channel, top)| (*channel, rows::seq(top.offset)));
            let sql = format!(
                "UPDATE archmesh_streams SET top_seq = r.seq FROM {} WHERE archmesh_streams.channel = r.channel",
                dialect.rows("$1", &[("channel", true), ("seq", false)])
            );
            transaction.execute(sql, &[Arg::Text(&rows::places(tops)?)]).await?;
        }
        if !self.removals.is_empty() {
            // Nobody reads the rows from now on; the keeper deletes them.
            let floors = self.removals.iter().map(|(channel, seq)| (*channel, *seq));
            let sql = format!(
                "UPDATE archmesh_streams SET floor_seq = r.seq FROM {} WHERE archmesh_streams.channel = r.channel",
                dialect.rows("$1", &[("channel", true), ("seq", false)])
            );
            transaction.execute(sql, &[Arg::Text(&rows::places(floors)?)]).await?;
        }
        Ok(())
    }
}

fn remember_keys(dialect: Dialect) -> String {
    let columns =
        [("channel", true), ("name", true), ("epoch", true), ("seq", false), ("expires_at", false)];
    format!(
        "INSERT INTO archmesh_publication_keys (channel, idempotency_key, epoch, seq, expires_at) \
         SELECT r.channel, r.name, r.epoch, r.seq, r.expires_at FROM {} WHERE true \
         ON CONFLICT (channel, idempotency_key) DO UPDATE \
         SET epoch = excluded.epoch, seq = excluded.seq, expires_at = excluded.expires_at",
        dialect.rows("$1", &columns)
    )
}

fn key_of(change: &Append) -> Option<&str> {
    change.kind.publication()?.0.idempotency_key.as_deref()
}
