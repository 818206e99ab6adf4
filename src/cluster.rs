//! The nodes of a cluster: who is there, how full each is, and where a client goes.
//!
//! Every node holds a lease in Redis and renews it, with a description of itself; the answer names all others. A lease that
//! runs out is ended by whoever sees it first, and the node is gone for all. A node that finds its own lease ended was
//! away for longer than the others could wait: it is fenced, which means that it comes back as another node, under a new
//! id. While Redis does not answer, the nodes seen last stay in use and are called stale.
//!
//! Invariant: an id is never used again after its lease has ended.

mod choose;
mod node;
mod reach;
pub(crate) mod routes;

use std::collections::VecDeque;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use fred::interfaces::LuaInterface;
use futures_util::future::join_all;
use gateway_core::message::ShardOp;
use tokio::sync::{Notify, watch};

use crate::config::Config;
use crate::config::sections::{RedisSection, Strategy};
use crate::digest;
use crate::health::LifePhase;
use crate::load::Load;
use crate::plane::Plane;
use crate::redis::{Redis, RedisError, RedisUrlError};
use crate::web_client::TrustError;
use choose::Chooser;
pub(crate) use node::{Node, NodeState};
use reach::Reach;

const RENEW: &str = include_str!("cluster/lease.lua");
const LEAVE: &str = include_str!("cluster/leave.lua");
/// Most nodes a draining one names to its clients.
const MOVE_TO_MAX: usize = 64;

/// A node cannot take part in a cluster.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClusterError {
    /// A server's URL is bad.
    #[error(transparent)]
    Redis(#[from] RedisUrlError),
    /// Other nodes cannot be asked.
    #[error("cluster.probe_interval is set, but no HTTP client can be made: {0}")]
    Probes(#[source] TrustError),
}

/// All nodes as they were seen last.
#[derive(Debug, Default)]
pub(crate) struct View {
    /// In order of their ids.
    pub nodes: Vec<Node>,
    /// When they were asked for; `None` before the first answer.
    pub seen_at: Option<Instant>,
}

/// The lease of this node.
#[derive(Debug)]
struct Lease {
    id: String,
    held: bool,
}

/// This node's place in its cluster.
#[derive(Debug)]
pub(crate) struct Cluster {
    redis: Arc<Redis>,
    /// Servers that keep channels, when these are others.
    channel_servers: Vec<Arc<Redis>>,
    /// What the channels of all nodes must have in common.
    channels_on: String,
    /// Whether some node has its channels elsewhere.
    divided: AtomicBool,
    keys: [String; 2],
    name: String,
    url: Option<String>,
    weight: u32,
    lease_ttl: Duration,
    lease_interval: Duration,
    lease: Mutex<Lease>,
    view: ArcSwap<View>,
    chooser: Chooser,
    /// Which of the others answer; absent when they are not asked.
    reach: Option<Reach>,
    /// What the shards were told of the others last.
    told: Mutex<Arc<[Box<str>]>>,
    renew_now: Notify,
    /// Told of every view.
    seen: watch::Sender<()>,
    leases_lost: AtomicU64,
}

/// What a renewal came to.
#[derive(Debug, PartialEq)]
struct Renewal {
    lost: bool,
    ended: Vec<String>,
    nodes: Vec<Node>,
}

impl Cluster {
    /// Begins to connect. `None` without Redis. Must be called inside the runtime.
    pub(crate) fn start(config: &Config) -> Result<Option<Arc<Self>>, ClusterError> {
        let Some(url) = &config.redis.url else { return Ok(None) };
        if config.cluster.url.is_none() {
            tracing::warn!(
                category = "system",
                event = "cluster_url_unset",
                "cluster.url is not set: no client is sent to this node by others or by /connect",
            );
        }
        let redis = Redis::connect("redis.url", url.expose(), &config.redis)?;
        let mut channel_servers: Vec<Arc<Redis>> = Vec::new();
        for url in &config.redis.channel_urls {
            let server = Redis::connect("redis.channel_urls", url.expose(), &config.redis)?;
            if channel_servers.iter().any(|other| other.name() == server.name()) {
                return Err(RedisUrlError::Twice(server.name().to_owned()).into());
            }
            channel_servers.push(Arc::new(server));
        }
        let reach = Reach::new(&config.cluster).map_err(ClusterError::Probes)?;
        let cluster = Self::new(config, Arc::new(redis), channel_servers);
        Ok(Some(Arc::new(Self { reach, ..cluster })))
    }

    fn new(config: &Config, redis: Arc<Redis>, channel_servers: Vec<Arc<Redis>>) -> Self {
        let RedisSection { prefix, .. } = &config.redis;
        let cluster = &config.cluster;
        Self {
            channels_on: digest_of(&channel_servers),
            redis,
            channel_servers,
            divided: AtomicBool::new(false),
            // The part in braces keeps both on one node of a Redis Cluster.
            keys: [format!("{prefix}:{{nodes}}:leases"), format!("{prefix}:{{nodes}}:nodes")],
            lease: Mutex::new(Lease { id: new_id(&config.node.name), held: false }),
            name: config.node.name.clone(),
            url: cluster.url.clone(),
            weight: cluster.weight,
            lease_ttl: cluster.lease_ttl,
            lease_interval: cluster.lease_interval,
            view: ArcSwap::default(),
            chooser: Chooser::new(cluster.balance),
            reach: None,
            told: Mutex::default(),
            renew_now: Notify::new(),
            seen: watch::Sender::new(()),
            leases_lost: AtomicU64::new(0),
        }
    }

    /// The Redis where the nodes meet.
    pub(crate) fn redis(&self) -> &Arc<Redis> {
        &self.redis
    }

    /// Servers that keep channels; none when these are kept where the nodes meet.
    pub(crate) fn channel_servers(&self) -> &[Arc<Redis>] {
        &self.channel_servers
    }

    /// Every server of this node.
    pub(crate) fn all_servers(&self) -> impl Iterator<Item = &Arc<Redis>> {
        std::iter::once(&self.redis).chain(&self.channel_servers)
    }

    /// Whether some node has its channels on other servers, so that they are not the same channels.
    pub(crate) fn is_divided(&self) -> bool {
        self.divided.load(Ordering::Relaxed)
    }

    fn lease(&self) -> MutexGuard<'_, Lease> {
        self.lease.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Id of this node; another one after its lease was lost.
    pub(crate) fn id(&self) -> String {
        self.lease().id.clone()
    }

    /// Whether Redis has confirmed the lease within its length.
    pub(crate) fn holds_lease(&self) -> bool {
        let held = self.lease().held;
        held && !self.is_stale()
    }

    /// Times this node was fenced.
    pub(crate) fn leases_lost(&self) -> u64 {
        self.leases_lost.load(Ordering::Relaxed)
    }

    /// All nodes as they were seen last.
    pub(crate) fn view(&self) -> Arc<View> {
        self.view.load_full()
    }

    /// Whether the nodes were seen so long ago that their leases may have ended.
    pub(crate) fn is_stale(&self) -> bool {
        self.view.load().seen_at.is_none_or(|at| at.elapsed() > self.lease_ttl)
    }

    /// The strategy of [`Self::choose`].
    pub(crate) fn strategy(&self) -> Strategy {
        self.chooser.strategy()
    }

    /// A node for a client.
    pub(crate) fn choose(&self, key: &str) -> Option<Node> {
        let own = self.id();
        // This node was just reached by whoever asks.
        let reaches = |node: &Node| node.id == own || self.reaches(&node.id) != Some(false);
        self.chooser.choose(&self.view.load().nodes, key, reaches).cloned()
    }

    /// Whether another node answers over HTTP; `None` when the nodes are not asked.
    pub(crate) fn reaches(&self, id: &str) -> Option<bool> {
        self.reach.as_ref().map(|reach| reach.reaches(id))
    }

    /// URLs of the other nodes that take clients, for those that this node does not take or keep.
    pub(crate) fn others(&self) -> Vec<Box<str>> {
        let own = self.id();
        let view = self.view.load();
        let others = view.nodes.iter().filter(|node| node.id != own && node.takes_clients());
        let reached = others.filter(|node| self.reaches(&node.id) != Some(false));
        reached.filter_map(|node| node.url.as_deref().map(Box::from)).take(MOVE_TO_MAX).collect()
    }

    /// Tells the shards of the others when these have changed. A shard whose mailbox is full is told the next time.
    fn tell_others(&self, plane: &Plane) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let others: Arc<[Box<str>]> = self.others().into();
        if *told == others {
            return;
        }
        let tell = |shard| plane.bridge.tell(shard, ShardOp::Others(Arc::clone(&others))).is_ok();
        if plane.bridge.shard_ids().map(tell).fold(true, |all, one| all & one) {
            *told = others;
        }
    }

    /// The state of this node has changed: the others are told now.
    pub(crate) fn renew_soon(&self) {
        self.renew_now.notify_one();
    }

    /// Sees all nodes as they are at the time of the call or later, unless that takes longer than `limit`. Whether it did.
    pub(crate) async fn see_again(&self, limit: Duration) -> bool {
        if self.is_stale() {
            return false;
        }
        let asked_at = Instant::now();
        let mut seen = self.seen.subscribe();
        self.renew_soon();
        let is_new = |_: &()| self.view.load().seen_at.is_some_and(|at| at >= asked_at);
        matches!(tokio::time::timeout(limit, seen.wait_for(is_new)).await, Ok(Ok(_)))
    }

    /// Watches all servers until the future is dropped.
    pub(crate) async fn watch_redis(self: Arc<Self>) {
        join_all(self.all_servers().map(|server| server.watch())).await;
    }

    /// Asks the other nodes whether they answer, until the future is dropped.
    pub(crate) async fn watch_nodes(self: Arc<Self>, plane: Arc<Plane>) {
        let Some(reach) = &self.reach else { return std::future::pending().await };
        loop {
            tokio::time::sleep(reach.interval()).await;
            reach.round(&self.view().nodes, &self.id()).await;
            self.tell_others(&plane);
        }
    }

    /// Renews the lease until the future is dropped.
    pub(crate) async fn run(self: Arc<Self>, plane: Arc<Plane>) {
        loop {
            let lost = self.renew(&plane).await;
            if lost {
                continue;
            }
            tokio::select! {
                () = tokio::time::sleep(self.lease_interval) => {}
                () = self.renew_now.notified() => {}
            }
        }
    }

    /// Whether the lease turned out to be lost.
    async fn renew(&self, plane: &Plane) -> bool {
        let (id, held) = {
            let lease = self.lease();
            (lease.id.clone(), lease.held)
        };
        let node = self.describe(id.clone(), plane);
        let Ok(text) = serde_json::to_string(&node) else { return false };
        let arguments =
            vec![id, self.lease_ttl.as_millis().to_string(), text, held_word(held).to_owned()];
        let keys = self.keys.to_vec();
        let asked_at = Instant::now();
        let answer: Result<Vec<String>, RedisError> =
            self.redis.call(async |client| client.eval(RENEW, keys, arguments).await).await;
        match answer.map(read_renewal) {
            Ok(Some(renewal)) => {
                let lost = self.apply(renewal, asked_at);
                self.tell_others(plane);
                lost
            }
            Ok(None) => {
                tracing::error!(category = "error", event = "lease_answer_unreadable");
                false
            }
            // The breaker has logged it.
            Err(_) => false,
        }
    }

    fn describe(&self, id: String, plane: &Plane) -> Node {
        let load = Load::of(plane);
        Node {
            id,
            name: self.name.clone(),
            url: self.url.clone(),
            state: match plane.health.phase() {
                LifePhase::Starting => NodeState::Starting,
                LifePhase::Ready => NodeState::Up,
                LifePhase::Draining => NodeState::Draining,
            },
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_seconds: plane.uptime().as_secs(),
            shards: plane.bridge.shards().count(),
            connections: load.connections,
            connections_max: load.connections_max,
            channels_on: self.channels_on.clone(),
            load_permille: load.busy_permille,
            weight: self.weight,
        }
    }

    fn apply(&self, renewal: Renewal, asked_at: Instant) -> bool {
        let Renewal { lost, ended, nodes } = renewal;
        for id in ended {
            tracing::warn!(category = "system", event = "node_lease_ended", node = id);
        }
        {
            let mut lease = self.lease();
            lease.held = !lost;
            if lost {
                let old = std::mem::replace(&mut lease.id, new_id(&self.name));
                self.leases_lost.fetch_add(1, Ordering::Relaxed);
                tracing::error!(
                    category = "error",
                    event = "lease_lost",
                    node = old,
                    new_node = lease.id,
                    "this node was away for longer than cluster.lease_ttl, or Redis lost its data",
                );
            }
        }
        self.note_changes(&nodes);
        self.note_division(&nodes);
        self.chooser.nodes_seen(&nodes);
        self.view.store(Arc::new(View { nodes, seen_at: Some(asked_at) }));
        self.seen.send_replace(());
        lost
    }

    fn note_changes(&self, nodes: &[Node]) {
        let before = self.view.load();
        let misses = |nodes: &[Node], id: &str| nodes.iter().all(|node| node.id != id);
        for node in nodes.iter().filter(|node| misses(&before.nodes, &node.id)) {
            tracing::info!(
                category = "system",
                event = "node_joined",
                node = node.id,
                url = node.url
            );
        }
        for node in before.nodes.iter().filter(|node| misses(nodes, &node.id)) {
            tracing::info!(category = "system", event = "node_left", node = node.id);
        }
    }

    /// Nodes with different lists of servers would publish where the others do not listen.
    fn note_division(&self, nodes: &[Node]) {
        let other = nodes.iter().find(|node| node.channels_on != self.channels_on);
        let before = self.divided.swap(other.is_some(), Ordering::Relaxed);
        match other {
            Some(node) if !before => tracing::error!(
                category = "error",
                event = "channels_divided",
                node = node.id,
                "this node and the other have different redis.channel_urls: their channels do not meet",
            ),
            None if before => tracing::info!(category = "system", event = "channels_united"),
            _ => {}
        }
    }

    /// Ends the lease; the others forget this node at once.
    pub(crate) async fn leave(&self) {
        let (keys, id) = (self.keys.to_vec(), self.id());
        let left: Result<u64, RedisError> =
            self.redis.call(async |client| client.eval(LEAVE, keys, vec![id]).await).await;
        if let Err(error) = left {
            tracing::warn!(category = "system", event = "lease_not_ended", %error);
        }
        join_all(self.all_servers().map(|server| server.quit())).await;
    }
}

/// The same for the same servers in any order; empty when channels are kept where the nodes meet.
fn digest_of(servers: &[Arc<Redis>]) -> String {
    let mut names: Vec<&str> = servers.iter().map(|server| server.name()).collect();
    names.sort_unstable();
    if names.is_empty() {
        return String::new();
    }
    format!("{:016x}", digest::number(&names.join(" ")))
}

fn held_word(held: bool) -> &'static str {
    if held { "held" } else { "new" }
}

/// The name with sixteen random digits, which name the node where numbers are shorter.
fn new_id(name: &str) -> String {
    let random = RandomState::new().hash_one(std::process::id()).max(1);
    format!("{name}-{random:016x}")
}

/// The number in an id; never 0 for an id of ours.
pub(crate) fn node_number(id: &str) -> u64 {
    let digits = id.rsplit_once('-').map_or(id, |(_, digits)| digits);
    u64::from_str_radix(digits, 16).unwrap_or(u64::MAX)
}

/// Reads the answer of the script. A description that cannot be read, perhaps of another version, is left out.
fn read_renewal(answer: Vec<String>) -> Option<Renewal> {
    let mut items = VecDeque::from(answer);
    let lost = match items.pop_front()?.as_str() {
        "lost" => true,
        "kept" => false,
        _ => return None,
    };
    let ended: usize = items.pop_front()?.parse().ok()?;
    if ended > items.len() {
        return None;
    }
    let ended = items.drain(..ended).collect();
    let mut nodes: Vec<Node> = Vec::with_capacity(items.len() / 2);
    while let (Some(id), Some(text)) = (items.pop_front(), items.pop_front()) {
        match serde_json::from_str::<Node>(&text) {
            Ok(node) if node.id == id => nodes.push(node),
            _ => tracing::warn!(category = "system", event = "node_unreadable", node = id),
        }
    }
    nodes.sort_unstable_by(|a, b| a.id.cmp(&b.id));
    Some(Renewal { lost, ended, nodes })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn check(answer: &[&str], expected: Option<(bool, &[&str], &[&str])>) {
        let renewal = read_renewal(answer.iter().map(|&text| text.to_owned()).collect());
        let found = renewal.map(|renewal| {
            let names: Vec<String> = renewal.nodes.into_iter().map(|node| node.id).collect();
            (renewal.lost, renewal.ended, names)
        });
        let owned = |texts: &[&str]| texts.iter().map(|&text| text.to_owned()).collect();
        assert_eq!(found, expected.map(|(lost, ended, nodes)| (lost, owned(ended), owned(nodes))));
    }

    #[test]
    fn answers_of_the_script_are_read() {
        let text = r#"{"id":"a-1","name":"a","url":null,"state":"up","version":"1","uptime_seconds":3,
            "shards":2,"connections":5,"connections_max":10,"load_permille":7,"weight":100,"later":true}"#;
        check(&["kept", "0"], Some((false, &[], &[])));
        check(&["lost", "2", "b-1", "c-1", "a-1", text], Some((true, &["b-1", "c-1"], &["a-1"])));
        check(&["kept", "0", "a-1", text, "b-1", "{}"], Some((false, &[], &["a-1"])));
        check(&["kept", "0", "z-1", text], Some((false, &[], &[])));
        check(&["kept", "3", "b-1"], None);
        check(&["what", "0"], None);
        check(&["kept"], None);
        check(&[], None);
    }

    #[test]
    fn ids_are_new_every_time() {
        let ids = [new_id("a"), new_id("a")];
        assert_ne!(ids[0], ids[1]);
        assert!(ids.iter().all(|id| id.len() == "a-0123456789abcdef".len()), "{ids:?}");
        assert_eq!(node_number("a-b-00000000000000ff"), 255);
        assert_ne!(node_number(&ids[0]), node_number(&ids[1]));
    }
}
