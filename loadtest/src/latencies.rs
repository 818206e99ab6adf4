//! Latency histograms, in microseconds, three significant digits, up to ten minutes.

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::schedule::Nanos;

const MICROS_MAX: u64 = 600_000_000;

/// One kind of latency.
#[derive(Clone, Debug)]
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

impl Latency {
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
#[derive(Clone, Debug, Default)]
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
    /// From the scheduled time of a publication to the moment the generator sent it.
    pub(crate) behind: Latency,
}

impl Latencies {
    /// Names and summaries of those that have samples. The generator's own lateness is not among them.
    pub(crate) fn summaries(&self) -> Vec<(&'static str, Summary)> {
        [
            ("connect", &self.connect),
            ("ready", &self.ready),
            ("deliver", &self.deliver),
            ("acknowledge", &self.acknowledge),
            ("recover", &self.recover),
            ("ping", &self.ping),
        ]
        .into_iter()
        .filter_map(|(name, latency)| Some((name, latency.summary()?)))
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
    }
}
