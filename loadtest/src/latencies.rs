//! Latency histograms, in microseconds, three significant digits, up to ten minutes. Those of several processes are added
//! up bucket by bucket, so that percentiles are those of all samples together.

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use crate::schedule::Nanos;

const MICROS_MAX: u64 = 600_000_000;

/// One kind of latency. As text it is its buckets that are not empty: `[[micros, count], ...]`.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(from = "Vec<(u64, u64)>", into = "Vec<(u64, u64)>")]
pub(crate) struct Latency(Histogram<u64>);

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
    /// Largest.
    pub(crate) max: f64,
}

impl Default for Latency {
    fn default() -> Self {
        Self(
            Histogram::new_with_bounds(1, MICROS_MAX, 3)
                .expect("the bounds are constants that fit"),
        )
    }
}

impl From<Vec<(u64, u64)>> for Latency {
    fn from(buckets: Vec<(u64, u64)>) -> Self {
        let mut latency = Self::default();
        for (micros, count) in buckets {
            latency.0.saturating_record_n(micros, count);
        }
        latency
    }
}

impl From<Latency> for Vec<(u64, u64)> {
    fn from(latency: Latency) -> Self {
        let buckets = latency.0.iter_recorded();
        buckets
            .map(|bucket| (bucket.value_iterated_to(), bucket.count_since_last_iteration()))
            .collect()
    }
}

impl Latency {
    /// Adds the samples of another one.
    pub(crate) fn add(&mut self, other: &Self) {
        self.0.add(&other.0).expect("all histograms have the same bounds");
    }

    /// Percent of the samples that are above `limit`; `None` without samples.
    pub(crate) fn percent_above(&self, limit: Nanos) -> Option<f64> {
        let micros = limit / 1_000;
        (!self.0.is_empty()).then(|| {
            let above = self.0.count_between(micros + 1, MICROS_MAX);
            above as f64 * 100.0 / self.0.len() as f64
        })
    }

    /// Records the time from `from` to `to`.
    pub(crate) fn record(&mut self, from: Nanos, to: Nanos) {
        self.0.saturating_record(to.saturating_sub(from) / 1_000);
    }

    /// The histogram in numbers; `None` when nothing was recorded.
    pub(crate) fn summary(&self) -> Option<Summary> {
        let ms = |micros: u64| micros as f64 / 1_000.0;
        (!self.0.is_empty()).then(|| Summary {
            count: self.0.len(),
            mean: self.0.mean() / 1_000.0,
            p50: ms(self.0.value_at_quantile(0.5)),
            p90: ms(self.0.value_at_quantile(0.9)),
            p99: ms(self.0.value_at_quantile(0.99)),
            p999: ms(self.0.value_at_quantile(0.999)),
            max: ms(self.0.max()),
        })
    }
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

impl Latencies {
    /// All but the generator's own lateness, by name.
    fn named(&self) -> [(&'static str, &Latency); 8] {
        [
            ("connect", &self.connect),
            ("ready", &self.ready),
            ("deliver", &self.deliver),
            ("calm", &self.calm),
            ("acknowledge", &self.acknowledge),
            ("recover", &self.recover),
            ("ping", &self.ping),
            ("presence", &self.presence),
        ]
    }

    /// Finds one by its name.
    pub(crate) fn get(&self, name: &str) -> Option<&Latency> {
        self.named().into_iter().find(|(known, _)| *known == name).map(|(_, latency)| latency)
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

    /// Names and summaries of those that have samples. The generator's own lateness is not among them.
    pub(crate) fn summaries(&self) -> Vec<(&'static str, Summary)> {
        let named = self.named().into_iter();
        named.filter_map(|(name, latency)| Some((name, latency.summary()?))).collect()
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
    }
}
