//! What a node tells the others about itself.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Whether new clients may be sent to a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum NodeState {
    /// Not serving yet.
    Starting,
    /// Serving.
    Up,
    /// Its clients are being told to move.
    Draining,
}

/// A node of the cluster, as it described itself with the last renewal of its lease.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub(crate) struct Node {
    /// Name with a part that is new with every lease: a node that came back is another one.
    pub id: String,
    /// `node.name` of its configuration.
    pub name: String,
    /// URL that clients connect to; unset when `cluster.url` is.
    pub url: Option<String>,
    /// Starting, up or draining.
    pub state: NodeState,
    /// Version of the gateway.
    pub version: String,
    /// Seconds since its process started.
    pub uptime_seconds: u64,
    /// Number of shards.
    pub shards: u16,
    /// Open WebSockets.
    pub connections: u64,
    /// Most of them that it takes.
    pub connections_max: u64,
    /// Busy share of its shards, the mean over all, in thousandths.
    pub load_permille: u32,
    /// CPU time of its process since the renewal before, as a share of all its cores, in thousandths; null when a node of an
    /// older version does not tell it.
    #[serde(default)]
    pub cpu_permille: Option<u32>,
    /// How late its shards' loops were since the renewal before, in microseconds: the 99th percentile of the slowest shard, or
    /// how long a shard has stood still; null when a node of an older version does not tell it.
    #[serde(default)]
    pub loop_lag_us: Option<u64>,
    /// Share of new clients, relative to the other nodes.
    pub weight: u32,
    /// Digest of the servers that keep its channels; the same for all nodes, empty without `redis.channel_urls`.
    #[serde(default)]
    pub channels_on: String,
}

impl Node {
    /// Whether a client may be sent there.
    pub(crate) fn takes_clients(&self) -> bool {
        self.state == NodeState::Up && self.url.is_some() && self.connections < self.connections_max
    }
}
