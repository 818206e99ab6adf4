//! Messages between shards: routing, and what happens when a mailbox is full.

use std::collections::VecDeque;
use std::sync::Arc;

use hashbrown::HashSet;

use super::{Shard, TimerKey};
use crate::home::{Effect, HomeEnv};
use crate::ids::ShardId;
use crate::message::{
    ChannelName, ChannelOp, ChannelReply, ChannelRequest, ControlMessage, Origin, ShardMessage,
};
use crate::metrics::DropKind;
use crate::occurrence::Happening;
use crate::output::Output;
use crate::route::home_shard;
use crate::time::Now;

/// What waits for room in one shard's mailbox.
///
/// Bounded by construction: replies by the requests that clients may have in flight, releases by the subscriptions
/// that exist (no new ones are made while a backlog stands), `Behind` by the channels with this home.
#[derive(Debug, Default)]
pub(super) struct Backlog {
    messages: VecDeque<ShardMessage>,
    behind: HashSet<ChannelName, foldhash::fast::FixedState>,
}

impl Shard {
    /// A message from the mailbox.
    pub fn handle_message(&mut self, now: Now, message: ShardMessage) {
        self.now = now;
        match message {
            ShardMessage::Request(request) => self.apply_request(now, *request),
            ShardMessage::Reply(reply) => self.handle_reply(now, *reply),
            ShardMessage::Deliver(delivery) => self.deliver(now, &delivery),
            ShardMessage::Behind { channel, top } => self.compare_position(now, &channel, top),
            ShardMessage::Presence { channel, frame, about } => {
                self.deliver_presence(&channel, &frame, about);
            }
            ShardMessage::Control(request) => self.handle_control(now, *request),
            ShardMessage::Broker(update) => {
                self.with_homes(now, |homes, env| homes.handle_update(env, *update));
            }
            ShardMessage::Called(answer) => self.handle_called(now, *answer),
            ShardMessage::Hooked(answer) => self.handle_hooked(now, *answer),
        }
    }

    /// Sends a request to the channel's home, which may be this shard. Answers `false` when it had to be refused.
    pub(super) fn request(&mut self, now: Now, request: ChannelRequest) -> bool {
        let target = home_shard(&request.channel, self.shards, self.hash_seed);
        if target == self.id {
            self.apply_request(now, request);
            return true;
        }
        if self.is_backed_up(target) && !must_arrive(&request) {
            self.metrics.dropped.add(DropKind::Request as usize, 1);
            return false;
        }
        let message = ShardMessage::Request(Box::new(request));
        self.outputs.push_back(Output::Send { target, message });
        true
    }

    /// Lets the home handle a request and does what it wants done.
    pub(super) fn apply_request(&mut self, now: Now, request: ChannelRequest) {
        self.with_homes(now, |homes, env| homes.apply(env, request));
    }

    /// Runs `work` on the homes of this shard and carries out the effects in order.
    pub(super) fn with_homes(
        &mut self,
        now: Now,
        work: impl FnOnce(&mut crate::home::Homes, &mut HomeEnv<'_>),
    ) {
        let mut effects = Vec::new();
        let settings = Arc::clone(&self.settings);
        let mut env = HomeEnv {
            now,
            settings: &settings,
            random: &mut self.random,
            metrics: &mut self.metrics,
            deflater: &mut self.deflater,
            effects: &mut effects,
        };
        work(&mut self.homes, &mut env);
        for effect in effects {
            match effect {
                Effect::Send(target, message) if target == self.id => {
                    self.handle_message(now, message);
                }
                Effect::Send(target, message) => {
                    self.outputs.push_back(Output::Send { target, message });
                }
                Effect::Reply(reply) => self.route_reply(now, reply),
                Effect::Broker(request) => {
                    self.outputs.push_back(Output::Control(ControlMessage::Broker(request)));
                }
                Effect::Message(message) => self.occur(|| Happening::Message(message)),
                Effect::Watched(channel, watched) => {
                    self.occur(|| Happening::Watched { channel, watched });
                }
                Effect::Timer(at, key) => self.timers.schedule(at, TimerKey::Home(key)),
            }
        }
    }

    fn route_reply(&mut self, now: Now, reply: ChannelReply) {
        let target = match reply.origin {
            Origin::Connection { id, .. } => id.shard(),
            Origin::Hub(shard) => shard,
            Origin::Control(correlation) => {
                self.outputs.push_back(Output::Control(ControlMessage::Channel {
                    correlation,
                    outcome: reply.outcome,
                }));
                return;
            }
        };
        if target == self.id {
            self.handle_reply(now, reply);
        } else {
            let message = ShardMessage::Reply(Box::new(reply));
            self.outputs.push_back(Output::Send { target, message });
        }
    }

    /// The control plane had no room for `message`; call it before the next output is taken.
    pub fn handle_control_refused(&mut self, now: Now, message: ControlMessage) {
        let message = match message {
            ControlMessage::Occurred(occurrence) => return self.keep_untold(*occurrence),
            ControlMessage::Broker(request) => return self.handle_ask_refused(now, request),
            message => message,
        };
        self.metrics.dropped.add(DropKind::Control as usize, 1);
        match message {
            ControlMessage::Call(call) => self.handle_call_refused(now, &call),
            ControlMessage::Hook(question) => self.handle_hook_refused(now, &question),
            // An answer that is lost makes its question run into its deadline.
            _ => {}
        }
    }

    /// Whether something waits for room in the mailbox of `target`, so that nothing newer may pass it.
    pub(super) fn is_backed_up(&self, target: ShardId) -> bool {
        self.backlog.get(target.index()).is_some_and(|backlog| !backlog.messages.is_empty())
    }

    /// `message` did not fit into the mailbox of `target`.
    pub fn handle_refused(&mut self, now: Now, target: ShardId, message: ShardMessage) {
        if let ShardMessage::Request(request) = message {
            if must_arrive(&request) {
                self.keep_or_drop(target, ShardMessage::Request(request));
                return;
            }
            self.metrics.dropped.add(DropKind::Request as usize, 1);
            let ChannelRequest { origin, channel, .. } = *request;
            let outcome = Err(crate::error::ClientError::overloaded());
            self.route_reply(now, ChannelReply { origin, channel, outcome });
            return;
        }
        self.keep_or_drop(target, message);
    }

    /// Keeps, notes or drops a message for a full mailbox. A client's request that queued up behind a backlog is
    /// kept too: its number is bounded by the requests in flight.
    pub(super) fn keep_or_drop(&mut self, target: ShardId, message: ShardMessage) {
        match message {
            ShardMessage::Deliver(delivery) => {
                self.metrics.dropped.add(DropKind::Deliver as usize, 1);
                self.backlog[target.index()].behind.insert(delivery.channel);
            }
            ShardMessage::Behind { channel, .. } => {
                self.backlog[target.index()].behind.insert(channel);
            }
            ShardMessage::Presence { .. } => {
                self.metrics.dropped.add(DropKind::Presence as usize, 1);
            }
            kept @ (ShardMessage::Request(_)
            | ShardMessage::Reply(_)
            | ShardMessage::Control(_)
            | ShardMessage::Broker(_)
            | ShardMessage::Called(_)
            | ShardMessage::Hooked(_)) => {
                self.backlog[target.index()].messages.push_back(kept);
            }
        }
    }

    /// Offers what was kept because of full mailboxes once more, before anything newer; call it once a turn before
    /// [`Self::poll_output`].
    pub fn retry_backlog(&mut self, now: Now) {
        self.now = now;
        self.continue_transfers(now);
        self.retry_untold();
        self.retry_unasked(now);
        for index in 0..self.backlog.len() {
            let target = ShardId(index as u16);
            let backlog = &mut self.backlog[index];
            if backlog.messages.is_empty() && backlog.behind.is_empty() {
                continue;
            }
            let messages = std::mem::take(&mut backlog.messages);
            let behind = std::mem::take(&mut backlog.behind);
            for channel in behind {
                if let Some(message) = self.homes.behind(&channel, target) {
                    self.outputs.push_front(Output::Send { target, message });
                }
            }
            for message in messages.into_iter().rev() {
                self.outputs.push_front(Output::Send { target, message });
            }
        }
    }

    /// Whether anything waits for room in a mailbox or for its turn: then the caller must not park for long (1 ms).
    pub fn has_backlog(&self) -> bool {
        !self.transferring.is_empty()
            || self.unasked.waits()
            || self.untold.waits()
            || self.backlog.iter().any(|b| !b.messages.is_empty() || !b.behind.is_empty())
    }
}

/// Whether losing the request would leave the shards out of step.
fn must_arrive(request: &ChannelRequest) -> bool {
    matches!(request.op, ChannelOp::Unsubscribe { .. }) || matches!(request.origin, Origin::Hub(_))
}
