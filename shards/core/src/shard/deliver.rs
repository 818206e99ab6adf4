//! Publications to local subscribers, and the repair of gaps between shards.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;

use super::{Shard, session_in};
use crate::error::{ClientError, Disconnect};
use crate::event::Event;
use crate::hub::Verdict;
use crate::ids::ConnectionId;
use crate::message::{
    ChannelName, ChannelOp, ChannelOutcome, ChannelRequest, Delivery, HistoryQuery, Origin,
    Publication, StreamPosition,
};
use crate::metrics::{MessageKind, SlowAction};
use crate::outbox::{Class, Loss, PushResult, Spare};
use crate::output::Output;
use crate::proto::push;
use crate::session::{Held, Phase, Session};
use crate::settings::SlowPolicy;
use crate::time::Now;

/// Publications held back for a session whose `welcome` is not sent yet.
const HELD_MAX: usize = 4096;

impl Shard {
    /// A publication from the channel's home.
    pub(super) fn deliver(&mut self, now: Now, delivery: &Delivery) {
        let Some(local) = self.hub.find(&delivery.channel) else { return };
        let Some(channel) = self.hub.get_mut(local) else { return };
        match channel.accept(&delivery.publication) {
            Verdict::Deliver => self.fan_out(now, local, &delivery.publication, false),
            Verdict::Ignore | Verdict::Wait => {}
            Verdict::Repair(from) => {
                self.begin_repair(now, local, (from, delivery.publication.position.offset));
            }
            Verdict::Renewed => {
                let StreamPosition { offset, epoch } = delivery.publication.position;
                self.renew(now, local, StreamPosition { offset: offset - 1, epoch });
                self.deliver(now, delivery);
            }
            Verdict::GiveUp => {
                self.finish_repair(now, local, Vec::new(), None);
                // What waited is out of the way; this one begins anew, with a repair if something is missing.
                self.deliver(now, delivery);
            }
        }
    }

    /// Appends a publication to the outbox of every subscriber. `catching_up`: some of them may have it already.
    fn fan_out(&mut self, now: Now, local: u32, publication: &Arc<Publication>, catching_up: bool) {
        // Borrowed apart, so that a delivery costs one look into the slab and nothing else.
        let Self {
            hub,
            slots,
            settings,
            dirty,
            metrics,
            outbox_bytes,
            pressure,
            spare_outboxes,
            ..
        } = self;
        let Some(channel) = hub.get_mut(local) else { return };
        let class = class_of(local, publication, settings.namespaces.get(channel.namespace).slow);
        let limits = &settings.limits;
        // While the shard holds more than it may, each connection may hold an equal part, so that those who caused it
        // give way.
        let share = limits.shard_outbox_bytes_max / metrics.connections.max(1) as usize;
        let share = share.min(limits.outbox_bytes_max);
        let mut sent = Sent::default();
        for &id in &channel.subscribers {
            if publication.sender == Some(id) {
                continue;
            }
            let Some(session) = session_in(slots, id) else { continue };
            if catching_up && has_already(session, local, publication) {
                continue;
            }
            let before = session.outbox.len_bytes();
            let bytes_max = if *outbox_bytes <= limits.shard_outbox_bytes_max {
                limits.outbox_bytes_max
            } else {
                // An empty outbox always has room, so that a client that keeps up never pays for others.
                share.max(if before == 0 { publication.frame.len() } else { 0 })
            };
            let message = (local, publication, &class);
            let Some(result) = hand_over(session, message, bytes_max, spare_outboxes) else {
                continue;
            };
            let after = session.outbox.len_bytes();
            *outbox_bytes = (*outbox_bytes + after).saturating_sub(before);
            if result == PushResult::Queued {
                sent.messages += 1;
                sent.bytes += (after - before) as u64;
                session.messages_out += 1;
                pressure.note(after, session.flush_left, limits);
                if !session.dirty {
                    session.dirty = true;
                    dirty.push_back(id);
                }
            } else {
                sent.unusual.push((id, result));
            }
        }
        pressure.note_all(*outbox_bytes, limits);
        metrics.messages_out.add(MessageKind::Message as usize, sent.messages);
        metrics.message_bytes_out += sent.bytes;
        for (id, result) in sent.unusual {
            self.handle_full_outbox(now, id, &result);
        }
    }

    /// A publication did not simply fit.
    fn handle_full_outbox(&mut self, now: Now, id: ConnectionId, result: &PushResult) {
        let unsent = self.unsent_bytes(id);
        match result {
            PushResult::Queued => {}
            PushResult::Dropped { oldest, superseded, .. } => {
                self.metrics.slow.add(SlowAction::DroppedOldest as usize, u64::from(*oldest));
                self.metrics.slow.add(SlowAction::Superseded as usize, u64::from(*superseded));
                self.note_slow(id, unsent);
                self.mark_dirty(id);
            }
            PushResult::Overflow => {
                self.metrics.slow.add(SlowAction::Disconnected as usize, 1);
                self.note_slow(id, unsent);
                self.disconnect(now, id, Disconnect::Slow);
            }
        }
    }

    fn note_slow(&mut self, id: ConnectionId, outbox_bytes: usize) {
        if let Some(session) = self.session(id) {
            let user = Arc::clone(&session.user);
            let event = Event::SlowConsumer { connection: id, user, outbox_bytes };
            self.outputs.push_back(Output::Event(event));
        }
    }

    /// Publications that waited for the `welcome` of `id`.
    pub(super) fn release_held(&mut self, now: Now, id: ConnectionId, held: Vec<Held>) {
        let settings = Arc::clone(&self.settings);
        for held in held {
            let (local, publication) = match held {
                Held::Publication(local, publication) => (local, publication),
                Held::Loss(loss) => {
                    self.tell_loss(now, id, &loss);
                    continue;
                }
                Held::Renewed(local, top) => {
                    self.tell_renewal(now, id, (local, top));
                    continue;
                }
            };
            let Some(channel) = self.hub.get(local) else { continue };
            let policy = settings.namespaces.get(channel.namespace).slow;
            let class = class_of(local, &publication, policy);
            let Some(session) = session_in(&mut self.slots, id) else { return };
            let before = session.outbox.len_bytes();
            let bytes_max = settings.limits.outbox_bytes_max;
            let message = (local, &publication, &class);
            let result = hand_over(session, message, bytes_max, &mut self.spare_outboxes);
            let after = session.outbox.len_bytes();
            session.messages_out += u64::from(result == Some(PushResult::Queued));
            self.outbox_bytes = (self.outbox_bytes + after).saturating_sub(before);
            match result {
                Some(PushResult::Queued) => {
                    self.metrics.messages_out.add(MessageKind::Message as usize, 1);
                    self.metrics.message_bytes_out += after.saturating_sub(before) as u64;
                    self.mark_dirty(id);
                }
                Some(unusual) => self.handle_full_outbox(now, id, &unusual),
                None => {}
            }
        }
    }

    /// A join, leave or presence_stats push from the channel's home. Skipped for a client whose outbox is full.
    pub(super) fn deliver_presence(
        &mut self,
        channel: &str,
        frame: &Bytes,
        about: Option<ConnectionId>,
    ) {
        let Some(local) = self.hub.find(channel) else { return };
        let Some(channel) = self.hub.get_mut(local) else { return };
        let subscribers = std::mem::take(&mut channel.subscribers);
        let bytes_max = self.settings.limits.outbox_bytes_max;
        for &id in &subscribers {
            let room = self.session(id).is_some_and(|session| {
                session.is_ready() && session.outbox.len_bytes() + frame.len() <= bytes_max
            });
            if room && about != Some(id) {
                self.push_control(id, frame.clone(), MessageKind::JoinLeave);
            }
        }
        if let Some(channel) = self.hub.get_mut(local) {
            channel.subscribers = subscribers;
        }
    }

    /// The home says where the channel stands, after it could not deliver.
    pub(super) fn compare_position(&mut self, now: Now, channel: &str, top: StreamPosition) {
        let Some(local) = self.hub.find(channel) else { return };
        let Some(channel) = self.hub.get_mut(local) else { return };
        let verdict = channel.compare(top);
        self.act_on(now, local, (verdict, top));
    }

    /// Does what follows from comparing with the home's position.
    pub(super) fn act_on(
        &mut self,
        now: Now,
        local: u32,
        (verdict, top): (Verdict, StreamPosition),
    ) {
        match verdict {
            Verdict::Repair(from) => self.begin_repair(now, local, (from, top.offset)),
            Verdict::Renewed => self.renew(now, local, top),
            Verdict::Deliver | Verdict::Ignore | Verdict::Wait | Verdict::GiveUp => {}
        }
    }

    /// The stream has begun anew: every subscriber is told, and goes on from `top`.
    fn renew(&mut self, now: Now, local: u32, top: StreamPosition) {
        let Some(channel) = self.hub.get_mut(local) else { return };
        channel.begin_anew(top);
        let subscribers = channel.subscribers.clone();
        self.metrics.epochs_changed += 1;
        for id in subscribers {
            let Some(session) = self.session_mut(id) else { continue };
            if let Some(subscription) = session.subscription_mut(local) {
                subscription.live_from = top.offset;
            }
            if let Phase::Attaching(attaching) = &mut session.phase {
                attaching.held.push(Held::Renewed(local, top));
                continue;
            }
            self.tell_renewal(now, id, (local, top));
        }
    }

    fn tell_renewal(&mut self, now: Now, id: ConnectionId, (local, top): (u32, StreamPosition)) {
        let Some(channel) = self.hub.get(local).map(|local| Arc::clone(&local.name)) else {
            return;
        };
        let Some(session) = self.session_mut(id) else { return };
        let serial = session.next_id();
        let frame = push::renewed(&channel, top, &serial, now.unix);
        self.push_control(id, frame, MessageKind::Control);
    }

    /// Asks the home for what came after `from`.
    fn begin_repair(&mut self, now: Now, local: u32, (from, found): (StreamPosition, u64)) {
        let Some(channel) = self.hub.get(local) else { return };
        let channel = Arc::clone(&channel.name);
        self.metrics.gaps_found += 1;
        self.outputs.push_back(Output::Event(Event::GapFound {
            channel: Arc::clone(&channel),
            expected: from.offset + 1,
            found,
        }));
        let query = HistoryQuery {
            since: Some(from),
            limit: self.settings.limits.history_page_max,
            reverse: false,
        };
        let origin = Origin::Hub(self.id);
        // Always accepted: a repair is kept in the backlog when the home's mailbox is full.
        self.request(now, ChannelRequest { origin, channel, op: ChannelOp::History(query) });
    }

    pub(super) fn handle_repair(
        &mut self,
        now: Now,
        channel: &ChannelName,
        outcome: Result<ChannelOutcome, ClientError>,
    ) {
        let Some(local) = self.hub.find(channel) else { return };
        if !self.hub.get(local).is_some_and(crate::hub::LocalChannel::is_repairing) {
            return;
        }
        match outcome {
            Ok(ChannelOutcome::History { top, publications, .. }) => {
                self.finish_repair(now, local, publications, Some(top));
            }
            _ => self.finish_repair(now, local, Vec::new(), None),
        }
    }

    /// Delivers what the repair brought and what waited for it, and tells every hole that is left.
    fn finish_repair(
        &mut self,
        now: Now,
        local: u32,
        fetched: Vec<Arc<Publication>>,
        top: Option<StreamPosition>,
    ) {
        let Some(channel) = self.hub.get_mut(local) else { return };
        let mut queue: VecDeque<_> = fetched.into();
        queue.append(&mut channel.finish_repair());
        let mut whole = true;
        for publication in queue {
            let Some(position) = self.hub.get(local).and_then(|channel| channel.position) else {
                return;
            };
            let same_epoch = publication.position.epoch == position.epoch;
            let offset = publication.position.offset;
            if same_epoch && offset <= position.offset {
                continue;
            }
            let expected = if same_epoch { position.offset + 1 } else { 1 };
            if offset > expected || !same_epoch {
                whole = false;
                self.tell_gap(now, local, (expected, offset.saturating_sub(1)));
            }
            if let Some(channel) = self.hub.get_mut(local) {
                channel.position = Some(publication.position);
            }
            self.fan_out(now, local, &publication, true);
        }
        if let (Some(top), Some(channel)) = (top, self.hub.get_mut(local))
            && let Some(position) = channel.position
            && position.epoch == top.epoch
            && position.offset < top.offset
        {
            channel.position = Some(top);
            whole = false;
            self.tell_gap(now, local, (position.offset + 1, top.offset));
        }
        self.metrics.gaps_repaired += u64::from(whole);
    }

    /// Tells every subscriber that publications `from..=to` will not come.
    fn tell_gap(&mut self, now: Now, local: u32, (from, to): (u64, u64)) {
        let Some(channel) = self.hub.get(local) else { return };
        let subscribers = channel.subscribers.clone();
        for id in subscribers {
            let Some(session) = self.session_mut(id) else { continue };
            let live_from = session.subscription(local).map_or(0, |s| s.live_from);
            let from = from.max(live_from + 1);
            if from > to {
                continue;
            }
            let count = (to + 1 - from) as u32;
            let loss = Loss { channel: local, from_offset: from, to_offset: to, count };
            if let Phase::Attaching(attaching) = &mut session.phase {
                attaching.held.push(Held::Loss(loss));
                continue;
            }
            self.tell_loss(now, id, &loss);
        }
    }

    /// Tells one subscriber of publications that will not come.
    fn tell_loss(&mut self, now: Now, id: ConnectionId, loss: &Loss) {
        let Some(channel) = self.hub.get(loss.channel).map(|local| Arc::clone(&local.name)) else {
            return;
        };
        let Some(session) = self.session_mut(id) else { return };
        let serial = session.next_id();
        let frame = push::lost(&channel, loss, "gap", &serial, now.unix);
        self.push_control(id, frame, MessageKind::Control);
    }
}

/// What fan-out did, summed up before it is counted.
#[derive(Default)]
struct Sent {
    messages: u64,
    bytes: u64,
    unusual: Vec<(ConnectionId, PushResult)>,
}

fn class_of(local: u32, publication: &Publication, policy: SlowPolicy) -> Class {
    Class::Publication {
        channel: local,
        key_hash: publication.key_hash,
        offset: publication.position.offset,
        policy,
        priority: publication.priority,
        accepted_at: publication.accepted_at,
    }
}

/// Whether the session went live after the publication, which then came with the answer to its subscribe.
fn has_already(session: &Session, local: u32, publication: &Publication) -> bool {
    session.subscription(local).is_none_or(|s| publication.position.offset <= s.live_from)
}

/// Puts a publication into the outbox of a session, or holds it back until the `welcome` is sent. `None` when nothing
/// was queued.
fn hand_over(
    session: &mut Session,
    (local, publication, class): (u32, &Arc<Publication>, &Class),
    bytes_max: usize,
    spare: &mut Spare,
) -> Option<PushResult> {
    match &mut session.phase {
        Phase::Ready => {
            let frame = match &publication.deflated {
                Some(deflated) if session.deflate => deflated,
                _ => &publication.frame,
            };
            session.outbox.prepare(spare);
            Some(session.outbox.push(frame.clone(), class.clone(), bytes_max))
        }
        Phase::Attaching(attaching) => {
            attaching.held.push(Held::Publication(local, Arc::clone(publication)));
            (attaching.held.len() > HELD_MAX).then_some(PushResult::Overflow)
        }
        _ => None,
    }
}
