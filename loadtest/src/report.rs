//! What came of a run, for people and for machines, and whether it passed.

use std::fmt::Write as _;

use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::figures;
use crate::latencies::Summary;
use crate::plan::Kind;
use crate::scenario::Outcome;
use crate::schedule::seconds;
use crate::server::Sample;
use crate::thresholds::Verdict;

/// A finished scenario, judged.
#[derive(Debug)]
pub(crate) struct Report {
    outcome: Outcome,
    /// CPU seconds of the generator.
    own_cpu_seconds: f64,
    /// Why it failed; empty = passed.
    pub(crate) failures: Vec<String>,
}

/// What the server spent between the two compared moments.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct ServerCost {
    pub(crate) cpu_seconds: Option<f64>,
    cores: Option<f64>,
    cpu_micros_per_delivery: Option<f64>,
    resident_bytes: Option<f64>,
    pub(crate) resident_growth_percent: Option<f64>,
    pub(crate) fd_growth: Option<f64>,
    pub(crate) resident_bytes_per_connection: Option<f64>,
}

impl Report {
    /// Judges an outcome.
    pub(crate) fn new(outcome: Outcome, own_cpu_seconds: f64) -> Self {
        let mut report = Self { outcome, own_cpu_seconds, failures: Vec::new() };
        report.failures = report.judge();
        report
    }

    /// Whether every threshold holds.
    pub(crate) fn passed(&self) -> bool {
        self.failures.is_empty()
    }

    /// Each threshold with what was measured.
    fn verdicts(&self) -> Vec<Verdict> {
        let cost = self.server_cost();
        self.outcome.plan.thresholds.judge(|name| figures::measured(&self.outcome, &cost, name))
    }

    fn judge(&self) -> Vec<String> {
        let verdicts = self.verdicts().into_iter().filter(|verdict| !verdict.ok);
        let mut failures: Vec<_> = verdicts.map(|verdict| verdict.failure()).collect();
        let (name, latency) = self.outcome.main_latency();
        // A run without a sample has shown nothing.
        if latency.summary().is_none() {
            failures.push(format!("no latency of {name} was measured"));
        }
        failures
    }

    fn server_cost(&self) -> ServerCost {
        let (from, to) = self.outcome.compared;
        let (Some(from), Some(to)) = (self.outcome.sample(from), self.outcome.sample(to)) else {
            return ServerCost::default();
        };
        let pair = |read: fn(&Sample) -> Option<f64>| Some((read(from)?, read(to)?));
        let cpu_seconds = pair(|sample| sample.cpu_seconds).map(|(from, to)| to - from);
        let length = seconds(to.at - from.at);
        let delivered = self.outcome.count("delivered");
        let held = self
            .outcome
            .sample("before")
            .and_then(|before| Some((from.resident_bytes? - before.resident_bytes?).max(0.0)));
        ServerCost {
            cpu_seconds,
            cores: cpu_seconds.filter(|_| length > 0.0).map(|cpu| cpu / length),
            cpu_micros_per_delivery: cpu_seconds
                .filter(|_| delivered > 0)
                .map(|cpu| cpu * 1e6 / delivered as f64),
            resident_bytes: to.resident_bytes,
            resident_growth_percent: pair(|sample| sample.resident_bytes)
                .map(|(from, to)| (to / from - 1.0) * 100.0),
            fd_growth: pair(|sample| sample.open_fds).map(|(from, to)| to - from),
            resident_bytes_per_connection: held
                .filter(|_| !matches!(self.outcome.plan.kind, Kind::Churn | Kind::ConnectStorm))
                .map(|bytes| bytes / f64::from(self.outcome.plan.connections)),
        }
    }

    /// The report as JSON.
    pub(crate) fn json(&self) -> Value {
        let outcome = &self.outcome;
        let object = |pairs: Vec<(&str, Value)>| -> Value {
            let pairs = pairs.into_iter().map(|(name, value)| (name.to_owned(), value));
            Value::Object(pairs.collect::<Map<_, _>>())
        };
        let phases = outcome.phases.iter().map(|(name, nanos)| (*name, json!(seconds(*nanos))));
        let latencies = outcome.latencies.summaries();
        let samples = outcome.samples.iter().map(|(moment, sample)| (*moment, json!(sample)));
        json!({
            "scenario": outcome.plan.name,
            "passed": self.passed(),
            "failures": self.failures,
            "thresholds": self.verdicts(),
            "plan": outcome.plan,
            "counts": object(outcome.counts.iter().map(|(n, c)| (*n, json!(c))).collect()),
            "phases_seconds": object(phases.collect()),
            "latencies_ms": object(latencies.iter().map(|(n, s)| (*n, json!(s))).collect()),
            "violations": outcome.violations.counts(),
            "violation_examples": outcome.violations.examples(),
            "server": {"cost": self.server_cost(), "samples": object(samples.collect())},
            "generator": {
                "cpu_seconds": self.own_cpu_seconds,
                "behind_ms": outcome.latencies.behind.summary(),
                "bytes_in": outcome.traffic.bytes_in,
                "bytes_out": outcome.traffic.bytes_out,
            },
        })
    }

    /// The report for people.
    pub(crate) fn text(&self) -> String {
        let mut out = String::new();
        self.write_text(&mut out).expect("a String takes any text");
        out
    }

    fn write_text(&self, out: &mut String) -> std::fmt::Result {
        let outcome = &self.outcome;
        let plan = &outcome.plan;
        let title =
            format!("{}: {} connections, {} channels", plan.name, plan.connections, plan.channels);
        writeln!(out, "{title}")?;
        for (name, nanos) in &outcome.phases {
            writeln!(out, "  {name:<13} {:>10.2} s", seconds(*nanos))?;
        }
        // What a reconnect delivers comes in bursts: a rate over its phases would say nothing.
        let steady = plan.kind != Kind::Reconnect;
        let load =
            outcome.phases.iter().find(|(name, _)| steady && matches!(*name, "load" | "churn"));
        for (name, count) in outcome.counts.iter().filter(|(_, count)| *count > 0) {
            write!(out, "  {name:<13} {count:>10}")?;
            if let Some((phase, length)) = load.filter(|(_, length)| *length > 0)
                && matches!(*name, "acknowledged" | "delivered" | "completed")
            {
                write!(out, "   ({:.0}/s over {phase})", *count as f64 / seconds(*length))?;
            }
            writeln!(out)?;
        }
        let summaries = outcome.latencies.summaries();
        if !summaries.is_empty() {
            let heads = ["count", "mean", "p50", "p90", "p99", "p99.9", "max"];
            write!(out, "  {:<13}", "latency, ms")?;
            for head in heads {
                write!(out, "{head:>10}")?;
            }
            writeln!(out)?;
        }
        for (name, summary) in &summaries {
            write_summary(out, name, summary)?;
        }
        self.write_costs(out)?;
        for (violation, count) in outcome.violations.counts() {
            writeln!(out, "  {violation:?}: {count}")?;
        }
        for example in outcome.violations.examples() {
            writeln!(out, "    {example}")?;
        }
        for verdict in self.verdicts() {
            writeln!(out, "  {verdict}")?;
        }
        if self.passed() {
            return writeln!(out, "  PASSED");
        }
        writeln!(out, "  FAILED: {}", self.failures.join("; "))
    }

    fn write_costs(&self, out: &mut String) -> std::fmt::Result {
        let cost = self.server_cost();
        let mib = |bytes: f64| bytes / f64::from(1 << 20);
        let mut parts = Vec::new();
        if let (Some(cpu), Some(cores)) = (cost.cpu_seconds, cost.cores) {
            parts.push(format!("CPU {cpu:.2} s ({:.0} % of a core)", cores * 100.0));
        }
        if let Some(micros) = cost.cpu_micros_per_delivery {
            parts.push(format!("{micros:.2} us per delivery"));
        }
        if let Some(resident) = cost.resident_bytes {
            parts.push(format!("RSS {:.1} MiB", mib(resident)));
        }
        if let Some(growth) = cost.resident_growth_percent {
            parts.push(format!("{growth:+.1} %"));
        }
        if let Some(bytes) = cost.resident_bytes_per_connection {
            parts.push(format!("{:.1} KiB per connection", bytes / 1024.0));
        }
        if let Some(fds) = cost.fd_growth.filter(|fds| *fds != 0.0) {
            parts.push(format!("{fds:+} descriptors"));
        }
        if parts.is_empty() {
            parts.push("no figures (no /metrics, or no room for one more connection)".into());
        }
        writeln!(out, "  server        {}", parts.join(", "))?;
        let length: u64 = self.outcome.phases.iter().map(|(_, nanos)| nanos).sum();
        write!(
            out,
            "  generator     CPU {:.2} s ({:.0} % of a core)",
            self.own_cpu_seconds,
            self.own_cpu_seconds * 100.0 / seconds(length).max(0.001)
        )?;
        if let Some(behind) = self.outcome.latencies.behind.summary() {
            write!(out, ", sent late by p99 {:.2} ms, max {:.2} ms", behind.p99, behind.max)?;
        }
        writeln!(out)
    }
}

fn write_summary(out: &mut String, name: &str, summary: &Summary) -> std::fmt::Result {
    write!(out, "  {name:<13}{:>10}", summary.count)?;
    for value in [summary.mean, summary.p50, summary.p90, summary.p99, summary.p999, summary.max] {
        write!(out, "{value:>10.2}")?;
    }
    writeln!(out)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::checker::{Violation, Violations};
    use crate::fleet::Traffic;
    use crate::latencies::Latencies;
    use crate::plan::{Scenario, Size};
    use crate::schedule::{MILLISECOND, SECOND};
    use crate::thresholds::Assignment;
    use crate::values::Values;

    fn outcome(flags: &[&str]) -> Outcome {
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
        let report = Report::new(outcome, 0.1);
        match failure {
            None => assert!(report.passed(), "{:?}", report.failures),
            Some(text) => {
                assert_eq!(report.failures.len(), 1, "{:?}", report.failures);
                assert!(report.failures[0].contains(text), "{:?}", report.failures);
                assert!(report.text().contains("FAILED"));
                assert_eq!(report.json()["passed"], false);
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
        let report = Report::new(outcome(&["p99_ms_max=10", "fd_growth_max=0"]), 0.1);
        let json = report.json();
        let names: Vec<_> =
            json["thresholds"].as_array().unwrap().iter().map(|verdict| &verdict["name"]).collect();
        assert_eq!(names, ["errors_max", "fd_growth_max", "p99_ms_max", "violations_max"]);
        assert_eq!(json["thresholds"][2]["ok"], false);
        assert!(report.text().contains("NOT MET"));
    }

    #[test]
    fn costs_are_per_delivery_and_connection() {
        let report = Report::new(outcome(&[]), 0.1);
        let json = report.json();
        assert_eq!(json["server"]["cost"]["cpu_micros_per_delivery"], 500.0);
        assert_eq!(json["server"]["cost"]["resident_bytes_per_connection"], 10_000.0);
        assert_eq!(json["latencies_ms"]["deliver"]["count"], 1);
        let text = report.text();
        assert!(text.contains("500.00 us per delivery") && text.contains("PASSED"), "{text}");
    }
}
