//! The report for a terminal.

use std::fmt::Write as _;

use super::{Report, ServerCost};
use crate::latencies::Summary;
use crate::schedule::seconds;

impl Report {
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
        for (name, count) in outcome.counts.iter().filter(|(_, count)| *count > 0) {
            write!(out, "  {name:<13} {count:>10}")?;
            if let Some((phase, length)) = self.load_phase()
                && matches!(*name, "acknowledged" | "delivered" | "completed")
            {
                write!(out, "   ({:.0}/s over {phase})", *count as f64 / length)?;
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
        for verdict in &self.verdicts {
            writeln!(out, "  {verdict}")?;
        }
        if self.passed() {
            return writeln!(out, "  PASSED");
        }
        writeln!(out, "  FAILED: {}", self.failures.join("; "))
    }

    fn write_costs(&self, out: &mut String) -> std::fmt::Result {
        let cost = ServerCost::of(&self.outcome);
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
        write!(
            out,
            "  generator     CPU {:.2} s ({:.0} % of a core)",
            self.own_cpu_seconds,
            self.own_cpu_percent()
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
