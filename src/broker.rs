//! The broker between nodes: channels that reach further than this process, through Redis.
//!
//! The home of a channel (core, `home/link.rs`) asks; this part does what has to wait for a network. Writes leave in order
//! and in batches (`publisher`), attached channels are kept subscribed, read and checked (`links`), what arrives is passed on
//! to the homes (`listen`) through their mailboxes (`mail`). A restart or failover of Redis begins every stream anew
//! (`scripts`), and everything that could have been missed is found by comparing positions, never assumed.

mod links;
mod mail;
mod names;
mod nodes;
pub(crate) mod orders;
mod position;
mod publisher;
mod record;
mod scripts;
mod subscriber;

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::{Buf, Bytes};
use fred::types::Message;
use gateway_core::broker::{BrokerOp, BrokerRequest, ChannelUpdate, Retention};
use gateway_core::message::{ChannelName, Origin, Publish};
use tokio::sync::broadcast::error::RecvError;
use tokio::task::JoinSet;

use crate::bridge::Bridge;
use crate::cluster::Cluster;
use crate::config::Config;
use crate::redis::RedisUrlError;
use links::{Common, Links};
use mail::Mail;
use names::Names;
use nodes::Nodes;
use orders::{Affected, Order, Orders};
use publisher::{Publisher, Write, WriteKind, WriteLimits};
use scripts::Scripts;
use subscriber::Subscriber;

/// Length of a member's field: two numbers of 16 digits and a stroke.
const FIELD_BYTES: usize = 33;
/// Length of the part of it that names the node.
const FIRST_BYTES: usize = 17;

/// Counters and gauges, for `/metrics`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BrokerCounts {
    /// Operations written, failed, and refused because too many waited.
    pub writes: [u64; 3],
    /// Calls that carried them.
    pub calls: u64,
    /// Operations that wait.
    pub waiting: usize,
    /// Messages received.
    pub received: u64,
    /// Messages that could not be read.
    pub unreadable: u64,
    /// Times the receiver was too slow and messages were lost.
    pub lagged: u64,
    /// Publications given up because a shard's mailbox stayed full.
    pub given_up: u64,
    /// Attached channels.
    pub channels: usize,
    /// Snapshots read.
    pub snapshots: u64,
    /// Channels that were found behind Redis by a check.
    pub missed: u64,
    /// Connections dropped because a probe did not come back.
    pub probe_reconnects: u64,
    /// Last probe through Redis and back.
    pub probe: Duration,
}

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Broker {
    common: Common,
    publisher: Publisher,
    links: Links,
    orders: Arc<Orders>,
    compression_bytes_min: usize,
    /// Named for this process, whatever the node is called later.
    probe_topic: String,
    probe_interval: Duration,
    lease_interval: Duration,
    received: AtomicU64,
    unreadable: AtomicU64,
    lagged: AtomicU64,
}

impl Broker {
    /// Begins to connect. Must be called inside the runtime.
    pub(crate) fn start(
        config: &Config,
        bridge: &Bridge,
        cluster: &Arc<Cluster>,
    ) -> Result<Arc<Self>, RedisUrlError> {
        let section = &config.redis;
        let redis = Arc::clone(cluster.redis());
        let clustered = redis.is_clustered();
        let common = Common {
            scripts: Arc::new(Scripts::new(&section.prefix, clustered)),
            subscriber: Arc::new(Subscriber::new(redis.subscriber()?, section.command_timeout)),
            names: Names::new(&section.prefix),
            mail: Arc::new(Mail::new(bridge.clone(), section.updates_waiting_max as usize)),
            nodes: Arc::new(Nodes::new(
                Arc::clone(cluster),
                bridge.clone(),
                config.cluster.lease_ttl,
            )),
            redis,
        };
        let limits = WriteLimits {
            waiting_max: section.writes_waiting_max as usize,
            // Keys of several channels live on several nodes of a Redis Cluster.
            batch_max: if clustered { 1 } else { section.batch_max as usize },
            deadline: section.command_timeout,
            position_ttl: section.position_ttl,
            idempotency_ttl: config.channels.idempotency_ttl,
        };
        let publisher = Publisher::new(
            (Arc::clone(&common.redis), Arc::clone(&common.scripts)),
            common.names.clone(),
            Arc::clone(&common.mail),
            limits,
        );
        let links = Links::new(common.clone(), section.position_ttl, section.check_interval);
        let orders = Orders::new(
            (Arc::clone(&common.redis), Arc::clone(&common.subscriber)),
            Arc::clone(&common.nodes),
            bridge.clone(),
            &section.prefix,
            config.api.timeout / 2,
        );
        Ok(Arc::new(Self {
            publisher,
            links,
            orders: Arc::new(orders),
            compression_bytes_min: match section.compression_bytes_min {
                0 => usize::MAX,
                bytes => bytes,
            },
            probe_topic: common.names.probe(common.nodes.own()),
            common,
            probe_interval: section.ping_interval,
            lease_interval: config.cluster.lease_interval,
            received: AtomicU64::new(0),
            unreadable: AtomicU64::new(0),
            lagged: AtomicU64::new(0),
        }))
    }

    /// Starts what runs as long as the node.
    pub(crate) fn spawn(self: &Arc<Self>, tasks: &mut JoinSet<()>) {
        let of = || Arc::clone(self);
        let broker = of();
        tasks.spawn(async move { broker.publisher.run().await });
        let broker = of();
        tasks.spawn(async move { broker.links.run().await });
        let broker = of();
        tasks.spawn(async move { broker.links.check_positions().await });
        let broker = of();
        tasks.spawn(async move { broker.common.mail.run().await });
        let broker = of();
        tasks.spawn(async move { broker.listen().await });
        let broker = of();
        tasks.spawn(async move { broker.follow_connections().await });
        let broker = of();
        tasks.spawn(async move {
            let interval = broker.lease_interval / 2;
            broker.common.nodes.watch(&broker.common.mail, interval).await;
        });
        let broker = of();
        tasks.spawn(async move {
            let Common { subscriber, redis, .. } = &broker.common;
            subscriber.probe(redis, &broker.probe_topic, broker.probe_interval).await;
        });
    }

    /// Counters and gauges.
    pub(crate) fn counts(&self) -> BrokerCounts {
        let [written, failed, refused, calls] = self.publisher.counts();
        let [snapshots, missed] = self.links.counts();
        let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
        BrokerCounts {
            writes: [written, failed, refused],
            calls,
            waiting: self.publisher.waiting(),
            received: load(&self.received),
            unreadable: load(&self.unreadable),
            lagged: load(&self.lagged),
            given_up: self.common.mail.given_up(),
            channels: self.links.count(),
            snapshots,
            missed,
            probe_reconnects: self.common.subscriber.reconnects(),
            probe: self.common.subscriber.probe_time(),
        }
    }

    /// A home asks. Never waits.
    pub(crate) fn handle(&self, request: BrokerRequest) {
        let BrokerRequest { channel, op } = request;
        match op {
            BrokerOp::Attach(scope) => self.links.want(&channel, scope, None),
            BrokerOp::Sync(known, scope) => self.links.want(&channel, scope, Some(known)),
            BrokerOp::Detach => self.links.leave(&channel),
            BrokerOp::Publish { origin, publish, retention } => {
                self.publish(channel, origin, *publish, retention);
            }
            BrokerOp::HistoryRemove { origin } => {
                self.write(channel, WriteKind::Remove { origin }, Vec::new());
            }
            BrokerOp::Joined { id, member } => {
                let field = record::member_field(self.common.nodes.own(), id);
                let member = record::encode_member(&member);
                let payload = [b"j", field.as_bytes(), &member].concat();
                self.write(channel, WriteKind::Joined { field, member }, payload);
            }
            BrokerOp::Left { id } => {
                let field = record::member_field(self.common.nodes.own(), id);
                let payload = [b"l", field.as_bytes()].concat();
                self.write(channel, WriteKind::Left { field }, payload);
            }
            BrokerOp::Members(members) => {
                let own = self.common.nodes.own();
                let first = record::node_fields(own);
                let mut payload = [b"m", first.as_bytes()].concat();
                let mut fields = Vec::with_capacity(members.len());
                for (id, member) in members {
                    let (field, member) =
                        (record::member_field(own, id), record::encode_member(&member));
                    payload.extend_from_slice(field.as_bytes());
                    payload.extend_from_slice(&member);
                    fields.push((field, member));
                }
                self.write(channel, WriteKind::Members { first, members: fields }, payload);
            }
        }
    }

    fn publish(
        &self,
        channel: ChannelName,
        origin: Origin,
        publish: Publish,
        retention: Retention,
    ) {
        let sender = match origin {
            Origin::Connection { id, .. } if publish.no_echo => Some(id),
            _ => None,
        };
        let stamp = record::Stamp { node: self.common.nodes.own(), sender, unix: unix_now() };
        let payload = record::encode(&publish, stamp, self.compression_bytes_min);
        let kind = if publish.skip_history {
            WriteKind::PublishOutside { origin }
        } else {
            let Retention { size, ttl } = retention;
            WriteKind::Publish { origin, size, ttl, key: publish.idempotency_key }
        };
        self.write(channel, kind, payload);
    }

    fn write(&self, channel: ChannelName, kind: WriteKind, payload: Vec<u8>) {
        self.publisher.push(Write { channel, kind, payload, at: Instant::now() });
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
                    let topics = self.orders.topics().into_iter().chain([self.probe_topic.clone()]);
                    let probed = self.common.subscriber.subscribe_own(topics.collect()).await;
                    self.orders.catch_up().await;
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
                }
                Err(RecvError::Closed) => std::future::pending::<()>().await,
            }
        }
    }

    /// `None` for a message that cannot be read.
    fn pass_on(&self, message: Message) -> Option<()> {
        let Common { names, nodes, subscriber, mail, .. } = &self.common;
        let mut body = links::bytes_of(message.value)?;
        let Some(channel) = names.channel(&message.channel) else {
            if self.orders.handle(&message.channel, &body)? {
                return Some(());
            }
            subscriber.probe_returned(std::str::from_utf8(&body).ok()?.parse().ok()?);
            return Some(());
        };
        let kind = *body.first()?;
        body.advance(1);
        if matches!(kind, b'p' | b'r') {
            let (position, rest) = position::read_front(&body)?;
            let Some(channel) = self.links.saw(&channel, position) else { return Some(()) };
            body.advance(rest);
            let update = match kind {
                b'p' => ChannelUpdate::Published(nodes.placed(position, body)?),
                _ => ChannelUpdate::Removed(position),
            };
            mail.tell(&channel, update);
            return Some(());
        }
        let (node, update) = members_update(kind, body)?;
        if nodes.note_foreign(node) {
            mail.tell(&ChannelName::from(&*channel), update);
        }
        Some(())
    }

    /// Carries an order out on all nodes, this one included.
    pub(crate) async fn give(&self, order: &Order) -> Affected {
        self.orders.give(order).await
    }

    /// Says goodbye on the connection for publications.
    pub(crate) async fn leave(&self) {
        self.common.subscriber.quit().await;
    }
}

/// What a message about members means, and whose they are.
fn members_update(kind: u8, mut body: Bytes) -> Option<(u64, ChannelUpdate)> {
    if kind == b'm' {
        if body.len() < FIRST_BYTES {
            return None;
        }
        let first = body.split_to(FIRST_BYTES);
        let digits = std::str::from_utf8(first.strip_suffix(b"/")?).ok()?;
        let node = u64::from_str_radix(digits, 16).ok()?;
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

fn take_field(body: &mut Bytes) -> Option<Bytes> {
    (body.len() >= FIELD_BYTES).then(|| body.split_to(FIELD_BYTES))
}

/// A name for a stream that begins, should it begin.
fn new_epoch() -> String {
    const ALPHABET: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";
    let mut random = RandomState::new().hash_one("epoch");
    let mut epoch = String::with_capacity(8);
    for _ in 0..8 {
        epoch.push(char::from(ALPHABET[(random % 36) as usize]));
        random /= 36;
    }
    epoch
}

fn unix_now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}
