//! Writes changes of inboxes in batches: what waits while one transaction commits goes into the next one together.
//!
//! The queue is bounded and nobody waits for room in it. An answer comes after the commit, so what was answered is durable.
//! When a batch fails because of one of its changes, each of them is tried on its own.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::sync::{Mutex, Notify, mpsc, oneshot};

use super::apply::apply;
use super::change::{Applied, Change};
use crate::store::{Store, StoreError};

/// Tries of a batch that others are in the way of.
const CONFLICTS_MAX: u32 = 5;

#[derive(Debug)]
struct Request {
    change: Change,
    answer: oneshot::Sender<Result<Applied, StoreError>>,
}

/// Batches in a row that fail until writing counts as failing.
const FAILURES_MAX: u64 = 3;
/// A failure says nothing any more after this.
const FAILURE_MS: i64 = 10_000;

/// Numbers of the writer.
#[derive(Debug, Default)]
pub(crate) struct WriterStats {
    /// Changes that were made.
    pub changes: AtomicU64,
    /// Transactions that they took.
    pub batches: AtomicU64,
    /// Changes that found the queue full.
    pub refused: AtomicU64,
    /// Batches in a row that the database did not take.
    failures: AtomicU64,
    /// When the newest of them failed, in Unix milliseconds.
    failed_at: AtomicI64,
}

impl WriterStats {
    fn note_failure(&self, error: &StoreError) {
        self.failed_at.store(now_ms(), Ordering::Relaxed);
        if self.failures.fetch_add(1, Ordering::Relaxed) + 1 == FAILURES_MAX {
            let error = error.to_string();
            tracing::warn!(category = "database", event = "inbox_writes_fail", error);
        }
    }

    fn note_success(&self) {
        if self.failures.swap(0, Ordering::Relaxed) >= FAILURES_MAX {
            tracing::info!(category = "database", event = "inbox_writes_succeed");
        }
    }
}

/// The queue's near end.
#[derive(Debug)]
pub(crate) struct Writer {
    queue: mpsc::Sender<Request>,
    stats: Arc<WriterStats>,
}

/// The queue's far end, shared by the tasks that write.
#[derive(Debug)]
pub(crate) struct Changes {
    queue: Mutex<mpsc::Receiver<Request>>,
    store: Arc<Store>,
    stats: Arc<WriterStats>,
    batch_max: usize,
    /// Told after each commit.
    committed: [Arc<Notify>; 2],
}

/// A queue for `waiting_max` changes.
pub(crate) fn queue(
    store: Arc<Store>,
    (waiting_max, batch_max): (usize, usize),
    committed: [Arc<Notify>; 2],
) -> (Writer, Arc<Changes>) {
    let (sender, receiver) = mpsc::channel(waiting_max);
    let stats = Arc::<WriterStats>::default();
    let changes = Changes {
        queue: Mutex::new(receiver),
        store,
        stats: Arc::clone(&stats),
        batch_max,
        committed,
    };
    (Writer { queue: sender, stats }, Arc::new(changes))
}

impl Writer {
    /// Makes a change and waits until it is durable.
    ///
    /// # Errors
    /// Also when it is not known whether it was made ([`StoreError::Timeout`]): an idempotency key lets the caller try again.
    ///
    /// # Cancel safety
    /// The change is made all the same.
    pub(crate) async fn write(&self, change: Change) -> Result<Applied, StoreError> {
        let (answer, answered) = oneshot::channel();
        if self.queue.try_send(Request { change, answer }).is_err() {
            self.stats.refused.fetch_add(1, Ordering::Relaxed);
            return Err(StoreError::Full);
        }
        answered.await.unwrap_or(Err(StoreError::Unexpected("a writer that has ended")))
    }

    /// Changes that wait.
    pub(crate) fn waiting(&self) -> usize {
        self.queue.max_capacity() - self.queue.capacity()
    }

    /// Whether the database takes no changes, though it may answer otherwise: a full disk, a locked table.
    pub(crate) fn is_failing(&self) -> bool {
        let failed_at = self.stats.failed_at.load(Ordering::Relaxed);
        self.stats.failures.load(Ordering::Relaxed) >= FAILURES_MAX
            && now_ms().saturating_sub(failed_at) < FAILURE_MS
    }

    /// Numbers since the start.
    pub(crate) fn stats(&self) -> &WriterStats {
        &self.stats
    }
}

impl Changes {
    /// Writes until the queue's near end is gone and the queue is empty.
    pub(crate) async fn write(self: Arc<Self>) {
        loop {
            let batch = self.take_batch().await;
            if batch.is_empty() {
                return;
            }
            self.write_batch(batch).await;
        }
    }

    async fn take_batch(&self) -> Vec<Request> {
        let mut queue = self.queue.lock().await;
        let Some(first) = queue.recv().await else { return Vec::new() };
        let mut weight = first.change.weight();
        let mut batch = vec![first];
        while weight < self.batch_max {
            let Ok(next) = queue.try_recv() else { break };
            weight += next.change.weight();
            batch.push(next);
        }
        batch
    }

    async fn write_batch(&self, batch: Vec<Request>) {
        let (changes, answers): (Vec<Change>, Vec<_>) =
            batch.into_iter().map(|request| (request.change, request.answer)).unzip();
        let applied = match self.commit(&changes).await {
            Ok(applied) => applied.into_iter().map(Ok).collect(),
            Err(error) if error.is_outage() || changes.len() == 1 => {
                refuse_all(error, changes.len())
            }
            Err(StoreError::Open) => refuse_all(StoreError::Open, changes.len()),
            Err(_) => {
                let mut applied = Vec::with_capacity(changes.len());
                for change in &changes {
                    let alone = self.commit(std::slice::from_ref(change)).await;
                    applied.push(alone.and_then(|mut one| {
                        one.pop().ok_or(StoreError::Unexpected("a change without outcome"))
                    }));
                }
                applied
            }
        };
        self.committed.iter().for_each(|told| told.notify_one());
        for (answer, outcome) in answers.into_iter().zip(applied) {
            // Whoever asked may have given up.
            let _unheard = answer.send(outcome);
        }
    }

    async fn commit(&self, changes: &[Change]) -> Result<Vec<Applied>, StoreError> {
        let mut conflicts = 0;
        loop {
            let work = async {
                let mut transaction = self.store.begin().await?;
                let applied = apply(&mut transaction, now_ms(), changes).await?;
                transaction.commit().await?;
                Ok(applied)
            };
            match self.store.run(work).await {
                Err(error) if error.is_conflict() && conflicts < CONFLICTS_MAX => conflicts += 1,
                Ok(applied) => {
                    self.stats.note_success();
                    self.stats.batches.fetch_add(1, Ordering::Relaxed);
                    self.stats.changes.fetch_add(changes.len() as u64, Ordering::Relaxed);
                    return Ok(applied);
                }
                Err(error) => {
                    if error.is_outage() {
                        self.stats.note_failure(&error);
                    }
                    return Err(error);
                }
            }
        }
    }
}

/// The same error for each of `count`.
fn refuse_all(error: StoreError, count: usize) -> Vec<Result<Applied, StoreError>> {
    let error = Arc::new(error);
    (0..count).map(|_| Err(StoreError::Shared(Arc::clone(&error)))).collect()
}

/// Wall clock in Unix milliseconds.
pub(crate) fn now_ms() -> i64 {
    let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    unix.as_millis() as i64
}
