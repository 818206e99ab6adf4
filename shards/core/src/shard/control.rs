//! What the control plane asks of a shard.

use std::sync::Arc;
use std::time::Duration;

use super::{Shard, token_cache};
use crate::error::Disconnect;
use crate::hub::Hub;
use crate::ids::ConnectionId;
use crate::message::{
    ChannelName, ConnectionInfo, ControlMessage, Revocation, ShardOp, ShardOutcome, ShardRequest,
    Target,
};
use crate::output::Output;
use crate::session::{PendingKind, Phase, Session};
use crate::settings::Settings;
use crate::time::Now;
use crate::ws::deflate::Deflater;

impl Shard {
    pub(super) fn handle_control(&mut self, now: Now, request: ShardRequest) {
        let outcome = match request.op {
            ShardOp::Disconnect { target, reason } => self.disconnect_target(now, &target, reason),
            ShardOp::Subscribe { target, channel } => self.subscribe_target(now, &target, &channel),
            ShardOp::Unsubscribe { target, channel } => {
                self.unsubscribe_target(now, &target, &channel)
            }
            ShardOp::Revoke(revocation) => self.revoke(now, revocation),
            ShardOp::Connections { user, from_slot, limit } => {
                self.list_connections(now, user.as_deref(), (from_slot, limit))
            }
            ShardOp::Connection { session } => {
                let found = self.sessions().find(|s| *s.public_id.text() == *session);
                ShardOutcome::Connection(
                    found.map(|session| Box::new(describe(session, &self.hub, now))),
                )
            }
            ShardOp::Channels { prefix, limit } => {
                ShardOutcome::Channels(self.homes.list(&prefix, limit as usize))
            }
            ShardOp::Users => ShardOutcome::Users(self.users()),
            ShardOp::Reconfigure(settings) => return self.reconfigure(settings),
            ShardOp::Drain { duration, reconnect_delay_max, urls } => {
                self.moving.reconnect_delay_max = reconnect_delay_max;
                self.moving.urls = urls;
                return self.drain(now, duration);
            }
            ShardOp::Others(urls) => {
                self.moving.urls = urls;
                return;
            }
        };
        self.outputs.push_back(Output::Control(ControlMessage::Shard {
            correlation: request.correlation,
            shard: self.id,
            outcome,
        }));
    }

    fn sessions(&self) -> impl Iterator<Item = &Session> {
        self.slots.iter().filter_map(|slot| slot.session.as_deref()).filter(|session| {
            session.is_authenticated() && !matches!(session.phase, Phase::Gone { .. })
        })
    }

    fn users(&self) -> Vec<Arc<str>> {
        let mut users: Vec<_> = self
            .sessions()
            .filter(|session| session.is_ready() && !session.user.is_empty())
            .map(|session| Arc::clone(&session.user))
            .collect();
        users.sort_unstable();
        users.dedup();
        users
    }

    /// Connections that can still be affected: one that is being closed is as good as gone.
    fn targets(&self, target: &Target) -> Vec<ConnectionId> {
        self.sessions()
            .filter(|session| !matches!(session.phase, Phase::Closing { .. }))
            .filter(|session| match target {
                Target::User(user) => session.user == *user,
                Target::Session(public_id) => *session.public_id.text() == **public_id,
            })
            .map(|session| session.id)
            .collect()
    }

    fn disconnect_target(&mut self, now: Now, target: &Target, reason: Disconnect) -> ShardOutcome {
        let ids = self.targets(target);
        for &id in &ids {
            self.disconnect(now, id, reason);
        }
        ShardOutcome::Affected(ids.len() as u32)
    }

    fn subscribe_target(
        &mut self,
        now: Now,
        target: &Target,
        channel: &ChannelName,
    ) -> ShardOutcome {
        let mut affected = 0;
        for id in self.targets(target) {
            if self.is_asked_about(id) {
                continue;
            }
            let fresh = self.subscription(id, channel).is_none();
            let wish = ("", PendingKind::SubscribeByServer, None, None);
            if fresh && self.begin_subscription(now, id, channel, wish).is_ok() {
                affected += 1;
            }
        }
        ShardOutcome::Affected(affected)
    }

    fn unsubscribe_target(&mut self, now: Now, target: &Target, channel: &str) -> ShardOutcome {
        let mut affected = 0;
        for id in self.targets(target) {
            let ended = self.cancel_asked_subscribe(now, id, channel)
                | self.unsubscribe_by_server(now, id, (channel, "server"));
            affected += u32::from(ended);
        }
        ShardOutcome::Affected(affected)
    }

    fn revoke(&mut self, now: Now, revocation: Revocation) -> ShardOutcome {
        self.revocations.expire(now.unix);
        if self.revocations.apply(revocation, now.unix) != crate::auth::RevocationOutcome::Stored {
            self.metrics.revocations_forgotten += 1;
        }
        let revoked: Vec<ConnectionId> = self
            .sessions()
            .filter(|session| {
                session.claims.as_ref().is_some_and(|claims| {
                    self.revocations.is_revoked(
                        &claims.user,
                        claims.token_id.as_deref(),
                        claims.issued_at,
                    )
                })
            })
            .map(|session| session.id)
            .collect();
        for &id in &revoked {
            self.disconnect(now, id, Disconnect::Revoked);
        }
        let mut ended = Vec::new();
        for session in self.sessions() {
            for subscription in &session.subscriptions {
                let revoked = subscription.token.as_ref().is_some_and(|token| {
                    self.is_revoked(&session.user, token.token_id.as_deref(), token.issued_at)
                });
                if let (true, Some(channel)) = (revoked, self.hub.get(subscription.local)) {
                    ended.push((session.id, Arc::clone(&channel.name)));
                }
            }
        }
        for (id, channel) in ended {
            self.unsubscribe_by_server(now, id, (&channel, "revoked"));
        }
        ShardOutcome::Affected(revoked.len() as u32)
    }

    fn list_connections(
        &self,
        now: Now,
        user: Option<&str>,
        (from, limit): (u32, u32),
    ) -> ShardOutcome {
        let mut matching = self
            .sessions()
            .filter(|session| session.id.slot() >= from)
            .filter(|session| user.is_none_or(|user| *session.user == *user));
        let page: Vec<_> = matching
            .by_ref()
            .take(limit as usize)
            .map(|session| describe(session, &self.hub, now))
            .collect();
        let next_slot = matching.next().map(|session| session.id.slot());
        ShardOutcome::Connections { page, next_slot }
    }

    fn reconfigure(&mut self, settings: Arc<Settings>) {
        self.settings = settings;
        // Keys may have gone: every token is checked anew.
        self.token_cache = token_cache(&self.settings, self.hash_seed);
        self.deflater = Deflater::new(self.settings.websocket.compression_level);
        self.hub.reconfigure(&self.settings);
        self.homes.reconfigure(&self.settings);
    }

    /// Gives every session its own moment to leave, evenly over `duration`, and ends what is no session yet.
    fn drain(&mut self, now: Now, duration: Duration) {
        let ids = self.session_ids();
        let count = ids.len().max(1) as u32;
        for (index, id) in ids.into_iter().enumerate() {
            let at = now.mono + duration / count * index as u32;
            let Some(session) = self.session_mut(id) else { continue };
            if session.is_ready() {
                session.drain_at = Some(at.into());
                self.touch_timer(id, at);
            } else {
                self.disconnect(now, id, Disconnect::Shutdown);
            }
        }
    }
}

fn describe(session: &Session, hub: &Hub, now: Now) -> ConnectionInfo {
    ConnectionInfo {
        id: session.id,
        session: session.public_id,
        user: Arc::clone(&session.user),
        address: session.peer.address,
        tls: session.peer.tls,
        age: now.mono.saturating_sub(session.opened_at.get()),
        idle: now.mono.saturating_sub(session.last_input.get()),
        expires_at: session.claims.as_ref().and_then(|claims| claims.expires_at),
        channels: session
            .subscriptions
            .iter()
            .filter_map(|subscription| hub.get(subscription.local))
            .map(|channel| Arc::clone(&channel.name))
            .collect(),
        outbox_bytes: session.outbox.len_bytes(),
        messages: (session.messages_in, session.messages_out),
        user_agent: session.user_agent.clone(),
    }
}
