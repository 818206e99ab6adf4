//! Latency histograms, in microseconds, three significant digits, up to ten minutes. Those of several processes are added
//! up bucket by bucket, so that percentiles are those of all samples together.

use std::collections::BTreeMap;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use crate::schedule::Nanos;

const MICROS_MAX: u64 = 600_000_000;

/// Percentiles of the ladder in a report.
const LADDER: [f64; 11] = [25.0, 50.0, 75.0, 90.0, 95.0, 99.0, 99.5, 99.9, 99.95, 99.99, 100.0];
/// Points of a curve each time that the distance to 100 % halves.
const CURVE_STEPS: u32 = 5;

const FITS: &str = "the bounds are constants that fit";

/// Micros and count of each bucket that is not empty: what histograms are as text.
type Buckets = Vec<(u64, u64)>;

/// One kind of latency. As text it is the buckets of all its samples.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(from = "Buckets", into = "Buckets")]
pub(crate) struct Latency {
    total: Histogram<u64>,
    /// Since it was last taken.
    interval: Interval,
}

/// A short time's latencies; two digits are enough for a point of a chart.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(from = "Buckets", into = "Buckets")]
pub(crate) struct Interval(Histogram<u64>);

/// Intervals by the name of the latency.
pub(crate) type Intervals = BTreeMap<String, Interval>;

/// An interval in a few numbers; milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Brief {
    /// Samples.
    pub(crate) count: u64,
    /// Percentiles.
    pub(crate) p50: f64,
    /// See `p50`.
    pub(crate) p99: f64,
    /// Largest.
    pub(crate) max: f64,
}

/// A histogram in a few numbers; milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Summary {
    /// Samples.
    pub(crate) count: u64,
    /// Mean.
    pub(crate) mean: f64,
    /// Percentiles.
    pub(crate) p50: f64,
    /// See `p50`.
    pub(crate) p90: f64,
    /// See `p50`.
    pub(crate) p99: f64,
    /// See `p50`.
    pub(crate) p999: f64,
    /// See `p50`.
    pub(crate) p9999: f64,
    /// Largest.
    pub(crate) max: f64,
}

impl Default for Latency {
    fn default() -> Self {
        let total = Histogram::new_with_bounds(1, MICROS_MAX, 3).expect(FITS);
        Self { total, interval: Interval::default() }
    }
}

impl Default for Interval {
    fn default() -> Self {
        Self(Histogram::new_with_bounds(1, MICROS_MAX, 2).expect(FITS))
    }
}

fn fill(histogram: &mut Histogram<u64>, buckets: Buckets) {
    for (micros, count) in buckets {
        histogram.saturating_record_n(micros, count);
    }
}

fn buckets(histogram: &Histogram<u64>) -> Buckets {
    let recorded = histogram.iter_recorded();
    recorded
        .map(|bucket| (bucket.value_iterated_to(), bucket.count_since_last_iteration()))
        .collect()
}

impl From<Buckets> for Latency {
    fn from(buckets: Buckets) -> Self {
        let mut latency = Self::default();
        fill(&mut latency.total, buckets);
        latency
    }
}

impl From<Latency> for Buckets {
    fn from(latency: Latency) -> Self {
        buckets(&latency.total)
    }
}

impl From<Buckets> for Interval {
    fn from(buckets: Buckets) -> Self {
        let mut interval = Self::default();
        fill(&mut interval.0, buckets);
        interval
    }
}

impl From<Interval> for Buckets {
    fn from(interval: Interval) -> Self {
        buckets(&interval.0)
    }
}

impl Interval {
    /// Adds the samples of another one.
    pub(crate) fn add(&mut self, other: &Self) {
        self.0.add(&other.0).expect("all histograms have the same bounds");
    }

    /// The interval in numbers.
    pub(crate) fn brief(&self) -> Brief {
        Brief {
            count: self.0.len(),
            p50: ms(self.0.value_at_quantile(0.5)),
            p99: ms(self.0.value_at_quantile(0.99)),
            max: ms(self.0.max()),
        }
    }
}

impl Latency {
    /// Adds the samples of another one.
    pub(crate) fn add(&mut self, other: &Self) {
        self.total.add(&other.total).expect("all histograms have the same bounds");
    }

    /// Percent of the samples that are above `limit`; `None` without samples.
    pub(crate) fn percent_above(&self, limit: Nanos) -> Option<f64> {
        let micros = limit / 1_000;
        (!self.total.is_empty()).then(|| {
            let above = self.total.count_between(micros + 1, MICROS_MAX);
            above as f64 * 100.0 / self.total.len() as f64
        })
    }

    /// Records the time from `from` to `to`.
    pub(crate) fn record(&mut self, from: Nanos, to: Nanos) {
        let micros = to.saturating_sub(from) / 1_000;
        self.total.saturating_record(micros);
        self.interval.0.saturating_record(micros);
    }

    /// What was recorded since the last time; `None` when that is nothing.
    pub(crate) fn take_interval(&mut self) -> Option<Interval> {
        (!self.interval.0.is_empty()).then(|| std::mem::take(&mut self.interval))
    }

    /// Percentiles, up to the largest at 100, and their values in milliseconds.
    pub(crate) fn ladder(&self) -> impl Iterator<Item = (f64, f64)> {
        LADDER
            .iter()
            .map(|percentile| (*percentile, ms(self.total.value_at_percentile(*percentile))))
    }

    /// Shares from 0 to 1 and the milliseconds that they are within, as far as the samples tell.
    pub(crate) fn curve(&self) -> Vec<(f64, f64)> {
        let resolution = 1.0 - 1.0 / self.total.len().max(1) as f64;
        self.total
            .iter_quantiles(CURVE_STEPS)
            .map(|step| {
                let share = step.quantile_iterated_to().min(resolution);
                (share, ms(step.value_iterated_to().min(self.total.max())))
            })
            .collect()
    }

    /// The histogram in numbers; `None` when nothing was recorded.
    pub(crate) fn summary(&self) -> Option<Summary> {
        (!self.total.is_empty()).then(|| Summary {
            count: self.total.len(),
            mean: self.total.mean() / 1_000.0,
            p50: ms(self.total.value_at_quantile(0.5)),
            p90: ms(self.total.value_at_quantile(0.9)),
            p99: ms(self.total.value_at_quantile(0.99)),
            p999: ms(self.total.value_at_quantile(0.999)),
            p9999: ms(self.total.value_at_quantile(0.9999)),
            max: ms(self.total.max()),
        })
    }
}

fn ms(micros: u64) -> f64 {
    micros as f64 / 1_000.0
}

/// All latencies of a scenario.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub(crate) struct Latencies {
    /// From dialing to `welcome`.
    pub(crate) connect: Latency,
    /// From dialing to the answer of the last subscription.
    pub(crate) ready: Latency,
    /// From the scheduled time of a publication to its delivery.
    pub(crate) deliver: Latency,
    /// From the scheduled time of a publication to its acknowledgement.
    pub(crate) acknowledge: Latency,
    /// From the moment everybody was to come back to the end of a connection's recovery.
    pub(crate) recover: Latency,
    /// From a ping to its pong.
    pub(crate) ping: Latency,
    /// From the scheduled time of a join or leave to each push about it.
    pub(crate) presence: Latency,
    /// Like `deliver`, before anybody was made slow.
    pub(crate) calm: Latency,
    /// From the scheduled time of a publication or connect to the moment the generator began it.
    pub(crate) behind: Latency,
}

/// Names of the server's latencies with references to them.
macro_rules! named {
    ($latencies:expr, $($borrow:tt)+) => {
        [
            ("connect", $($borrow)+ $latencies.connect),
            ("ready", $($borrow)+ $latencies.ready),
            ("deliver", $($borrow)+ $latencies.deliver),
            ("calm", $($borrow)+ $latencies.calm),
            ("acknowledge", $($borrow)+ $latencies.acknowledge),
            ("recover", $($borrow)+ $latencies.recover),
            ("ping", $($borrow)+ $latencies.ping),
            ("presence", $($borrow)+ $latencies.presence),
        ]
    };
}

impl Latencies {
    /// Finds one by its name.
    pub(crate) fn get(&self, name: &str) -> Option<&Latency> {
        named!(self, &).into_iter().find(|(known, _)| *known == name).map(|(_, latency)| latency)
    }

    /// Adds the samples of another process.
    pub(crate) fn add(&mut self, other: &Self) {
        self.connect.add(&other.connect);
        self.ready.add(&other.ready);
        self.deliver.add(&other.deliver);
        self.acknowledge.add(&other.acknowledge);
        self.recover.add(&other.recover);
        self.ping.add(&other.ping);
        self.presence.add(&other.presence);
        self.calm.add(&other.calm);
        self.behind.add(&other.behind);
    }

    /// Those that have samples, by name. The generator's own lateness is not among them.
    pub(crate) fn measured(&self) -> impl Iterator<Item = (&'static str, &Latency)> {
        named!(self, &).into_iter().filter(|(_, latency)| !latency.total.is_empty())
    }

    /// Names and summaries of those that have samples.
    pub(crate) fn summaries(&self) -> Vec<(&'static str, Summary)> {
        self.measured().filter_map(|(name, latency)| Some((name, latency.summary()?))).collect()
    }

    /// What was recorded since the last time, by name.
    pub(crate) fn take_intervals(&mut self) -> Intervals {
        named!(self, &mut)
            .into_iter()
            .filter_map(|(name, latency)| Some((name.to_owned(), latency.take_interval()?)))
            .collect()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::schedule::MILLISECOND;

    #[test]
    fn percentiles_in_milliseconds() {
        let mut latency = Latency::default();
        assert_eq!(latency.summary(), None);
        for ms in 1..=1_000 {
            latency.record(5, 5 + ms * MILLISECOND);
        }
        latency.record(10, 5);
        let summary = latency.summary().unwrap();
        assert_eq!(summary.count, 1_001);
        let close = |value: f64, expected: f64| (value - expected).abs() / expected < 0.005;
        assert!(close(summary.p50, 500.0) && close(summary.p99, 990.0), "{summary:?}");
        assert!(close(summary.max, 1_000.0));
        let ladder: Vec<_> = latency.ladder().collect();
        assert!(ladder.is_sorted_by(|a, b| a.0 < b.0 && a.1 <= b.1), "{ladder:?}");
        assert_eq!(ladder.last(), Some(&(100.0, summary.max)));
        let curve = latency.curve();
        assert!(curve.is_sorted_by(|a, b| a.0 <= b.0 && a.1 <= b.1), "{curve:?}");
        let (share, largest) = curve.last().copied().unwrap();
        assert!(share < 1.0 && largest >= summary.max, "{curve:?}");
    }

    #[test]
    fn an_interval_is_taken_once_and_the_total_stays() {
        let mut latencies = Latencies::default();
        latencies.deliver.record(0, 10 * MILLISECOND);
        latencies.deliver.record(0, 30 * MILLISECOND);
        let taken = latencies.take_intervals();
        assert_eq!(taken.keys().collect::<Vec<_>>(), ["deliver"]);
        let brief = taken["deliver"].brief();
        assert!(brief.count == 2 && (brief.max - 30.0).abs() < 0.3);
        latencies.ping.record(0, MILLISECOND);
        assert_eq!(latencies.take_intervals().keys().collect::<Vec<_>>(), ["ping"]);
        assert!(latencies.take_intervals().is_empty());
        assert_eq!(latencies.deliver.summary().unwrap().count, 2);
    }

    #[test]
    fn histograms_survive_the_way_between_processes_and_add_up() {
        let (mut low, mut high, mut all) = <(Latency, Latency, Latency)>::default();
        for ms in 1..=1_000 {
            let half = if ms <= 500 { &mut low } else { &mut high };
            half.record(0, ms * MILLISECOND);
            all.record(0, ms * MILLISECOND);
        }
        let text = serde_json::to_string(&high).unwrap();
        low.add(&serde_json::from_str(&text).unwrap());
        assert_eq!(low.summary(), all.summary());
        assert!((all.percent_above(900 * MILLISECOND).unwrap() - 10.0).abs() < 0.5);
        assert_eq!(Latency::default().percent_above(0), None);
        let (mut low, high) = (low.take_interval().unwrap(), high.take_interval().unwrap());
        let text = serde_json::to_string(&high).unwrap();
        low.add(&serde_json::from_str(&text).unwrap());
        assert_eq!(low.brief(), all.take_interval().unwrap().brief());
    }
}
