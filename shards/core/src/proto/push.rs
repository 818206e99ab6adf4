//! Pushes: what the gateway sends unasked.

use std::time::Duration;

use bytes::Bytes;

use super::encode::{Encoded, EnvelopeWriter};
use super::json;
use crate::call::ClientMessage;
use crate::error::{ClientError, Disconnect};
use crate::message::{Member, Publish, StreamPosition};
use crate::outbox::Loss;

/// A publication in `channel`; `position` is absent for one that belongs to no stream.
pub fn publication(
    channel: &str,
    publish: &Publish,
    position: Option<StreamPosition>,
    id: &str,
    unix: Duration,
) -> Encoded {
    let kind = if publish.kind.is_empty() { "message" } else { &publish.kind };
    let extra = publish.sender.as_ref().map_or(0, Bytes::len);
    let capacity = publish.data.len() + channel.len() + extra + 64;
    let mut writer = EnvelopeWriter::new(kind, id, unix, capacity).field("channel", channel);
    if let Some(position) = position {
        writer = writer.position(position);
    }
    if let Some(extra) = &publish.extra {
        writer = writer.members(extra);
    }
    if let Some(sender) = &publish.sender {
        writer = writer.raw("sender", sender);
    }
    if let Some(key) = &publish.key {
        writer = writer.field("key", key);
    }
    writer.raw_data(&publish.data)
}

/// `join` or `leave`.
pub fn join_leave(join: bool, channel: &str, member: &Member, id: &str, unix: Duration) -> Bytes {
    let kind = if join { "join" } else { "leave" };
    EnvelopeWriter::new(kind, id, unix, channel.len() + 160)
        .field("channel", channel)
        .data(|data| {
            data.str("channel", channel)
                .str("user_id", &member.user)
                .str("session_id", &member.session.text());
            if let Some(info) = &member.info {
                data.raw("info", info);
            }
        })
        .frame
}

/// Counts of a channel that is too large for single joins and leaves.
#[derive(Clone, Copy, Debug)]
pub struct PresenceCounts {
    /// Connections now.
    pub clients: u32,
    /// Distinct users now.
    pub users: u32,
    /// Joins since the last push.
    pub joined: u32,
    /// Leaves since the last push.
    pub left: u32,
}

/// `presence_stats` as a push.
pub fn presence_stats(channel: &str, counts: PresenceCounts, id: &str, unix: Duration) -> Bytes {
    EnvelopeWriter::new("presence_stats", id, unix, channel.len() + 96)
        .field("channel", channel)
        .data(|data| {
            data.str("channel", channel)
                .u64("clients", u64::from(counts.clients))
                .u64("users", u64::from(counts.users))
                .u64("joined", u64::from(counts.joined))
                .u64("left", u64::from(counts.left));
        })
        .frame
}

/// `lost`: publications of a channel that this client will not get. `reason` is `slow` or `gap`.
pub fn lost(channel: &str, loss: &Loss, reason: &str, id: &str, unix: Duration) -> Bytes {
    EnvelopeWriter::new("lost", id, unix, channel.len() + 96)
        .field("channel", channel)
        .data(|data| {
            data.str("channel", channel);
            // Publications outside of the stream have no offsets to name.
            if loss.from_offset > 0 {
                data.u64("from_offset", loss.from_offset).u64("to_offset", loss.to_offset);
            }
            data.u64("count", u64::from(loss.count)).str("reason", reason);
        })
        .frame
}

/// `lost` with the reason `epoch`: the stream of the channel has begun anew and stands at `top`. What a client remembers
/// of it cannot be compared any more, and it is not known what was lost.
pub fn renewed(channel: &str, top: StreamPosition, id: &str, unix: Duration) -> Bytes {
    EnvelopeWriter::new("lost", id, unix, channel.len() + 128)
        .field("channel", channel)
        .data(|data| {
            data.str("channel", channel)
                .u64("count", 0)
                .str("reason", "epoch")
                .u64("offset", top.offset)
                .str("epoch", top.epoch.as_str());
        })
        .frame
}

/// `error`, as a reply when `reply_to` is not empty. `session` is the public session id; empty before
/// authentication.
pub fn error(
    error: &ClientError,
    reply_to: &str,
    session: &str,
    (id, unix): (&str, Duration),
) -> Bytes {
    EnvelopeWriter::new("error", id, unix, error.message.len() + 192)
        .reply_to(reply_to)
        .data(|data| {
            data.str("error_code", error.code.as_str()).str("error_message", &error.message);
            data.object("error_details", |details| {
                details.bool("temporary", error.code.is_temporary());
                if !session.is_empty() {
                    details.str("session_id", session);
                }
                if let Some(code) = error.application_code {
                    details.u64("code", u64::from(code));
                }
                if let Some(after) = error.retry_after {
                    let ms = after.as_millis() as u64;
                    // Seconds, rounded up, as the API has always given it, beside the exact value.
                    details.u64("retry_after", ms.div_ceil(1000)).u64("retry_after_ms", ms);
                }
            });
        })
        .frame
}

/// `disconnect`: sent right before the close frame. A client that may come back is told when, and where if that is not
/// here.
pub fn disconnect(
    reason: Disconnect,
    (reconnect_after, url): (Duration, Option<&str>),
    id: &str,
    unix: Duration,
) -> Bytes {
    EnvelopeWriter::new("disconnect", id, unix, 96)
        .data(|data| {
            data.u64("code", u64::from(reason.close_code()))
                .str("reason", reason.reason())
                .bool("reconnect", reason.should_reconnect());
            if reason.should_reconnect() {
                data.u64("reconnect_after_ms", reconnect_after.as_millis() as u64);
                if let Some(url) = url {
                    data.str("url", url);
                }
            }
        })
        .frame
}

/// `subscribed` without `reply_to`: the server made a subscription.
pub fn subscribed_by_server(channel: &str, top: StreamPosition, id: &str, unix: Duration) -> Bytes {
    EnvelopeWriter::new("subscribed", id, unix, channel.len() + 96)
        .field("channel", channel)
        .data(|data| {
            data.str("channel", channel)
                .u64("offset", top.offset)
                .str("epoch", top.epoch.as_str())
                .bool("by_server", true);
        })
        .frame
}

/// `unsubscribed` without `reply_to`: the server ended a subscription. `reason` is `server` or `expired`.
pub fn unsubscribed_by_server(channel: &str, reason: &str, id: &str, unix: Duration) -> Bytes {
    EnvelopeWriter::new("unsubscribed", id, unix, channel.len() + 96)
        .field("channel", channel)
        .data(|data| {
            data.str("channel", channel).str("reason", reason).bool("by_server", true);
        })
        .frame
}

/// What the control plane tells one connection unasked.
pub fn told(message: &ClientMessage, id: &str, unix: Duration) -> Bytes {
    EnvelopeWriter::new(message.kind, id, unix, message.data.len() + 64)
        .raw_data(&message.data)
        .frame
}

/// `large_data_received`.
pub fn large_data_received(
    data_id: &str,
    status: &str,
    total_size: u64,
    reply_to: &str,
    (id, unix): (&str, Duration),
) -> Bytes {
    EnvelopeWriter::new("large_data_received", id, unix, 96)
        .reply_to(reply_to)
        .data(|data| {
            data.str("data_id", data_id).str("status", status).u64("total_size", total_size);
        })
        .frame
}

/// JSON text of the `sender` object of a client's publication.
pub fn sender(user: &str, session: &str, info: Option<&[u8]>) -> Bytes {
    let mut out = Vec::with_capacity(64 + user.len());
    let mut object = json::Object::begin(&mut out);
    object.str("user_id", user).str("session_id", session);
    if let Some(info) = info {
        object.raw("info", info);
    }
    object.end();
    out.into()
}
