//! Which channels the homes of this node are attached to, and the work of keeping that true.
//!
//! One task subscribes, reads snapshots and checks positions, in chunks; the table says what is still to be done for each
//! channel, so that whatever fails is simply done again. A channel is subscribed first, that is confirmed by the server,
//! and only then it is read: nothing can fall between.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use fred::types::Value;
use futures_util::stream::{FuturesUnordered, StreamExt};
use gateway_core::broker::{ChannelUpdate, MemberId, Scope, Snapshot};
use gateway_core::message::{ChannelName, Member, StreamPosition};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::position::{self, is_behind};
use super::scripts::{Script, ScriptError};
use super::{Common, record};

/// Channels that are worked on together.
const CHUNK: usize = 512;
/// Before work that failed is tried again.
const RETRY_INTERVAL: Duration = Duration::from_millis(200);
/// Longest wait before keys that Redis refuses are tried again.
const REFUSED_INTERVAL_MAX: Duration = Duration::from_secs(10);
/// From seeing a difference to believing it: a publication may be on its way.
const DOUBT: Duration = Duration::from_millis(500);

/// What is to be checked of a channel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Check {
    #[default]
    Nothing,
    /// Whether Redis stands where this node stands; a difference may be a publication on its way.
    Position,
    /// As before, for a difference that was seen already.
    Doubted(StreamPosition),
    /// As before, after publications may have been missed.
    Missed,
}

/// One attached channel.
#[derive(Debug)]
struct Link {
    scope: Scope,
    subscribed: bool,
    /// A snapshot is owed.
    owed: bool,
    /// From this position on.
    known: Option<StreamPosition>,
    check: Check,
    /// The newest position that was passed on to the home.
    seen: Option<StreamPosition>,
    unlinked_told: bool,
    /// Its stream is in the database: only members are read here.
    durable: bool,
    /// Times in a row that Redis refused its keys.
    refused: u32,
}

#[derive(Debug, Default)]
struct Table {
    links: HashMap<ChannelName, Link>,
    /// Channels with something to do.
    work: HashSet<ChannelName>,
    leaving: HashSet<ChannelName>,
    /// Channels to look at again, and when, in order.
    later: BTreeSet<(Instant, ChannelName)>,
}

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Links {
    common: Common,
    position_ttl: Duration,
    check_interval: Duration,
    table: Mutex<Table>,
    more: Notify,
    snapshots: AtomicU64,
    missed: AtomicU64,
}

impl Links {
    pub(super) fn new(common: Common, position_ttl: Duration, check_interval: Duration) -> Self {
        Self {
            common,
            position_ttl,
            check_interval,
            table: Mutex::default(),
            more: Notify::new(),
            snapshots: AtomicU64::new(0),
            missed: AtomicU64::new(0),
        }
    }

    /// Attached channels.
    pub(super) fn count(&self) -> usize {
        self.table().links.len()
    }

    /// Snapshots read, and channels that were found behind Redis.
    pub(super) fn counts(&self) -> [u64; 2] {
        [&self.snapshots, &self.missed].map(|count| count.load(Ordering::Relaxed))
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        // The table is only changed by whole operations, so a panic elsewhere leaves it sound.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A home wants a snapshot, and every publication from now on.
    pub(super) fn want(&self, channel: &ChannelName, scope: Scope, known: Option<StreamPosition>) {
        self.want_link(channel, (scope, known), false);
    }

    /// A home wants to hear of a durable channel from now on, and the members.
    pub(super) fn want_durable(&self, channel: &ChannelName, scope: Scope) {
        self.want_link(channel, (Scope { history_size: 0, ..scope }, None), true);
    }

    fn want_link(
        &self,
        channel: &ChannelName,
        (scope, known): (Scope, Option<StreamPosition>),
        durable: bool,
    ) {
        let mut table = self.table();
        table.leaving.remove(channel);
        let link = table.links.entry(ChannelName::clone(channel)).or_insert_with(|| Link {
            scope,
            subscribed: false,
            owed: false,
            known,
            check: Check::Nothing,
            seen: None,
            unlinked_told: false,
            durable,
            refused: 0,
        });
        link.scope = scope;
        (link.owed, link.known) = (!durable || scope.members, known);
        link.unlinked_told = false;
        table.work.insert(ChannelName::clone(channel));
        drop(table);
        self.more.notify_one();
    }

    /// A home has let a channel go.
    pub(super) fn leave(&self, channel: &ChannelName) {
        let mut table = self.table();
        table.links.remove(channel);
        table.work.remove(channel);
        table.leaving.insert(ChannelName::clone(channel));
        drop(table);
        self.more.notify_one();
    }

    /// A publication came from Redis. Answers the channel's own name when a home is attached to it, and whether its stream is
    /// in the database.
    pub(super) fn saw(
        &self,
        channel: &str,
        position: StreamPosition,
    ) -> Option<(ChannelName, bool)> {
        let mut table = self.table();
        let (name, _) = table.links.get_key_value(channel)?;
        let name = ChannelName::clone(name);
        let link = table.links.get_mut(channel)?;
        if position.offset > 0 && !link.durable {
            link.seen = Some(position);
        }
        Some((name, link.durable))
    }

    /// The connection of the subscriber is a new one: everything is subscribed anew, then checked.
    pub(super) fn connection_is_new(&self) {
        self.mark_all(true);
    }

    /// Members of a node were not believed and are now: everything is read again.
    pub(super) fn read_all(&self) {
        self.give_work(None, |link| {
            if link.scope.members {
                (link.owed, link.known) = (true, link.seen);
            }
            link.scope.members
        });
    }

    /// Publications may have been missed.
    pub(super) fn may_have_missed(&self) {
        self.mark_all(false);
    }

    fn mark_all(&self, resubscribe: bool) {
        self.give_work(None, |link| {
            link.subscribed &= !resubscribe;
            link.check = Check::Missed;
            true
        });
    }

    /// Changes these links, or all, and puts those to work of which `change` says so.
    fn give_work(&self, only: Option<&[ChannelName]>, change: impl Fn(&mut Link) -> bool) {
        let mut table = self.table();
        let Table { links, work, .. } = &mut *table;
        let mut visit = |channel: &ChannelName, link: &mut Link| {
            if change(link) {
                work.insert(ChannelName::clone(channel));
            }
        };
        match only {
            None => links.iter_mut().for_each(|(channel, link)| visit(channel, link)),
            Some(channels) => {
                for channel in channels {
                    if let Some(link) = links.get_mut(channel) {
                        visit(channel, link);
                    }
                }
            }
        }
        drop(table);
        self.more.notify_one();
    }

    /// Checks every attached channel once in each interval, evenly spread, until the future is dropped.
    pub(super) async fn check_positions(&self) {
        loop {
            // Without an answer the next round asks again.
            let _verified = self.common.scripts.verify(&self.common.redis).await;
            let channels: Vec<ChannelName> = self.table().links.keys().cloned().collect();
            let chunks = channels.len().div_ceil(CHUNK).max(1);
            let pause = self.check_interval / u32::try_from(chunks).unwrap_or(u32::MAX);
            for chunk in channels.chunks(CHUNK) {
                self.give_work(Some(chunk), |link| {
                    let is_idle = link.check == Check::Nothing;
                    if is_idle {
                        link.check = Check::Position;
                    }
                    is_idle
                });
                tokio::time::sleep(pause).await;
            }
            if channels.is_empty() {
                tokio::time::sleep(self.check_interval).await;
            }
        }
    }

    /// Does what is to be done until the future is dropped.
    pub(super) async fn run(&self) {
        loop {
            let later = self.table().later.first().map(|(at, _)| *at);
            tokio::select! {
                () = self.more.notified() => {}
                () = sleep_until(later) => self.look_again(),
            }
            while let Some(chunk) = self.next_chunk().await {
                if self.work_on(&chunk).await.is_err() {
                    self.put_back(&chunk);
                    tokio::time::sleep(RETRY_INTERVAL).await;
                }
            }
        }
    }

    fn look_again(&self) {
        let mut table = self.table();
        let Table { work, later, .. } = &mut *table;
        while later.first().is_some_and(|(at, _)| *at <= Instant::now()) {
            work.extend(later.pop_first().map(|(_, channel)| channel));
        }
    }

    async fn next_chunk(&self) -> Option<Vec<ChannelName>> {
        let leaving: Vec<ChannelName> = self.table().leaving.drain().collect();
        if !leaving.is_empty() {
            let topics = leaving.iter().map(|channel| self.common.names.topic(channel)).collect();
            // One that cannot be left sends what nobody takes; it ends with the connection.
            let _left = self.common.subscriber.unsubscribe(topics).await;
        }
        let mut table = self.table();
        let chunk: Vec<ChannelName> = table.work.iter().take(CHUNK).cloned().collect();
        for channel in &chunk {
            table.work.remove(channel);
        }
        (!chunk.is_empty()).then_some(chunk)
    }

    /// What is left to do for `chunk` is done again; homes that wait for a first snapshot are told that it takes long.
    fn put_back(&self, chunk: &[ChannelName]) {
        self.give_work(Some(chunk), |link| {
            link.refused == 0 && (!link.subscribed || link.owed || link.check != Check::Nothing)
        });
        self.tell_unlinked(chunk);
    }

    fn tell_unlinked(&self, chunk: &[ChannelName]) {
        let mut unlinked = Vec::new();
        let mut table = self.table();
        for channel in chunk {
            let Some(link) = table.links.get_mut(channel) else { continue };
            if link.owed && !link.unlinked_told {
                link.unlinked_told = true;
                unlinked.push((ChannelName::clone(channel), link.durable));
            }
        }
        drop(table);
        for (channel, durable) in unlinked {
            match &self.common.durable {
                Some(streams) if durable => streams.members_are(&channel, None),
                _ => self.common.mail.tell(&channel, ChannelUpdate::Unlinked),
            }
        }
    }

    async fn work_on(&self, chunk: &[ChannelName]) -> Result<(), ScriptError> {
        self.subscribe(chunk).await?;
        self.read(chunk).await?;
        self.check(chunk).await
    }

    fn select(&self, chunk: &[ChannelName], wanted: impl Fn(&Link) -> bool) -> Vec<ChannelName> {
        let table = self.table();
        let is_wanted = |channel: &&ChannelName| table.links.get(*channel).is_some_and(&wanted);
        chunk.iter().filter(is_wanted).cloned().collect()
    }

    async fn subscribe(&self, chunk: &[ChannelName]) -> Result<(), ScriptError> {
        let fresh = self.select(chunk, |link| !link.subscribed);
        if fresh.is_empty() {
            return Ok(());
        }
        let connection = self.common.subscriber.connection();
        let topics = fresh.iter().map(|channel| self.common.names.topic(channel)).collect();
        self.common.subscriber.subscribe(topics).await?;
        if self.common.subscriber.connection() != connection {
            // It was made on a connection that is gone; all are marked again.
            return Ok(());
        }
        let mut table = self.table();
        let mut late = Vec::new();
        for channel in &fresh {
            if let Some(link) = table.links.get_mut(channel) {
                link.subscribed = true;
                late.extend((link.durable && !link.owed).then_some(channel));
            }
        }
        drop(table);
        for (channel, durable) in late.into_iter().zip(self.common.durable.iter().cycle()) {
            durable.suspect(channel);
        }
        Ok(())
    }

    async fn read(&self, chunk: &[ChannelName]) -> Result<(), ScriptError> {
        let owed = self.select(chunk, |link| link.owed);
        let mut reads: FuturesUnordered<_> =
            owed.iter().map(async |channel| (channel, self.read_one(channel).await)).collect();
        let mut result = Ok(());
        while let Some((channel, read)) = reads.next().await {
            match read {
                Err(error) if is_refusal(&error) => self.note_refusal(channel, &error),
                Err(error) => result = Err(error),
                Ok(()) => self.note_accepted(channel),
            }
        }
        result
    }

    /// Redis refuses what it has under a channel's names, such as a key of another type that somebody else has put there. That
    /// does not pass by itself: the channel waits longer each time, and the others do not wait for it.
    fn note_refusal(&self, channel: &ChannelName, error: &ScriptError) {
        let mut table = self.table();
        let Some(link) = table.links.get_mut(channel) else { return };
        link.refused = link.refused.saturating_add(1);
        let factor = 1_u32.checked_shl(link.refused).unwrap_or(u32::MAX);
        let delay = RETRY_INTERVAL.saturating_mul(factor).min(REFUSED_INTERVAL_MAX);
        if link.refused == 1 {
            tracing::warn!(
                category = "error", event = "redis_keys_refused", channel = %channel, %error,
                mend = "another program uses keys of this channel in the same Redis; delete them, or change redis.prefix"
            );
        }
        table.later.insert((Instant::now() + delay, ChannelName::clone(channel)));
        drop(table);
        self.tell_unlinked(std::slice::from_ref(channel));
    }

    fn note_accepted(&self, channel: &ChannelName) {
        if let Some(link) = self.table().links.get_mut(channel)
            && std::mem::take(&mut link.refused) > 0
        {
            tracing::info!(category = "error", event = "redis_keys_accepted", channel = %channel);
        }
    }

    async fn read_one(&self, channel: &ChannelName) -> Result<(), ScriptError> {
        let Some((scope, known, durable)) = self
            .table()
            .links
            .get(channel)
            .filter(|link| link.owed)
            .map(|link| (link.scope, link.known, link.durable))
        else {
            return Ok(());
        };
        let parts = || self.read_parts(channel, scope, known);
        let answer =
            self.common.scripts.call_loaded(&self.common.redis, Script::Read, parts).await?;
        self.snapshots.fetch_add(1, Ordering::Relaxed);
        let Some(snapshot) = self.snapshot(answer, scope) else {
            tracing::error!(category = "error", event = "redis_snapshot_unreadable", channel = %channel);
            return Ok(());
        };
        let mut table = self.table();
        let Some(link) = table.links.get_mut(channel) else { return Ok(()) };
        if link.known == known {
            link.owed = false;
        }
        if let (Some(streams), true) = (&self.common.durable, durable) {
            drop(table);
            streams.members_are(channel, snapshot.members);
            return Ok(());
        }
        if link.seen.is_none_or(|seen| is_behind(seen, snapshot.top)) {
            link.seen = Some(snapshot.top);
        }
        drop(table);
        self.common.mail.tell(channel, ChannelUpdate::Snapshot(Box::new(snapshot)));
        Ok(())
    }

    fn read_parts(
        &self,
        channel: &str,
        scope: Scope,
        known: Option<StreamPosition>,
    ) -> (Vec<String>, Vec<Value>) {
        let names = self.common.names.keys(channel);
        let (epoch, offset) = known
            .map_or((String::new(), 0), |known| (known.epoch.as_str().to_owned(), known.offset));
        let arguments = vec![
            super::new_epoch().into(),
            self.position_ttl.as_millis().to_string().into(),
            epoch.into(),
            offset.to_string().into(),
            scope.history_size.to_string().into(),
            (if scope.members { "1" } else { "0" }).into(),
        ];
        (vec![names.meta, names.stream, names.members], arguments)
    }

    fn snapshot(&self, answer: Value, scope: Scope) -> Option<Snapshot> {
        let Value::Array(items) = answer else { return None };
        let mut items = items.into_iter();
        let top = position::read(&items.next()?.as_str()?)?;
        let count: usize = items.next()?.as_str()?.parse().ok()?;
        let oldest = super::unix_now().saturating_sub(scope.history_ttl);
        let mut publications = Vec::with_capacity(count.min(CHUNK));
        for _ in 0..count {
            let offset: u64 = items.next()?.as_str()?.parse().ok()?;
            let payload = bytes_of(items.next()?)?;
            let position = StreamPosition { offset, ..top };
            match self.common.nodes.placed(position, payload) {
                Some(placed) if placed.unix >= oldest => publications.push(placed),
                // Expired, though newer ones keep the stream alive.
                Some(_) => {}
                None => tracing::warn!(category = "error", event = "publication_unreadable"),
            }
        }
        let members = scope.members.then(|| self.members(items));
        Some(Snapshot { top, publications, server: self.common.server, members })
    }

    fn members(&self, mut items: impl Iterator<Item = Value>) -> Vec<(MemberId, Member)> {
        let mut members = Vec::new();
        while let (Some(field), Some(member)) = (items.next(), items.next()) {
            let id = bytes_of(field).and_then(|field| record::member_id(&field));
            let member = bytes_of(member).and_then(|mut bytes| record::take_member(&mut bytes));
            if let (Some(id), Some(member)) = (id, member)
                && self.common.nodes.note_foreign(id.node)
            {
                members.push((id, member));
            }
        }
        members
    }

    async fn check(&self, chunk: &[ChannelName]) -> Result<(), ScriptError> {
        let checked = self.select(chunk, |link| link.check != Check::Nothing && !link.owed);
        // A Redis Cluster takes keys of one channel at a time.
        let at_once = if self.common.redis.is_clustered() { 1 } else { CHUNK };
        let mut calls: FuturesUnordered<_> =
            checked.chunks(at_once).map(async |part| (part, self.check_part(part).await)).collect();
        let mut refused = Vec::new();
        while let Some((part, checked)) = calls.next().await {
            match checked {
                Err(error) if is_refusal(&error) => refused.extend(part),
                checked => checked?,
            }
        }
        // One of them is the cause.
        for channel in refused {
            match self.check_part(std::slice::from_ref(channel)).await {
                Err(error) if is_refusal(&error) => self.note_refusal(channel, &error),
                checked => checked?,
            }
        }
        Ok(())
    }

    async fn check_part(&self, part: &[ChannelName]) -> Result<(), ScriptError> {
        let parts = || {
            let keys = part.iter().flat_map(|channel| {
                let names = self.common.names.keys(channel);
                [names.meta, names.stream, names.members]
            });
            let ttl = self.position_ttl.as_millis().to_string();
            (keys.collect(), vec![super::new_epoch().into(), ttl.into()])
        };
        let answer =
            self.common.scripts.call_loaded(&self.common.redis, Script::Check, parts).await?;
        let Value::Array(positions) = answer else { return Ok(()) };
        for (channel, text) in part.iter().zip(positions) {
            self.note_accepted(channel);
            let Some(top) = text.as_str().and_then(|text| position::read(&text)) else { continue };
            if self.compare(channel, top) {
                let again = (Instant::now() + DOUBT, ChannelName::clone(channel));
                self.table().later.insert(again);
            }
        }
        Ok(())
    }

    /// Redis stands at `top`. Answers whether that is to be looked at again.
    fn compare(&self, channel: &ChannelName, top: StreamPosition) -> bool {
        let mut table = self.table();
        let Some(link) = table.links.get_mut(channel) else { return false };
        let check = std::mem::take(&mut link.check);
        if let (Some(streams), true) = (&self.common.durable, link.durable) {
            if check == Check::Missed {
                streams.suspect(channel);
            }
            return false;
        }
        let Some(seen) = link.seen else { return false };
        let behind = match check {
            Check::Position if is_behind(seen, top) => {
                link.check = Check::Doubted(top);
                return true;
            }
            Check::Nothing | Check::Position => false,
            Check::Doubted(doubted) => is_behind(seen, doubted),
            Check::Missed => is_behind(seen, top),
        };
        if behind {
            // Perhaps the subscription is what was lost: a slot that moved to another node of a Redis Cluster ends it.
            link.subscribed = false;
            table.work.insert(ChannelName::clone(channel));
            drop(table);
            self.more.notify_one();
            self.missed.fetch_add(1, Ordering::Relaxed);
            self.common.mail.tell(channel, ChannelUpdate::Behind);
        }
        false
    }
}

/// Whether the server answers and does not do what it was asked, so that the keys are the cause.
fn is_refusal(error: &ScriptError) -> bool {
    matches!(error, ScriptError::Redis(error) if error.is_refusal())
}

/// Never, when there is no time.
async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

pub(super) fn bytes_of(value: Value) -> Option<Bytes> {
    match value {
        Value::Bytes(bytes) => Some(bytes),
        Value::String(text) => Some(text.into_inner()),
        _ => None,
    }
}
