//! The state that all scenarios with subscriptions share: the connections, what they have seen, what was published.
//!
//! Split by what happens: `members` connects and subscribes, `receive` judges what comes, `publish` sends, `api`
//! publishes through the server API, `presence` is about who is there, `slow` about members that do not read.

mod api;
mod members;
mod presence;
mod publish;
mod receive;
mod slow;

use std::collections::VecDeque;
use std::net::IpAddr;

use crate::checker::{Violation, Violations};
use crate::fleet::{ConnId, Fleet};
use crate::latencies::Latencies;
use crate::ledger::Ledger;
use crate::plan::{Kind, Plan};
use crate::schedule::{Clock, Nanos};
use crate::series::Status;
use crate::server::{self, Sample};
use crate::target::{Minter, Target};
use crate::wire::{Names, Reader};
use crate::worker::{Crew, Meeting};

pub(crate) use api::ApiAccess;
use api::ApiPool;
use members::Member;
pub(crate) use presence::Change;
use presence::Listed;
use slow::SlowCounts;

/// Everything about the run that is not the scenario.
#[derive(Clone, Debug)]
pub(crate) struct Environment {
    /// WebSocket endpoints, taken in turns.
    pub(crate) targets: Vec<Target>,
    /// Endpoints of other nodes, for publishers and for those who come back.
    pub(crate) others: Vec<Target>,
    /// Process that is killed when everybody is cut off.
    pub(crate) kill_pid: Option<u32>,
    /// Metrics endpoint.
    pub(crate) metrics: Target,
    /// Publishes through the server API when given.
    pub(crate) api: Option<ApiAccess>,
    /// Token secret.
    pub(crate) secret: String,
    /// Claim with the user id.
    pub(crate) user_claim: String,
    /// `iss` and `aud`; empty = left out.
    pub(crate) issuer_audience: (String, String),
    /// Whether permessage-deflate is offered.
    pub(crate) deflate: bool,
    /// Addresses of this machine to connect from; empty = the system chooses.
    pub(crate) local_addresses: Vec<IpAddr>,
    /// Without any progress for this long, a phase is given up.
    pub(crate) patience: Nanos,
}

impl Environment {
    /// Endpoint of the connection with this number; always the same one. With other nodes `elsewhere` is one of them.
    pub(crate) fn target(&self, number: u32, elsewhere: bool) -> &Target {
        let targets =
            if elsewhere && !self.others.is_empty() { &self.others } else { &self.targets };
        &targets[number as usize % targets.len()]
    }

    /// Makes tokens for channels that begin with `stem`.
    pub(crate) fn minter(&self, stem: &str) -> Result<Minter, String> {
        let (issuer, audience) = &self.issuer_audience;
        Minter::new(&self.secret, stem, &self.user_claim, (issuer, audience))
            .map_err(|error| error.to_string())
    }
}

/// What tells a run, or a worker's part of one, from all others.
#[derive(Debug)]
pub(crate) struct Start {
    /// Number that no other run has.
    pub(crate) run: u64,
    /// The clock of the run.
    pub(crate) clock: Clock,
    /// The other processes.
    pub(crate) crew: Crew,
}

/// Something that a scenario may want to act on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Notice {
    /// A member is connected and subscribed.
    Ready(u32),
    /// A publication of this member was answered.
    Answered(u32),
    /// A member answered a ping.
    Pong(u32),
    /// A member's connection ended.
    Ended(u32),
    /// A ready member is subscribed, or not any more.
    Subscribed(u32, bool),
    /// A member was told who joined or left.
    Presence(u32, Change),
    /// The members of this channel were listed.
    Listed(u32),
}

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Load {
    /// The plan.
    pub(crate) plan: Plan,
    /// The run.
    pub(crate) environment: Environment,
    /// What went wrong.
    pub(crate) violations: Violations,
    /// How long things took.
    pub(crate) latencies: Latencies,
    /// What was published.
    pub(crate) ledger: Ledger,
    /// Publications delivered in order, all subscriptions together, recovered ones included.
    pub(crate) delivered: u64,
    /// Publications that came with a `subscribed` reply.
    pub(crate) recovered: u64,
    /// From now on connections may end.
    pub(crate) closing: bool,
    /// Server figures by moment.
    pub(crate) samples: Vec<(&'static str, Sample)>,
    /// The other processes.
    pub(crate) crew: Crew,
    /// Whether nobody is slow yet, in a scenario in which some will be.
    pub(crate) calm: bool,
    /// What became of the slow ones.
    pub(crate) slow: SlowCounts,
    /// Those that stop reading in such a scenario.
    pub(crate) slow_members: Vec<u32>,
    listed: Vec<Option<Listed>>,
    names: Names,
    reader: Reader,
    minter: Minter,
    members: Vec<Member>,
    by_slot: Vec<Option<(ConnId, u32)>>,
    /// Members to be dialed.
    queue: VecDeque<u32>,
    dialing: u32,
    /// Whether those who are dialed are dialed at the other nodes.
    moved: bool,
    ready: u32,
    next_dial_at: Nanos,
    last_progress: (Nanos, u64),
    /// Messages and answers of the server API that have come; pings are none.
    messages: u64,
    api: Option<ApiPool>,
}

impl Load {
    /// A load with nobody connected.
    pub(crate) fn new(plan: Plan, environment: Environment, start: Start) -> Result<Self, String> {
        let Start { run, crew, .. } = start;
        let mut stem = format!("{}load-{run:x}-", plan.channel_prefix);
        if plan.kind == Kind::Presence && crew.has_others() {
            stem = format!("{stem}{}-", plan.process.0);
        }
        let minter = environment.minter(&stem)?;
        let names = Names { stem, run };
        let mut members: Vec<_> =
            (0..plan.connections).map(|index| Member::new(plan.channels_of(index))).collect();
        if plan.kind == Kind::Presence {
            for member in members.iter_mut().skip(plan.watching() as usize) {
                member
                    .subscriptions
                    .iter_mut()
                    .for_each(|subscription| subscription.wanted = false);
            }
        }
        let slow: Vec<u32> = (0..plan.connections)
            .rev()
            .filter(|member| plan.channel_of(*member) < plan.busy_channels)
            .take(plan.slow() as usize)
            .collect();
        for member in &slow {
            members[*member as usize].slow = true;
        }
        Ok(Self {
            members,
            ledger: Ledger::new(plan.channels, plan.process.0),
            reader: Reader::new(names.clone()),
            api: environment.api.clone().map(ApiPool::new),
            crew,
            calm: false,
            slow: SlowCounts::default(),
            slow_members: slow,
            listed: vec![None; plan.channels as usize],
            violations: Violations::default(),
            latencies: Latencies::default(),
            delivered: 0,
            recovered: 0,
            closing: false,
            samples: Vec::new(),
            by_slot: Vec::new(),
            queue: VecDeque::new(),
            dialing: 0,
            moved: false,
            ready: 0,
            next_dial_at: 0,
            last_progress: (0, 0),
            messages: 0,
            names,
            minter,
            plan,
            environment,
        })
    }

    /// Asks the server for its figures and files them under `moment`.
    pub(crate) fn sample(&mut self, fleet: &Fleet, moment: &'static str) {
        if !self.crew.is_first() {
            return;
        }
        if let Some(sample) = server::sample(&self.environment.metrics, fleet.clock.now()) {
            self.samples.push((moment, sample));
        }
    }

    /// Whether everything published is answered, and everything acknowledged has reached every live subscription.
    pub(crate) fn is_settled(&self) -> bool {
        self.ledger.outstanding == 0 && self.members.iter().all(|member| self.behind(member) == 0)
    }

    /// Like [`Self::is_settled`], over all processes: whether everything that any of them has had acknowledged before
    /// this meeting has reached every live subscription here.
    pub(crate) fn is_settled_everywhere(&mut self, meeting: &'static str) -> bool {
        if self.ledger.outstanding > 0 || !self.meet(meeting) {
            return false;
        }
        self.is_settled()
    }

    /// Comes to a meeting with the other processes; answers whether everybody has been there.
    pub(crate) fn meet(&mut self, meeting: &'static str) -> bool {
        match self.crew.meet(meeting, || self.ledger.tops()) {
            Meeting::Waiting => false,
            Meeting::Over => true,
            Meeting::Complete(tops) => {
                for (channel, offset) in tops {
                    self.ledger.raise_top(channel, offset);
                }
                true
            }
        }
    }

    /// Acknowledged publications that have not reached a member's live subscriptions.
    fn behind(&self, member: &Member) -> u64 {
        let live = member.subscriptions.iter().filter(|subscription| subscription.live);
        live.map(|subscription| {
            let seen = subscription.position.map_or(0, |(_, offset)| offset);
            self.ledger.top(subscription.channel).saturating_sub(seen)
        })
        .sum()
    }

    /// Counts what is missing when nothing more is waited for.
    pub(crate) fn count_missing(&mut self) {
        let behind: u64 = self.members.iter().map(|member| self.behind(member)).sum();
        self.violations.add(Violation::Undelivered, behind, || {
            format!("{behind} acknowledged publications did not reach a live subscription")
        });
        let unanswered = self.ledger.outstanding;
        self.violations.add(Violation::Unanswered, unanswered, || {
            format!("{unanswered} publications were never answered")
        });
    }

    /// Whether no message has come and nothing happened for the patience of the run.
    pub(crate) fn is_stuck(&mut self, now: Nanos) -> bool {
        let progress = self.messages + u64::from(self.ready);
        // The others are waited for without a limit of our own: each of them has one.
        if progress != self.last_progress.1 || self.last_progress.0 == 0 || self.crew.is_waiting() {
            self.last_progress = (now, progress);
        }
        now.saturating_sub(self.last_progress.0) > self.environment.patience
    }

    /// Members that are connected and subscribed.
    pub(crate) fn ready(&self) -> u32 {
        self.ready
    }

    /// How it goes, for the phase `phase` of which `part` (0 to 1) is done.
    pub(crate) fn status(&mut self, phase: &str, part: Option<f64>) -> Status {
        Status {
            phase: phase.to_owned(),
            part,
            wanted: self.plan.connections,
            connections: self.ready,
            published: self.ledger.sent(),
            acknowledged: self.ledger.acknowledged,
            delivered: self.delivered,
            violations: self.violations.total(),
            latencies: self.latencies.take_intervals(),
            late: self.latencies.behind.take_interval(),
        }
    }
}
