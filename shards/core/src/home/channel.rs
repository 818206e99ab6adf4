//! State of one channel at its home.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use foldhash::quality::FixedState;
use hashbrown::HashMap;

use super::link::Link;
use super::pages::Paging;
use super::{Effect, HomeEnv, ShardSet};
use crate::broker::{MemberId, Scope};
use crate::history::History;
use crate::message::{
    ChannelInfo, ChannelName, Member, Publication, Publish, ShardMessage, StreamPosition,
};
use crate::presence::Presence;
use crate::proto::encode::{deflated_heap_bytes, deflated_text_frame};
use crate::proto::push::{self, PresenceCounts};
use crate::settings::{AutoSubscribe, NAMESPACE_REMOVED, NamespaceIndex, Settings};
use crate::time::Moment;

/// Index of the namespace of `channel`.
pub(super) fn namespace_of(channel: &str, settings: &Settings) -> NamespaceIndex {
    settings.namespaces.find(channel).map_or(NAMESPACE_REMOVED, |(index, _)| index)
}

#[derive(Debug)]
pub(super) struct HomeChannel {
    pub(super) name: ChannelName,
    pub(super) namespace: NamespaceIndex,
    /// Of the newest publication.
    pub(super) position: StreamPosition,
    pub(super) history: History,
    /// Shards with a subscriber.
    pub(super) interest: ShardSet,
    /// Those of them with a subscriber that negotiated compression.
    pub(super) compression: ShardSet,
    pub(super) presence: Option<Box<Presence>>,
    idempotency: Option<Box<IdempotencyKeys>>,
    /// What this home has of the broker's stream.
    pub(super) link: Link,
    /// Whether that stream is in the database.
    pub(super) durable: bool,
    /// The broker's server that knows the members.
    pub(super) server: u16,
    /// Whether the broker has told the members of other nodes.
    pub(super) members_known: bool,
    /// Questions that wait for publications from the database.
    pub(super) paging: Option<Box<Paging>>,
    /// Numbers pushes that have no offset, and questions to the database.
    serial: u64,
    pub(super) used_at: Moment,
    /// Earliest timer that is on its way.
    pub(super) timer_at: Option<Moment>,
}

impl HomeChannel {
    pub(super) fn new(name: ChannelName, env: &mut HomeEnv<'_>) -> Self {
        let namespace = namespace_of(&name, env.settings);
        let durable = env.settings.namespaces.get(namespace).durable;
        let linked = env.settings.broker.is_some() || durable;
        Self {
            namespace,
            position: StreamPosition { offset: 0, epoch: env.random.epoch() },
            history: History::new(),
            interest: ShardSet::default(),
            compression: ShardSet::default(),
            presence: None,
            idempotency: None,
            link: if linked { Link::Detached } else { Link::Alone },
            durable,
            server: 0,
            members_known: false,
            paging: None,
            serial: 0,
            used_at: env.now.mono.into(),
            timer_at: None,
            name,
        }
    }

    /// Whether nothing but the position and idempotency keys would be lost with it. What the broker keeps is not lost.
    pub(super) fn is_idle(&self) -> bool {
        self.is_removable() && (self.history.is_empty() || !self.link.is_alone())
    }

    /// Whether no shard has a subscriber, nobody of this node is a member, and no question waits for the broker.
    pub(super) fn is_removable(&self) -> bool {
        let presence = self.presence.as_ref();
        self.interest.is_empty()
            && !self.link.is_waiting()
            && self.paging.is_none()
            && presence.is_none_or(|presence| presence.is_empty() || !self.link.is_alone())
    }

    /// Changes who watches; tells when that makes the channel watched or unwatched.
    pub(super) fn change_interest(
        &mut self,
        env: &mut HomeEnv<'_>,
        change: impl FnOnce(&mut ShardSet),
    ) {
        let before = self.interest.is_empty();
        change(&mut self.interest);
        let after = self.interest.is_empty();
        if before != after && env.settings.occurrences.watches(&self.name) {
            env.effects.push(Effect::Watched(Arc::clone(&self.name), !after));
        }
    }

    /// What the copy of this channel holds.
    pub(super) fn scope(&self, settings: &Settings) -> Scope {
        let namespace = settings.namespaces.get(self.namespace);
        let user_channel = namespace.auto_subscribe == AutoSubscribe::User;
        Scope {
            history_size: if namespace.keeps_history() {
                namespace.copy_size(&settings.limits)
            } else {
                0
            },
            history_ttl: namespace.history_ttl,
            members: namespace.presence || namespace.join_leave || user_channel,
        }
    }

    /// Members that are connections of this node.
    pub(super) fn own_clients(&self) -> u32 {
        self.presence.as_ref().map_or(0, |presence| presence.own_clients())
    }

    pub(super) fn info(&self) -> ChannelInfo {
        ChannelInfo {
            channel: Arc::clone(&self.name),
            clients: self.own_clients(),
            interested_shards: self.interest.len(),
            top: self.position,
            history: self.history.len() as u32,
        }
    }

    /// The place of the next publication; offset 0 when it is to be outside of the stream.
    pub(super) fn next_position(&mut self, outside: bool) -> StreamPosition {
        if outside {
            return StreamPosition { offset: 0, ..self.position };
        }
        self.position.offset += 1;
        self.position
    }

    /// A number that this channel has not used before.
    pub(super) fn next_serial(&mut self) -> u64 {
        self.serial += 1;
        self.serial
    }

    fn push_id(&mut self, mark: char) -> String {
        let serial = self.next_serial();
        format!("{}{mark}{serial}", self.position.epoch.as_str())
    }

    /// Encodes a publication that has its place, once plain and, if anyone wants it, once compressed.
    pub(super) fn encode(
        &mut self,
        env: &mut HomeEnv<'_>,
        (publish, position, unix): (&Publish, StreamPosition, Duration),
        seed: u64,
    ) -> Publication {
        let namespace = env.settings.namespaces.get(self.namespace);
        let placed = (position.offset > 0).then_some(position);
        let id = match placed {
            Some(position) => format!("{}-{}", position.epoch.as_str(), position.offset),
            None => self.push_id('~'),
        };
        let encoded = push::publication(&self.name, publish, placed, &id, unix);
        let websocket = &env.settings.websocket;
        let deflated = (namespace.compression
            && !self.compression.is_empty()
            && encoded.json.len() >= websocket.compression_bytes_min)
            .then(|| deflated_text_frame(env.deflater, &encoded.json))
            .flatten();
        let smaller = deflated.as_deref().map_or(0, deflated_heap_bytes);
        Publication {
            heap_bytes: encoded.heap_bytes + smaller,
            position,
            priority: publish.priority.unwrap_or(namespace.priority),
            key_hash: publish.key.as_deref().map_or(0, |key| crate::route::keyed_hash(key, seed)),
            sender: None,
            accepted_at: publish.accepted_at,
            json: encoded.json,
            frame: encoded.frame,
            deflated,
        }
    }

    /// Sends `message` to every interested shard.
    pub(super) fn broadcast(&self, env: &mut HomeEnv<'_>, message: impl Fn() -> ShardMessage) {
        for shard in self.interest.iter() {
            env.effects.push(Effect::Send(shard, message()));
        }
    }

    /// The connection is a member from now on. Answers whether it was none before.
    pub(super) fn join(
        &mut self,
        env: &mut HomeEnv<'_>,
        (id, member): (MemberId, &Member),
        seed: u64,
    ) -> bool {
        let presence = self.presence.get_or_insert_default();
        let joined = presence.join(id, member, seed);
        if joined {
            self.announce(env, true, id, member);
        }
        joined
    }

    /// The connection is no member any more. Answers whether it was one.
    pub(super) fn leave(&mut self, env: &mut HomeEnv<'_>, id: MemberId) -> bool {
        let Some(presence) = &mut self.presence else { return false };
        let Some(member) = presence.leave(id) else { return false };
        let last = presence.is_empty();
        self.announce(env, false, id, &member);
        if last {
            self.presence = None;
        }
        true
    }

    /// Tells subscribers of a join or leave: singly in a small channel, by counts in a large one.
    fn announce(&mut self, env: &mut HomeEnv<'_>, join: bool, id: MemberId, member: &Member) {
        let namespace = env.settings.namespaces.get(self.namespace);
        if !namespace.join_leave {
            return;
        }
        let members_max = namespace.join_leave_members_max;
        let Some(presence) = &mut self.presence else { return };
        if presence.clients() > members_max {
            let due = env.now.mono + env.settings.limits.presence_interval;
            presence.flush_at.get_or_insert(due.into());
            return;
        }
        if presence.flush_at.is_none() {
            presence.take_changes();
        }
        let push_id = self.push_id(if join { '+' } else { '!' });
        let frame = push::join_leave(join, &self.name, member, &push_id, env.now.unix);
        self.broadcast(env, || ShardMessage::Presence {
            channel: Arc::clone(&self.name),
            frame: frame.clone(),
            about: id.is_own().then_some(id.connection),
        });
    }

    /// The coalesced counts are due.
    pub(super) fn push_presence_stats(&mut self, env: &mut HomeEnv<'_>) {
        let Some(presence) = &mut self.presence else { return };
        presence.flush_at = None;
        let (joined, left) = presence.take_changes();
        let counts =
            PresenceCounts { clients: presence.clients(), users: presence.users(), joined, left };
        let push_id = self.push_id('=');
        let frame = push::presence_stats(&self.name, counts, &push_id, env.now.unix);
        self.broadcast(env, || ShardMessage::Presence {
            channel: Arc::clone(&self.name),
            frame: frame.clone(),
            about: None,
        });
    }

    /// Position that was given to an earlier publish with this idempotency key.
    pub(super) fn published_before(
        &mut self,
        env: &HomeEnv<'_>,
        key: &str,
    ) -> Option<StreamPosition> {
        let keys = self.idempotency.as_mut()?;
        keys.expire(env.now.mono);
        keys.positions.get(key).copied()
    }

    /// When the oldest idempotency key may be forgotten.
    pub(super) fn next_key_expiry(&self) -> Option<Duration> {
        self.idempotency.as_ref()?.order.front().map(|(expires, _)| *expires)
    }

    /// Forgets idempotency keys whose time is over.
    pub(super) fn expire_keys(&mut self, now: Duration) {
        if let Some(keys) = &mut self.idempotency {
            keys.expire(now);
            if keys.order.is_empty() {
                self.idempotency = None;
            }
        }
    }

    /// Remembers the position that a publish with this key got.
    pub(super) fn remember_key(
        &mut self,
        env: &HomeEnv<'_>,
        (key, position): (&str, StreamPosition),
        seed: u64,
    ) {
        let limits = &env.settings.limits;
        let keys = self.idempotency.get_or_insert_with(|| Box::new(IdempotencyKeys::new(seed)));
        while keys.order.len() >= limits.idempotency_keys_max.max(1) as usize {
            keys.forget_oldest();
        }
        let key: Arc<str> = key.into();
        keys.positions.insert(Arc::clone(&key), position);
        keys.order.push_back((env.now.mono + limits.idempotency_ttl, key));
    }
}

/// Recent idempotency keys of one channel, oldest first.
#[derive(Debug)]
struct IdempotencyKeys {
    positions: HashMap<Arc<str>, StreamPosition, FixedState>,
    order: VecDeque<(Duration, Arc<str>)>,
}

impl IdempotencyKeys {
    fn new(seed: u64) -> Self {
        Self {
            positions: HashMap::with_hasher(FixedState::with_seed(seed)),
            order: VecDeque::new(),
        }
    }

    fn expire(&mut self, now: Duration) {
        while self.order.front().is_some_and(|(expires, _)| *expires <= now) {
            self.forget_oldest();
        }
    }

    fn forget_oldest(&mut self) {
        if let Some((_, key)) = self.order.pop_front() {
            self.positions.remove(&key);
        }
    }
}
