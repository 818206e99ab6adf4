//! Redis, and the cluster of nodes that meet in it.

use std::time::Duration;

use crate::config::key::section;
use crate::config::secret::Secret;
use crate::config::sections::Strategy;
use crate::config::value::Kind;

section! {
    /// Redis (or Valkey), where the nodes of a cluster meet. Without `redis.url` the node is alone.
    "redis" => RedisSection {
        /// `redis://`, `rediss://` (TLS), `redis-sentinel://` or `redis-cluster://` URL, with user and password when the
        /// server wants them. Forms: docs/redis.md.
        url: Option<Secret<String>> = Kind::Secret, Restart;
        /// First part of every key, so that several clusters can share a server.
        prefix: String = Kind::Text(64), Restart;
        /// For a connection with its handshake.
        connect_timeout: Duration = Kind::Duration(50, 60_000), Restart;
        /// From a command to its answer.
        command_timeout: Duration = Kind::Duration(50, 60_000), Restart;
        /// Between two PINGs of the watchdog. A server that hangs is found within this and twice `command_timeout`.
        ping_interval: Duration = Kind::Duration(50, 60_000), Restart;
        /// Longest wait between two tries to reconnect.
        reconnect_delay_max: Duration = Kind::Duration(100, 60_000), Restart;
        /// Commands that may wait for the connection; more fail at once.
        commands_waiting_max: u32 = Kind::Count(16, 1_000_000), Restart;
        /// Failures in a row after which the server is left alone for a while.
        breaker_failures: u32 = Kind::Count(1, 1_000), Restart;
        /// How long it is left alone before it is tried again.
        breaker_open: Duration = Kind::Duration(50, 600_000), Restart;
        /// Whether a node without Redis is not ready, so that balancers take it out. Otherwise it is degraded and goes on.
        required: bool = Kind::Bool, Restart;
    }
}

section! {
    /// The cluster. It needs `redis.url`.
    "cluster" => ClusterSection {
        /// WebSocket URL of this node, to which `/connect` and draining nodes send clients. Unset: they send nobody here.
        url: Option<String> = Kind::WebSocketUrl, Restart;
        /// How `/connect` chooses a node.
        balance: Strategy = Strategy::KIND, Restart;
        /// Share of new clients, relative to the other nodes.
        weight: u32 = Kind::Count(1, 1_000), Restart;
        /// Between two renewals of the node's lease.
        lease_interval: Duration = Kind::Duration(100, 60_000), Restart;
        /// A node that has not renewed its lease for this long is gone.
        lease_ttl: Duration = Kind::Duration(500, 600_000), Restart;
    }
}
