//! Bytes in: WebSocket messages, limits, dispatch of commands.

use std::sync::Arc;

use super::Shard;
use crate::error::{ClientError, Disconnect, ErrorCode};
use crate::event::Event;
use crate::ids::ConnectionId;
use crate::message::ControlMessage;
use crate::metrics::{MessageKind, RateScope};
use crate::output::{Fault, Output};
use crate::proto::command::{Command, CommandError, Envelope, FaultData};
use crate::proto::{push, reply};
use crate::session::Phase;
use crate::time::Now;
use crate::ws::frame::{self, Opcode};
use crate::ws::message::{Decoder, DecoderLimits, Item};

/// Longest message before authentication: a token and some positions.
const AUTH_MESSAGE_BYTES_MAX: usize = 32 << 10;

impl Shard {
    /// Plain (decrypted) bytes arrived. They may be changed in place (unmasking).
    pub fn handle_bytes(&mut self, now: Now, id: ConnectionId, bytes: &mut [u8]) {
        self.now = now;
        let message_bytes_max = self.settings.limits.message_bytes_max;
        let Some(session) = self.session_mut(id) else { return };
        session.last_input = now.mono.into();
        match &mut session.phase {
            Phase::Head(_) => self.handle_head_bytes(now, id, bytes),
            Phase::Attaching(attaching) => {
                if attaching.deferred.len() + bytes.len() > message_bytes_max {
                    self.disconnect(now, id, Disconnect::MessageTooLarge);
                } else {
                    attaching.deferred.extend_from_slice(bytes);
                }
            }
            Phase::Unauthenticated | Phase::Ready | Phase::Echo | Phase::Closing { .. } => {
                self.handle_frames(now, id, bytes);
            }
            Phase::Gone { .. } => {}
        }
    }

    fn handle_frames(&mut self, now: Now, id: ConnectionId, bytes: &mut [u8]) {
        let mut limits = DecoderLimits {
            message_bytes_max: self.settings.limits.message_bytes_max,
            fragments_max: self.settings.limits.fragments_max,
        };
        if self.session(id).is_some_and(|s| matches!(s.phase, Phase::Unauthenticated)) {
            // Strangers may only send a token.
            limits.message_bytes_max = limits.message_bytes_max.min(AUTH_MESSAGE_BYTES_MAX);
        }
        // The decoder and the inflater are out on loan while their items are handled.
        let Some(session) = self.session_mut(id) else { return };
        let inflate = session.inflate;
        let kept = session.decoder.take();
        let mut decoder = kept.map_or_else(|| Decoder::new(inflate), |decoder| *decoder);
        let mut inflater = std::mem::take(&mut self.inflater);
        let mut rest = bytes;
        loop {
            match decoder.next(&mut rest, &limits, &mut inflater) {
                Ok(None) => break,
                Ok(Some(item)) => self.handle_item(now, id, item),
                Err(reason) => {
                    // The stream cannot be understood any more, so no close frame of the client is waited for.
                    self.disconnect(now, id, reason);
                    self.finish(id);
                    break;
                }
            }
            match self.session_mut(id).map(|session| &mut session.phase) {
                None | Some(Phase::Gone { .. }) => break,
                Some(Phase::Attaching(attaching)) => {
                    attaching.deferred.extend_from_slice(rest);
                    break;
                }
                Some(_) => {}
            }
        }
        self.inflater = inflater;
        if !decoder.is_between_messages()
            && let Some(session) = self.session_mut(id)
        {
            session.decoder = Some(Box::new(decoder));
        }
    }

    fn handle_item(&mut self, now: Now, id: ConnectionId, item: Item<'_>) {
        let Some(session) = self.session_mut(id) else { return };
        let (echo, closing) =
            (matches!(session.phase, Phase::Echo), matches!(session.phase, Phase::Closing { .. }));
        match item {
            Item::Close { code, .. } => self.handle_close_frame(now, id, code),
            _ if closing => {}
            Item::Ping(payload) => {
                let mut pong = Vec::with_capacity(payload.len() + 2);
                frame::encode(&mut pong, Opcode::Pong, false, payload);
                self.push_control(id, pong.into(), MessageKind::Pong);
            }
            Item::Pong(_) => session.ping_sent_at = None,
            Item::Text(payload) if echo => self.echo(id, Opcode::Text, payload),
            Item::Binary(payload) if echo => self.echo(id, Opcode::Binary, payload),
            Item::Binary(_) => self.disconnect(now, id, Disconnect::UnsupportedData),
            Item::Text(payload) => match std::str::from_utf8(payload) {
                Ok(text) => self.handle_text(now, id, text),
                Err(_) => self.disconnect(now, id, Disconnect::InvalidUtf8),
            },
        }
    }

    fn echo(&mut self, id: ConnectionId, opcode: Opcode, payload: &[u8]) {
        self.metrics.messages_in.add(MessageKind::Echo as usize, 1);
        let deflate = self.session(id).is_some_and(|session| session.deflate);
        let mut out = Vec::with_capacity(payload.len() + 10);
        if deflate {
            let mut compressed = Vec::with_capacity(payload.len() / 2 + 16);
            self.deflater.deflate(payload, &mut compressed);
            frame::encode(&mut out, opcode, true, &compressed);
        } else {
            frame::encode(&mut out, opcode, false, payload);
        }
        self.push_control(id, out.into(), MessageKind::Echo);
    }

    /// One text message of the native protocol.
    fn handle_text(&mut self, now: Now, id: ConnectionId, text: &str) {
        let settings = Arc::clone(&self.settings);
        self.metrics.message_bytes_in += text.len() as u64;
        if let Some(session) = self.session_mut(id) {
            session.messages_in += 1;
        }
        let read = Envelope::read(text, settings.limits.json_depth_max);
        let kind = read.as_ref().map_or(MessageKind::Other, Envelope::message_kind);
        self.metrics.messages_in.add(kind as usize, 1);
        let reply_to = read.as_ref().map_or("", |envelope| &envelope.id);
        if !self.within_rate(now, id, reply_to) {
            return;
        }
        let envelope = match read {
            Ok(envelope) => envelope,
            Err(error) => return self.handle_bad_message(now, id, "", error),
        };
        match envelope.command() {
            Ok(command) => self.handle_command(now, id, &envelope, command),
            Err(error) => self.handle_bad_message(now, id, &envelope.id, error),
        }
    }

    /// Takes a token from each bucket; answers and counts when one is empty.
    fn within_rate(&mut self, now: Now, id: ConnectionId, reply_to: &str) -> bool {
        let settings = Arc::clone(&self.settings);
        let limits = &settings.limits;
        let admission = Arc::clone(&self.admission);
        let Some(session) = self.session_mut(id) else { return false };
        let checked = session
            .rate
            .check(now.mono, limits.messages_per_connection)
            .map_err(|after| (RateScope::Connection, after))
            .and_then(|()| admission.check_message(now.mono, &session.message_keys, limits));
        let (scope, retry_after) = match checked {
            Ok(is_busy) => {
                if is_busy {
                    let user = Arc::clone(&session.user);
                    self.outputs.push_back(Output::Control(ControlMessage::BusyUser(user)));
                }
                return true;
            }
            Err(refused) => refused,
        };
        session.rate_violations += 1;
        let too_many =
            limits.rate_violations_max > 0 && session.rate_violations > limits.rate_violations_max;
        let user = Arc::clone(&session.user);
        self.metrics.rate_limited.add(scope as usize, 1);
        self.outputs.push_back(Output::Event(Event::RateLimited { connection: id, user }));
        let error = ClientError {
            code: ErrorCode::RateLimitExceeded,
            message: format!("too many messages of this {}; slow down", scope.as_str()),
            retry_after: Some(retry_after),
            application_code: None,
        };
        self.reply_error(now, id, reply_to, &error);
        if too_many {
            self.disconnect(now, id, Disconnect::RateLimited);
        }
        false
    }

    fn handle_bad_message(
        &mut self,
        now: Now,
        id: ConnectionId,
        reply_to: &str,
        error: CommandError,
    ) {
        let limit = self.settings.limits.bad_messages_max;
        let Some(session) = self.session_mut(id) else { return };
        session.bad_messages += 1;
        let too_many = limit > 0 && session.bad_messages > limit;
        let error = match error {
            CommandError::Invalid(message) => {
                ClientError::new(ErrorCode::InvalidMessageFormat, message)
            }
            CommandError::UnknownKind => {
                ClientError::new(ErrorCode::NotFound, "unknown message type")
            }
        };
        self.reply_error(now, id, reply_to, &error);
        if too_many {
            self.disconnect(now, id, Disconnect::BadMessages);
        }
    }

    fn handle_command(
        &mut self,
        now: Now,
        id: ConnectionId,
        envelope: &Envelope<'_>,
        command: Command<'_>,
    ) {
        let reply_to = &*envelope.id;
        let ready = self.session(id).is_some_and(crate::session::Session::is_ready);
        if !ready && !matches!(command, Command::Auth(_) | Command::Ping | Command::Pong) {
            let error =
                ClientError::new(ErrorCode::AuthenticationFailed, "send `auth` with a token first");
            self.reply_error(now, id, reply_to, &error);
            return self.disconnect(now, id, Disconnect::InvalidToken);
        }
        let at = (id, reply_to, envelope.channel.as_deref());
        match command {
            Command::Auth(data) => self.handle_auth(now, id, reply_to, &data),
            Command::Refresh(data) => self.handle_refresh(now, id, reply_to, &data.token),
            Command::Ping => self.reply(now, id, reply_to, |head, _| reply::pong(head)),
            Command::Pong => {}
            Command::Subscribe(data) => self.handle_subscribe(now, at, data),
            Command::Unsubscribe(data) => self.handle_unsubscribe(now, at, data.channel.as_deref()),
            Command::Publish(data) => self.handle_publish(now, at, &data),
            Command::Presence(data) => self.handle_presence(now, at, data.channel, false),
            Command::PresenceStats(data) => self.handle_presence(now, at, data.channel, true),
            Command::History(data) => self.handle_history(now, at, data),
            Command::LargeData(chunk) => {
                self.handle_large_data(now, at, &chunk, envelope.session_id.as_deref());
            }
            Command::Call(kind, data) => self.handle_call(now, at, kind, data),
            Command::Rpc(data) => self.handle_rpc(now, at, data),
            Command::Fault(data) => self.handle_fault(now, id, reply_to, &data),
        }
    }

    fn handle_fault(&mut self, now: Now, id: ConnectionId, reply_to: &str, data: &FaultData) {
        if !self.settings.diagnostics.fault_injection {
            let error = ClientError::new(ErrorCode::NotFound, "unknown message type");
            return self.reply_error(now, id, reply_to, &error);
        }
        match &*data.kind {
            "panic" => panic!("fault injection: a panic while one connection is handled"),
            "panic_shard" => self.outputs.push_back(Output::Fault(Fault::PanicShard)),
            _ => {
                let length = std::time::Duration::from_millis(data.ms);
                self.outputs.push_back(Output::Fault(Fault::Stall(length)));
            }
        }
    }

    /// Answers a command with an `error`.
    pub(super) fn reply_error(
        &mut self,
        now: Now,
        id: ConnectionId,
        reply_to: &str,
        error: &ClientError,
    ) {
        self.metrics.errors += 1;
        let Some(session) = self.session_mut(id) else { return };
        let serial = session.next_id();
        let frame = push::error(error, reply_to, &session.public_id.text(), (&serial, now.unix));
        self.push_control(id, frame, MessageKind::Error);
    }

    /// Turns what a full outbox dropped into `lost` pushes at the right places.
    pub(super) fn encode_losses(&mut self, id: ConnectionId) {
        let unix = self.now.unix;
        let hub = &self.hub;
        let Some(slot) = self.slots.get_mut(id.slot() as usize) else { return };
        let Some(session) = slot.session.as_deref_mut() else { return };
        let before = session.outbox.len_bytes();
        let mut serial = session.serial;
        session.outbox.encode_losses(|loss| {
            serial += 1;
            let channel = hub.get(loss.channel).map_or("", |local| &local.name);
            push::lost(channel, loss, "slow", &reply::serial_id(serial), unix)
        });
        session.serial = serial;
        self.outbox_bytes += session.outbox.len_bytes() - before;
    }
}
