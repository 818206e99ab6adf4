//! The connections: dialing, `welcome`, subscribing, losing and dropping them.

use gateway_core::message::Epoch;

use super::{Load, Notice};
use crate::checker::{Subscription, Violation};
use crate::fleet::{self, ConnId, Ending, Fleet};
use crate::schedule::{Nanos, SECOND};
use crate::wire;

/// Where a member stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// Not dialed.
    Idle,
    /// Waits for the upgrade, the `welcome` or answers to its subscriptions.
    Joining,
    /// Connected and subscribed.
    Ready,
    /// Ended, and not to be dialed again by itself.
    Gone,
}

/// One connection of the load, which may be dialed more than once.
#[derive(Clone, Debug)]
pub(super) struct Member {
    pub(super) connection: Option<ConnId>,
    pub(super) stage: Stage,
    pub(super) dialed_at: Nanos,
    /// Subscriptions that are not answered yet.
    pub(super) unanswered: u32,
    pub(super) subscriptions: Vec<Subscription>,
    /// What the last `disconnect` message said.
    pub(super) told: Option<String>,
    /// Name of the connection in presence, hashed.
    pub(super) session: u64,
    /// Whether the latency of its connecting counts.
    pub(super) recorded: bool,
    /// Whether it is one of those that stop reading; how long publications take to it says nothing.
    pub(super) slow: bool,
    /// Whether its connection may end.
    pub(super) may_end: bool,
    /// Whether it may be told of losses, and may come back to a stream that has gone on too far.
    pub(super) may_lose: bool,
}

impl Member {
    pub(super) fn new(channels: impl Iterator<Item = u32>) -> Self {
        Self {
            connection: None,
            stage: Stage::Idle,
            dialed_at: 0,
            unanswered: 0,
            subscriptions: channels.map(Subscription::new).collect(),
            told: None,
            session: 0,
            recorded: true,
            slow: false,
            may_end: false,
            may_lose: false,
        }
    }
}

impl Load {
    /// Has these members connected (again), as fast as the plan allows.
    pub(crate) fn connect(&mut self, members: std::ops::Range<u32>) {
        self.queue.extend(members);
    }

    /// Dials what may be dialed now; answers when to come back.
    pub(crate) fn dial(&mut self, fleet: &mut Fleet, now: Nanos) -> Option<Nanos> {
        while self.dialing < self.plan.concurrency {
            let member = *self.queue.front()?;
            if now < self.next_dial_at {
                return Some(self.next_dial_at);
            }
            if self.plan.connect_rate > 0.0 {
                let interval = (SECOND as f64 / self.plan.connect_rate) as Nanos;
                self.next_dial_at =
                    self.next_dial_at.max(now.saturating_sub(SECOND / 100)) + interval;
            }
            self.queue.pop_front();
            self.dial_one(fleet, member, now, true);
        }
        None
    }

    /// Dials a member that was due at `due`, whatever else is under way.
    pub(crate) fn dial_due(&mut self, fleet: &mut Fleet, index: u32, due: Nanos, recorded: bool) {
        if recorded {
            self.latencies.behind.record(due, fleet.clock.now());
        }
        self.dial_one(fleet, index, due, recorded);
    }

    fn dial_one(&mut self, fleet: &mut Fleet, index: u32, now: Nanos, recorded: bool) {
        let number = self.plan.first + index;
        let user = format!("{}{number}", self.user_stem());
        let token = match self.minter.token(&user) {
            Ok(token) => token,
            Err(error) => {
                self.violations.add(Violation::ConnectFailed, 1, || error.to_string());
                return;
            }
        };
        let elsewhere = self.moved || index < self.plan.publishers;
        let target = self.environment.target(number, elsewhere);
        let head = fleet::request(target, &token, self.environment.deflate);
        let id = fleet.dial(target, head, None);
        let member = &mut self.members[index as usize];
        member.connection = Some(id);
        member.stage = Stage::Joining;
        member.dialed_at = now;
        member.told = None;
        member.recorded = recorded;
        member.may_end = false;
        self.dialing += 1;
        if self.by_slot.len() <= id.slot() {
            self.by_slot.resize(id.slot() + 1, None);
        }
        self.by_slot[id.slot()] = Some((id, index));
    }

    /// Whether nobody is on the way any more.
    pub(crate) fn is_joined(&self) -> bool {
        self.queue.is_empty() && self.dialing == 0
    }

    /// Gives up those who are on the way.
    pub(crate) fn give_up_joining(&mut self, fleet: &mut Fleet) {
        let queued = self.queue.len() as u64;
        self.queue.clear();
        let mut late = 0;
        for member in &mut self.members {
            if member.stage == Stage::Joining {
                member.stage = Stage::Gone;
                if let Some(id) = member.connection.take() {
                    self.by_slot[id.slot()] = None;
                    fleet.abort(id);
                }
                late += 1;
            }
        }
        self.dialing = 0;
        self.violations.add(Violation::ConnectFailed, queued + late, || {
            format!("{late} connections were not ready in time, {queued} not even dialed")
        });
    }

    pub(super) fn member_of(&self, id: ConnId) -> Option<u32> {
        self.by_slot
            .get(id.slot())
            .copied()
            .flatten()
            .filter(|(known, _)| *known == id)
            .map(|(_, m)| m)
    }

    /// The `welcome` came: subscribe, from where the member stopped when it had been subscribed before.
    pub(super) fn welcomed(
        &mut self,
        fleet: &mut Fleet,
        index: u32,
        session: u64,
        now: Nanos,
    ) -> Option<Notice> {
        let member = &mut self.members[index as usize];
        let id = member.connection?;
        if member.recorded {
            self.latencies.connect.record(member.dialed_at, now);
        }
        member.session = session;
        member.unanswered = 0;
        for subscription in member.subscriptions.iter().filter(|subscription| subscription.wanted) {
            member.unanswered += 1;
            let command = wire::subscribe(&self.names, subscription.channel, subscription.position);
            fleet.send(id, &command);
        }
        self.check_ready(index, now)
    }

    pub(super) fn check_ready(&mut self, index: u32, now: Nanos) -> Option<Notice> {
        let member = &mut self.members[index as usize];
        if member.unanswered > 0 || member.stage != Stage::Joining {
            return None;
        }
        member.stage = Stage::Ready;
        member.may_lose = false;
        if member.recorded {
            self.latencies.ready.record(member.dialed_at, now);
        }
        self.dialing -= 1;
        self.ready += 1;
        Some(Notice::Ready(index))
    }

    /// Cuts these members off without a word; they keep their positions.
    pub(crate) fn cut_off(&mut self, fleet: &mut Fleet, members: std::ops::Range<u32>) {
        for index in members {
            if let Some(id) = self.forget(index) {
                fleet.abort(id);
            }
        }
    }

    /// Whoever is dialed from now on is dialed at the other nodes.
    pub(crate) fn move_elsewhere(&mut self) {
        self.moved = true;
    }

    /// Closes a member's connection politely. It keeps its positions.
    pub(crate) fn leave(&mut self, fleet: &mut Fleet, index: u32) {
        let member = &mut self.members[index as usize];
        member.may_end = true;
        if let Some(id) = member.connection {
            fleet.close(id);
        }
    }

    /// Closes every connection politely; [`Self::open`] falls to zero when the server has answered all.
    pub(crate) fn close_all(&mut self, fleet: &mut Fleet) {
        self.closing = true;
        for member in &self.members {
            if let Some(id) = member.connection {
                fleet.close(id);
            }
        }
    }

    /// Members with a connection.
    pub(crate) fn open(&self) -> u32 {
        self.ready + self.dialing
    }

    /// Whether a member is connected and subscribed.
    pub(crate) fn is_ready(&self, index: u32) -> bool {
        self.members[index as usize].stage == Stage::Ready
    }

    /// Pings a member; answers whether it has a connection.
    pub(crate) fn ping(&self, fleet: &mut Fleet, index: u32) -> bool {
        let member = &self.members[index as usize];
        let ready = member.connection.filter(|_| member.stage == Stage::Ready);
        if let Some(id) = ready {
            fleet.send(id, &wire::ping());
        }
        ready.is_some()
    }

    fn forget(&mut self, index: u32) -> Option<ConnId> {
        let member = &mut self.members[index as usize];
        match std::mem::replace(&mut member.stage, Stage::Gone) {
            Stage::Joining => self.dialing -= 1,
            Stage::Ready => self.ready -= 1,
            Stage::Idle | Stage::Gone => {}
        }
        for subscription in &mut member.subscriptions {
            subscription.live = false;
        }
        let id = member.connection.take()?;
        self.by_slot[id.slot()] = None;
        Some(id)
    }

    pub(super) fn ended(&mut self, index: u32, ending: &Ending) -> Notice {
        let joining = self.members[index as usize].stage == Stage::Joining;
        self.forget(index);
        let excused = self.closing || (self.members[index as usize].may_end && !joining);
        if self.members[index as usize].may_lose && excused && !self.closing {
            self.slow.cut_off(index);
        }
        if !excused {
            let told = self.members[index as usize].told.take().unwrap_or_default();
            let violation =
                if joining { Violation::ConnectFailed } else { Violation::Disconnected };
            self.violations.add(violation, 1, || format!("connection {index} {ending} {told}"));
        }
        Notice::Ended(index)
    }

    /// A `subscribed` reply: where the subscription stands from now on.
    pub(super) fn subscribed(&mut self, index: u32, channel: u32, top: (Epoch, u64)) {
        let member = &mut self.members[index as usize];
        if let Some(subscription) =
            member.subscriptions.iter_mut().find(|subscription| subscription.channel == channel)
        {
            subscription.position = Some(top);
            subscription.live = true;
            member.unanswered = member.unanswered.saturating_sub(1);
            self.ledger.begin(channel, top.0, top.1);
        }
    }
}
