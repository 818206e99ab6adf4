//! Which node is meant by the number in records and in members' fields: the last part of a node's id.
//!
//! A node that the cluster listed and does not list any more is gone: its lease has ended. One that was never listed may be
//! newer than what is known of the cluster, so it has some time. The members of a node that is gone leave everywhere, once.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use gateway_core::broker::{BrokerUpdate, Placed};
use gateway_core::message::StreamPosition;
use gateway_core::time::Now;

use super::mail::Mail;
use super::record;
use crate::bridge::Bridge;
use crate::cluster::{Cluster, node_number};

/// Nodes that are remembered to be gone; an older one is found anew.
const GONE_MAX: usize = 4096;

#[derive(Debug, Default)]
struct Known {
    /// Other nodes: when they were first met, `None` once the cluster has listed them.
    foreign: HashMap<u64, Option<Instant>>,
    gone: HashSet<u64>,
    /// What this node was called before it was fenced.
    former: HashSet<u64>,
}

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Nodes {
    cluster: Arc<Cluster>,
    bridge: Bridge,
    own: AtomicU64,
    /// Under which number all members of this node were told last.
    told_as: AtomicU64,
    /// What this node was called first: what it is subscribed to keeps that name.
    own_first: u64,
    known: Mutex<Known>,
    lease_ttl: Duration,
}

impl Nodes {
    pub(super) fn new(cluster: Arc<Cluster>, bridge: Bridge, lease_ttl: Duration) -> Self {
        let own_first = node_number(&cluster.id());
        let own = AtomicU64::new(own_first);
        let told_as = AtomicU64::new(own_first);
        Self { cluster, bridge, own, told_as, own_first, known: Mutex::default(), lease_ttl }
    }

    /// Number of this node.
    pub(super) fn own(&self) -> u64 {
        self.own.load(Ordering::Relaxed)
    }

    /// Number under which the others know this node now: it is another one as soon as the lease was lost.
    pub(super) fn own_now(&self) -> u64 {
        node_number(&self.cluster.id())
    }

    /// Number of this node when it started.
    pub(super) fn own_first(&self) -> u64 {
        self.own_first
    }

    /// Whether nobody can know which other nodes there are.
    pub(super) fn is_stale(&self) -> bool {
        self.cluster.is_stale()
    }

    /// Other nodes that the cluster lists.
    pub(super) fn others(&self) -> Vec<u64> {
        let view = self.cluster.view();
        let numbers = view.nodes.iter().map(|node| node_number(&node.id));
        numbers.filter(|node| !self.is_own_now(*node)).collect()
    }

    /// Looks which nodes there are now, for at most `limit`. Whether that is known.
    pub(super) async fn see_again(&self, limit: Duration) -> bool {
        self.cluster.see_again(limit).await
    }

    /// The clock of the shards.
    pub(super) fn now(&self) -> Now {
        self.bridge.shards().now()
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it is, or was, this node.
    pub(super) fn is_own(&self, node: u64) -> bool {
        node == self.own() || self.known().former.contains(&node)
    }

    /// As [`Self::is_own`], also in the moment after the lease was lost. Takes longer.
    pub(super) fn is_own_now(&self, node: u64) -> bool {
        node == self.own_now() || self.is_own(node)
    }

    /// Whether members of `node` are to be believed: it is another one, and not gone.
    pub(super) fn note_foreign(&self, node: u64) -> bool {
        if self.is_own(node) {
            return false;
        }
        let mut known = self.known();
        if known.gone.contains(&node) {
            return false;
        }
        known.foreign.entry(node).or_insert_with(|| Some(Instant::now()));
        true
    }

    /// Follows the cluster until the future is dropped. `came_back` is called when a node that was taken for gone is listed again.
    pub(super) async fn watch(&self, mail: &Mail, interval: Duration, came_back: impl Fn() + Send) {
        loop {
            tokio::time::sleep(interval).await;
            self.follow_own(mail);
            let (gone, back) = self.find_gone();
            if back {
                came_back();
            }
            for node in gone {
                tracing::info!(
                    category = "system",
                    event = "members_left",
                    node = format!("{node:016x}")
                );
                mail.tell_all(|| BrokerUpdate::NodeLeft(node));
            }
        }
    }

    fn follow_own(&self, mail: &Mail) {
        let own = node_number(&self.cluster.id());
        let before = self.own.swap(own, Ordering::Relaxed);
        if own != before {
            self.known().former.insert(before);
        }
        // Before it has its lease the others take it for gone, and its members out of Redis.
        if own != self.told_as.load(Ordering::Relaxed) && self.cluster.holds_lease() {
            self.told_as.store(own, Ordering::Relaxed);
            mail.tell_all(|| BrokerUpdate::TellMembers);
        }
    }

    /// Nodes that are gone since the last call, and whether one is back.
    fn find_gone(&self) -> (Vec<u64>, bool) {
        if self.cluster.is_stale() {
            return (Vec::new(), false);
        }
        let mut back = false;
        let view = self.cluster.view();
        let listed: HashSet<u64> = view.nodes.iter().map(|node| node_number(&node.id)).collect();
        let mut known = self.known();
        for node in &listed {
            back |= known.gone.remove(node);
            if let Some(met) = known.foreign.get_mut(node) {
                *met = None;
            }
        }
        // The nodes may have been read last before it was met.
        let since = |at: Instant| view.seen_at.map(|seen_at| seen_at.saturating_duration_since(at));
        let is_gone = |met: &Option<Instant>| {
            met.is_none_or(|at| since(at).is_some_and(|since| since > self.lease_ttl / 2))
        };
        let gone: Vec<u64> = known
            .foreign
            .iter()
            .filter(|(node, met)| !listed.contains(node) && is_gone(met))
            .map(|(node, _)| *node)
            .collect();
        if known.gone.len() > GONE_MAX {
            known.gone.clear();
        }
        for node in &gone {
            known.foreign.remove(node);
            known.gone.insert(*node);
        }
        (gone, back)
    }

    /// A publication as Redis gave it; `None` when it cannot be read.
    pub(super) fn placed(&self, position: StreamPosition, payload: Bytes) -> Option<Placed> {
        self.placed_by(position, payload).map(|(placed, _)| placed)
    }

    /// As [`Self::placed`], and whether this node has published it.
    pub(super) fn placed_by(
        &self,
        position: StreamPosition,
        payload: Bytes,
    ) -> Option<(Placed, bool)> {
        let (mut publish, stamp) = record::decode(payload)?;
        let own = self.is_own(stamp.node);
        if !own {
            // Another node's monotonic clock means nothing here.
            publish.accepted_at = self.now().mono;
        }
        let placed = Placed {
            position,
            unix: stamp.unix,
            publish: Arc::new(publish),
            sender: stamp.sender.filter(|_| own),
        };
        Some((placed, own))
    }
}
