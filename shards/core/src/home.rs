//! Channels that this shard is home of: the single writer of their streams.
//!
//! A home assigns offsets, keeps history and presence, encodes each publication once and says which shards get it.
//! It knows neither sockets nor sessions: what must be sent is handed back as [`Effect`]s.

mod apply;
mod budget;
mod channel;
mod link;
mod pages;

use std::collections::{BinaryHeap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use foldhash::quality::FixedState;
use hashbrown::HashMap;

use crate::broker::{BrokerOp, BrokerRequest};
use crate::history::Held;
use crate::ids::ShardId;
use crate::message::{ChannelInfo, ChannelName, ChannelReply, ShardMessage};
use crate::metrics::ShardMetrics;
use crate::name_index::NameIndex;
use crate::occurrence::PlacedMessage;
use crate::random::Random;
use crate::settings::Settings;
use crate::time::{Moment, Now};
use crate::ws::deflate::Deflater;

use budget::HistoryBudget;
use channel::HomeChannel;

/// Shards per node: the width of the interest sets.
pub const SHARDS_MAX: u16 = 256;

/// Channels looked at to make room for a new one.
const ROOM_TRIES: usize = 256;

/// What a home wants done.
#[derive(Debug)]
pub enum Effect {
    /// Give a message to a shard, perhaps this one.
    Send(ShardId, ShardMessage),
    /// Answer the one who asked.
    Reply(ChannelReply),
    /// Ask the broker between nodes.
    Broker(BrokerRequest),
    /// Tell the control plane that a client's message has its place.
    Message(Box<PlacedMessage>),
    /// Tell the control plane that the channel is watched now, or is not any more.
    Watched(ChannelName, bool),
    /// Call [`Homes::handle_timer`] with this key at that monotonic time.
    Timer(Duration, HomeKey),
}

/// Index of a home channel with the generation of the index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HomeKey {
    index: u32,
    generation: u32,
}

/// What a home needs from its shard while it handles something.
#[derive(Debug)]
pub struct HomeEnv<'a> {
    /// Now.
    pub now: Now,
    /// Configuration.
    pub settings: &'a Settings,
    /// Random stream of the shard.
    pub random: &'a mut Random,
    /// Counters of the shard.
    pub metrics: &'a mut ShardMetrics,
    /// Compressor of the shard.
    pub deflater: &'a mut Deflater,
    /// Receives what must be done.
    pub effects: &'a mut Vec<Effect>,
}

#[derive(Debug)]
struct Slot {
    generation: u32,
    channel: Option<HomeChannel>,
}

fn name_in(slots: &[Slot], index: u32) -> &str {
    let channel = slots.get(index as usize).and_then(|slot| slot.channel.as_ref());
    channel.map_or("", |channel| &channel.name)
}

/// All channels with this shard as home.
#[derive(Debug)]
pub struct Homes {
    seed: u64,
    slots: Vec<Slot>,
    free: Vec<u32>,
    by_name: NameIndex,
    budget: HistoryBudget,
    last_seen: LastSeen,
    /// Where the last search for a channel to forget ended.
    hand: u32,
    /// Servers of the broker that cannot be reached.
    away: Vec<u16>,
}

impl Homes {
    /// None yet; `seed` keys the hashes.
    pub fn new(seed: u64) -> Self {
        Self {
            seed,
            slots: Vec::new(),
            free: Vec::new(),
            by_name: NameIndex::new(seed),
            budget: HistoryBudget::default(),
            last_seen: LastSeen::new(seed),
            hand: 0,
            away: Vec::new(),
        }
    }

    fn channel_mut(&mut self, index: u32) -> Option<&mut HomeChannel> {
        self.slots.get_mut(index as usize)?.channel.as_mut()
    }

    fn key(&self, index: u32) -> HomeKey {
        HomeKey { index, generation: self.slots[index as usize].generation }
    }

    fn find(&self, name: &str) -> Option<u32> {
        self.by_name.find(name, |index| name_in(&self.slots, index))
    }

    /// Index of the channel, made when it is new; `None` when the shard holds all the channels it may.
    fn find_or_create(&mut self, env: &mut HomeEnv<'_>, name: &ChannelName) -> Option<u32> {
        if let Some(index) = self.find(name) {
            return Some(index);
        }
        if self.by_name.len() >= env.settings.limits.channels_per_shard_max as usize
            && !self.make_room(env)
        {
            return None;
        }
        let channel = HomeChannel::new(Arc::clone(name), env);
        let index = if let Some(index) = self.free.pop() {
            self.slots[index as usize].channel = Some(channel);
            index
        } else {
            self.slots.push(Slot { generation: 0, channel: Some(channel) });
            self.slots.len() as u32 - 1
        };
        self.by_name.insert(index, |index| name_in(&self.slots, index));
        env.metrics.channels = self.by_name.len() as u64;
        Some(index)
    }

    /// Forgets a channel that nobody is subscribed to, with its history, so that channels which are only published to
    /// cannot keep others out. Looks at a few, going around; answers whether one was found.
    fn make_room(&mut self, env: &mut HomeEnv<'_>) -> bool {
        for _ in 0..ROOM_TRIES {
            self.hand = (self.hand + 1) % self.slots.len().max(1) as u32;
            let unwatched = self
                .slots
                .get(self.hand as usize)
                .is_some_and(|slot| slot.channel.as_ref().is_some_and(HomeChannel::is_removable));
            if unwatched {
                self.remove(env, self.hand);
                return true;
            }
        }
        false
    }

    /// Something that was asked for with [`Effect::Timer`] is due.
    pub fn handle_timer(&mut self, env: &mut HomeEnv<'_>, key: HomeKey) {
        if self.slots.get(key.index as usize).is_none_or(|slot| slot.generation != key.generation) {
            return;
        }
        let now = env.now;
        let Some(channel) = self.channel_mut(key.index) else { return };
        channel.timer_at = None;
        channel.expire_keys(now.mono);
        self.expire_history(env, key.index);
        let Some(channel) = self.channel_mut(key.index) else { return };
        if channel
            .presence
            .as_ref()
            .is_some_and(|p| p.flush_at.is_some_and(|at| at.get() <= now.mono))
        {
            channel.push_presence_stats(env);
        }
        let idle_ttl = idle_ttl(env.settings);
        if channel.is_idle() && channel.used_at.get() + idle_ttl <= now.mono {
            self.remove(env, key.index);
            return;
        }
        self.schedule(env, key.index);
    }

    /// Asks for the next timer of the channel unless an earlier one is on its way.
    fn schedule(&mut self, env: &mut HomeEnv<'_>, index: u32) {
        let key = self.key(index);
        let idle_ttl = idle_ttl(env.settings);
        let Some(channel) = self.channel_mut(index) else { return };
        let idle = channel.is_idle().then_some(channel.used_at.get() + idle_ttl);
        let flush =
            channel.presence.as_ref().and_then(|presence| presence.flush_at).map(Moment::get);
        let keys = channel.next_key_expiry();
        let wanted = [channel.history.next_expiry(), keys, idle, flush].into_iter().flatten().min();
        let Some(at) = wanted else { return };
        if channel.timer_at.is_none_or(|scheduled| at < scheduled.get()) {
            channel.timer_at = Some(at.into());
            env.effects.push(Effect::Timer(at, key));
        }
    }

    fn remove(&mut self, env: &mut HomeEnv<'_>, index: u32) {
        self.by_name.remove(index, |index| name_in(&self.slots, index));
        let slot = &mut self.slots[index as usize];
        if let Some(channel) = slot.channel.take() {
            slot.generation = slot.generation.wrapping_add(1);
            self.budget.changed(channel.history.held(), Held::default());
            if channel.link.is_linked() {
                channel.ask(env, BrokerOp::Detach);
            }
            self.free.push(index);
            env.metrics.channels = self.by_name.len() as u64;
        }
    }

    /// The `Behind` message for a `shard` that a `Deliver` did not reach, if it still has subscribers there.
    pub fn behind(&self, channel: &ChannelName, shard: ShardId) -> Option<ShardMessage> {
        let index = self.find(channel)?;
        let home = self.slots[index as usize].channel.as_ref()?;
        home.interest
            .contains(shard)
            .then(|| ShardMessage::Behind { channel: Arc::clone(channel), top: home.position })
    }

    /// Whether somebody on this node watches the channel.
    pub fn is_watched(&self, channel: &str) -> bool {
        self.find(channel)
            .and_then(|index| self.slots[index as usize].channel.as_ref())
            .is_some_and(|channel| !channel.interest.is_empty())
    }

    /// Settings have changed: look every namespace up again.
    pub fn reconfigure(&mut self, settings: &Settings) {
        for channel in self.slots.iter_mut().filter_map(|slot| slot.channel.as_mut()) {
            channel.namespace = channel::namespace_of(&channel.name, settings);
        }
    }

    /// Channels whose name begins with `prefix`, the first `limit` by name, in that order: lists of several shards and
    /// nodes can be added up only when each begins alike.
    pub fn list(&self, prefix: &str, limit: usize) -> Vec<ChannelInfo> {
        let channels = self.slots.iter().enumerate().filter_map(|(index, slot)| {
            slot.channel.as_ref().map(|channel| (&*channel.name, index, channel))
        });
        let mut first = BinaryHeap::new();
        for (name, index, channel) in channels {
            if !name.starts_with(prefix) || channel.is_idle() {
                continue;
            }
            if first.len() < limit {
                first.push((name, index));
            } else if let Some(mut last) = first.peek_mut()
                && name < last.0
            {
                *last = (name, index);
            }
        }
        let indexes = first.into_sorted_vec().into_iter().map(|(_, index)| index);
        indexes.filter_map(|index| Some(self.slots[index].channel.as_ref()?.info())).collect()
    }

    /// Brings the gauges of `metrics` up to date.
    pub fn measure(&self, metrics: &mut ShardMetrics) {
        metrics.channels = self.by_name.len() as u64;
        metrics.history_publications = self.budget.publications() as u64;
        metrics.history_bytes = self.budget.bytes() as u64;
    }
}

/// How long a channel that nobody watches is remembered.
fn idle_ttl(settings: &Settings) -> Duration {
    settings.broker.map_or(settings.limits.channel_idle_ttl, |broker| broker.detach_delay)
}

/// When users were last online, by the home of their user channel. Bounded: the one gone longest is forgotten first.
#[derive(Debug)]
struct LastSeen {
    by_user: HashMap<ChannelName, Duration, FixedState>,
    /// In the order of leaving; an entry whose time is not the user's any more is stale.
    order: VecDeque<(Duration, ChannelName)>,
}

impl LastSeen {
    fn new(seed: u64) -> Self {
        Self { by_user: HashMap::with_hasher(FixedState::with_seed(seed)), order: VecDeque::new() }
    }

    /// `channel` is the user's own channel.
    fn note(&mut self, channel: &ChannelName, now: Now, settings: &Settings) {
        let max = settings.limits.last_seen_max as usize;
        if max == 0 {
            return;
        }
        self.by_user.insert(Arc::clone(channel), now.unix);
        self.order.push_back((now.unix, Arc::clone(channel)));
        // Stale entries go when they are the majority, so the order is bounded as well.
        if self.order.len() > 2 * self.by_user.len() + 64 {
            self.order.retain(|(left_at, user)| self.by_user.get(user) == Some(left_at));
        }
        while self.by_user.len() > max {
            let Some((left_at, oldest)) = self.order.pop_front() else { return };
            if self.by_user.get(&oldest) == Some(&left_at) {
                self.by_user.remove(&oldest);
            }
        }
    }

    fn get(&self, channel: &str, now: Now, settings: &Settings) -> Option<Duration> {
        let seen = *self.by_user.get(channel)?;
        (now.unix.saturating_sub(seen) <= settings.limits.last_seen_ttl).then_some(seen)
    }
}

/// A set of shards. On nodes with up to 64 of them it needs no memory of its own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ShardSet {
    first: u64,
    others: Option<Box<[u64; SHARDS_MAX as usize / 64 - 1]>>,
}

impl ShardSet {
    /// Adds a shard.
    pub fn insert(&mut self, shard: ShardId) {
        *self.word_mut(shard) |= 1 << (shard.index() % 64);
    }

    /// Removes a shard.
    pub fn remove(&mut self, shard: ShardId) {
        if self.contains(shard) {
            *self.word_mut(shard) &= !(1 << (shard.index() % 64));
        }
    }

    /// Whether it is in the set.
    pub fn contains(&self, shard: ShardId) -> bool {
        let word = self.words().nth(shard.index() / 64).unwrap_or(0);
        word & (1 << (shard.index() % 64)) != 0
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.words().all(|word| word == 0)
    }

    /// How many are.
    pub fn len(&self) -> u32 {
        self.words().map(u64::count_ones).sum()
    }

    fn words(&self) -> impl Iterator<Item = u64> {
        std::iter::once(self.first).chain(self.others.iter().flat_map(|others| **others))
    }

    fn word_mut(&mut self, shard: ShardId) -> &mut u64 {
        match shard.index() / 64 {
            0 => &mut self.first,
            index => &mut self.others.get_or_insert_default()[index - 1],
        }
    }

    /// Members in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = ShardId> {
        self.words().enumerate().flat_map(|(index, word)| {
            std::iter::successors(Some(word), |rest| Some(rest & rest.wrapping_sub(1)))
                .take_while(|rest| *rest != 0)
                .map(move |rest| ShardId(index as u16 * 64 + rest.trailing_zeros() as u16))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shard_sets_list_their_members() {
        let mut set = ShardSet::default();
        for shard in [0u16, 63, 64, 255] {
            set.insert(ShardId(shard));
        }
        set.remove(ShardId(63));
        assert_eq!(set.iter().map(|s| s.0).collect::<Vec<_>>(), [0, 64, 255]);
        assert_eq!(set.len(), 3);
        assert!(!set.is_empty() && set.contains(ShardId(64)) && !set.contains(ShardId(63)));
    }
}
