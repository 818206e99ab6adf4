//! What is known of a channel: `presence`, `presence_stats`, `history`, `history_remove`, `channels`.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;

use gateway_core::error::ErrorCode;
use gateway_core::message::{
    ChannelOp, ChannelOutcome, Epoch, HistoryQuery, ShardOp, ShardOutcome, StreamPosition,
};
use gateway_core::settings::{Namespace, Settings};
use serde_json::value::RawValue;

use super::everywhere::{self, Question};
use super::requests::{ChannelRequest, ChannelsRequest, HistoryRequest, PositionRequest};
use super::results::{
    ChannelSummary, ChannelsResult, HistoryResult, PositionResult, PresenceMember, PresenceResult,
    PresenceStatsResult,
};
use super::{ApiError, payload};
use crate::plane::SharedPlane;

/// Most channels of one `channels` answer.
const CHANNELS_MAX: u32 = 1_000;

/// Lists the members.
pub(super) async fn presence(
    plane: &SharedPlane,
    request: ChannelRequest,
) -> Result<PresenceResult, ApiError> {
    need(plane, &request.channel, "presence", |namespace| namespace.presence)?;
    let outcome = plane.bridge.request(&request.channel, ChannelOp::Presence).await?;
    let ChannelOutcome::Presence { members, clients, users, partial } = outcome else {
        return Err(ApiError::unexpected_answer());
    };
    let mut presence = BTreeMap::new();
    for (_, member) in members {
        let conn_info = member.info.as_deref().map(raw).transpose()?;
        let client = member.session.to_string();
        presence.insert(
            client.clone(),
            PresenceMember { client, user: member.user.to_string(), conn_info },
        );
    }
    Ok(PresenceResult { presence, num_clients: clients, num_users: users, partial })
}

/// Counts the members.
pub(super) async fn presence_stats(
    plane: &SharedPlane,
    request: ChannelRequest,
) -> Result<PresenceStatsResult, ApiError> {
    need(plane, &request.channel, "presence", |namespace| namespace.presence)?;
    match plane.bridge.request(&request.channel, ChannelOp::PresenceStats).await? {
        ChannelOutcome::PresenceStats { clients, users, partial } => {
            Ok(PresenceStatsResult { num_clients: clients, num_users: users, partial })
        }
        _ => Err(ApiError::unexpected_answer()),
    }
}

/// Reads a page of the history.
pub(super) async fn history(
    plane: &SharedPlane,
    request: HistoryRequest,
) -> Result<HistoryResult, ApiError> {
    let settings = need(plane, &request.channel, "history", Namespace::keeps_history)?;
    let query = HistoryQuery {
        since: request.since.as_ref().map(position).transpose()?,
        limit: request.limit.min(settings.limits.history_page_max),
        reverse: request.reverse,
    };
    let outcome = plane.bridge.request(&request.channel, ChannelOp::History(query)).await?;
    let ChannelOutcome::History { top, publications, partial } = outcome else {
        return Err(ApiError::unexpected_answer());
    };
    let publications = publications.iter().map(|publication| raw(&publication.json));
    let publications = publications.collect::<Result<_, _>>()?;
    let top = PositionResult::from(top);
    Ok(HistoryResult { publications, offset: top.offset, epoch: top.epoch, partial })
}

/// Forgets the history; the position stays.
pub(super) async fn history_remove(
    plane: &SharedPlane,
    request: ChannelRequest,
) -> Result<PositionResult, ApiError> {
    need(plane, &request.channel, "history", Namespace::keeps_history)?;
    match plane.bridge.request(&request.channel, ChannelOp::HistoryRemove).await? {
        ChannelOutcome::HistoryRemoved(position) => Ok(position.into()),
        _ => Err(ApiError::unexpected_answer()),
    }
}

/// Lists channels of all nodes by name.
pub(super) async fn channels(
    plane: &SharedPlane,
    request: ChannelsRequest,
) -> Result<ChannelsResult, ApiError> {
    let limit = request.limit.unwrap_or(CHANNELS_MAX);
    if !(1..=CHANNELS_MAX).contains(&limit) {
        return Err(ApiError::bad_request(format!("`limit` must be 1 to {CHANNELS_MAX}")));
    }
    // One more than asked of every shard: that is how a cut list shows.
    let (prefix, more) = (request.prefix, limit + 1);
    let question = Question::Channels { prefix: prefix.clone(), limit: more };
    let (own, (others, partial)) = tokio::join!(
        own_channels(plane, &prefix, more),
        everywhere::ask_others::<Channels>(plane, &question)
    );
    let mut channels = own?;
    for (name, found) in others.into_iter().flatten() {
        match channels.entry(name) {
            Entry::Vacant(place) => {
                place.insert(found);
            }
            Entry::Occupied(mut known) => known.get_mut().join(found),
        }
    }
    let truncated = channels.len() > limit as usize;
    while channels.len() > limit as usize {
        channels.pop_last();
    }
    Ok(ChannelsResult { channels, truncated, partial })
}

type Channels = BTreeMap<String, ChannelSummary>;

/// Channels of all shards of this node.
pub(super) async fn own_channels(
    plane: &SharedPlane,
    prefix: &str,
    limit: u32,
) -> Result<Channels, ApiError> {
    let prefix: Box<str> = prefix.into();
    let op = || ShardOp::Channels { prefix: prefix.clone(), limit };
    let gathered = plane.bridge.ask_all(op).await?;
    if gathered.partial {
        return Err(ApiError::partial());
    }
    let mut channels = BTreeMap::new();
    for (_, outcome) in gathered.answers {
        let ShardOutcome::Channels(list) = outcome else {
            return Err(ApiError::unexpected_answer());
        };
        for channel in list {
            let summary = ChannelSummary {
                num_clients: channel.clients,
                interested_shards: channel.interested_shards,
                offset: channel.top.offset,
                epoch: channel.top.epoch.as_str().to_owned(),
                history: channel.history,
            };
            channels.insert(channel.channel.to_string(), summary);
        }
    }
    Ok(channels)
}

impl ChannelSummary {
    /// What another node says of the same channel; one copy may be behind.
    fn join(&mut self, other: Self) {
        let interested_shards = self.interested_shards + other.interested_shards;
        let num_clients = self.num_clients + other.num_clients;
        if other.offset > self.offset {
            *self = other;
        }
        (self.interested_shards, self.num_clients) = (interested_shards, num_clients);
    }
}

/// Checks the channel and that its namespace has the option that the call reads.
fn need(
    plane: &SharedPlane,
    channel: &str,
    option: &str,
    has: impl Fn(&Namespace) -> bool,
) -> Result<Arc<Settings>, ApiError> {
    let settings = plane.settings.load_full();
    payload::check_channel(channel, &settings)?;
    match settings.namespaces.find(channel) {
        Some((_, namespace)) if has(namespace) => Ok(settings),
        _ => Err(ApiError::new(
            ErrorCode::NotFound,
            format!("{option} is switched off in the channel's namespace"),
        )),
    }
}

fn position(request: &PositionRequest) -> Result<StreamPosition, ApiError> {
    let epoch = Epoch::parse(&request.epoch).ok_or_else(|| {
        ApiError::new(ErrorCode::UnrecoverablePosition, "`since.epoch` is no epoch of this gateway")
    })?;
    Ok(StreamPosition { offset: request.offset, epoch })
}

/// JSON text that a shard holds, for passing on as it is.
fn raw(json: &[u8]) -> Result<Box<RawValue>, ApiError> {
    let text = String::from_utf8(json.to_vec()).map_err(|_| ApiError::unexpected_answer())?;
    RawValue::from_string(text).map_err(|_| ApiError::unexpected_answer())
}
