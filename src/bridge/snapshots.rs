//! Gathering of shard counters, one gathering at a time.
//!
//! Several scrapes at once share one gathering, so that nobody can make the shards copy histograms faster than
//! [`FRESH`] allows. A shard that does not answer in time is represented by its last known counters.

use std::sync::Arc;
use std::time::Duration;

use gateway_core::ids::ShardId;
use gateway_engine::ShardSnapshot;
use tokio::sync::{Mutex, mpsc};
use tokio::time::Instant;

use super::{Bridge, Waiter};

/// A gathering younger than this is given out again instead of asking the shards.
const FRESH: Duration = Duration::from_millis(100);

/// Counters of all shards as last known.
#[derive(Clone, Debug)]
pub(crate) struct Snapshots {
    /// By shard; `None` when the shard never answered yet.
    pub shards: Vec<Option<Arc<ShardSnapshot>>>,
    /// Whether at least one shard did not answer this time.
    pub partial: bool,
}

impl Snapshots {
    /// The counters that are known, with their shard.
    pub(crate) fn known(&self) -> impl Iterator<Item = (ShardId, &ShardSnapshot)> {
        let shards = self.shards.iter().enumerate();
        shards.filter_map(|(index, snapshot)| {
            snapshot.as_deref().map(|known| (ShardId(index as u16), known))
        })
    }
}

/// The last gathering.
#[derive(Debug)]
pub(super) struct Store {
    last: Mutex<(Option<Instant>, Snapshots)>,
}

impl Store {
    pub(super) fn new(shards: usize) -> Self {
        Self { last: Mutex::new((None, Snapshots { shards: vec![None; shards], partial: true })) }
    }
}

impl Bridge {
    /// Counters of all shards, at most `snapshot_timeout` (plus one gathering already under way) from now.
    pub(crate) async fn snapshots(&self) -> Snapshots {
        let mut last = self.inner.snapshots.last.lock().await;
        if last.0.is_some_and(|taken| taken.elapsed() < FRESH) {
            return last.1.clone();
        }
        let count = last.1.shards.len();
        let (sender, receiver) = mpsc::channel(count.max(1));
        let Ok(ticket) = self.enter(Waiter::Snapshots(sender)) else {
            last.1.partial = true;
            return last.1.clone();
        };
        let shards = self.inner.shards.as_ref();
        let asked = self
            .shard_ids()
            .filter(|shard| shards.request_snapshot(*shard, ticket.correlation))
            .count();
        let answers = self.collect(receiver, asked, self.inner.limits.snapshot_timeout).await;
        drop(ticket);
        last.1.partial = answers.len() < count;
        for (shard, snapshot) in answers {
            if let Some(known) = last.1.shards.get_mut(shard.index()) {
                *known = Some(Arc::from(snapshot));
            }
        }
        last.0 = Some(Instant::now());
        last.1.clone()
    }
}
