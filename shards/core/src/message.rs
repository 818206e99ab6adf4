//! What shards say to each other and to the control plane. Plain data, moved, never shared mutably.
//!
//! Every [`ShardMessage`] travels in a bounded mailbox that is FIFO per sender. A full mailbox is never waited for:
//!
//! | message | when the mailbox is full |
//! |---|---|
//! | `Request` from a client's command | refused: the client gets a temporary `UNAVAILABLE` |
//! | `Request` that releases something (`Unsubscribe`) | kept in the sender's backlog and sent before anything newer |
//! | `Reply` | kept in the sender's backlog and sent before anything newer |
//! | `Deliver` | dropped and counted; the receiver is told the top position when there is room and repairs the gap |
//! | `Behind` | kept by channel, and sent with the position that is true then |
//! | `Request` of a hub that repairs a gap | kept, like a release |
//! | `Request` from a client, when others are kept already | kept too: bounded by the requests in flight |
//! | `Presence` | dropped and counted; presence can be read again by command |
//! | `Control` | refused to the control plane, which answers "unavailable" or tries again |
//! | `Broker` | refused to the control plane, which sends it later, or `Behind` instead |
//! | `Called`, `Hooked` | refused to the control plane, which tries again for a while |
//!
//! The queue to the control plane is bounded too. An `Occurred` that finds it full waits in the shard, in order, up to a
//! bound above which it is dropped and counted; whether a channel is watched is told with the state that is true then. What a
//! home asks of the broker waits in the shard too, in order; a publish is refused.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::broker::{BrokerRequest, BrokerUpdate, MemberId};
use crate::call::{CallAnswer, ClientCall};
use crate::error::{ClientError, Disconnect};
use crate::hook::{HookAnswer, HookQuestion};
use crate::ids::{ConnectionId, SessionId, ShardId};
use crate::occurrence::Occurrence;
use crate::settings::{Priority, Settings};

/// Name of a channel, shared by everyone who mentions it.
pub type ChannelName = Arc<str>;

/// Identity of one incarnation of a channel's stream: eight characters of `[0-9a-z]`. Offsets of different epochs
/// cannot be compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Epoch(pub [u8; 8]);

impl Epoch {
    /// "Whatever the epoch is": what a client that has never seen one sends, with offset 0.
    pub const ANY: Self = Self([0; 8]);
    /// An epoch that never exists: what text that cannot be an epoch is read as.
    pub const NONE: Self = Self(*b"--------");

    /// As on the wire.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or("")
    }

    /// Reads the wire form; `None` when it cannot be an epoch of ours.
    pub fn parse(text: &str) -> Option<Self> {
        let bytes: [u8; 8] = text.as_bytes().try_into().ok()?;
        bytes.iter().all(u8::is_ascii_alphanumeric).then_some(Self(bytes))
    }
}

/// Place in a channel's stream. The first publication has offset 1; 0 is the place before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamPosition {
    /// Offset of the newest publication seen.
    pub offset: u64,
    /// Incarnation of the stream.
    pub epoch: Epoch,
}

/// A message in a channel, encoded once by its home shard and shared by reference count.
#[derive(Clone, Debug)]
pub struct Publication {
    /// Place in the stream.
    pub position: StreamPosition,
    /// Urgency.
    pub priority: Priority,
    /// Hash of the publisher's `key`, for `keep_latest`; the channel itself is the key when it gave none.
    pub key_hash: u64,
    /// The publishing connection, when it was one.
    pub sender: Option<ConnectionId>,
    /// Monotonic time at which the gateway took the publication.
    pub accepted_at: Duration,
    /// The whole envelope as JSON text: a view into `frame`.
    pub json: Bytes,
    /// The envelope as one unmasked WebSocket text frame.
    pub frame: Bytes,
    /// The same compressed, when a subscriber negotiated compression and it is worth it.
    pub deflated: Option<Bytes>,
    /// Bytes that the frames take on the heap.
    pub heap_bytes: usize,
}

/// Element of a shard's mailbox.
#[derive(Debug)]
pub enum ShardMessage {
    /// To a channel's home shard.
    Request(Box<ChannelRequest>),
    /// From a channel's home shard to the shard that asked.
    Reply(Box<ChannelReply>),
    /// From a channel's home shard to every shard with a subscriber.
    Deliver(Delivery),
    /// From a channel's home shard: the stream stands at this position. Sent after `Deliver`s were dropped.
    Behind {
        /// Channel.
        channel: ChannelName,
        /// Its newest position.
        top: StreamPosition,
    },
    /// From a channel's home shard: an encoded join, leave or presence_stats push (frame), without a position.
    Presence {
        /// Channel.
        channel: ChannelName,
        /// One unmasked text frame.
        frame: Bytes,
        /// The connection it is about; it does not get its own join.
        about: Option<ConnectionId>,
    },
    /// From the control plane to every shard, or to the shard that owns a connection.
    Control(Box<ShardRequest>),
    /// From the broker between nodes to a channel's home.
    Broker(Box<BrokerUpdate>),
    /// From the control plane to the shard that owns a connection.
    Called(Box<CallAnswer>),
    /// From the control plane to the shard that owns a connection: what the application says.
    Hooked(Box<HookAnswer>),
}

/// A publication on its way to the subscribers of one shard.
#[derive(Clone, Debug)]
pub struct Delivery {
    /// Channel.
    pub channel: ChannelName,
    /// What was published.
    pub publication: Arc<Publication>,
}

/// Who asked, and where the answer goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A client's command: the connection and the session's own number of the request.
    Connection {
        /// Connection.
        id: ConnectionId,
        /// Number given by the session.
        request: u32,
    },
    /// The hub of a shard, repairing a gap.
    Hub(ShardId),
    /// The control plane, with its correlation number.
    Control(u64),
}

/// Something asked of a channel's home shard.
#[derive(Debug)]
pub struct ChannelRequest {
    /// Who asked.
    pub origin: Origin,
    /// Channel.
    pub channel: ChannelName,
    /// What is asked.
    pub op: ChannelOp,
}

/// Operations of a channel.
#[derive(Debug)]
pub enum ChannelOp {
    /// Append and deliver.
    Publish(Publish),
    /// Register the asking connection and tell the position; recover when asked.
    Subscribe(Subscribe),
    /// Forget the connection. Never answered.
    Unsubscribe {
        /// The connection that leaves.
        connection: ConnectionId,
        /// Whether it was the last local subscriber of its shard.
        last: bool,
        /// Whether any remaining local subscriber of its shard uses compression.
        compression: bool,
    },
    /// List the members.
    Presence,
    /// Count the members.
    PresenceStats,
    /// Read publications.
    History(HistoryQuery),
    /// Forget all publications; the position stays, so a client that missed some is told so.
    HistoryRemove,
    /// Online state of a user on this node; asked of `user:{id}`, and answered without the broker.
    UserStatus,
}

/// A publish, checked and allowed.
#[derive(Clone, Debug, Default)]
pub struct Publish {
    /// Envelope type; empty means `message`.
    pub kind: Box<str>,
    /// JSON text of `data`, passed on as it is.
    pub data: Bytes,
    /// Urgency; the namespace's when absent.
    pub priority: Option<Priority>,
    /// Key for `keep_latest`.
    pub key: Option<Box<str>>,
    /// Publishing again with the same key within the idempotency window answers the first position.
    pub idempotency_key: Option<Box<str>>,
    /// Deliver once and forget: no place in the stream, no history, no gap detection.
    pub skip_history: bool,
    /// Takes a place in the stream but is not kept in the history (chunks of large transfers).
    pub transient: bool,
    /// JSON text of the envelope's `sender` object, when known.
    pub sender: Option<Bytes>,
    /// Extra envelope fields as JSON members without braces (`"session_id":"..."`), when any.
    pub extra: Option<Bytes>,
    /// The publishing connection gets no copy.
    pub no_echo: bool,
    /// The application is told when it has its place; decided by its home.
    pub told: bool,
    /// Monotonic time at which the gateway took the publication.
    pub accepted_at: Duration,
}

impl Publish {
    /// The connection that wants no copy of what it publishes, if `origin` is one.
    pub fn sender_without_copy(&self, origin: Origin) -> Option<ConnectionId> {
        match origin {
            Origin::Connection { id, .. } if self.no_echo => Some(id),
            _ => None,
        }
    }
}

/// A subscribe, checked and allowed.
#[derive(Clone, Debug)]
pub struct Subscribe {
    /// Position to recover from.
    pub recover: Option<StreamPosition>,
    /// Member data for presence and join/leave.
    pub member: Member,
    /// Whether the connection negotiated permessage-deflate.
    pub compression: bool,
}

/// One connection in a channel's presence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// User id; empty for anonymous.
    pub user: Arc<str>,
    /// Public session id of the connection.
    pub session: SessionId,
    /// JSON text of the token's `info` claim.
    pub info: Option<Arc<[u8]>>,
}

/// Which publications to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HistoryQuery {
    /// Start after this position (before it when `reverse`); the beginning (or end) when absent.
    pub since: Option<StreamPosition>,
    /// At most so many; 0 = only the position.
    pub limit: u32,
    /// Newest first.
    pub reverse: bool,
}

/// Answer of a home shard.
#[derive(Debug)]
pub struct ChannelReply {
    /// Who asked.
    pub origin: Origin,
    /// Channel.
    pub channel: ChannelName,
    /// What came of it.
    pub outcome: Result<ChannelOutcome, ClientError>,
}

/// Results of a [`ChannelOp`].
#[derive(Debug)]
pub enum ChannelOutcome {
    /// To `Publish`.
    Published(StreamPosition),
    /// To `Subscribe`.
    Subscribed(Subscribed),
    /// To `Presence`.
    Presence {
        /// The first members, up to the configured limit.
        members: Vec<(MemberId, Member)>,
        /// All connections.
        clients: u32,
        /// Distinct user ids.
        users: u32,
        /// Whether members of other nodes may be missing, or may be gone.
        partial: bool,
    },
    /// To `PresenceStats`.
    PresenceStats {
        /// Connections.
        clients: u32,
        /// Distinct user ids.
        users: u32,
        /// As in `Presence`.
        partial: bool,
    },
    /// To `History`.
    History {
        /// Newest position of the stream.
        top: StreamPosition,
        /// In the order asked.
        publications: Vec<Arc<Publication>>,
        /// Whether it is as of the last contact with the broker: newer publications may exist.
        partial: bool,
    },
    /// To `HistoryRemove`.
    HistoryRemoved(StreamPosition),
    /// To `UserStatus`.
    UserStatus {
        /// Open connections to this node.
        connections: u32,
        /// Unix time at which the last of them ended; absent while online or when unknown.
        last_seen: Option<Duration>,
    },
}

/// Answer to a subscribe.
#[derive(Debug)]
pub struct Subscribed {
    /// The subscriber stands here after `publications`.
    pub top: StreamPosition,
    /// Whether everything since the asked position is in `publications`; `None` when nothing was asked.
    pub recovered: Option<bool>,
    /// What was missed, oldest first.
    pub publications: Vec<Arc<Publication>>,
}

/// Something the control plane asks of a shard.
#[derive(Debug)]
pub struct ShardRequest {
    /// Number for the answer.
    pub correlation: u64,
    /// What is asked.
    pub op: ShardOp,
}

/// Operations of a shard. All but `Reconfigure`, `Others` and `Drain` are answered.
#[derive(Debug)]
pub enum ShardOp {
    /// Close connections of a user.
    Disconnect {
        /// Which ones.
        target: Target,
        /// With which code.
        reason: Disconnect,
    },
    /// Subscribe a user's connections to a channel, as a server-side subscription.
    Subscribe {
        /// Which ones.
        target: Target,
        /// Channel.
        channel: ChannelName,
    },
    /// Unsubscribe a user's connections from a channel.
    Unsubscribe {
        /// Which ones.
        target: Target,
        /// Channel.
        channel: ChannelName,
    },
    /// Refuse tokens from now on and close connections that hold one.
    Revoke(Revocation),
    /// List connections, ordered by slot.
    Connections {
        /// Only of this user.
        user: Option<Arc<str>>,
        /// First slot to look at.
        from_slot: u32,
        /// At most so many.
        limit: u32,
    },
    /// One connection in detail, by public session id.
    Connection {
        /// Public session id.
        session: Box<str>,
    },
    /// Channels whose home this shard is, in the order of their names.
    Channels {
        /// Only names with this prefix.
        prefix: Box<str>,
        /// At most so many, the first by name.
        limit: u32,
    },
    /// Users with a ready connection.
    Users,
    /// Use new settings from now on.
    Reconfigure(Arc<Settings>),
    /// WebSocket URLs of the other nodes that take clients now, named in turn to those that this node does not take or keep.
    Others(Arc<[Box<str>]>),
    /// Tell every client to move and close, spread over `duration`.
    Drain {
        /// From now to the last disconnect.
        duration: Duration,
        /// Upper bound of the reconnect delay told to clients.
        reconnect_delay_max: Duration,
        /// WebSocket URLs of other nodes, told to clients in turn; empty: they come back by themselves.
        urls: Arc<[Box<str>]>,
    },
}

/// Connections that a control request is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// All connections of a user.
    User(Arc<str>),
    /// One connection, by public session id.
    Session(Box<str>),
}

/// Which tokens are no longer accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Revocation {
    /// Tokens of this user issued before the time (Unix).
    User {
        /// User id.
        user: Arc<str>,
        /// Tokens with an earlier `iat`, or none at all, are refused.
        issued_before: Duration,
    },
    /// The token with this `jti`.
    TokenId {
        /// `jti` claim.
        token_id: Box<str>,
        /// Unix time after which the entry may be forgotten.
        expires_at: Duration,
    },
    /// Every token issued before the time (Unix).
    IssuedBefore(Duration),
}

/// Answer of one shard to the control plane.
#[derive(Debug)]
pub enum ShardOutcome {
    /// So many connections were affected.
    Affected(u32),
    /// A page of connections and the slot to go on from.
    Connections {
        /// The page.
        page: Vec<ConnectionInfo>,
        /// Next slot; absent at the end.
        next_slot: Option<u32>,
    },
    /// One connection, when this shard has it.
    Connection(Option<Box<ConnectionInfo>>),
    /// Channels.
    Channels(Vec<ChannelInfo>),
    /// Signed-in users, each once.
    Users(Vec<Arc<str>>),
}

/// A connection as an operator sees it.
#[derive(Clone, Debug)]
pub struct ConnectionInfo {
    /// Connection.
    pub id: ConnectionId,
    /// Public session id.
    pub session: SessionId,
    /// User id; empty for anonymous.
    pub user: Arc<str>,
    /// Address of the client.
    pub address: IpAddr,
    /// Whether the socket carries TLS.
    pub tls: bool,
    /// How long it has been open.
    pub age: Duration,
    /// Since the last input.
    pub idle: Duration,
    /// When its token expires (Unix).
    pub expires_at: Option<Duration>,
    /// Subscribed channels.
    pub channels: Vec<ChannelName>,
    /// Unsent bytes.
    pub outbox_bytes: usize,
    /// Messages received and sent.
    pub messages: (u64, u64),
    /// `User-Agent` of the handshake, cut to 128 bytes.
    pub user_agent: Option<Box<str>>,
}

/// A channel as an operator sees it, from its home shard.
#[derive(Clone, Debug)]
pub struct ChannelInfo {
    /// Name.
    pub channel: ChannelName,
    /// Members with presence switched on that are connections of this node; 0 otherwise.
    pub clients: u32,
    /// Shards of this node with a subscriber.
    pub interested_shards: u32,
    /// Newest position.
    pub top: StreamPosition,
    /// Publications kept.
    pub history: u32,
}

/// What a shard says to the control plane.
#[derive(Debug)]
pub enum ControlMessage {
    /// Answer of a home shard to a request with [`Origin::Control`].
    Channel {
        /// Number of the request.
        correlation: u64,
        /// What came of it.
        outcome: Result<ChannelOutcome, ClientError>,
    },
    /// Answer of a shard to a [`ShardRequest`].
    Shard {
        /// Number of the request.
        correlation: u64,
        /// Which shard.
        shard: ShardId,
        /// What came of it.
        outcome: ShardOutcome,
    },
    /// A home asks the broker between nodes.
    Broker(BrokerRequest),
    /// A user sends so much that other nodes should count it too. One that is lost is told with the next report.
    BusyUser(Arc<str>),
    /// A client's command that the control plane answers.
    Call(Box<ClientCall>),
    /// Something happened that is kept or told.
    Occurred(Box<Occurrence>),
    /// The application is asked about a client's command.
    Hook(Box<HookQuestion>),
}
