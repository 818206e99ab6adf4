//! The report for a browser: one file that needs nothing else, neither network nor script.

use std::fmt::Write as _;

use gateway_loadtest::chart::{self, escape, number};
use serde_json::{Value, json};

use super::{Report, ServerCost};
use crate::machine::Machine;
use crate::schedule::seconds;

/// Rows of the table over time; longer runs are told in groups of seconds.
const ROWS_MAX: usize = 600;

/// A page with a section for each report.
pub(crate) fn page(reports: &[Report], machine: &Machine) -> String {
    let passed = reports.iter().all(Report::passed);
    let mut out = format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>Load test of {}</title>\n\
         <link rel=\"icon\" href=\"data:,\">\n<style>\n{}\n{}</style>\n</head>\n<body>\n<main>\n\
         <h1>Load test {}</h1>\n<p>{} &middot; {} &middot; {}, {} &middot; {}<br><code>{}</code></p>\n",
        escape(&machine.started),
        include_str!("page.css"),
        chart::STYLE,
        badge(passed),
        escape(&machine.started),
        escape(machine.tool),
        escape(&machine.processor),
        cores(machine.cores),
        escape(&machine.system),
        escape(&machine.command)
    );
    if reports.len() > 1 {
        out.push_str("<nav>");
        for (index, report) in reports.iter().enumerate() {
            let (name, state) = (escape(&report.outcome.plan.name), state(report.passed()));
            let class = class(report.passed());
            add(
                &mut out,
                format_args!("<a href=\"#s{index}\">{name} <b class=\"{class}\">{state}</b></a>"),
            );
        }
        out.push_str("</nav>\n");
    }
    for (index, report) in reports.iter().enumerate() {
        report.write_section(index, &mut out);
    }
    out + "</main>\n</body>\n</html>\n"
}

fn add(out: &mut String, text: std::fmt::Arguments<'_>) {
    out.write_fmt(text).expect("a String takes any text");
}

fn cores(count: usize) -> String {
    if count == 1 { "one core".into() } else { format!("{count} cores") }
}

fn state(passed: bool) -> &'static str {
    if passed { "passed" } else { "failed" }
}

fn class(good: bool) -> &'static str {
    if good { "good" } else { "bad" }
}

fn badge(passed: bool) -> String {
    format!("<span class=\"badge {}\">{}</span>", class(passed), state(passed))
}

/// A table; `rows` are markup already.
fn table(title: &str, heads: &[&str], rows: &[Vec<String>]) -> String {
    let heads = heads.join("</th><th scope=\"col\">");
    let rows: Vec<_> = rows.iter().map(|row| row.join("</td><td>")).collect();
    let rows = rows.join("</td></tr><tr><td>");
    let title = if title.is_empty() { String::new() } else { format!("<h3>{title}</h3>") };
    format!(
        "<div>{title}<div class=\"scroll\" tabindex=\"0\"><table><thead><tr><th scope=\"col\">{heads}</th></tr></thead>\
         <tbody><tr><td>{rows}</td></tr></tbody></table></div></div>\n"
    )
}

impl Report {
    fn write_section(&self, index: usize, out: &mut String) {
        let plan = &self.outcome.plan;
        add(
            out,
            format_args!(
                "<section id=\"s{index}\">\n<h2>{} {}</h2>\n<p>{} connections, {} channels</p>\n",
                escape(&plan.name),
                badge(self.passed()),
                number(plan.connections.into()),
                number(plan.channels.into())
            ),
        );
        for failure in &self.failures {
            add(out, format_args!("<p class=\"bad\">{}</p>\n", escape(failure)));
        }
        out.push_str("<div class=\"cards\">\n");
        for (name, value, bad) in self.cards() {
            let class = if bad { "bad" } else { "" };
            let (name, value) = (escape(&name), escape(&value));
            add(
                out,
                format_args!(
                    "<div class=\"card\"><span>{name}</span><b class=\"{class}\">{value}</b></div>\n"
                ),
            );
        }
        out.push_str("</div>\n<div class=\"charts\">\n");
        for chart in self.charts() {
            add(out, format_args!("<figure>{}</figure>\n", chart.svg()));
        }
        out.push_str("</div>\n<div class=\"tables\">\n");
        out.push_str(&self.checks_table());
        out.push_str(&self.latency_table());
        out.push_str("</div>\n");
        let (seconds, plan) = (self.seconds_table(), self.configuration_table());
        add(
            out,
            format_args!("<details><summary>Figures over time</summary>{seconds}</details>\n"),
        );
        add(
            out,
            format_args!("<details><summary>Configuration</summary>{plan}</details>\n</section>\n"),
        );
    }

    /// Names, values, and whether these are bad ones.
    fn cards(&self) -> Vec<(String, String, bool)> {
        let outcome = &self.outcome;
        let mut cards = Vec::new();
        let mut add = |name: String, value: String| cards.push((name, value, false));
        if let Some((_, length)) = self.load_phase() {
            for name in ["delivered", "acknowledged", "completed"] {
                let rate = outcome.count(name) as f64 / length;
                if rate > 0.0 {
                    add(format!("{name}/s"), number(rate.round()));
                }
            }
        }
        let (name, latency) = outcome.main_latency();
        if let Some(summary) = latency.summary() {
            for (percentile, value) in
                [("p50", summary.p50), ("p99", summary.p99), ("largest", summary.max)]
            {
                add(format!("{name}, {percentile}"), format!("{} ms", number(value)));
            }
        }
        let cost = ServerCost::of(&self.outcome);
        if let Some(cores) = cost.cores {
            add("server CPU".into(), format!("{:.0} %", cores * 100.0));
        }
        if let Some(bytes) = cost.resident_bytes {
            add("server memory".into(), format!("{} MiB", number(bytes / f64::from(1 << 20))));
        }
        add("generator CPU".into(), format!("{:.0} %", self.own_cpu_percent()));
        if let Some(behind) = outcome.latencies.behind.summary() {
            add("late, p99".into(), format!("{} ms", number(behind.p99)));
        }
        let violations = outcome.violations.total();
        cards.insert(0, ("violations".into(), number(violations as f64), violations > 0));
        cards
    }

    fn checks_table(&self) -> String {
        let rows = self.verdicts.iter().map(|verdict| {
            let state = if verdict.ok { "met" } else { "not met" };
            vec![
                escape(verdict.name.as_str()),
                number(verdict.limit),
                verdict.measured.map_or_else(|| "nothing".into(), number),
                format!("<b class=\"{}\">{state}</b>", class(verdict.ok)),
            ]
        });
        let rows: Vec<_> = rows.collect();
        let mut out = table("Thresholds", &["name", "limit", "measured", ""], &rows);
        let kinds = self.outcome.violations.counts();
        if !kinds.is_empty() {
            let kinds = kinds
                .iter()
                .map(|(kind, count)| vec![escape(&text_of(&json!(kind))), number(*count as f64)]);
            let examples = self.outcome.violations.examples().iter();
            let examples = examples.map(|example| vec![escape(example)]);
            out += &table("Violations", &["kind", "count"], &kinds.collect::<Vec<_>>());
            out += &table("The first of them", &["what"], &examples.collect::<Vec<_>>());
        }
        out
    }

    fn latency_table(&self) -> String {
        let rows = self.outcome.latencies.summaries().into_iter().map(|(name, summary)| {
            let values = [
                summary.mean,
                summary.p50,
                summary.p90,
                summary.p99,
                summary.p999,
                summary.p9999,
                summary.max,
            ];
            let head = [escape(name), number(summary.count as f64)];
            head.into_iter().chain(values.map(number)).collect()
        });
        let heads = ["", "count", "mean", "p50", "p90", "p99", "p99.9", "p99.99", "max"];
        table("Latency, ms", &heads, &rows.collect::<Vec<Vec<String>>>())
    }

    fn seconds_table(&self) -> String {
        let (main, _) = self.outcome.main_latency();
        let every = self.series.points.len().div_ceil(ROWS_MAX).max(1);
        let points = self.series.points.iter().step_by(every);
        let rows = points.map(|point| {
            let server =
                self.series.server.iter().rfind(|told| told.at_seconds <= point.at_seconds);
            let latency = point.latencies_ms.get(main);
            let some = |value: Option<f64>| value.map_or("&ndash;".into(), number);
            vec![
                format!("{:.1}", point.at_seconds),
                escape(&point.phase),
                number(point.connections.into()),
                number(point.published_per_second.round()),
                number(point.delivered_per_second.round()),
                some(latency.map(|latency| latency.p50)),
                some(latency.map(|latency| latency.p99)),
                some(latency.map(|latency| latency.max)),
                some(point.late_ms),
                some(server.and_then(|told| told.cpu_percent)),
                some(
                    server
                        .and_then(|told| told.resident_bytes)
                        .map(|bytes| bytes / f64::from(1 << 20)),
                ),
            ]
        });
        let name = escape(main);
        let latency = ["p50", "p99", "max"].map(|part| format!("{name} {part}, ms"));
        let [p50, p99, max] = &latency;
        let heads = [
            "s",
            "phase",
            "connections",
            "published/s",
            "delivered/s",
            p50,
            p99,
            max,
            "late, ms",
            "server CPU, %",
            "server memory, MiB",
        ];
        table("", &heads, &rows.collect::<Vec<_>>())
    }

    fn configuration_table(&self) -> String {
        let mut rows = Vec::new();
        flatten("", &json!(self.outcome.plan), &mut rows);
        for (phase, nanos) in &self.outcome.phases {
            rows.push(vec![
                format!("length of {}", escape(phase)),
                format!("{:.2} s", seconds(*nanos)),
            ]);
        }
        table("", &["value", ""], &rows)
    }
}

fn text_of(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), |text| text.replace('_', " "))
}

/// Names and values of an object and the objects in it; lengths of time in seconds.
fn flatten(prefix: &str, value: &Value, rows: &mut Vec<Vec<String>>) {
    for (name, value) in value.as_object().into_iter().flatten() {
        let full = format!("{prefix}{name}");
        match value {
            Value::Object(_) => flatten(&format!("{full} "), value, rows),
            Value::Null => {}
            _ => {
                let length = full.strip_suffix("_nanos").zip(value.as_u64());
                let (name, shown) = length.map_or_else(
                    || (full.as_str(), text_of(value)),
                    |(name, nanos)| (name, format!("{} s", seconds(nanos))),
                );
                rows.push(vec![escape(&name.replace('_', " ")), escape(&shown)]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checker::Violation;
    use crate::report::tests::outcome;
    use crate::schedule::{MILLISECOND, SECOND};
    use crate::series::{Recorder, Series, Status};

    fn series() -> Series {
        let mut recorder = Recorder::default();
        let mut latencies = crate::latencies::Latencies::default();
        for second in 1..=3 {
            latencies.deliver.record(0, second * MILLISECOND);
            let status = Status {
                phase: "load".into(),
                connections: 5,
                delivered: second * 100,
                latencies: latencies.take_intervals(),
                ..Status::default()
            };
            recorder.record(second * SECOND, status);
        }
        recorder.finish(&[])
    }

    #[test]
    fn a_section_each_and_nothing_from_elsewhere() {
        let mut broken = outcome(&[]);
        broken.plan.name = "<script>alert(1)</script>.toml".into();
        broken.violations.add(Violation::Gap, 1, || "a < b & \"c\"".into());
        let reports =
            [Report::new(outcome(&[]), series(), 0.1), Report::new(broken, Series::default(), 0.1)];
        let html = page(&reports, &Machine::look());
        assert_eq!(html.matches("<section").count(), 2);
        assert!(html.contains("Latency of deliver over time") && html.contains("Throughput"));
        assert!(
            html.contains("violations_max is 0, measured 1")
                && html.contains("<b class=\"bad\">not met</b>")
                && html.contains("Gap: a &lt; b &amp; &quot;c&quot;")
        );
        for foreign in ["<script", "http://", "https://", "@import", "NaN"] {
            assert!(!html.contains(foreign), "{foreign}");
        }
        for element in ["section", "svg", "div", "table", "figure", "details", "main", "title"] {
            let open = html.matches(&format!("<{element} ")).count()
                + html.matches(&format!("<{element}>")).count();
            assert_eq!(open, html.matches(&format!("</{element}>")).count(), "{element}");
        }
    }

    #[test]
    fn the_configuration_is_told_in_words() {
        let mut rows = Vec::new();
        let plan = json!({"duration_nanos": 1_500_000_000_u64, "a_b": {"c": 1, "d": null}, "kind": "publish_ack"});
        flatten("", &plan, &mut rows);
        rows.sort();
        assert_eq!(rows, [["a b c", "1"], ["duration", "1.5 s"], ["kind", "publish ack"]]);
    }
}
