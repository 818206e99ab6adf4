//! Publishes what transactions have put into the outbox, at least once and in order per channel.
//!
//! On PostgreSQL the rows are spread over lanes by channel, and a relay works on the lanes whose rows it could lock; with
//! several nodes each lane has one relay at a time. A row leaves the table after the channel's home has answered, in the
//! transaction that holds the lane, so a relay that dies leaves its rows to the next one. What is published a second time
//! carries the same idempotency key, which the channel knows for a while, and the same notification id, which clients know.
//!
//! A row that can never be published (no such namespace, no JSON, too large) is marked with its error and passed over. One
//! that cannot be published now keeps its lane waiting.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use gateway_core::error::ClientError;
use gateway_core::message::{ChannelOp, Publish};
use gateway_core::settings::Priority;
use serde_json::json;
use serde_json::value::RawValue;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

use crate::api::payload;
use crate::bridge::PendingAnswer;
use crate::plane::SharedPlane;
use crate::store::{Arg, Dialect, Store, StoreError, Transaction};

/// Rows published in one transaction.
const ROWS_MAX: i64 = 512;
/// Until lanes that another node works on are looked at again, while rows wait in them.
const BUSY_WAIT: Duration = Duration::from_millis(10);
/// Until rows that could not be published are tried again.
const RETRY_WAIT: Duration = Duration::from_millis(200);

/// Type of the protocol that rows of the gateway itself have; an application cannot choose such a type in other ways.
const OWN_KIND: &str = "notification_update";

/// A row, when any waits.
const ANY_WAITING: &str = "SELECT 1 FROM archmesh_outbox WHERE failed_at IS NULL LIMIT 1";

/// Numbers of the relay.
#[derive(Debug, Default)]
pub(crate) struct RelayStats {
    /// Rows that were published.
    pub published: AtomicU64,
    /// Rows that can never be published.
    pub failed: AtomicU64,
    /// Rows that had to wait for another try.
    pub deferred: AtomicU64,
}

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Relay {
    store: Arc<Store>,
    wake: Arc<Notify>,
    poll_interval: Duration,
    stats: RelayStats,
}

struct Waiting {
    id: i64,
    created_at: i64,
    channel: String,
    kind: String,
    data: String,
    priority: Option<String>,
    idempotency_key: Option<String>,
}

/// What became of a row.
enum Fate {
    Published,
    /// Never to be published.
    Failed(String),
    /// To be tried again.
    Deferred,
    /// Not tried: the pass took too long.
    NotReached,
}

/// What a pass came to.
#[derive(Debug, PartialEq, Eq)]
enum Pass {
    /// Nothing waits.
    Idle,
    /// More may wait.
    More,
    /// Rows wait in lanes of another node.
    Busy,
    /// Rows wait that cannot be published now.
    Stuck,
}

impl Relay {
    /// A relay that looks when `wake` says so, and every `poll_interval`.
    pub(crate) fn new(store: Arc<Store>, wake: Arc<Notify>, poll_interval: Duration) -> Self {
        Self { store, wake, poll_interval, stats: RelayStats::default() }
    }

    /// Rows wait.
    pub(crate) fn wake(&self) {
        self.wake.notify_one();
    }

    /// Numbers since the start.
    pub(crate) fn stats(&self) -> &RelayStats {
        &self.stats
    }

    /// Publishes until the future is dropped.
    pub(crate) async fn run(self: Arc<Self>, plane: SharedPlane) {
        loop {
            match self.look(&plane).await {
                Ok(Pass::More) => {}
                Ok(Pass::Busy) => tokio::time::sleep(BUSY_WAIT).await,
                Ok(Pass::Stuck) => tokio::time::sleep(RETRY_WAIT).await,
                // A failure has been logged by the store, when it is an outage; the next look tries again.
                Ok(Pass::Idle) | Err(_) => {
                    let _woken =
                        tokio::time::timeout(self.poll_interval, self.wake.notified()).await;
                }
            }
        }
    }

    /// Wakes this relay when an application has written into the outbox.
    pub(crate) async fn listen(self: Arc<Self>) {
        loop {
            if let Ok(Some(mut listener)) = self.store.listen().await {
                // What came before the subscription is found by a look.
                self.wake.notify_one();
                while listener.recv().await.is_ok() {
                    self.wake.notify_one();
                }
            }
            tokio::time::sleep(self.poll_interval).await;
        }
    }

    /// It reads only as long as nothing waits, as mostly.
    async fn look(&self, plane: &SharedPlane) -> Result<Pass, StoreError> {
        if self.store.read(ANY_WAITING, &[]).await?.is_empty() {
            return Ok(Pass::Idle);
        }
        self.store.run(self.pass(plane)).await
    }

    async fn pass(&self, plane: &SharedPlane) -> Result<Pass, StoreError> {
        let mut transaction = self.store.begin().await?;
        let lanes = lock_lanes(&mut transaction).await?;
        let rows = read_rows(&mut transaction, &lanes).await?;
        if rows.is_empty() {
            let pass = if any_waiting(&mut transaction).await? { Pass::Busy } else { Pass::Idle };
            transaction.roll_back().await?;
            return Ok(pass);
        }
        let fates = publish_all(plane, &rows, self.store.query_timeout()).await;
        let (mut done, mut failed, mut deferred) = (Vec::new(), Vec::new(), 0);
        for (row, fate) in rows.iter().zip(&fates) {
            match fate {
                Fate::Published => done.push(row.id),
                Fate::Failed(error) => failed.push(json!({"id": row.id, "error": error})),
                Fate::Deferred => deferred += 1,
                Fate::NotReached => {}
            }
        }
        self.finish(&mut transaction, (&done, &failed)).await?;
        transaction.commit().await?;
        self.stats.published.fetch_add(done.len() as u64, Ordering::Relaxed);
        self.stats.failed.fetch_add(failed.len() as u64, Ordering::Relaxed);
        self.stats.deferred.fetch_add(deferred, Ordering::Relaxed);
        for (row, fate) in rows.iter().zip(&fates) {
            if let Fate::Failed(error) = fate {
                let row = row.id;
                tracing::warn!(category = "database", event = "outbox_row_failed", row, error);
            }
        }
        Ok(if deferred > 0 { Pass::Stuck } else { Pass::More })
    }

    async fn finish(
        &self,
        transaction: &mut Transaction,
        (done, failed): (&[i64], &[serde_json::Value]),
    ) -> Result<(), StoreError> {
        let dialect = transaction.dialect();
        if !done.is_empty() {
            let sql = format!("DELETE FROM archmesh_outbox WHERE id IN {}", dialect.numbers("$1"));
            transaction.execute(sql, &[Arg::Text(&json!(done).to_string())]).await?;
        }
        if !failed.is_empty() {
            let sql = format!(
                "UPDATE archmesh_outbox SET failed_at = $2, error = r.error FROM {} WHERE archmesh_outbox.id = r.id",
                dialect.rows("$1", &[("id", false), ("error", true)])
            );
            let failed = json!(failed).to_string();
            let now = super::now_ms();
            transaction.execute(sql, &[Arg::Text(&failed), Arg::Int(now)]).await?;
        }
        Ok(())
    }
}

/// Lanes with rows that no other relay works on, as a JSON array; SQLite has no lanes.
async fn lock_lanes(transaction: &mut Transaction) -> Result<String, StoreError> {
    if transaction.dialect() == Dialect::Sqlite {
        return Ok("[]".to_owned());
    }
    let sql = format!(
        "SELECT lane FROM archmesh_outbox_lanes l WHERE EXISTS (SELECT 1 FROM archmesh_outbox o \
         WHERE o.lane = l.lane AND o.failed_at IS NULL) ORDER BY lane {}",
        transaction.dialect().skip_locked()
    );
    let rows = transaction.fetch(sql, &[]).await?;
    let lanes = rows.iter().map(|row| row.int(0)).collect::<Result<Vec<_>, _>>()?;
    Ok(json!(lanes).to_string())
}

async fn read_rows(transaction: &mut Transaction, lanes: &str) -> Result<Vec<Waiting>, StoreError> {
    let dialect = transaction.dialect();
    let in_lanes = match dialect {
        Dialect::Postgres => format!("AND lane IN {}", dialect.numbers("$1")),
        Dialect::Sqlite => "AND $1 = '[]'".to_owned(),
    };
    let sql = format!(
        "SELECT id, channel, type, data, priority, idempotency_key, created_at FROM archmesh_outbox \
         WHERE failed_at IS NULL {in_lanes} ORDER BY id LIMIT $2"
    );
    let rows = transaction.fetch(sql, &[Arg::Text(lanes), Arg::Int(ROWS_MAX)]).await?;
    rows.iter()
        .map(|row| {
            Ok(Waiting {
                id: row.int(0)?,
                channel: row.text(1)?,
                kind: row.text(2)?,
                data: row.text(3)?,
                priority: row.maybe_text(4)?,
                idempotency_key: row.maybe_text(5)?,
                created_at: row.int(6)?,
            })
        })
        .collect()
}

async fn any_waiting(transaction: &mut Transaction) -> Result<bool, StoreError> {
    if transaction.dialect() == Dialect::Sqlite {
        return Ok(false);
    }
    Ok(!transaction.fetch(ANY_WAITING, &[]).await?.is_empty())
}

/// Channels do not wait for each other. Within one, a row begins when the one before it is published, and behind a row that
/// has to wait the others wait too.
///
/// It takes a part of the time that the whole transaction has: rows that are not reached stay for the next pass, and what is
/// published is told before the transaction is given up.
async fn publish_all(plane: &SharedPlane, rows: &[Waiting], limit: Duration) -> Vec<Fate> {
    let began = Instant::now();
    let (last_start, last_answer) = (began + limit / 4, began + limit / 2);
    let mut channels: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for (index, row) in rows.iter().enumerate() {
        channels.entry(&row.channel).or_default().push(index);
    }
    let channels = channels.into_values().map(async |indices| {
        let mut fates = Vec::with_capacity(indices.len());
        for index in indices {
            let stuck = matches!(fates.last(), Some((_, Fate::Deferred)));
            let fate = if stuck {
                Fate::Deferred
            } else if Instant::now() > last_start {
                Fate::NotReached
            } else {
                let published = timeout_at(last_answer, publish(plane, &rows[index])).await;
                published.unwrap_or(Fate::Deferred)
            };
            fates.push((index, fate));
        }
        fates
    });
    let mut fates: Vec<_> = join_all(channels).await.into_iter().flatten().collect();
    fates.sort_unstable_by_key(|(index, _)| *index);
    fates.into_iter().map(|(_, fate)| fate).collect()
}

async fn publish(plane: &SharedPlane, row: &Waiting) -> Fate {
    match begin(plane, row) {
        Ok(pending) => fate(pending.wait().await.map(|_| ())),
        Err(Ok(error)) => fate(Err(error)),
        Err(Err(problem)) => Fate::Failed(problem),
    }
}

fn fate(outcome: Result<(), ClientError>) -> Fate {
    match outcome {
        Ok(()) => Fate::Published,
        Err(error) if error.code.is_temporary() => Fate::Deferred,
        Err(error) => Fate::Failed(error.message),
    }
}

/// Hands a row to its channel's home. The inner error is temporary or not as its code says; a text is final.
fn begin(plane: &SharedPlane, row: &Waiting) -> Result<PendingAnswer, Result<ClientError, String>> {
    let settings = plane.settings.load();
    payload::check_channel(&row.channel, &settings).map_err(|error| Err(error.body().message))?;
    let is_json = serde_json::from_str::<&RawValue>(&row.data).is_ok();
    if !is_json || row.data.len() > settings.limits.message_bytes_max {
        return Err(Err("`data` is no JSON, or larger than limits.message_bytes_max".to_owned()));
    }
    let kind = if row.kind == "message" { "" } else { row.kind.as_str() };
    if !kind.is_empty() && kind != OWN_KIND {
        payload::check_type(kind).map_err(|error| Err(error.body().message))?;
    }
    let priority = match row.priority.as_deref() {
        None => None,
        Some(text) => {
            Some(Priority::parse(text).ok_or_else(|| Err(format!("`{text}` is no priority")))?)
        }
    };
    // The number alone comes again in another database, whose rows may meet these in one broker.
    let key = row.idempotency_key.clone();
    let key = key.unwrap_or_else(|| format!("outbox:{}:{}", row.id, row.created_at));
    let publish = Publish {
        kind: kind.into(),
        data: Bytes::copy_from_slice(row.data.as_bytes()),
        priority,
        idempotency_key: Some(key.into()),
        accepted_at: plane.uptime(),
        ..Publish::default()
    };
    plane.bridge.begin(&row.channel, ChannelOp::Publish(publish)).map_err(Ok)
}
