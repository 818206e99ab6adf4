//! Large transfers of a client: reassembly, and publishing the chunks at a pace.
//!
//! A complete transfer is published a few chunks per turn and with few unanswered ones, so that the outboxes of its
//! subscribers are flushed in between. `received` is said when the home has taken every chunk.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;

use super::Shard;
use super::commands::invalid;
use super::subscribe::At;
use crate::error::{ClientError, ErrorCode};
use crate::ids::ConnectionId;
use crate::large_data::{Chunk, LargeDataError, Progress};
use crate::message::{ChannelName, ChannelOp, Publish};
use crate::metrics::MessageKind;
use crate::proto::command::LargeDataChunk;
use crate::proto::push;
use crate::session::{PendingKind, Transfer};
use crate::settings::Namespace;
use crate::time::Now;

/// Chunks of one connection that a home has not answered yet.
const CHUNKS_IN_FLIGHT: usize = 4;

impl Shard {
    /// One chunk of a large transfer. When it completes the transfer, the chunks are published to the envelope's
    /// channel, else to the application session's channel, else to the user's own.
    pub(super) fn handle_large_data(
        &mut self,
        now: Now,
        at: At<'_>,
        chunk: &LargeDataChunk<'_>,
        application_session: Option<&str>,
    ) {
        let (id, reply_to, _) = at;
        let result = self.large_data_target(at, application_session).and_then(|channel| {
            let progress = self.reassemble(now, id, chunk)?;
            Ok((channel, progress))
        });
        match result {
            Err(error) => self.reply_error(now, id, reply_to, &error),
            Ok((_, Progress::Incomplete { .. })) => {}
            Ok((_, Progress::ChecksumMismatch { data_id, total_size })) => {
                self.large_data_answer(now, at, &data_id, ("checksum_mismatch", total_size));
            }
            Ok((channel, Progress::Received { data_id, total_size, chunks })) => {
                let transfer = Transfer {
                    channel,
                    data_id,
                    checksum: (*chunk.checksum).into(),
                    reply_to: reply_to.into(),
                    total_size,
                    total_chunks: chunk.total_chunks,
                    chunks: chunks.into(),
                };
                self.begin_transfer(now, id, transfer);
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
        let serial = (session.next_id(), now.unix);
        let total_size = total_size as u64;
        let serial = (serial.0.as_str(), serial.1);
        let frame = push::large_data_received(data_id, status, total_size, reply_to, serial);
        self.push_control(id, frame, MessageKind::Reply);
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
            let channel: ChannelName = format!("user:{}", session.user).into();
            if let Some((_, namespace)) = self.settings.namespaces.find(&channel) {
                check_transferable(namespace)?;
            }
            return Ok(channel);
        };
        let (channel, _, namespace) = self.resolve(Some(given), None)?;
        check_transferable(&namespace)?;
        self.check_publish(id, &channel, &namespace)?;
        Ok(channel)
    }

    fn reassemble(
        &mut self,
        now: Now,
        id: ConnectionId,
        chunk: &LargeDataChunk<'_>,
    ) -> Result<Progress, ClientError> {
        let settings = Arc::clone(&self.settings);
        let limits = &settings.limits.large_data;
        let shard_bytes = self.large_data_bytes;
        let Some(session) = self.session_mut(id) else { return Err(ClientError::overloaded()) };
        let waiting = session.large_data.as_ref().map_or(0, |data| data.transfers.len());
        if waiting >= limits.transfers_max as usize {
            let message = "earlier transfers of this connection are still being delivered";
            return Err(ClientError::new(ErrorCode::LimitExceeded, message));
        }
        let reassembly = &mut session.large_data.get_or_insert_default().reassembly;
        let before = reassembly.bytes();
        let chunk = Chunk {
            data_id: &chunk.data_id,
            chunk_index: chunk.chunk_index,
            total_chunks: chunk.total_chunks,
            chunk_data: &chunk.chunk_data,
            checksum: &chunk.checksum,
        };
        let progress = reassembly.accept(now.mono, &chunk, limits, shard_bytes);
        let (after, deadline) = (reassembly.bytes(), reassembly.next_deadline());
        session.forget_large_data();
        self.large_data_bytes = (self.large_data_bytes + after).saturating_sub(before);
        if let Some(deadline) = deadline {
            self.touch_timer(id, deadline);
        }
        progress.map_err(|error: LargeDataError| ClientError::new(error.code(), error.to_string()))
    }

    fn begin_transfer(&mut self, now: Now, id: ConnectionId, transfer: Transfer) {
        let bytes = transfer.bytes();
        let Some(session) = self.session_mut(id) else { return };
        let transfers = &mut session.large_data.get_or_insert_default().transfers;
        let idle = transfers.is_empty();
        transfers.push_back(transfer);
        self.large_data_bytes += bytes;
        if idle {
            self.transferring.push_back(id);
            self.continue_transfer(now, id);
        }
    }

    /// Publishes some more chunks of every transfer; once a turn.
    pub(super) fn continue_transfers(&mut self, now: Now) {
        for _ in 0..self.transferring.len() {
            let Some(id) = self.transferring.pop_front() else { return };
            let unfinished = self
                .session(id)
                .filter(|session| session.is_ready())
                .and_then(|session| session.large_data.as_ref())
                .is_some_and(|data| !data.transfers.is_empty());
            if unfinished {
                self.transferring.push_back(id);
                self.continue_transfer(now, id);
            }
        }
    }

    fn continue_transfer(&mut self, now: Now, id: ConnectionId) {
        for _ in 0..CHUNKS_IN_FLIGHT {
            let sender = self.sender(id);
            let Some(session) = self.session_mut(id) else { return };
            let in_flight =
                session.pending.iter().filter(|pending| pending.kind == PendingKind::Chunk).count();
            let Some(transfer) = session.transfer_mut() else { return };
            if in_flight >= CHUNKS_IN_FLIGHT {
                return;
            }
            let left = transfer.chunks.len() as u32;
            let Some(chunk) = transfer.chunks.pop_front() else { return };
            let publish =
                chunk_publish(transfer, transfer.total_chunks - left + 1, &chunk, sender, now);
            let channel = Arc::clone(&transfer.channel);
            let request = session.expect_reply("", PendingKind::Chunk);
            self.large_data_bytes = self.large_data_bytes.saturating_sub(chunk.len());
            if let Err(error) = self.ask(now, (id, request), &channel, ChannelOp::Publish(publish))
            {
                return self.fail_transfer(now, id, &error);
            }
        }
    }

    /// A home has taken a chunk.
    pub(super) fn chunk_published(&mut self, now: Now, id: ConnectionId) {
        let Some(session) = self.session_mut(id) else { return };
        let waiting = session.pending.iter().any(|pending| pending.kind == PendingKind::Chunk);
        let complete = session.transfer_mut().is_some_and(|transfer| transfer.chunks.is_empty());
        if waiting || !complete {
            return;
        }
        let Some(done) = session.pop_transfer() else { return };
        let status = ("received", done.total_size);
        self.large_data_answer(now, (id, &done.reply_to, None), &done.data_id, status);
    }

    /// The transfer under way cannot go on: the client is told once, and sends it again if it wants to.
    pub(super) fn fail_transfer(&mut self, now: Now, id: ConnectionId, error: &ClientError) {
        let Some(session) = self.session_mut(id) else { return };
        let Some(failed) = session.pop_transfer() else { return };
        session.pending.retain(|pending| pending.kind != PendingKind::Chunk);
        self.large_data_bytes = self.large_data_bytes.saturating_sub(failed.bytes());
        self.reply_error(now, id, &failed.reply_to, error);
    }
}

/// The application is asked about whole messages, so nothing goes past it in pieces.
fn check_transferable(namespace: &Namespace) -> Result<(), ClientError> {
    if namespace.asks_publish() {
        let message =
            "the application is asked about publications here, which excludes large transfers";
        return Err(ClientError::new(ErrorCode::PermissionDenied, message));
    }
    Ok(())
}

fn chunk_publish(
    transfer: &Transfer,
    index: u32,
    chunk: &Bytes,
    sender: Option<Bytes>,
    now: Now,
) -> Publish {
    let chunk = Chunk {
        data_id: &transfer.data_id,
        chunk_index: index,
        total_chunks: transfer.total_chunks,
        chunk_data: &STANDARD.encode(chunk),
        checksum: &transfer.checksum,
    };
    Publish {
        kind: "large_data".into(),
        data: chunk.to_json().into(),
        sender,
        // Chunks must not supersede each other under `keep_latest`.
        key: Some(format!("{}/{index}", transfer.data_id).into()),
        transient: true,
        no_echo: true,
        accepted_at: now.mono,
        ..Publish::default()
    }
}
