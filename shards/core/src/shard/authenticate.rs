//! From a WebSocket to a ready session: tokens, server-side subscriptions, `welcome`, refresh.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::Shard;
use crate::auth::{AuthError, Claims};
use crate::error::{ClientError, Disconnect, ErrorCode};
use crate::event::Event;
use crate::hook::ConnectHook;
use crate::ids::ConnectionId;
use crate::message::{ChannelName, Subscribed};
use crate::occurrence::Happening;
use crate::output::Output;
use crate::proto::command::{AuthData, RecoverFrom};
use crate::proto::reply::{self, Welcome};
use crate::session::{Attaching, PendingKind, Phase, recover_position};
use crate::time::Now;
use crate::ws::handshake::Refusal;

/// When a client may try again after a limit that other connections fill.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// What is known of who connects.
pub(super) enum Identity<'a> {
    /// The token is verified; `None` is anonymous.
    Verified(Option<Arc<Claims>>),
    /// A token that only the application understands.
    Unverified(&'a str),
}

/// Stable word and message for a refused token. All causes but expiry look alike from outside.
pub(super) fn explain(error: AuthError) -> (&'static str, &'static str) {
    match error {
        AuthError::Expired => {
            ("token_expired", "the token has expired; get a new one and connect again")
        }
        AuthError::Missing => ("authentication_failed", "a token is needed"),
        _ => ("authentication_failed", "the token is not acceptable"),
    }
}

impl Shard {
    /// Checks a connection token: cache, signature and claims, revocations. Counts and logs a refusal.
    pub(super) fn verify(
        &mut self,
        now: Now,
        id: ConnectionId,
        token: &str,
    ) -> Result<Arc<Claims>, AuthError> {
        let result = self.verify_uncounted(now, token);
        if let Err(error) = result {
            self.note_auth_failure(id, error);
        }
        result
    }

    /// Counts and logs a refused token.
    pub(super) fn note_auth_failure(&mut self, id: ConnectionId, error: AuthError) {
        let index = AuthError::ALL.iter().position(|known| *known == error).unwrap_or(0);
        self.metrics.auth_failures.add(index, 1);
        if let Some(session) = self.session(id) {
            let address = session.peer.address;
            let event = Event::AuthenticationFailed { connection: id, address, error };
            self.outputs.push_back(Output::Event(event));
            if self.settings.occurrences.authentication {
                self.occur(|| Happening::AuthenticationFailed { address, error });
            }
        }
    }

    /// Whether tokens of the user, with this id or of this time are no longer accepted.
    pub(super) fn is_revoked(
        &self,
        user: &str,
        token_id: Option<&str>,
        issued_at: Option<Duration>,
    ) -> bool {
        self.revocations.is_revoked(user, token_id, issued_at)
    }

    fn verify_uncounted(&mut self, now: Now, token: &str) -> Result<Arc<Claims>, AuthError> {
        let claims = if let Some(claims) = self.token_cache.get(token, now.unix) {
            claims
        } else {
            let claims = Arc::new(self.settings.auth.authenticator.verify(token, now.unix)?);
            self.token_cache.insert(token, Arc::clone(&claims), now.unix);
            claims
        };
        if self.is_revoked(&claims.user, claims.token_id.as_deref(), claims.issued_at) {
            return Err(AuthError::Revoked);
        }
        Ok(claims)
    }

    /// Adds the connection to the user's count.
    pub(super) fn count_user(&mut self, id: ConnectionId, user: &Arc<str>) -> Result<(), Refusal> {
        let counted = self.admission.try_user(user, &self.settings.limits);
        if counted.is_err() {
            return Err(Refusal::new(
                429,
                "connection_limit",
                "this user has too many connections (limits.connections_per_user_max)",
            )
            .with_retry_after(RETRY_AFTER));
        }
        if let Some(session) = self.session_mut(id) {
            session.user_counted = true;
            session.user = Arc::clone(user);
        }
        Ok(())
    }

    /// `auth` on a connection that had no token in its handshake.
    pub(super) fn handle_auth(
        &mut self,
        now: Now,
        id: ConnectionId,
        reply_to: &str,
        data: &AuthData,
    ) {
        let waiting = self.session(id).is_some_and(|s| matches!(s.phase, Phase::Unauthenticated));
        if !waiting {
            let message = "this connection is authenticated already; use `refresh`";
            let error = ClientError::new(ErrorCode::InvalidMessageFormat, message);
            return self.reply_error(now, id, reply_to, &error);
        }
        if self.settings.hooks.connect == ConnectHook::InsteadOfToken {
            let identity = Identity::Unverified(&data.token);
            return self.attach(now, id, identity, (reply_to, &data.recover));
        }
        if data.token.is_empty() && self.settings.auth.anonymous {
            return self.attach(now, id, Identity::Verified(None), (reply_to, &data.recover));
        }
        let verified = if data.token.is_empty() {
            Err(AuthError::Missing)
        } else {
            self.verify(now, id, &data.token)
        };
        let claims = match verified {
            Ok(claims) => claims,
            Err(error) => {
                let code = match error {
                    AuthError::Expired => ErrorCode::TokenExpired,
                    _ => ErrorCode::AuthenticationFailed,
                };
                self.reply_error(now, id, reply_to, &ClientError::new(code, explain(error).1));
                return self.disconnect(now, id, Disconnect::InvalidToken);
            }
        };
        if let Err(refusal) = self.count_user(id, &claims.user) {
            let error = ClientError::new(ErrorCode::LimitExceeded, refusal.message);
            self.reply_error(now, id, reply_to, &error);
            return self.disconnect(now, id, Disconnect::ConnectionLimit);
        }
        let identity = Identity::Verified(Some(claims));
        self.attach(now, id, identity, (reply_to, &data.recover));
    }

    /// The token is verified, or is not ours to verify: ask the application, make the server-side subscriptions, then say
    /// `welcome`.
    pub(super) fn attach(
        &mut self,
        now: Now,
        id: ConnectionId,
        identity: Identity<'_>,
        (reply_to, recover): (&str, &BTreeMap<String, RecoverFrom>),
    ) {
        let (claims, token) = match identity {
            Identity::Verified(claims) => (claims, None),
            Identity::Unverified(token) => (None, Some(token)),
        };
        let public_id = self.random.session_id();
        let user: Arc<str> = claims
            .as_ref()
            .map_or_else(|| Arc::clone(&self.nobody), |claims| Arc::clone(&claims.user));
        let admission = Arc::clone(&self.admission);
        let Some(session) = self.session_mut(id) else { return };
        session.public_id = public_id;
        session.message_keys = admission.message_keys(&user, session.peer.address);
        session.user = user;
        session.claims = claims;
        session.phase = Phase::Attaching(Box::new(Attaching {
            reply_to: reply_to.into(),
            asked: None,
            waiting: 0,
            done: Vec::new(),
            deferred: Vec::new(),
            held: Vec::new(),
        }));
        self.metrics.sessions += 1;
        if self.settings.hooks.connect == ConnectHook::Off {
            return self.make_server_subscriptions(now, id, recover);
        }
        self.ask_connect(id, token.map(Into::into), recover);
        self.schedule_session(now, id);
    }

    /// Nothing stands against the session any more.
    pub(super) fn make_server_subscriptions(
        &mut self,
        now: Now,
        id: ConnectionId,
        recover: &BTreeMap<String, RecoverFrom>,
    ) {
        let Some(session) = self.session(id) else { return };
        let claimed = session.claims.as_ref().map_or(&[][..], |claims| &claims.channels);
        let channels = self.server_channels(&session.user, claimed);
        let Some(session) = self.session_mut(id) else { return };
        let Phase::Attaching(attaching) = &mut session.phase else { return };
        attaching.waiting = channels.len() as u32;
        for channel in channels {
            let from = recover.get(&*channel).map(recover_position);
            if let Err(error) =
                self.begin_subscription(now, id, &channel, ("", PendingKind::Attach, from, None))
            {
                // A claimed channel without a namespace is left out; an overloaded home ends the connect.
                if error.code == ErrorCode::Unavailable {
                    return self.disconnect(now, id, Disconnect::Unavailable);
                }
                self.attached(now, id, None);
            }
        }
        self.welcome_if_attached(now, id);
    }

    /// One server-side subscription is answered.
    pub(super) fn attached(
        &mut self,
        now: Now,
        id: ConnectionId,
        done: Option<(ChannelName, Subscribed)>,
    ) {
        let Some(session) = self.session_mut(id) else { return };
        let Phase::Attaching(attaching) = &mut session.phase else { return };
        attaching.waiting = attaching.waiting.saturating_sub(1);
        attaching.done.extend(done);
        self.welcome_if_attached(now, id);
    }

    fn welcome_if_attached(&mut self, now: Now, id: ConnectionId) {
        let heartbeat = &self.settings.heartbeat;
        let wait = self.random.between(heartbeat.ping_interval / 2, heartbeat.ping_interval);
        let first_ping = heartbeat.ping_at(now.mono + wait);
        let Some(session) = self.session_mut(id) else { return };
        let Phase::Attaching(attaching) = &session.phase else { return };
        if attaching.waiting > 0 || attaching.asked.is_some() {
            return;
        }
        let Phase::Attaching(attaching) = std::mem::replace(&mut session.phase, Phase::Ready)
        else {
            return;
        };
        session.next_ping_at = first_ping.into();
        let expires_at = session.claims.as_ref().and_then(|claims| claims.expires_at);
        let (public_id, user) = (session.public_id, Arc::clone(&session.user));
        let address = session.peer.address;
        self.reply(now, id, &attaching.reply_to, |head, settings| {
            let about = Welcome {
                session: &public_id.text(),
                user: &user,
                expires_at,
                subscriptions: &attaching.done,
            };
            reply::welcome(head, &about, settings)
        });
        self.outputs.push_back(Output::Event(Event::Connected {
            connection: id,
            session: public_id,
            user,
            address,
        }));
        self.tell_connected(id);
        self.release_held(now, id, attaching.held);
        self.announce_arrival(id);
        self.schedule_session(now, id);
        if !attaching.deferred.is_empty() {
            let mut deferred = attaching.deferred;
            self.handle_bytes(now, id, &mut deferred);
        }
    }

    /// `refresh`: a new token of the same user replaces the old one.
    pub(super) fn handle_refresh(
        &mut self,
        now: Now,
        id: ConnectionId,
        reply_to: &str,
        token: &str,
    ) {
        let verified = self.verify(now, id, token).and_then(|claims| {
            let same = self.session(id).is_some_and(|session| session.user == claims.user);
            if same { Ok(claims) } else { Err(AuthError::Subject) }
        });
        match verified {
            Err(error) => {
                let code = match error {
                    AuthError::Expired => ErrorCode::TokenExpired,
                    _ => ErrorCode::AuthenticationFailed,
                };
                self.reply_error(now, id, reply_to, &ClientError::new(code, explain(error).1));
            }
            Ok(claims) => {
                let expires_at = claims.expires_at;
                if let Some(session) = self.session_mut(id) {
                    session.claims = Some(claims);
                }
                self.reply(now, id, reply_to, |head, _| reply::refreshed(head, expires_at));
                self.schedule_session(now, id);
            }
        }
    }
}
