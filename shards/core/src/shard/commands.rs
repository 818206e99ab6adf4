//! Commands other than subscribe: publish, presence, history.

use bytes::Bytes;

use super::Shard;
use super::subscribe::{At, may};
use crate::auth::Permission;
use crate::error::{ClientError, ErrorCode};
use crate::ids::ConnectionId;
use crate::message::{ChannelOp, HistoryQuery, Publish};
use crate::proto::command::{HistoryData, PublishData};
use crate::proto::{self, push};
use crate::session::{PendingKind, recover_position};
use crate::settings::{Access, Namespace, Priority};
use crate::time::Now;

const KEY_BYTES_MAX: usize = 128;
const HISTORY_LIMIT_DEFAULT: u32 = 50;

pub(super) fn invalid(message: impl Into<String>) -> ClientError {
    ClientError::new(ErrorCode::InvalidMessageFormat, message)
}

impl Shard {
    pub(super) fn handle_publish(&mut self, now: Now, at: At<'_>, data: &PublishData<'_>) {
        if let Err(error) = self.try_publish(now, at, data) {
            self.reply_error(now, at.0, at.1, &error);
        }
    }

    fn try_publish(
        &mut self,
        now: Now,
        at: At<'_>,
        data: &PublishData<'_>,
    ) -> Result<(), ClientError> {
        let (id, reply_to, envelope) = at;
        let (channel, _, namespace) = self.resolve(data.channel.clone(), envelope)?;
        self.check_in_flight(id)?;
        self.check_publish(id, &channel, &namespace)?;
        if let Some(kind) = data.kind.as_deref()
            && (!proto::is_publishable_kind(kind) || kind == "notification")
        {
            return Err(invalid(
                "`type` of a publication is 1-64 characters of a-z, 0-9, `_`, `-`, `.` and not one of the protocol's own",
            ));
        }
        let priority = match data.priority.as_deref() {
            None => None,
            Some(text) => Some(
                Priority::parse(text)
                    .ok_or_else(|| invalid("`priority` is one of low, normal, high, critical"))?,
            ),
        };
        for key in [&data.key, &data.idempotency_key].into_iter().flatten() {
            if key.is_empty() || key.len() > KEY_BYTES_MAX {
                return Err(invalid(format!("a key has 1 to {KEY_BYTES_MAX} bytes")));
            }
        }
        let publish = Publish {
            kind: data.kind.as_deref().unwrap_or_default().into(),
            data: Bytes::copy_from_slice(data.data.get().as_bytes()),
            priority,
            key: data.key.as_deref().map(Into::into),
            idempotency_key: data.idempotency_key.as_deref().map(Into::into),
            sender: self.sender(id),
            no_echo: !namespace.echo,
            accepted_at: now.mono,
            ..Publish::default()
        };
        let asks = namespace.asks_publish();
        if asks || self.is_publish_waiting(id, &channel) {
            self.ask_publish((id, reply_to), channel, publish, asks);
            return Ok(());
        }
        let Some(session) = self.session_mut(id) else { return Ok(()) };
        let request = session.expect_reply(reply_to, PendingKind::Publish);
        self.ask(now, (id, request), &channel, ChannelOp::Publish(publish))
    }

    pub(super) fn check_publish(
        &self,
        id: ConnectionId,
        channel: &str,
        namespace: &Namespace,
    ) -> Result<(), ClientError> {
        let Some(session) = self.session(id) else { return Ok(()) };
        let by_token = namespace.publish != Access::Nobody
            && self
                .subscription(id, channel)
                .and_then(|subscription| subscription.token.as_ref())
                .is_some_and(|token| token.may_publish);
        if by_token || may(session, channel, namespace.publish, Permission::Publish) {
            return Ok(());
        }
        let message = "neither the namespace nor the token allows publishing here";
        Err(ClientError::new(ErrorCode::PermissionDenied, message))
    }

    /// JSON text that names the publisher.
    pub(super) fn sender(&self, id: ConnectionId) -> Option<Bytes> {
        let session = self.session(id)?;
        let info = session.claims.as_ref().and_then(|claims| claims.info.as_deref());
        Some(push::sender(&session.user, &session.public_id.text(), info))
    }

    pub(super) fn handle_presence(
        &mut self,
        now: Now,
        at: At<'_>,
        channel: Option<String>,
        stats: bool,
    ) {
        if let Err(error) = self.try_presence(now, at, channel, stats) {
            self.reply_error(now, at.0, at.1, &error);
        }
    }

    fn try_presence(
        &mut self,
        now: Now,
        (id, reply_to, envelope): At<'_>,
        channel: Option<String>,
        stats: bool,
    ) -> Result<(), ClientError> {
        let (channel, _, namespace) = self.resolve(channel, envelope)?;
        self.check_in_flight(id)?;
        if !namespace.presence {
            let message = "presence is off in this namespace";
            return Err(ClientError::new(ErrorCode::NotFound, message));
        }
        self.check_read(id, &channel, Permission::Presence)?;
        let Some(session) = self.session_mut(id) else { return Ok(()) };
        let (kind, op) = if stats {
            (PendingKind::PresenceStats, ChannelOp::PresenceStats)
        } else {
            (PendingKind::Presence, ChannelOp::Presence)
        };
        let request = session.expect_reply(reply_to, kind);
        self.ask(now, (id, request), &channel, op)
    }

    /// Reading presence or history needs a subscription or a capability.
    fn check_read(
        &self,
        id: ConnectionId,
        channel: &str,
        permission: Permission,
    ) -> Result<(), ClientError> {
        let Some(session) = self.session(id) else { return Ok(()) };
        if self.subscription(id, channel).is_some()
            || may(session, channel, Access::Token, permission)
        {
            return Ok(());
        }
        let message = "subscribe to the channel first, or use a token with this capability";
        Err(ClientError::new(ErrorCode::PermissionDenied, message))
    }

    pub(super) fn handle_history(&mut self, now: Now, at: At<'_>, data: HistoryData) {
        if let Err(error) = self.try_history(now, at, data) {
            self.reply_error(now, at.0, at.1, &error);
        }
    }

    fn try_history(
        &mut self,
        now: Now,
        (id, reply_to, envelope): At<'_>,
        data: HistoryData,
    ) -> Result<(), ClientError> {
        let (channel, _, namespace) = self.resolve(data.channel, envelope)?;
        self.check_in_flight(id)?;
        if !namespace.history_access || !namespace.keeps_history() {
            let message = "history is off in this namespace";
            return Err(ClientError::new(ErrorCode::NotFound, message));
        }
        self.check_read(id, &channel, Permission::History)?;
        let query = HistoryQuery {
            since: data.since.as_ref().map(recover_position),
            limit: data.limit.unwrap_or(HISTORY_LIMIT_DEFAULT),
            reverse: data.reverse,
        };
        let Some(session) = self.session_mut(id) else { return Ok(()) };
        let request = session.expect_reply(reply_to, PendingKind::History);
        self.ask(now, (id, request), &channel, ChannelOp::History(query))
    }
}
