//! One Redis with the channels that are kept there: everything of the broker that exists once for each server.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Buf, Bytes};
use fred::types::Message;
use gateway_core::broker::{BrokerUpdate, ChannelUpdate};
use gateway_core::message::{ChannelName, StreamPosition};
use tokio::sync::broadcast::error::RecvError;
use tokio::task::JoinSet;

use super::calls::Calls;
use super::links::Links;
use super::names::Names;
use super::publisher::{Publisher, WriteLimits};
use super::snapshot::bytes_of;
use super::{BrokerCounts, Common, position, record};
use crate::config::sections::RedisSection;
use crate::durable::Durable;

/// Length of a member's field: two numbers of 16 digits and a stroke.
const FIELD_BYTES: usize = 33;
/// Length of the part of it that names the node.
const FIRST_BYTES: usize = 17;

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Instance {
    common: Common,
    pub publisher: Publisher,
    pub links: Links,
    /// Only on the server where the nodes meet.
    calls: Option<Arc<Calls>>,
    /// Named for this process, whatever the node is called later.
    probe_topic: String,
    probe_interval: Duration,
    command_timeout: Duration,
    check_interval: Duration,
    received: AtomicU64,
    unreadable: AtomicU64,
    lagged: AtomicU64,
}

impl Instance {
    pub(super) fn new(
        common: Common,
        calls: Option<Arc<Calls>>,
        section: &RedisSection,
        limits: WriteLimits,
    ) -> Self {
        Self {
            publisher: Publisher::new(common.clone(), limits),
            links: Links::new(common.clone(), section.position_ttl, section.check_interval),
            calls,
            probe_topic: Names::new(&section.prefix).probe(common.nodes.own()),
            common,
            probe_interval: section.ping_interval,
            command_timeout: section.command_timeout,
            check_interval: section.check_interval,
            received: AtomicU64::new(0),
            unreadable: AtomicU64::new(0),
            lagged: AtomicU64::new(0),
        }
    }

    /// Number of the server.
    pub(super) fn server(&self) -> u16 {
        self.common.server
    }

    /// Starts what runs as long as the node.
    pub(super) fn spawn(self: &Arc<Self>, tasks: &mut JoinSet<()>) {
        let of = || Arc::clone(self);
        let instance = of();
        tasks.spawn(async move { instance.publisher.run().await });
        let instance = of();
        tasks.spawn(async move { instance.links.run().await });
        let instance = of();
        tasks.spawn(async move { instance.links.check_positions().await });
        let instance = of();
        tasks.spawn(async move { instance.tell_owed().await });
        let instance = of();
        tasks.spawn(async move { instance.listen().await });
        let instance = of();
        tasks.spawn(async move { instance.follow_connections().await });
        if self.common.redis.is_clustered() {
            let instance = of();
            tasks.spawn(async move { instance.follow_slots().await });
        }
        let instance = of();
        tasks.spawn(async move {
            let Common { subscriber, redis, .. } = &instance.common;
            subscriber.probe(redis, &instance.probe_topic, instance.probe_interval).await;
        });
    }

    /// Tells the homes when the server is away and when it is back, until the future is dropped.
    pub(super) async fn follow_outages(&self) {
        let mut outages = self.common.redis.outages();
        outages.mark_changed();
        while outages.changed().await.is_ok() {
            let (server, reachable) = (self.common.server, !*outages.borrow_and_update());
            self.common.mail.tell_all(|| BrokerUpdate::Reachable { server, reachable });
        }
    }

    /// Adds what this instance counts.
    pub(super) fn count_into(&self, counts: &mut BrokerCounts) {
        let (writes, calls) = self.publisher.counts();
        let [snapshots, missed] = self.links.counts();
        let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
        for (sum, count) in counts.writes.iter_mut().zip(writes) {
            *sum += count;
        }
        counts.calls += calls;
        counts.waiting += self.publisher.waiting();
        counts.received += load(&self.received);
        counts.unreadable += load(&self.unreadable);
        counts.lagged += load(&self.lagged);
        counts.channels += self.links.count();
        counts.snapshots += snapshots;
        counts.missed += missed;
        counts.probe_reconnects += self.common.subscriber.reconnects();
        counts.probe = counts.probe.max(self.common.subscriber.probe_time());
        let age = self.common.subscriber.probe_age();
        counts.servers[usize::from(!self.is_well(age))] += 1;
        counts.probe_age = counts.probe_age.zip(age).map(|(one, other)| one.max(other));
    }

    /// Whether the server answers and probes come back: the last one is no older than one that is still under way may be.
    fn is_well(&self, probe_age: Option<Duration>) -> bool {
        let age_max = 2 * (self.probe_interval + self.command_timeout);
        self.common.redis.is_up() && probe_age.is_some_and(|age| age <= age_max)
    }

    /// Everything is subscribed anew on a new connection.
    async fn follow_connections(&self) {
        let mut connections = self.common.subscriber.connections();
        self.common.subscriber.connect();
        loop {
            match connections.recv().await {
                Ok(_) | Err(RecvError::Lagged(_)) => {
                    self.common.subscriber.connection_is_new();
                    // Perhaps another server, or another run of it.
                    self.common.scripts.forget();
                    let probed = self.subscribe_own().await;
                    if let Some(calls) = &self.calls {
                        calls.may_have_missed();
                    }
                    tracing::info!(
                        category = "connection",
                        event = "redis_subscriber_connected",
                        channels = self.links.count(),
                        probed,
                    );
                    self.links.connection_is_new();
                    self.publisher.tell_owed();
                }
                Err(RecvError::Closed) => std::future::pending::<()>().await,
            }
        }
    }

    /// Members that Redis may not know are told again, also while nothing else is written.
    async fn tell_owed(&self) {
        loop {
            tokio::time::sleep(self.check_interval).await;
            if self.common.redis.is_up() {
                self.publisher.tell_owed();
            }
        }
    }

    async fn subscribe_own(&self) -> bool {
        let calls = self.calls.iter().flat_map(|calls| calls.topics());
        let topics = calls.chain([self.probe_topic.clone()]).collect();
        self.common.subscriber.subscribe_own(topics).await
    }

    /// Subscriptions follow the slots of a Redis Cluster. It is the other connection that is told of a move, when it writes
    /// to where a slot was; nothing is written to the slots of this node's own topics, so they are subscribed regularly.
    async fn follow_slots(&self) {
        let mut changes = self.common.redis.slot_changes();
        loop {
            tokio::select! {
                change = changes.recv() => match change {
                    Ok(_) | Err(RecvError::Lagged(_)) => {
                        tracing::info!(category = "connection", event = "redis_slots_moved");
                        self.common.subscriber.follow_slots().await;
                        self.links.connection_is_new();
                    }
                    Err(RecvError::Closed) => std::future::pending::<()>().await,
                },
                () = tokio::time::sleep(self.check_interval) => {}
            }
            self.subscribe_own().await;
            // Nobody says when a subscription has ended with its slot.
            if let Some(calls) = &self.calls {
                calls.look_for_revocations();
            }
        }
    }

    /// Says goodbye on the connection for publications.
    pub(super) async fn leave(&self) {
        self.common.subscriber.quit().await;
    }

    /// Passes on what arrives until the future is dropped.
    async fn listen(&self) {
        let mut messages = self.common.subscriber.messages();
        loop {
            match messages.recv().await {
                Ok(message) => {
                    self.received.fetch_add(1, Ordering::Relaxed);
                    if self.pass_on(message).is_none() {
                        self.unreadable.fetch_add(1, Ordering::Relaxed);
                    }
                }
                Err(RecvError::Lagged(count)) => {
                    self.lagged.fetch_add(1, Ordering::Relaxed);
                    tracing::warn!(category = "error", event = "redis_messages_lost", count);
                    self.links.may_have_missed();
                    if let Some(calls) = &self.calls {
                        calls.may_have_missed();
                    }
                }
                Err(RecvError::Closed) => std::future::pending::<()>().await,
            }
        }
    }

    /// `None` for a message that cannot be read.
    fn pass_on(&self, message: Message) -> Option<()> {
        let Common { names, nodes, subscriber, mail, .. } = &self.common;
        let mut body = bytes_of(message.value)?;
        let Some(channel) = names.channel(&message.channel) else {
            if let Some(calls) = &self.calls
                && calls.handle(&message.channel, &body)?
            {
                return Some(());
            }
            subscriber.probe_returned(std::str::from_utf8(&body).ok()?.parse().ok()?);
            return Some(());
        };
        let kind = *body.first()?;
        body.advance(1);
        if matches!(kind, b'p' | b'r') {
            let (position, rest) = position::read_front(&body)?;
            let Some((channel, durable)) = self.links.saw(&channel, position) else {
                return Some(());
            };
            body.advance(rest);
            if let (Some(durable), true) = (&self.common.durable, durable) {
                return self.pass_on_durable(durable, (&channel, kind), position, body);
            }
            let update = match kind {
                b'p' => ChannelUpdate::Published(nodes.placed(position, body)?),
                _ => ChannelUpdate::Removed(position),
            };
            if !mail.tell(&channel, update) {
                self.links.gave_up(&channel);
            }
            return Some(());
        }
        if kind == b'f' {
            // Somebody took this node for gone, and Redis has lost its members.
            if take_first(&mut body)? == nodes.own() {
                mail.tell(&channel.as_ref().into(), ChannelUpdate::TellMembers);
            }
            return Some(());
        }
        let (node, update) = members_update(kind, body)?;
        if nodes.note_foreign(node)
            && let Some((channel, durable)) = self.links.saw_members(&channel, &update)
        {
            if let (Some(durable), true) = (&self.common.durable, durable) {
                durable.saw_members(&channel, &update);
            }
            mail.tell(&channel, update);
        }
        Some(())
    }

    /// Another node has made rows; what this one has made is known.
    fn pass_on_durable(
        &self,
        durable: &Durable,
        (channel, kind): (&ChannelName, u8),
        position: StreamPosition,
        body: Bytes,
    ) -> Option<()> {
        let update = match kind {
            b'p' => match self.common.nodes.placed_by(position, body)? {
                (_, true) => return Some(()),
                (placed, false) => ChannelUpdate::Published(placed),
            },
            _ => ChannelUpdate::Removed(position),
        };
        if position.offset > 0 {
            durable.saw(channel, position);
        }
        if !self.common.mail.tell(channel, update) {
            durable.gave_up(channel);
        }
        Some(())
    }
}

/// What a message about members means, and whose they are.
fn members_update(kind: u8, mut body: Bytes) -> Option<(u64, ChannelUpdate)> {
    if kind == b'm' {
        let node = take_first(&mut body)?;
        let mut members = Vec::new();
        while !body.is_empty() {
            let field = take_field(&mut body)?;
            members.push((record::member_id(&field)?, record::take_member(&mut body)?));
        }
        return Some((node, ChannelUpdate::Members(node, members)));
    }
    let id = record::member_id(&take_field(&mut body)?)?;
    let update = match kind {
        b'j' => ChannelUpdate::Joined(id, record::take_member(&mut body)?),
        b'l' => ChannelUpdate::Left(id),
        _ => return None,
    };
    Some((id.node, update))
}

/// The node in the first part of its members' fields.
fn take_first(body: &mut Bytes) -> Option<u64> {
    if body.len() < FIRST_BYTES {
        return None;
    }
    let first = body.split_to(FIRST_BYTES);
    let digits = std::str::from_utf8(first.strip_suffix(b"/")?).ok()?;
    u64::from_str_radix(digits, 16).ok()
}

fn take_field(body: &mut Bytes) -> Option<Bytes> {
    (body.len() >= FIELD_BYTES).then(|| body.split_to(FIELD_BYTES))
}
