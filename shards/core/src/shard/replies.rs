//! Answers of homes on their way to the client.

use std::sync::Arc;

use super::Shard;
use crate::error::{ClientError, Disconnect, ErrorCode};
use crate::ids::ConnectionId;
use crate::message::{ChannelName, ChannelOutcome, ChannelReply, Origin, Subscribed};
use crate::metrics::MessageKind;
use crate::proto::{push, reply};
use crate::session::{Pending, PendingKind, Phase, SubscriptionState};
use crate::time::Now;

impl Shard {
    /// A home has answered.
    pub(super) fn handle_reply(&mut self, now: Now, answer: ChannelReply) {
        let ChannelReply { origin, channel, outcome } = answer;
        match origin {
            Origin::Hub(_) => self.handle_repair(now, &channel, outcome),
            // Answers to the control plane never come this way: homes send them to the bridge.
            Origin::Control(_) => {}
            Origin::Connection { id, request } => {
                let Some(session) = self.session_mut(id) else { return };
                let Some(pending) = session.take_pending(request) else { return };
                match outcome {
                    Ok(outcome) => self.handle_outcome(now, id, &channel, (pending, outcome)),
                    Err(error) => self.handle_failure(now, id, &channel, (&pending, &error)),
                }
            }
        }
    }

    fn handle_failure(
        &mut self,
        now: Now,
        id: ConnectionId,
        channel: &ChannelName,
        (pending, error): (&Pending, &ClientError),
    ) {
        match pending.kind {
            PendingKind::Subscribe | PendingKind::SubscribeByServer | PendingKind::Attach => {
                // The home may have refused before it took the connection in; telling it again is harmless.
                let current = self.subscription(id, channel);
                if current.is_some_and(|current| current.request == pending.request) {
                    self.end_subscription(now, id, channel);
                }
            }
            _ => {}
        }
        match pending.kind {
            PendingKind::SubscribeByServer => {}
            PendingKind::Chunk => self.fail_transfer(now, id, error),
            PendingKind::Attach
                if matches!(error.code, ErrorCode::Unavailable | ErrorCode::LimitExceeded) =>
            {
                self.disconnect(now, id, Disconnect::Unavailable);
            }
            PendingKind::Attach => self.attached(now, id, None),
            _ => self.reply_error(now, id, &pending.reply_to, error),
        }
    }

    fn handle_outcome(
        &mut self,
        now: Now,
        id: ConnectionId,
        channel: &ChannelName,
        (pending, outcome): (Pending, ChannelOutcome),
    ) {
        let reply_to = &*pending.reply_to;
        match outcome {
            ChannelOutcome::Published(_) if pending.kind == PendingKind::Chunk => {
                self.chunk_published(now, id);
            }
            ChannelOutcome::Published(position) => {
                self.reply(now, id, reply_to, |head, _| reply::published(head, channel, position));
            }
            ChannelOutcome::Subscribed(subscribed) => {
                self.handle_subscribed(now, id, channel, (&pending, subscribed));
            }
            ChannelOutcome::Presence { members, clients, users, partial } => {
                self.reply(now, id, reply_to, |head, _| {
                    reply::presence(head, channel, &members, (clients, users, partial))
                });
            }
            ChannelOutcome::PresenceStats { clients, users, partial } => {
                self.reply(now, id, reply_to, |head, _| {
                    reply::presence_stats(head, channel, (clients, users, partial))
                });
            }
            ChannelOutcome::History { top, mut publications, partial } => {
                let mut room = self.reply_room(id);
                publications.retain(|publication| {
                    let fits = publication.json.len() < room;
                    room = if fits { room - publication.json.len() } else { 0 };
                    fits
                });
                self.reply(now, id, reply_to, |head, _| {
                    reply::history(head, channel, (top, partial), &publications)
                });
            }
            // No command of a client asks for these.
            ChannelOutcome::HistoryRemoved(_) | ChannelOutcome::UserStatus { .. } => {}
        }
    }

    /// Bytes that a reply may have: the outbox must take it, and others that are on their way.
    fn reply_room(&self, id: ConnectionId) -> usize {
        let bytes_max = self.settings.limits.outbox_bytes_max;
        let Some(session) = self.session(id) else { return 0 };
        let attaching = match &session.phase {
            Phase::Attaching(attaching) => {
                attaching.done.iter().map(|(_, s)| recovered_bytes(s)).sum()
            }
            _ => 0,
        };
        bytes_max.saturating_sub(session.outbox.len_bytes() + attaching)
    }

    /// What does not fit beside what is unsent already is honestly not recovered.
    fn bound_recovery(&self, id: ConnectionId, subscribed: &mut Subscribed) {
        if recovered_bytes(subscribed) > self.reply_room(id) {
            subscribed.publications = Vec::new();
            subscribed.recovered = Some(false);
        }
    }

    fn count_recovery(&mut self, subscribed: &Subscribed) {
        match subscribed.recovered {
            Some(true) => self.metrics.recoveries_ok += 1,
            Some(false) => self.metrics.recoveries_failed += 1,
            None => {}
        }
    }

    fn handle_subscribed(
        &mut self,
        now: Now,
        id: ConnectionId,
        channel: &ChannelName,
        (pending, mut subscribed): (&Pending, Subscribed),
    ) {
        self.bound_recovery(id, &mut subscribed);
        self.count_recovery(&subscribed);
        if pending.kind == PendingKind::Recover {
            let live_from = self.subscription(id, channel).map(|s| s.live_from);
            self.reply(now, id, &pending.reply_to, |head, _| {
                reply::subscribed(head, channel, &subscribed, live_from)
            });
            return;
        }
        let top = subscribed.top;
        let local = self
            .subscription(id, channel)
            .filter(|subscription| subscription.request == pending.request)
            .map(|subscription| subscription.local);
        let Some(local) = local else {
            // Unsubscribed meanwhile; the home has been told.
            match pending.kind {
                PendingKind::Attach => self.attached(now, id, None),
                PendingKind::Subscribe => {
                    let message = "unsubscribed before the subscription was complete";
                    let error = ClientError::new(ErrorCode::Unavailable, message);
                    self.reply_error(now, id, &pending.reply_to, &error);
                }
                _ => {}
            }
            return;
        };
        let (place, verdict) = self.hub.go_live(local, id, top);
        let session = self.session_mut(id);
        if let Some(subscription) = session.and_then(|session| session.subscription_mut(local)) {
            subscription.state = SubscriptionState::Live;
            subscription.live_from = top.offset;
            subscription.place = place;
        }
        match pending.kind {
            PendingKind::Attach => self.attached(now, id, Some((Arc::clone(channel), subscribed))),
            PendingKind::SubscribeByServer => {
                if let Some(session) = self.session_mut(id) {
                    let serial = session.next_id();
                    let frame = push::subscribed_by_server(channel, top, &serial, now.unix);
                    self.push_control(id, frame, MessageKind::Control);
                }
            }
            _ => self.reply(now, id, &pending.reply_to, |head, _| {
                reply::subscribed(head, channel, &subscribed, None)
            }),
        }
        self.act_on(now, local, (verdict, top));
    }
}

fn recovered_bytes(subscribed: &Subscribed) -> usize {
    subscribed.publications.iter().map(|publication| publication.json.len() + 1).sum()
}
