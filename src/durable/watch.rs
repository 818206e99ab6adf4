//! Durable channels that homes of this node are attached to: snapshots that they wait for, and a look from time to time whether
//! the database stands where this node stands.
//!
//! That look finds what other nodes have published while Redis did not carry it, and what was committed although this node had
//! given it up. A difference is believed when it is seen a second time: a publication may be on its way.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use gateway_core::broker::{ChannelUpdate, MemberId, Scope, Snapshot};
use gateway_core::message::{ChannelName, Member, StreamPosition};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::read::Wanted;
use super::{Durable, rows};
use crate::broker::position::is_behind;
use crate::store::{Arg, StoreError, now_ms};

/// Channels that one statement asks for.
const CHUNK: usize = 256;
/// Publications that one statement may bring.
const PUBLICATIONS_MAX: usize = 8192;
/// Before work that failed is tried again.
const RETRY_INTERVAL: Duration = Duration::from_millis(200);

/// Members of other nodes.
pub(crate) type Members = Vec<(MemberId, Member)>;

#[derive(Debug)]
struct Attached {
    scope: Scope,
    /// A snapshot is owed.
    owed: bool,
    /// From this position on.
    known: Option<StreamPosition>,
    members: Option<Members>,
    /// Number of what was asked for last.
    asked: u64,
    /// Whether the home has had a snapshot.
    settled: bool,
    /// The newest position that the home was told.
    seen: Option<StreamPosition>,
    /// Where the database stood, when this node did not.
    doubted: Option<StreamPosition>,
    unlinked_told: bool,
    /// To be looked at once it has its snapshot.
    suspect: bool,
}

#[derive(Debug, Default)]
struct Table {
    channels: HashMap<ChannelName, Attached>,
    /// Channels that are owed a snapshot, in the order asked.
    work: VecDeque<ChannelName>,
    queued: HashSet<ChannelName>,
    /// Channels to look at without doubt.
    suspects: HashSet<ChannelName>,
    /// Newest number of something that was asked for: never the same again, also for a channel that was left meanwhile.
    asked: u64,
}

/// See the module's documentation.
#[derive(Debug, Default)]
pub(super) struct Watch {
    table: Mutex<Table>,
    more: Notify,
    suspicion: Notify,
}

impl Table {
    fn next_asked(&mut self) -> u64 {
        self.asked += 1;
        self.asked
    }

    fn queue(&mut self, channel: &ChannelName) {
        if self.queued.insert(Arc::clone(channel)) {
            self.work.push_back(Arc::clone(channel));
        }
    }
}

impl Watch {
    fn table(&self) -> MutexGuard<'_, Table> {
        // The table is only changed by whole operations, so a panic elsewhere leaves it sound.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Attached channels.
    pub(super) fn count(&self) -> usize {
        self.table().channels.len()
    }

    /// A home is attached from now on. With `wait` its snapshot waits for [`Self::members_are`].
    pub(super) fn attach(&self, channel: &ChannelName, scope: Scope, wait: bool) {
        let mut table = self.table();
        let attached = Attached {
            scope,
            owed: !wait,
            known: None,
            members: None,
            asked: table.next_asked(),
            settled: false,
            seen: None,
            doubted: None,
            unlinked_told: false,
            suspect: false,
        };
        table.channels.insert(Arc::clone(channel), attached);
        if !wait {
            table.queue(channel);
            self.more.notify_one();
        }
    }

    /// A home wants what comes after `known`.
    pub(super) fn sync(&self, channel: &ChannelName, scope: Scope, known: StreamPosition) {
        self.want(channel, |attached| {
            (attached.scope, attached.known) = (scope, Some(known));
        });
    }

    /// Members of other nodes, `None` when they cannot be had.
    pub(super) fn members_are(&self, channel: &ChannelName, members: Option<Members>) {
        self.want(channel, |attached| {
            attached.known = attached.known.or(attached.seen.filter(|_| attached.settled));
            attached.members = members;
        });
    }

    fn want(&self, channel: &ChannelName, change: impl FnOnce(&mut Attached)) {
        let mut table = self.table();
        let asked = table.next_asked();
        let Some(attached) = table.channels.get_mut(channel) else { return };
        change(attached);
        (attached.owed, attached.asked) = (true, asked);
        attached.unlinked_told = false;
        table.queue(channel);
        drop(table);
        self.more.notify_one();
    }

    /// A home has let a channel go.
    pub(super) fn leave(&self, channel: &ChannelName) {
        self.table().channels.remove(channel);
    }

    /// The home is being told of this position.
    pub(super) fn saw(&self, channel: &str, position: StreamPosition) {
        let mut table = self.table();
        if let Some(attached) = table.channels.get_mut(channel)
            && attached.seen.is_none_or(|seen| is_behind(seen, position))
        {
            attached.seen = Some(position);
        }
    }

    /// Publications of a channel may have been missed.
    pub(super) fn suspect(&self, channel: &ChannelName) {
        self.table().suspects.insert(Arc::clone(channel));
        self.suspicion.notify_one();
    }

    /// What to read next: as many channels as one statement may bring.
    fn next_chunk(&self) -> Vec<(Wanted, u64)> {
        let mut table = self.table();
        let mut chunk = Vec::new();
        let mut publications = 0;
        while chunk.len() < CHUNK && publications < PUBLICATIONS_MAX {
            let Some(channel) = table.work.pop_front() else { break };
            table.queued.remove(&channel);
            let Some(attached) = table.channels.get(&channel).filter(|attached| attached.owed)
            else {
                continue;
            };
            publications += attached.scope.history_size as usize;
            let wanted =
                Wanted { channel, size: attached.scope.history_size, known: attached.known };
            chunk.push((wanted, attached.asked));
        }
        if !table.work.is_empty() {
            self.more.notify_one();
        }
        chunk
    }

    /// A snapshot with `top` goes to the home, with these members.
    fn settle(&self, channel: &str, asked: u64, top: StreamPosition) -> Option<Members> {
        let mut table = self.table();
        let attached = table.channels.get_mut(channel)?;
        if attached.seen.is_none_or(|seen| is_behind(seen, top)) {
            attached.seen = Some(top);
        }
        if attached.asked != asked {
            return None;
        }
        (attached.owed, attached.settled) = (false, true);
        (attached.known, attached.doubted) = (None, None);
        let members = attached.members.take();
        if std::mem::take(&mut attached.suspect) {
            table.suspects.insert(channel.into());
            self.suspicion.notify_one();
        }
        members
    }

    /// What could not be read is read again; answers which homes are to hear that it takes long.
    fn put_back(&self, chunk: &[(Wanted, u64)]) -> Vec<ChannelName> {
        let mut untold = Vec::new();
        let mut table = self.table();
        for (Wanted { channel, .. }, _) in chunk {
            let Some(attached) = table.channels.get_mut(channel) else { continue };
            if !std::mem::replace(&mut attached.unlinked_told, true) {
                untold.push(Arc::clone(channel));
            }
            table.queue(channel);
        }
        untold
    }

    /// The database stands at `top`. Answers whether the home is behind.
    fn compare(&self, channel: &str, top: Option<StreamPosition>, sure: bool) -> bool {
        let mut table = self.table();
        let Some(attached) = table.channels.get_mut(channel) else { return false };
        let Some(seen) = attached.seen.filter(|_| !attached.owed) else {
            attached.suspect |= sure;
            return false;
        };
        let behind = |top: Option<StreamPosition>| top.is_none_or(|top| is_behind(seen, top));
        let doubted = attached.doubted.take();
        if !behind(top) {
            return false;
        }
        // Without a row the stream has begun anew, or will.
        if sure || top.is_none() || doubted.is_some_and(|doubted| behind(Some(doubted))) {
            return true;
        }
        attached.doubted = top;
        false
    }
}

impl Durable {
    /// Reads snapshots that are owed until the future is dropped.
    pub(super) async fn run_reader(self: Arc<Self>) {
        loop {
            self.watch.more.notified().await;
            loop {
                let chunk = self.watch.next_chunk();
                if chunk.is_empty() {
                    break;
                }
                if let Err(error) = self.read_chunk(&chunk).await {
                    tracing::debug!(category = "database", event = "snapshots_failed", %error);
                    for channel in self.watch.put_back(&chunk) {
                        self.mail.tell(&channel, ChannelUpdate::Unlinked);
                    }
                    tokio::time::sleep(RETRY_INTERVAL).await;
                }
            }
        }
    }

    async fn read_chunk(&self, chunk: &[(Wanted, u64)]) -> Result<(), StoreError> {
        let wanted: Vec<Wanted> = chunk.iter().map(|(wanted, _)| wanted.clone()).collect();
        let read = self.reader().snapshots(&wanted).await?;
        self.stats.snapshots.fetch_add(read.len() as u64, Ordering::Relaxed);
        for ((wanted, asked), (top, publications)) in chunk.iter().zip(read) {
            let members = self.watch.settle(&wanted.channel, *asked, top);
            let server = self.broker.get().map_or(0, |broker| broker.server_of(&wanted.channel));
            let snapshot = Snapshot { top, publications, server, members };
            self.mail.tell(&wanted.channel, ChannelUpdate::Snapshot(Box::new(snapshot)));
        }
        Ok(())
    }

    /// Compares positions: of suspects at once, of all attached channels once in each interval, evenly spread.
    pub(super) async fn run_checks(self: Arc<Self>) {
        let interval = self.section.check_interval;
        let mut round = Vec::<ChannelName>::new();
        let (mut touched, mut touches) = (Instant::now(), false);
        let mut pause = interval;
        let mut next = Instant::now() + pause;
        loop {
            tokio::select! {
                () = tokio::time::sleep_until(next) => {
                    if round.is_empty() {
                        round = self.watch.table().channels.keys().cloned().collect();
                        let chunks = round.len().div_ceil(CHUNK).max(1);
                        pause = interval / u32::try_from(chunks).unwrap_or(u32::MAX);
                        touches = touched.elapsed() >= self.section.position_ttl / 8;
                        if touches {
                            touched = Instant::now();
                        }
                    }
                    next = Instant::now() + pause;
                    let chunk = round.split_off(round.len().saturating_sub(CHUNK));
                    self.check(&chunk, false).await;
                    if touches {
                        self.touch(&chunk).await;
                    }
                }
                () = self.watch.suspicion.notified() => {
                    let suspects: Vec<ChannelName> = self.watch.table().suspects.drain().collect();
                    for chunk in suspects.chunks(CHUNK) {
                        self.check(chunk, true).await;
                    }
                }
            }
        }
    }

    /// Keeps positions of channels that somebody follows.
    async fn touch(&self, chunk: &[ChannelName]) {
        let names: Vec<&str> = chunk.iter().map(|channel| &**channel).collect();
        let Ok(names) = rows::json(&names) else { return };
        let sql = format!(
            "UPDATE archmesh_streams SET updated_at = $2 WHERE channel IN \
             (SELECT channel FROM archmesh_streams WHERE channel IN {} ORDER BY channel {})",
            self.store.dialect().texts("$1"),
            self.store.dialect().skip_locked()
        );
        if let Err(error) = self.store.write(sql, &[Arg::Text(&names), Arg::Int(now_ms())]).await {
            tracing::debug!(category = "database", event = "positions_untouched", %error);
        }
    }

    async fn check(&self, chunk: &[ChannelName], sure: bool) {
        if chunk.is_empty() {
            return;
        }
        let names: Vec<&str> = chunk.iter().map(|channel| &**channel).collect();
        // Without an answer the next round asks again.
        let Ok(positions) = self.reader().positions(&names).await else { return };
        for channel in chunk {
            let top = positions.get(&**channel).copied();
            if self.watch.compare(channel, top, sure) {
                self.stats.behind.fetch_add(1, Ordering::Relaxed);
                self.mail.tell(channel, ChannelUpdate::Behind);
            }
        }
    }
}
