//! Parsed settings of the data plane: plain integers and durations, checked before they get here.
//!
//! The control plane builds one [`Settings`] from the configuration and hands the same `Arc` to every shard; a reload
//! replaces the whole value.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::auth::Authenticator;
use crate::hook::HookSettings;
use crate::occurrence::OccurrenceSettings;
use crate::proxies::Proxies;

#[cfg(any(test, feature = "testing"))]
mod testing;

/// Everything a shard needs to know from the configuration.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Name of the node in `welcome` and in the API.
    pub node: Arc<str>,
    /// Bounds of every input and queue.
    pub limits: Limits,
    /// Proxies in front of the node, which say who their clients are.
    pub proxies: Proxies,
    /// Channel namespaces and their options.
    pub namespaces: Namespaces,
    /// Endpoints, origins and compression.
    pub websocket: WebSocketSettings,
    /// Who may connect.
    pub auth: AuthSettings,
    /// How channels reach other nodes; absent on a node that is alone.
    pub broker: Option<BrokerSettings>,
    /// Whether the control plane answers calls about notifications.
    pub notifications: bool,
    /// What the control plane is told of what happens.
    pub occurrences: OccurrenceSettings,
    /// Which commands ask the application.
    pub hooks: HookSettings,
    /// Pings and idle time.
    pub heartbeat: HeartbeatSettings,
    /// Switches that exist for tests and conformance runs only.
    pub diagnostics: Diagnostics,
}

impl Settings {
    /// Whether the stream of `channel` is somewhere else: at the broker between nodes or in the database.
    pub fn is_linked(&self, channel: &str) -> bool {
        self.broker.is_some() || self.namespaces.is_durable(channel)
    }
}

/// How homes use the broker between nodes.
#[derive(Clone, Copy, Debug)]
pub struct BrokerSettings {
    /// How long a channel that nobody on this node watches stays attached.
    pub detach_delay: Duration,
}

/// Bounds. Sizes in bytes; a rate of zero means unlimited.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Connections of this node, all shards together.
    pub connections_max: u64,
    /// Connections of one user on this node; 0 = unlimited.
    pub connections_per_user_max: u32,
    /// Connections of one IP address on this node; 0 = unlimited.
    pub connections_per_address_max: u32,
    /// Accepted sockets per second and node.
    pub handshakes: Rate,
    /// Request head: bytes of request line and headers together.
    pub head_bytes_max: usize,
    /// Request head: number of headers.
    pub headers_max: usize,
    /// From accept to a complete request head (TLS handshake included).
    pub handshake_timeout: Duration,
    /// From accept to an accepted token.
    pub auth_timeout: Duration,
    /// A reassembled (and inflated) message.
    pub message_bytes_max: usize,
    /// Fragments of one message.
    pub fragments_max: u32,
    /// Nesting of JSON objects and arrays in a message.
    pub json_depth_max: u32,
    /// Subscriptions of one connection, server-side ones included.
    pub subscriptions_max: u32,
    /// Commands of one connection that wait for a home shard's answer.
    pub requests_in_flight_max: u32,
    /// Length of a channel name.
    pub channel_name_bytes_max: usize,
    /// Channels with this shard as home.
    pub channels_per_shard_max: u32,
    /// Unsent bytes of one connection.
    pub outbox_bytes_max: usize,
    /// Unsent bytes of all connections of a shard.
    pub shard_outbox_bytes_max: usize,
    /// Recovered publications in one `subscribed` reply, in bytes.
    pub recovery_bytes_max: usize,
    /// Publications in one recovery or history page.
    pub history_page_max: u32,
    /// Newest publications of a durable channel that its home keeps a copy of; older ones are read from the database.
    pub durable_copy_max: u32,
    /// Publications kept in the histories of one shard, in bytes; over it the oldest go first.
    pub history_bytes_max: usize,
    /// Members in one presence answer; counts always cover all.
    pub presence_members_max: u32,
    /// Between two `presence_stats` pushes of a channel whose joins and leaves are coalesced.
    pub presence_interval: Duration,
    /// From our close frame to closing the socket when the client does not answer or read.
    pub close_timeout: Duration,
    /// Client messages per second of one connection.
    pub messages_per_connection: Rate,
    /// Client messages per second of one user on this node.
    pub messages_per_user: Rate,
    /// Messages of one user between two reports to other nodes from which on they are told; 0 = never.
    pub messages_shared_min: u32,
    /// Client messages per second of one IP address on this node.
    pub messages_per_address: Rate,
    /// Rate-limit violations of a connection before it is closed; 0 = never.
    pub rate_violations_max: u32,
    /// Malformed messages of a connection before it is closed; 0 = never.
    pub bad_messages_max: u32,
    /// Chunked transfers.
    pub large_data: LargeDataLimits,
    /// How long an idempotency key is remembered.
    pub idempotency_ttl: Duration,
    /// Idempotency keys remembered per channel.
    pub idempotency_keys_max: u32,
    /// How long a channel without subscribers, presence and history keeps its epoch and offset.
    pub channel_idle_ttl: Duration,
    /// How long last-seen times of users are kept.
    pub last_seen_ttl: Duration,
    /// Users whose last-seen time a shard keeps.
    pub last_seen_max: u32,
    /// Verified tokens a shard remembers; 0 switches the cache off.
    pub token_cache_entries_max: u32,
}

/// Token-bucket rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Sustained events per second; 0 = unlimited.
    pub per_second: u32,
    /// Events that may come at once after a quiet time; at least 1 when limited.
    pub burst: u32,
}

impl Rate {
    /// No limit.
    pub const UNLIMITED: Self = Self { per_second: 0, burst: 0 };
}

/// Bounds of chunked transfers.
#[derive(Clone, Debug)]
pub struct LargeDataLimits {
    /// Decoded bytes of one chunk.
    pub chunk_bytes_max: usize,
    /// Chunks of one transfer.
    pub chunks_max: u32,
    /// Transfers of one connection that are under way.
    pub transfers_max: u32,
    /// Bytes under reassembly of one connection.
    pub connection_bytes_max: usize,
    /// Bytes under reassembly of a shard.
    pub shard_bytes_max: usize,
    /// From the last chunk received to giving the transfer up.
    pub expiry: Duration,
}

/// Endpoints, origins and compression.
#[derive(Clone, Debug)]
pub struct WebSocketSettings {
    /// Path of the native protocol, e.g. `/ws`.
    pub path: Box<str>,
    /// Origins that browsers may connect from.
    pub origins: AllowedOrigins,
    /// Whether permessage-deflate is negotiated.
    pub compression: bool,
    /// zlib level 1-9.
    pub compression_level: u32,
    /// Publications below this size are sent uncompressed.
    pub compression_bytes_min: usize,
}

/// Origin allow-list. A request without an `Origin` header is no browser and passes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AllowedOrigins {
    /// Any origin.
    Any,
    /// Exact origins (`https://app.example.com`), or `https://*.example.com` for every sub-domain; lower case.
    List(Vec<Box<str>>),
}

impl AllowedOrigins {
    /// Whether a browser page of `origin` may connect to `host` (the request's `Host` header). The gateway's own
    /// origin is always allowed.
    pub fn allows(&self, origin: &str, host: Option<&str>) -> bool {
        let Self::List(list) = self else { return true };
        let origin = origin.to_ascii_lowercase();
        let authority = origin.split_once("://").map(|(_, authority)| authority);
        if authority.is_some() && authority == host.map(str::to_ascii_lowercase).as_deref() {
            return true;
        }
        list.iter().any(|allowed| match allowed.split_once("*.") {
            None => **allowed == *origin,
            Some((scheme, domain)) => origin
                .strip_prefix(scheme)
                .and_then(|rest| rest.strip_suffix(domain))
                .is_some_and(|sub| sub.len() > 1 && sub.ends_with('.') && !sub.contains('/')),
        })
    }
}

/// Who may connect, and how a token may be carried.
#[derive(Clone, Debug)]
pub struct AuthSettings {
    /// Keys and claim rules.
    pub authenticator: Arc<Authenticator>,
    /// Whether a connection without a token is accepted (with an empty user id).
    pub anonymous: bool,
    /// Whether `?token=` is accepted.
    pub query_token: bool,
    /// Time after `exp` within which an in-band refresh still saves the connection.
    pub expiry_grace: Duration,
}

/// Pings and idle time.
#[derive(Clone, Debug)]
pub struct HeartbeatSettings {
    /// Between two pings of the server.
    pub ping_interval: Duration,
    /// From a ping to its pong.
    pub pong_timeout: Duration,
    /// Without any traffic from the client.
    pub idle_timeout: Duration,
}

/// Moments at which pings leave, per ping interval.
const PING_SLOTS: u32 = 256;

impl HeartbeatSettings {
    /// When a ping that is due at `latest` leaves: at most a 256th of the interval sooner, together with those of other
    /// connections. A shard that wakes for many pings at once spends less on each.
    pub(crate) fn ping_at(&self, latest: Duration) -> Duration {
        let slot = (self.ping_interval / PING_SLOTS).as_nanos().max(1);
        latest.saturating_sub(Duration::from_nanos((latest.as_nanos() % slot) as u64))
    }
}

/// Switches for tests. All off by default.
#[derive(Clone, Debug, Default)]
pub struct Diagnostics {
    /// Path that echoes every message without authentication.
    pub echo_path: Option<Box<str>>,
    /// Whether clients may ask for a panic or a stall with the `fault` command.
    pub fault_injection: bool,
}

/// Who may do something in a namespace. Token capabilities come on top of every variant but `Nobody`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// No client at all; the server API still may.
    Nobody,
    /// Only with a capability in the connection's token, or a channel token.
    Token,
    /// The user whose id is the part after `namespace:`.
    Owner,
    /// The users listed after `#` in the channel name, `namespace:name#id1,id2`.
    Members,
    /// Every connection with a user id.
    SignedIn,
    /// Everyone, anonymous connections too.
    Anyone,
    /// Everyone whom the application allows, which is always asked then.
    Hook,
}

/// What happens when a subscriber's outbox is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlowPolicy {
    /// Close with `slow_consumer`; the client reconnects and recovers.
    Disconnect,
    /// Drop the oldest unsent publications of such channels and tell the client what it lost.
    DropOldest,
    /// Keep the newest unsent publication of every key and tell the client what it lost.
    KeepLatest,
}

/// Urgency of a publication.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Priority {
    /// May wait.
    Low,
    /// The default.
    Normal,
    /// Passes normal and low ones of other channels.
    High,
    /// Passes everything of other channels but control messages.
    Critical,
}

impl Priority {
    /// Name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Low => "low",
            Self::Normal => "normal",
            Self::High => "high",
            Self::Critical => "critical",
        }
    }

    /// Reads a wire name; `medium` is an old name of `normal`.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "low" => Some(Self::Low),
            "normal" | "medium" => Some(Self::Normal),
            "high" => Some(Self::High),
            "critical" => Some(Self::Critical),
            _ => None,
        }
    }
}

/// Options of every channel whose name begins with `name:`.
#[derive(Clone, Debug)]
pub struct Namespace {
    /// Part of the channel name before the first `:`; for a channel without `:` its whole name.
    pub name: Box<str>,
    /// Who may subscribe.
    pub subscribe: Access,
    /// Who may publish over a socket.
    pub publish: Access,
    /// Whether subscribers may read presence.
    pub presence: bool,
    /// Whether `join` and `leave` are pushed to subscribers.
    pub join_leave: bool,
    /// Above this number of members join/leave become one `presence_stats` push per interval.
    pub join_leave_members_max: u32,
    /// Publications kept; 0 = no history.
    pub history_size: u32,
    /// How long a publication is kept.
    pub history_ttl: Duration,
    /// Whether subscribers may read history by command.
    pub history_access: bool,
    /// Whether a returning subscriber gets what it missed.
    pub recovery: bool,
    /// Full outbox.
    pub slow: SlowPolicy,
    /// Priority of publications that name none.
    pub priority: Priority,
    /// Whether publications are compressed for connections that negotiated it.
    pub compression: bool,
    /// Whether a publisher that is subscribed gets its own publication.
    pub echo: bool,
    /// Channels of this namespace that every connection (of a signed-in user) is subscribed to by the server.
    pub auto_subscribe: AutoSubscribe,
    /// Whether publications are rows in the database before anybody gets them.
    pub durable: bool,
    /// Whether messages of clients are told to the application.
    pub webhook_messages: bool,
    /// Whether the application is asked about each subscribe of a client.
    pub subscribe_hook: bool,
    /// Whether the application is asked about each publish of a client.
    pub publish_hook: bool,
}

/// Server-side subscription by namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AutoSubscribe {
    /// None.
    Never,
    /// The channel named exactly like the namespace (`system`), for every connection.
    Everyone,
    /// `name:{user id}`, for every connection with a user id.
    User,
}

impl Namespace {
    /// A namespace that allows nothing and keeps nothing.
    pub fn closed(name: &str) -> Self {
        Self {
            name: name.into(),
            subscribe: Access::Token,
            publish: Access::Nobody,
            presence: false,
            join_leave: false,
            join_leave_members_max: 100,
            history_size: 0,
            history_ttl: Duration::ZERO,
            history_access: false,
            recovery: false,
            slow: SlowPolicy::Disconnect,
            priority: Priority::Normal,
            compression: true,
            echo: true,
            auto_subscribe: AutoSubscribe::Never,
            durable: false,
            webhook_messages: false,
            subscribe_hook: false,
            publish_hook: false,
        }
    }

    /// Whether the application is asked about a subscribe.
    pub fn asks_subscribe(&self) -> bool {
        self.subscribe_hook || self.subscribe == Access::Hook
    }

    /// Whether the application is asked about a publish.
    pub fn asks_publish(&self) -> bool {
        self.publish_hook || self.publish == Access::Hook
    }

    /// Whether publications of the namespace are kept.
    pub fn keeps_history(&self) -> bool {
        self.history_size > 0 && !self.history_ttl.is_zero()
    }

    /// Publications that a home keeps.
    pub fn copy_size(&self, limits: &Limits) -> u32 {
        if self.durable {
            self.history_size.min(limits.durable_copy_max)
        } else {
            self.history_size
        }
    }
}

/// Index of a namespace in [`Namespaces`]; stable until the next reload.
pub type NamespaceIndex = u16;

/// Index of no namespace: that of a channel whose namespace a reload has removed.
pub const NAMESPACE_REMOVED: NamespaceIndex = NamespaceIndex::MAX;

/// All namespaces, found by channel name.
#[derive(Clone, Debug)]
pub struct Namespaces {
    list: Vec<Namespace>,
    removed: Namespace,
    any_durable: bool,
}

impl Namespaces {
    /// Takes the list as configured; names are unique.
    pub fn new(list: Vec<Namespace>) -> Self {
        let removed = Namespace { subscribe: Access::Nobody, ..Namespace::closed("") };
        let any_durable = list.iter().any(|namespace| namespace.durable);
        Self { list, removed, any_durable }
    }

    /// The namespaces `user`, `workflow`, `session` and `system` of the product's contract.
    pub fn built_in() -> Vec<Namespace> {
        let day = Duration::from_secs(86_400);
        let kept = |name: &str| Namespace {
            history_size: 100,
            history_ttl: day,
            history_access: true,
            recovery: true,
            ..Namespace::closed(name)
        };
        vec![
            Namespace {
                subscribe: Access::Owner,
                presence: true,
                priority: Priority::High,
                auto_subscribe: AutoSubscribe::User,
                ..kept("user")
            },
            Namespace {
                subscribe: Access::SignedIn,
                publish: Access::Token,
                presence: true,
                ..kept("workflow")
            },
            Namespace {
                subscribe: Access::SignedIn,
                publish: Access::SignedIn,
                presence: true,
                join_leave: true,
                ..kept("session")
            },
            Namespace {
                subscribe: Access::Anyone,
                auto_subscribe: AutoSubscribe::Everyone,
                ..kept("system")
            },
        ]
    }

    /// Namespace of `channel`: the part before the first `:`, or the whole name.
    pub fn find(&self, channel: &str) -> Option<(NamespaceIndex, &Namespace)> {
        let name = channel.split_once(':').map_or(channel, |(name, _)| name);
        self.list
            .iter()
            .position(|namespace| &*namespace.name == name)
            .map(|index| (index as NamespaceIndex, &self.list[index]))
    }

    /// Whether publications of `channel` are rows in the database.
    pub fn is_durable(&self, channel: &str) -> bool {
        self.any_durable && self.find(channel).is_some_and(|(_, namespace)| namespace.durable)
    }

    /// The namespace at `index`; one that allows nothing when a reload has removed it.
    pub fn get(&self, index: NamespaceIndex) -> &Namespace {
        self.list.get(usize::from(index)).unwrap_or(&self.removed)
    }

    /// All namespaces in configured order.
    pub fn iter(&self) -> impl Iterator<Item = &Namespace> {
        self.list.iter()
    }
}

/// Where a connection comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Address of the socket's other end, or of the client whom a trusted proxy there names.
    pub address: IpAddr,
    /// Port of the socket's other end.
    pub port: u16,
    /// Whether the socket carries TLS.
    pub tls: bool,
}
