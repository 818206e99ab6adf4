//! Connections that come, get their `welcome` and go, some of them in the middle of the handshake. Afterwards the
//! server's memory and descriptors are compared with what they were after the warm-up.

use std::collections::HashMap;

use super::{CHECK_INTERVAL, Outcome, Timeline, compared};
use crate::checker::{Violation, Violations};
use crate::fleet::{self, Abandon, ConnId, Driver, Ending, Event, Fleet, Next};
use crate::latencies::Latencies;
use crate::load::{Environment, Start};
use crate::output::Progress;
use crate::plan::{Kind, Plan};
use crate::schedule::{MILLISECOND, Nanos};
use crate::series::Status;
use crate::server::{self, Sample};
use crate::target::Minter;
use crate::wire::Envelope;
use crate::worker::{Crew, Meeting};

/// One cycle in so many is part of the warm-up.
const WARMUP_PART: u32 = 10;
/// Between two looks at the server's descriptors.
const SETTLE_INTERVAL: Nanos = 250 * MILLISECOND;

const WAYS: [Abandon; 3] = [Abandon::Connected, Abandon::HalfHead, Abandon::Reset];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Warming,
    Churning,
    Settling,
}

#[derive(Clone, Copy, Debug)]
struct Cycle {
    dialed_at: Nanos,
    welcomed: bool,
}

struct Churn<'a> {
    plan: Plan,
    environment: &'a Environment,
    minter: Minter,
    active: HashMap<ConnId, Cycle>,
    started: u32,
    completed: u64,
    abandoned: u64,
    phase: Phase,
    timeline: Timeline,
    violations: Violations,
    latencies: Latencies,
    samples: Vec<(&'static str, Sample)>,
    crew: Crew,
    /// Whether the server was asked at the meeting that is under way.
    sampled: bool,
    last_progress: (Nanos, u64),
    settle_until: Nanos,
}

impl Churn<'_> {
    fn warmup_cycles(&self) -> u32 {
        self.plan.cycles / WARMUP_PART
    }

    fn dial(&mut self, fleet: &mut Fleet, limit: u32, now: Nanos) {
        while self.started < limit && self.active.len() < self.plan.concurrency as usize {
            let nth = self.started;
            self.started += 1;
            let user = self.plan.first + nth % self.plan.connections;
            let token = match self.minter.token(&format!("churn-{user}")) {
                Ok(token) => token,
                Err(error) => {
                    self.violations.add(Violation::ConnectFailed, 1, || error.to_string());
                    continue;
                }
            };
            let every = self.plan.abort_every;
            let abandon = (every > 0 && nth % every == every - 1)
                .then(|| WAYS[(nth / every) as usize % WAYS.len()]);
            let target = self.environment.target(nth, false);
            let head = fleet::request(target, &token, self.environment.deflate);
            let id = fleet.dial(target, head, abandon);
            self.active.insert(id, Cycle { dialed_at: now, welcomed: false });
        }
    }

    fn sample(&mut self, fleet: &Fleet, moment: &'static str) -> Option<Sample> {
        if !self.crew.is_first() {
            return None;
        }
        let sample = server::sample(&self.environment.metrics, fleet.clock.now())?;
        self.samples.retain(|(known, _)| *known != moment);
        self.samples.push((moment, sample));
        Some(sample)
    }

    /// Has the server sampled while no process does anything; answers whether all may go on.
    fn meet(&mut self, fleet: &Fleet) -> bool {
        let (moment, after) = match self.phase {
            Phase::Warming => ("warm", "warm, sampled"),
            _ => ("churned", "churned, sampled"),
        };
        if self.crew.meet(moment, Vec::new) == Meeting::Waiting {
            return false;
        }
        if !std::mem::replace(&mut self.sampled, true) {
            self.sample(fleet, moment);
        }
        if self.crew.meet(after, Vec::new) == Meeting::Waiting {
            return false;
        }
        self.sampled = false;
        true
    }

    /// Whether nothing has been completed for the patience of the run.
    fn is_stuck(&mut self, now: Nanos) -> bool {
        let progress = self.completed + self.abandoned + u64::from(self.started);
        if progress != self.last_progress.1 || self.crew.is_waiting() {
            self.last_progress = (now, progress);
        }
        now.saturating_sub(self.last_progress.0) > self.environment.patience
    }

    fn give_up(&mut self, fleet: &mut Fleet) {
        let hanging = self.active.len() as u64;
        self.violations.add(Violation::ConnectFailed, hanging, || {
            format!("{hanging} connections came to no end")
        });
        for (id, _) in self.active.drain() {
            fleet.abort(id);
        }
    }

    fn has_settled(&mut self, fleet: &Fleet) -> bool {
        let Some(after) = self.sample(fleet, "after") else { return true };
        let warm = self.samples.iter().find(|(moment, _)| *moment == "warm");
        let fds = warm.and_then(|(_, warm)| Some((warm.open_fds?, after.open_fds?)));
        fds.is_none_or(|(warm, after)| after <= warm)
    }

    fn ended(&mut self, id: ConnId, ending: &Ending) {
        let Some(cycle) = self.active.remove(&id) else { return };
        if cycle.welcomed && *ending == Ending::Closed(1000) {
            self.completed += 1;
            return;
        }
        let violation =
            if cycle.welcomed { Violation::Disconnected } else { Violation::ConnectFailed };
        self.violations.add(violation, 1, || ending.to_string());
    }
}

impl Driver for Churn<'_> {
    fn tick(&mut self, fleet: &mut Fleet, now: Nanos) -> Next {
        if self.is_stuck(now) {
            self.give_up(fleet);
        }
        let limit = match self.phase {
            Phase::Warming => self.warmup_cycles(),
            Phase::Churning => self.plan.cycles,
            Phase::Settling => {
                let done = now >= self.settle_until || self.has_settled(fleet);
                return if done { Next::Done } else { Next::Until(now + SETTLE_INTERVAL) };
            }
        };
        self.dial(fleet, limit, now);
        if self.started < limit || !self.active.is_empty() {
            return Next::Until(Nanos::MAX);
        }
        if !self.meet(fleet) {
            return Next::Until(now + CHECK_INTERVAL);
        }
        if self.phase == Phase::Warming {
            self.phase = Phase::Churning;
            self.latencies = Latencies::default();
            self.timeline.begin("churn", fleet.clock.now());
        } else {
            self.phase = Phase::Settling;
            self.settle_until = fleet.clock.now() + self.environment.patience;
            self.timeline.begin("settle", fleet.clock.now());
        }
        Next::Until(now)
    }

    fn event(&mut self, fleet: &mut Fleet, id: ConnId, event: Event<'_>, now: Nanos) {
        match event {
            Event::Message(payload) => {
                let Some(cycle) = self.active.get_mut(&id) else { return };
                let envelope = serde_json::from_slice::<Envelope<'_>>(payload);
                if envelope.is_ok_and(|envelope| envelope.kind == "welcome") && !cycle.welcomed {
                    cycle.welcomed = true;
                    self.latencies.connect.record(cycle.dialed_at, now);
                    fleet.close(id);
                }
            }
            Event::Abandoned => {
                self.active.remove(&id);
                self.abandoned += 1;
            }
            Event::Ended(ending) => self.ended(id, &ending),
            Event::Open | Event::Response(..) => {}
        }
    }

    fn status(&mut self, _: Nanos) -> Status {
        let done = (self.completed + self.abandoned) as f64 / f64::from(self.plan.cycles);
        Status {
            phase: self.timeline.0.last().map_or("", |(phase, _)| phase).to_owned(),
            part: (self.phase != Phase::Settling).then_some(done),
            wanted: self.plan.concurrency,
            connections: self.active.len() as u32,
            violations: self.violations.total(),
            latencies: self.latencies.take_intervals(),
            ..Status::default()
        }
    }
}

/// Runs the plan.
pub(super) fn run(
    plan: Plan,
    environment: &Environment,
    start: Start,
    (fleet, progress): (&mut Fleet, &mut Progress),
) -> Result<Outcome, String> {
    let minter = environment.minter(&plan.channel_prefix)?;
    let mut churn = Churn {
        plan,
        environment,
        minter,
        active: HashMap::new(),
        started: 0,
        completed: 0,
        abandoned: 0,
        phase: Phase::Warming,
        timeline: Timeline::default(),
        violations: Violations::default(),
        latencies: Latencies::default(),
        samples: Vec::new(),
        crew: start.crew,
        sampled: false,
        last_progress: (fleet.clock.now(), 0),
        settle_until: 0,
    };
    churn.sample(fleet, "before");
    churn.timeline.begin("warmup", fleet.clock.now());
    fleet::run(fleet, &mut churn, progress).map_err(|error| error.to_string())?;
    Ok(Outcome {
        counts: vec![
            ("cycles", churn.completed + churn.abandoned),
            ("completed", churn.completed),
            ("abandoned", churn.abandoned),
        ],
        phases: churn.timeline.lengths(fleet.clock.now()),
        plan: churn.plan,
        violations: churn.violations,
        latencies: churn.latencies,
        samples: churn.samples,
        compared: compared(Kind::Churn),
        trend: Vec::new(),
        traffic: fleet.traffic,
    })
}
