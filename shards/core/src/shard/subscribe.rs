//! Subscriptions: who may have one, how it begins and ends.

use std::sync::Arc;

use super::Shard;
use crate::auth::{AuthError, ChannelClaims, Permission};
use crate::error::{ClientError, ErrorCode};
use crate::hub::Released;
use crate::ids::ConnectionId;
use crate::message::{
    ChannelName, ChannelOp, ChannelRequest, Member, Origin, StreamPosition, Subscribe,
};
use crate::metrics::MessageKind;
use crate::proto::command::SubscribeData;
use crate::proto::{self, push, reply};
use crate::session::{
    PendingKind, Session, Subscription, SubscriptionState, SubscriptionToken, recover_position,
};
use crate::settings::{Access, Namespace, NamespaceIndex};
use crate::time::Now;

/// A connection with fewer subscriptions holds memory for no more than it has.
const FEW_SUBSCRIPTIONS: usize = 8;

/// The connection, the command's `id`, and the envelope's `channel`.
pub(super) type At<'a> = (ConnectionId, &'a str, Option<&'a str>);

/// `(reply_to, what the answer is for, position to recover from, channel token)` of a new subscription.
pub(super) type Wish<'a> = (&'a str, PendingKind, Option<StreamPosition>, Option<ChannelClaims>);

/// Whether `session` may do what `access` guards in `channel`.
pub(super) fn may(
    session: &Session,
    channel: &str,
    access: Access,
    permission: Permission,
) -> bool {
    let user = &*session.user;
    let rest = channel.split_once(':').map_or("", |(_, rest)| rest);
    let by_rule = match access {
        Access::Nobody => return false,
        Access::Token => false,
        Access::Owner => !user.is_empty() && rest == user,
        Access::Members => {
            let members = rest.split_once('#').map_or("", |(_, members)| members);
            !user.is_empty() && members.split(',').any(|member| member == user)
        }
        Access::SignedIn => !user.is_empty(),
        Access::Anyone | Access::Hook => true,
    };
    by_rule
        || session
            .claims
            .as_ref()
            .is_some_and(|claims| claims.capabilities.allows(channel, permission))
}

impl Shard {
    /// The channel that a command names, in its data or envelope, and its namespace.
    pub(super) fn resolve(
        &self,
        given: Option<String>,
        envelope: Option<&str>,
    ) -> Result<(ChannelName, NamespaceIndex, Namespace), ClientError> {
        let name: ChannelName = match (given, envelope) {
            (Some(name), _) => name.into(),
            (None, Some(name)) => name.into(),
            (None, None) => {
                return Err(ClientError::new(
                    ErrorCode::InvalidMessageFormat,
                    "`channel` is missing",
                ));
            }
        };
        let (index, namespace) = self.namespace_of(&name)?;
        Ok((name, index, namespace))
    }

    fn namespace_of(&self, name: &str) -> Result<(NamespaceIndex, Namespace), ClientError> {
        if !proto::is_channel_name(name, self.settings.limits.channel_name_bytes_max) {
            return Err(ClientError::new(
                ErrorCode::InvalidMessageFormat,
                "the channel name is empty, too long, or holds a space, control character, `*` or `?`",
            ));
        }
        let (index, namespace) = self.settings.namespaces.find(name).ok_or_else(|| {
            ClientError::new(ErrorCode::NotFound, "the channel's namespace is not configured")
        })?;
        Ok((index, namespace.clone()))
    }

    /// Whether the session has room for one more command that a home answers.
    pub(super) fn check_in_flight(&self, id: ConnectionId) -> Result<(), ClientError> {
        let limit = self.settings.limits.requests_in_flight_max as usize;
        // Chunks of transfers are not commands of their own: many at once are what a transfer is.
        let waiting = |session: &Session| {
            session.pending.iter().filter(|p| p.kind != PendingKind::Chunk).count()
        };
        if self.session(id).is_some_and(|session| waiting(session) >= limit) {
            let message = "too many commands of this connection wait for an answer";
            return Err(ClientError::new(ErrorCode::LimitExceeded, message));
        }
        Ok(())
    }

    pub(super) fn handle_subscribe(&mut self, now: Now, at: At<'_>, data: SubscribeData) {
        let (id, reply_to, envelope) = at;
        if let Err(error) = self.try_subscribe(now, (id, reply_to, envelope), data) {
            self.reply_error(now, id, reply_to, &error);
        }
    }

    fn try_subscribe(
        &mut self,
        now: Now,
        at: At<'_>,
        data: SubscribeData,
    ) -> Result<(), ClientError> {
        let (id, reply_to, envelope) = at;
        let (channel, _, namespace) = self.resolve(data.channel, envelope)?;
        self.check_in_flight(id)?;
        let recover = data.recover.as_ref().map(recover_position);
        let Some(session) = self.session(id) else { return Ok(()) };
        if let Some(existing) = self.subscription(id, &channel) {
            let live = existing.state == SubscriptionState::Live;
            if existing.by_server && live && recover.is_some() {
                return self.recover_live(now, id, reply_to, (&channel, recover));
            }
            let message = "this connection is subscribed to the channel already";
            return Err(ClientError::new(ErrorCode::AlreadySubscribed, message));
        }
        if self.asks_subscribe(id, &channel) {
            let message = "the application is being asked about this subscription already";
            return Err(ClientError::new(ErrorCode::AlreadySubscribed, message));
        }
        let by_rule = may(session, &channel, namespace.subscribe, Permission::Subscribe);
        let token = match data.token {
            None => None,
            Some(token) => Some(self.channel_claims(now, id, &channel, &token)?),
        };
        let by_token = token.is_some() && namespace.subscribe != Access::Nobody;
        if !by_rule && !by_token {
            let message = "neither the namespace nor the token allows this subscription";
            return Err(ClientError::new(ErrorCode::PermissionDenied, message));
        }
        if namespace.asks_subscribe() {
            self.ask_subscribe((id, reply_to), channel, recover, token);
            return Ok(());
        }
        self.begin_subscription(
            now,
            id,
            &channel,
            (reply_to, PendingKind::Subscribe, recover, token),
        )
    }

    fn channel_claims(
        &mut self,
        now: Now,
        id: ConnectionId,
        channel: &str,
        token: &str,
    ) -> Result<ChannelClaims, ClientError> {
        let verified = self.settings.auth.authenticator.verify_channel(token, now.unix);
        let user = self.session(id).map(|session| Arc::clone(&session.user)).unwrap_or_default();
        let checked = verified.and_then(|claims| {
            if *claims.channel != *channel {
                Err(AuthError::Channel)
            } else if claims.user.as_ref().is_some_and(|named| *named != user) {
                Err(AuthError::Subject)
            } else if self.is_revoked(&user, claims.token_id.as_deref(), claims.issued_at) {
                Err(AuthError::Revoked)
            } else {
                Ok(claims)
            }
        });
        checked.map_err(|error| {
            self.note_auth_failure(id, error);
            match error {
                AuthError::Expired => {
                    ClientError::new(ErrorCode::TokenExpired, "the channel token has expired")
                }
                _ => ClientError::new(
                    ErrorCode::PermissionDenied,
                    "the channel token is not acceptable",
                ),
            }
        })
    }

    /// A position was given for a server-side subscription that is live: fetch what came before it went live.
    pub(super) fn recover_live(
        &mut self,
        now: Now,
        id: ConnectionId,
        reply_to: &str,
        (channel, recover): (&ChannelName, Option<StreamPosition>),
    ) -> Result<(), ClientError> {
        let Some(session) = self.session_mut(id) else { return Ok(()) };
        let request = session.expect_reply(reply_to, PendingKind::Recover);
        let subscribe = subscribe_of(session, recover);
        self.ask(now, (id, request), channel, ChannelOp::Subscribe(subscribe))
    }

    /// Sends an operation to the channel's home; on refusal forgets the pending command.
    pub(super) fn ask(
        &mut self,
        now: Now,
        (id, request): (ConnectionId, u32),
        channel: &ChannelName,
        op: ChannelOp,
    ) -> Result<(), ClientError> {
        let origin = Origin::Connection { id, request };
        if self.request(now, ChannelRequest { origin, channel: Arc::clone(channel), op }) {
            return Ok(());
        }
        if let Some(session) = self.session_mut(id) {
            session.take_pending(request);
        }
        Err(ClientError::overloaded())
    }

    /// Reserves the channel on the connection and asks its home. The permission has been checked.
    pub(super) fn begin_subscription(
        &mut self,
        now: Now,
        id: ConnectionId,
        channel: &ChannelName,
        (reply_to, kind, recover, token): Wish<'_>,
    ) -> Result<(), ClientError> {
        let (namespace, _) = self.namespace_of(channel)?;
        let subscriptions_max = self.settings.limits.subscriptions_max as usize;
        let Some(session) = self.session(id) else { return Ok(()) };
        if session.subscriptions.len() >= subscriptions_max {
            let message = format!("a connection holds at most {subscriptions_max} subscriptions");
            return Err(ClientError::new(ErrorCode::LimitExceeded, message));
        }
        let (local, channel) = self.hub.reserve(channel, namespace, session.deflate);
        let Some(session) = self.session_mut(id) else { return Ok(()) };
        let request = session.expect_reply(reply_to, kind);
        if session.subscriptions.len() < FEW_SUBSCRIPTIONS {
            session.subscriptions.reserve_exact(1);
        }
        session.subscriptions.push(Subscription {
            local,
            place: 0,
            state: SubscriptionState::Pending,
            request,
            by_server: kind != PendingKind::Subscribe,
            live_from: 0,
            token: token.as_ref().map(|token| {
                Box::new(SubscriptionToken {
                    token_id: token.token_id.clone(),
                    issued_at: token.issued_at,
                    expires_at: token.expires_at.map(|unix| now.mono_at(unix)),
                    may_publish: token.publish,
                })
            }),
        });
        let mut subscribe = subscribe_of(session, recover);
        if let Some(info) = token.and_then(|token| token.info) {
            subscribe.member.info = Some(info);
        }
        let asked = self.ask(now, (id, request), &channel, ChannelOp::Subscribe(subscribe));
        if asked.is_err() {
            self.forget_subscription(id, local);
        }
        self.schedule_session(now, id);
        asked
    }

    /// Takes a subscription out of the session and the hub; answers what the home must be told.
    pub(super) fn forget_subscription(
        &mut self,
        id: ConnectionId,
        local: u32,
    ) -> Option<ChannelRequest> {
        // A loss is told by the channel's name, which the hub may give up now.
        if self.session(id).is_some_and(|session| session.outbox.has_losses()) {
            self.encode_losses(id);
        }
        let session = self.session_mut(id)?;
        let index = session.subscriptions.iter().position(|s| s.local == local)?;
        let subscription = session.subscriptions.swap_remove(index);
        let deflate = session.deflate;
        let live = subscription.state == SubscriptionState::Live;
        let place = live.then_some(subscription.place);
        let released = self.hub.release(local, place, deflate);
        if let Some(moved) = released.moved.and_then(|moved| self.session_mut(moved))
            && let Some(moved) = moved.subscription_mut(local)
        {
            moved.place = subscription.place;
        }
        let Released { last, compression, .. } = released;
        Some(ChannelRequest {
            origin: Origin::Connection { id, request: 0 },
            channel: released.channel?,
            op: ChannelOp::Unsubscribe { connection: id, last, compression },
        })
    }

    /// Ends a subscription here and at the home. Answers whether there was one.
    pub(super) fn end_subscription(&mut self, now: Now, id: ConnectionId, channel: &str) -> bool {
        let Some(local) = self.hub.find(channel) else { return false };
        let Some(request) = self.forget_subscription(id, local) else { return false };
        if let Some(session) = self.session_mut(id) {
            session.outbox.retire(local);
        }
        self.request(now, request);
        true
    }

    pub(super) fn handle_unsubscribe(&mut self, now: Now, at: At<'_>, channel: Option<&str>) {
        let (id, reply_to, envelope) = at;
        // The namespace is not asked: a reload may have removed it.
        match channel.or(envelope) {
            None => {
                let error =
                    ClientError::new(ErrorCode::InvalidMessageFormat, "`channel` is missing");
                self.reply_error(now, id, reply_to, &error);
            }
            Some(channel) => {
                self.cancel_asked_subscribe(now, id, channel);
                self.end_subscription(now, id, channel);
                self.reply(now, id, reply_to, |head, _| reply::unsubscribed(head, channel));
            }
        }
    }

    /// Ends a subscription for the server's reasons and tells the client. Answers whether there was one.
    pub(super) fn unsubscribe_by_server(
        &mut self,
        now: Now,
        id: ConnectionId,
        (channel, reason): (&str, &str),
    ) -> bool {
        if !self.end_subscription(now, id, channel) {
            return false;
        }
        if let Some(session) = self.session_mut(id) {
            let serial = session.next_id();
            let frame = push::unsubscribed_by_server(channel, reason, &serial, now.unix);
            self.push_control(id, frame, MessageKind::Control);
        }
        true
    }
}

fn subscribe_of(session: &Session, recover: Option<StreamPosition>) -> Subscribe {
    Subscribe {
        recover,
        member: Member {
            user: Arc::clone(&session.user),
            session: session.public_id,
            info: session.claims.as_ref().and_then(|claims| claims.info.clone()),
        },
        compression: session.deflate,
    }
}
