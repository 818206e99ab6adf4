//! Bodies of the server API's requests. Unknown fields are refused by name.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::value::RawValue;
use utoipa::ToSchema;

use super::call::Command;

/// Urgency of a publication on the wire.
#[derive(Clone, Copy, Debug, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum PriorityName {
    /// May wait.
    Low,
    /// The default.
    #[serde(alias = "medium")]
    Normal,
    /// Passes normal and low ones of other channels.
    High,
    /// Passes everything but control messages.
    Critical,
}

/// What a publication carries, whoever gets it.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct PublishRequest {
    /// Channel.
    pub channel: String,
    /// Payload: any JSON, passed on as it is.
    #[schema(value_type = Option<Object>)]
    pub data: Option<Box<RawValue>>,
    /// The payload's JSON text in base64, instead of `data`.
    pub b64data: Option<String>,
    /// Envelope type; `message` when absent.
    #[serde(rename = "type")]
    pub kind: Option<String>,
    /// Urgency; the namespace's when absent.
    pub priority: Option<PriorityName>,
    /// Key for the slow-consumer policy `keep_latest`.
    pub key: Option<String>,
    /// Publishing again with the same key answers the first position.
    pub idempotency_key: Option<String>,
    /// Deliver without keeping it in the history.
    #[serde(default)]
    pub skip_history: bool,
    /// Short texts passed on in the envelope as `tags`.
    pub tags: Option<BTreeMap<String, String>>,
}

/// One publication to several channels.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct BroadcastRequest {
    /// Channels, at most `api.batch_max`.
    pub channels: Vec<String>,
    /// Payload: any JSON, passed on as it is.
    #[schema(value_type = Option<Object>)]
    pub data: Option<Box<RawValue>>,
    /// The payload's JSON text in base64, instead of `data`.
    pub b64data: Option<String>,
    /// Envelope type; `message` when absent.
    #[serde(rename = "type")]
    pub kind: Option<String>,
    /// Urgency; the namespace's when absent.
    pub priority: Option<PriorityName>,
    /// Key for the slow-consumer policy `keep_latest`.
    pub key: Option<String>,
    /// Publishing again with the same key answers the first position, per channel.
    pub idempotency_key: Option<String>,
    /// Deliver without keeping it in the history.
    #[serde(default)]
    pub skip_history: bool,
    /// Short texts passed on in the envelope as `tags`.
    pub tags: Option<BTreeMap<String, String>>,
}

/// Several commands in one request.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct BatchRequest {
    /// Commands, at most `api.batch_max`.
    pub commands: Vec<Command>,
    /// Run them side by side instead of one after the other.
    #[serde(default)]
    pub parallel: bool,
}

/// A large payload, sent as checksummed chunks.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct LargeDataRequest {
    /// Channel.
    pub channel: String,
    /// The payload in base64.
    pub payload: String,
    /// Id of the transfer; made up when absent.
    pub data_id: Option<String>,
    /// Urgency; the namespace's when absent.
    pub priority: Option<PriorityName>,
}

/// A channel and nothing else.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ChannelRequest {
    /// Channel.
    pub channel: String,
}

/// Place in a stream.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct PositionRequest {
    /// Offset.
    pub offset: u64,
    /// Incarnation of the stream.
    pub epoch: String,
}

/// Which publications to read.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct HistoryRequest {
    /// Channel.
    pub channel: String,
    /// At most so many, cut to the configured page; 0 (the default) reads only the position.
    #[serde(default)]
    pub limit: u32,
    /// Start after this position.
    pub since: Option<PositionRequest>,
    /// Newest first.
    #[serde(default)]
    pub reverse: bool,
}

/// A user's connections (or one of them) and a channel.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct SubscriptionRequest {
    /// User id. Either this or `session`.
    pub user: Option<String>,
    /// One connection, by its public session id.
    #[serde(alias = "client")]
    pub session: Option<String>,
    /// Channel.
    pub channel: String,
}

/// Which connections to end.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct DisconnectRequest {
    /// User id. Either this or `session`.
    pub user: Option<String>,
    /// One connection, by its public session id.
    #[serde(alias = "client")]
    pub session: Option<String>,
    /// Whether the client is told to connect again.
    #[serde(default)]
    pub reconnect: bool,
}

/// Which tokens are no longer accepted. Times are Unix seconds.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RevokeRequest {
    /// Tokens of this user, issued before `issued_before` (now when absent).
    pub user: Option<String>,
    /// The token with this `jti`, until `expires_at`.
    pub token_id: Option<String>,
    /// When the token of `token_id` expires by itself; the entry is forgotten then.
    pub expires_at: Option<u64>,
    /// Without `user`: every token issued before this time.
    pub issued_before: Option<u64>,
}

/// Which users to ask about.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct UserStatusRequest {
    /// User ids, at most `api.batch_max`.
    pub users: Vec<String>,
}

/// Which channels to list.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ChannelsRequest {
    /// Only names with this prefix.
    #[serde(default)]
    pub prefix: String,
    /// At most so many (1 to 1,000, default 1,000).
    pub limit: Option<u32>,
}

/// Which connections to list.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ConnectionsRequest {
    /// Only connections of this user.
    pub user: Option<String>,
    /// At most so many (1 to 1,000, default 100).
    pub limit: Option<u32>,
    /// `next_cursor` of the page before.
    pub cursor: Option<String>,
}

/// Which connection to inspect.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ConnectionRequest {
    /// Public session id.
    #[serde(alias = "client")]
    pub session: String,
}

/// Nothing to say.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct InfoRequest {}
