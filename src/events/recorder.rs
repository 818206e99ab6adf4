//! The task that writes: takes what waits, and tries it again until the database has it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::nodes::{SIGNS, new_id};
use super::queue::Batch;
use super::write::Written;
use super::{EventStats, Events};
use crate::store::StoreError;

/// Delay after the first failure; it doubles.
const RETRY_MIN: Duration = Duration::from_millis(20);
/// Longest delay: the breaker of the store lets nobody through sooner anyway.
const RETRY_MAX: Duration = Duration::from_millis(500);

/// What becomes of an error.
#[derive(Debug, PartialEq, Eq)]
enum Remedy {
    /// Another transaction was in the way.
    AtOnce,
    /// The database is away.
    Later,
    /// It will never be taken as it is.
    Never,
}

fn remedy(error: &StoreError) -> Remedy {
    let root = error.root();
    if root.is_conflict() {
        Remedy::AtOnce
    } else if root.is_outage() || matches!(root, StoreError::Open | StoreError::Full) {
        Remedy::Later
    } else {
        Remedy::Never
    }
}

/// Writes until the node stops and nothing is left, or the future is dropped.
pub(super) async fn record(events: Arc<Events>) {
    let mut stopping = events.stopping.subscribe();
    let mut number = 0;
    let until_sign = events.section.node_ttl / SIGNS;
    events.join_patiently(events.node(), None).await;
    loop {
        tokio::select! {
            () = events.queue.wait() => {}
            // Nothing else is to be told but that the node lives.
            () = tokio::time::sleep(until_sign) => {}
            _ = stopping.wait_for(|stopping| *stopping) => {}
        }
        let batch = events.queue.take(events.section.batch_max as usize);
        let is_last = batch.is_empty() && *stopping.borrow();
        if !is_last {
            events.write_patiently(&mut number, batch).await;
            continue;
        }
        // What is left of this run is ended now instead of by others later.
        while let Err(error) = events.end_node(events.node(), None).await {
            tracing::debug!(category = "events", event = "events_not_ended", %error);
            tokio::time::sleep(RETRY_MIN).await;
        }
        events.finished.send_replace(true);
        return std::future::pending().await;
    }
}

impl Events {
    async fn join_patiently(&self, new: i64, old: Option<i64>) {
        let mut delay = RETRY_MIN;
        loop {
            match self.store.run(self.join(new, old)).await {
                Ok(rows) => return self.queue.set_recorded(&rows, crate::notify::now_ms()),
                Err(error) => self.note_failure(&error),
            }
            tokio::time::sleep(delay).await;
            delay = (delay * 2).min(RETRY_MAX);
        }
    }

    /// Writes a batch, however long it takes. What the database will never take is dropped, counted and told.
    pub(super) async fn write_patiently(&self, number: &mut i64, batch: Batch) {
        let mut waiting = vec![batch];
        while let Some(batch) = waiting.pop() {
            *number += 1;
            let Err((batch, error)) = self.write_until_decided(number, batch).await else {
                continue;
            };
            if batch.entries.len() + batch.channels.len() > 1 {
                let mut parts: Vec<Batch> = batch.split().collect();
                parts.reverse();
                waiting.append(&mut parts);
                continue;
            }
            for entry in &batch.entries {
                EventStats::add(&self.stats.dropped, entry.kind, 1);
            }
            if let Some(left_out) = self.hopeless.pass(Instant::now()) {
                tracing::error!(category = "events", event = "event_not_recorded", left_out, %error);
            }
        }
    }

    /// Gives back a batch that will never be taken.
    async fn write_until_decided(
        &self,
        number: &mut i64,
        mut batch: Batch,
    ) -> Result<(), (Batch, StoreError)> {
        let mut delay = RETRY_MIN;
        loop {
            let error = match self.store.run(self.write_batch(*number, &batch)).await {
                Ok(Written::Done(counts)) => {
                    self.note_success();
                    self.count_written(&counts);
                    self.forget_last_seen(&batch.entries);
                    return Ok(());
                }
                Ok(Written::Fenced) => {
                    self.rejoin().await;
                    // All that is not as it should be is in the queue again.
                    batch.channels.clear();
                    continue;
                }
                Err(error) => error,
            };
            match remedy(&error) {
                Remedy::AtOnce => continue,
                Remedy::Never => return Err((batch, error)),
                Remedy::Later => self.note_failure(&error),
            }
            tokio::time::sleep(delay).await;
            delay = (delay * 2).min(RETRY_MAX);
        }
    }

    /// Comes back as another run.
    async fn rejoin(&self) {
        let (old, new) = (self.node(), new_id());
        self.stats.fenced.fetch_add(1, Ordering::Relaxed);
        tracing::warn!(
            category = "events",
            event = "node_was_ended",
            run = old,
            new_run = new,
            mend = "see why this node could not write for events.node_ttl; its sessions and channels are told anew"
        );
        self.join_patiently(new, Some(old)).await;
        self.node.store(new, Ordering::Relaxed);
    }

    fn note_failure(&self, error: &StoreError) {
        if self.stats.failures.note_failure() {
            tracing::warn!(category = "events", event = "events_wait", %error);
        }
    }

    fn note_success(&self) {
        if self.stats.failures.end() {
            tracing::info!(category = "events", event = "events_recorded_again");
        }
    }
}
