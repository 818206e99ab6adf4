//! Measures that `archmesh-loadtest` makes: it checks every publication while it loads, which these need more than a
//! cheap generator.

use std::process::Command;

use serde_json::Value;

use super::{Context, Stage};
use crate::sample::Values;
use crate::subject::{Setup, Subject};

/// 10,000 connections in 100 channels, 200 publications a second: latency of deliveries.
pub(super) fn tail(context: &Context, subject: &Subject) -> Result<Values, String> {
    let report = run(context, subject, "fanout", &["--rate", "200", "--payload-bytes", "128"])?;
    let mut values = Values::new();
    for (name, key) in [("p50_ms", "p50"), ("p99_ms", "p99"), ("p999_ms", "p999")] {
        values.insert(name.to_owned(), latency(&report, "deliver", key)?);
    }
    let behind = report["generator"]["behind_ms"]["p99"].as_f64();
    values.insert("generator_late_p99_ms".to_owned(), behind.unwrap_or_default());
    let cost = report["server"]["cost"]["cpu_micros_per_delivery"].as_f64();
    values.extend(cost.map(|cost| ("cpu_us".to_owned(), cost)));
    Ok(values)
}

/// 10,000 connections are cut off at once, miss publications, come back and recover: seconds until the last one has.
pub(super) fn storm(context: &Context, subject: &Subject) -> Result<Values, String> {
    let report = run(context, subject, "reconnect", &[])?;
    let slowest = latency(&report, "recover", "max")?;
    Ok(Values::from([("seconds".to_owned(), slowest / 1e3)]))
}

fn latency(report: &Value, name: &str, key: &str) -> Result<f64, String> {
    let summaries = &report["latencies_ms"];
    let value = summaries[name][key].as_f64();
    value.ok_or_else(|| format!("no {key} of {name} in {summaries}"))
}

fn run(
    context: &Context,
    subject: &Subject,
    scenario: &str,
    more: &[&str],
) -> Result<Value, String> {
    if !context.loadtest.exists() {
        return Err(format!("{} is not there; build gateway-loadtest", context.loadtest.display()));
    }
    let stage = Stage::new(context, subject, &Setup::plain())?;
    let file = context.places.cache.join("scenario.json");
    let mut command = Command::new(&context.loadtest);
    command.args(["--url", &format!("ws://{}/ws", stage.server.address)]);
    command.args(["--scenario", scenario, "--size", "enterprise", "--quiet"]);
    command.args(more).arg("--json").arg(&file);
    let output = command.output().map_err(|error| format!("archmesh-loadtest: {error}"))?;
    if !output.status.success() {
        let text =
            String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        return Err(format!("{scenario} failed:\n{text}"));
    }
    let text = std::fs::read_to_string(&file).map_err(|error| format!("scenario.json: {error}"))?;
    let reports: Value =
        serde_json::from_str(&text).map_err(|error| format!("scenario.json: {error}"))?;
    Ok(reports[0].clone())
}
