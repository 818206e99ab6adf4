//! What homes ask of the broker, on its way to the control plane.
//!
//! The broker must hear of a channel in the order in which its home spoke: a detach that passes an attach leaves the home
//! without its channel for ever, a join that is passed by its leave is a member for ever. So a request that finds the control
//! queue full waits here, and everything after it waits behind it. What has an answer does not wait: it is refused, or sent at
//! once, because a publish needs no attach before it: the snapshot is read later and contains it.

use std::collections::VecDeque;

use hashbrown::HashSet;

use super::Shard;
use crate::broker::{BrokerOp, BrokerRequest, BrokerUpdate, ChannelUpdate};
use crate::message::ChannelName;
use crate::metrics::DropKind;
use crate::time::Now;

/// Requests that wait before single members are not kept any more: their channel is, and its members are told as a whole.
const MEMBERS_WAITING_MAX: usize = 16_384;

/// What waits for room in the control queue: of single members as many as the bound says, the rest bounded by channels and by
/// questions of clients that are under way.
#[derive(Debug, Default)]
pub(super) struct Unasked {
    requests: VecDeque<BrokerRequest>,
    /// Channels whose members are told anew.
    members: HashSet<ChannelName, foldhash::fast::FixedState>,
    /// Whether the control queue may have room.
    offered: bool,
}

impl Unasked {
    /// Whether anything does, so that nothing newer may pass it.
    pub(super) fn waits(&self) -> bool {
        !self.requests.is_empty() || !self.members.is_empty()
    }

    /// Whether `request` must wait because others do.
    pub(super) fn holds_back(&self, request: &BrokerRequest) -> bool {
        !self.requests.is_empty() && !is_answered(&request.op)
    }

    /// `request` comes after everything that waits.
    pub(super) fn keep(&mut self, request: BrokerRequest) {
        let single = matches!(request.op, BrokerOp::Joined { .. } | BrokerOp::Left { .. });
        if single && self.requests.len() >= MEMBERS_WAITING_MAX {
            self.members.insert(request.channel);
        } else {
            self.requests.push_back(request);
        }
    }

    /// The oldest, unless the control queue was full since the last turn.
    pub(super) fn offer(&mut self) -> Option<BrokerRequest> {
        if self.offered { self.requests.pop_front() } else { None }
    }

    /// `request` was the oldest, and there was no room for it.
    fn put_back(&mut self, request: BrokerRequest) {
        self.offered = false;
        self.requests.push_front(request);
    }
}

/// Whether somebody waits for the answer and can be told to try again.
fn is_answered(op: &BrokerOp) -> bool {
    matches!(op, BrokerOp::Publish { .. } | BrokerOp::HistoryRemove { .. })
}

impl Shard {
    /// The control queue has no room for `request`.
    pub(super) fn handle_ask_refused(&mut self, now: Now, request: BrokerRequest) {
        if is_answered(&request.op) {
            self.metrics.dropped.add(DropKind::Control as usize, 1);
            self.with_homes(now, |homes, env| homes.handle_refused(env, request));
        } else {
            self.unasked.put_back(request);
        }
    }

    /// Offers what waits once more, before anything newer.
    pub(super) fn retry_unasked(&mut self, now: Now) {
        self.unasked.offered = true;
        if self.unasked.requests.len() >= MEMBERS_WAITING_MAX {
            return;
        }
        for channel in std::mem::take(&mut self.unasked.members) {
            let update = BrokerUpdate::Channel(channel, ChannelUpdate::TellMembers);
            self.with_homes(now, |homes, env| homes.handle_update(env, update));
        }
    }
}
