//! What came of a run, for people and for machines, and whether it passed.
//!
//! `text` is for a terminal, `html` for a browser, with the charts of `graphs`; `cost` is what the server spent.

mod cost;
mod graphs;
mod html;
mod text;

use serde_json::{Map, Value, json};

use crate::figures;
use crate::machine::Machine;
use crate::plan::Kind;
use crate::scenario::Outcome;
use crate::schedule::seconds;
use crate::series::Series;
use crate::thresholds::Verdict;
pub(crate) use cost::ServerCost;
pub(crate) use html::page;

/// A finished scenario, judged.
#[derive(Debug)]
pub(crate) struct Report {
    outcome: Outcome,
    /// CPU seconds of the generator.
    own_cpu_seconds: f64,
    /// The run, second by second.
    series: Series,
    /// Each threshold with what was measured.
    verdicts: Vec<Verdict>,
    /// Why it failed; empty = passed.
    failures: Vec<String>,
}

impl Report {
    /// Judges an outcome.
    pub(crate) fn new(outcome: Outcome, series: Series, own_cpu_seconds: f64) -> Self {
        let cost = ServerCost::of(&outcome);
        let thresholds = &outcome.plan.thresholds;
        let verdicts = thresholds.judge(|name| figures::measured(&outcome, &cost, name));
        let broken = verdicts.iter().filter(|verdict| !verdict.ok);
        let mut failures: Vec<_> = broken.map(Verdict::failure).collect();
        let (name, latency) = outcome.main_latency();
        // A run without a sample has shown nothing.
        if latency.summary().is_none() {
            failures.push(format!("no latency of {name} was measured"));
        }
        Self { outcome, own_cpu_seconds, series, verdicts, failures }
    }

    /// Whether every threshold holds.
    pub(crate) fn passed(&self) -> bool {
        self.failures.is_empty()
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
            "failures": self.failures,
            "thresholds": self.verdicts,
            "machine": machine,
            "plan": outcome.plan,
            "counts": object(outcome.counts.iter().map(|(n, c)| (*n, json!(c))).collect()),
            "phases_seconds": object(phases.collect()),
            "latencies_ms": object(latencies.iter().map(|(n, s)| (*n, json!(s))).collect()),
            "percentiles_ms": object(percentiles.collect()),
            "violations": outcome.violations.counts(),
            "violation_examples": outcome.violations.examples(),
            "server": {"cost": ServerCost::of(&self.outcome), "samples": object(samples.collect())},
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
    use crate::thresholds::Assignment;
    use crate::values::Values;

    /// A run of a second that passes without flags.
    pub(crate) fn outcome(flags: &[&str]) -> Outcome {
        let thresholds = flags.iter().map(|flag| flag.parse::<Assignment>().unwrap());
        let flags = Values { thresholds: thresholds.collect(), ..Values::default() };
        let scenario: Scenario = toml::from_str("kind = \"fanout\"\nabout = \"x\"").unwrap();
        let plan = scenario.plan("fanout", Size::Small, &flags).unwrap();
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
            trend: Vec::new(),
            traffic: Traffic::default(),
        }
    }

    fn check(flags: &[&str], spoil: impl FnOnce(&mut Outcome), failure: Option<&str>) {
        let mut outcome = outcome(flags);
        spoil(&mut outcome);
        let report = Report::new(outcome, Series::default(), 0.1);
        match failure {
            None => assert!(report.passed(), "{:?}", report.failures),
            Some(text) => {
                assert_eq!(report.failures.len(), 1, "{:?}", report.failures);
                assert!(report.failures[0].contains(text), "{:?}", report.failures);
                assert!(report.text().contains("FAILED"));
                assert_eq!(report.json(&Machine::look())["passed"], false);
            }
        }
    }

    #[test]
    fn thresholds_decide() {
        check(&[], |_| {}, None);
        let gap = |outcome: &mut Outcome| outcome.violations.add(Violation::Gap, 1, || "x".into());
        check(&[], gap, Some("violations_max is 0, measured 1"));
        check(&["violations_max=1"], gap, None);
        let refused =
            |outcome: &mut Outcome| outcome.violations.add(Violation::Refused, 3, || "x".into());
        check(&[], refused, Some("errors_max is 0, measured 3"));
        check(&["errors_max=3"], refused, None);
        check(&[], |outcome| outcome.latencies = Latencies::default(), Some("no latency"));
        check(&["p99_ms_max=30"], |_| {}, None);
        check(&["p99_ms_max=10"], |_| {}, Some("p99_ms_max"));
        check(&["rss_growth_percent_max=5"], |_| {}, Some("measured 10"));
        check(&["fd_growth_max=0"], |_| {}, None);
        check(&["deliveries_per_second_min=999"], |_| {}, None);
        check(&["deliveries_per_second_min=1001"], |_| {}, Some("measured 1000"));
        check(&["server_cpu_us_per_operation_max=499"], |_| {}, Some("measured 500"));
        let silent = |outcome: &mut Outcome| outcome.samples.clear();
        check(&[], silent, None);
        check(&["fd_growth_max=0"], silent, Some("fd_growth_max is 0, not measured"));
    }

    #[test]
    fn every_threshold_is_in_the_report() {
        let outcome = outcome(&["p99_ms_max=10", "fd_growth_max=0"]);
        let report = Report::new(outcome, Series::default(), 0.1);
        let json = report.json(&Machine::look());
        let names: Vec<_> =
            json["thresholds"].as_array().unwrap().iter().map(|verdict| &verdict["name"]).collect();
        assert_eq!(names, ["errors_max", "fd_growth_max", "p99_ms_max", "violations_max"]);
        assert_eq!(json["thresholds"][2]["ok"], false);
        assert!(report.text().contains("NOT MET"));
    }

    #[test]
    fn costs_are_per_delivery_and_connection() {
        let report = Report::new(outcome(&[]), Series::default(), 0.1);
        let json = report.json(&Machine::look());
        assert_eq!(json["server"]["cost"]["cpu_micros_per_delivery"], 500.0);
        assert_eq!(json["server"]["cost"]["resident_bytes_per_connection"], 10_000.0);
        assert_eq!(json["latencies_ms"]["deliver"]["count"], 1);
        let text = report.text();
        assert!(text.contains("500.00 us per delivery") && text.contains("PASSED"), "{text}");
    }
}
