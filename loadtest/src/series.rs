//! A run over time: a point each second, and what the server told meanwhile.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::latencies::{Brief, Interval, Intervals};
use crate::schedule::{Nanos, seconds};
use crate::server::Sample;

/// How a run goes at one moment.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub(crate) struct Status {
    /// Phase of the scenario.
    pub(crate) phase: String,
    /// How much of it is done, 0 to 1; absent when nobody can know.
    pub(crate) part: Option<f64>,
    /// Connections that are wanted.
    pub(crate) wanted: u32,
    /// Connections there are.
    pub(crate) connections: u32,
    /// Publications since the start.
    pub(crate) published: u64,
    /// Acknowledgements since the start.
    pub(crate) acknowledged: u64,
    /// Deliveries since the start.
    pub(crate) delivered: u64,
    /// Broken promises since the start.
    pub(crate) violations: u64,
    /// Latencies since the last status, by name.
    pub(crate) latencies: Intervals,
    /// Lateness of the generator since the last status.
    pub(crate) late: Option<Interval>,
}

/// A second of a run.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Point {
    /// Its end, since the start of the run.
    pub(crate) at_seconds: f64,
    /// See [`Status`].
    pub(crate) phase: String,
    /// Connections at its end.
    pub(crate) connections: u32,
    /// Connections that got their `welcome`.
    pub(crate) connects_per_second: f64,
    /// Publications sent.
    pub(crate) published_per_second: f64,
    /// Publications acknowledged.
    pub(crate) acknowledged_per_second: f64,
    /// Publications delivered.
    pub(crate) delivered_per_second: f64,
    /// Broken promises.
    pub(crate) violations: u64,
    /// Latencies by name.
    pub(crate) latencies_ms: BTreeMap<String, Brief>,
    /// Largest lateness of the generator.
    pub(crate) late_ms: Option<f64>,
}

/// Makes one status of those of several processes, each second.
#[derive(Debug)]
pub(crate) struct Gathering {
    /// What each process said last; its latencies are taken out.
    last: Vec<Status>,
    /// Since when the sum was last taken, whom it has heard.
    heard: BTreeSet<usize>,
    at: Nanos,
    phase: String,
    latencies: Intervals,
    late: Option<Interval>,
}

impl Gathering {
    /// Of so many processes.
    pub(crate) fn new(count: usize) -> Self {
        Self {
            last: vec![Status::default(); count],
            heard: BTreeSet::new(),
            at: 0,
            phase: String::new(),
            latencies: Intervals::new(),
            late: None,
        }
    }

    /// Whether something of this process is in the sum already.
    pub(crate) fn has(&self, index: usize) -> bool {
        self.heard.contains(&index)
    }

    /// Whether all of these processes are in the sum.
    pub(crate) fn is_complete(&self, running: &BTreeSet<usize>) -> bool {
        self.heard.is_superset(running)
    }

    /// Adds what a process says of the time since it last did.
    pub(crate) fn add(&mut self, index: usize, at: Nanos, mut status: Status) {
        self.heard.insert(index);
        self.at = self.at.max(at);
        self.phase.clone_from(&status.phase);
        for (name, taken) in std::mem::take(&mut status.latencies) {
            self.latencies.entry(name).or_default().add(&taken);
        }
        if let Some(late) = status.late.take() {
            self.late.get_or_insert_default().add(&late);
        }
        self.last[index] = status;
    }

    /// The sum and the moment it is of; `None` when nobody has said anything since it was last taken.
    pub(crate) fn take(&mut self) -> Option<(Nanos, Status)> {
        if self.heard.is_empty() {
            return None;
        }
        self.heard.clear();
        let counted = |read: fn(&Status) -> u64| self.last.iter().map(read).sum();
        let open = |read: fn(&Status) -> u32| self.last.iter().map(read).sum();
        let parts = self.last.iter().map(|status| status.part);
        let status = Status {
            phase: self.phase.clone(),
            // The slowest says how far they all are.
            part: parts.reduce(|one, other| Some(one?.min(other?))).flatten(),
            wanted: open(|status| status.wanted),
            connections: open(|status| status.connections),
            published: counted(|status| status.published),
            acknowledged: counted(|status| status.acknowledged),
            delivered: counted(|status| status.delivered),
            violations: counted(|status| status.violations),
            latencies: std::mem::take(&mut self.latencies),
            late: self.late.take(),
        };
        Some((self.at, status))
    }
}

/// The server between two of its answers.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct ServerPoint {
    /// When, since the start of the run.
    pub(crate) at_seconds: f64,
    /// CPU time since the answer before, as a part of one core.
    pub(crate) cpu_percent: Option<f64>,
    /// Resident memory.
    pub(crate) resident_bytes: Option<f64>,
    /// Open descriptors.
    pub(crate) open_fds: Option<f64>,
}

/// A run over time.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Series {
    /// What the generator saw.
    pub(crate) points: Vec<Point>,
    /// What the server told.
    pub(crate) server: Vec<ServerPoint>,
}

/// Makes points of statuses.
#[derive(Debug, Default)]
pub(crate) struct Recorder {
    points: Vec<Point>,
    last: (Nanos, Status),
}

impl Recorder {
    /// Adds what happened since the last status.
    pub(crate) fn record(&mut self, now: Nanos, status: Status) -> &Point {
        let (since, last) = &self.last;
        let length = seconds(now.saturating_sub(*since)).max(0.001);
        let rate = |now: u64, before: u64| now.saturating_sub(before) as f64 / length;
        let briefs = status.latencies.iter().map(|(name, taken)| (name.clone(), taken.brief()));
        let latencies_ms: BTreeMap<_, _> = briefs.collect();
        let connects = latencies_ms.get("connect").map_or(0, |connect| connect.count);
        let point = Point {
            at_seconds: seconds(now),
            phase: status.phase.clone(),
            connections: status.connections,
            connects_per_second: rate(connects, 0),
            published_per_second: rate(status.published, last.published),
            acknowledged_per_second: rate(status.acknowledged, last.acknowledged),
            delivered_per_second: rate(status.delivered, last.delivered),
            violations: status.violations.saturating_sub(last.violations),
            latencies_ms,
            late_ms: status.late.as_ref().map(|late| late.brief().max),
        };
        self.last = (now, status);
        let place = self.points.len();
        self.points.push(point);
        &self.points[place]
    }

    /// The series, with what the server told.
    pub(crate) fn finish(self, samples: &[Sample]) -> Series {
        let server = samples.iter().enumerate().map(|(index, sample)| {
            let before = index.checked_sub(1).map(|before| &samples[before]);
            ServerPoint {
                at_seconds: seconds(sample.at),
                cpu_percent: before.and_then(|before| cpu_percent(before, sample)),
                resident_bytes: sample.resident_bytes,
                open_fds: sample.open_fds,
            }
        });
        Series { points: self.points, server: server.collect() }
    }
}

fn cpu_percent(before: &Sample, sample: &Sample) -> Option<f64> {
    let length = seconds(sample.at.saturating_sub(before.at));
    let spent = sample.cpu_seconds? - before.cpu_seconds?;
    // A server that was started again begins at zero.
    (length > 0.0 && spent >= 0.0).then(|| spent / length * 100.0)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::latencies::Latency;
    use crate::schedule::{MILLISECOND, SECOND};

    /// So many samples of a time.
    fn interval(count: u64, time: Nanos) -> Interval {
        let mut latency = Latency::default();
        (0..count).for_each(|_| latency.record(0, time));
        latency.take_interval().unwrap()
    }

    #[test]
    fn rates_are_of_the_time_between_two_statuses() {
        let connect = interval(30, 3 * MILLISECOND);
        let status = |delivered, violations| Status {
            phase: "load".into(),
            connections: 7,
            delivered,
            violations,
            latencies: Intervals::from([("connect".into(), connect.clone())]),
            late: Some(connect.clone()),
            ..Status::default()
        };
        let mut recorder = Recorder::default();
        recorder.record(SECOND, status(100, 1));
        recorder.record(3 * SECOND, status(500, 3));
        let series = recorder.finish(&[]);
        let last = &series.points[1];
        assert_eq!((last.at_seconds, last.delivered_per_second), (3.0, 200.0));
        assert_eq!((last.connects_per_second, last.connections, last.violations), (15.0, 7, 2));
        assert!(last.late_ms.is_some_and(|late| (late - 3.0).abs() < 0.1), "{last:?}");
    }

    #[test]
    fn processes_add_up() {
        let status = |delivered, connections, part, ms: u64| Status {
            phase: "load".into(),
            part,
            connections,
            delivered,
            latencies: Intervals::from([("deliver".into(), interval(10, ms * MILLISECOND))]),
            ..Status::default()
        };
        let mut gathering = Gathering::new(2);
        let both = BTreeSet::from([0, 1]);
        assert!(gathering.take().is_none());
        gathering.add(0, SECOND, status(100, 5, Some(0.4), 10));
        assert!(gathering.has(0) && !gathering.is_complete(&both));
        gathering.add(1, SECOND + 7, status(50, 6, Some(0.3), 20));
        assert!(gathering.is_complete(&both));
        let (at, sum) = gathering.take().unwrap();
        assert_eq!((at, sum.delivered, sum.connections), (SECOND + 7, 150, 11));
        assert_eq!((sum.phase.as_str(), sum.part), ("load", Some(0.3)));
        let deliver = sum.latencies["deliver"].brief();
        assert!(deliver.count == 20 && deliver.p50 < 11.0 && deliver.p99 > 19.0, "{deliver:?}");
        // Who says nothing keeps its counts; latencies are not told twice.
        gathering.add(1, 2 * SECOND, status(80, 6, Some(0.5), 20));
        assert!(!gathering.has(0) && !gathering.is_complete(&both));
        let (_, sum) = gathering.take().unwrap();
        assert_eq!((sum.delivered, sum.latencies["deliver"].brief().count), (180, 10));
    }

    #[test]
    fn cpu_is_a_rate_and_unknown_after_a_restart() {
        let sample = |at, cpu: Option<f64>| Sample { at, cpu_seconds: cpu, ..Sample::default() };
        let samples = [
            sample(0, Some(5.0)),
            sample(2 * SECOND, Some(6.0)),
            sample(3 * SECOND, Some(0.1)),
            sample(4 * SECOND, None),
        ];
        let series = Recorder::default().finish(&samples);
        let cpu: Vec<_> = series.server.iter().map(|point| point.cpu_percent).collect();
        assert_eq!(cpu, [None, Some(50.0), None, None]);
    }
}
