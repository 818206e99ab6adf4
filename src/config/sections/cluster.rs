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
        /// Independent servers over which channels are spread, the same list on every node: each keeps its part of them, and
        /// `redis.url` only has what the nodes need to meet. Empty: it has everything.
        channel_urls: Vec<Secret<String>> = Kind::List(&Kind::Secret, 0, 64), Restart;
        /// First part of every key, so that several clusters can share a server.
        prefix: String = Kind::Text(64), Restart;
        /// For a connection with its handshake.
        connect_timeout: Duration = Kind::Duration(50, 60_000), Restart;
        /// From a command to its answer.
        command_timeout: Duration = Kind::Duration(50, 60_000), Restart;
        /// Between two PINGs of the watchdog. A server that hangs is found within this and `command_timeout`, and half of it for
        /// each of `breaker_failures` after the first.
        ping_interval: Duration = Kind::Duration(50, 60_000), Restart;
        /// Longest wait between two tries to reconnect.
        reconnect_delay_max: Duration = Kind::Duration(100, 60_000), Restart;
        /// Commands that may wait for the connection; more fail at once.
        commands_waiting_max: u32 = Kind::Count(16, 1_000_000), Restart;
        /// Failures in a row after which the server is left alone for a while.
        breaker_failures: u32 = Kind::Count(1, 1_000), Restart;
        /// How long it is left alone before the watchdog tries it with a PING.
        breaker_open: Duration = Kind::Duration(50, 600_000), Restart;
        /// Publications, removals and members that may wait to be written; more are answered "unavailable" at once.
        writes_waiting_max: u32 = Kind::Count(16, 10_000_000), Restart;
        /// Bytes that they and those under way may hold.
        writes_waiting_bytes_max: usize = Kind::Size(64 << 10, 16 << 30), Restart;
        /// Writes that one call carries at most.
        batch_max: u32 = Kind::Count(1, 1_000), Restart;
        /// Messages from Redis that may wait for this node; when more come, all channels are checked.
        messages_waiting_max: u32 = Kind::Count(1_024, 10_000_000), Restart;
        /// Publications and news of members that may wait for a shard; when more come, their channels are read again.
        updates_waiting_max: u32 = Kind::Count(16, 10_000_000), Restart;
        /// In which every channel with subscribers is once compared with Redis.
        check_interval: Duration = Kind::Duration(100, 3_600_000), Restart;
        /// How long a channel's position is remembered when no node touches it.
        position_ttl: Duration = Kind::Duration(60_000, 365 * 86_400_000), Restart;
        /// How long a channel without subscribers on this node stays subscribed in Redis.
        detach_delay: Duration = Kind::Duration(0, 3_600_000), Restart;
        /// Publications of at least this size are compressed (LZ4) between nodes; 0 = none.
        compression_bytes_min: usize = Kind::Size(0, 1 << 30), Restart;
        /// Whether publications that are not kept (no history, `skip_history`) reach the subscribers of this node while Redis is
        /// away. Otherwise they are refused like all others.
        fan_out_locally: bool = Kind::Bool, Restart;
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
        /// Between two looks whether the other nodes answer `/ready` at the host of their `cluster.url`; 0 = never. One that does not is
        /// named to no client.
        probe_interval: Duration = Kind::Duration(0, 600_000), Restart;
        /// From such a look to its answer.
        probe_timeout: Duration = Kind::Duration(50, 60_000), Restart;
        /// Failures in a row after which a node is left out, until it answers again.
        probe_failures: u32 = Kind::Count(1, 1_000), Restart;
        /// Questions of other nodes (reads of the server API, orders) that are answered at one time; for more they are told at once
        /// that this node's part is missing.
        questions_at_once_max: u32 = Kind::Count(1, 100_000), Restart;
    }
}
