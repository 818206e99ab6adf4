//! Commands other than subscribe: publish, presence, history, large transfers.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;

use super::Shard;
use super::subscribe::{At, may};
use crate::auth::Permission;
use crate::error::{ClientError, ErrorCode};
use crate::ids::ConnectionId;
use crate::large_data::{Chunk, LargeDataError, Progress, Reassembly};
use crate::message::{ChannelName, ChannelOp, HistoryQuery, Publish};
use crate::proto::command::{HistoryData, LargeDataChunk, PublishData};
use crate::proto::json::Object;
use crate::proto::{self, push};
use crate::session::{PendingKind, recover_position};
use crate::settings::{Access, Namespace, Priority};
use crate::time::Now;

const KEY_BYTES_MAX: usize = 128;
const HISTORY_LIMIT_DEFAULT: u32 = 50;

fn invalid(message: impl Into<String>) -> ClientError {
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
        let Some(session) = self.session_mut(id) else { return Ok(()) };
        let request = session.expect_reply(reply_to, PendingKind::Publish);
        self.ask(now, (id, request), &channel, ChannelOp::Publish(publish))
    }

    fn check_publish(
        &self,
        id: ConnectionId,
        channel: &str,
        namespace: &Namespace,
    ) -> Result<(), ClientError> {
        let Some(session) = self.session(id) else { return Ok(()) };
        let by_token = namespace.publish != Access::Nobody
            && session.subscription(channel).is_some_and(|subscription| subscription.may_publish);
        if by_token || may(session, channel, namespace.publish, Permission::Publish) {
            return Ok(());
        }
        let message = "neither the namespace nor the token allows publishing here";
        Err(ClientError::new(ErrorCode::PermissionDenied, message))
    }

    /// JSON text that names the publisher.
    fn sender(&self, id: ConnectionId) -> Option<Bytes> {
        let session = self.session(id)?;
        let info = session.claims.as_ref().and_then(|claims| claims.info.as_ref());
        Some(push::sender(&session.user, &session.public_id, info))
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
        if session.subscription(channel).is_some()
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

    /// One chunk of a large transfer. When it completes the transfer, the chunks are published to the envelope's
    /// channel, else to the application session's channel, else to the user's own.
    pub(super) fn handle_large_data(
        &mut self,
        now: Now,
        at: At<'_>,
        chunk: &LargeDataChunk,
        application_session: Option<&str>,
    ) {
        let (id, reply_to, _) = at;
        let result = self.large_data_target(at, application_session).and_then(|channel| {
            let accepted = self.reassemble(now, id, chunk)?;
            Ok((channel, accepted))
        });
        match result {
            Err(error) => self.reply_error(now, id, reply_to, &error),
            Ok((_, Progress::Incomplete { .. })) => {}
            Ok((_, Progress::ChecksumMismatch { data_id, total_size })) => {
                self.large_data_answer(now, at, &data_id, ("checksum_mismatch", total_size));
            }
            Ok((channel, Progress::Received { data_id, total_size, chunks })) => {
                match self.publish_chunks(now, (id, reply_to), &channel, (chunk, chunks)) {
                    Ok(()) => self.large_data_answer(now, at, &data_id, ("received", total_size)),
                    Err(error) => self.reply_error(now, id, reply_to, &error),
                }
            }
        }
    }

    pub(super) fn large_data_answer(
        &mut self,
        now: Now,
        (id, reply_to, _): At<'_>,
        data_id: &str,
        (status, total_size): (&str, usize),
    ) {
        let Some(session) = self.session_mut(id) else { return };
        let serial = session.next_id();
        let frame = push::large_data_received(
            data_id,
            status,
            total_size as u64,
            reply_to,
            (&serial, now.unix),
        );
        self.push_control(id, frame, crate::metrics::MessageKind::Reply);
    }

    fn large_data_target(
        &self,
        (id, _, envelope): At<'_>,
        application_session: Option<&str>,
    ) -> Result<ChannelName, ClientError> {
        let Some(session) = self.session(id) else { return Err(ClientError::overloaded()) };
        let given =
            envelope.map(str::to_owned).or(application_session.map(|s| format!("session:{s}")));
        let Some(given) = given else {
            // To the user's other devices: always allowed.
            if session.user.is_empty() {
                return Err(invalid(
                    "an anonymous connection must name a `channel` for its transfer",
                ));
            }
            return Ok(format!("user:{}", session.user).into());
        };
        let (channel, _, namespace) = self.resolve(Some(given), None)?;
        self.check_publish(id, &channel, &namespace)?;
        Ok(channel)
    }

    fn reassemble(
        &mut self,
        now: Now,
        id: ConnectionId,
        chunk: &LargeDataChunk,
    ) -> Result<Progress, ClientError> {
        let settings = Arc::clone(&self.settings);
        let shard_bytes = self.large_data_bytes;
        let Some(session) = self.session_mut(id) else { return Err(ClientError::overloaded()) };
        let before = session.large_data.as_ref().map_or(0, |reassembly| reassembly.bytes());
        let reassembly = session.large_data.get_or_insert_with(|| Box::new(Reassembly::new()));
        let chunk = Chunk {
            data_id: &chunk.data_id,
            chunk_index: chunk.chunk_index,
            total_chunks: chunk.total_chunks,
            chunk_data: &chunk.chunk_data,
            checksum: &chunk.checksum,
        };
        let progress =
            reassembly.accept(now.mono, &chunk, &settings.limits.large_data, shard_bytes);
        let (after, deadline) = (reassembly.bytes(), reassembly.next_deadline());
        if reassembly.is_empty() {
            session.large_data = None;
        }
        self.large_data_bytes = (self.large_data_bytes + after).saturating_sub(before);
        if let Some(deadline) = deadline {
            self.touch_timer(id, deadline);
        }
        progress.map_err(|error: LargeDataError| ClientError::new(error.code(), error.to_string()))
    }

    /// Publishes a whole transfer. What a home refuses later is told once, as an error to the last chunk.
    fn publish_chunks(
        &mut self,
        now: Now,
        (id, reply_to): (ConnectionId, &str),
        channel: &ChannelName,
        (last, chunks): (&LargeDataChunk, Vec<Bytes>),
    ) -> Result<(), ClientError> {
        let sender = self.sender(id);
        let total = chunks.len() as u64;
        for (index, chunk) in chunks.into_iter().enumerate() {
            let mut data = Vec::with_capacity(chunk.len() / 3 * 4 + 192);
            let mut object = Object::begin(&mut data);
            object
                .str("data_id", &last.data_id)
                .u64("chunk_index", index as u64 + 1)
                .u64("total_chunks", total)
                .str("chunk_data", &STANDARD.encode(&chunk))
                .str("checksum", &last.checksum);
            object.end();
            let publish = Publish {
                kind: "large_data".into(),
                data: data.into(),
                sender: sender.clone(),
                // Chunks must not supersede each other under `keep_latest`.
                key: Some(format!("{}/{}", last.data_id, index + 1).into()),
                transient: true,
                no_echo: true,
                accepted_at: now.mono,
                ..Publish::default()
            };
            let Some(session) = self.session_mut(id) else { return Ok(()) };
            let request = session.expect_reply(reply_to, PendingKind::Silent);
            self.ask(now, (id, request), channel, ChannelOp::Publish(publish))?;
        }
        Ok(())
    }
}
