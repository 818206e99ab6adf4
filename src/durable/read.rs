//! Streams read back: where they stand, snapshots for homes, pages for clients.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use gateway_core::broker::Placed;
use gateway_core::message::{ChannelName, HistoryQuery, StreamPosition};
use serde_json::json;

use super::append::Appends;
use super::rows;
use crate::store::{Arg, Store, StoreError, now_ms};

/// Where a stream stands and how far back it reaches.
#[derive(Clone, Copy, Debug)]
struct Stand {
    top: StreamPosition,
    /// Everything up to here is not to be read any more.
    floor: i64,
}

/// A snapshot that is wanted.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    pub channel: ChannelName,
    /// Newest publications at most.
    pub size: u32,
    /// Only what comes after this, if the stream is still the same.
    pub known: Option<StreamPosition>,
}

/// Who reads, for the publications of its own connections.
pub(super) struct Reader<'a, F> {
    pub store: &'a Store,
    pub appends: &'a Appends,
    /// Whether a node's number is that of this one.
    pub is_own: F,
    /// The clock of the shards.
    pub now: Duration,
    /// Texts of one channel that are read at once, about.
    pub bytes_max: i64,
}

impl<F: Fn(u64) -> bool + Send + Sync> Reader<'_, F> {
    /// Position and newest publications of each channel, in the order asked. A stream that is missing begins.
    pub(super) async fn snapshots(
        &self,
        wanted: &[Wanted],
    ) -> Result<Vec<(StreamPosition, Vec<Placed>)>, StoreError> {
        let channels: Vec<&str> = wanted.iter().map(|wanted| &*wanted.channel).collect();
        let stands = self.stands(&channels).await?;
        let mut asked = Vec::new();
        for wanted in wanted.iter().filter(|wanted| wanted.size > 0) {
            let Some(Stand { top, floor }) = stands.get(&*wanted.channel) else { continue };
            let known = wanted.known.filter(|known| known.epoch == top.epoch);
            let newest = rows::seq(top.offset.saturating_sub(wanted.size.into()));
            let after = known.map_or(0, |known| rows::seq(known.offset)).max(newest).max(*floor);
            if after < rows::seq(top.offset) {
                asked.push(json!({
                    "channel": &*wanted.channel, "after_seq": after, "until_seq": rows::seq(top.offset),
                }));
            }
        }
        let mut found = HashMap::<String, Vec<Placed>>::new();
        if !asked.is_empty() {
            let asked = rows::json(&asked)?;
            let columns = [("channel", true), ("after_seq", false), ("until_seq", false)];
            // Of each channel the newest as far as they fit.
            let sql = format!(
                "SELECT {} FROM (SELECT p.*, \
                 sum(length(p.data)) OVER (PARTITION BY p.channel ORDER BY p.seq DESC) AS bytes \
                 FROM {} JOIN archmesh_publications p ON p.channel = r.channel \
                 AND p.seq > r.after_seq AND p.seq <= r.until_seq AND p.expires_at > $2) p \
                 WHERE p.bytes - length(p.data) < $3 ORDER BY p.channel, p.seq",
                rows::columns_of_p(),
                self.store.dialect().rows("$1", &columns)
            );
            let args = [Arg::Text(&asked), Arg::Int(now_ms()), Arg::Int(self.bytes_max)];
            for row in self.store.read(sql, &args).await? {
                let stand = stands.get(&row.text(0)?);
                let epoch = stand.ok_or(StoreError::Unexpected("another stream"))?.top.epoch;
                let (channel, placed) = rows::placed(&row, epoch, (&self.is_own, self.now))?;
                found.entry(channel).or_default().push(placed);
            }
        }
        wanted
            .iter()
            .map(|wanted| {
                let stand = stands.get(&*wanted.channel);
                let top = stand.ok_or(StoreError::Unexpected("no row of a stream"))?.top;
                Ok((top, found.remove(&*wanted.channel).unwrap_or_default()))
            })
            .collect()
    }

    /// One page of a channel in the order asked, and where the stream stands.
    pub(super) async fn page(
        &self,
        channel: &str,
        query: HistoryQuery,
    ) -> Result<(StreamPosition, Vec<Placed>), StoreError> {
        let stands = self.stands(&[channel]).await?;
        let stand = stands.get(channel).ok_or(StoreError::Unexpected("no row of a stream"))?;
        let top = stand.top;
        if query.limit == 0 {
            return Ok((top, Vec::new()));
        }
        let since = query.since.map(|since| rows::seq(since.offset));
        let (after, before, order) = if query.reverse {
            (stand.floor, since.unwrap_or(i64::MAX), "DESC")
        } else {
            (since.unwrap_or(0).max(stand.floor), i64::MAX, "ASC")
        };
        let until = before.min(rows::seq(top.offset).saturating_add(1));
        let sql = format!(
            "SELECT {} FROM (SELECT p.*, sum(length(p.data)) OVER (ORDER BY p.seq {order}) AS bytes FROM \
             (SELECT * FROM archmesh_publications p WHERE p.channel = $1 AND p.seq > $2 AND p.seq < $3 \
             AND p.expires_at > $4 ORDER BY p.seq {order} LIMIT $5) p) p \
             WHERE p.bytes - length(p.data) < $6 ORDER BY p.seq {order}",
            rows::columns_of_p()
        );
        let limit = i64::from(query.limit);
        let args = [
            channel.into(),
            after.into(),
            until.into(),
            now_ms().into(),
            limit.into(),
            self.bytes_max.into(),
        ];
        let read = self.store.read(sql, &args).await?;
        let page = read.iter().map(|row| {
            rows::placed(row, top.epoch, (&self.is_own, self.now)).map(|(_, placed)| placed)
        });
        Ok((top, page.collect::<Result<_, _>>()?))
    }

    /// Where channels stand; those without a row, or with one of another life of the database, are left out.
    pub(super) async fn positions(
        &self,
        channels: &[&str],
    ) -> Result<HashMap<String, StreamPosition>, StoreError> {
        let stands = self.known_stands(channels).await?;
        Ok(stands.into_iter().map(|(channel, stand)| (channel, stand.top)).collect())
    }

    async fn stands(&self, channels: &[&str]) -> Result<HashMap<String, Stand>, StoreError> {
        let mut stands = self.known_stands(channels).await?;
        let missing: BTreeMap<&str, (u64, u32)> = channels
            .iter()
            .filter(|channel| !stands.contains_key(**channel))
            .map(|channel| (*channel, (0, 0)))
            .collect();
        if !missing.is_empty() {
            let begin = async {
                let mut transaction = self.store.begin().await?;
                self.appends.lock(&mut transaction, &missing, true).await?;
                transaction.commit().await
            };
            self.store.run(begin).await?;
            let missing: Vec<&str> = missing.into_keys().collect();
            stands.extend(self.known_stands(&missing).await?);
        }
        Ok(stands)
    }

    async fn known_stands(&self, channels: &[&str]) -> Result<HashMap<String, Stand>, StoreError> {
        let names = rows::json(&channels)?;
        let sql = format!(
            "SELECT channel, epoch, top_seq, floor_seq, size_max FROM archmesh_streams \
             WHERE channel IN {} AND incarnation = {}",
            self.store.dialect().texts("$1"),
            self.appends.incarnation
        );
        let mut stands = HashMap::new();
        for row in self.store.read(sql, &[Arg::Text(&names)]).await? {
            let top = rows::position(&row.text(1)?, row.int(2)?)?;
            let newest = row.int(2)?.saturating_sub(row.int(4)?);
            stands.insert(row.text(0)?, Stand { top, floor: row.int(3)?.max(newest) });
        }
        Ok(stands)
    }
}
