//! Batches of changes: what waits while one transaction commits goes into the next one together.
//!
//! When a batch fails because of one of its changes, each of them is tried on its own, so that one that can never be made
//! costs the others nothing. Who tells the callers, and in which order, is the owner's affair.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use super::{Store, StoreError, Transaction, now_ms};

/// Tries of a batch that others are in the way of.
const CONFLICTS_MAX: u32 = 5;
/// A failure says nothing any more after this.
const FAILURE_MS: i64 = 10_000;

/// What is done with changes inside of a transaction.
pub(crate) trait Apply: Sync {
    /// One change.
    type Change: Sync;
    /// What became of it.
    type Applied: Send;

    /// Makes the changes and answers one outcome for each, in their order.
    fn apply(
        &self,
        transaction: &mut Transaction,
        changes: &[Self::Change],
    ) -> impl Future<Output = Result<Vec<Self::Applied>, StoreError>> + Send;
}

/// Failures in a row; some of them make writing count as failing.
#[derive(Debug, Default)]
pub(crate) struct Streak(AtomicU64);

impl Streak {
    const FAILING: u64 = 3;

    /// One more. Whether writing counts as failing from now on.
    pub(crate) fn note_failure(&self) -> bool {
        self.0.fetch_add(1, Ordering::Relaxed) + 1 == Self::FAILING
    }

    /// It is over. Whether writing counted as failing.
    pub(crate) fn end(&self) -> bool {
        self.0.swap(0, Ordering::Relaxed) >= Self::FAILING
    }

    /// Whether writing counts as failing.
    pub(crate) fn is_failing(&self) -> bool {
        self.0.load(Ordering::Relaxed) >= Self::FAILING
    }
}

/// Numbers of a writer.
#[derive(Debug, Default)]
pub(crate) struct BatchStats {
    /// Changes that were made.
    pub changes: AtomicU64,
    /// Transactions that they took.
    pub batches: AtomicU64,
    /// Changes that found the queue full.
    pub refused: AtomicU64,
    /// Batches in a row that the database did not take.
    failures: Streak,
    /// When the newest of them failed, in Unix milliseconds.
    failed_at: AtomicI64,
}

impl BatchStats {
    /// Whether the database takes no changes, though it may answer otherwise: a full disk, a locked table.
    pub(crate) fn is_failing(&self) -> bool {
        let failed_at = self.failed_at.load(Ordering::Relaxed);
        self.failures.is_failing() && now_ms().saturating_sub(failed_at) < FAILURE_MS
    }

    fn note_failure(&self, writer: &'static str, error: &StoreError) {
        self.failed_at.store(now_ms(), Ordering::Relaxed);
        if self.failures.note_failure() {
            let error = error.to_string();
            tracing::warn!(category = "database", event = "writes_fail", writer, error);
        }
    }

    fn note_success(&self, writer: &'static str, changes: usize) {
        if self.failures.end() {
            tracing::info!(category = "database", event = "writes_succeed", writer);
        }
        self.batches.fetch_add(1, Ordering::Relaxed);
        self.changes.fetch_add(changes as u64, Ordering::Relaxed);
    }
}

/// Makes `changes` durable in as few transactions as it takes; `writer` is named in the log.
pub(crate) async fn commit_batch<A: Apply>(
    store: &Store,
    (writer, stats): (&'static str, &BatchStats),
    work: &A,
    changes: &[A::Change],
) -> Vec<Result<A::Applied, StoreError>> {
    let error = match commit(store, (writer, stats), work, changes).await {
        Ok(applied) => return applied.into_iter().map(Ok).collect(),
        Err(error) => error,
    };
    if error.is_outage() || matches!(error, StoreError::Open) || changes.len() == 1 {
        let error = Arc::new(error);
        return changes.iter().map(|_| Err(StoreError::Shared(Arc::clone(&error)))).collect();
    }
    let mut applied = Vec::with_capacity(changes.len());
    for change in changes {
        let alone = commit(store, (writer, stats), work, std::slice::from_ref(change)).await;
        applied.push(alone.and_then(|mut one| {
            one.pop().ok_or(StoreError::Unexpected("a change without outcome"))
        }));
    }
    applied
}

async fn commit<A: Apply>(
    store: &Store,
    (writer, stats): (&'static str, &BatchStats),
    work: &A,
    changes: &[A::Change],
) -> Result<Vec<A::Applied>, StoreError> {
    let mut conflicts = 0;
    loop {
        let attempt = async {
            let mut transaction = store.begin().await?;
            let applied = work.apply(&mut transaction, changes).await?;
            transaction.commit().await?;
            Ok(applied)
        };
        match store.run(attempt).await {
            Err(error) if error.is_conflict() && conflicts < CONFLICTS_MAX => conflicts += 1,
            Ok(applied) => {
                stats.note_success(writer, changes.len());
                return Ok(applied);
            }
            Err(error) => {
                if error.is_outage() {
                    stats.note_failure(writer, &error);
                }
                return Err(error);
            }
        }
    }
}
