//! Replies: answers to commands, each with `reply_to`.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::encode::EnvelopeWriter;
use super::json::{self, Object};
use crate::broker::MemberId;
use crate::call::ClientMessage;
use crate::message::{ChannelName, Member, Publication, StreamPosition, Subscribed};
use crate::settings::{Rate, Settings};

/// Who a reply goes to and when.
#[derive(Clone, Copy, Debug)]
pub struct ReplyHead<'a> {
    /// `id` of the command.
    pub reply_to: &'a str,
    /// `id` of the reply.
    pub id: &'a str,
    /// Wall clock.
    pub unix: Duration,
}

impl ReplyHead<'_> {
    fn begin(&self, kind: &str, capacity: usize) -> EnvelopeWriter {
        EnvelopeWriter::new(kind, self.id, self.unix, capacity).reply_to(self.reply_to)
    }
}

/// What `welcome` says about the session.
#[derive(Debug)]
pub struct Welcome<'a> {
    /// Public session id.
    pub session: &'a str,
    /// User id.
    pub user: &'a str,
    /// Token expiry (Unix).
    pub expires_at: Option<Duration>,
    /// Server-side subscriptions.
    pub subscriptions: &'a [(ChannelName, Subscribed)],
}

/// `welcome`.
pub fn welcome(head: &ReplyHead<'_>, welcome: &Welcome<'_>, settings: &Settings) -> Bytes {
    let limits = &settings.limits;
    let recovered: usize = welcome.subscriptions.iter().map(|(_, s)| messages_len(s)).sum();
    head.begin("welcome", 640 + recovered)
        .data(|data| {
            data.str("session_id", welcome.session)
                .str("user_id", welcome.user)
                .str("node", &settings.node)
                .u64("heartbeat_interval", settings.heartbeat.ping_interval.as_secs())
                .u64("idle_timeout", settings.heartbeat.idle_timeout.as_secs())
                .u64("server_time", head.unix.as_millis() as u64);
            if let Some(expires_at) = welcome.expires_at {
                data.u64("expires_at", expires_at.as_secs());
            }
            data.object("limits", |object| {
                object
                    .u64("message_bytes", limits.message_bytes_max as u64)
                    .u64("subscriptions", u64::from(limits.subscriptions_max))
                    .u64("large_data_chunk_bytes", limits.large_data.chunk_bytes_max as u64)
                    .u64("large_data_chunks", u64::from(limits.large_data.chunks_max));
                if limits.messages_per_connection != Rate::UNLIMITED {
                    let rate = limits.messages_per_connection.per_second;
                    object.u64("messages_per_second", u64::from(rate));
                }
            });
            data.array("subscriptions", welcome.subscriptions, |out, (channel, subscribed)| {
                let mut object = Object::begin(out);
                fill_subscribed(&mut object, channel, subscribed, None);
                object.end();
            });
        })
        .frame
}

/// The answer of the control plane to a call.
pub fn called(head: &ReplyHead<'_>, message: &ClientMessage) -> Bytes {
    head.begin(message.kind, message.data.len() + 64).raw_data(&message.data).frame
}

/// `rpc_result`; `result` is JSON text.
pub fn rpc_result(head: &ReplyHead<'_>, result: &[u8]) -> Bytes {
    head.begin("rpc_result", result.len() + 80).data(|data| _ = data.raw("result", result)).frame
}

/// `refreshed`.
pub fn refreshed(head: &ReplyHead<'_>, expires_at: Option<Duration>) -> Bytes {
    head.begin("refreshed", 48)
        .data(|data| {
            if let Some(expires_at) = expires_at {
                data.u64("expires_at", expires_at.as_secs());
            }
        })
        .frame
}

/// `pong`.
pub fn pong(head: &ReplyHead<'_>) -> Bytes {
    head.begin("pong", 16).data(|_| {}).frame
}

/// `subscribed`. Publications above `up_to` are left out: the connection got them live.
pub fn subscribed(
    head: &ReplyHead<'_>,
    channel: &str,
    subscribed: &Subscribed,
    up_to: Option<u64>,
) -> Bytes {
    head.begin("subscribed", channel.len() + 96 + messages_len(subscribed))
        .field("channel", channel)
        .data(|data| fill_subscribed(data, channel, subscribed, up_to))
        .frame
}

fn messages_len(subscribed: &Subscribed) -> usize {
    subscribed.publications.iter().map(|p| p.json.len() + 1).sum()
}

fn fill_subscribed(
    data: &mut Object<'_>,
    channel: &str,
    subscribed: &Subscribed,
    up_to: Option<u64>,
) {
    data.str("channel", channel)
        .u64("offset", subscribed.top.offset)
        .str("epoch", subscribed.top.epoch.as_str());
    if let Some(recovered) = subscribed.recovered {
        let missed = subscribed
            .publications
            .iter()
            .filter(|p| up_to.is_none_or(|limit| p.position.offset <= limit));
        data.bool("recovered", recovered).array("messages", missed, push_json);
    }
}

fn push_json(out: &mut Vec<u8>, publication: &Arc<Publication>) {
    out.extend_from_slice(&publication.json);
}

/// `unsubscribed`.
pub fn unsubscribed(head: &ReplyHead<'_>, channel: &str) -> Bytes {
    head.begin("unsubscribed", channel.len() * 2 + 32)
        .field("channel", channel)
        .data(|data| {
            data.str("channel", channel);
        })
        .frame
}

/// `published`.
pub fn published(head: &ReplyHead<'_>, channel: &str, position: StreamPosition) -> Bytes {
    head.begin("published", channel.len() + 64)
        .field("channel", channel)
        .data(|data| {
            data.u64("offset", position.offset).str("epoch", position.epoch.as_str());
        })
        .frame
}

/// `presence`; `clients` and `users` count all members, also those beyond the list's limit. `partial` is told when it is so.
pub fn presence(
    head: &ReplyHead<'_>,
    channel: &str,
    members: &[(MemberId, Member)],
    (clients, users, partial): (u32, u32, bool),
) -> Bytes {
    head.begin("presence", 64 + members.len() * 96)
        .field("channel", channel)
        .data(|data| {
            data.str("channel", channel)
                .u64("clients", u64::from(clients))
                .u64("users", u64::from(users))
                .bool("truncated", members.len() < clients as usize)
                .array("members", members, |out, (_, member)| {
                    let mut object = Object::begin(out);
                    object.str("user_id", &member.user).str("session_id", &member.session.text());
                    if let Some(info) = &member.info {
                        object.raw("info", info);
                    }
                    object.end();
                });
            fill_partial(data, partial);
        })
        .frame
}

fn fill_partial(data: &mut Object<'_>, partial: bool) {
    if partial {
        data.bool("partial", true);
    }
}

/// `presence_stats`.
pub fn presence_stats(
    head: &ReplyHead<'_>,
    channel: &str,
    (clients, users, partial): (u32, u32, bool),
) -> Bytes {
    head.begin("presence_stats", channel.len() + 64)
        .field("channel", channel)
        .data(|data| {
            data.str("channel", channel)
                .u64("clients", u64::from(clients))
                .u64("users", u64::from(users));
            fill_partial(data, partial);
        })
        .frame
}

/// `history`.
pub fn history(
    head: &ReplyHead<'_>,
    channel: &str,
    (top, partial): (StreamPosition, bool),
    publications: &[Arc<Publication>],
) -> Bytes {
    let bytes: usize = publications.iter().map(|p| p.json.len() + 1).sum();
    head.begin("history", channel.len() + 96 + bytes)
        .field("channel", channel)
        .data(|data| {
            data.str("channel", channel)
                .u64("offset", top.offset)
                .str("epoch", top.epoch.as_str())
                .array("messages", publications, push_json);
            fill_partial(data, partial);
        })
        .frame
}

/// `1`, `2`, ... as text for the `id` of replies.
pub fn serial_id(serial: u64) -> String {
    let mut out = Vec::with_capacity(12);
    out.push(b's');
    json::push_u64(&mut out, serial);
    String::from_utf8(out).unwrap_or_default()
}
