//! The state that all scenarios with subscriptions share: the connections, what they have seen, what was published.
//!
//! Split by what happens: `members` connects and subscribes, `receive` judges what comes, `publish` sends, `api`
//! publishes through the server API.

mod api;
mod members;
mod publish;
mod receive;

use std::collections::VecDeque;

use crate::checker::{Violation, Violations};
use crate::fleet::{ConnId, Fleet};
use crate::latencies::Latencies;
use crate::ledger::Ledger;
use crate::plan::Plan;
use crate::schedule::Nanos;
use crate::series::Status;
use crate::server::{self, Sample};
use crate::target::{Minter, Target};
use crate::wire::{Names, Reader};

pub(crate) use api::ApiAccess;
use api::ApiPool;
use members::Member;

/// Everything about the run that is not the scenario.
#[derive(Clone, Debug)]
pub(crate) struct Environment {
    /// WebSocket endpoint.
    pub(crate) target: Target,
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
    /// What every channel name begins with.
    pub(crate) channel_prefix: String,
    /// Without any progress for this long, a phase is given up.
    pub(crate) patience: Nanos,
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
    names: Names,
    reader: Reader,
    minter: Minter,
    members: Vec<Member>,
    by_slot: Vec<Option<(ConnId, u32)>>,
    /// Members to be dialed.
    queue: VecDeque<u32>,
    dialing: u32,
    ready: u32,
    next_dial_at: Nanos,
    last_progress: (Nanos, u64),
    api: Option<ApiPool>,
}

impl Load {
    /// A load with nobody connected. `run` tells it from every other run.
    pub(crate) fn new(plan: Plan, environment: Environment, run: u64) -> Result<Self, String> {
        let stem = format!("{}load-{run:x}-", environment.channel_prefix);
        let names = Names { stem: stem.clone(), run };
        let (issuer, audience) = &environment.issuer_audience;
        let minter =
            Minter::new(&environment.secret, &stem, &environment.user_claim, (issuer, audience))
                .map_err(|error| error.to_string())?;
        let members = (0..plan.connections).map(|index| Member::new(plan.channels_of(index)));
        Ok(Self {
            members: members.collect(),
            ledger: Ledger::new(plan.channels),
            reader: Reader::new(names.clone()),
            api: environment.api.clone().map(ApiPool::new),
            violations: Violations::default(),
            latencies: Latencies::default(),
            delivered: 0,
            recovered: 0,
            closing: false,
            samples: Vec::new(),
            by_slot: Vec::new(),
            queue: VecDeque::new(),
            dialing: 0,
            ready: 0,
            next_dial_at: 0,
            last_progress: (0, 0),
            names,
            minter,
            plan,
            environment,
        })
    }

    /// Asks the server for its figures and files them under `moment`.
    pub(crate) fn sample(&mut self, fleet: &Fleet, moment: &'static str) {
        if let Some(sample) = server::sample(&self.environment.metrics, fleet.clock.now()) {
            self.samples.push((moment, sample));
        }
    }

    /// Whether everything published is answered, and everything acknowledged has reached every live subscription.
    pub(crate) fn is_settled(&self) -> bool {
        self.ledger.outstanding == 0 && self.members.iter().all(|member| self.behind(member) == 0)
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

    /// Whether nothing has come or happened for the patience of the run.
    pub(crate) fn is_stuck(&mut self, fleet: &Fleet, now: Nanos) -> bool {
        let progress = fleet.traffic.bytes_in + u64::from(self.ready);
        if progress != self.last_progress.1 || self.last_progress.0 == 0 {
            self.last_progress = (now, progress);
        }
        now.saturating_sub(self.last_progress.0) > self.environment.patience
    }

    /// Members that are connected and subscribed.
    pub(crate) fn ready(&self) -> u32 {
        self.ready
    }

    /// How it goes, for the phase `phase` of which `part` (0 to 1) is done.
    pub(crate) fn status(&mut self, phase: &'static str, part: Option<f64>) -> Status {
        Status {
            phase,
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
