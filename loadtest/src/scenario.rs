//! Running a scenario: connect, do what its kind does, wait until everything has arrived, close.

mod churn;
mod fanout;
mod hold;
mod publish_ack;
mod reconnect;

use crate::checker::Violations;
use crate::fleet::{ConnId, Driver, Event, Fleet, Next, Traffic, run as run_fleet};
use crate::latencies::{Latencies, Latency};
use crate::load::{Environment, Load, Notice};
use crate::output::Progress;
use crate::plan::{Kind, Plan};
use crate::schedule::{MILLISECOND, Nanos, SECOND, seconds};
use crate::series::Status;
use crate::server::Sample;

/// Between two looks at whether everything has arrived.
const CHECK_INTERVAL: Nanos = 20 * MILLISECOND;
/// After everything has arrived: time for what should not arrive.
const LINGER: Nanos = 300 * MILLISECOND;
/// For the server to answer our close frames.
const CLOSE_TIME: Nanos = 10 * SECOND;

/// What came of a scenario.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// What was done.
    pub(crate) plan: Plan,
    /// What went wrong.
    pub(crate) violations: Violations,
    /// How long things took.
    pub(crate) latencies: Latencies,
    /// Counts by name, in the order of the report.
    pub(crate) counts: Vec<(&'static str, u64)>,
    /// Lengths of the phases.
    pub(crate) phases: Vec<(&'static str, Nanos)>,
    /// Server figures by moment.
    pub(crate) samples: Vec<(&'static str, Sample)>,
    /// The two moments between which the server's growth is judged and its CPU time counted.
    pub(crate) compared: (&'static str, &'static str),
    /// What went over the wire.
    pub(crate) traffic: Traffic,
}

impl Outcome {
    /// The latency that a threshold is about.
    pub(crate) fn main_latency(&self) -> (&'static str, &Latency) {
        match self.plan.kind {
            Kind::Fanout => ("deliver", &self.latencies.deliver),
            Kind::Hold => ("ping", &self.latencies.ping),
            Kind::Churn => ("connect", &self.latencies.connect),
            Kind::PublishAck => ("acknowledge", &self.latencies.acknowledge),
            Kind::Reconnect => ("recover", &self.latencies.recover),
        }
    }

    /// A count by name; 0 when there is none.
    pub(crate) fn count(&self, name: &str) -> u64 {
        self.counts.iter().find(|(known, _)| *known == name).map_or(0, |(_, count)| *count)
    }

    /// A sample by moment.
    pub(crate) fn sample(&self, moment: &str) -> Option<&Sample> {
        self.samples.iter().find(|(known, _)| *known == moment).map(|(_, sample)| sample)
    }
}

/// Phases by the time they began.
#[derive(Clone, Debug, Default)]
struct Timeline(Vec<(&'static str, Nanos)>);

impl Timeline {
    fn begin(&mut self, phase: &'static str, now: Nanos) {
        self.0.push((phase, now));
    }

    fn lengths(&self, end: Nanos) -> Vec<(&'static str, Nanos)> {
        let ends = self.0.iter().skip(1).map(|(_, start)| *start).chain([end]);
        self.0
            .iter()
            .zip(ends)
            .map(|((name, start), end)| (*name, end.saturating_sub(*start)))
            .collect()
    }
}

/// What a scenario does between connecting everybody and closing.
trait Middle {
    /// Everybody is connected.
    fn begin(&mut self, load: &mut Load, fleet: &mut Fleet, now: Nanos);
    /// What is due; `Done` ends it.
    fn tick(&mut self, load: &mut Load, fleet: &mut Fleet, now: Nanos) -> Next;
    /// Something came.
    fn notice(&mut self, load: &mut Load, fleet: &mut Fleet, notice: Notice, now: Nanos);
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Joining,
    Middle,
    Draining,
    Lingering(Nanos),
    Closing(Nanos),
}

/// Drives a [`Middle`].
struct Staged<M> {
    load: Load,
    middle: M,
    phase: Phase,
    timeline: Timeline,
}

impl<M: Middle> Staged<M> {
    fn joining(&mut self, fleet: &mut Fleet, now: Nanos) -> Next {
        let again = self.load.dial(fleet, now);
        if self.load.is_stuck(fleet, now) {
            self.load.give_up_joining(fleet);
        }
        if !self.load.is_joined() {
            return Next::Until(again.unwrap_or(Nanos::MAX));
        }
        if self.load.ready() == 0 {
            return self.close(fleet, now);
        }
        self.load.sample(fleet, "connected");
        let now = fleet.clock.now();
        self.phase = Phase::Middle;
        self.timeline.begin("load", now);
        self.middle.begin(&mut self.load, fleet, now);
        Next::Until(now)
    }

    fn draining(&mut self, fleet: &mut Fleet, now: Nanos) -> Next {
        if self.load.is_settled() {
            self.phase = Phase::Lingering(now + LINGER);
            return Next::Until(now + LINGER);
        }
        if self.load.is_stuck(fleet, now) {
            self.load.count_missing();
            return self.loaded(fleet, now);
        }
        Next::Until(now + CHECK_INTERVAL)
    }

    fn loaded(&mut self, fleet: &mut Fleet, now: Nanos) -> Next {
        self.load.sample(fleet, "loaded");
        self.close(fleet, now)
    }

    fn close(&mut self, fleet: &mut Fleet, now: Nanos) -> Next {
        self.timeline.begin("close", now);
        self.load.close_all(fleet);
        self.phase = Phase::Closing(fleet.clock.now() + CLOSE_TIME);
        Next::Until(now)
    }
}

impl<M: Middle> Driver for Staged<M> {
    fn tick(&mut self, fleet: &mut Fleet, now: Nanos) -> Next {
        match self.phase {
            Phase::Joining => self.joining(fleet, now),
            Phase::Middle => match self.middle.tick(&mut self.load, fleet, now) {
                Next::Done => {
                    self.phase = Phase::Draining;
                    self.timeline.begin("drain", now);
                    Next::Until(now)
                }
                until @ Next::Until(_) => until,
            },
            Phase::Draining => self.draining(fleet, now),
            Phase::Lingering(until) if now < until => Next::Until(until),
            Phase::Lingering(_) => self.loaded(fleet, now),
            Phase::Closing(until) if self.load.open() > 0 && now < until => Next::Until(until),
            Phase::Closing(_) => Next::Done,
        }
    }

    fn event(&mut self, fleet: &mut Fleet, id: ConnId, event: Event<'_>, now: Nanos) {
        if let Some(notice) = self.load.event(fleet, id, event, now)
            && self.phase == Phase::Middle
        {
            self.middle.notice(&mut self.load, fleet, notice, now);
        }
    }

    fn status(&mut self, now: Nanos) -> Status {
        let (phase, since) = self.timeline.0.last().copied().unwrap_or_default();
        let plan = &self.load.plan;
        let part = match self.phase {
            Phase::Joining => Some(f64::from(self.load.ready()) / f64::from(plan.connections)),
            Phase::Middle if plan.kind != Kind::Reconnect => {
                Some(seconds(now - since) / seconds(plan.warmup + plan.duration))
            }
            _ => None,
        };
        self.load.status(phase, part)
    }
}

fn stage(
    middle: impl Middle,
    mut load: Load,
    fleet: &mut Fleet,
    progress: &mut Progress,
) -> std::io::Result<Outcome> {
    load.sample(fleet, "before");
    load.connect(0..load.plan.connections);
    let mut timeline = Timeline::default();
    timeline.begin("connect", fleet.clock.now());
    let mut staged = Staged { load, middle, phase: Phase::Joining, timeline };
    run_fleet(fleet, &mut staged, progress)?;
    let Staged { load, timeline, .. } = staged;
    Ok(Outcome {
        counts: vec![
            ("published", load.ledger.sent()),
            ("acknowledged", load.ledger.acknowledged),
            ("delivered", load.delivered),
            ("recovered", load.recovered),
            ("pings_answered", fleet.traffic.pings),
        ],
        phases: timeline.lengths(fleet.clock.now()),
        plan: load.plan,
        violations: load.violations,
        latencies: load.latencies,
        samples: load.samples,
        compared: ("connected", "loaded"),
        traffic: fleet.traffic,
    })
}

/// Runs a plan. `run` is a number that no other run has.
pub(crate) fn run(
    plan: Plan,
    environment: &Environment,
    run: u64,
    progress: &mut Progress,
) -> Result<Outcome, String> {
    let sources = if plan.sockets() > 25_000 || plan.kind == Kind::Churn { 8 } else { 1 };
    let mut fleet = Fleet::new(progress.clock, sources).map_err(|error| error.to_string())?;
    if plan.kind == Kind::Churn {
        return churn::run(plan, environment, &mut fleet, progress);
    }
    let kind = plan.kind;
    let load = Load::new(plan, environment.clone(), run)?;
    let fleet = &mut fleet;
    match kind {
        Kind::Fanout => stage(fanout::Fanout::default(), load, fleet, progress),
        Kind::Hold => stage(hold::Hold::default(), load, fleet, progress),
        Kind::PublishAck => stage(publish_ack::PublishAck::default(), load, fleet, progress),
        Kind::Reconnect | Kind::Churn => {
            stage(reconnect::Reconnect::default(), load, fleet, progress)
        }
    }
    .map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_end_where_the_next_begins() {
        let mut timeline = Timeline::default();
        timeline.begin("a", 10);
        timeline.begin("b", 25);
        assert_eq!(timeline.lengths(100), [("a", 15), ("b", 75)]);
        assert!(Timeline::default().lengths(5).is_empty());
    }
}
