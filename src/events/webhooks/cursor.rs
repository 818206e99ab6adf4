//! Where endpoints stand in the log: rows that are read, claimed and moved in transactions.

use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::json;

use super::Endpoint;
use crate::events::Events;
use crate::events::reads::{COLUMNS, Event, body};
use crate::notify::now_ms;
use crate::store::{Arg, Row, Store, StoreError};

/// Places in the log that one claim looks at; an endpoint that wants few kinds goes over the others in steps of this.
const WINDOW: i64 = 10_000;

/// A batch on its way.
#[derive(Debug)]
pub(super) struct Parcel {
    /// Ids of its first and last event.
    pub first: i64,
    pub last: i64,
    pub events: usize,
    /// JSON.
    pub body: String,
    /// Attempts that were made before.
    pub attempts: i64,
    /// Where the endpoint stands when it has taken this.
    end: i64,
    /// Whether there was nothing behind it.
    is_newest: bool,
    /// The dead letter that this is.
    pub dead: Option<i64>,
}

impl Parcel {
    /// The same for every attempt.
    pub(super) fn id(&self, endpoint: &str) -> String {
        format!("{endpoint}-{}-{}", self.first, self.last)
    }
}

/// What came of a claim.
#[derive(Debug)]
pub(super) enum Claim {
    /// This is to be sent.
    Send(Parcel),
    /// There was nothing for the endpoint, and it stands further on now.
    Moved,
    /// There is nothing, or another node was faster.
    Nothing,
}

/// Where an endpoint stands, for operators.
#[derive(Clone, Debug)]
pub(crate) struct EndpointState {
    /// Its name.
    pub name: String,
    /// Last place in the log that it is done with.
    pub last_id: i64,
    /// Newest place.
    pub newest_id: i64,
    /// Failed attempts of the batch that comes next.
    pub attempts: i64,
    /// When it is tried again, in Unix milliseconds.
    pub due_at: Option<i64>,
    /// Why it has failed.
    pub last_error: Option<String>,
    /// Batches that were given up.
    pub dead: i64,
}

/// A batch that an endpoint has not taken.
#[derive(Clone, Debug)]
pub(crate) struct DeadBatch {
    /// Its number.
    pub id: i64,
    /// Id of its first event.
    pub first_id: i64,
    /// Id of its last event.
    pub last_id: i64,
    /// Events in it.
    pub events: i64,
    /// Why the last attempt has failed.
    pub error: String,
    /// Attempts that were made.
    pub attempts: i64,
    /// When it was given up, in Unix milliseconds.
    pub died_at: i64,
    /// Whether it is about to be tried again.
    pub retry: bool,
}

/// Makes the cursor of an endpoint that has none: it begins behind the newest event.
pub(in crate::events) async fn make_cursor(store: &Store, name: &str) -> Result<(), StoreError> {
    let mut transaction = store.begin().await?;
    let sql = "INSERT INTO archmesh_webhook_cursors (name, last_id) \
               VALUES ($1, (SELECT coalesce(max(last_id), 0) FROM archmesh_event_counter)) ON CONFLICT (name) DO NOTHING";
    transaction.execute(sql, &[Arg::Text(name)]).await?;
    transaction.commit().await
}

impl Events {
    /// Whether there is something to do for the endpoint: `None`, or how long there is not.
    pub(super) async fn look(&self, endpoint: &Endpoint) -> Result<Option<Duration>, StoreError> {
        let mut transaction = self.store.begin_read().await?;
        let sql = "SELECT c.last_id, c.owner, c.lease_until, c.due_at, (SELECT coalesce(max(last_id), 0) FROM archmesh_event_counter), \
                   (SELECT count(*) FROM archmesh_webhook_dead d WHERE d.name = c.name AND d.retry = 1), \
                   (SELECT at FROM archmesh_events WHERE id > c.last_id ORDER BY id LIMIT 1) \
                   FROM archmesh_webhook_cursors c WHERE c.name = $1";
        let rows = transaction.fetch(sql, &[Arg::Text(&endpoint.name)]).await?;
        transaction.commit().await?;
        let Some(row) = rows.first() else {
            make_cursor(&self.store, &endpoint.name).await?;
            return Ok(Some(Duration::ZERO));
        };
        let (last, newest) = (row.int(0)?, row.int(4)?);
        endpoint.stats.note_lag((newest - last).max(0), row.maybe_int(6)?);
        let now = now_ms();
        let until = |at: i64| Duration::from_millis((at - now).max(0) as u64);
        if row.int(1)? != self.node() && row.int(2)? > now {
            return Ok(Some(until(row.int(2)?)));
        }
        if row.int(5)? > 0 || (newest > last && row.int(3)? <= now) {
            return Ok(None);
        }
        Ok(Some(if newest > last { until(row.int(3)?) } else { Duration::MAX }))
    }

    /// Takes the lease and what comes next.
    pub(super) async fn claim(&self, endpoint: &Endpoint) -> Result<Claim, StoreError> {
        let mut transaction = self.store.begin().await?;
        let (now, lease) = (now_ms(), self.lease(endpoint).as_millis() as i64);
        let sql = "UPDATE archmesh_webhook_cursors SET owner = $2, lease_until = $3 \
                   WHERE name = $1 AND (owner = $2 OR lease_until <= $4) RETURNING last_id, batch_end, attempts, due_at";
        let name = Arg::Text(&endpoint.name);
        let args = [name, Arg::Int(self.node()), Arg::Int(now + lease), Arg::Int(now)];
        let rows = transaction.fetch(sql, &args).await?;
        let Some(row) = rows.first() else {
            transaction.roll_back().await?;
            return Ok(Claim::Nothing);
        };
        let (last, batch_end, attempts) = (row.int(0)?, row.int(1)?, row.int(2)?);
        let is_due = row.int(3)? <= now;
        let dead = "SELECT id, first_id, last_id, events, body, attempts FROM archmesh_webhook_dead \
                    WHERE name = $1 AND retry = 1 ORDER BY id LIMIT 1";
        if let Some(row) = transaction.fetch(dead, &[name]).await?.first() {
            let parcel = dead_parcel(row, last)?;
            transaction.commit().await?;
            return Ok(Claim::Send(parcel));
        }
        let newest = "SELECT coalesce(max(last_id), 0) FROM archmesh_event_counter";
        let rows = transaction.fetch(newest, &[]).await?;
        let newest = rows.first().map_or(Ok(last), |row| row.int(0))?;
        if !is_due || newest <= last {
            transaction.roll_back().await?;
            return Ok(Claim::Nothing);
        }
        let last = self.skip_lost(endpoint, &mut transaction, (last, newest)).await?;
        let window = if batch_end > last { batch_end } else { newest.min(last + WINDOW) };
        let sql = format!(
            "SELECT {COLUMNS} FROM archmesh_events WHERE id > $1 AND id <= $2 AND kind IN {} ORDER BY id LIMIT $4",
            transaction.dialect().texts("$3")
        );
        let kinds = json!(endpoint.kinds.names()).to_string();
        let max = i64::from(endpoint.section.batch_max);
        let args = [Arg::Int(last), Arg::Int(window), Arg::Text(&kinds), Arg::Int(max)];
        let rows = transaction.fetch(sql, &args).await?;
        let found = rows.iter().map(Event::read).collect::<Result<Vec<_>, _>>()?;
        // Fewer than were asked for: there are no others up to the end of the window.
        let scanned = if found.len() < max as usize {
            window
        } else {
            found.last().map_or(window, |event| event.id)
        };
        let (batch, end) = cut(endpoint, found, scanned);
        let (Some(first), Some(newest_in)) = (batch.first(), batch.last()) else {
            let sql = "UPDATE archmesh_webhook_cursors SET last_id = $2, batch_end = 0, lease_until = 0 WHERE name = $1";
            transaction.execute(sql, &[name, Arg::Int(end)]).await?;
            transaction.commit().await?;
            return Ok(Claim::Moved);
        };
        let parcel = Parcel {
            first: first.id,
            last: newest_in.id,
            events: batch.len(),
            body: body(&batch)?,
            attempts,
            end,
            is_newest: end >= newest,
            dead: None,
        };
        transaction.commit().await?;
        Ok(Claim::Send(parcel))
    }

    /// Goes on behind what has left the log before it could be sent, and says so.
    async fn skip_lost(
        &self,
        endpoint: &Endpoint,
        transaction: &mut crate::store::Transaction,
        (last, newest): (i64, i64),
    ) -> Result<i64, StoreError> {
        let sql = "SELECT min(id) FROM archmesh_events WHERE id > $1";
        let rows = transaction.fetch(sql, &[Arg::Int(last)]).await?;
        let oldest = rows.first().map_or(Ok(None), |row| row.maybe_int(0))?.unwrap_or(newest + 1);
        let lost = oldest - 1 - last;
        if lost > 0 {
            // Kept, so that it is told once, whatever becomes of the batch behind it.
            let sql = "UPDATE archmesh_webhook_cursors SET last_id = $2 WHERE name = $1";
            transaction.execute(sql, &[Arg::Text(&endpoint.name), Arg::Int(oldest - 1)]).await?;
            endpoint.stats.lost.fetch_add(lost as u64, Ordering::Relaxed);
            tracing::error!(
                category = "events",
                event = "webhook_events_lost",
                webhook = endpoint.name,
                from = last + 1,
                to = oldest - 1,
                mend = "the endpoint was away for longer than events.retention; let the application compare its state, or raise it"
            );
        }
        Ok(last.max(oldest - 1))
    }

    /// Gives the lease back without having tried anything.
    pub(super) async fn release(&self, endpoint: &Endpoint) -> Result<(), StoreError> {
        let mut transaction = self.store.begin().await?;
        let sql =
            "UPDATE archmesh_webhook_cursors SET lease_until = 0 WHERE name = $1 AND owner = $2";
        transaction.execute(sql, &[Arg::Text(&endpoint.name), Arg::Int(self.node())]).await?;
        transaction.commit().await
    }

    /// The endpoint has taken it. `false` when another node has the lease by now.
    pub(super) async fn settle(
        &self,
        endpoint: &Endpoint,
        parcel: &Parcel,
    ) -> Result<bool, StoreError> {
        let mut transaction = self.store.begin().await?;
        if let Some(dead) = parcel.dead {
            let sql = "DELETE FROM archmesh_webhook_dead WHERE id = $1";
            transaction.execute(sql, &[Arg::Int(dead)]).await?;
            transaction.commit().await?;
            return Ok(true);
        }
        let lease =
            if parcel.is_newest { 0 } else { now_ms() + self.lease(endpoint).as_millis() as i64 };
        let sql = "UPDATE archmesh_webhook_cursors SET last_id = $3, batch_end = 0, attempts = 0, due_at = 0, \
                   last_error = NULL, lease_until = $4 WHERE name = $1 AND owner = $2 AND last_id < $3";
        let args = [
            Arg::Text(&endpoint.name),
            Arg::Int(self.node()),
            Arg::Int(parcel.end),
            Arg::Int(lease),
        ];
        let moved = transaction.execute(sql, &args).await? > 0;
        transaction.commit().await?;
        Ok(moved)
    }

    /// It is sent again later, as it is.
    pub(super) async fn put_off(
        &self,
        endpoint: &Endpoint,
        parcel: &Parcel,
        (error, delay): (&str, Duration),
    ) -> Result<(), StoreError> {
        let mut transaction = self.store.begin().await?;
        let sql = "UPDATE archmesh_webhook_cursors SET attempts = attempts + 1, due_at = $3, batch_end = $4, \
                   last_error = $5, lease_until = 0 WHERE name = $1 AND owner = $2";
        let args = [
            Arg::Text(&endpoint.name),
            Arg::Int(self.node()),
            Arg::Int(now_ms() + delay.as_millis() as i64),
            Arg::Int(parcel.end),
            Arg::Text(error),
        ];
        transaction.execute(sql, &args).await?;
        transaction.commit().await
    }

    /// It is given up, and the endpoint goes on behind it.
    pub(super) async fn put_aside(
        &self,
        endpoint: &Endpoint,
        parcel: &Parcel,
        error: &str,
    ) -> Result<(), StoreError> {
        let mut transaction = self.store.begin().await?;
        let (name, now) = (Arg::Text(&endpoint.name), now_ms());
        if let Some(dead) = parcel.dead {
            let sql = "UPDATE archmesh_webhook_dead SET retry = 0, attempts = attempts + 1, error = $2, died_at = $3 \
                       WHERE id = $1";
            transaction.execute(sql, &[Arg::Int(dead), Arg::Text(error), Arg::Int(now)]).await?;
            return transaction.commit().await;
        }
        let sql = "UPDATE archmesh_webhook_cursors SET last_id = $3, batch_end = 0, attempts = 0, due_at = 0, \
                   last_error = $4, lease_until = 0 WHERE name = $1 AND owner = $2 AND last_id < $3";
        let args = [name, Arg::Int(self.node()), Arg::Int(parcel.end), Arg::Text(error)];
        if transaction.execute(sql, &args).await? > 0 {
            let sql = "INSERT INTO archmesh_webhook_dead (name, first_id, last_id, events, body, error, attempts, died_at) \
                       VALUES ($1, $2, $3, $4, $5, $6, $7, $8)";
            let args = [
                name,
                Arg::Int(parcel.first),
                Arg::Int(parcel.last),
                Arg::Int(i64::try_from(parcel.events).unwrap_or(i64::MAX)),
                Arg::Text(&parcel.body),
                Arg::Text(error),
                Arg::Int(parcel.attempts + 1),
                Arg::Int(now),
            ];
            transaction.execute(sql, &args).await?;
        }
        transaction.commit().await
    }

    /// Where the endpoints of this node's configuration stand.
    pub(crate) async fn endpoint_states(&self) -> Result<Vec<EndpointState>, StoreError> {
        let read = async {
            let mut transaction = self.store.begin_read().await?;
            let sql = format!(
                "SELECT c.name, c.last_id, (SELECT coalesce(max(last_id), 0) FROM archmesh_event_counter), \
                 c.attempts, c.due_at, c.last_error, \
                 (SELECT count(*) FROM archmesh_webhook_dead d WHERE d.name = c.name) \
                 FROM archmesh_webhook_cursors c WHERE c.name IN {} ORDER BY c.name",
                transaction.dialect().texts("$1")
            );
            let names: Vec<&String> = self.endpoints.keys().collect();
            let rows = transaction.fetch(sql, &[Arg::Text(&json!(names).to_string())]).await?;
            transaction.commit().await?;
            rows.iter().map(state_of).collect()
        };
        self.store.run(read).await
    }

    /// Dead letters of an endpoint below the number `before`, the newest first.
    pub(crate) async fn dead_batches(
        &self,
        name: &str,
        before: i64,
        limit: u32,
    ) -> Result<Vec<DeadBatch>, StoreError> {
        let read = async {
            let mut transaction = self.store.begin_read().await?;
            let sql = "SELECT id, first_id, last_id, events, error, attempts, died_at, retry \
                       FROM archmesh_webhook_dead WHERE name = $1 AND id < $2 ORDER BY id DESC LIMIT $3";
            let args = [Arg::Text(name), Arg::Int(before), Arg::Int(i64::from(limit))];
            let rows = transaction.fetch(sql, &args).await?;
            transaction.commit().await?;
            rows.iter().map(dead_of).collect()
        };
        self.store.run(read).await
    }

    /// Lets dead letters be tried again, once: these, or all. Tells how many.
    pub(crate) async fn retry_dead(
        &self,
        name: &str,
        ids: Option<&[i64]>,
    ) -> Result<u64, StoreError> {
        let work = async {
            let mut transaction = self.store.begin().await?;
            let which = match ids {
                Some(_) => format!(" AND id IN {}", transaction.dialect().numbers("$2")),
                None => " AND $2 = ''".to_owned(),
            };
            let sql = format!(
                "UPDATE archmesh_webhook_dead SET retry = 1 WHERE name = $1 AND retry = 0{which}"
            );
            let ids = ids.map(|ids| json!(ids).to_string()).unwrap_or_default();
            let changed = transaction.execute(sql, &[Arg::Text(name), Arg::Text(&ids)]).await?;
            transaction.commit().await?;
            Ok(changed)
        };
        let changed = self.store.run(work).await?;
        self.written.notify_waiters();
        Ok(changed)
    }
}

/// Those that the endpoint wants, as far as they fit, and where it stands behind them.
fn cut(endpoint: &Endpoint, found: Vec<Event>, scanned: i64) -> (Vec<Event>, i64) {
    let (mut batch, mut bytes) = (Vec::new(), 0);
    for event in found {
        if !endpoint.wants(&event) {
            continue;
        }
        bytes += event.bytes();
        if bytes > endpoint.section.batch_bytes_max && !batch.is_empty() {
            return (batch, event.id - 1);
        }
        batch.push(event);
    }
    (batch, scanned)
}

fn dead_parcel(row: &Row, last: i64) -> Result<Parcel, StoreError> {
    Ok(Parcel {
        dead: Some(row.int(0)?),
        first: row.int(1)?,
        last: row.int(2)?,
        events: usize::try_from(row.int(3)?).unwrap_or_default(),
        body: row.text(4)?,
        attempts: row.int(5)?,
        end: last,
        is_newest: false,
    })
}

fn state_of(row: &Row) -> Result<EndpointState, StoreError> {
    Ok(EndpointState {
        name: row.text(0)?,
        last_id: row.int(1)?,
        newest_id: row.int(2)?,
        attempts: row.int(3)?,
        due_at: Some(row.int(4)?).filter(|at| *at > 0),
        last_error: row.maybe_text(5)?,
        dead: row.int(6)?,
    })
}

fn dead_of(row: &Row) -> Result<DeadBatch, StoreError> {
    Ok(DeadBatch {
        id: row.int(0)?,
        first_id: row.int(1)?,
        last_id: row.int(2)?,
        events: row.int(3)?,
        error: row.text(4)?,
        attempts: row.int(5)?,
        died_at: row.int(6)?,
        retry: row.int(7)? != 0,
    })
}
