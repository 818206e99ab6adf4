//! Results of the server API.

use std::collections::BTreeMap;

use gateway_core::message::{ConnectionInfo, StreamPosition};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::ToSchema;

use super::call::CommandReply;
use super::error::ErrorBody;

/// `{"result": ..}`.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Reply<T> {
    /// What came of the call.
    pub result: T,
}

/// Position of a publication, or of a stream.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct PositionResult {
    /// Offset.
    pub offset: u64,
    /// Incarnation of the stream.
    pub epoch: String,
}

impl From<StreamPosition> for PositionResult {
    fn from(position: StreamPosition) -> Self {
        Self { offset: position.offset, epoch: position.epoch.as_str().to_owned() }
    }
}

/// Result or error of one channel of a broadcast.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum BroadcastReply {
    /// Published.
    Result(PositionResult),
    /// Not published.
    Error(ErrorBody),
}

/// One answer per channel, in the order asked.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct BroadcastResult {
    /// Answers.
    pub responses: Vec<BroadcastReply>,
}

/// One answer per command, in the order asked.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct BatchResult {
    /// Answers.
    pub replies: Vec<CommandReply>,
}

/// A transfer that was published.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct LargeDataResult {
    /// Id of the transfer.
    pub data_id: String,
    /// Number of chunks.
    pub total_chunks: u32,
    /// Decoded size in bytes.
    pub total_size: usize,
    /// SHA-256 of the whole, in hex.
    pub checksum: String,
    /// Offset of the last chunk.
    pub offset: u64,
    /// Incarnation of the stream.
    pub epoch: String,
}

/// How many connections were affected.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct AffectedResult {
    /// Connections.
    pub affected: u64,
}

/// A connection in a channel.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct PresenceMember {
    /// Public session id.
    pub client: String,
    /// User id; empty for anonymous.
    pub user: String,
    /// `info` claim of the token.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub conn_info: Option<Box<RawValue>>,
}

/// Members of a channel by session id.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct PresenceResult {
    /// Members, up to `channels.presence_members_max` of them.
    pub presence: BTreeMap<String, PresenceMember>,
    /// All connections.
    pub num_clients: u32,
    /// Distinct user ids.
    pub num_users: u32,
    /// Whether members of other nodes may be missing, or may be gone, because Redis cannot be reached; absent when not.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    #[schema(required = false)]
    pub partial: bool,
}

/// Size of a channel.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct PresenceStatsResult {
    /// Connections.
    pub num_clients: u32,
    /// Distinct user ids.
    pub num_users: u32,
    /// Whether members of other nodes may be missing, or may be gone, because Redis cannot be reached; absent when not.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    #[schema(required = false)]
    pub partial: bool,
}

/// A page of a channel's history.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct HistoryResult {
    /// Envelopes as clients got them (`offset`, `epoch`, `type`, `data`, ..).
    #[schema(value_type = Vec<Object>)]
    pub publications: Vec<Box<RawValue>>,
    /// Newest offset of the stream.
    pub offset: u64,
    /// Incarnation of the stream.
    pub epoch: String,
    /// Whether newer publications may exist, because Redis cannot be reached; absent when not.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    #[schema(required = false)]
    pub partial: bool,
}

/// A channel as an operator sees it.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub(crate) struct ChannelSummary {
    /// Members, with presence switched on; 0 otherwise.
    pub num_clients: u32,
    /// Shards with a subscriber, of all nodes.
    pub interested_shards: u32,
    /// Newest offset.
    pub offset: u64,
    /// Incarnation of the stream.
    pub epoch: String,
    /// Publications kept.
    pub history: u32,
}

/// Channels by name.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ChannelsResult {
    /// Channels.
    pub channels: BTreeMap<String, ChannelSummary>,
    /// Whether there are more than asked for.
    pub truncated: bool,
    /// Whether a node did not answer.
    pub partial: bool,
}

/// A connection as an operator sees it.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub(crate) struct ConnectionResult {
    /// Name of the node that has it.
    pub node: String,
    /// Public session id.
    pub session: String,
    /// User id; empty for anonymous.
    pub user: String,
    /// Shard that owns it.
    pub shard: u16,
    /// Address of the client.
    pub address: String,
    /// Whether the socket carries TLS.
    pub tls: bool,
    /// How long it has been open.
    pub age_seconds: f64,
    /// Since its last input.
    pub idle_seconds: f64,
    /// When its token expires, in Unix seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<u64>,
    /// Subscribed channels.
    pub channels: Vec<String>,
    /// Unsent bytes.
    pub outbox_bytes: usize,
    /// Messages received from it.
    pub messages_received: u64,
    /// Messages sent to it.
    pub messages_sent: u64,
    /// `User-Agent` of its handshake.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_agent: Option<String>,
}

impl ConnectionResult {
    /// As the shard described it.
    pub(super) fn new(node: &str, info: ConnectionInfo) -> Self {
        Self {
            node: node.to_owned(),
            session: info.session.to_string(),
            user: info.user.to_string(),
            shard: info.id.shard().0,
            address: info.address.to_string(),
            tls: info.tls,
            age_seconds: info.age.as_secs_f64(),
            idle_seconds: info.idle.as_secs_f64(),
            expires_at: info.expires_at.map(|at| at.as_secs()),
            channels: info.channels.iter().map(ToString::to_string).collect(),
            outbox_bytes: info.outbox_bytes,
            messages_received: info.messages.0,
            messages_sent: info.messages.1,
            user_agent: info.user_agent.map(String::from),
        }
    }
}

/// A page of connections.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ConnectionsResult {
    /// The page.
    pub connections: Vec<ConnectionResult>,
    /// Where the next page begins; absent at the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_cursor: Option<String>,
    /// Whether a node did not answer, or went away between two pages.
    pub partial: bool,
}

/// Online state of a user.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub(crate) struct UserStatus {
    /// User id.
    pub user: String,
    /// Whether any connection is open.
    pub online: bool,
    /// Open connections; several devices count one each.
    pub connections: u32,
    /// When the last connection ended, in Unix seconds; absent while online or when unknown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_seen: Option<u64>,
}

/// One state per user, in the order asked.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct UserStatusResult {
    /// States.
    pub statuses: Vec<UserStatus>,
    /// Whether a node did not answer.
    pub partial: bool,
}

/// A node of the installation.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub(crate) struct NodeInfo {
    /// Name.
    pub name: String,
    /// Version of the gateway.
    pub version: String,
    /// Shards.
    pub shards: u16,
    /// Open sessions.
    pub num_clients: u64,
    /// Subscriptions.
    pub num_subs: u64,
    /// Channels.
    pub num_channels: u64,
    /// Seconds since the start.
    pub uptime: u64,
    /// Whether a shard did not answer, so that numbers are those last known.
    pub partial: bool,
}

/// All nodes.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct InfoResult {
    /// Nodes, by name.
    pub nodes: Vec<NodeInfo>,
    /// Whether a node did not answer, or one of its shards.
    pub partial: bool,
}
