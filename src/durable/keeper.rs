//! Deletes what is not kept any more: publications by age and by number, idempotency keys, streams that nobody uses.
//!
//! In PostgreSQL publications lie in partitions by the time at which they expire. The keeper makes them ahead of time and drops
//! those in which everything has expired, so age costs no deletes. Several nodes may do it at once.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{Durable, rows};
use crate::store::{Arg, Dialect, StoreError, Transaction, now_ms};

const DAY_MS: i64 = 86_400_000;
/// Partitions for the longest life of a publication.
const PARTITIONS: i64 = 30;
/// Rows that one statement deletes because they have expired.
const BATCH: u32 = 1_000;
/// Streams that one transaction shortens, and rows of each.
const STREAMS: i64 = 50;
const ROWS: i64 = 1_000;
/// Taken while partitions change.
const PARTITION_LOCK: i64 = 0x6172_6368_6d65_7368;

impl Durable {
    /// Deletes from time to time until the future is dropped.
    pub(super) async fn run_keeper(self: Arc<Self>) {
        loop {
            if let Err(error) = self.keep().await {
                tracing::debug!(category = "database", event = "retention_failed", %error);
            }
            tokio::time::sleep(self.section.clean_interval).await;
        }
    }

    async fn keep(&self) -> Result<(), StoreError> {
        if self.store.dialect() == Dialect::Postgres
            && !self.partitions_denied.load(Ordering::Relaxed)
        {
            match self.store.run(self.keep_partitions()).await {
                Err(error) if error.is_denied() => {
                    self.partitions_denied.store(true, Ordering::Relaxed);
                    tracing::warn!(
                        category = "database",
                        event = "partitions_denied",
                        %error,
                        mend = "run as the owner of archmesh_publications (docs/durable.md); until then rows are deleted one by one"
                    );
                }
                // A lock that others hold: the next round tries again.
                Err(error) => {
                    tracing::debug!(category = "database", event = "partitions_kept_late", %error);
                }
                Ok(()) => {}
            }
        }
        while self.shorten().await? {}
        let table = match self.store.dialect() {
            Dialect::Postgres => "archmesh_publications_default",
            Dialect::Sqlite => "archmesh_publications",
        };
        let expired = "expires_at <= $1";
        let deleted = self.delete(table, "channel, seq", expired, now_ms()).await?;
        self.stats.deleted.fetch_add(deleted, Ordering::Relaxed);
        self.delete("archmesh_publication_keys", "channel, idempotency_key", expired, now_ms())
            .await?;
        let idle = "updated_at <= $1 AND NOT EXISTS (SELECT 1 FROM archmesh_publications p \
                    WHERE p.channel = archmesh_streams.channel)";
        let unused_since = now_ms().saturating_sub(rows::millis(self.section.position_ttl));
        self.delete("archmesh_streams", "channel", idle, unused_since).await?;
        Ok(())
    }

    async fn delete(
        &self,
        table: &str,
        key: &str,
        condition: &str,
        time: i64,
    ) -> Result<u64, StoreError> {
        let mut all = 0;
        loop {
            let sql = format!(
                "DELETE FROM {table} WHERE ({key}) IN (SELECT {key} FROM {table} WHERE {condition} LIMIT $2)"
            );
            let deleted = self.store.write(sql, &[Arg::Int(time), Arg::Int(BATCH.into())]).await?;
            all += deleted;
            if deleted < u64::from(BATCH) {
                return Ok(all);
            }
        }
    }

    /// Deletes rows of streams that were removed, or hold a quarter more than they keep. Answers whether there may be more.
    async fn shorten(&self) -> Result<bool, StoreError> {
        let due = "SELECT channel, deleted_seq, \
                   CASE WHEN floor_seq > top_seq - size_max THEN floor_seq ELSE top_seq - size_max END \
                   FROM archmesh_streams WHERE floor_seq > deleted_seq \
                   OR top_seq - size_max - deleted_seq > size_max / 4 ORDER BY channel LIMIT $1";
        if self.store.read(due, &[Arg::Int(1)]).await?.is_empty() {
            return Ok(false);
        }
        let shorten = async {
            let mut transaction = self.store.begin().await?;
            // One that is being published to is shortened in the next round: nobody waits for anybody here.
            let sql = format!("{due} {}", transaction.dialect().skip_locked());
            let streams = transaction.fetch(sql, &[Arg::Int(STREAMS)]).await?;
            let (mut more, mut deleted) = (streams.len() as u64 == STREAMS as u64, 0);
            for row in streams {
                let (channel, from, until) = (row.text(0)?, row.int(1)?, row.int(2)?);
                let to = until.min(from.saturating_add(ROWS));
                more |= to < until;
                let args = [Arg::Text(&channel), Arg::Int(to), Arg::Int(from)];
                let sql = "DELETE FROM archmesh_publications WHERE channel = $1 AND seq <= $2 AND seq > $3";
                deleted += transaction.execute(sql, &args).await?;
                let sql = "UPDATE archmesh_streams SET deleted_seq = $2 WHERE channel = $1";
                transaction.execute(sql, &args[..2]).await?;
            }
            transaction.commit().await?;
            Ok((more, deleted))
        };
        let (more, deleted) = self.store.run(shorten).await?;
        self.stats.deleted.fetch_add(deleted, Ordering::Relaxed);
        Ok(more)
    }

    async fn keep_partitions(&self) -> Result<(), StoreError> {
        let mut transaction = self.store.begin().await?;
        // Whoever publishes must not wait behind this for long.
        transaction.execute("SET LOCAL lock_timeout = '250ms'", &[]).await?;
        let lock = "SELECT pg_advisory_xact_lock($1)";
        transaction.fetch(lock, &[Arg::Int(PARTITION_LOCK)]).await?;
        drop_expired(&mut transaction).await?;
        let ttl = rows::millis(self.ttl_max);
        let days = (ttl / DAY_MS / PARTITIONS).clamp(0, PARTITIONS - 1) + 1;
        add_partitions(&mut transaction, days * DAY_MS, now_ms().saturating_add(ttl)).await?;
        transaction.commit().await
    }
}

async fn drop_expired(transaction: &mut Transaction) -> Result<(), StoreError> {
    let sql = "DELETE FROM archmesh_publication_partitions WHERE to_at <= $1 RETURNING name";
    for row in transaction.fetch(sql, &[Arg::Int(now_ms())]).await? {
        let name = row.text(0)?;
        transaction.execute(format!("DROP TABLE IF EXISTS {name}"), &[]).await?;
        tracing::info!(category = "database", event = "partition_dropped", partition = name);
    }
    Ok(())
}

/// Makes partitions of `width` up to one that begins after `until`.
async fn add_partitions(
    transaction: &mut Transaction,
    width: i64,
    until: i64,
) -> Result<(), StoreError> {
    // What is in the default partition already must stay there.
    let sql = "SELECT GREATEST((SELECT max(to_at) FROM archmesh_publication_partitions), \
                               (SELECT max(expires_at) + 1 FROM archmesh_publications_default))";
    let rows = transaction.fetch(sql, &[]).await?;
    let known = rows.first().map_or(Ok(None), |row| row.maybe_int(0))?;
    let mut from = known.unwrap_or_else(|| now_ms() / DAY_MS * DAY_MS);
    while from <= until.saturating_add(width) {
        let to = from.saturating_add(width);
        let name = format!("archmesh_publications_{from}");
        let sql = format!(
            "CREATE TABLE {name} PARTITION OF archmesh_publications FOR VALUES FROM ({from}) TO ({to})"
        );
        transaction.execute(sql, &[]).await?;
        let sql = "INSERT INTO archmesh_publication_partitions (name, from_at, to_at) VALUES ($1, $2, $3)";
        transaction.execute(sql, &[Arg::Text(&name), Arg::Int(from), Arg::Int(to)]).await?;
        from = to;
    }
    Ok(())
}
