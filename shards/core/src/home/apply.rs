//! Operations on a home channel: one function each, all answered through [`Effect::Reply`].

use std::sync::Arc;
use std::time::Duration;

use super::channel::HomeChannel;
use super::{Effect, HomeEnv, Homes};
use crate::broker::MemberId;
use crate::error::{ClientError, ErrorCode};
use crate::history::History;
use crate::ids::ConnectionId;
use crate::message::{
    ChannelName, ChannelOp, ChannelOutcome, ChannelReply, ChannelRequest, Delivery, Epoch,
    HistoryQuery, Origin, Publication, Publish, ShardMessage, StreamPosition, Subscribe,
    Subscribed,
};
use crate::metrics::{HistoryEviction, HistoryRead};
use crate::occurrence::PlacedMessage;
use crate::presence::Presence;
use crate::settings::{AutoSubscribe, Namespace, Settings};

type Outcome = Result<ChannelOutcome, ClientError>;

impl Homes {
    /// Handles a request to a channel whose home this is.
    pub fn apply(&mut self, env: &mut HomeEnv<'_>, request: ChannelRequest) {
        if env.settings.is_linked(&request.channel) {
            self.apply_linked(env, request);
        } else {
            self.apply_here(env, request);
        }
    }

    /// Handles a request with what is known here.
    pub(super) fn apply_here(&mut self, env: &mut HomeEnv<'_>, request: ChannelRequest) {
        let ChannelRequest { origin, channel, op } = request;
        let outcome = match op {
            ChannelOp::Unsubscribe { connection, last, compression } => {
                self.unsubscribe(env, &channel, connection, (last, compression));
                return;
            }
            ChannelOp::Publish(publish) => self.publish(env, &channel, &publish, origin),
            ChannelOp::Subscribe(subscribe) => {
                self.subscribe(env, &channel, (&subscribe, None), origin)
            }
            ChannelOp::Presence => Ok(self.presence(env, &channel)),
            ChannelOp::PresenceStats => Ok(self.presence_stats(env, &channel)),
            ChannelOp::History(query) => self.history(env, &channel, query),
            ChannelOp::HistoryRemove => self.history_remove(env, &channel),
            ChannelOp::UserStatus => Ok(self.user_status(env, &channel)),
        };
        env.effects.push(Effect::Reply(ChannelReply { origin, channel, outcome }));
    }

    pub(super) fn open(
        &mut self,
        env: &mut HomeEnv<'_>,
        name: &ChannelName,
    ) -> Result<u32, ClientError> {
        self.find_or_create(env, name).ok_or_else(|| {
            ClientError::new(
                ErrorCode::LimitExceeded,
                "this node holds all the channels it may (limits.channels_per_shard_max)",
            )
        })
    }

    fn publish(
        &mut self,
        env: &mut HomeEnv<'_>,
        name: &ChannelName,
        publish: &Publish,
        origin: Origin,
    ) -> Outcome {
        let index = self.open(env, name)?;
        let seed = self.seed;
        let Some(channel) = self.channel_mut(index) else { return Err(ClientError::overloaded()) };
        channel.used_at = env.now.mono.into();
        if let Some(idempotency_key) = publish.idempotency_key.as_deref()
            && let Some(position) = channel.published_before(env, idempotency_key)
        {
            return Ok(ChannelOutcome::Published(position));
        }
        let position = channel.next_position(publish.skip_history);
        if let Some(idempotency_key) = publish.idempotency_key.as_deref() {
            channel.remember_key(env, (idempotency_key, position), seed);
        }
        env.metrics.publications += 1;
        let sender = publish.sender_without_copy(origin);
        self.place(env, index, (publish, position, env.now.unix), sender);
        self.tell_message(env, index, (publish, position), origin);
        self.schedule(env, index);
        Ok(ChannelOutcome::Published(position))
    }

    /// Keeps a publication that has its place, if it is to be kept, and sends it to every interested shard.
    pub(super) fn place(
        &mut self,
        env: &mut HomeEnv<'_>,
        index: u32,
        (publish, position, unix): (&Publish, StreamPosition, Duration),
        sender: Option<ConnectionId>,
    ) {
        let (seed, key) = (self.seed, self.key(index));
        let Some(channel) = self.channel_mut(index) else { return };
        let mut publication = channel.encode(env, (publish, position, unix), seed);
        publication.sender = sender;
        let publication = Arc::new(publication);
        let namespace = env.settings.namespaces.get(channel.namespace);
        let in_stream = position.offset > 0;
        if namespace.keeps_history() && in_stream && !publish.transient {
            let age = env.now.unix.saturating_sub(unix);
            let expires = env.now.mono + namespace.history_ttl.saturating_sub(age);
            let size_max = namespace.copy_size(&env.settings.limits);
            let before = channel.history.held();
            let forgotten = channel.history.append(Arc::clone(&publication), expires, size_max);
            let after = channel.history.held();
            env.metrics.history_evicted.add(HistoryEviction::Size as usize, forgotten as u64);
            self.budget.changed(before, after);
            self.budget.kept(key, position.offset);
            self.shrink_histories(env);
        } else if in_stream {
            channel.history.skip(position.offset);
        }
        if let Some(channel) = self.channel_mut(index) {
            channel.broadcast(env, || {
                ShardMessage::Deliver(Delivery {
                    channel: Arc::clone(&channel.name),
                    publication: Arc::clone(&publication),
                })
            });
        }
    }

    /// Tells the application of a client's message, if it wants to know.
    fn tell_message(
        &mut self,
        env: &mut HomeEnv<'_>,
        index: u32,
        (publish, position): (&Publish, StreamPosition),
        origin: Origin,
    ) {
        let Some(channel) = self.channel_mut(index) else { return };
        let namespace = env.settings.namespaces.get(channel.namespace);
        if !is_told(publish, origin, namespace, env.settings) {
            return;
        }
        let message = PlacedMessage::new(&channel.name, publish, position);
        env.effects.push(Effect::Message(Box::new(message)));
    }

    /// Drops the oldest publications of the shard while histories hold more than they may.
    fn shrink_histories(&mut self, env: &mut HomeEnv<'_>) {
        let bytes_max = env.settings.limits.history_bytes_max;
        while let Some((key, offset)) = self.budget.pop_over(bytes_max) {
            let current = self.slots.get(key.index as usize).map(|slot| slot.generation);
            if current == Some(key.generation) {
                let remove = |history: &mut History| history.remove_through(offset);
                let forgotten = self.change_history(key.index, remove);
                env.metrics.history_evicted.add(HistoryEviction::Budget as usize, forgotten);
            }
        }
        let slots = &self.slots;
        self.budget.compact(|key, offset| {
            slots
                .get(key.index as usize)
                .filter(|slot| slot.generation == key.generation)
                .and_then(|slot| slot.channel.as_ref())
                .is_some_and(|channel| channel.history.first_offset().is_some_and(|o| o <= offset))
        });
    }

    /// `older` are publications behind the asked position that the history may not hold any more, if the database was asked.
    pub(super) fn subscribe(
        &mut self,
        env: &mut HomeEnv<'_>,
        name: &ChannelName,
        (subscribe, older): (&Subscribe, Option<Vec<Arc<Publication>>>),
        origin: Origin,
    ) -> Outcome {
        let Origin::Connection { id, .. } = origin else {
            return Err(ClientError::new(ErrorCode::SystemError, "only connections subscribe"));
        };
        let index = self.open(env, name)?;
        let seed = self.seed;
        self.expire_history(env, index);
        let Some(channel) = self.channel_mut(index) else { return Err(ClientError::overloaded()) };
        channel.used_at = env.now.mono.into();
        channel.change_interest(env, |interest| interest.insert(id.shard()));
        if subscribe.compression {
            channel.compression.insert(id.shard());
        }
        let namespace = env.settings.namespaces.get(channel.namespace);
        let (recovered, publications) = match subscribe.recover {
            None => (None, Vec::new()),
            Some(_) if !namespace.recovery || channel.link.is_provisional() => {
                (Some(false), Vec::new())
            }
            Some(from) => {
                if let (None, Some(read)) = (&older, held_since(channel, from, env)) {
                    env.metrics.recovery_reads.add(read as usize, 1);
                }
                let kept = (older.unwrap_or_default(), &channel.history);
                match missed(channel.position, kept, from, env) {
                    Some(publications) => (Some(true), publications),
                    None => (Some(false), Vec::new()),
                }
            }
        };
        let top = channel.position;
        let member = (MemberId::own(id), &subscribe.member);
        if channel.scope(env.settings).members && channel.join(env, member, seed) {
            channel.tell_joined(env, id, &subscribe.member);
        }
        self.schedule(env, index);
        Ok(ChannelOutcome::Subscribed(Subscribed { top, recovered, publications }))
    }

    fn unsubscribe(
        &mut self,
        env: &mut HomeEnv<'_>,
        name: &ChannelName,
        id: ConnectionId,
        (last, compression): (bool, bool),
    ) {
        let Some(index) = self.find(name) else { return };
        let Some(channel) = self.channel_mut(index) else { return };
        channel.used_at = env.now.mono.into();
        let left = channel.leave(env, MemberId::own(id));
        if left {
            channel.tell_left(env, id);
        }
        if last {
            channel.change_interest(env, |interest| interest.remove(id.shard()));
        }
        if !compression {
            channel.compression.remove(id.shard());
        }
        let namespace = env.settings.namespaces.get(channel.namespace);
        if left && channel.own_clients() == 0 && namespace.auto_subscribe == AutoSubscribe::User {
            self.last_seen.note(name, env.now, env.settings);
        }
        self.schedule(env, index);
    }

    fn presence(&self, env: &HomeEnv<'_>, name: &str) -> ChannelOutcome {
        let limit = env.settings.limits.presence_members_max as usize;
        let (presence, partial) = self.presence_with_doubt(env, name);
        ChannelOutcome::Presence {
            members: presence.map_or_else(Vec::new, |presence| presence.list(limit)),
            clients: presence.map_or(0, Presence::clients),
            users: presence.map_or(0, Presence::users),
            partial,
        }
    }

    fn presence_with_doubt(&self, env: &HomeEnv<'_>, name: &str) -> (Option<&Presence>, bool) {
        let index = self.find(name);
        let channel = index.and_then(|index| self.slots[index as usize].channel.as_ref());
        let partial = channel.is_some_and(|channel| self.is_presence_partial(env, channel));
        (channel.and_then(|channel| channel.presence.as_deref()), partial)
    }

    fn presence_of(&self, name: &str) -> Option<&Presence> {
        let index = self.find(name)?;
        self.slots[index as usize].channel.as_ref()?.presence.as_deref()
    }

    fn presence_stats(&self, env: &HomeEnv<'_>, name: &str) -> ChannelOutcome {
        let (presence, partial) = self.presence_with_doubt(env, name);
        ChannelOutcome::PresenceStats {
            clients: presence.map_or(0, Presence::clients),
            users: presence.map_or(0, Presence::users),
            partial,
        }
    }

    /// Forgets publications whose time is over.
    pub(super) fn expire_history(&mut self, env: &mut HomeEnv<'_>, index: u32) {
        let now = env.now.mono;
        let forgotten = self.change_history(index, |history| history.expire(now));
        env.metrics.history_evicted.add(HistoryEviction::Age as usize, forgotten);
    }

    /// Changes what a channel keeps, within the budget's knowledge; answers what `change` does.
    pub(super) fn change_history(
        &mut self,
        index: u32,
        change: impl FnOnce(&mut History) -> usize,
    ) -> u64 {
        let Some(channel) = self.channel_mut(index) else { return 0 };
        let before = channel.history.held();
        let forgotten = change(&mut channel.history);
        let after = channel.history.held();
        self.budget.changed(before, after);
        forgotten as u64
    }

    fn history(
        &mut self,
        env: &mut HomeEnv<'_>,
        name: &ChannelName,
        query: HistoryQuery,
    ) -> Outcome {
        let index = self.open(env, name)?;
        self.expire_history(env, index);
        let Some(channel) = self.channel_mut(index) else { return Err(ClientError::overloaded()) };
        // The epoch that is told must stay true for a while, also for a channel without publications.
        channel.used_at = env.now.mono.into();
        let (top, history) = (channel.position, &channel.history);
        let partial = channel.link.is_unlinked();
        check_epoch(query, top)?;
        let limit_max = env.settings.limits.history_page_max;
        let page = history.page(&query, limit_max);
        if query.limit > 0 {
            let all = history.has_all(&query, limit_max);
            let read = if all { HistoryRead::Held } else { HistoryRead::Short };
            env.metrics.history_reads.add(read as usize, 1);
        }
        let publications = within_bytes(page, env.settings.limits.recovery_bytes_max);
        self.schedule(env, index);
        Ok(ChannelOutcome::History { top, publications, partial })
    }

    fn history_remove(&mut self, env: &mut HomeEnv<'_>, name: &ChannelName) -> Outcome {
        let index = self.open(env, name)?;
        let Some(channel) = self.channel_mut(index) else { return Err(ClientError::overloaded()) };
        channel.used_at = env.now.mono.into();
        let position = channel.position;
        self.change_history(index, History::clear);
        self.schedule(env, index);
        Ok(ChannelOutcome::HistoryRemoved(position))
    }

    fn user_status(&mut self, env: &HomeEnv<'_>, name: &str) -> ChannelOutcome {
        let connections = self.presence_of(name).map_or(0, Presence::own_clients);
        let last_seen =
            (connections == 0).then(|| self.last_seen.get(name, env.now, env.settings)).flatten();
        ChannelOutcome::UserStatus { connections, last_seen }
    }
}

/// Whether the position that a query starts from can belong to the stream.
pub(super) fn check_epoch(query: HistoryQuery, top: StreamPosition) -> Result<(), ClientError> {
    let foreign = |since: StreamPosition| since.epoch != Epoch::ANY && since.epoch != top.epoch;
    if query.since.is_some_and(foreign) {
        return Err(ClientError::new(
            ErrorCode::UnrecoverablePosition,
            "the position belongs to another epoch of the channel",
        ));
    }
    Ok(())
}

/// Whether the application is told of it: a message of a client, where that is wanted.
pub(super) fn is_told(
    publish: &Publish,
    origin: Origin,
    namespace: &Namespace,
    settings: &Settings,
) -> bool {
    // A chunk of a transfer says nothing by itself.
    settings.occurrences.messages
        && namespace.webhook_messages
        && !publish.transient
        && matches!(origin, Origin::Connection { .. })
}

/// How many publications came after `from`, if a reply may carry so many and the stream is the same.
pub(super) fn missed_count(
    top: StreamPosition,
    from: StreamPosition,
    env: &HomeEnv<'_>,
) -> Option<u64> {
    let from_start = from.epoch == Epoch::ANY && from.offset == 0;
    if (from.epoch != top.epoch && !from_start) || from.offset > top.offset {
        return None;
    }
    let count = top.offset - from.offset;
    (count <= u64::from(env.settings.limits.history_page_max)).then_some(count)
}

/// Where what came after `from` is, when it can be given at all.
fn held_since(
    channel: &HomeChannel,
    from: StreamPosition,
    env: &HomeEnv<'_>,
) -> Option<HistoryRead> {
    let count = missed_count(channel.position, from, env)?;
    let held = count == 0 || channel.history.covers(from.offset);
    Some(if held { HistoryRead::Held } else { HistoryRead::Short })
}

/// Everything after `from`, if it is all there and not more than one reply may carry.
fn missed(
    top: StreamPosition,
    (older, history): (Vec<Arc<Publication>>, &History),
    from: StreamPosition,
    env: &HomeEnv<'_>,
) -> Option<Vec<Arc<Publication>>> {
    let count = missed_count(top, from, env)?;
    let limits = &env.settings.limits;
    if count == 0 {
        return Some(Vec::new());
    }
    let mut page = older;
    page.retain(|publication| publication.position.offset <= top.offset);
    let last = page.last().map_or(from.offset, |publication| publication.position.offset);
    page.extend(history.since(last, count as usize)?);
    let bytes: usize = page.iter().map(|publication| publication.json.len()).sum();
    let whole = page.len() as u64 == count && bytes <= limits.recovery_bytes_max;
    whole.then_some(page)
}

/// The head of `page` that fits into `bytes_max`, at least one publication.
pub(super) fn within_bytes(
    mut page: Vec<Arc<Publication>>,
    bytes_max: usize,
) -> Vec<Arc<Publication>> {
    let mut bytes = 0;
    let fits = page
        .iter()
        .take_while(|publication| {
            bytes += publication.json.len();
            bytes <= bytes_max
        })
        .count();
    page.truncate(fits.max(1));
    page
}
