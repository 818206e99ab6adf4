//! The figures that thresholds are about, from what came of a run.

use crate::plan::Kind;
use crate::report::ServerCost;
use crate::scenario::Outcome;
use crate::schedule::{MILLISECOND, Nanos, seconds};
use crate::server::Sample;
use crate::thresholds::Name;

/// What began later than this after its time was late.
const LATE: Nanos = 10 * MILLISECOND;

const MIB: f64 = 1_048_576.0;
const HOUR: f64 = 3_600.0;

/// The figure that a threshold limits; `None` when the run has none.
pub(crate) fn measured(outcome: &Outcome, cost: &ServerCost, name: &Name) -> Option<f64> {
    if let Some((latency, percentile)) = name.latency() {
        let latency = match latency {
            Some(latency) => outcome.latencies.get(latency)?,
            None => outcome.main_latency().1,
        };
        let summary = latency.summary()?;
        return Some(match percentile {
            "p50" => summary.p50,
            "p90" => summary.p90,
            "p99" => summary.p99,
            _ => summary.p999,
        });
    }
    let length = seconds(outcome.load_length());
    let per_second = |count: u64| (length > 0.0).then_some(count as f64 / length);
    let operations = outcome.operations();
    let errors = outcome.violations.errors();
    match name.figure() {
        "violations" => Some((outcome.violations.total() - errors) as f64),
        "errors" => Some(errors as f64),
        "late_percent" => outcome.latencies.behind.percent_above(LATE),
        "deliveries_per_second" => per_second(outcome.count("delivered")),
        "operations_per_second" => per_second(operations),
        "server_cpu_us_per_operation" => {
            Some(cost.cpu_seconds? * 1e6 / operations as f64).filter(|_| operations > 0)
        }
        "rss_growth_percent" => cost.resident_growth_percent,
        "rss_bytes_per_connection" => bytes_per_connection(outcome, cost),
        "fd_growth" => cost.fd_growth,
        "rss_slope_mib_per_hour" => {
            slope(&outcome.trend, |sample| sample.resident_bytes).map(|slope| slope * HOUR / MIB)
        }
        "fd_slope_per_hour" => {
            slope(&outcome.trend, |sample| sample.open_fds).map(|slope| slope * HOUR)
        }
        "p99_rise" => {
            let (before, during) = (&outcome.latencies.calm, &outcome.latencies.deliver);
            Some(during.summary()?.p99 / before.summary()?.p99)
        }
        "slow_noticed" => Some(outcome.count("slow_noticed") as f64),
        _ => None,
    }
}

/// Of a storm the connections come with the load; otherwise they are there before it.
fn bytes_per_connection(outcome: &Outcome, cost: &ServerCost) -> Option<f64> {
    if outcome.plan.kind != Kind::ConnectStorm {
        return cost.resident_bytes_per_connection;
    }
    let moment = |name| outcome.sample(name).and_then(|sample| sample.resident_bytes);
    let grown = (moment("loaded")? - moment("before")?).max(0.0);
    Some(grown / f64::from(outcome.plan.connections))
}

/// Rise per second of the straight line that fits the samples best.
fn slope(samples: &[Sample], read: fn(&Sample) -> Option<f64>) -> Option<f64> {
    let points: Vec<(f64, f64)> =
        samples.iter().filter_map(|sample| Some((seconds(sample.at), read(sample)?))).collect();
    let count = points.len() as f64;
    let mean = |of: fn(&(f64, f64)) -> f64| points.iter().map(of).sum::<f64>() / count;
    let (at, value) = (mean(|point| point.0), mean(|point| point.1));
    let spread: f64 = points.iter().map(|point| (point.0 - at).powi(2)).sum();
    let rise: f64 = points.iter().map(|point| (point.0 - at) * (point.1 - value)).sum();
    (points.len() > 2 && spread > 0.0).then_some(rise / spread)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::schedule::SECOND;

    fn samples(values: &[f64]) -> Vec<Sample> {
        let all = (1..).zip(values);
        all.map(|(nth, value)| Sample {
            at: nth * SECOND,
            resident_bytes: Some(*value),
            ..Sample::default()
        })
        .collect()
    }

    #[test]
    fn a_slope_is_told_from_noise() {
        let read = |sample: &Sample| sample.resident_bytes;
        assert_eq!(slope(&samples(&[5.0, 5.0]), read), None, "two points are no trend");
        let rising = slope(&samples(&[10.0, 12.0, 14.0, 16.0]), read).unwrap();
        assert!((rising - 2.0).abs() < 1e-9);
        let noise = slope(&samples(&[10.0, 12.0, 10.0, 12.0, 10.0]), read).unwrap();
        assert!(noise.abs() < 1e-9);
        assert_eq!(slope(&samples(&[1.0, 2.0, 3.0]), |sample| sample.open_fds), None);
    }
}
