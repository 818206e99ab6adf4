//! Running a scenario: connect, do what its kind does, wait until everything has arrived, close.

mod churn;
mod connect_storm;
mod fanout;
mod hold;
mod presence;
mod publish_ack;
mod reconnect;
mod slow_consumers;
mod soak;

use crate::checker::Violations;
use crate::fleet::{ConnId, Dialer, Driver, Event, Fleet, Next, Traffic, run as run_fleet};
use crate::latencies::{Latencies, Latency};
use crate::load::{Environment, Load, Notice, Start};
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
/// Connections from which on one local address may have too few ports.
const MANY_CONNECTIONS: u32 = 25_000;

/// Names of all counts, phases and moments, for those that come from another process.
const NAMES: [&str; 32] = [
    "published",
    "acknowledged",
    "delivered",
    "recovered",
    "pings_answered",
    "inflated",
    "connected",
    "changes",
    "cut_off",
    "slow_noticed",
    "slow_cut_off",
    "told_lost",
    "unrecovered",
    "cycles",
    "completed",
    "abandoned",
    "connect",
    "load",
    "drain",
    "close",
    "warmup",
    "churn",
    "settle",
    "before",
    "loaded",
    "warm",
    "churned",
    "after",
    "listed",
    "joins",
    "leaves",
    "returned",
];

/// The constant that equals a name.
pub(crate) fn known_name(name: &str) -> Option<&'static str> {
    NAMES.into_iter().find(|known| *known == name)
}

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
    /// Server figures in the course of a long load.
    pub(crate) trend: Vec<Sample>,
    /// What went over the wire.
    pub(crate) traffic: Traffic,
}

/// The moments between which the server's growth is judged and its CPU time counted.
pub(crate) fn compared(kind: Kind) -> (&'static str, &'static str) {
    if kind == Kind::Churn { ("warm", "after") } else { ("connected", "loaded") }
}

impl Outcome {
    /// The latency that a threshold is about.
    pub(crate) fn main_latency(&self) -> (&'static str, &Latency) {
        match self.plan.kind {
            Kind::Fanout | Kind::SlowConsumers | Kind::Soak => ("deliver", &self.latencies.deliver),
            Kind::ConnectStorm => ("ready", &self.latencies.ready),
            Kind::Presence => ("presence", &self.latencies.presence),
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

    /// What the scenario is about, counted.
    pub(crate) fn operations(&self) -> u64 {
        match self.plan.kind {
            Kind::Fanout | Kind::SlowConsumers | Kind::Soak => self.count("delivered"),
            Kind::Hold => u64::from(self.plan.connections),
            Kind::Churn => self.count("cycles"),
            Kind::PublishAck => self.count("acknowledged"),
            Kind::Reconnect => self.count("recovered"),
            Kind::ConnectStorm => self.count("connected"),
            Kind::Presence => self.count("changes"),
        }
    }

    /// Length of the phase in which it is done.
    pub(crate) fn load_length(&self) -> Nanos {
        let load = self.phases.iter().find(|(name, _)| matches!(*name, "load" | "churn"));
        load.map_or(0, |(_, length)| *length)
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
    /// Whether everybody is connected before it begins.
    const CONNECTED: bool = true;
    /// Everybody is connected.
    fn begin(&mut self, load: &mut Load, fleet: &mut Fleet, now: Nanos);
    /// What is due; `Done` ends it.
    fn tick(&mut self, load: &mut Load, fleet: &mut Fleet, now: Nanos) -> Next;
    /// Something came.
    fn notice(&mut self, load: &mut Load, fleet: &mut Fleet, notice: Notice, now: Nanos);
    /// Counts of its own, and the server's figures in the course of it.
    fn finish(&mut self) -> (Vec<(&'static str, u64)>, Vec<Sample>) {
        (Vec::new(), Vec::new())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Joining,
    Middle,
    Draining,
    Lingering(Nanos),
    Loaded,
    Closing(Nanos),
}

/// Drives a [`Middle`].
struct Staged<M> {
    load: Load,
    middle: M,
    phase: Phase,
    timeline: Timeline,
    /// Whether the server was asked at the meeting that is under way.
    sampled: bool,
}

impl<M: Middle> Staged<M> {
    fn joining(&mut self, fleet: &mut Fleet, now: Nanos) -> Next {
        let again = self.load.dial(fleet, now);
        if self.load.is_stuck(now) {
            self.load.give_up_joining(fleet);
        }
        if !self.load.is_joined() {
            return Next::Until(again.unwrap_or(Nanos::MAX));
        }
        if M::CONNECTED && self.load.ready() == 0 {
            return self.close(fleet, now);
        }
        if !self.load.meet("joined") {
            return Next::Until(now + CHECK_INTERVAL);
        }
        if !std::mem::replace(&mut self.sampled, true) {
            self.load.sample(fleet, "connected");
        }
        if !self.load.meet("begin") {
            return Next::Until(now + CHECK_INTERVAL);
        }
        self.sampled = false;
        let now = fleet.clock.now();
        self.phase = Phase::Middle;
        self.timeline.begin("load", now);
        self.middle.begin(&mut self.load, fleet, now);
        Next::Until(now)
    }

    fn draining(&mut self, fleet: &mut Fleet, now: Nanos) -> Next {
        if self.load.is_settled_everywhere("drain") {
            self.phase = Phase::Lingering(now + LINGER);
            return Next::Until(now + LINGER);
        }
        if self.load.is_stuck(now) {
            self.load.count_missing();
            return self.loaded(fleet, now);
        }
        Next::Until(now + CHECK_INTERVAL)
    }

    fn loaded(&mut self, fleet: &mut Fleet, now: Nanos) -> Next {
        self.phase = Phase::Loaded;
        if !self.load.meet("loaded") {
            return Next::Until(now + CHECK_INTERVAL);
        }
        if !std::mem::replace(&mut self.sampled, true) {
            self.load.sample(fleet, "loaded");
        }
        if !self.load.meet("close") {
            return Next::Until(now + CHECK_INTERVAL);
        }
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
            Phase::Lingering(_) | Phase::Loaded => self.loaded(fleet, now),
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
        let connected = f64::from(self.load.ready()) / f64::from(plan.connections);
        let part = match self.phase {
            Phase::Joining => Some(connected),
            // A storm lasts as long as its connects take.
            Phase::Middle if plan.kind == Kind::ConnectStorm => Some(connected),
            Phase::Middle if plan.kind != Kind::Reconnect => {
                Some(seconds(now - since) / seconds(plan.warmup + plan.duration))
            }
            _ => None,
        };
        self.load.status(phase, part)
    }
}

fn stage<M: Middle>(
    middle: M,
    mut load: Load,
    fleet: &mut Fleet,
    progress: &mut Progress,
) -> std::io::Result<Outcome> {
    load.sample(fleet, "before");
    let mut timeline = Timeline::default();
    if M::CONNECTED {
        load.connect(0..load.plan.connections);
        timeline.begin("connect", fleet.clock.now());
    }
    let mut staged = Staged { load, middle, phase: Phase::Joining, timeline, sampled: false };
    run_fleet(fleet, &mut staged, progress)?;
    let Staged { load, mut middle, timeline, .. } = staged;
    let mut counts = vec![
        ("published", load.ledger.sent()),
        ("acknowledged", load.ledger.acknowledged),
        ("delivered", load.delivered),
        ("recovered", load.recovered),
        ("slow_noticed", load.slow.noticed()),
        ("slow_cut_off", load.slow.cut_off),
        ("told_lost", load.slow.told_lost),
        ("unrecovered", load.slow.unrecovered),
        ("pings_answered", fleet.traffic.pings),
        ("inflated", fleet.traffic.inflated),
    ];
    let (own, trend) = middle.finish();
    counts.extend(own);
    Ok(Outcome {
        counts,
        phases: timeline.lengths(fleet.clock.now()),
        compared: compared(load.plan.kind),
        plan: load.plan,
        violations: load.violations,
        latencies: load.latencies,
        samples: load.samples,
        trend,
        traffic: fleet.traffic,
    })
}

/// Runs a plan, or this process's share of one.
pub(crate) fn run(
    plan: Plan,
    environment: &Environment,
    start: Start,
    progress: &mut Progress,
) -> Result<Outcome, String> {
    let (_, processes) = plan.process;
    let many = plan.kind == Kind::Churn || plan.sockets() * processes > MANY_CONNECTIONS;
    let dialer = Dialer::new(environment.local_addresses.clone(), many);
    let mut fleet = Fleet::new(start.clock, dialer).map_err(|error| error.to_string())?;
    let fleet = &mut fleet;
    let kind = plan.kind;
    if kind == Kind::Churn {
        return churn::run(plan, environment, start, (fleet, progress));
    }
    let load = Load::new(plan, environment.clone(), start)?;
    match kind {
        Kind::Fanout => stage(fanout::Fanout::default(), load, fleet, progress),
        Kind::Hold => stage(hold::Hold::default(), load, fleet, progress),
        Kind::PublishAck => stage(publish_ack::PublishAck::default(), load, fleet, progress),
        Kind::ConnectStorm => stage(connect_storm::ConnectStorm::default(), load, fleet, progress),
        Kind::Presence => stage(presence::Churning::default(), load, fleet, progress),
        Kind::SlowConsumers => stage(slow_consumers::Slow::default(), load, fleet, progress),
        Kind::Soak => stage(soak::Soak::default(), load, fleet, progress),
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
