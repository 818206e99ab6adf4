//! The log of events: what happened to sessions, channels and tokens, who changed what over the API, in one order for the whole
//! cluster, and the webhooks that are fed from it.
//!
//! What happens waits in a bounded [`Queue`]; the [`recorder`] writes it in batches. Ids are given out inside the transaction that
//! writes, under one lock, so they become visible in their order and a reader that remembers the last one misses nothing. Under
//! the same lock the table of occupancy is changed: a channel is occupied with its first row and vacated with its last, whatever
//! other nodes do at the time.
//!
//! A node shows that it lives by writing. What one that died has left behind (sessions, channels, leases) is ended by another,
//! once ([`nodes`]). All of it is known to the database alone, so the rows and the verdict about them cannot differ.

mod entry;
mod nodes;
mod queue;
mod reads;
mod recorder;
mod retention;
mod sessions;
mod webhooks;
mod write;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use gateway_core::occurrence::{Happening, Occurrence, PlacedMessage};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;

use crate::config::Config;
use crate::config::sections::{EventKind, EventsSection};
use crate::logging::LogSampler;
use crate::notify::now_ms;
use crate::notify::senders::SetupError;
use crate::store::{Store, StoreError, Streak};
pub(crate) use entry::Entry;
use queue::Queue;
pub(crate) use reads::{Event, Filter};
pub(crate) use sessions::{LastSeen, Session, open_last_seen};
pub(crate) use webhooks::{DeadBatch, Endpoint, EndpointState};

/// A set of kinds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Kinds(u16);

impl Kinds {
    /// Those for which `is_in` says so.
    pub(crate) fn of(is_in: impl Fn(EventKind) -> bool) -> Self {
        let bit = |(index, kind): (usize, &EventKind)| u16::from(is_in(*kind)) << index;
        Self(EventKind::ALL.iter().enumerate().map(bit).sum())
    }

    /// Whether the kind is one of them.
    pub(crate) fn contains(self, kind: EventKind) -> bool {
        let index = EventKind::ALL.iter().position(|known| *known == kind).unwrap_or_default();
        self.0 & (1 << index) != 0
    }

    /// The names of those in it.
    fn names(self) -> Vec<&'static str> {
        EventKind::ALL
            .iter()
            .filter(|kind| self.contains(**kind))
            .map(|kind| kind.as_str())
            .collect()
    }
}

/// Numbers of the log.
#[derive(Debug, Default)]
pub(crate) struct EventStats {
    /// Events that were written, in order of [`EventKind::ALL`].
    recorded: [AtomicU64; EventKind::ALL.len()],
    /// Events that found no room, in the same order.
    dropped: [AtomicU64; EventKind::ALL.len()],
    /// Transactions that wrote some.
    pub batches: AtomicU64,
    /// Nodes whose sessions and channels this one has ended.
    pub nodes_ended: AtomicU64,
    /// Times this node was taken for gone.
    pub fenced: AtomicU64,
    /// Batches in a row that could not be written.
    failures: Streak,
}

impl EventStats {
    fn add(counters: &[AtomicU64], kind: EventKind, count: u64) {
        let index = EventKind::ALL.iter().position(|known| *known == kind).unwrap_or_default();
        counters[index].fetch_add(count, Ordering::Relaxed);
    }

    /// Events that were written, and that found no room, by kind.
    pub(crate) fn counts(&self) -> impl Iterator<Item = (EventKind, u64, u64)> + '_ {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        EventKind::ALL.into_iter().enumerate().map(move |(index, kind)| {
            (kind, load(&self.recorded[index]), load(&self.dropped[index]))
        })
    }
}

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Events {
    store: Arc<Store>,
    /// What is kept of the sessions between requests.
    last_seen: LastSeen,
    section: EventsSection,
    /// Between two looks for what other nodes have written.
    poll_interval: Duration,
    node_name: String,
    /// This run of the node in the database; another one after it was taken for gone.
    node: AtomicI64,
    kinds: Kinds,
    queue: Queue,
    refusals: LogSampler,
    /// Bounds the log lines about events that the database will never take.
    hopeless: LogSampler,
    is_full: AtomicBool,
    endpoints: BTreeMap<String, Arc<Endpoint>>,
    /// Told after each batch.
    written: Notify,
    /// `true` when the node stops.
    stopping: watch::Sender<bool>,
    /// `true` when everything is written.
    finished: watch::Sender<bool>,
    stats: EventStats,
}

impl Events {
    /// The log in `store`; `None` when nothing is recorded. Nothing runs before [`Self::spawn`].
    ///
    /// # Errors
    /// An endpoint that cannot be used.
    pub(crate) fn new(
        config: &Config,
        store: Arc<Store>,
        last_seen: LastSeen,
    ) -> Result<Option<Arc<Self>>, SetupError> {
        if !config.has_events() {
            return Ok(None);
        }
        let mut endpoints = BTreeMap::new();
        for (name, section) in &config.webhooks {
            endpoints.insert(name.clone(), Arc::new(Endpoint::new(name, section)?));
        }
        let section = config.events.clone();
        Ok(Some(Arc::new(Self {
            store,
            last_seen,
            poll_interval: config.database.poll_interval,
            node_name: config.node.name.clone(),
            node: AtomicI64::new(nodes::new_id()),
            kinds: Kinds::of(|kind| config.records(kind)),
            queue: Queue::new(section.waiting_max as usize, section.waiting_bytes_max),
            refusals: LogSampler::new(section.refusals_per_second),
            hopeless: LogSampler::new(config.log.sample_per_second),
            is_full: AtomicBool::new(false),
            endpoints,
            written: Notify::new(),
            stopping: watch::Sender::new(false),
            finished: watch::Sender::new(false),
            stats: EventStats::default(),
            section,
        })))
    }

    /// Starts the tasks of the node; once.
    pub(crate) fn spawn(self: &Arc<Self>, tasks: &mut JoinSet<()>) {
        tasks.spawn(recorder::record(Arc::clone(self)));
        tasks.spawn(nodes::watch(Arc::clone(self)));
        tasks.spawn(retention::clean(Arc::clone(self)));
        for endpoint in self.endpoints.values() {
            tasks.spawn(webhooks::deliver(Arc::clone(self), Arc::clone(endpoint)));
        }
    }

    /// Makes the cursors of new endpoints, so that they begin with what happens from now on.
    ///
    /// # Errors
    /// The database is away.
    pub(crate) async fn prepare(&self) -> Result<(), StoreError> {
        for name in self.endpoints.keys() {
            self.store.run(webhooks::make_cursor(&self.store, name)).await?;
        }
        Ok(())
    }

    /// Writes what waits and takes this node out of the database, within `events.flush_timeout`. The tasks must still run.
    pub(crate) async fn finish(&self) {
        self.stopping.send_replace(true);
        let mut finished = self.finished.subscribe();
        let limit = self.section.flush_timeout;
        let done = tokio::time::timeout(limit, finished.wait_for(|finished| *finished)).await;
        if done.is_err() {
            let waiting = self.queue.waiting();
            tracing::warn!(
                category = "events",
                event = "events_not_flushed",
                waiting,
                mend = "see whether the database answers, or raise events.flush_timeout"
            );
        }
    }

    /// A shard tells that something happened.
    pub(crate) fn note(&self, occurrence: &Occurrence) {
        let at = occurrence.at.as_millis() as i64;
        let left_out = match &occurrence.what {
            Happening::Watched { channel, watched } => {
                return self.queue.note_watched(channel, *watched, at);
            }
            Happening::AuthenticationFailed { .. } => match self.refusals.pass(Instant::now()) {
                Some(left_out) => left_out,
                None => return,
            },
            _ => 0,
        };
        if let Some(entry) = Entry::of_happening(at, &occurrence.what, left_out) {
            self.push(entry);
        }
    }

    /// A client's message has its place at the broker.
    pub(crate) fn note_message(&self, message: PlacedMessage) {
        if self.kinds.contains(EventKind::Message) {
            let what = Happening::Message(Box::new(message));
            let at = Duration::from_millis(now_ms() as u64);
            self.note(&Occurrence { at, what });
        }
    }

    /// Records an event that the control plane knows of itself, if its kind is recorded.
    pub(crate) fn record(&self, entry: Entry) {
        if self.kinds.contains(entry.kind) {
            self.push(entry);
        }
    }

    /// Whether events of the kind are recorded.
    pub(crate) fn records(&self, kind: EventKind) -> bool {
        self.kinds.contains(kind)
    }

    fn push(&self, entry: Entry) {
        let kind = entry.kind;
        let is_full = !self.queue.push(entry);
        if is_full {
            EventStats::add(&self.stats.dropped, kind, 1);
        }
        if is_full != self.is_full.load(Ordering::Relaxed)
            && is_full != self.is_full.swap(is_full, Ordering::Relaxed)
        {
            if is_full {
                tracing::warn!(
                    category = "events",
                    event = "events_dropped",
                    kind = kind.as_str(),
                    mend = "see whether the database answers, or raise events.waiting_max; archmesh_events_dropped_total counts them"
                );
            } else {
                tracing::info!(category = "events", event = "events_taken_again");
            }
        }
    }

    fn node(&self) -> i64 {
        self.node.load(Ordering::Relaxed)
    }

    /// Events that wait, and what they hold in bytes.
    pub(crate) fn waiting(&self) -> (usize, usize) {
        (self.queue.waiting(), self.queue.bytes())
    }

    /// Channels of this node whose occupancy is recorded.
    pub(crate) fn channels(&self) -> usize {
        self.queue.channels()
    }

    /// Whether the database does not take what waits.
    pub(crate) fn is_failing(&self) -> bool {
        self.stats.failures.is_failing()
    }

    /// Whether sessions are kept.
    pub(crate) fn keeps_sessions(&self) -> bool {
        self.section.sessions
    }

    /// Most of anything in one answer of the API.
    pub(crate) fn page_max(&self) -> u32 {
        self.section.page_max
    }

    /// Endpoints by name.
    pub(crate) fn endpoints(&self) -> impl Iterator<Item = &Arc<Endpoint>> {
        self.endpoints.values()
    }

    /// An endpoint.
    pub(crate) fn endpoint(&self, name: &str) -> Option<&Arc<Endpoint>> {
        self.endpoints.get(name)
    }

    /// Numbers since the start.
    pub(crate) fn stats(&self) -> &EventStats {
        &self.stats
    }
}
