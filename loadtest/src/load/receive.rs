//! Judging what comes from the server.

use gateway_core::message::Epoch;

use super::members::Stage;
use super::presence::session_of;
use super::{Load, Notice};
use crate::checker::{Verdict, Violation};
use crate::fleet::{ConnId, Event, Fleet};
use crate::latencies::Latencies;
use crate::schedule::Nanos;
use crate::wire::{
    CommandId, Delivered, Disconnect, Envelope, Incoming, Published, Refusal, Subscribed, epoch,
};

impl Load {
    /// Takes an event of the fleet; answers what a scenario may want to act on.
    pub(crate) fn event(
        &mut self,
        fleet: &mut Fleet,
        id: ConnId,
        event: Event<'_>,
        now: Nanos,
    ) -> Option<Notice> {
        let Some(index) = self.member_of(id) else {
            self.api_event(fleet, id, &event, now);
            return None;
        };
        match event {
            Event::Message(payload) => self.message(fleet, index, payload, now),
            Event::Ended(ending) => Some(self.ended(index, &ending)),
            Event::Open | Event::Abandoned | Event::Response(..) => None,
        }
    }

    fn message(
        &mut self,
        fleet: &mut Fleet,
        index: u32,
        payload: &[u8],
        now: Nanos,
    ) -> Option<Notice> {
        self.messages += 1;
        match self.reader.read(payload) {
            Some(Incoming::Publication(delivered)) => {
                let slow = self.members[index as usize].slow;
                if let Some(due) = self.publication(index, &delivered).filter(|_| !slow) {
                    let Latencies { calm, deliver, .. } = &mut self.latencies;
                    if self.calm { calm } else { deliver }.record(due, now);
                }
                None
            }
            Some(Incoming::Other(envelope)) => self.other(fleet, index, &envelope, now),
            None => {
                self.malformed(payload);
                None
            }
        }
    }

    fn malformed(&mut self, payload: &[u8]) {
        self.violations.add(Violation::Malformed, 1, || {
            String::from_utf8_lossy(&payload[..payload.len().min(200)]).into_owned()
        });
    }

    /// A publication, live or recovered. Answers when it was due, if that counts.
    fn publication(&mut self, index: u32, delivered: &Delivered) -> Option<Nanos> {
        let Delivered { channel, offset, epoch, .. } = *delivered;
        let member = &mut self.members[index as usize];
        let subscription = member.subscriptions.iter_mut().find(|s| s.channel == channel);
        let Some(subscription) = subscription.filter(|s| s.live) else {
            self.violations.add(Violation::Unsubscribed, 1, || {
                format!("connection {index} got offset {offset} of channel {channel}")
            });
            return None;
        };
        let last = subscription.position.map_or(0, |(_, last)| last);
        let (violation, count) = match subscription.accept(epoch, offset) {
            Verdict::InOrder => {
                self.delivered += 1;
                return self.ledger.deliver(delivered, &mut self.violations);
            }
            Verdict::Duplicate => (Violation::Duplicate, 1),
            Verdict::Gap(missing) => (Violation::Gap, missing),
            Verdict::EpochChanged => (Violation::EpochChanged, 1),
        };
        self.violations.add(violation, count, || {
            format!("connection {index}, channel {channel}: offset {offset} after {last}")
        });
        None
    }

    fn other(
        &mut self,
        fleet: &mut Fleet,
        index: u32,
        envelope: &Envelope<'_>,
        now: Nanos,
    ) -> Option<Notice> {
        let command = envelope.reply_to.as_deref().and_then(CommandId::parse);
        match (&*envelope.kind, command) {
            ("welcome", _) => {
                let Some(session) = session_of(envelope) else {
                    self.malformed(b"welcome without a session");
                    return None;
                };
                self.welcomed(fleet, index, session, now)
            }
            ("subscribed", Some(CommandId::Subscribe(channel))) => {
                self.subscribe_reply(index, channel, envelope);
                let later = self.members[index as usize].stage == Stage::Ready;
                let subscribed = later.then_some(Notice::Subscribed(index, true));
                subscribed.or_else(|| self.check_ready(index, now))
            }
            ("unsubscribed", Some(CommandId::Unsubscribe(channel))) => {
                self.unsubscribed(index, channel)
            }
            ("join" | "leave", None) => self.presence_push(index, envelope),
            ("presence", Some(CommandId::Presence(channel))) => {
                self.presence_list(channel, envelope)
            }
            ("published", Some(CommandId::Publish(number))) => {
                let position = envelope.typed::<Published<'_>>();
                let Some(position) = position else {
                    self.malformed(b"published without a position");
                    return None;
                };
                self.acknowledged(number, (epoch(&position.epoch), position.offset), now);
                Some(Notice::Answered(index))
            }
            ("pong", Some(CommandId::Ping)) => Some(Notice::Pong(index)),
            ("error", _) => self.refused(index, command, envelope),
            ("disconnect", _) => {
                let told = envelope.typed::<Disconnect<'_>>();
                let told = told.map(|told| format!("({}, {})", told.code, told.reason));
                self.members[index as usize].told = told;
                None
            }
            ("lost", _) => {
                self.lost(index, envelope);
                None
            }
            // Server-side channels and counts of large ones are none of this load's business.
            _ => None,
        }
    }

    /// An acknowledgement, over a socket or from the API.
    pub(super) fn acknowledged(&mut self, number: u64, position: (Epoch, u64), now: Nanos) {
        if let Some(due) = self.ledger.acknowledge(number, position, &mut self.violations) {
            self.latencies.acknowledge.record(due, now);
        }
    }

    fn refused(
        &mut self,
        index: u32,
        command: Option<CommandId>,
        envelope: &Envelope<'_>,
    ) -> Option<Notice> {
        let refusal = envelope.typed::<Refusal<'_>>();
        self.violations.add(Violation::Refused, 1, || {
            let (code, text) = refusal
                .as_ref()
                .map_or(("?", "?"), |refusal| (&refusal.error_code, &refusal.error_message));
            format!("{code}: {text} (connection {index}, {command:?})")
        });
        match command {
            Some(CommandId::Publish(number)) => {
                self.ledger.refuse(number);
                Some(Notice::Answered(index))
            }
            // It stays without that subscription and is never ready: the phase ends by its patience.
            _ => None,
        }
    }

    /// A `subscribed` reply. After a reconnect it must bring exactly what was missed.
    fn subscribe_reply(&mut self, index: u32, channel: u32, envelope: &Envelope<'_>) {
        let Some(data) = envelope.typed::<Subscribed<'_>>() else {
            return self.malformed(b"subscribed without a position");
        };
        let top = (epoch(&data.epoch), data.offset);
        let member = &self.members[index as usize];
        if member.unanswered == 0 {
            return self.malformed(b"subscribed twice");
        }
        let before = member
            .subscriptions
            .iter()
            .find(|subscription| subscription.channel == channel)
            .and_then(|subscription| subscription.position);
        self.subscribed(index, channel, before.unwrap_or(top));
        let Some(before) = before else { return };
        if data.recovered != Some(true) && self.members[index as usize].may_lose {
            self.slow.unrecovered += 1;
            return self.stand_at(index, channel, top);
        }
        for message in &data.messages {
            match self.reader.read(message.get().as_bytes()) {
                Some(Incoming::Publication(delivered)) => {
                    self.recovered += 1;
                    // How long it took is up to when the member came back, so that it is no latency.
                    let _ = self.publication(index, &delivered);
                }
                _ => self.malformed(message.get().as_bytes()),
            }
        }
        let after = self.members[index as usize]
            .subscriptions
            .iter()
            .find(|subscription| subscription.channel == channel)
            .and_then(|subscription| subscription.position);
        if data.recovered != Some(true) || after != Some(top) {
            self.violations.add(Violation::NotRecovered, 1, || {
                format!(
                    "connection {index}, channel {channel}: from {} to {}, recovered {:?} with {} messages",
                    before.1, top.1, data.recovered, data.messages.len()
                )
            });
            // What did not come is counted once, not again by every later publication.
            self.stand_at(index, channel, top);
        }
    }

    fn stand_at(&mut self, index: u32, channel: u32, position: (Epoch, u64)) {
        let subscriptions = &mut self.members[index as usize].subscriptions;
        if let Some(subscription) = subscriptions.iter_mut().find(|s| s.channel == channel) {
            subscription.position = Some(position);
        }
    }
}
