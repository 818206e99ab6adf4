//! A run over time: a point each second, and what the server told meanwhile.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::latencies::Brief;
use crate::schedule::{Nanos, seconds};
use crate::server::Sample;

/// How a run goes at one moment.
#[derive(Clone, Debug, Default)]
pub(crate) struct Status {
    /// Phase of the scenario.
    pub(crate) phase: &'static str,
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
    pub(crate) latencies: BTreeMap<&'static str, Brief>,
    /// Lateness of the generator since the last status.
    pub(crate) late: Option<Brief>,
}

/// A second of a run.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Point {
    /// Its end, since the start of the run.
    pub(crate) at_seconds: f64,
    /// See [`Status`].
    pub(crate) phase: &'static str,
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
    pub(crate) latencies_ms: BTreeMap<&'static str, Brief>,
    /// Largest lateness of the generator.
    pub(crate) late_ms: Option<f64>,
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
        let connects = status.latencies.get("connect").map_or(0, |connect| connect.count);
        let point = Point {
            at_seconds: seconds(now),
            phase: status.phase,
            connections: status.connections,
            connects_per_second: rate(connects, 0),
            published_per_second: rate(status.published, last.published),
            acknowledged_per_second: rate(status.acknowledged, last.acknowledged),
            delivered_per_second: rate(status.delivered, last.delivered),
            violations: status.violations.saturating_sub(last.violations),
            latencies_ms: status.latencies.clone(),
            late_ms: status.late.map(|late| late.max),
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
mod tests {
    use super::*;
    use crate::schedule::SECOND;

    #[test]
    fn rates_are_of_the_time_between_two_statuses() {
        let connect = Brief { count: 30, p50: 1.0, p99: 2.0, max: 3.0 };
        let status = |delivered, violations| Status {
            phase: "load",
            connections: 7,
            delivered,
            violations,
            latencies: BTreeMap::from([("connect", connect)]),
            late: Some(connect),
            ..Status::default()
        };
        let mut recorder = Recorder::default();
        recorder.record(SECOND, status(100, 1));
        recorder.record(3 * SECOND, status(500, 3));
        let series = recorder.finish(&[]);
        let last = &series.points[1];
        assert_eq!((last.at_seconds, last.delivered_per_second), (3.0, 200.0));
        assert_eq!((last.connects_per_second, last.connections, last.violations), (15.0, 7, 2));
        assert_eq!(last.late_ms, Some(3.0));
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
