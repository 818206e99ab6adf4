//! Deadlines: one wheel entry per connection, filed for the earliest thing that may happen to it.

use std::sync::Arc;
use std::time::Duration;

use super::{Shard, TimerKey};
use crate::error::{ClientError, Disconnect, ErrorCode};
use crate::ids::ConnectionId;
use crate::metrics::{MessageKind, RefusalReason};
use crate::output::Output;
use crate::session::{Phase, Session, Subscription};
use crate::settings::Settings;
use crate::time::{Moment, Now};
use crate::ws::frame::{self, Opcode};
use crate::ws::handshake::Refusal;

impl Shard {
    /// Runs everything that is due.
    pub fn handle_deadline(&mut self, now: Now) {
        self.now = now;
        while let Some((_, key)) = self.timers.poll_expired(now.mono) {
            match key {
                TimerKey::Connection(id) => self.handle_connection_timer(now, id),
                TimerKey::Home(key) => {
                    self.with_homes(now, |homes, env| homes.handle_timer(env, key));
                }
            }
        }
    }

    /// Makes sure that the connection is looked at at `at`, or earlier.
    pub(super) fn touch_timer(&mut self, id: ConnectionId, at: Duration) {
        let Some(session) = self.session_mut(id) else { return };
        if session.timer_at.is_none_or(|scheduled| at < scheduled.get()) {
            session.timer_at = Some(at.into());
            self.timers.schedule(at, TimerKey::Connection(id));
        }
    }

    /// Files the connection for the earliest of its deadlines.
    pub(super) fn schedule_session(&mut self, now: Now, id: ConnectionId) {
        let settings = Arc::clone(&self.settings);
        if let Some(at) = self.session(id).and_then(|session| deadline_of(session, &settings, now))
        {
            self.touch_timer(id, at);
        }
    }

    fn handle_connection_timer(&mut self, now: Now, id: ConnectionId) {
        let Some(session) = self.session_mut(id) else { return };
        // An entry that an earlier one has overtaken fires too; then there is nothing to do yet.
        if session.timer_at.is_some_and(|at| at.get() > now.mono) {
            return;
        }
        session.timer_at = None;
        let limits = self.settings.limits.clone();
        let Some(session) = self.session(id) else { return };
        let waited = now.mono.saturating_sub(session.opened_at.get());
        match &session.phase {
            Phase::Head(_) if waited >= limits.handshake_timeout => {
                let refusal = Refusal::new(
                    408,
                    "handshake_timeout",
                    "no complete request within limits.handshake_timeout",
                );
                return self.refuse_handshake(id, &refusal, RefusalReason::HandshakeTimeout);
            }
            Phase::Unauthenticated if waited >= limits.auth_timeout => {
                let error = ClientError::new(ErrorCode::ConnectionTimeout, "no token came in time");
                self.reply_error(now, id, "", &error);
                return self.disconnect(now, id, Disconnect::AuthTimeout);
            }
            Phase::Attaching(_) if waited >= limits.auth_timeout => {
                return self.disconnect(now, id, Disconnect::Unavailable);
            }
            Phase::Closing { deadline } | Phase::Gone { deadline } if *deadline <= now.mono => {
                self.outputs.push_back(Output::Abort { id });
                return;
            }
            Phase::Ready | Phase::Echo => self.handle_ready_timer(now, id),
            _ => {}
        }
        self.schedule_session(now, id);
    }

    fn handle_ready_timer(&mut self, now: Now, id: ConnectionId) {
        let heartbeat = self.settings.heartbeat.clone();
        let grace = self.settings.auth.expiry_grace;
        let Some(session) = self.session(id) else { return };
        let expired = session
            .claims
            .as_ref()
            .and_then(|claims| claims.expires_at)
            .is_some_and(|expires_at| expires_at + grace <= now.unix);
        let silent_since_ping = session.ping_sent_at.is_some_and(|sent| {
            session.last_input <= sent && sent.get() + heartbeat.pong_timeout <= now.mono
        });
        let reason = if session.drain_at.is_some_and(|at| at.get() <= now.mono) {
            Some(Disconnect::Shutdown)
        } else if expired {
            Some(Disconnect::Expired)
        } else if silent_since_ping {
            Some(Disconnect::NoPong)
        } else if session.last_input.get() + heartbeat.idle_timeout <= now.mono {
            Some(Disconnect::Idle)
        } else {
            None
        };
        if let Some(reason) = reason {
            return self.disconnect(now, id, reason);
        }
        if matches!(session.phase, Phase::Ready) {
            self.expire_subscriptions(now, id);
            self.expire_large_data(now, id);
            self.ping_if_due(now, id, heartbeat.ping_at(now.mono + heartbeat.ping_interval));
        }
    }

    fn ping_if_due(&mut self, now: Now, id: ConnectionId, next: Duration) {
        let Some(session) = self.session_mut(id) else { return };
        if session.next_ping_at.get() > now.mono {
            return;
        }
        session.next_ping_at = next.into();
        session.ping_sent_at = Some(now.mono.into());
        let mut ping = Vec::with_capacity(2);
        frame::encode(&mut ping, Opcode::Ping, false, b"");
        self.push_control(id, ping.into(), MessageKind::Ping);
    }

    fn expire_subscriptions(&mut self, now: Now, id: ConnectionId) {
        let Some(session) = self.session(id) else { return };
        let expired: Vec<_> = session
            .subscriptions
            .iter()
            .filter(|subscription| subscription.expires_at().is_some_and(|at| at <= now.mono))
            .filter_map(|subscription| self.hub.get(subscription.local))
            .map(|channel| Arc::clone(&channel.name))
            .collect();
        for channel in expired {
            self.unsubscribe_by_server(now, id, (&channel, "expired"));
        }
    }

    fn expire_large_data(&mut self, now: Now, id: ConnectionId) {
        let Some(session) = self.session_mut(id) else { return };
        let Some(data) = &mut session.large_data else { return };
        let before = data.bytes();
        let expired: Vec<_> =
            std::iter::from_fn(|| data.reassembly.poll_expired(now.mono)).collect();
        let after = data.bytes();
        session.forget_large_data();
        self.large_data_bytes = self.large_data_bytes.saturating_sub(before - after);
        for data_id in expired {
            self.large_data_answer(now, (id, "", None), &data_id, ("expired", 0));
        }
    }
}

/// The earliest moment at which something may have to happen.
fn deadline_of(session: &Session, settings: &Settings, now: Now) -> Option<Duration> {
    let limits = &settings.limits;
    let heartbeat = &settings.heartbeat;
    let idle = session.last_input.get() + heartbeat.idle_timeout;
    match &session.phase {
        Phase::Head(_) => Some(session.opened_at.get() + limits.handshake_timeout),
        Phase::Unauthenticated | Phase::Attaching(_) => {
            Some(session.opened_at.get() + limits.auth_timeout)
        }
        Phase::Echo => Some(idle),
        Phase::Closing { deadline } | Phase::Gone { deadline } => Some(*deadline),
        Phase::Ready => {
            let expiry = session
                .claims
                .as_ref()
                .and_then(|claims| claims.expires_at)
                .map(|at| now.mono_at(at + settings.auth.expiry_grace));
            let pong = session
                .ping_sent_at
                .filter(|sent| session.last_input <= *sent)
                .map(|sent| sent.get() + heartbeat.pong_timeout);
            let subscriptions =
                session.subscriptions.iter().filter_map(Subscription::expires_at).min();
            let large_data =
                session.large_data.as_ref().and_then(|data| data.reassembly.next_deadline());
            [
                Some(idle),
                Some(session.next_ping_at.get()),
                expiry,
                pong,
                subscriptions,
                large_data,
                session.drain_at.map(Moment::get),
            ]
            .into_iter()
            .flatten()
            .min()
        }
    }
}
