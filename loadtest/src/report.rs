//! What came of a run, for people and for machines, and whether it passed.
//!
//! `text` is for a terminal, `html` for a browser, with the charts of `graphs`; `cost` is what the server spent.

mod cost;
mod graphs;
mod html;
mod text;

use serde_json::{Map, Value, json};

use crate::machine::Machine;
use crate::plan::Kind;
use crate::scenario::Outcome;
use crate::schedule::seconds;
use crate::series::Series;
pub(crate) use html::page;

/// A finished scenario, judged.
#[derive(Debug)]
pub(crate) struct Report {
    outcome: Outcome,
    /// CPU seconds of the generator.
    own_cpu_seconds: f64,
    /// The run, second by second.
    series: Series,
    /// What it was judged by.
    checks: Vec<Check>,
}

/// A threshold and what was measured.
#[derive(Clone, Debug, Default)]
struct Check {
    what: String,
    allowed: String,
    measured: String,
    /// Why it is not kept.
    failure: Option<String>,
}

impl Check {
    fn new(
        what: impl Into<String>,
        allowed: String,
        measured: String,
        failure: Option<String>,
    ) -> Self {
        Self { what: what.into(), allowed, measured, failure }
    }
}

impl Report {
    /// Judges an outcome.
    pub(crate) fn new(outcome: Outcome, series: Series, own_cpu_seconds: f64) -> Self {
        let mut report = Self { outcome, own_cpu_seconds, series, checks: Vec::new() };
        report.checks = report.check();
        report
    }

    /// Why it failed; none = passed.
    fn failures(&self) -> impl Iterator<Item = &str> {
        self.checks.iter().filter_map(|check| check.failure.as_deref())
    }

    /// Whether every threshold holds.
    pub(crate) fn passed(&self) -> bool {
        self.failures().next().is_none()
    }

    /// Every threshold, compared with what was measured.
    fn check(&self) -> Vec<Check> {
        let thresholds = &self.outcome.plan.thresholds;
        let errors = self.outcome.violations.total();
        let allowed = thresholds.max_errors;
        let broken =
            (errors > allowed).then(|| format!("{errors} violations, allowed are {allowed}"));
        let mut checks =
            vec![Check::new("violations", allowed.to_string(), errors.to_string(), broken)];
        checks.extend(self.check_latency());
        let cost = self.server_cost();
        let growth = [
            ("resident memory", thresholds.max_rss_growth, cost.resident_growth_percent, " %"),
            ("descriptors", thresholds.max_fd_growth.map(f64::from), cost.fd_growth, ""),
        ];
        for (what, max, value, unit) in growth {
            let Some(max) = max else { continue };
            let measured = value.map_or("unknown".into(), |value| format!("{value:.1}{unit}"));
            let failure = match value {
                Some(value) if value > max => {
                    Some(format!("{what} grew by {value:.1}{unit}, allowed are {max}{unit}"))
                }
                Some(_) => None,
                None => Some(format!("growth of {what} is unknown: the server told no figures")),
            };
            checks.push(Check::new(
                format!("growth of {what}"),
                format!("{max}{unit}"),
                measured,
                failure,
            ));
        }
        checks
    }

    fn check_latency(&self) -> Option<Check> {
        let (name, latency) = self.outcome.main_latency();
        let max = self.outcome.plan.thresholds.max_p99_ms;
        let allowed = max.map_or("measured".into(), |max| format!("{max} ms"));
        let what = format!("p99 of {name}");
        let Some(summary) = latency.summary() else {
            // A run without a sample has shown nothing.
            let failure = Some(format!("no latency of {name} was measured"));
            return Some(Check::new(what, allowed, "not measured".into(), failure));
        };
        let max = max?;
        let failure = (summary.p99 > max)
            .then(|| format!("p99 of {name} is {:.1} ms, allowed are {max} ms", summary.p99));
        Some(Check::new(what, allowed, format!("{:.2} ms", summary.p99), failure))
    }

    /// The phase of the load itself and how long it was; none for a reconnect, which delivers in bursts: a rate over its
    /// phases would say nothing.
    fn load_phase(&self) -> Option<(&'static str, f64)> {
        let steady = self.outcome.plan.kind != Kind::Reconnect;
        let mut phases = self.outcome.phases.iter();
        let phase = phases
            .find(|(name, nanos)| steady && *nanos > 0 && matches!(*name, "load" | "churn"))?;
        Some((phase.0, seconds(phase.1)))
    }

    /// A part of one core that the generator used.
    fn own_cpu_percent(&self) -> f64 {
        let length: u64 = self.outcome.phases.iter().map(|(_, nanos)| nanos).sum();
        self.own_cpu_seconds * 100.0 / seconds(length).max(0.001)
    }

    /// The report as JSON, for a run on `machine`.
    pub(crate) fn json(&self, machine: &Machine) -> Value {
        let outcome = &self.outcome;
        let object = |pairs: Vec<(&str, Value)>| -> Value {
            let pairs = pairs.into_iter().map(|(name, value)| (name.to_owned(), value));
            Value::Object(pairs.collect::<Map<_, _>>())
        };
        let phases = outcome.phases.iter().map(|(name, nanos)| (*name, json!(seconds(*nanos))));
        let latencies = outcome.latencies.summaries();
        let percentiles = outcome.latencies.measured().map(|(name, latency)| {
            let steps = latency
                .ladder()
                .map(|(percentile, ms)| json!({"percentile": percentile, "ms": ms}));
            (name, Value::Array(steps.collect()))
        });
        let samples = outcome.samples.iter().map(|(moment, sample)| (*moment, json!(sample)));
        json!({
            "scenario": outcome.plan.name,
            "passed": self.passed(),
            "failures": self.failures().collect::<Vec<_>>(),
            "machine": machine,
            "plan": outcome.plan,
            "counts": object(outcome.counts.iter().map(|(n, c)| (*n, json!(c))).collect()),
            "phases_seconds": object(phases.collect()),
            "latencies_ms": object(latencies.iter().map(|(n, s)| (*n, json!(s))).collect()),
            "percentiles_ms": object(percentiles.collect()),
            "violations": outcome.violations.counts(),
            "violation_examples": outcome.violations.examples(),
            "server": {"cost": self.server_cost(), "samples": object(samples.collect())},
            "generator": {
                "cpu_seconds": self.own_cpu_seconds,
                "behind_ms": outcome.latencies.behind.summary(),
                "bytes_in": outcome.traffic.bytes_in,
                "bytes_out": outcome.traffic.bytes_out,
            },
            "series": self.series,
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(crate) mod tests {
    use super::*;
    use crate::checker::{Violation, Violations};
    use crate::fleet::Traffic;
    use crate::latencies::Latencies;
    use crate::plan::{Scenario, Size};
    use crate::schedule::{MILLISECOND, SECOND};
    use crate::server::Sample;
    use crate::values::Values;

    /// A run of a second that passes.
    pub(crate) fn outcome(flags: &Values) -> Outcome {
        let plan = Scenario::load("fanout").unwrap().plan("fanout", Size::Small, flags).unwrap();
        let sample = |at, cpu, resident| Sample {
            at,
            cpu_seconds: Some(cpu),
            resident_bytes: Some(resident),
            open_fds: Some(7.0),
        };
        let mut latencies = Latencies::default();
        latencies.deliver.record(0, 20 * MILLISECOND);
        Outcome {
            plan,
            violations: Violations::default(),
            latencies,
            counts: vec![("delivered", 1_000)],
            phases: vec![("load", SECOND)],
            samples: vec![
                ("before", sample(0, 0.0, 1_000_000.0)),
                ("connected", sample(SECOND, 1.0, 2_000_000.0)),
                ("loaded", sample(2 * SECOND, 1.5, 2_200_000.0)),
            ],
            compared: ("connected", "loaded"),
            traffic: Traffic::default(),
        }
    }

    fn check(flags: &Values, spoil: impl FnOnce(&mut Outcome), failure: Option<&str>) {
        let mut outcome = outcome(flags);
        spoil(&mut outcome);
        let report = Report::new(outcome, Series::default(), 0.1);
        match failure {
            None => assert!(report.passed(), "{:?}", report.checks),
            Some(text) => {
                let failures: Vec<_> = report.failures().collect();
                assert_eq!(failures.len(), 1, "{failures:?}");
                assert!(failures[0].contains(text), "{failures:?}");
                assert!(report.text().contains("FAILED"));
                assert_eq!(report.json(&Machine::look())["passed"], false);
            }
        }
    }

    #[test]
    fn thresholds_decide() {
        let none = Values::default();
        check(&none, |_| {}, None);
        let gap = |outcome: &mut Outcome| outcome.violations.add(Violation::Gap, 1, || "x".into());
        check(&none, gap, Some("1 violations"));
        check(&Values { max_errors: Some(1), ..none.clone() }, gap, None);
        let no_latency = |outcome: &mut Outcome| outcome.latencies = Latencies::default();
        check(&none, no_latency, Some("no latency"));
        check(&Values { max_p99_ms: Some(30.0), ..none.clone() }, |_| {}, None);
        check(&Values { max_p99_ms: Some(10.0), ..none.clone() }, |_| {}, Some("p99 of deliver"));
        check(
            &Values { max_rss_growth: Some(5.0), ..none.clone() },
            |_| {},
            Some("grew by 10.0 %"),
        );
        check(&Values { max_fd_growth: Some(0), ..none.clone() }, |_| {}, None);
        let silent = |outcome: &mut Outcome| outcome.samples.clear();
        check(&none, silent, None);
        check(&Values { max_fd_growth: Some(0), ..none }, silent, Some("unknown"));
    }

    #[test]
    fn costs_are_per_delivery_and_connection() {
        let report = Report::new(outcome(&Values::default()), Series::default(), 0.1);
        let json = report.json(&Machine::look());
        assert_eq!(json["server"]["cost"]["cpu_micros_per_delivery"], 500.0);
        assert_eq!(json["server"]["cost"]["resident_bytes_per_connection"], 10_000.0);
        assert_eq!(json["latencies_ms"]["deliver"]["count"], 1);
        let text = report.text();
        assert!(text.contains("500.00 us per delivery") && text.contains("PASSED"), "{text}");
    }
}
