//! Bounds of inputs and queues, heartbeat, channels and their namespaces.

use std::time::Duration;

use gateway_core::settings::{Access, AutoSubscribe, Namespace, Priority, SlowPolicy};

use crate::config::key::section;
use crate::config::sections::choices::{Named, name_of};
use crate::config::value::{Kind, Value};

section! {
    /// The WebSocket endpoint.
    "websocket" => WebSocketSection {
        /// Path of the native protocol.
        path: String = Kind::UrlPath, Live;
        /// Origins whose pages may connect and call the HTTP endpoints; `*` alone = any. The gateway's own origin is
        /// always allowed, and so is a request without an `Origin` header: that is no browser.
        origins: Vec<String> = Kind::List(&Kind::Origin, 0, 1_000), Live;
        /// Whether permessage-deflate is negotiated.
        compression: bool = Kind::Bool, Live;
        /// zlib level: 1 is fastest, 9 smallest.
        compression_level: u32 = Kind::Count(1, 9), Live;
        /// Publications below this size are sent uncompressed.
        compression_bytes_min: usize = Kind::Size(0, 1 << 20), Live;
    }
}

section! {
    /// Pings and idle time.
    "heartbeat" => HeartbeatSection {
        /// Between two pings of the server.
        ping_interval: Duration = Kind::Duration(1_000, 600_000), Live;
        /// From a ping to its pong; then the connection is closed.
        pong_timeout: Duration = Kind::Duration(500, 300_000), Live;
        /// Without any traffic from the client; then the connection is closed.
        idle_timeout: Duration = Kind::Duration(2_000, 86_400_000), Live;
    }
}

section! {
    /// Bounds of connections and of what they send.
    "limits" => LimitsSection {
        /// Connections of this node, all shards together.
        connections_max: u64 = Kind::Count(1, 2_000_000), Live;
        /// Connections of one user on this node; 0 = unlimited.
        connections_per_user_max: u32 = Kind::Count(0, 1_000_000), Live;
        /// Connections of one IP address on this node; 0 = unlimited. Behind a proxy it needs `listen.proxies`: otherwise all
        /// have the proxy's address.
        connections_per_address_max: u32 = Kind::Count(0, 1_000_000), Live;
        /// Request line and headers together.
        head_bytes_max: usize = Kind::Size(1 << 10, 64 << 10), Live;
        /// Headers of a request.
        headers_max: usize = Kind::Count(8, 256), Live;
        /// From accept to a complete request head, TLS handshake included.
        handshake_timeout: Duration = Kind::Duration(100, 60_000), Live;
        /// From accept to an accepted token.
        auth_timeout: Duration = Kind::Duration(100, 120_000), Live;
        /// A reassembled and inflated message.
        message_bytes_max: usize = Kind::Size(1 << 10, 16 << 20), Live;
        /// Fragments of one message.
        fragments_max: u32 = Kind::Count(1, 1 << 20), Live;
        /// Nesting of objects and arrays in a message.
        json_depth_max: u32 = Kind::Count(4, 256), Live;
        /// Subscriptions of one connection, server-side ones included.
        subscriptions_max: u32 = Kind::Count(1, 100_000), Live;
        /// Commands of one connection that wait for another shard's answer.
        requests_in_flight_max: u32 = Kind::Count(1, 10_000), Live;
        /// Malformed messages of a connection before it is closed; 0 = never.
        bad_messages_max: u32 = Kind::Count(0, 1_000_000), Live;
        /// Verified tokens a shard remembers; 0 switches the cache off.
        token_cache_entries_max: u32 = Kind::Count(0, 1_000_000), Live;
    }
}

section! {
    /// Token buckets. A rate of 0 = unlimited; a burst is what may come at once after a quiet time.
    "rate_limits" => RateLimitsSection {
        /// Accepted sockets of the node, per second.
        handshakes_per_second: u32 = Kind::Count(0, 1_000_000), Live;
        /// Burst of accepted sockets.
        handshakes_burst: u32 = Kind::Count(1, 1_000_000), Live;
        /// Messages of one connection, per second.
        connection_messages_per_second: u32 = Kind::Count(0, 1_000_000), Live;
        /// Burst of one connection.
        connection_messages_burst: u32 = Kind::Count(1, 1_000_000), Live;
        /// Messages of one user per second, on this node and (with Redis) about so many on all.
        user_messages_per_second: u32 = Kind::Count(0, 1_000_000), Live;
        /// Burst of one user.
        user_messages_burst: u32 = Kind::Count(1, 1_000_000), Live;
        /// In which nodes with the same Redis tell each other what their busiest users sent, so that it counts on all of them;
        /// 0 = every node counts alone.
        share_interval: Duration = Kind::Duration(0, 60_000), Restart;
        /// Messages of one IP address on this node, per second.
        address_messages_per_second: u32 = Kind::Count(0, 10_000_000), Live;
        /// Burst of one IP address.
        address_messages_burst: u32 = Kind::Count(1, 10_000_000), Live;
        /// Refused messages of a connection before it is closed; 0 = never.
        violations_max: u32 = Kind::Count(0, 1_000_000), Live;
    }
}

section! {
    /// Unsent bytes. When a connection's outbox is full, `slow_policy` of the namespace decides.
    "outbox" => OutboxSection {
        /// Unsent bytes of one connection.
        connection_bytes_max: usize = Kind::Size(16 << 10, 256 << 20), Live;
        /// Unsent bytes of all connections of a shard.
        shard_bytes_max: usize = Kind::Size(1 << 20, 64 << 30), Live;
    }
}

section! {
    /// Chunked transfers (`large_data`).
    "large_data" => LargeDataSection {
        /// Decoded bytes of one chunk.
        chunk_bytes_max: usize = Kind::Size(1 << 10, 8 << 20), Live;
        /// Chunks of one transfer.
        chunks_max: u32 = Kind::Count(1, 100_000), Live;
        /// Transfers of one connection under way.
        transfers_max: u32 = Kind::Count(0, 1_000), Live;
        /// Bytes under reassembly of one connection.
        connection_bytes_max: usize = Kind::Size(64 << 10, 4 << 30), Live;
        /// Bytes under reassembly of a shard.
        shard_bytes_max: usize = Kind::Size(64 << 10, 64 << 30), Live;
        /// From the last chunk received to giving the transfer up.
        expiry: Duration = Kind::Duration(1_000, 3_600_000), Live;
    }
}

section! {
    /// Channels, their recovery and presence.
    "channels" => ChannelsSection {
        /// Length of a channel name.
        name_bytes_max: usize = Kind::Size(16, 1_024), Live;
        /// Channels with one shard as home.
        per_shard_max: u32 = Kind::Count(1_000, 100_000_000), Live;
        /// How long a channel without subscribers, presence and history keeps its epoch and offset.
        idle_ttl: Duration = Kind::Duration(1_000, 30 * 86_400_000), Live;
        /// Publications in one recovery or history page.
        history_page_max: u32 = Kind::Count(1, 100_000), Live;
        /// Recovered publications in one `subscribed` reply.
        recovery_bytes_max: usize = Kind::Size(4 << 10, 64 << 20), Live;
        /// Members in one presence answer; counts always cover all.
        presence_members_max: u32 = Kind::Count(1, 1_000_000), Live;
        /// Between two `presence_stats` pushes of a channel whose joins and leaves are coalesced.
        presence_interval: Duration = Kind::Duration(50, 60_000), Live;
        /// How long an idempotency key is remembered.
        idempotency_ttl: Duration = Kind::Duration(1_000, 7 * 86_400_000), Live;
        /// Idempotency keys remembered per channel.
        idempotency_keys_max: u32 = Kind::Count(0, 1_000_000), Live;
        /// How long the last-seen time of a user is kept.
        last_seen_ttl: Duration = Kind::Duration(1_000, 365 * 86_400_000), Live;
        /// Users whose last-seen time a shard keeps.
        last_seen_users_max: u32 = Kind::Count(0, 100_000_000), Live;
    }
}

section! {
    /// Options of every channel whose name begins with the namespace's name and `:`. Written as `[[namespaces]]` with
    /// a `name`; the same name in a later file changes only the fields it gives. `user`, `workflow`, `session` and
    /// `system` are built in and can be changed in the same way.
    "namespaces.*" => NamespaceSection {
        /// Who may subscribe: `token` = with a capability in the token or a channel token; `owner` = the user whose
        /// id follows `name:`; `members` = the users listed after `#`; `signed_in` = every connection with a user id;
        /// `anyone` = anonymous ones too; `hook` = whoever the application allows (docs/hooks.md).
        subscribe: Access = Kind::Choice(Access::NAMES), Live;
        /// Who may publish over a socket. The server API may always.
        publish: Access = Kind::Choice(Access::NAMES), Live;
        /// Whether subscribers may read presence.
        presence: bool = Kind::Bool, Live;
        /// Whether `join` and `leave` are pushed to subscribers.
        join_leave: bool = Kind::Bool, Live;
        /// Above this number of members, join and leave become one `presence_stats` push per interval.
        join_leave_members_max: u32 = Kind::Count(1, 1_000_000), Live;
        /// Publications kept; 0 = no history.
        history_size: u32 = Kind::Count(0, 1_000_000), Live;
        /// How long a publication is kept; `0s` = no history.
        history_ttl: Duration = Kind::Duration(0, 365 * 86_400_000), Live;
        /// Whether subscribers may read history by command.
        history_access: bool = Kind::Bool, Live;
        /// Whether a returning subscriber gets what it missed. Needs history.
        recovery: bool = Kind::Bool, Live;
        /// When a subscriber's outbox is full: `disconnect` it (it reconnects and recovers), `drop_oldest` unsent
        /// publications, or `keep_latest` per key. It is told what it lost.
        slow_policy: SlowPolicy = Kind::Choice(SlowPolicy::NAMES), Live;
        /// Priority of publications that name none.
        priority: Priority = Kind::Choice(Priority::NAMES), Live;
        /// Whether publications are compressed for connections that negotiated it.
        compression: bool = Kind::Bool, Live;
        /// Whether a publisher that is subscribed gets its own publication.
        echo: bool = Kind::Bool, Live;
        /// Server-side subscription: `everyone` to the channel named like the namespace, `user` to `name:{user id}`.
        auto_subscribe: AutoSubscribe = Kind::Choice(AutoSubscribe::NAMES), Live;
        /// Whether publications are rows in the store before anybody gets them (docs/durable.md). Needs history.
        durable: bool = Kind::Bool, Restart;
        /// Whether what clients publish becomes the event `message`, for webhooks and the log of events.
        webhook_messages: bool = Kind::Bool, Live;
        /// Whether the application is asked about each subscribe that the rule allows. Needs `hooks.subscribe.url`.
        subscribe_hook: bool = Kind::Bool, Live;
        /// Whether the application is asked about each publication that the rule allows. Needs `hooks.publish.url`; large
        /// transfers are refused then.
        publish_hook: bool = Kind::Bool, Live;
    }
}

impl NamespaceSection {
    /// The core's form.
    pub fn to_core(&self, name: &str) -> Namespace {
        Namespace {
            name: name.into(),
            subscribe: self.subscribe,
            publish: self.publish,
            presence: self.presence,
            join_leave: self.join_leave,
            join_leave_members_max: self.join_leave_members_max,
            history_size: self.history_size,
            history_ttl: self.history_ttl,
            history_access: self.history_access,
            recovery: self.recovery,
            slow: self.slow_policy,
            priority: self.priority,
            compression: self.compression,
            echo: self.echo,
            auto_subscribe: self.auto_subscribe,
            durable: self.durable,
            webhook_messages: self.webhook_messages,
            subscribe_hook: self.subscribe_hook,
            publish_hook: self.publish_hook,
        }
    }

    /// The values of a namespace of the core: what fields that the configuration does not give fall back to.
    pub fn values_of(namespace: &Namespace) -> Vec<(&'static str, Value)> {
        let text = |name: &str| Value::Text(name.to_owned());
        vec![
            ("subscribe", text(name_of(namespace.subscribe))),
            ("publish", text(name_of(namespace.publish))),
            ("presence", Value::Bool(namespace.presence)),
            ("join_leave", Value::Bool(namespace.join_leave)),
            ("join_leave_members_max", Value::Count(namespace.join_leave_members_max.into())),
            ("history_size", Value::Count(namespace.history_size.into())),
            ("history_ttl", Value::Duration(namespace.history_ttl)),
            ("history_access", Value::Bool(namespace.history_access)),
            ("recovery", Value::Bool(namespace.recovery)),
            ("slow_policy", text(name_of(namespace.slow))),
            ("priority", text(name_of(namespace.priority))),
            ("compression", Value::Bool(namespace.compression)),
            ("echo", Value::Bool(namespace.echo)),
            ("auto_subscribe", text(name_of(namespace.auto_subscribe))),
            ("durable", Value::Bool(namespace.durable)),
            ("webhook_messages", Value::Bool(namespace.webhook_messages)),
            ("subscribe_hook", Value::Bool(namespace.subscribe_hook)),
            ("publish_hook", Value::Bool(namespace.publish_hook)),
        ]
    }
}

section! {
    /// Memory for what channels remember.
    "cache" => CacheSection {
        /// MiB for what this node keeps of other things: histories of channels, of which each shard gets an equal part for the
        /// channels it is home of, and what the control plane has read.
        memory_max_mb: u64 = Kind::Count(16, 1 << 20), Live;
        /// Percent of it for what the control plane has read: preferences, addresses and last sessions of users in the store, key
        /// sets of URLs.
        store_percent: u64 = Kind::Count(1, 90), Live;
        /// How long preferences and addresses are kept. A change through any node of the cluster is seen at once, by a node that
        /// was cut off from Redis as soon as it is back.
        store_ttl: Duration = Kind::Duration(1_000, 86_400_000), Restart;
        /// How long it is kept when a user was last seen (`events.sessions`). What this node writes is seen at once, what others
        /// write after this time.
        last_seen_ttl: Duration = Kind::Duration(1_000, 3_600_000), Restart;
        /// Whether preferences and addresses are kept in Redis too, for all nodes of the cluster.
        store_shared: bool = Kind::Bool, Restart;
        /// Values of at least this size are compressed (LZ4) in Redis.
        compression_bytes_min: usize = Kind::Size(64, 1 << 30), Restart;
    }
}

impl CacheSection {
    /// Bytes of history each of `shards` shards may hold.
    pub fn history_bytes_per_shard(&self, shards: u16) -> usize {
        let histories = (self.memory_max_mb << 20) / 100 * (100 - self.store_percent);
        (histories / u64::from(shards.max(1))) as usize
    }

    /// Bytes for what the control plane has read.
    pub fn store_bytes(&self) -> u64 {
        (self.memory_max_mb << 20) / 100 * self.store_percent
    }
}
