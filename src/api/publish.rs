//! `publish` and `broadcast`.

use std::collections::BTreeMap;

use bytes::Bytes;
use gateway_core::message::{ChannelOp, ChannelOutcome, Publish};
use gateway_core::settings::{Priority, Settings};

use super::requests::{BroadcastRequest, PriorityName, PublishRequest};
use super::results::{BroadcastReply, BroadcastResult, PositionResult};
use super::{ApiError, payload};
use crate::bridge::PendingAnswer;
use crate::plane::SharedPlane;

impl From<PriorityName> for Priority {
    fn from(name: PriorityName) -> Self {
        match name {
            PriorityName::Low => Self::Low,
            PriorityName::Normal => Self::Normal,
            PriorityName::High => Self::High,
            PriorityName::Critical => Self::Critical,
        }
    }
}

/// Publishes to one channel.
pub(super) async fn publish(
    plane: &SharedPlane,
    request: PublishRequest,
) -> Result<PositionResult, ApiError> {
    let settings = plane.settings.load_full();
    let channel = request.channel.clone();
    let message = prepare(plane, &settings, request)?;
    let pending = send(plane, &settings, &channel, message)?;
    position(pending).await
}

/// Publishes the same to several channels. One channel's error leaves the others alone.
pub(super) async fn broadcast(
    plane: &SharedPlane,
    request: BroadcastRequest,
) -> Result<BroadcastResult, ApiError> {
    let max = plane.api.load().batch_max;
    let channels = request.channels;
    if channels.is_empty() || channels.len() > max {
        return Err(ApiError::bad_request(format!("`channels` must hold 1 to {max} channels")));
    }
    let settings = plane.settings.load_full();
    let common = PublishRequest {
        channel: String::new(),
        data: request.data,
        b64data: request.b64data,
        kind: request.kind,
        priority: request.priority,
        key: request.key,
        idempotency_key: request.idempotency_key,
        skip_history: request.skip_history,
        tags: request.tags,
    };
    let message = prepare(plane, &settings, common)?;
    // All are under way before the first answer is awaited: a broadcast takes as long as its slowest shard.
    let pending: Vec<_> =
        channels.iter().map(|channel| send(plane, &settings, channel, message.clone())).collect();
    let mut responses = Vec::with_capacity(pending.len());
    for answer in pending {
        let result = match answer {
            Ok(pending) => position(pending).await,
            Err(error) => Err(error),
        };
        responses.push(match result {
            Ok(position) => BroadcastReply::Result(position),
            Err(error) => BroadcastReply::Error(error.body()),
        });
    }
    Ok(BroadcastResult { responses })
}

/// Sends a checked message to the channel's home shard.
pub(super) fn send(
    plane: &SharedPlane,
    settings: &Settings,
    channel: &str,
    message: Publish,
) -> Result<PendingAnswer, ApiError> {
    payload::check_channel(channel, settings)?;
    Ok(plane.bridge.begin(channel, ChannelOp::Publish(message))?)
}

/// Waits for the position of a publication.
pub(super) async fn position(pending: PendingAnswer) -> Result<PositionResult, ApiError> {
    match pending.wait().await? {
        ChannelOutcome::Published(position) => Ok(position.into()),
        _ => Err(ApiError::unexpected_answer()),
    }
}

/// Checks everything but the channel.
fn prepare(
    plane: &SharedPlane,
    settings: &Settings,
    request: PublishRequest,
) -> Result<Publish, ApiError> {
    let limits = &settings.limits;
    if let Some(kind) = &request.kind {
        payload::check_type(kind)?;
    }
    if let Some(key) = &request.key {
        payload::check_text("key", key, limits)?;
    }
    if let Some(key) = &request.idempotency_key {
        payload::check_text("idempotency_key", key, limits)?;
    }
    let data = payload::json(request.data, request.b64data.as_deref(), limits)?;
    let extra = request.tags.as_ref().map(tags_member);
    let around = extra.as_ref().map_or(0, Bytes::len) + request.key.as_ref().map_or(0, String::len);
    payload::check_size(data.len() + around, limits)?;
    Ok(Publish {
        kind: request.kind.unwrap_or_default().into(),
        data,
        priority: request.priority.map(Priority::from),
        key: request.key.map(Into::into),
        idempotency_key: request.idempotency_key.map(Into::into),
        skip_history: request.skip_history,
        transient: false,
        sender: None,
        extra,
        no_echo: false,
        told: false,
        accepted_at: plane.uptime(),
    })
}

/// `"tags":{..}` as a member of the envelope.
fn tags_member(tags: &BTreeMap<String, String>) -> Bytes {
    let tags = serde_json::to_string(tags).expect("a map of strings is always JSON");
    Bytes::from(format!("\"tags\":{tags}"))
}
