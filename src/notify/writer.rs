//! Writes changes of inboxes in batches: what waits while one transaction commits goes into the next one together.
//!
//! The queue is bounded and nobody waits for room in it. An answer comes after the commit, so what was answered is durable.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::sync::{Mutex, Notify, mpsc, oneshot};

use super::apply::apply;
use super::change::{Applied, Change};
use crate::store::{Apply, BatchStats, Store, StoreError, Transaction, commit_batch, now_ms};

#[derive(Debug)]
struct Request {
    change: Change,
    answer: oneshot::Sender<Result<Applied, StoreError>>,
}

/// The queue's near end.
#[derive(Debug)]
pub(crate) struct Writer {
    queue: mpsc::Sender<Request>,
    stats: Arc<BatchStats>,
}

/// The queue's far end, shared by the tasks that write.
#[derive(Debug)]
pub(crate) struct Changes {
    queue: Mutex<mpsc::Receiver<Request>>,
    store: Arc<Store>,
    stats: Arc<BatchStats>,
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
    let stats = Arc::<BatchStats>::default();
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

    /// Most changes that may wait.
    pub(crate) fn waiting_max(&self) -> usize {
        self.queue.max_capacity()
    }

    /// Whether the database takes no changes, though it may answer otherwise: a full disk, a locked table.
    pub(crate) fn is_failing(&self) -> bool {
        self.stats.is_failing()
    }

    /// Numbers since the start.
    pub(crate) fn stats(&self) -> &BatchStats {
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
        let applied = commit_batch(&self.store, ("inbox", &self.stats), &Inboxes, &changes).await;
        self.committed.iter().for_each(|told| told.notify_one());
        for (answer, outcome) in answers.into_iter().zip(applied) {
            // Whoever asked may have given up.
            let _unheard = answer.send(outcome);
        }
    }
}

/// Changes of inboxes.
struct Inboxes;

impl Apply for Inboxes {
    type Change = Change;
    type Applied = Applied;

    async fn apply(
        &self,
        transaction: &mut Transaction,
        changes: &[Change],
    ) -> Result<Vec<Applied>, StoreError> {
        apply(transaction, now_ms(), changes).await
    }
}
