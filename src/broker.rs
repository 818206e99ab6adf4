//! The broker between nodes: channels that reach further than this process, through Redis.
//!
//! The home of a channel (core, `home/link.rs`) asks; this part does what has to wait for a network. Writes leave in order
//! and in batches (`publisher`), attached channels are kept subscribed, read and checked (`links`), what arrives is passed on
//! to the homes (`listen`) through their mailboxes (`mail`). A restart or failover of Redis begins every stream anew
//! (`scripts`), and everything that could have been missed is found by comparing positions, never assumed.

pub(crate) mod calls;
mod instance;
mod links;
pub(crate) mod mail;
pub(crate) mod members;
mod names;
mod nodes;
pub(crate) mod orders;
pub(crate) mod position;
mod publisher;
mod rates;
pub(crate) mod record;
mod scripts;
mod snapshot;
mod spread;
mod subscriber;
#[cfg(test)]
mod tests;

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use gateway_core::admission::Admission;
use gateway_core::broker::{BrokerOp, BrokerRequest, Retention, Scope};
use gateway_core::ids::ConnectionId;
use gateway_core::message::{ChannelName, Epoch, Origin, Publish, StreamPosition};
use gateway_core::occurrence::PlacedMessage;
use tokio::task::JoinSet;

use crate::api::everywhere::Question;
use crate::bridge::Bridge;
use crate::cluster::Cluster;
use crate::config::Config;
use crate::durable::Durable;
use crate::events::Events;
use crate::plane::SharedPlane;
use crate::redis::{Redis, RedisUrlError};
use calls::{Calls, Gathered};
use instance::Instance;
use mail::Mail;
use names::Names;
use nodes::Nodes;
use orders::{Affected, Kept, Order};
use publisher::{Write, WriteKind, WriteLimits};
use rates::Rates;
use scripts::Scripts;
use spread::Spread;
use subscriber::Subscriber;

/// Counters and gauges, for `/metrics`.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct BrokerCounts {
    /// Operations written, failed, refused because too many waited, and publications that reached this node only.
    pub writes: [u64; 4],
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
    /// Questions to other nodes that all answered, and others.
    pub questions: [u64; 2],
    /// Questions of other nodes that were refused because too many were under way.
    pub questions_refused: u64,
    /// Whether revocations may be unknown to this node.
    pub revocations_behind: bool,
    /// Messages of users on other nodes that were counted here.
    pub charged: u64,
    /// Last probe through Redis and back.
    pub probe: Duration,
    /// Since it came back, on the server where that is longest ago; `None` when on some none has come back yet.
    pub probe_age: Option<Duration>,
    /// Servers that answer and carry messages, and others.
    pub servers: [usize; 2],
}

/// What all parts of the broker use.
#[derive(Clone, Debug)]
struct Common {
    /// Number of the server among those that keep channels.
    server: u16,
    redis: Arc<Redis>,
    scripts: Arc<Scripts>,
    subscriber: Arc<Subscriber>,
    names: Names,
    mail: Arc<Mail>,
    nodes: Arc<Nodes>,
    durable: Option<Arc<Durable>>,
    /// Where messages of clients are told, when anywhere.
    events: Option<Arc<Events>>,
}

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Broker {
    instances: Vec<Arc<Instance>>,
    spread: Spread,
    mail: Arc<Mail>,
    nodes: Arc<Nodes>,
    calls: Arc<Calls>,
    /// Where the nodes meet, when no channels are kept there.
    meeting: Option<Arc<Instance>>,
    compression_bytes_min: usize,
    lease_interval: Duration,
    share_interval: Duration,
}

impl Broker {
    /// Begins to connect. Must be called inside the runtime.
    pub(crate) fn start(
        config: &Config,
        (bridge, admission): (&Bridge, Arc<Admission>),
        (mail, durable): (&Arc<Mail>, Option<&Arc<Durable>>),
        (cluster, events): (&Arc<Cluster>, Option<&Arc<Events>>),
    ) -> Result<Arc<Self>, RedisUrlError> {
        let section = &config.redis;
        let lease_ttl = config.cluster.lease_ttl;
        let nodes = Arc::new(Nodes::new(Arc::clone(cluster), bridge.clone(), lease_ttl));
        let common = |server: u16, redis: &Arc<Redis>| -> Result<Common, RedisUrlError> {
            Ok(Common {
                server,
                scripts: Arc::new(Scripts::new(&section.prefix, redis.is_clustered())),
                subscriber: Arc::new(Subscriber::new(redis.subscriber()?, section.command_timeout)),
                names: Names::new(&section.prefix),
                mail: Arc::clone(mail),
                nodes: Arc::clone(&nodes),
                durable: durable.map(Arc::clone),
                redis: Arc::clone(redis),
                events: events.map(Arc::clone),
            })
        };
        let meeting = common(0, cluster.redis())?;
        let calls = Arc::new(Calls::new(
            (Arc::clone(&meeting.redis), Arc::clone(&meeting.subscriber)),
            Arc::clone(&nodes),
            (
                Kept::new(Arc::clone(&meeting.redis), bridge.clone(), &section.prefix),
                Rates::new(admission, bridge.clone()),
            ),
            &section.prefix,
            // Longer than a node waits for its own shards, so that a stalled shard does not cost the node's whole answer.
            (config.api.timeout * 3 / 4, config.cluster.questions_at_once_max as usize),
        ));
        let instance = |common: Common, calls: Option<&Arc<Calls>>| {
            let limits = write_limits(config, common.redis.is_clustered());
            Arc::new(Instance::new(common, calls.map(Arc::clone), section, limits))
        };
        let first = instance(meeting, Some(&calls));
        let mut instances = Vec::new();
        for (server, redis) in (0..).zip(cluster.channel_servers()) {
            instances.push(instance(common(server, redis)?, None));
        }
        let meeting = if instances.is_empty() {
            instances.push(first);
            None
        } else {
            Some(first)
        };
        Ok(Arc::new(Self {
            spread: Spread::new(cluster.channel_servers().iter().map(|redis| redis.name())),
            instances,
            mail: Arc::clone(mail),
            nodes,
            calls,
            meeting,
            compression_bytes_min: match section.compression_bytes_min {
                0 => usize::MAX,
                bytes => bytes,
            },
            lease_interval: config.cluster.lease_interval,
            share_interval: config.rate_limits.share_interval,
        }))
    }

    fn all_instances(&self) -> impl Iterator<Item = &Arc<Instance>> {
        self.instances.iter().chain(&self.meeting)
    }

    /// Starts what runs as long as the node.
    pub(crate) fn spawn(self: &Arc<Self>, plane: &SharedPlane, tasks: &mut JoinSet<()>) {
        self.calls.attend(plane);
        for instance in self.all_instances() {
            instance.spawn(tasks);
        }
        for instance in &self.instances {
            let instance = Arc::clone(instance);
            tasks.spawn(async move { instance.follow_outages().await });
        }
        let broker = Arc::clone(self);
        tasks.spawn(async move { broker.calls.learn().await });
        let broker = Arc::clone(self);
        tasks.spawn(async move { broker.calls.share_rates(broker.share_interval).await });
        let broker = Arc::clone(self);
        tasks.spawn(async move {
            let came_back =
                || broker.instances.iter().for_each(|instance| instance.links.read_all());
            broker.nodes.watch(&broker.mail, broker.lease_interval / 2, came_back).await;
        });
    }

    /// A shard names a user who sends much.
    pub(crate) fn note_busy(&self, user: Arc<str>) {
        self.calls.note_busy(user);
    }

    /// Counters and gauges, of all servers together.
    pub(crate) fn counts(&self) -> BrokerCounts {
        let (given_up, questions) = (self.mail.given_up(), self.calls.counts());
        let mut counts = BrokerCounts {
            given_up,
            questions,
            questions_refused: self.calls.refused(),
            revocations_behind: self.calls.is_behind(),
            charged: self.calls.charged(),
            probe_age: Some(Duration::ZERO),
            ..Default::default()
        };
        for instance in self.all_instances() {
            instance.count_into(&mut counts);
        }
        counts
    }

    fn instance_of(&self, channel: &str) -> &Instance {
        &self.instances[self.spread.of(channel)]
    }

    /// A home asks. Never waits.
    pub(crate) fn handle(&self, request: BrokerRequest) {
        let BrokerRequest { channel, op, .. } = request;
        match op {
            BrokerOp::Attach(scope) => self.instance_of(&channel).links.want(&channel, scope, None),
            BrokerOp::Sync(known, scope) => {
                self.instance_of(&channel).links.want(&channel, scope, Some(known));
            }
            BrokerOp::Detach => self.instance_of(&channel).links.leave(&channel),
            BrokerOp::Page { .. } => unreachable!("only homes of durable channels ask for pages"),
            BrokerOp::Publish { origin, publish, retention } => {
                self.publish(channel, origin, *publish, retention);
            }
            BrokerOp::HistoryRemove { origin } => {
                self.write(channel, WriteKind::Remove { origin }, Bytes::new());
            }
            BrokerOp::Joined { id, member } => {
                let field = record::member_field(self.nodes.own(), id);
                let member = record::encode_member(&member);
                let payload = [b"j", field.as_bytes(), &member].concat();
                self.write(channel, WriteKind::Joined { field, member }, payload.into());
            }
            BrokerOp::Left { id } => {
                let field = record::member_field(self.nodes.own(), id);
                let payload = [b"l", field.as_bytes()].concat();
                self.write(channel, WriteKind::Left { field }, payload.into());
            }
            BrokerOp::Forget { node } => {
                let first = record::node_fields(node);
                let payload = [b"f", first.as_bytes()].concat();
                self.write(channel, WriteKind::Forget { first }, payload.into());
            }
            BrokerOp::Members(members) => {
                let own = self.nodes.own();
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
                self.write(channel, WriteKind::Members { first, members: fields }, payload.into());
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
        let sender = publish.sender_without_copy(origin);
        let payload = self.record_of(&publish, sender, unix_now()).into();
        let told = publish.told.then(|| {
            // Its place is not known yet.
            let nowhere = StreamPosition { offset: 0, epoch: Epoch::NONE };
            Box::new(PlacedMessage::new(&channel, &publish, nowhere))
        });
        let kind = if publish.skip_history {
            WriteKind::PublishOutside { origin }
        } else {
            let Retention { size, ttl } = retention;
            WriteKind::Publish { origin, size, ttl, key: publish.idempotency_key }
        };
        self.push(Write { channel, kind, payload, at: Instant::now(), told });
    }

    fn record_of(
        &self,
        publish: &Publish,
        sender: Option<ConnectionId>,
        unix: Duration,
    ) -> Vec<u8> {
        let stamp = record::Stamp { node: self.nodes.own(), sender, unix };
        record::encode(publish, stamp, self.compression_bytes_min)
    }

    /// Number of this node.
    pub(crate) fn own_node(&self) -> u64 {
        self.nodes.own()
    }

    /// Whether a number is, or was, that of this node.
    pub(crate) fn is_own(&self, node: u64) -> bool {
        self.nodes.is_own(node)
    }

    /// Number of the server that knows the members of a channel.
    pub(crate) fn server_of(&self, channel: &str) -> u16 {
        self.instance_of(channel).server()
    }

    /// A home is attached to a durable channel: it hears here what other nodes publish, and of their members.
    pub(crate) fn attach_durable(&self, channel: &ChannelName, scope: Scope) {
        self.instance_of(channel).links.want_durable(channel, scope);
    }

    /// Tells homes on other nodes of a durable publication, or that everything up to `position` was removed. It may get
    /// lost: they look into the database from time to time.
    pub(crate) fn tell_others(
        &self,
        channel: &ChannelName,
        position: StreamPosition,
        publication: Option<(&Publish, Option<ConnectionId>, Duration)>,
    ) {
        let letter = if publication.is_some() { 'p' } else { 'r' };
        let mut payload = format!("{letter}{}:", position::text(position)).into_bytes();
        if let Some((publish, sender, unix)) = publication {
            payload.extend(self.record_of(publish, sender, unix));
        }
        self.write(ChannelName::clone(channel), WriteKind::Tell, payload.into());
    }

    fn write(&self, channel: ChannelName, kind: WriteKind, payload: Bytes) {
        self.push(Write { channel, kind, payload, at: Instant::now(), told: None });
    }

    fn push(&self, write: Write) {
        self.instance_of(&write.channel).publisher.push(write);
    }

    /// Carries an order out on all nodes, this one included.
    pub(crate) async fn give(&self, bridge: &Bridge, order: &Order) -> Affected {
        self.calls.give(bridge, order).await
    }

    /// Asks all other nodes.
    pub(crate) async fn ask_others(&self, question: &Question) -> Gathered {
        self.calls.ask_others(question).await
    }

    /// Asks one node, this one not.
    pub(crate) async fn ask_one(&self, node: u64, question: &Question) -> Gathered {
        self.calls.ask_one(node, question).await
    }

    /// Numbers of all nodes that the cluster lists, in order, this one included; and this one's.
    pub(crate) fn node_numbers(&self) -> (Vec<u64>, u64) {
        let own = self.nodes.own();
        let mut all = self.nodes.others();
        all.push(own);
        all.sort_unstable();
        (all, own)
    }

    /// Says goodbye on the connections for publications.
    pub(crate) async fn leave(&self) {
        futures_util::future::join_all(self.all_instances().map(|instance| instance.leave())).await;
    }
}

fn write_limits(config: &Config, one_channel: bool) -> WriteLimits {
    let section = &config.redis;
    WriteLimits {
        waiting_max: section.writes_waiting_max as usize,
        waiting_bytes_max: section.writes_waiting_bytes_max,
        batch_max: section.batch_max as usize,
        one_channel,
        deadline: section.command_timeout,
        position_ttl: section.position_ttl,
        idempotency_ttl: config.channels.idempotency_ttl,
        fan_out_locally: section.fan_out_locally,
    }
}

/// A name for a stream that begins, should it begin.
pub(crate) fn new_epoch() -> String {
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
