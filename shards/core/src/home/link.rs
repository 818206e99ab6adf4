//! Homes with a broker between nodes: the broker owns the stream, the home keeps a copy while someone here watches it.
//!
//! A channel begins detached. The first question about it attaches it and waits for the snapshot; from then on questions
//! are answered from the copy. Publications come from the broker in the order of the stream; one that does not follow the
//! copy's position makes the home ask for a snapshot, which fills the hole or moves the copy past it, and the hubs of the
//! shards tell their clients what is missing. When the broker cannot be reached at the first question, the channel goes
//! on under a provisional epoch, which recovers nobody and ends with the first snapshot.

use std::collections::VecDeque;
use std::sync::Arc;

use foldhash::quality::FixedState;
use hashbrown::HashSet;

use super::apply::is_told;
use super::channel::{HomeChannel, namespace_of};
use super::{Effect, HomeEnv, Homes};
use crate::broker::{
    BrokerOp, BrokerRequest, BrokerUpdate, ChannelUpdate, MemberId, Placed, Retention, Snapshot,
};
use crate::error::{ClientError, ErrorCode};
use crate::ids::ConnectionId;
use crate::message::{
    ChannelName, ChannelOp, ChannelReply, ChannelRequest, Member, Origin, Publish, ShardMessage,
    StreamPosition,
};

/// Publications that wait for a snapshot; more are given up and asked for again.
const WAITING_MAX: usize = 4096;

/// What a home has of the broker's stream.
#[derive(Debug)]
pub(super) enum Link {
    /// There is no broker.
    Alone,
    /// Nothing.
    Detached,
    /// The first snapshot is on its way.
    Attaching(Box<Waiting>),
    /// The copy is true up to its position.
    Attached,
    /// A snapshot is on its way, because a hole was seen or somebody wants to read what the broker has now.
    Syncing(Box<Waiting>),
    /// No snapshot could be had yet, but there are subscribers.
    Provisional,
}

/// What waits for a snapshot.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    requests: Vec<ChannelRequest>,
    /// Questions that came after the snapshot was asked for, and wait for another one.
    later: Vec<ChannelRequest>,
    /// Whether publications must wait for it too.
    hole: bool,
    publications: VecDeque<Placed>,
    /// How many of them, the first ones, came before the snapshot was asked for.
    earlier: usize,
    /// Publications were given up.
    overrun: bool,
    /// The broker cannot be reached: nobody waits for the snapshot any more.
    unlinked: bool,
    /// Up to here everything was removed meanwhile.
    removed: Option<StreamPosition>,
}

impl Waiting {
    fn push(&mut self, placed: Placed) {
        if self.publications.len() < WAITING_MAX {
            self.publications.push_back(placed);
        } else {
            self.overrun = true;
        }
    }
}

impl Link {
    pub(super) fn is_alone(&self) -> bool {
        matches!(self, Self::Alone)
    }

    pub(super) fn is_provisional(&self) -> bool {
        matches!(self, Self::Provisional)
    }

    /// Whether the copy is known to be as old as the last contact with the broker.
    pub(super) fn is_unlinked(&self) -> bool {
        matches!(self, Self::Syncing(waiting) if waiting.unlinked)
    }

    /// Whether the broker has been asked for the channel.
    pub(super) fn is_linked(&self) -> bool {
        !matches!(self, Self::Alone | Self::Detached)
    }

    /// Whether a question waits for the broker.
    pub(super) fn is_waiting(&self) -> bool {
        let (Self::Attaching(waiting) | Self::Syncing(waiting)) = self else { return false };
        !waiting.requests.is_empty() || !waiting.later.is_empty()
    }
}

impl HomeChannel {
    pub(super) fn ask(&self, env: &mut HomeEnv<'_>, op: BrokerOp) {
        let (channel, durable) = (Arc::clone(&self.name), self.durable);
        env.effects.push(Effect::Broker(BrokerRequest { channel, durable, op }));
    }

    /// Lets other nodes know of a member.
    pub(super) fn tell_joined(&self, env: &mut HomeEnv<'_>, id: ConnectionId, member: &Member) {
        if !self.link.is_alone() && env.settings.broker.is_some() {
            self.ask(env, BrokerOp::Joined { id, member: member.clone() });
        }
    }

    /// Lets other nodes know that a member is gone.
    pub(super) fn tell_left(&self, env: &mut HomeEnv<'_>, id: ConnectionId) {
        if !self.link.is_alone() && env.settings.broker.is_some() {
            self.ask(env, BrokerOp::Left { id });
        }
    }

    fn tell_own_members(&self, env: &mut HomeEnv<'_>) {
        let presence = self.presence.as_ref();
        let own = presence.map_or_else(Vec::new, |presence| presence.select(MemberId::is_own));
        let own = own.into_iter().map(|(id, member)| (id.connection, member)).collect();
        self.ask(env, BrokerOp::Members(own));
    }

    /// Brings the members of the nodes that `of` says yes to in line with what the broker knows.
    fn take_members(
        &mut self,
        env: &mut HomeEnv<'_>,
        (members, of): (&[(MemberId, Member)], impl Fn(MemberId) -> bool),
        seed: u64,
    ) {
        let known: HashSet<MemberId, FixedState> = members.iter().map(|(id, _)| *id).collect();
        let gone = |id: MemberId| of(id) && !known.contains(&id);
        let gone = self.presence.as_ref().map_or_else(Vec::new, |presence| presence.select(gone));
        for (id, _) in gone {
            self.leave(env, id);
        }
        for (id, member) in members {
            self.join(env, (*id, member), seed);
        }
    }
}

impl Homes {
    /// Handles a request on a node with a broker.
    pub(super) fn apply_linked(&mut self, env: &mut HomeEnv<'_>, request: ChannelRequest) {
        let ChannelRequest { origin, channel, op } = request;
        match op {
            ChannelOp::Publish(publish) => forward_publish(env, channel, publish, origin),
            ChannelOp::HistoryRemove => {
                let (op, durable) = (
                    BrokerOp::HistoryRemove { origin },
                    env.settings.namespaces.is_durable(&channel),
                );
                env.effects.push(Effect::Broker(BrokerRequest { channel, durable, op }));
            }
            // Every node is asked for its own part.
            op @ ChannelOp::UserStatus => {
                self.apply_here(env, ChannelRequest { origin, channel, op });
            }
            op @ ChannelOp::Unsubscribe { connection, .. } => {
                self.drop_waiting(env, &channel, connection);
                self.apply_here(env, ChannelRequest { origin, channel, op });
            }
            op => self.ask_copy(env, ChannelRequest { origin, channel, op }),
        }
    }

    /// Answers from the copy, or makes the question wait for it.
    fn ask_copy(&mut self, env: &mut HomeEnv<'_>, request: ChannelRequest) {
        let index = match self.open(env, &request.channel) {
            Ok(index) => index,
            Err(error) => return refuse(env, request, error),
        };
        let Some(channel) = self.channel_mut(index) else { return };
        channel.used_at = env.now.mono.into();
        if let (true, ChannelOp::History(query)) = (channel.durable, &request.op) {
            // What was acknowledged anywhere is in the database.
            let query = *query;
            return self.ask_page(env, index, query, request);
        }
        match &mut channel.link {
            Link::Attached if is_ahead(&request.op, channel.position) => {
                self.begin_sync(env, index, None);
                self.ask_copy(env, request);
            }
            Link::Syncing(waiting) if waiting.unlinked => self.answer(env, index, request),
            Link::Syncing(waiting) if is_ahead(&request.op, channel.position) => {
                waiting.requests.push(request);
            }
            Link::Syncing(waiting) if matches!(request.op, ChannelOp::History(_)) => {
                waiting.later.push(request);
            }
            // What was acknowledged anywhere is in it, wherever it is read.
            Link::Attached if matches!(request.op, ChannelOp::History(_)) => {
                self.read_anew(env, index, request);
            }
            Link::Alone | Link::Attached | Link::Syncing(_) => self.answer(env, index, request),
            Link::Provisional => self.apply_provisionally(env, request),
            Link::Attaching(waiting) => waiting.requests.push(request),
            Link::Detached => {
                let waiting = Waiting { requests: vec![request], ..Waiting::default() };
                channel.link = Link::Attaching(Box::new(waiting));
                let op = BrokerOp::Attach(channel.scope(env.settings));
                channel.ask(env, op);
            }
        }
    }

    /// Answers from the copy, and with what the database has before it.
    fn answer(&mut self, env: &mut HomeEnv<'_>, index: u32, request: ChannelRequest) {
        match self.page_before_copy(env, index, &request.op) {
            Some(query) => self.ask_page(env, index, query, request),
            None => self.apply_here(env, request),
        }
    }

    /// Answers with what the broker has now. Publications go on meanwhile.
    fn read_anew(&mut self, env: &mut HomeEnv<'_>, index: u32, request: ChannelRequest) {
        let Some(channel) = self.channel_mut(index) else { return };
        let waiting = Waiting { requests: vec![request], ..Waiting::default() };
        channel.link = Link::Syncing(Box::new(waiting));
        let op = BrokerOp::Sync(channel.position, channel.scope(env.settings));
        channel.ask(env, op);
    }

    /// Without the broker subscribers are let in, but nothing is claimed about the stream.
    fn apply_provisionally(&mut self, env: &mut HomeEnv<'_>, request: ChannelRequest) {
        if matches!(request.op, ChannelOp::History(_)) {
            refuse(env, request, unreachable_broker());
        } else {
            self.apply_here(env, request);
        }
    }

    /// A subscribe that has not been answered is taken back.
    fn drop_waiting(&mut self, env: &mut HomeEnv<'_>, name: &str, connection: ConnectionId) {
        let Some(index) = self.find(name) else { return };
        let Some(channel) = self.channel_mut(index) else { return };
        let is_its = |request: &ChannelRequest| {
            matches!(request.origin, Origin::Connection { id, .. } if id == connection)
                && matches!(request.op, ChannelOp::Subscribe(_))
        };
        let mut dropped = channel.drop_paging(is_its);
        if let Link::Attaching(waiting) | Link::Syncing(waiting) = &mut channel.link {
            dropped.extend(waiting.requests.extract_if(.., |request| is_its(request)));
        }
        for request in dropped {
            let message = "unsubscribed before the subscription was complete";
            refuse(env, request, ClientError::new(ErrorCode::Unavailable, message));
        }
    }

    /// The broker tells something.
    pub fn handle_update(&mut self, env: &mut HomeEnv<'_>, update: BrokerUpdate) {
        let (name, update) = match update {
            BrokerUpdate::Channel(name, update) => (name, update),
            BrokerUpdate::NodeLeft(node) => return self.forget_node(env, node),
            BrokerUpdate::TellMembers => return self.tell_all_members(env),
            BrokerUpdate::Reachable { server, reachable } => {
                self.away.retain(|away| *away != server);
                self.away.extend((!reachable).then_some(server));
                return;
            }
        };
        let Some(index) = self.find(&name) else {
            // Forgotten meanwhile: the broker has been told.
            if matches!(update, ChannelUpdate::TellMembers) {
                let durable = env.settings.namespaces.is_durable(&name);
                let op = BrokerOp::Members(Vec::new());
                env.effects.push(Effect::Broker(BrokerRequest { channel: name, durable, op }));
            }
            return;
        };
        let seed = self.seed;
        match update {
            ChannelUpdate::Published(placed) => self.take(env, index, placed),
            ChannelUpdate::Removed(top) => self.take_removal(index, top),
            ChannelUpdate::Snapshot(snapshot) => self.take_snapshot(env, index, *snapshot),
            ChannelUpdate::Behind => self.begin_sync(env, index, None),
            ChannelUpdate::Unlinked => self.go_on_unlinked(env, index),
            ChannelUpdate::Page(ticket, outcome) => self.take_page(env, index, ticket, outcome),
            ChannelUpdate::Joined(id, member) => {
                if let Some(channel) = self.channel_mut(index) {
                    channel.join(env, (id, &member), seed);
                }
            }
            ChannelUpdate::Left(id) => {
                if let Some(channel) = self.channel_mut(index) {
                    channel.leave(env, id);
                }
            }
            ChannelUpdate::Members(node, members) => {
                if let Some(channel) = self.channel_mut(index) {
                    channel.take_members(env, (&members, |id| id.node == node), seed);
                }
            }
            ChannelUpdate::TellMembers => {
                if let Some(channel) = self.channel_mut(index) {
                    channel.tell_own_members(env);
                }
            }
        }
        self.schedule(env, index);
    }

    /// The control plane has no room for a request that somebody waits for: says so.
    pub fn handle_refused(&mut self, env: &mut HomeEnv<'_>, request: BrokerRequest) {
        let BrokerRequest { channel, op, .. } = request;
        if let BrokerOp::Publish { origin, .. } | BrokerOp::HistoryRemove { origin } = op {
            let outcome = Err(ClientError::overloaded());
            env.effects.push(Effect::Reply(ChannelReply { origin, channel, outcome }));
        }
    }

    fn take(&mut self, env: &mut HomeEnv<'_>, index: u32, placed: Placed) {
        let Some(channel) = self.channel_mut(index) else { return };
        let Placed { position, unix, .. } = placed;
        if position.offset == 0 {
            return self.place(env, index, (&placed.publish, position, unix), placed.sender);
        }
        let top = channel.position;
        let same = position.epoch == top.epoch;
        let (known, next) =
            (same && position.offset <= top.offset, same && position.offset == top.offset + 1);
        let is_even = match &channel.link {
            Link::Attached => true,
            Link::Syncing(waiting) => !waiting.hole,
            _ => false,
        };
        match &mut channel.link {
            _ if is_even && known => {}
            _ if is_even && next => {
                channel.position = position;
                self.place(env, index, (&placed.publish, position, unix), placed.sender);
            }
            Link::Attaching(waiting) => waiting.push(placed),
            Link::Syncing(waiting) => {
                waiting.hole = true;
                waiting.push(placed);
            }
            Link::Attached => self.begin_sync(env, index, Some(placed)),
            Link::Alone | Link::Detached | Link::Provisional => {}
        }
    }

    fn begin_sync(&mut self, env: &mut HomeEnv<'_>, index: u32, found: Option<Placed>) {
        let Some(channel) = self.channel_mut(index) else { return };
        match &mut channel.link {
            Link::Attached => {}
            // Its snapshot may have been taken before what could not be told.
            Link::Attaching(waiting) | Link::Syncing(waiting) => {
                (waiting.overrun, waiting.hole) = (true, true);
                return;
            }
            Link::Alone | Link::Detached | Link::Provisional => return,
        }
        env.metrics.broker_gaps += 1;
        let publications: VecDeque<Placed> = found.into_iter().collect();
        let earlier = publications.len();
        let waiting = Waiting { publications, earlier, hole: true, ..Waiting::default() };
        channel.link = Link::Syncing(Box::new(waiting));
        let op = BrokerOp::Sync(channel.position, channel.scope(env.settings));
        channel.ask(env, op);
    }

    fn take_removal(&mut self, index: u32, top: StreamPosition) {
        let Some(channel) = self.channel_mut(index) else { return };
        if let Link::Attaching(waiting) | Link::Syncing(waiting) = &mut channel.link {
            waiting.removed = Some(top);
        }
        if channel.position.epoch != top.epoch {
            return;
        }
        self.change_history(index, |history| history.remove_through(top.offset));
    }

    fn take_snapshot(&mut self, env: &mut HomeEnv<'_>, index: u32, snapshot: Snapshot) {
        let seed = self.seed;
        let Some(channel) = self.channel_mut(index) else { return };
        let (waiting, first) = match std::mem::replace(&mut channel.link, Link::Attached) {
            Link::Attaching(waiting) => (*waiting, true),
            Link::Syncing(waiting) => (*waiting, false),
            Link::Provisional | Link::Attached => (Waiting::default(), false),
            alone @ (Link::Alone | Link::Detached) => {
                channel.link = alone;
                return;
            }
        };
        let Snapshot { top, publications, server, members } = snapshot;
        channel.server = server;
        channel.members_known = members.is_some() || (!first && channel.members_known);
        let renewed = !first && channel.position.epoch != top.epoch;
        if !first && !renewed {
            self.catch_up(env, index, top, publications);
        } else {
            self.begin_anew(env, index, top, publications);
        }
        if let Some(removed) = waiting.removed {
            self.take_removal(index, removed);
        }
        if let (Some(members), Some(channel)) = (members, self.channel_mut(index)) {
            channel.take_members(env, (&members, |id| !id.is_own()), seed);
            if renewed {
                // What the broker lost may have been the members too.
                channel.tell_own_members(env);
            }
        }
        for (at, placed) in waiting.publications.into_iter().enumerate() {
            // The broker knew of it and stands in another stream: that one is over. Asked again it would say the same.
            let is_over = at < waiting.earlier && placed.position.epoch != top.epoch;
            if !is_over {
                self.take(env, index, placed);
            }
        }
        if let Some(HomeChannel { link: Link::Syncing(again), .. }) = self.channel_mut(index) {
            again.earlier = again.publications.len();
        }
        if waiting.overrun {
            self.begin_sync(env, index, None);
        }
        for request in waiting.requests {
            self.answer(env, index, request);
        }
        for request in waiting.later {
            self.ask_copy(env, request);
        }
    }

    /// The snapshot goes on where the copy stands, perhaps with a hole between.
    fn catch_up(
        &mut self,
        env: &mut HomeEnv<'_>,
        index: u32,
        top: StreamPosition,
        publications: Vec<Placed>,
    ) {
        for placed in publications {
            let Some(channel) = self.channel_mut(index) else { return };
            let position = placed.position;
            if position.offset > channel.position.offset && position.offset <= top.offset {
                channel.position = position;
                self.place(env, index, (&placed.publish, position, placed.unix), placed.sender);
            }
        }
        let Some(channel) = self.channel_mut(index) else { return };
        if channel.position.offset < top.offset {
            channel.position = top;
            channel.history.skip_to(top.offset);
            channel.tell_position(env);
        }
    }

    /// The copy begins with the snapshot. Subscribers of what was before are told that it is another stream.
    fn begin_anew(
        &mut self,
        env: &mut HomeEnv<'_>,
        index: u32,
        top: StreamPosition,
        publications: Vec<Placed>,
    ) {
        let Some(channel) = self.channel_mut(index) else { return };
        channel.position = top;
        // Nobody is given the past as if it were news.
        let interest = std::mem::take(&mut channel.interest);
        self.change_history(index, |history| std::mem::take(history).len());
        for placed in publications {
            self.place(env, index, (&placed.publish, placed.position, placed.unix), None);
        }
        let Some(channel) = self.channel_mut(index) else { return };
        channel.history.skip_to(top.offset);
        channel.interest = interest;
        channel.tell_position(env);
    }

    /// The broker cannot be reached: whoever waits goes on without it.
    fn go_on_unlinked(&mut self, env: &mut HomeEnv<'_>, index: u32) {
        let Some(channel) = self.channel_mut(index) else { return };
        let requests = match &mut channel.link {
            Link::Attaching(waiting) => {
                let requests = std::mem::take(&mut waiting.requests);
                channel.link = Link::Provisional;
                requests
            }
            Link::Syncing(waiting) => {
                let mut requests = std::mem::take(&mut waiting.requests);
                requests.append(&mut waiting.later);
                waiting.unlinked = true;
                requests
            }
            Link::Alone | Link::Detached | Link::Attached | Link::Provisional => return,
        };
        for request in requests {
            match self.channel_mut(index).map(|channel| channel.link.is_provisional()) {
                Some(true) => self.apply_provisionally(env, request),
                _ => self.answer(env, index, request),
            }
        }
    }

    /// Whether members of other nodes may be missing in the channel's presence, or may be gone.
    pub(super) fn is_presence_partial(&self, env: &HomeEnv<'_>, channel: &HomeChannel) -> bool {
        if env.settings.broker.is_none() {
            return false;
        }
        match &channel.link {
            Link::Alone => false,
            Link::Detached | Link::Attaching(_) | Link::Provisional => true,
            // Whether the database of a durable channel answers says nothing about members.
            Link::Syncing(waiting) if waiting.unlinked && !channel.durable => true,
            Link::Attached | Link::Syncing(_) => {
                !channel.members_known || self.away.contains(&channel.server)
            }
        }
    }

    fn forget_node(&mut self, env: &mut HomeEnv<'_>, node: u64) {
        for channel in self.slots.iter_mut().filter_map(|slot| slot.channel.as_mut()) {
            let Some(presence) = &channel.presence else { continue };
            let gone = presence.select(|id| id.node == node);
            if !gone.is_empty() {
                channel.ask(env, BrokerOp::Forget { node });
            }
            for (id, _) in gone {
                channel.leave(env, id);
            }
        }
    }

    fn tell_all_members(&mut self, env: &mut HomeEnv<'_>) {
        for channel in self.slots.iter().filter_map(|slot| slot.channel.as_ref()) {
            if channel.link.is_linked() && channel.scope(env.settings).members {
                channel.tell_own_members(env);
            }
        }
    }
}

impl HomeChannel {
    /// Hubs compare where they stand.
    fn tell_position(&self, env: &mut HomeEnv<'_>) {
        let top = self.position;
        self.broadcast(env, || ShardMessage::Behind { channel: Arc::clone(&self.name), top });
    }
}

fn forward_publish(
    env: &mut HomeEnv<'_>,
    channel: ChannelName,
    mut publish: Publish,
    origin: Origin,
) {
    let namespace = env.settings.namespaces.get(namespace_of(&channel, env.settings));
    let kept = namespace.keeps_history() && !publish.skip_history && !publish.transient;
    let size = if kept { namespace.history_size } else { 0 };
    let retention = Retention { size, ttl: namespace.history_ttl };
    publish.no_echo = publish.sender_without_copy(origin).is_some();
    publish.told = is_told(&publish, origin, namespace, env.settings);
    env.metrics.publications += 1;
    let durable = namespace.durable;
    let op = BrokerOp::Publish { origin, publish: Box::new(publish), retention };
    env.effects.push(Effect::Broker(BrokerRequest { channel, durable, op }));
}

/// Whether a client comes from a position that this copy has not reached: another node was faster.
fn is_ahead(op: &ChannelOp, top: StreamPosition) -> bool {
    let ChannelOp::Subscribe(subscribe) = op else { return false };
    subscribe.recover.is_some_and(|from| from.epoch == top.epoch && from.offset > top.offset)
}

pub(super) fn refuse(env: &mut HomeEnv<'_>, request: ChannelRequest, error: ClientError) {
    let ChannelRequest { origin, channel, .. } = request;
    env.effects.push(Effect::Reply(ChannelReply { origin, channel, outcome: Err(error) }));
}

fn unreachable_broker() -> ClientError {
    ClientError::new(ErrorCode::Unavailable, "Redis cannot be reached; try again")
}
